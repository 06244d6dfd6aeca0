"""`pard2 bench`: methods x suites x batch sizes x draft lengths x temperatures, side by side in one run."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.bench.named_suites import NAMED_SUITES
from pard2.bench.suites import check_suites
from pard2.checkpoints.embedded import EMBEDDED
from pard2.cli.console import console, print_note, working
from pard2.cli.flags import Flags, number_or_word, with_records
from pard2.cli.options import ForceOption, Models, SeedOption, commits_of, note_weights, parse_list
from pard2.cli.output import output_console
from pard2.cli.report import HtmlOption, new_page, page_at_end
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.engine.methods import EAGLE3, METHODS, PLAIN, check_has_draft, choose_draft, choose_method, find_method, methods_for
from pard2.engine.options import NGRAM_OPTIONS, EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from pard2.files import new_file
from pard2.units import counted

if TYPE_CHECKING:
    from pard2.bench.plan import Configuration, Plan
    from pard2.bench.result_file import ResultFile
    from pard2.bench.runner import Runner
    from pard2.bench.suites import Suite
    from pard2.models.any_draft import AnyDraft
    from pard2.models.target import Target

_ALL_BUT_DRAFT = tuple(field.name for field in fields(Models) if field.name != "draft")
FORMATS = ("table", "markdown", "csv")
DraftsOption = Annotated[
    list[str] | None,
    typer.Option(
        *("-d", "--draft"),
        metavar="[NAME=]DRAFT",
        help="Directory, hub id, or 'smollm2' (the default for that target); given several times, drafts are compared, each under its name.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is decoded, by which configurations; lists are read by the properties."""

    suites: Annotated[
        str,
        typer.Option(
            *("-s", "--suites"),
            metavar="SUITE[,SUITE]",
            help=f"{', '.join(NAMED_SUITES)}; or JSONL files, or data sets of the hub, of conversations; the last user turn is answered.",
        ),
    ]
    methods: Annotated[
        str | None,
        typer.Option("-m", "--methods", metavar="METHOD[,METHOD]", help=f"{PLAIN}, the base, runs in any case; by default the draft's best."),
    ] = None
    prompts: Annotated[int | None, typer.Option("--prompts", metavar="N", min=1, help="The first N of each suite; by default all.")] = None
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")] = 128
    batch_sizes: Annotated[str, typer.Option("--batch-size", metavar="B[,B]", help="Sequences decoded at once.")] = "1"
    draft_tokens: Annotated[str, typer.Option("--draft-tokens", metavar="K[,K]", help="Tokens proposed in a cycle: numbers, or auto.")] = "auto"
    trees: Annotated[
        str,
        typer.Option(
            "--tree", metavar="N[,N]", help="Nodes of the tree proposed in a cycle, where a method proposes trees: numbers, or auto; 0: chains."
        ),
    ] = "0"
    tree_top_k: Annotated[
        int | None, typer.Option("--tree-top-k", metavar="N", help=f"Tokens tried behind each node of a tree of {EAGLE3}; by default 10.")
    ] = None
    temperatures: Annotated[str, typer.Option("--temperature", metavar="X[,X]", help="0 is greedy.")] = "0"
    repeats: Annotated[int, typer.Option("--repeats", metavar="R", min=1, max=1000, help="Times that each suite is run.")] = 1
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of answers, so that all are equally long.")] = False
    seed: SeedOption = 0
    template_arguments: TemplateArgOption = None

    @property
    def names(self) -> list[str] | None:
        return None if self.methods is None else parse_list("-m", self.methods, str)

    @property
    def suite_names(self) -> list[str]:
        return parse_list("-s", self.suites, str)

    @property
    def sizes(self) -> list[int]:
        return parse_list("--batch-size", self.batch_sizes, int)

    @property
    def ks(self) -> list[Any]:
        return [number_or_word(part) for part in self.draft_tokens.split(",")]

    @property
    def shapes(self) -> list[Any]:
        return [number_or_word(part) for part in self.trees.split(",")]

    @property
    def heats(self) -> list[float]:
        return parse_list("--temperature", self.temperatures, float)

    def check(self, options: EngineOptions, has_draft: bool) -> None:
        """Raises `Pard2Error` for whatever can be told before anything is loaded."""
        check_suites(self.suite_names)
        for heat in self.heats:
            SamplingParams(temperature=heat)
        for name in self.names or ():
            check_has_draft(name, has_draft)
        for size in self.sizes:
            EngineOptions(max_batch=size)
        for k in self.ks:
            if k == "full":
                raise Pard2Error("--draft-tokens 'full' is neither a number nor 'auto'")
            EngineOptions(draft_tokens=k)
        for nodes in self.shapes:
            EngineOptions(tree=nodes, tree_top_k=self.tree_top_k if nodes or not any(self.shapes) else None)
        if self.names is not None:
            self._check_any(self.names, options)

    def configurations(self, drafts: "dict[str | None, AnyDraft]", options: EngineOptions) -> "tuple[Configuration, ...]":
        """drafts: by name; the only one has the name None"""
        from pard2.bench.plan import configurations

        methods = {name: _methods_of(draft, self.names, len(drafts) > 1) for name, draft in drafts.items()} or {None: self.names or [PLAIN]}
        found = [method for names in methods.values() for method in names]
        for name in self.names or ():
            if name not in found:
                refusals = [_refusal(name, draft) for draft in drafts.values()]
                if not set(found) - {PLAIN}:
                    raise Pard2Error(refusals[0])
                print_note(f"left out: {refusals[0] if len(refusals) == 1 else f'{name}, which none of the drafts can'}")
        self._check_any(found, options)
        return configurations(methods, self.sizes, self.ks, self.heats, self.shapes)

    def _check_any(self, names: list[str], options: EngineOptions) -> None:
        """Raises `Pard2Error` for a tree that no method proposes, or a match before a draft that none has."""
        asked, trees = ", ".join(dict.fromkeys(names)), any(self.shapes)
        if trees and not any(METHODS[name].trees for name in names):
            raise Pard2Error(f"--tree {self.trees}: {asked} proposes no trees; name a method that does with -m, or leave --tree away")
        if self.tree_top_k is not None and EAGLE3 not in names:
            raise Pard2Error(f"--tree-top-k {self.tree_top_k} is for the trees of {EAGLE3}; name it with -m, or leave --tree-top-k away")
        if options.ngram_first is not None and not any(METHODS[name].needs for name in names):
            raise Pard2Error(
                f"--ngram-first {options.ngram_first}: {asked} has no draft that a match could come before; "
                "name a method that has one with -m, or leave --ngram-first away"
            )


def _methods_of(draft: "AnyDraft", asked: list[str] | None, beside_others: bool) -> list[str]:
    """Of the methods asked for, those that a draft can carry out; by default its best.

    beside_others: those that it was trained for, if any is asked for; the others have their own drafts
    """
    if asked is None:
        return [choose_method(None, draft)]
    can = [name for name in asked if not _refusal(name, draft)]
    trained_for = [name for name in can if name in methods_for(draft.kind)]
    return [name for name in can if name in trained_for or not METHODS[name].needs] if beside_others and trained_for else can


def _refusal(name: str, draft: "AnyDraft") -> str:
    """Why a draft cannot carry a method out; empty where it can."""
    try:
        choose_method(name, draft)
    except Pard2Error as error:
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the results are shown, and where they are kept."""

    shown: Annotated[str, typer.Option("--format", metavar="table|markdown|csv", help="How the results are printed.")] = "table"
    path: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Keep the results here, chunk by chunk; the same command goes on where a run was stopped."),
    ] = None
    html: HtmlOption = None
    force: ForceOption = False


@with_records
def bench(
    context: typer.Context,
    models: Annotated[Models, Flags(*_ALL_BUT_DRAFT)],
    work: Work,
    options: Annotated[EngineOptions, Flags(*NGRAM_OPTIONS, "cuda_graphs")],
    output: Output,
    drafts: DraftsOption = None,
) -> None:
    """Decode the same prompts by several methods in turn; say how much faster each is than plain decoding.

    What differs between two results says pard2 bench compare A.json B.json.
    """
    if output.shown not in FORMATS:
        raise Pard2Error(f"--format {output.shown!r} is not one of {', '.join(FORMATS)}")
    arguments = parse_template_args(work.template_arguments)
    named = name_drafts(drafts)
    needs_draft = work.names is None or any(find_method(name).needs for name in work.names)
    chosen = {name: choose_draft(models.target, draft, None if needs_draft else PLAIN) for name, draft in named.items()}
    found = {name: draft for name, draft in chosen.items() if draft is not None}
    work.check(options, bool(found))
    path, inputs = output.path, (*work.suite_names, models.target, *found.values())
    if path is not None:
        context.with_resource(new_file(path, inputs))
    if output.html is not None:
        going_on = path is not None and path.exists()  # then the page that is there is most likely of the same run
        context.with_resource(new_page(output.html, (path, *inputs), output.force or going_on))
    with working("reading the suites"):
        from pard2.bench.suites import read_suites

        suites = read_suites(work.suite_names, work.prompts, arguments)
    with working("importing torch"):
        from pard2.bench.result_file import ResultFile
        from pard2.bench.runner import Runner

    target, loaded = _load(models, found if needs_draft else {}, work.names, max(work.sizes))
    for draft in loaded.values() or [None]:
        check_template_args(target, draft, arguments, [prompt for suite in suites for prompt in suite.prompts])
    # By their names: where they lie on this machine matters to nobody.
    plan = _plan(models, work, options, suites, target, loaded, {name: named[name] or EMBEDDED for name in loaded})
    with working("preparing the prompts"):
        runner = Runner(plan, target, loaded)
    file = ResultFile(path, plan, output.force)
    print_note(
        f"{counted(len(plan.configurations), 'configuration')} x {counted(plan.prompts, 'prompt')} x {counted(plan.repeats, 'run')} "
        f"x up to {plan.max_new_tokens} new tokens: "
        f"{plan.most_tokens:,} tokens at most, caches of {runner.cache_bytes / 1e9:.2f} GB"
    )
    with page_at_end(output.html, file):
        _run(runner, file, output)


def name_drafts(words: list[str] | None) -> dict[str | None, str | None]:
    """Drafts by the names that tell them apart: `NAME=DRAFT`, else the last part of where they are.

    The only one needs no name. Raises `Pard2Error` for a name that two have.
    """
    if not words:
        return {None: None}
    named: dict[str | None, str | None] = {}
    for word in words:
        name, equals, draft = word.partition("=")
        if not equals or "/" in name or Path(word).exists():
            name, draft = Path(word).name, word
        if not name or not draft:
            raise Pard2Error(f"-d {word!r} is not of the form NAME=DRAFT")
        if name in named:
            raise Pard2Error(f"-d {word!r}: another draft is called {name!r} already; name them, as in -d first=DIR -d second=DIR")
        named[name] = draft
    return named if len(named) > 1 else {None: draft}


def _load(models: Models, drafts: dict[str | None, str], names: list[str] | None, sequences: int) -> "tuple[Target, dict[str | None, AnyDraft]]":
    """The models.

    The drafts' projections are read where a method wants them.
    """
    from pard2.checkpoints.loading import load_target, parse_device, parse_dtype
    from pard2.checkpoints.read import load_draft
    from pard2.checkpoints.weight_choice import asked_format

    with working(f"loading {models.target}"):
        weight_format = asked_format(models.weights, parse_device(models.device), parse_dtype(models.dtype, models.target))
        target = load_target(models.target, models.dtype, models.device, weight_format, sequences)
        note_weights(target)
        wanted = None if names is None or any(METHODS[name].loads_projection for name in names) else False
        dtype = parse_dtype(models.dtype, models.target)
        return target, {name: load_draft(draft, target, dtype, wanted, sequences=sequences) for name, draft in drafts.items()}


def _plan(
    models: Models,
    work: Work,
    options: EngineOptions,
    suites: "list[Suite]",
    target: "Target",
    drafts: "dict[str | None, AnyDraft]",
    named: dict[str | None, str],
) -> "Plan":
    """named: what the user calls each draft."""
    from pard2.bench.plan import Plan
    from pard2.checkpoints.draft_identity import draft_identity
    from pard2.checkpoints.loading import parse_device, parse_dtype
    from pard2.checkpoints.read import checkpoint_directory

    identities = {name: draft_identity(checkpoint_directory(draft)) for name, draft in named.items()}
    return Plan(
        target=models.target,
        draft=named.get(None) if len(named) < 2 else {str(name): draft for name, draft in named.items()},
        dtype=str(parse_dtype(models.dtype, models.target)).removeprefix("torch."),
        device=parse_device(models.device).type,
        suites=tuple(suites),
        configurations=work.configurations(drafts, options),
        max_new_tokens=work.max_new_tokens,
        ignore_eos=work.ignore_eos,
        repeats=work.repeats,
        seed=work.seed,
        tree_top_k=work.tree_top_k,
        ngrams={name: getattr(options, name) for name in NGRAM_OPTIONS},
        cuda_graphs=options.cuda_graphs,
        weights=models.weights,
        commits=commits_of(target, *drafts.values()),
        draft_identity=identities.get(None) if len(named) < 2 else {str(name): identity for name, identity in identities.items()},
    )


def _run(runner: "Runner", file: "ResultFile", output: Output) -> None:
    """Measure what the file lacks, and print the results."""
    from pard2.bench.runner import run
    from pard2.bench.table import results_csv, results_markdown, results_table

    if file.done:
        print_note(f"going on with {file.path}: {len(file.done)} of {len(list(runner.plan.chunks()))} chunks are there")
    try:
        run(runner, file, console)
    except KeyboardInterrupt:
        if file.path is not None and file.done:
            print_note(f"{len(file.done)} chunks are in {file.path}; the same command{' without --force' * output.force} goes on from there")
        raise
    results, title = file.results, runner.plan.title
    if output.shown == "table":
        out = output_console()
        out.print(results_table(results, out.width, title))
    else:
        typer.echo(results_csv(results) if output.shown == "csv" else results_markdown(results, title))
