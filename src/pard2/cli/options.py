"""Options that several commands share, and how the words given for them are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from pard2.data.arguments import to_prompts
from pard2.data.records import Message, Record, read_records
from pard2.errors import Pard2Error

EMBEDDED = "smollm2"
Part = TypeVar("Part", int, float, str, Path)

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
SeedOption = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same text.")]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=1, help="Sequences decoded at once.")]
TopPOption = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, help="Sample from the smallest set of tokens with this probability.")]
DraftTokensOption = Annotated[
    str, typer.Option("--draft-tokens", metavar="K|auto", help="Tokens proposed in a cycle; auto adapts to what is accepted and what it costs.")
]

PromptsOption = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="JSONL file of conversations, each answered from its last user turn on.")
]
DraftSamplingOption = Annotated[
    str,
    typer.Option("--draft-sampling", metavar="greedy|sampled", help="What a draft proposes above temperature 0: its first choices, or drawn tokens."),
]
VerificationOption = Annotated[
    str, typer.Option("--verification", metavar="token|block", help="How drawn proposals are judged: one by one, or as blocks, of which more stands.")
]
CacheTokensOption = Annotated[
    int | None,
    typer.Option("--cache-tokens", metavar="N", max=2**40, help="Positions of the key-value cache, of all sequences together; by default what fits."),
]


def choose_draft(target: str, draft: str | None, method: str | None) -> str | None:
    """The draft's directory or hub id; the embedded one for the embedded target where none is named."""
    if draft == EMBEDDED or (draft is None and target == EMBEDDED and method != "ar"):
        from pard2.checkpoints.embedded import embedded_draft

        return embedded_draft()
    return draft


def parse_draft_tokens(text: str) -> int | Literal["auto"]:
    """Raises `Pard2Error` for what no draft can propose, before one is loaded to ask what it was trained for."""
    if text == "auto":
        return "auto"
    try:
        asked = int(text)
    except ValueError:
        raise Pard2Error(f"--draft-tokens {text!r} is neither a number nor 'auto'") from None
    if asked < 1:
        raise Pard2Error(f"--draft-tokens {asked}: at least 1 is needed; for no draft at all use -m ar")
    return asked


def parse_list(flag: str, text: str, kind: Callable[[str], Part]) -> list[Part]:
    """`-1,-8` as numbers, or names. Raises `Pard2Error` naming the flag."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if all(parts):
            return [kind(part) for part in parts]
    except ValueError:
        pass
    raise Pard2Error(f"{flag} {text!r} is not a list of {'numbers such as 1,8' if kind in (int, float) else 'names such as a,b'}")


def parse_logit_bias(words: list[str]) -> dict[int, float]:
    """`["42=-100", "7=1.5"]` as biases by token id. Raises `Pard2Error` for another form, and for a token named twice."""
    biases: dict[int, float] = {}
    for word in words:
        token, _, bias = word.partition("=")
        try:
            number, value = int(token), float(bias)
        except ValueError:
            raise Pard2Error(f"--logit-bias {word!r} is not of the form ID=BIAS, such as 42=-100") from None
        if number in biases:
            raise Pard2Error(f"--logit-bias names token {number} twice; give one bias for each")
        biases[number] = value
    return biases


def read_prompts(file: Path, arguments: dict[str, Any]) -> list[list[Message] | Record]:
    """The conversations of a JSONL file, each up to its last user turn. Raises `Pard2Error` for one in which no user speaks."""
    return to_prompts(read_records(file), arguments, f"--prompts {file}")
