"""What is to be answered: texts, a text file, a file of conversations, or standard input."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pard2.cli.options import PromptsOption, SystemOption, read_prompts
from pard2.cli.template_args import TemplateArgOption, apply_template_args
from pard2.data.conversations import Message
from pard2.errors import Pard2Error
from pard2.reading import LONGEST_TEXT, decode_text, read_text

if TYPE_CHECKING:
    from pard2.engine.prompts import Prompt

_STDIN = "-"
_WAYS = "say something with -p, pipe a text in, or name a file with --prompt-file or --prompts"


@dataclass(frozen=True, kw_only=True)
class Question:
    """Prompts, of one of their sources."""

    prompt: Annotated[
        list[str] | None, typer.Option("-p", "--prompt", help="What to say to the model; may be given several times; - reads standard input.")
    ] = None
    prompt_file: Annotated[Path | None, typer.Option("--prompt-file", metavar="FILE", help="Text file, all of which is one prompt.")] = None
    prompts: PromptsOption = None
    system: SystemOption = None
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False
    template_arguments: TemplateArgOption = None

    def read(self, arguments: dict[str, Any]) -> "list[Prompt]":
        """The prompts; standard input is one where no other source is given.

        arguments: of the chat template.

        Raises `Pard2Error` for none, for an empty one, and for several sources of them.
        """
        given = [flag for flag, value in (("-p", self.prompt), ("--prompt-file", self.prompt_file), ("--prompts", self.prompts)) if value]
        if len(given) > 1:
            raise Pard2Error(f"{' and '.join(given[:2])} are both given; leave one of them away")
        if self.system is not None and self.raw:
            raise Pard2Error("--raw leaves the chat template away, and --system is for it; leave one of them away")
        if self.prompts is not None:
            return self._conversations(self.prompts, arguments)
        texts = self._texts()
        if self.system is None:
            return apply_template_args(texts, arguments, self.raw)
        opened = [[_system(self.system), {"role": "user", "content": text}] for text in texts]
        return [{"messages": messages, "chat_template_kwargs": arguments} if arguments else messages for messages in opened]

    def _texts(self) -> list[str]:
        if self.prompt_file is not None:
            return [_read(None if str(self.prompt_file) == _STDIN else self.prompt_file)]
        if not self.prompt and sys.stdin.isatty():
            raise Pard2Error(f"there is no prompt; {_WAYS}")
        texts = [_read(None) if text == _STDIN else text for text in self.prompt or [_STDIN]]
        if not all(text.strip() for text in texts):
            raise Pard2Error("the prompt is empty; say something with -p")
        return texts

    def _conversations(self, file: Path, arguments: dict[str, Any]) -> "list[Prompt]":
        if self.raw:
            raise Pard2Error("--raw continues a text; the conversations of --prompts need the chat template")
        try:
            prompts = read_prompts(file, arguments)
        except Pard2Error as error:
            text_file = "; a text file that is one prompt goes with --prompt-file" if "is not JSON" in str(error) else ""
            raise Pard2Error(f"{error}{text_file}") from None
        for messages in [] if self.system is None else [one["messages"] if isinstance(one, dict) else one for one in prompts]:
            if messages[0]["role"] != "system":
                messages.insert(0, _system(self.system))
        return [*prompts]


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _read(file: Path | None) -> str:
    """The text of a file or of standard input, without the line break at its end, which `echo` adds."""
    name = "standard input" if file is None else str(file)
    text = decode_text(sys.stdin.buffer.read(LONGEST_TEXT + 1), name) if file is None else read_text(file)
    if not text.strip():
        raise Pard2Error(f"{name} is empty, and it should hold the prompt; {_WAYS}")
    return text.removesuffix("\n").removesuffix("\r")
