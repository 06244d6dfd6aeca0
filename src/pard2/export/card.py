"""A draft's card: README.md with what the hub reads at its head. It reads no files: facts become Markdown."""

import shlex
from collections.abc import Iterator
from typing import Any

import yaml

from pard2.checkpoints.draft_words import described
from pard2.export.card_facts import NOTES, CardFacts
from pard2.export.markdown import block, code, escape, facts_table, prose
from pard2.export.results_tables import acceptance, command, speed
from pard2.export.training_record import recipe, training_rows
from pard2.models.draft_kind import DraftKind

MARK = "<!-- written by `pard2 card` -->"  # by which a card is known that may be written anew
_KINDS = {
    DraftKind.LM: ("ordinary small language model, used as a draft", ()),
    DraftKind.MASKED: ("PARD draft: it proposes several tokens in one pass", ("pard",)),
    DraftKind.LAYERED: ("PARD-2 draft without its projection: it proposes several tokens in one pass, without the target's features", ("pard-2",)),
    DraftKind.PROJECTED: (
        "PARD-2 draft: it proposes several tokens in one pass, with the target's features (TD) or without them (TI)",
        ("pard-2",),
    ),
    DraftKind.EAGLE3: ("EAGLE-3 draft: one layer on the target's features, which proposes token by token", ("eagle-3",)),
}
_SUITES = "gsm8k,humaneval,math500,mt_bench"


def card(facts: CardFacts) -> str:
    """The whole text. A section of which nothing is known says in one line how to come by it."""
    parts = [front_matter(facts), f"# {escape(facts.name)}", _opening(facts)]
    for title, section in _SECTIONS:
        found = [part for part in section(facts) if part]
        if found:
            parts += [f"## {title}", *found]
    return "\n\n".join([*parts, MARK]) + "\n"


def front_matter(facts: CardFacts) -> str:
    """What the hub reads: between two lines of hyphens, YAML."""
    values: dict[str, Any] = {
        "license": facts.license,
        "base_model": facts.base.hub_id if facts.base else None,
        "library_name": "pard2",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", *_KINDS[facts.report.kind][1]],
        "datasets": list(facts.datasets),
    }
    known = {key: value for key, value in values.items() if value}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---"


def _opening(facts: CardFacts) -> str:
    what = _KINDS[facts.report.kind][0]
    article = "An" if what[0] in "oE" else "A"
    return f"{article} {what}. Target: {_target(facts)}. The target judges every proposal, so the text is its own, and only comes faster."


def _target(facts: CardFacts) -> str:
    if facts.base is None:
        return "not stated"
    hub_id = facts.base.hub_id
    return escape(facts.base.name) if hub_id is None else f"[{escape(hub_id)}](https://huggingface.co/{hub_id})"


def _what_it_is(facts: CardFacts) -> Iterator[str]:
    rows = [(label, prose(value)) for label, value in described(facts.report, facts.methods)]
    yield facts_table([*rows, *(("lacks", prose(missing)) for missing in facts.report.lacks)])


def _training(facts: CardFacts) -> Iterator[str]:
    if facts.training is not None:
        yield facts_table(training_rows(facts.training))
        yield f"<details><summary>The run's file</summary>\n\n{block(recipe(facts.training), 'yaml')}\n\n</details>"
    elif not facts.notes:
        yield f"Not told: `pard2 train` leaves a `training.json` beside its drafts, and a file {code(NOTES)} there is for your own words."


def _notes(facts: CardFacts) -> Iterator[str]:
    yield facts.notes or ""


def _acceptance(facts: CardFacts) -> Iterator[str]:
    if not facts.results:
        yield _how_to_measure(facts)
        return
    yield "AL is the acceptance length: tokens that a cycle emits, the target's own included. By position: the share of proposals that it kept."
    yield from map(acceptance, facts.results)


def _speed(facts: CardFacts) -> Iterator[str]:
    if not facts.results:
        yield _how_to_measure(facts)
        return
    yield "Over plain decoding in the same engine, in turn; the time of reading prompts is left out. Same text: answers that are plain decoding's."
    yield from map(speed, facts.results)


def _how_to_measure(facts: CardFacts) -> str:
    bench = f"pard2 bench {_models(facts)} -s {_SUITES} --prompts 20 --json results.json"
    return f"Not measured yet. {code(bench)} measures it; {code('pard2 card DRAFT --results results.json --force')} puts it here."


def _models(facts: CardFacts) -> str:
    return f"-t {shlex.quote(facts.base.name) if facts.base else 'TARGET'} -d {shlex.quote(facts.name)}"


def _how_to_run(facts: CardFacts) -> Iterator[str]:
    target = facts.base.name if facts.base else "TARGET"
    lines = [f'pard2 generate {_models(facts)} -p "Why is the sky blue?"', f"pard2 verify {_models(facts)}"]
    yield block("\n".join(lines), "sh")
    yield "`verify` checks on your machine that the text is the target's own. From Python:"
    call = f"engine = Engine.from_pretrained({_literal(target)}, {_literal(facts.name)})"
    yield block(f'from pard2 import Engine\n\n{call}\nprint(engine.generate("Why is the sky blue?")[0].text)', "python")


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _elsewhere(facts: CardFacts) -> Iterator[str]:
    yield "As far as the draft's files tell, and those engines' code reads them; nothing was tried."
    yield facts_table([(engine, prose(answer)) for engine, answer in facts.report.runs_in.items() if engine != "pard2"])


def _licence(facts: CardFacts) -> Iterator[str]:
    if facts.license is None:
        yield "Not stated; `pard2 card --license ID` states one. A draft cut from its target's layers is under the target's licence."
    else:
        yield f"{code(facts.license)}" + (", as the target." if facts.inherited else ".")


def _measured_by(facts: CardFacts) -> Iterator[str]:
    made = [f"# {one.name}\n{command(one)}" for one in facts.results if command(one)]
    if made:
        yield block("\n".join(made), "sh")


_SECTIONS = (
    ("What it is", _what_it_is),
    ("Training", _training),
    ("Notes", _notes),
    ("Acceptance", _acceptance),
    ("Speed", _speed),
    ("How to run it", _how_to_run),
    ("Elsewhere", _elsewhere),
    ("Licence", _licence),
    ("Measured by", _measured_by),
)
