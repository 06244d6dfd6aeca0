"""The limits of the house: short files and functions, few parameters, imports that run downward."""

from pathlib import Path

import pytest

import structure

SOURCE = Path(__file__).parents[2] / "src" / "pard2"


@pytest.fixture(scope="module")
def found():
    return structure.structure(SOURCE)


def test_a_file_grew_too_long(found):
    assert found["long_files"] == {}


def test_a_function_grew_too_long(found):
    assert found["long_functions"] == {}


def test_too_many_functions_take_many_parameters(found):
    assert len(found["many_parameters"]) <= structure.MANY_PARAMETERS, found["many_parameters"]


def test_an_import_runs_upward(found):
    assert found["upward_imports"] == []


def test_all_files_are_counted(found):
    assert found["total"]["files"] == len(list(SOURCE.rglob("*.py"))) > 100
    assert sum(sizes["files"] for sizes in found["packages"].values()) == found["total"]["files"] - len(structure.ENTRANCE)


@pytest.fixture
def house(tmp_path):
    """A package that breaks every rule once."""
    root = tmp_path / "pard2"
    for package in ("models", "engine", "attic"):
        (root / package).mkdir(parents=True)
    (root / "__init__.py").write_text("from pard2.engine.engine import Engine\n")
    (root / "errors.py").write_text("from pard2.reading import printable\n")
    (root / "reading.py").write_text("import torch\n")
    (root / "models" / "draft.py").write_text("def late():\n    from pard2.engine.engine import Engine\n    return Engine\n")
    (root / "engine" / "engine.py").write_text(
        "from pard2 import models\nimport pard2\n\n\nclass Engine:\n    def run(self, a, b, *, c, **d):\n" + "        a = b\n" * 60
    )
    (root / "engine" / "long.py").write_text("x = 1\n" * 351)
    (root / "attic" / "old.py").write_text("def f(a, b, c, d, e, f, g, h, i):\n    pass\n")
    records = "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Six:\n" + "".join(f"    {name}: int\n" for name in "abcdef")
    (root / "models" / "records.py").write_text(records + records.replace("frozen=True", "kw_only=True").replace("Six", "Named"))
    return structure.structure(root)


def test_an_offence_goes_unseen(house):
    assert house["long_files"] == {"engine/long.py": 351}
    assert house["long_functions"] == {"engine/engine.py:Engine.run": 61} and house["longest_function"]["lines"] == 61
    assert house["many_parameters"] == {"attic/old.py:f": 9}
    assert house["upward_imports"] == ["attic/old.py is on no floor", "models/draft.py imports engine"]
    assert house["records_by_position"] == ["models/records.py:Six"]


def test_the_floors_of_a_package_are_missing(house):
    assert house["packages"]["engine"]["imports"] == ["models"] and house["packages"]["models"]["imports"] == ["engine"]
    assert house["packages"]["errors"]["imports"] == ["reading"]
    assert house["packages"]["engine"] | {"imports": []} == {
        "files": 2,
        "lines": 417,
        "median": 208.5,
        "longest_file": "engine/long.py",
        "longest_file_lines": 351,
        "imports": [],
    }
