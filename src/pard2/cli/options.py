"""Options that several commands share, and how the words given for them are read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from pard2.checkpoints.embedded import EMBEDDED
from pard2.checkpoints.hub import with_revision
from pard2.cli.console import print_note, working
from pard2.data.arguments import to_prompts
from pard2.data.records import Message, Record, read_records
from pard2.engine.options import EngineOptions
from pard2.errors import Pard2Error

if TYPE_CHECKING:
    from pard2.engine.engine import Engine
    from pard2.models.any_draft import AnyDraft
    from pard2.models.target import Target

Part = TypeVar("Part", int, float, str, Path)

TargetOption = Annotated[
    str, typer.Option("-t", "--target", metavar="TARGET", help="Hub id, directory, .gguf file, or 'smollm2' for the embedded one.")
]
DraftOption = Annotated[
    str | None,
    typer.Option("-d", "--draft", metavar="DRAFT", help="Directory, hub id, or 'smollm2' for the embedded one (the default for that target)."),
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16, float16, or auto, as the checkpoint says; by default bfloat16.")
]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; by default the GPU where there is one.")]
WeightsOption = Annotated[
    str,
    typer.Option("--weights", metavar="FORM", help="How a CPU keeps the target: auto or bf16, as it is, or int8, faster and nearly the same model."),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REVISION", help="The target's branch, tag or commit on the hub; a draft's is named as ID@REVISION."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that is already there.")]
SystemOption = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same text.")]
PromptsOption = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="JSONL file of conversations, each answered from its last user turn on; - reads standard input."),
]


@dataclass(frozen=True, kw_only=True)
class Models:
    """Which models a command loads, and where to."""

    target: TargetOption = EMBEDDED
    draft: DraftOption = None
    dtype: DtypeOption = None
    device: DeviceOption = None
    weights: WeightsOption = "auto"
    revision: RevisionOption = None

    def __post_init__(self) -> None:
        # From here on the target's name says it, wherever it is shown or kept.
        object.__setattr__(self, "target", with_revision(self.target, self.revision))

    def load(self, options: EngineOptions) -> "Engine":
        """An engine of these models."""
        with working("importing torch"):
            from pard2.engine.engine import Engine

        with working(f"loading {self.target}"):
            engine = Engine.from_pretrained(self.target, self.draft, dtype=self.dtype, device=self.device, weights=self.weights, **vars(options))
        note_weights(engine.target)
        return engine


def note_weights(target: "Target") -> None:
    """Say so where the target is not quite the model that was named, or its file held another form of it."""
    if target.weight_format == "int8":
        print_note(f"{target.name} in int8 is another model by a hair; decoding is lossless against that one")
    if target.origin and target.name.endswith(".gguf"):
        print_note(f"{target.name}: {target.origin}")


def commits_of(*models: "Target | AnyDraft | None") -> dict[str, str] | None:
    """The commits of those that come from the hub, by name; None where none does."""
    commits = {model.name: model.commit for model in models if model is not None}
    return {name: commit for name, commit in commits.items() if commit is not None} or None


def parse_list(flag: str, text: str, kind: Callable[[str], Part]) -> list[Part]:
    """`-1,-8` as numbers, or names. Raises `Pard2Error` naming the flag."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if all(parts):
            return [kind(part) for part in parts]
    except ValueError:
        pass
    raise Pard2Error(f"{flag} {text!r} is not a list of {'numbers such as 1,8' if kind in (int, float) else 'names such as a,b'}")


def read_prompts(file: Path, arguments: dict[str, Any]) -> list[list[Message] | Record]:
    """The conversations of a JSONL file, each up to its last user turn.

    Raises `Pard2Error` for one in which no user speaks.
    """
    return to_prompts(read_records(file), arguments, f"--prompts {file}")
