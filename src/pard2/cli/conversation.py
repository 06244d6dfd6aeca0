"""A conversation that goes on: what has been said, and how the next answer is to be made."""

import json
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pard2.cli.console import speed
from pard2.data.conversations import Message, Record
from pard2.engine.sampling import SamplingParams
from pard2.engine.statistics import Stats
from pard2.errors import Pard2Error
from pard2.files import write_whole
from pard2.units import counted

# What `/set` changes.
SETTINGS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
# Their flags without dashes, as `max_new_tokens`, are known as well.
_NAMES = {one.metadata["flag"].names[0].strip("-").replace("-", "_"): one.name for one in fields(SamplingParams) if one.name in SETTINGS}
_NAMES |= {name: name for name in SETTINGS}


@dataclass(kw_only=True)
class Conversation:
    """Turns of user and assistant, settings and statistics.

    arguments: of the chat template.
    system: what the model is told before the turns; None for nothing.
    """

    params: SamplingParams
    arguments: dict[str, Any]
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    answers: int = 0
    stats: Stats = field(default_factory=Stats)
    _saved: set[Path] = field(default_factory=set)

    def record(self) -> Record:
        """All of it, as a record that `--prompts` reads."""
        opening = [] if self.system is None else [{"role": "system", "content": self.system}]
        record: Record = {"id": time.strftime("chat-%Y%m%d-%H%M%S"), "messages": [*opening, *self.turns]}
        return record | ({"chat_template_kwargs": self.arguments} if self.arguments else {})

    def take_back(self) -> str:
        """The last question; it and its answer are forgotten. Raises `Pard2Error` where there is none."""
        if not self.turns:
            raise Pard2Error("nothing has been said yet that could be answered again")
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def add(self, question: str, answer: str, stats: Stats) -> None:
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        self.answers += 1
        self.stats += stats

    def set(self, words: str) -> str:
        """Change the setting that `NAME VALUE` names; returns how it is now, for no words all of them.

        Raises `Pard2Error` for an unknown name, and for a value outside its range.
        """
        name, _, value = words.partition(" ")
        known = _NAMES.get(name.strip("-").replace("-", "_"))
        if not words:
            return ", ".join(map(self._shown, SETTINGS))
        if known is None:
            raise Pard2Error(f"there is no setting {name}; there are {', '.join(SETTINGS)}")
        try:
            change: dict[str, Any] = {known: _value(value.strip())}
            self.params = replace(self.params, **change)
        except Pard2Error as error:
            raise Pard2Error(str(error).replace("`", "")) from None  # it is no flag here
        return self._shown(known)

    def _shown(self, name: str) -> str:
        value = getattr(self.params, name)
        return f"{name} {'new each time' if value is None else value}"

    def save(self, words: str) -> str:
        """Write the conversation into a new file, or one that it was written into before; returns a line.

        Raises `Pard2Error` for no name, for a file that holds something else, and for an empty conversation.
        """
        if not words or not self.turns:
            raise Pard2Error("nothing has been said yet" if words else "/save needs the name of a file")
        path = Path(words).expanduser().absolute()
        if path.exists() and path not in self._saved:
            raise Pard2Error(f"{words} exists; name another file")
        write_whole(path, json.dumps(self.record(), ensure_ascii=False).encode() + b"\n")
        self._saved.add(path)
        return f"{words}: {len(self.turns)} messages; `pard2 generate --prompts {words}` answers the last question again"

    def told(self) -> str:
        """The statistics in a line."""
        stats = self.stats
        tokens = self.answers + stats.cycles + stats.accepted
        shares = " ".join(f"{share:.0%}" for share in stats.accepted_by_position if share)
        positions = f"; accepted by position: {shares}" if shares else ""
        made = f"{counted(self.answers, 'answer')}, {counted(tokens, 'token')}"
        return f"{made}, {stats.acceptance_length:.2f} tokens a cycle{speed(stats.tokens_per_second)}{positions}"


def _value(text: str) -> int | float | None:
    if text.lower() in ("none", "new"):  # of a seed
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise Pard2Error(f"{text!r} is not a number; for example: /set temperature 0.8")
