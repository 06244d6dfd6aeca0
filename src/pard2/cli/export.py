"""`pard2 export`: a draft for other engines, and for the hub."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pard2.cli.card import Statements, is_ours, tell_gaps
from pard2.cli.console import print_note, working
from pard2.cli.flags import with_records
from pard2.cli.options import ForceOption, JsonOption
from pard2.errors import Pard2Error
from pard2.export.engine_names import ENGINES, EngineName
from pard2.files import CHECKPOINT, WITH_CARD, Kind, new_directory

if TYPE_CHECKING:
    from pard2.export.engine_form import EngineForm
    from pard2.export.vllm_check import VllmCheck

HUB = "hf"
_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Checks:
    """How an exported draft is tried."""

    check: Annotated[bool, typer.Option("--check", help="Decode prompts by vLLM with and without the draft, and by pard2.")] = False
    python: Annotated[
        str | None, typer.Option("--python", metavar="PATH", help="The interpreter that has vLLM; by default the one that runs pard2.")
    ] = None
    features: Annotated[
        bool, typer.Option("--features", help="Check a PARD-2 draft with the target's features, by the vLLM of an interpreter that has pard2, too.")
    ] = False
    prompts: Annotated[int, typer.Option("--prompts", metavar="N", min=1, max=40, help="Prompts of our own that are decoded.")] = 20
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")] = 64

    @property
    def interpreter(self) -> str:
        return self.python or sys.executable

    def refuse_beside(self, engine: str) -> None:
        for flag, given in (("--python", self.python is not None), ("--features", self.features)):
            if given and not self.check:
                raise Pard2Error(f"{flag} is for --check; add that, or leave {flag} away")
        if self.check and engine != "vllm":
            raise Pard2Error(f"--check runs vLLM, and --to is {engine}; use --to vllm, or leave --check away")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Whether the hub gets it, and how."""

    push: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="Upload it as this model of the hub; with --to hf.")] = None
    private: Annotated[bool, typer.Option("--private", help="A model made by --push is seen by nobody else.")] = False

    def refuse_beside(self, engine: str) -> None:
        if self.push is None and self.private:
            raise Pard2Error("--private is for --push; add that, or leave --private away")
        if self.push is not None and engine != HUB:
            raise Pard2Error(f"--push uploads what --to {HUB} writes, the draft with its card; use --to {HUB}, or leave --push away")


@dataclass(frozen=True, kw_only=True)
class Output:
    """For whom, and where it goes."""

    to: Annotated[str, typer.Option("--to", metavar="ENGINE", help=f"{', '.join(ENGINES)}; {HUB}: its own files and its card.")]
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where it goes.")]
    as_json: JsonOption = False
    force: ForceOption = False

    @property
    def kind(self) -> Kind:
        """What may be replaced: a card, too, if `pard2` wrote it."""
        card = self.output / "README.md"
        return WITH_CARD if self.to == HUB and card.is_file() and is_ours(card) else CHECKPOINT


@with_records
def export(
    context: typer.Context,
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="A checkpoint's directory or hub id, or 'smollm2' for the embedded one.")],
    output: Output,
    statements: Statements,
    checks: Checks,
    upload: Upload,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="R.json", help="What `pard2 bench --json` measured of this draft; several times for several."),
    ] = None,
) -> None:
    """Write a draft as another engine loads it, or as the hub shows it; say how it is started there."""
    to, directory = output.to, output.output
    if to not in (*ENGINES, HUB):
        raise Pard2Error(f"--to {to!r} is not one of {', '.join((*ENGINES, HUB))}")
    checks.refuse_beside(to)
    upload.refuse_beside(to)
    context.with_resource(new_directory(directory, output.force, output.kind, (draft, statements.target, *(results or ()))))
    if to == HUB:
        said = _to_hub(draft, directory, statements, results or [], upload)
    else:
        said = _to_engine(draft, cast(EngineName, to), directory, statements.target, results or [], checks)
    if output.as_json:
        typer.echo(json.dumps(said))
    else:
        typer.echo("\n".join(said.get("commands", ())), nl="commands" in said)
    if said.get("check", {}).get("passed") is False:
        raise typer.Exit(_FAILED)


def _to_hub(draft: str, output: Path, statements: Statements, results: list[Path], upload: Upload) -> dict[str, Any]:
    with working("importing torch"):
        from pard2.checkpoints.read import checkpoint_directory
        from pard2.export.card import card
        from pard2.export.card_facts import gather_facts
        from pard2.export.hub_form import push, write_hub_form

    directory = checkpoint_directory(draft)
    with working(f"reading {draft}"):
        facts = gather_facts(directory, results, statements.stated(upload.push or draft))
    if upload.push is not None and not (facts.results and facts.license and facts.base and facts.base.hub_id):
        lacking = "--results" if not facts.results else "--license" if not facts.license else "-t, the target's hub id"
        raise Pard2Error(f"--push {upload.push}: the card of {draft} would say too little; add {lacking}")
    write_hub_form(directory, output, card(facts))
    tell_gaps(facts)
    print_note(f"{output}: {draft} with its card")
    if upload.push is None:
        return {"directory": str(output), "engine": HUB}
    with working(f"uploading to {upload.push}"):
        page = push(output, upload.push, upload.private)
    print_note(f"{page}: pard2 generate -d {upload.push}")
    return {"directory": str(output), "engine": HUB, "page": page}


def _to_engine(draft: str, engine: EngineName, output: Path, target: str | None, results: list[Path], checks: Checks) -> dict[str, Any]:
    with working("importing torch"):
        from pard2.bench.read_results import read_results
        from pard2.export.engine_form import engine_form
        from pard2.export.features_cost import features_cost
        from pard2.export.instructions import instructions
        from pard2.export.vllm_check import vllm_version

    if checks.check:
        vllm_version(checks.interpreter, checks.features)
    costs = [line for path in results for line in features_cost(read_results(path).results)]
    with working(f"loading {draft}"):
        form = engine_form(draft, engine, target)
    with working(f"writing {output}"):
        form.write(output)
    commands = instructions(form, str(output), target or "TARGET")
    print_note(f"{output}: {draft} for {engine}", *form.limits, *costs)
    said: dict[str, Any] = {"directory": str(output), "engine": engine, "limits": [*form.limits], "costs": costs, "commands": commands}
    if checks.check:
        found = _check(form, output, target, checks)
        said["check"] = asdict(found) | {"passed": found.passed}
        _tell(found)
    return said


def _check(form: "EngineForm", output: Path, target: str | None, checks: Checks) -> "VllmCheck":
    from pard2.bench.named_suites import own_records
    from pard2.checkpoints.meta import meta_target
    from pard2.data.conversations import up_to_user
    from pard2.engine.prompts import encode_prompt
    from pard2.export.instructions import speculative_config
    from pard2.export.vllm_check import check_in_vllm
    from pard2.models.draft_kind import DraftKind

    if target is None:
        raise Pard2Error("--check decodes with the target; name it with -t")
    shapes = meta_target(target)
    prompts = [encode_prompt(shapes, up_to_user(record)) for record in own_records()[: checks.prompts]]
    if checks.features and form.draft.kind is not DraftKind.PROJECTED:
        raise Pard2Error("--features is for PARD-2 drafts with a projection, which this one is not; leave it away")
    config = speculative_config(form.draft, str(output), checks.features)
    with working(f"decoding {len(prompts)} prompts by vLLM, twice, and by pard2: some minutes"):
        return check_in_vllm(config, target, prompts, checks.max_new_tokens, checks.interpreter)


def _tell(found: "VllmCheck") -> None:
    print_note(
        f"vLLM {found.version}: {found.equal} of {found.prompts} texts equal to its plain decoding"
        + (f", {found.near_ties} differ at a near-tie" if found.near_ties else ""),
        f"acceptance length {found.acceptance_length:.2f}, in pard2 {found.our_acceptance_length:.2f}, with {found.draft_tokens} tokens proposed",
        f"{found.speedup:.2f}x its plain decoding, in pard2 {found.our_speedup:.2f}x, in float32",
        "as it should be" if found.passed else "NOT as it should be: texts differ, or the acceptance lengths by more than 5 %",
    )
