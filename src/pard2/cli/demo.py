"""`pard2 demo`: the embedded pair, plain and PARD-2 decoding of the same prompts side by side."""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.checkpoints.embedded import EMBEDDED
from pard2.cli.console import print_note, working
from pard2.cli.flags import Flags, with_records
from pard2.cli.options import DtypeOption, JsonOption
from pard2.cli.output import output_console
from pard2.engine.methods import METHODS, PLAIN, methods_for
from pard2.engine.options import EngineOptions
from pard2.engine.sampling import SamplingParams
from pard2.models.draft_kind import DraftKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console
    from rich.table import Table

    from pard2.engine.engine import Engine
    from pard2.engine.statistics import Stats, Step

BEST = methods_for(DraftKind.PROJECTED)[0]
SHOWN = (PLAIN, *reversed(methods_for(DraftKind.PROJECTED)))  # from the slowest to the fastest
PROMPTS = (
    "A baker sells 14 loaves in the morning and twice as many in the afternoon. Each loaf costs $3. How much money does she take in?",
    "Write a Python function that checks whether a string is a palindrome.",
    "Explain to a child why the moon changes its shape.",
    "List the steps to make a cup of tea.",
)
_BAR = 30  # characters of a bar that stands for 100 %


@dataclass(frozen=True)
class Run:
    """One prompt decoded by one method.

    token_ids: all new tokens.
    from_draft: which of them the draft had proposed.
    """

    method: str
    token_ids: list[int]
    from_draft: list[bool]
    stats: "Stats"


@with_records
def demo(
    options: Annotated[EngineOptions, Flags("draft_tokens")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=2, help="Longest answer, in tokens.")] = 96,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode four prompts with and without the embedded draft: the same text, and how much faster."""
    print_note(
        f"SmolLM2-135M-Instruct on this machine: {len(PROMPTS)} prompts x {len(SHOWN)} methods, up to {max_new_tokens} tokens each, about a minute.",
        "The first start reads the model from its GGUF file, half a minute more and 540 MB in the cache directory.",
    )
    with working("loading the model and its draft"):
        from pard2.engine.engine import Engine

        best = Engine.from_pretrained(EMBEDDED, None, BEST, dtype, draft_tokens=options.draft_tokens, max_batch=1)
        others = {name: Engine(best.target, best.draft, name, options.draft_tokens, max_batch=1) for name in SHOWN if name != BEST}
        engines = {name: others.get(name, best) for name in SHOWN}
    params = SamplingParams(max_tokens=max_new_tokens)
    with working("warming up"):
        for engine in engines.values():
            list(engine.stream(PROMPTS[-1], SamplingParams(max_tokens=24)))
    console = output_console(quiet=as_json)
    runs: list[list[Run]] = []
    for prompt in PROMPTS:
        console.print(f"\n[bold]> {prompt}[/]")
        # In turn, prompt by prompt, so that a machine that slows down slows all of them.
        with _SideBySide(console) as columns:
            results = [_run(method, columns.follow(method, engine, engine.stream(prompt, params))) for method, engine in engines.items()]
        runs.append(results)
        _print_speeds(console, results)
    if as_json:
        typer.echo(json.dumps(_as_json(runs), ensure_ascii=False))
    else:
        _print_summary(console, runs)


def _run(method: str, steps: "list[Step]") -> Run:
    from pard2.engine.statistics import Stats

    token_ids = [token for step in steps for token in step.token_ids]
    from_draft = [index < step.accepted for step in steps for index in range(len(step.token_ids))]
    return Run(method, token_ids, from_draft, Stats.of(steps))


def _total(runs: list[list[Run]], method: str) -> "Stats":
    from pard2.engine.statistics import Stats

    return sum((run.stats for results in runs for run in results if run.method == method), Stats())


class _SideBySide:
    """Two columns, the plain text and the coloured one, that fill as their tokens come; what is in neither is
    decoded all the same.

    Where output is no terminal, or as JSON, nothing moves: the columns are printed once they are full.
    """

    COLUMNS = (PLAIN, BEST)

    def __init__(self, console: "Console") -> None:
        from rich.live import Live
        from rich.text import Text

        self._texts = {method: Text() for method in self.COLUMNS}
        self._live = Live(self, console=console, auto_refresh=False)

    def __rich__(self) -> "Table":
        from rich.table import Table

        table = Table(*(METHODS[method].title for method in self.COLUMNS), expand=True, box=None, header_style="dim")
        table.add_row(*self._texts.values())
        return table

    def __enter__(self) -> "_SideBySide":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if not self._live.console.is_terminal:
            self._live.console.print()  # else the next line goes on in the table's last

    def follow(self, method: str, engine: "Engine", steps: "Iterable[Step]") -> "list[Step]":
        """The steps, once all are there. Their times leave out what showing them takes."""
        from pard2.cli.colours import ColouredText

        coloured, done = ColouredText(engine.target.tokenizer), []
        for step in steps:
            done.append(step)
            if method in self._texts:
                self._texts[method].append(coloured.add(step))
                self._live.refresh()
        return done


def _print_speeds(console: "Console", results: list[Run]) -> None:
    plain, widest = results[0], max(len(METHODS[run.method].title) for run in results)
    for run in results:
        same = "" if run is plain else f", {_same(plain, run)}"
        console.print(f"{METHODS[run.method].title:<{widest}}  {run.stats.tokens_per_second:6.1f} tokens/s{same}")


def _same(plain: Run, other: Run) -> str:
    """Whether two methods said the same, in words; half precision may flip a
    near-tie (see `pard2 verify`)."""
    if plain.token_ids == other.token_ids:
        return "same text"
    first = next((i for i, (a, b) in enumerate(zip(plain.token_ids, other.token_ids, strict=False)) if a != b), 0)
    return f"another text from token {first} on: a near-tie"


def _print_summary(console: "Console", runs: list[list[Run]]) -> None:
    from rich.table import Table

    base = _total(runs, PLAIN)
    table = Table("method", "tokens/s", "speed-up", "tokens a cycle", "same text")
    for index, method in enumerate(SHOWN):
        stats = _total(runs, method)
        same = sum(results[0].token_ids == results[index].token_ids for results in runs)
        table.add_row(
            METHODS[method].title,
            f"{stats.tokens_per_second:.1f}",
            "" if method == PLAIN else f"{stats.tokens_per_second / base.tokens_per_second:.2f}x",
            "" if method == PLAIN else f"{stats.acceptance_length:.2f}",
            "" if method == PLAIN else f"{same} of {len(runs)}",
        )
    console.print()
    console.print(table)
    console.print("[green]green[/]: proposed by the draft and accepted by the model; the rest the model's own. Acceptance by position:")
    for method in SHOWN[1:]:
        for position, rate in enumerate(_total(runs, method).accepted_by_position, 1):
            label = METHODS[method].title if position == 1 else ""
            console.print(f"  {label:<10} {position:>2} {'█' * round(rate * _BAR):<{_BAR}} {rate:4.0%}")


def _as_json(runs: list[list[Run]]) -> dict:
    base = _total(runs, PLAIN)
    return {
        "prompts": [
            {"prompt": prompt, "results": [dataclasses.asdict(run) | {"stats": run.stats.as_dict()} for run in results]}
            for prompt, results in zip(PROMPTS, runs, strict=True)
        ],
        "methods": [
            {"method": method, "speedup": stats.tokens_per_second / base.tokens_per_second, "stats": stats.as_dict()}
            for method in SHOWN
            for stats in [_total(runs, method)]
        ],
    }
