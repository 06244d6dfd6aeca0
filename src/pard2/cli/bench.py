"""`pard2 bench`: methods x suites x batch sizes x draft lengths x temperatures, side by side in one run."""

from pathlib import Path
from typing import Annotated

import typer

from pard2.cli.console import console, print_note, working
from pard2.cli.options import (
    EMBEDDED,
    DeviceOption,
    DraftOption,
    DtypeOption,
    ForceOption,
    SeedOption,
    TargetOption,
    choose_draft,
    parse_draft_tokens,
    parse_list,
)
from pard2.cli.template_args import TemplateArgOption, check_template_args, parse_template_args
from pard2.errors import Pard2Error
from pard2.files import new_file

_WIDTH = 150  # of a table that goes into a file

SuitesOption = Annotated[
    str, typer.Option("-s", "--suites", metavar="SUITE[,SUITE]", help="JSONL files of records with `messages`; the last user turn is answered.")
]
MethodsOption = Annotated[
    str | None, typer.Option("-m", "--methods", metavar="METHOD[,METHOD]", help="ar, the base, runs in any case; by default the draft's best.")
]
JsonFileOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Keep the results here, chunk by chunk; the same command goes on where a run was stopped."),
]


def bench(
    context: typer.Context,
    target: TargetOption,
    suites: SuitesOption,
    draft: DraftOption = None,
    methods: MethodsOption = None,
    prompts: Annotated[int | None, typer.Option("--prompts", metavar="N", min=1, help="The first N of each suite; by default all.")] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")] = 128,
    batch_sizes: Annotated[str, typer.Option("--batch-size", metavar="B[,B]", help="Sequences decoded at once.")] = "1",
    draft_tokens: Annotated[str, typer.Option("--draft-tokens", metavar="K[,K]", help="Tokens proposed in a cycle: numbers, or auto.")] = "auto",
    temperatures: Annotated[str, typer.Option("--temperature", metavar="X[,X]", help="0 is greedy.")] = "0",
    repeats: Annotated[int, typer.Option("--repeats", metavar="R", min=1, max=1000, help="Times that each suite is run.")] = 1,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of answers, so that all are equally long.")] = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    template_arg: TemplateArgOption = None,
    json_file: JsonFileOption = None,
    force: ForceOption = False,
) -> None:
    """Decode the same prompts by several methods in turn, and say how much faster each is than plain decoding."""
    sizes = parse_list("--batch-size", batch_sizes, int)
    ks = [parse_draft_tokens(part) for part in draft_tokens.split(",")]
    arguments = parse_template_args(template_arg)
    heats = parse_list("--temperature", temperatures, float)
    with working("importing torch"):
        from rich.console import Console

        from pard2.bench.plan import Plan, configurations
        from pard2.bench.report import summarise
        from pard2.bench.result_file import ResultFile
        from pard2.bench.runner import Runner, run
        from pard2.bench.suites import read_suites
        from pard2.bench.table import results_table
        from pard2.checkpoints.loading import load_target, parse_device, parse_dtype
        from pard2.checkpoints.read import load_draft
        from pard2.engine.methods import check_method, choose_method
        from pard2.engine.sampling import SamplingParams

    names = None if methods is None else parse_list("-m", methods, str)
    paths = parse_list("-s", suites, Path)
    found = choose_draft(target, draft, "ar" if names == ["ar"] else None)
    for name in names or ():
        check_method(name, found is not None)
    for heat in heats:
        SamplingParams(temperature=heat)
    if min(sizes) < 1:
        raise Pard2Error(f"--batch-size {min(sizes)}: at least 1 is needed")
    if json_file is not None:
        context.with_resource(new_file(json_file, (*paths, target, found)))
    read = read_suites(paths, prompts, arguments)
    with working(f"loading {target}"):
        loaded = load_target(target, dtype, device)
        draft_loaded = None
        if found is not None and names != ["ar"]:
            draft_loaded = load_draft(found, loaded, parse_dtype(dtype), None if names is None else "pard2-td" in names)
    check_template_args(loaded, draft_loaded, arguments, [prompt for suite in read for prompt in suite.prompts])
    plan = Plan(
        target,
        draft or (found and EMBEDDED),  # by its name: where it lies on this machine matters to nobody
        str(parse_dtype(dtype)).removeprefix("torch."),
        parse_device(device).type,
        tuple(read),
        configurations(names or [choose_method(None, draft_loaded)], sizes, ks, heats),
        max_new_tokens,
        ignore_eos,
        repeats,
        seed,
    )
    runner = Runner(plan, loaded, draft_loaded)
    file = ResultFile(json_file, plan, force)
    print_note(
        f"{len(plan.configurations)} configurations x {plan.prompts} prompts x {repeats} x up to {max_new_tokens} new tokens: "
        f"{plan.most_tokens:,} tokens at most, caches of {runner.cache_bytes / 1e9:.2f} GB"
    )
    if file.done:
        print_note(f"going on with {json_file}: {len(file.done)} of {len(list(plan.chunks()))} chunks are there")
    try:
        run(runner, file, console)
    except KeyboardInterrupt:
        if json_file is not None and file.done:
            print_note(f"{len(file.done)} chunks are in {json_file}; the same command{' without --force' * force} goes on from there")
        raise
    Console(width=None if Console().is_terminal else _WIDTH).print(results_table(summarise(plan, file.measurements)))
