"""Options that several commands share, and how the words given for them are read."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer

from pard2.errors import Pard2Error

EMBEDDED = "smollm2"

TargetOption = Annotated[
    str, typer.Option("-t", "--target", metavar="TARGET", help="Hub id, directory, .gguf file, or 'smollm2' for the embedded one.")
]
DraftOption = Annotated[
    str | None,
    typer.Option("-d", "--draft", metavar="DRAFT", help="Directory, hub id, or 'smollm2' for the embedded one (the default for that target)."),
]
MethodOption = Annotated[
    str | None,
    typer.Option("-m", "--method", metavar="METHOD", help="ar, vsd, pard, pard2-ti or pard2-td; by default the best that the draft allows."),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16; by default bfloat16.")]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="cpu, cuda or cuda:N; by default the GPU where there is one.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an output that is already there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else there.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed, batch size and file give the same text.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences decoded at once.")]
TopPOption = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the smallest set of tokens with this probability.")]
DraftTokensOption = Annotated[
    str, typer.Option("--draft-tokens", metavar="K|auto", help="Tokens proposed in a cycle; auto adapts to what is accepted and what it costs.")
]


def choose_draft(target: str, draft: str | None, method: str | None) -> str | None:
    """The draft's directory or hub id; the embedded one for the embedded target where none is named."""
    if draft == EMBEDDED or (draft is None and target == EMBEDDED and method != "ar"):
        from pard2.models.embedded import embedded_draft

        return embedded_draft()
    return draft


def parse_draft_tokens(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise Pard2Error(f"--draft-tokens {text!r} is neither a number nor 'auto'") from None


def parse_numbers(flag: str, text: str) -> list[int]:
    """`-1,-8` as numbers. Raises `Pard2Error` naming the flag."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise Pard2Error(f"{flag} {text!r} is not a list of numbers such as 0,9,19,29") from None


def check_new_directory(path: Path, force: bool) -> None:
    """Raises `Pard2Error`, before the work that fills it, for a directory that cannot be written or would be lost."""
    if path.exists() and not path.is_dir():
        raise Pard2Error(f"cannot write {path}: a file of that name is in the way; name another directory with -o")
    if path.is_dir() and any(path.iterdir()):
        if not force:
            raise Pard2Error(f"{path} is not empty; name another directory with -o, or give --force to replace it")
        if not (path / "config.json").is_file():
            raise Pard2Error(f"{path} holds no checkpoint, so --force will not replace it; name another directory with -o")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent).cleanup()
    except OSError as error:
        raise Pard2Error(f"cannot write {path}: {error.strerror}; name another directory with -o") from None
