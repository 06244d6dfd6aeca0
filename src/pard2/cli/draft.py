"""`pard2 draft`: a draft cut out of its target, and what a checkpoint is."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, working
from pard2.cli.flags import to_flags, with_records
from pard2.cli.options import DeviceOption, ForceOption, JsonOption, TargetOption, parse_list
from pard2.engine.methods import METHODS, methods_for
from pard2.files import CHECKPOINT, new_directory
from pard2.reading import printable

if TYPE_CHECKING:
    from pard2.checkpoints.draft_report import DraftReport

app = typer.Typer(help="Make and explain drafts.", no_args_is_help=True)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a new draft is made of."""

    layers: Annotated[str, typer.Option("--layers", metavar="N|I,J,..", help="How many layers, evenly spaced, or which: 4, or 0,9,19,29.")]
    mask_token: Annotated[int | None, typer.Option("--mask-token", metavar="ID", help="Token that no text holds; by default an unused one.")] = None
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", metavar="K", min=1, max=1024, help="Most tokens that it will propose at once.")] = 16
    target_layers: Annotated[
        str | None, typer.Option("--target-layers", metavar="I,J,..", help="Hidden states that feed it; by default -1,-8,-16,-24.")
    ] = None
    share_vocabulary: Annotated[
        bool, typer.Option("--share-vocabulary", help="Keep neither embedding nor head: use the target's. Smaller, but for our own engine only.")
    ] = False


@app.command()
@with_records
def init(
    context: typer.Context,
    target: TargetOption,
    shape: Shape,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the draft goes.")],
    device: DeviceOption = None,
    force: ForceOption = False,
) -> None:
    """Cut an untrained draft out of a target's layers, for targets that have no small sibling."""
    numbers = parse_list("--layers", shape.layers, int)
    features = None if shape.target_layers is None else tuple(parse_list("--target-layers", shape.target_layers, int))
    context.with_resource(new_directory(output, force, CHECKPOINT, (target,)))
    with working("importing torch"):
        import torch

        from pard2.checkpoints.loading import load_target
        from pard2.checkpoints.meta import meta_target
        from pard2.checkpoints.pruning import cut_draft, even_layers, unused_token
        from pard2.checkpoints.twin import check_decodable
        from pard2.checkpoints.write import save_draft
        from pard2.train.compatibility import check_kinds

        shapes = meta_target(target)
        check_decodable(shapes.model, target)
        chosen = numbers if "," in shape.layers else even_layers(numbers[0], shapes.num_states - 1)
        mask = unused_token(shapes) if shape.mask_token is None else shape.mask_token
        with torch.device("meta"):
            draft = cut_draft(shapes, chosen, mask, shape.draft_tokens, features, shared_vocabulary=shape.share_vocabulary)
        check_kinds(shapes, draft, "dense")
    with working(f"loading {target}"):
        loaded = load_target(target, dtype="float32", device=device, weight_format="plain")
    draft = cut_draft(loaded, chosen, mask, shape.draft_tokens, features, shared_vocabulary=shape.share_vocabulary)
    with working(f"writing {output}"):
        save_draft(draft, output, vocabulary=not shape.share_vocabulary)
    cut = f"layers {', '.join(map(str, chosen))} of {target}"
    print_note(f"{output}: {cut}, mask token {mask}, K = {shape.draft_tokens}; untrained, next: pard2 train")


@app.command()
def info(
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="A checkpoint's directory or hub id, or 'smollm2' for the embedded one.")],
    target: Annotated[str | None, typer.Option("-t", "--target", metavar="TARGET", help="Say also whether it fits this target.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a draft: what it is, what it fits, what it lacks."""
    with working("importing torch"):
        from pard2.checkpoints.inspection import fit, inspect_draft
        from pard2.checkpoints.read import checkpoint_directory

    directory = checkpoint_directory(draft)
    report = inspect_draft(directory)
    methods = methods_for(report.kind)
    fits = None if target is None else fit(directory, target, {name: METHODS[name].loads_projection for name in methods})
    if as_json:
        values = dataclasses.asdict(report) | {"methods": methods} | ({} if fits is None else {"fits": fits})
        del values["kind"]
        typer.echo(to_flags(json.dumps(values, ensure_ascii=False)))
        return
    lines = _lines(report, methods)
    lines += [("fits as", f"{method}: {answer}") for method, answer in (fits or {}).items()]
    for label, value in [*lines, *(("lacks", missing) for missing in report.lacks)]:
        typer.echo(printable(to_flags(f"{label:<16}{value}")))


def _lines(report: "DraftReport", methods: list[str]) -> list[tuple[str, str]]:
    from pard2.checkpoints.draft_words import described

    where = [("runs in", f"{engine}: {answer}") for engine, answer in report.runs_in.items()]
    return [("draft", report.name), *described(report, methods), *where]
