"""`pard2 report`: result files of `pard2 bench` as one page, as pictures, or as a table."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pard2.cli.console import print_note, working
from pard2.cli.options import ForceOption
from pard2.cli.output import output_console
from pard2.errors import Pard2Error
from pard2.files import new_file, writing

if TYPE_CHECKING:
    from pard2.bench.read_results import BenchResults
    from pard2.bench.result_file import ResultFile

_PAGE_START = 400  # bytes of a page, in which its mark stands
HtmlOption = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page: pictures, tables, and how all was measured.")]


def report(
    context: typer.Context,
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS.json...", help="What `pard2 bench --json` wrote.")],
    html: HtmlOption = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="DIR", help="Write the pictures as PNG files.")] = None,
    force: ForceOption = False,
) -> None:
    """Make a page of what `pard2 bench` measured, several files side by side; or print it."""
    if html is not None:
        context.with_resource(new_page(html, results, force))
    if png is not None:
        _check_directory(png, force)
    with working("reading the results"):
        from pard2.bench.entries import entries, read_files
        from pard2.bench.table import results_table

        files = read_files(results)
    if html is not None:
        write_page(html, files)
    if png is not None:
        _write_pictures(png, files)
    if html is None and png is None:
        out = output_console()
        out.print(results_table([entry.result for entry in entries(files)], out.width))


@contextmanager
def new_page(path: Path, inputs: Iterable[str | Path | None], force: bool) -> Iterator[None]:
    """Hold a page's file for this process, after a check that it can be made and that nothing would be lost.

    force: replaces a page of ours. Raises `Pard2Error` for anything else that is there.
    """
    from pard2.bench.page import MARK
    from pard2.bench.plots import check_plots

    check_plots()
    with new_file(path, inputs):
        if path.exists():
            with open(path, "rb") as file:
                ours = MARK.encode() in file.read(_PAGE_START)
            if not ours:
                raise Pard2Error(f"{path} is no report of pard2; name another file")
            if not force:
                raise Pard2Error(f"{path} exists; name another file, or give --force to replace it")
        yield


def write_page(path: Path, files: "list[BenchResults]") -> None:
    from pard2.bench.page import report_page
    from pard2.files import write_whole

    with working("drawing"):
        page = report_page(files)
    write_whole(path, page.encode())
    print_note(f"{path}: {len(page) / 1000:.0f} kB, one file that needs no other")


@contextmanager
def page_at_end(path: Path | None, file: "ResultFile") -> Iterator[None]:
    """Whatever ends the block: what the file holds then becomes a page, if one is wanted."""
    try:
        yield
    finally:
        if path is not None and file.measurements:
            write_page(path, [file.read()])


def _check_directory(directory: Path, force: bool) -> None:
    """Raises `Pard2Error`, before any work, for pictures that cannot be made, or would replace others."""
    from pard2.bench.plots import check_plots

    check_plots()
    if directory.exists() and not directory.is_dir():
        raise Pard2Error(f"--png {directory} is a file; name a directory")
    if not force and (there := sorted(directory.glob("*.png"))):
        raise Pard2Error(f"{there[0]} exists; name another directory, or give --force to replace pictures of the same names")
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)


def _write_pictures(directory: Path, files: "list[BenchResults]") -> None:
    from pard2.bench.entries import entries
    from pard2.bench.plots import draw
    from pard2.bench.svg import png
    from pard2.files import write_whole

    with working("drawing"):
        panels = [panel for pictures in draw(entries(files)) for panel in pictures.panels]
        for panel in panels:
            write_whole(directory / f"{panel.name}.png", png(panel.figure))
    print_note(f"{directory}: {len(panels)} pictures")
