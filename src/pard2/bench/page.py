"""The report of one or several result files: an HTML page that needs no script, no network, no other file."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files as package_files

import pard2
from pard2.bench.entries import Entry, commands_of, differences, entries, machine, unfinished, versions
from pard2.bench.plots import Pictures, draw
from pard2.bench.read_results import BenchResults
from pard2.bench.svg import page_svg
from pard2.bench.table import FIGURES
from pard2.engine.methods import PLAIN
from pard2.reading import printable

MARK = '<meta name="generator" content="pard2'  # by which a page of ours is known


def report_page(files: Sequence[BenchResults]) -> str:
    """The page of what these files hold, their configurations side by side.

    Raises `Pard2Error` where there is no matplotlib.
    """
    found = entries(files)
    title = f"{_once(file.plan['target'] for file in files)}: decoding methods side by side"
    parts = (_head(title, files), *_pictures(draw(found)), _equality(found), _figures(found), _runs(files))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8" />\n{MARK} {pard2.__version__}" />\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1" />\n<title>{_text(title)}</title>\n'
        f"<style>\n{package_files('pard2.bench').joinpath('page.css').read_text()}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body>\n</html>\n"
    )


def _text(words: object) -> str:
    return escape(printable(str(words)))


def _once(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _section(title: str, words: str, *parts: str) -> str:
    about = f'<p class="quiet">{_text(words)}</p>\n' if words else ""
    return f"<section>\n<h2>{_text(title)}</h2>\n{about}" + "\n".join(parts) + "\n</section>"


def _head(title: str, files: Sequence[BenchResults]) -> str:
    """What is compared, on what; and first of all what keeps the figures from being compared."""
    suites = _once(f"{suite['name']} ({suite['prompts']} prompts)" for file in files for suite in file.plan["suites"])
    plan = files[0].plan
    same = "" if len(files) > 1 else f" In {plan['dtype']} on {machine(files[0])}, answers of at most {plan['max_new_tokens']} tokens."
    notes = [*(differences(files) if len(files) > 1 else ()), *filter(None, map(unfinished, files))]
    listed = "".join(f"<li>{_text(note)}</li>\n" for note in notes)
    return f"<h1>{_text(title)}</h1>\n<p>{_text(suites + '.' + same)}</p>" + (f'\n<ul class="notes">\n{listed}</ul>' if notes else "")


def _pictures(drawn: Sequence[Pictures]) -> Iterator[str]:
    number = 0
    for one in drawn:
        panels = []
        for panel in one.panels:
            number += 1
            panels.append(page_svg(panel.figure, ": ".join(filter(None, (one.title, panel.title))), number))
        yield _section(one.title, one.words, f'<div class="panels">\n{"".join(panels)}</div>')


def _equality(found: Sequence[Entry]) -> str:
    """Answers that are plain decoding's, token by token."""
    own = [entry for entry in found if not entry.plain]
    if not own:
        return ""
    suites = list(dict.fromkeys(entry.suite for entry in own))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    unequal = set()
    for entry in own:
        equal, prompts = entry.result["equal_outputs"], entry.result["prompts"]
        lines.setdefault((entry.name, *_conditions(entry)), {})[entry.suite] = text = f"{equal} of {prompts}"
        if equal < prompts:
            unequal.add(text)
    texts = [[*under, *(held.get(suite, "") for suite in suites)] for under, held in lines.items()]
    table = _table(["", "batch", "temperature", *suites], [False] + [True] * (2 + len(suites)), texts, (1, 2), unequal)
    return _section("The same text", "Prompts whose answer is plain decoding's, token by token, in every repeat.", table)


def _figures(found: Sequence[Entry]) -> str:
    titles = ["suite", "", "batch", "temperature", *(column.title.replace("\n", " ") for column in FIGURES)]
    texts = [[entry.suite, entry.name, *_conditions(entry), *(column.text(entry.result) for column in FIGURES)] for entry in found]
    numbers = [False, False, True, True, *(column.number for column in FIGURES)]
    table = _table(titles, numbers, texts, (2, 3))
    return _section("All figures", "pard2 bench --format csv prints these and what else the result file holds.", table)


def _conditions(entry: Entry) -> tuple[str, str]:
    return str(entry.batch_size), f"{entry.temperature:g}"


def _table(
    titles: Sequence[str], numbers: Sequence[bool], lines: Sequence[Sequence[str]], conditions: Collection[int], bad: Collection[str] = ()
) -> str:
    """A column without a text is left out.

    numbers: whether a column's texts stand at the right
    conditions: columns that are left out where all their texts are equal
    bad: texts that shall be seen
    """
    fewest = [1 + (i in conditions) for i in range(len(titles))]
    shown = [i for i, _ in enumerate(titles) if len({line[i] for line in lines} - {""}) >= fewest[i]]

    def line(tag: str, texts: Sequence[str]) -> str:
        kinds = [["number"] * numbers[i] + ["bad"] * (tag == "td" and texts[i] in bad) for i in shown]
        opened = [f'<{tag} class="{" ".join(kind)}">' if kind else f"<{tag}>" for kind in kinds]
        return f"<tr>{''.join(f'{start}{_text(texts[i])}</{tag}>' for start, i in zip(opened, shown, strict=True))}</tr>\n"

    body = "".join(line("td", texts) for texts in lines)
    return f'<div class="wide">\n<table>\n<thead>{line("th", titles)}</thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>'


def _runs(files: Sequence[BenchResults]) -> str:
    return _section("How it was measured", "", f'<div class="runs">\n{"".join(map(_run, files))}</div>')


def _run(file: BenchResults) -> str:
    plan, meta = file.plan, file.meta
    draft = plan["draft"]
    facts = {
        "target": plan["target"],
        "draft": ", ".join(f"{name}: {one}" for name, one in draft.items()) if isinstance(draft, dict) else draft,
        "precision": f"{plan['dtype']} on {plan['device']}" + (", weights in int8" if plan.get("weights") == "int8" else ""),
        "answers": f"at most {plan['max_new_tokens']} tokens" + (", past their end" if plan.get("ignore_eos") else ""),
        "batch size": _once(one["batch_size"] for one in plan["configurations"]),
        "K": _once(one["draft_tokens"] for one in plan["configurations"] if one["method"] != PLAIN),
        "temperature": _once(f"{one['temperature']:g}" for one in plan["configurations"]),
        "repeats": plan["repeats"] if plan["repeats"] > 1 else None,
        "machine": machine(file),
        "versions": versions(file),
        "commit": meta.get("commit"),
        "models": _once(f"{name} at {commit}" for name, commit in (plan.get("commits") or {}).items()),
        "date": meta["date"],
        "resumed": ", ".join(f"{one['date']}{' at ' + one['commit'] if one.get('commit') else ''}" for one in meta.get("resumed", [])),
    }
    listed = "".join(f"<dt>{key}</dt><dd>{_text(value)}</dd>\n" for key, value in facts.items() if value)
    commands = "\n".join(map(_text, commands_of(file)))
    return f"<section>\n<h3>{_text(file.name)}</h3>\n<dl>\n{listed}</dl>\n<pre>{commands}</pre>\n</section>\n"
