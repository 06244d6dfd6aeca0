"""The prompts that the shipped draft's answers are for."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "recipes/smollm2_prompts.py"
spec = importlib.util.spec_from_file_location("smollm2_prompts", SCRIPT)
prompts = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prompts)


def task(text: str, *tests: str, number: int = 0) -> dict:
    content = "\n".join([text, "Your code should pass these tests:", *tests])
    return {"id": f"mbpp-{number}", "source": "mbpp", "messages": [{"role": "user", "content": content}]}


DOUBLE = task("Write a python function to double numbers.", "assert double([1, 2], 'x') == {'x': [2, 4]}", "assert double([], 'y') == {'y': []}")


def code(record: dict) -> str:
    return record["messages"][0]["content"].removeprefix("Complete the following Python function.\n\n```python\n").removesuffix("\n```")


def test_a_task_becomes_a_function_to_complete():
    assert code(prompts.to_complete(DOUBLE)) == (
        "def double(a, b):\n"
        '    """ Write a python function to double numbers.\n'
        "    >>> double([1, 2], 'x')\n"
        "    {'x': [2, 4]}\n"
        "    >>> double([], 'y')\n"
        "    {'y': []}\n"
        '    """'
    )


def test_with_types_it_names_what_its_first_test_takes_and_gives():
    assert code(prompts.to_complete(DOUBLE, typed=True)).startswith(
        "from typing import Dict, List\n\n\n"
        "def double(a: List[int], b: str) -> Dict[str, List[int]]:\n"
        '    """ Double numbers.\n'
        "    >>> double([1, 2], 'x')\n"
    )


@pytest.mark.parametrize(
    ("value", "name"),
    [(1.5, "float"), (None, "None"), ([], "list"), ((1, "a"), "Tuple[int, str]"), ({2}, "Set[int]"), ({"a": [1]}, "Dict[str, List[int]]")],
)
def test_types_are_written_as_typing_has_them(value, name):
    assert prompts.type_name(value) == name


@pytest.mark.parametrize("test", ["assert is_close(f(1), 2)", "assert f(1 == 2", "x = 3"])
def test_a_task_of_another_form_is_left_out(test):
    assert prompts.to_complete(task("Write a function.", test)) is None


def test_a_function_of_other_things_than_literals_has_no_typed_form():
    made = task("Write a function.", "assert f(range(3)) == 2")
    assert prompts.to_complete(made) is not None
    assert prompts.to_complete(made, typed=True) is None


def test_the_parts_are_disjoint_and_the_same_each_time(tmp_path):
    records = [task(f"Write a function to add {n}.", f"assert add({n}) == {n}", number=n) for n in range(20)]
    records += [{"id": f"gsm8k-{n}", "source": "gsm8k", "messages": [{"role": "user", "content": f"What is {n} and {n}?"}]} for n in range(40)]
    source = tmp_path / "all.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(name: str) -> list[list[dict]]:
        counts = ["--held-out", "5", "--plain", "10", "--sampled", "5", "--steps", "8", "--other", "3", "--functions", "12", "--mathematics", "6"]
        subprocess.run([sys.executable, SCRIPT, source, "--output", tmp_path / f"{name}.jsonl", *counts], check=True, capture_output=True)
        return [[json.loads(line) for line in open(tmp_path / f"{name}{part}.jsonl")] for part in ("", "-sampled", "-held-out")]

    train, sampled, held_out = make("a")
    assert [train, sampled, held_out] == make("b")
    assert (len(train), len(sampled), len(held_out)) == (10 + 8 + 3 + 12 + 6, 5, 5)
    ids = [{record["id"].removeprefix(kind) for record in part for kind in ("steps-", "complete-", "typed-")} for part in (train, sampled, held_out)]
    assert not ids[2] & (ids[0] | ids[1])
    assert not {record["id"] for record in sampled} & {record["id"] for record in train}
