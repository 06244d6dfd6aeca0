"""Which form of the weights is fastest: measured once, and kept."""

import json

import pytest

from pard2.runtime import fastest_format
from pard2.runtime.fastest_format import ROWS, fastest, format_times


@pytest.fixture
def timed(monkeypatch):
    """Which formats and rows were measured; a time is its number in that order."""
    calls = []
    monkeypatch.setattr(fastest_format, "_milliseconds", lambda name, rows: calls.append((name, rows)) or float(len(calls)))
    return calls


def test_what_was_measured_is_kept(tmp_path, timed):
    file = tmp_path / "new" / "formats.json"
    first = format_times(["fbgemm", "panels"], file)
    assert first == {"fbgemm": [1.0, 2.0, 3.0, 4.0], "panels": [5.0, 6.0, 7.0, 8.0]}
    assert timed == [(name, rows) for name in ("fbgemm", "panels") for rows in ROWS]
    assert format_times(["panels"], file) == {"panels": first["panels"]} and len(timed) == 8
    assert format_times(["panels", "int8"], file)["int8"] == [9.0, 10.0, 11.0, 12.0]
    assert format_times(["fbgemm", "panels"], file) == first and len(timed) == 12


def test_another_machine_is_measured_anew(tmp_path, timed, monkeypatch):
    file = tmp_path / "formats.json"
    format_times(["fbgemm"], file)
    monkeypatch.setattr(fastest_format, "machine_key", lambda: "another")
    format_times(["fbgemm"], file)
    assert len(timed) == 8 and len(json.loads(file.read_text())) == 2


@pytest.mark.parametrize(
    "damage", ["", "[]", "{", '{"a": 1}', '{"KEY": {"fbgemm": [1, 2]}}', '{"KEY": {"fbgemm": ["x", 1, 1, 1]}}', '{"KEY": {"fbgemm": 3}}']
)
def test_a_damaged_file_is_measured_anew(tmp_path, timed, damage):
    file = tmp_path / "formats.json"
    file.write_text(damage.replace("KEY", fastest_format.machine_key()))
    assert format_times(["fbgemm"], file) == {"fbgemm": [1.0, 2.0, 3.0, 4.0]}
    assert format_times(["fbgemm"], file) == {"fbgemm": [1.0, 2.0, 3.0, 4.0]} and len(timed) == 4


def test_a_place_that_cannot_be_written_is_no_error(tmp_path, timed):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        format_times(["fbgemm"], tmp_path / "file" / "formats.json")
    assert len(timed) == 8


def test_the_fastest_depends_on_how_many_sequences_there_are():
    """Between the rows measured a straight line, beyond them in proportion."""
    times = {"few": [1.0, 2.0, 20.0, 100.0], "many": [2.0, 3.0, 10.0, 30.0]}
    assert [fastest(times, many) for many in (1, 2, 8, 100)] == ["few", "many", "many", "many"]
    # Two sequences: 2 and 12 rows, of which "few" takes 1.2 and 8.
    assert fastest(times | {"many": [2.0, 2.0, 17.3, 30.0]}, 2) == "many"  # 2 and 7.1
    assert fastest(times | {"many": [2.0, 2.0, 17.9, 30.0]}, 2) == "few"  # 2 and 7.3
    assert fastest({"few": [1.0, 1.0, 1.0, 9.0], "many": [1.0, 1.0, 1.0, 8.9]}, 32) == "many"


def test_a_measurement_leaves_no_trace_in_random_numbers():
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert 0 < fastest_format._milliseconds("plain", 1) < 1e4
    assert torch.equal(torch.rand(3), expected)
