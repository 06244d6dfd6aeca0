"""The list of files in docs/architecture.md: every module of `src/pard2` with its docstring's first sentence.

    python benchmarks/file_index.py     writes the list anew between the marks of the page

A test compares the list on the page with the one that is made here.
"""

import ast
import re
from itertools import groupby
from pathlib import Path

from structure import FLOORS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- made by benchmarks/file_index.py -->\n```text\n", "```\n<!-- end -->\n"
WIDTH = 28  # of the names


def file_index(package: Path) -> str:
    """A line for each directory, and for each of its modules, from the top floor down.

    package: its directory, such as src/pard2.
    """
    floors = [name for floor in FLOORS for name in floor]

    def order(module: Path) -> tuple[int, Path]:
        first = module.relative_to(package).parts[0]
        return floors.index(first) if first in floors else len(floors), module

    lines = []
    for directory, modules in groupby(sorted(package.rglob("*.py"), key=order), key=lambda module: module.parent):
        lines.append(_line(f"{directory.relative_to(package.parent).as_posix()}/", directory / "__init__.py"))
        lines += [_line(f"  {module.name}", module) for module in modules if module.name != "__init__.py"]
    return "".join(lines)


def _line(name: str, module: Path) -> str:
    docstring = ast.get_docstring(ast.parse(module.read_text()))
    if not docstring:
        raise SystemExit(f"{module}: no docstring that says what it is")
    first, *_ = re.split(r"(?<=[.?])\s", " ".join(docstring.partition("\n\n")[0].split()))
    return f"{name:{WIDTH}} {first}\n"


def listed(page: str) -> str:
    """The list that a page holds."""
    return page.partition(START)[2].partition(END)[0]


def main() -> None:
    page = PAGE.read_text()
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise SystemExit(f"{PAGE} has no marks to write between")
    PAGE.write_text(before + start + file_index(ROOT / "src" / "pard2") + end + after)


if __name__ == "__main__":
    main()
