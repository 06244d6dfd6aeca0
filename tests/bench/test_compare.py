"""Comparing two result files: what is told apart is different, and what is not comparable is not compared."""

from dataclasses import replace

import pytest

from pard2.bench.compare import compare
from pard2.bench.plan import Configuration
from pard2.bench.read_results import read_results
from pard2.errors import Pard2Error
from result_files import CYCLES, changed, suite, write_results

MANY = 12  # prompts
TD_OF_4 = Configuration(method="pard2-td", batch_size=1, draft_tokens=4, temperature=0.0, tree=8)


def uneven(extra):
    """Prompts that differ much from each other, and `extra` accepted tokens on each."""
    return lambda one, prompt: 0 if one.method == "ar" else 30 * prompt + extra


def compared(a, b, any_machine=False):
    return compare(read_results(a), read_results(b), any_machine)


def by_figure(found):
    return {one.figure: one for one in found.differences}


def pair(tmp_path, extra, words="ask", **more):
    files = (("a.json", 0, "ask"), ("b.json", extra, words))
    return [write_results(tmp_path / name, [suite("gsm8k", MANY, said)], ["pard2-td"], accepted=uneven(by), **more) for name, by, said in files]


def test_difference_that_only_pairs_of_prompts_show(tmp_path):
    """Each prompt is 0.05 better; prompts differ by 3.3. On other prompts nobody can tell."""
    one = by_figure(compared(*pair(tmp_path, 5)))["acceptance_length"]
    assert (one.verdict, one.paired, one.items) == ("higher", True, MANY)
    assert one.difference == pytest.approx(5 / CYCLES) and one.interval == pytest.approx([0.05, 0.05])
    assert (one.a, one.b) == (pytest.approx(1 + 165 / CYCLES), pytest.approx(1 + 170 / CYCLES))
    found = compared(*pair(tmp_path, 5, words="tell"))
    apart = by_figure(found)["acceptance_length"]
    assert (apart.verdict, apart.paired) == ("not told apart", False) and apart.difference == pytest.approx(0.05)
    assert apart.interval[0] < -0.3 and apart.interval[1] > 0.3
    assert any(note.startswith("other prompts in gsm8k") for note in found.notes)


def test_large_difference_on_other_prompts_goes_unseen(tmp_path):
    assert by_figure(compared(*pair(tmp_path, 300, words="tell")))["acceptance_length"].verdict == "higher"


def test_direction_is_turned_round(tmp_path):
    a, b = pair(tmp_path, 5)
    assert by_figure(compared(b, a))["acceptance_length"].verdict == "lower"
    assert by_figure(compared(a, a))["acceptance_length"].verdict == "not told apart"


def test_speed_is_not_paired_by_chunk_or_forgets_the_base(tmp_path):
    """B's method is a twentieth slower; its machine is twice as slow for all."""
    a = write_results(tmp_path / "a.json", [suite("gsm8k", MANY)], ["pard2-td"], seconds=lambda one, i: (1 + i) * (2 if one.method == "ar" else 1))
    b = write_results(
        tmp_path / "b.json", [suite("gsm8k", MANY)], ["pard2-td"], seconds=lambda one, i: 2 * (1 + i) * (2 if one.method == "ar" else 1.05)
    )
    one = by_figure(compared(a, b))["speedup"]
    assert one.verdict == "lower" and one.a == pytest.approx(2.0) and one.difference == pytest.approx(2 / 1.05 - 2, rel=1e-4)


def test_speed_of_another_machine_is_compared(tmp_path):
    a, b = pair(tmp_path, 5)
    changed(b, lambda held: held["meta"]["hardware"].update(cpu="Abacus"))
    found = compared(a, b)
    assert list(by_figure(found)) == ["acceptance_length"]
    assert any("not the same machine" in note for note in found.notes) and any("speed-ups are not compared: other machine" in n for n in found.notes)
    assert set(by_figure(compared(a, b, any_machine=True))) == {"acceptance_length", "speedup"}


def test_speed_of_another_precision_is_compared(tmp_path):
    a, b = pair(tmp_path, 5)
    changed(b, lambda held: held["plan"].update(dtype="bfloat16"))
    assert "speedup" not in by_figure(compared(a, b))
    # What an older file does not say is not known to be another.
    changed(b, lambda held: (held["plan"].update(dtype="float32"), held["plan"].pop("weights")))
    assert "speedup" in by_figure(compared(a, b))


def test_one_chunk_tells_something(tmp_path):
    files = [write_results(tmp_path / name, [suite("gsm8k", 1)], ["pard2-td"], accepted=uneven(by)) for name, by in (("a.json", 0), ("b.json", 50))]
    assert all(one.interval is None and one.verdict == "not told apart" for one in compared(*files).differences)


def test_configurations_are_mixed_up(tmp_path):
    """Every part of a configuration counts, and what one file lacks is named."""
    a = write_results(tmp_path / "a.json", [suite("gsm8k")], ["pard2-td", "ngram"], {"ks": (2, 4), "trees": (0, 8)})
    b = write_results(tmp_path / "b.json", [suite("gsm8k"), suite("humaneval")], ["pard2-td"], {"ks": (4, 8), "trees": (8,), "heats": (0.0, 1.0)})
    found = compared(a, b)
    assert {one.configuration for one in found.differences} == {TD_OF_4}
    assert {one.draft_tokens for _, one in found.only_a if one.method == "pard2-td"} == {2, 4}
    assert ("gsm8k", replace(TD_OF_4, method="ngram", tree=0)) in found.only_a
    assert ("humaneval", replace(TD_OF_4, draft_tokens=8, temperature=1.0)) in found.only_b


def test_nothing_in_common_is_an_empty_table(tmp_path):
    a, b = (write_results(tmp_path / f"{name}.json", [suite(name)], ["pard2-td"]) for name in ("x", "y"))
    with pytest.raises(Pard2Error, match=r"x.json and y.json have no suite and method in common"):
        compared(a, b)


def test_halves_are_compared_by_what_they_share(tmp_path):
    """The measured half of B is not set against all of A."""
    a = pair(tmp_path, 5)[0]
    b = write_results(tmp_path / "half.json", [suite("gsm8k", MANY)], ["pard2-td"], accepted=uneven(5), unfinished=6)
    found = compared(a, b)
    one = by_figure(found)["acceptance_length"]
    assert one.items == 6 and one.difference == pytest.approx(0.05) and one.verdict == "higher"
    assert any("half.json was stopped" in note for note in found.notes)
