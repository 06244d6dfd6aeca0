"""`pard2 card`: the README.md of a draft, made of what its files and its measurements say."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.checkpoints.embedded import EMBEDDED
from pard2.cli.console import print_note, working
from pard2.cli.flags import with_records
from pard2.cli.options import ForceOption
from pard2.errors import Pard2Error
from pard2.files import new_file, write_whole

if TYPE_CHECKING:
    from pard2.export.card_facts import CardFacts, Stated


@dataclass(frozen=True, kw_only=True)
class Statements:
    """What only a person can say of a draft."""

    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What others call the draft, such as its hub id; by default its directory's name.")
    ] = None
    target: Annotated[
        str | None,
        typer.Option("-t", "--target", metavar="TARGET", help="The target's hub id or directory; by default as the draft or the results say."),
    ] = None
    license: Annotated[str | None, typer.Option("--license", metavar="ID", help="The hub's name of its licence; by default the target's.")] = None
    datasets: Annotated[
        list[str] | None, typer.Option("--dataset", metavar="ID", help="A data set of the hub that it was trained on; several times for several.")
    ] = None
    notes: Annotated[
        Path | None, typer.Option("--notes", metavar="FILE", help="Markdown by hand that the card takes in; by default notes.md beside the draft.")
    ] = None

    def stated(self, draft: str) -> "Stated":
        """draft: as it was named, which is its name where its directory has another."""
        from pard2.export.card_facts import Stated

        elsewhere = draft if draft == EMBEDDED or not Path(draft).is_dir() else None
        return Stated(**(vars(self) | {"datasets": tuple(self.datasets or ()), "name": self.name or elsewhere}))


@with_records
def card(
    context: typer.Context,
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="A checkpoint's directory or hub id, or 'smollm2' for the embedded one.")],
    statements: Statements,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="R.json", help="What `pard2 bench --json` measured of this draft; several times for several."),
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="[R.json ..]", help="Further results.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where the card goes; by default README.md in the draft's directory.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write the card of a draft: what it is, how it was trained, what it brings, how to run it."""
    if more and not results:
        raise Pard2Error(f"{more[0]}: results are named with --results")
    if output is None and (draft == EMBEDDED or not Path(draft).is_dir()):
        raise Pard2Error(f"{draft!r} is not a directory of yours to write into; name a file with -o, as in -o README.md")
    files = [*(results or ()), *(more or ())]
    path = output or Path(draft) / "README.md"
    with working("importing torch"):
        from pard2.checkpoints.read import checkpoint_directory
        from pard2.export.card import card as card_of
        from pard2.export.card_facts import gather_facts

    directory = checkpoint_directory(draft)
    context.with_resource(new_file(path, (*files, statements.notes, directory)))
    _check_replaced(path, force)
    with working(f"reading {draft}"):
        facts = gather_facts(directory, files, statements.stated(draft))
    write_whole(path, card_of(facts).encode())
    tell_gaps(facts)
    print_note(f"{path}: the card of {facts.name}")


def tell_gaps(facts: "CardFacts") -> None:
    """Notes of what a card lacks."""
    for one in facts.results:
        if not one.identified:
            print_note(f"note: {one.name} does not say which weights it measured, as files of today do; make sure that it was this draft")
    if facts.license is None:
        print_note("note: no licence is stated; name one with --license")
    if facts.base is None or facts.base.hub_id is None:
        print_note("note: the target's hub id is not known; name it with -t")


def is_ours(card: Path) -> bool:
    """Whether `pard2` wrote it."""
    from pard2.export.card import MARK

    return MARK in card.read_text(encoding="utf-8", errors="replace")


def _check_replaced(path: Path, force: bool) -> None:
    """Raises `Pard2Error` for a file that is there; with `force`, for one that no `pard2 card` wrote."""
    if not path.exists():
        return
    if not force:
        raise Pard2Error(f"{path} exists; give `force` to write it anew, or name another file with -o")
    if not is_ours(path):
        raise Pard2Error(
            f"{path} was not written by `pard2 card`, so `force` will not replace it; move it away, perhaps to notes.md, or name another file with -o"
        )
