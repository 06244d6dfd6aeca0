"""What a draft's card is made of, read from its directory and from what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pard2.bench.read_results import read_results
from pard2.checkpoints.draft_identity import draft_identity
from pard2.checkpoints.draft_report import DraftReport
from pard2.checkpoints.inspection import inspect_draft
from pard2.engine.methods import methods_for
from pard2.errors import Pard2Error
from pard2.export.base_model import BaseModel, base_model, checked_license
from pard2.export.draft_results import DraftResults, results_of
from pard2.export.training_record import TrainingRecord, read_training_record
from pard2.reading import printable

NOTES = "notes.md"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """All that a card says.

    name: of the draft, as commands call it.
    report, methods: what it is, and what it can carry out, the best first.
    base: the target; None where nothing says it.
    license: None where nobody stated one. inherited: it is the target's.
    datasets: ids of the hub.
    training: what a run wrote beside the draft, None without.
    results: of each file of measurements.
    notes: Markdown by hand, None without.
    """

    name: str
    report: DraftReport
    methods: list[str]
    base: BaseModel | None
    license: str | None
    inherited: bool
    datasets: tuple[str, ...]
    training: TrainingRecord | None
    results: tuple[DraftResults, ...]
    notes: str | None


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What only a person can say; None where it is not said.

    name: of the draft, such as its hub id; by default its directory's.
    target: which it was made for; by default as the draft says, or else the results.
    license: identifier; by default the target's.
    datasets: ids of the hub.
    notes: a file of Markdown; by default `notes.md` beside the draft.
    """

    name: str | None = None
    target: str | None = None
    license: str | None = None
    datasets: tuple[str, ...] = ()
    notes: Path | None = None


def gather_facts(directory: Path, results: Sequence[Path], stated: Stated) -> CardFacts:
    """Read a draft's config and the headers of its files, its run's record, and results.

    Raises `Pard2Error` for a directory that is no draft, results of another draft or version, and statements
    that nothing can be made of.
    """
    licensed = None if stated.license is None else checked_license(stated.license)
    report = inspect_draft(directory)
    identity = draft_identity(directory)
    measured = tuple(results_of(read_results(path), directory, identity, report.kind) for path in dict.fromkeys(results))
    said = stated.target or report.target or next((str(one.plan["target"]) for one in measured if one.plan.get("target")), None)
    base = None if said is None else base_model(said, given=stated.target is not None)
    return CardFacts(
        name=printable(stated.name or directory.resolve().name),
        report=report,
        methods=methods_for(report.kind),
        base=base,
        license=licensed or (base.license if base else None),
        inherited=licensed is None,
        datasets=stated.datasets,
        training=read_training_record(directory),
        results=measured,
        notes=_notes(directory, stated.notes),
    )


def _notes(directory: Path, given: Path | None) -> str | None:
    path = given or directory / NOTES
    if given is None and not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Pard2Error(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Pard2Error(f"{path} is not UTF-8 text") from None
    return text or None
