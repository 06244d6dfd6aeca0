"""How `src/pard2` is built: files and their lengths, functions and their parameters, and
which package imports which.

    python benchmarks/structure.py [--json structure.json]

Packages stand on floors, and imports run downward only; modules of one package, and the small modules on
the ground (errors, files, ..), may import one another. Imports inside of functions and for type checkers
count like all others. `pard2/__init__.py` and `__main__.py` are the entrance: they name what is public, on
first use, and are on no floor. Lines are counted as they stand, comments and empty lines included; a
function's from its `def` to its end.
"""

import argparse
import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

FLOORS = (
    ("cli",),
    ("export", "serve", "vllm", "transformers"),
    ("bench", "train", "verify"),
    ("engine",),
    ("data",),
    ("checkpoints",),
    ("models",),
    ("objective",),
    ("runtime",),
    ("kernels",),
    (
        "errors",
        "files",
        "reading",
        "terminal",
        "units",
        "intervals",
        "cache_directory",
        "environment",
        "config",
        "config_file",
        "config_paths",
        "config_methods",
        "hf",
    ),
)
ENTRANCE = ("__init__", "__main__")
FILE_LINES, FUNCTION_LINES, PARAMETERS, MANY_PARAMETERS = 350, 60, 8, 3  # the most that there may be
RECORD_FIELDS = 5  # of a record that may be written without its fields' names

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """name: with its module's path. lines: from `def` on. parameters: without self and cls."""

    name: str
    lines: int
    parameters: int


@dataclass(frozen=True)
class Module:
    """One file.

    path: below the package, as in "engine/engine.py".
    package: the first part of its path, or its own name where it is on the ground.
    imports: the packages of its own project that it imports, its own excepted.
    records: dataclasses of many fields that take them by position.
    """

    path: str
    package: str
    lines: int
    functions: tuple[Function, ...]
    imports: frozenset[str]
    records: tuple[str, ...]


def read_module(file: Path, root: Path) -> Module:
    path, text = file.relative_to(root).as_posix(), file.read_text()
    package = path.partition("/")[0].removesuffix(".py")
    tree = ast.parse(text)
    imports = {name for node in ast.walk(tree) for name in _imported(node, root.name)} - {package}
    records = (f"{path}:{node.name}" for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and _takes_many_by_position(node))
    return Module(path, package, len(text.splitlines()), tuple(_functions(tree, path)), frozenset(imports), tuple(records))


def _imported(node: ast.AST, project: str) -> Iterator[str]:
    """Packages of the project that a statement imports; importing the project itself names none."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [f"{project}.{alias.name}" for alias in node.names] if node.module == project else [node.module or ""]
    for name in names:
        first, _, rest = name.partition(".")
        if first == project and rest and not rest.startswith("_"):
            yield rest.partition(".")[0]


def _functions(node: ast.AST, where: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        inner = where
        if isinstance(child, ast.ClassDef | FunctionNode):
            inner = f"{where}:{child.name}" if ":" not in where else f"{where}.{child.name}"
        if isinstance(child, FunctionNode):
            given = child.args
            names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg) if argument]
            assert child.end_lineno is not None
            yield Function(inner, child.end_lineno - child.lineno + 1, len(names) - (names[:1] in (["self"], ["cls"])))
        yield from _functions(child, inner)


def _takes_many_by_position(node: ast.ClassDef) -> bool:
    for decorator in node.decorator_list:
        name = decorator.func if isinstance(decorator, ast.Call) else decorator
        if isinstance(name, ast.Name) and name.id == "dataclass":
            options = {keyword.arg for keyword in decorator.keywords} if isinstance(decorator, ast.Call) else set()
            return sum(isinstance(item, ast.AnnAssign) for item in node.body) > RECORD_FIELDS and "kw_only" not in options
    return False


def read_modules(root: Path) -> list[Module]:
    """All modules of a package, which `root` is the directory of."""
    return [read_module(file, root) for file in sorted(root.rglob("*.py"))]


def upward_imports(modules: list[Module]) -> list[str]:
    """Each import that does not run downward, and each package that is on no floor."""
    floor = {package: number for number, packages in enumerate(FLOORS) for package in packages}
    ground = len(FLOORS) - 1
    found = []
    for module in modules:
        if module.package in ENTRANCE:
            continue
        if module.package not in floor:
            found.append(f"{module.path} is on no floor")
            continue
        here = floor[module.package]
        wrong = (name for name in module.imports if not (here == ground == floor.get(name) or here < floor.get(name, -1)))
        found += [f"{module.path} imports {name}" for name in sorted(wrong)]
    return found


def structure(root: Path) -> dict[str, Any]:
    """The table, and what is over a limit, as JSON has them."""
    modules = read_modules(root)
    functions = sorted((function for module in modules for function in module.functions), key=lambda f: f.lines, reverse=True)
    packages = {package: [module for module in modules if module.package == package] for floor in FLOORS for package in floor}
    return {
        "total": _sizes(modules),
        "packages": {package: _sizes(some) | {"imports": _imports(some)} for package, some in packages.items() if some},
        "longest_function": {"name": functions[0].name, "lines": functions[0].lines},
        "long_files": {module.path: module.lines for module in modules if module.lines > FILE_LINES},
        "long_functions": {function.name: function.lines for function in functions if function.lines > FUNCTION_LINES},
        "many_parameters": {function.name: function.parameters for function in functions if function.parameters > PARAMETERS},
        "upward_imports": upward_imports(modules),
        "records_by_position": sorted(name for module in modules for name in module.records),
    }


def _sizes(modules: list[Module]) -> dict[str, Any]:
    longest = max(modules, key=lambda module: module.lines)
    lines = [module.lines for module in modules]
    return {"files": len(lines), "lines": sum(lines), "median": median(lines), "longest_file": longest.path, "longest_file_lines": longest.lines}


def _imports(modules: list[Module]) -> list[str]:
    """Of a package, in the order of the floors."""
    named = {name for module in modules for name in module.imports}
    return [package for floor in FLOORS for package in floor if package in named]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent / "src" / "pard2", help="directory of the package")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found = structure(args.root)
    print("| package | files | lines | median | longest file | imports |\n| --- | --- | --- | --- | --- | --- |")
    for package, sizes in (found["packages"] | {"all": found["total"] | {"imports": []}}).items():
        longest = f"{sizes['longest_file']} ({sizes['longest_file_lines']})"
        print(f"| {package} | {sizes['files']} | {sizes['lines']:,} | {sizes['median']:g} | {longest} | {', '.join(sizes['imports'])} |")
    print("\nlongest function: {name}, {lines} lines".format(**found["longest_function"]))
    for title, key, most in (
        (f"files of more than {FILE_LINES} lines", "long_files", 0),
        (f"functions of more than {FUNCTION_LINES} lines", "long_functions", 0),
        (f"functions of more than {PARAMETERS} parameters", "many_parameters", MANY_PARAMETERS),
        ("imports that do not run downward", "upward_imports", 0),
        (f"records of more than {RECORD_FIELDS} fields by position", "records_by_position", 0),
    ):
        offenders = found[key].items() if isinstance(found[key], dict) else found[key]
        print(f"\n{title}: {len(offenders)} ({most} allowed)")
        for one in offenders:
            print("  ", one if isinstance(one, str) else f"{one[0]}: {one[1]}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
