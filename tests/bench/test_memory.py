"""What work holds at its highest, beyond what it leaves."""

import torch

from pard2.bench import memory
from pard2.bench.memory import watched

CPU, MEGABYTE = torch.device("cpu"), 2**20


def test_memory_given_back_is_not_seen_or_memory_kept_is_counted():
    with watched(CPU) as gone:
        torch.ones(100 * MEGABYTE // 4)
    with watched(CPU) as kept:
        held = torch.ones(100 * MEGABYTE // 4)
    assert 95 * MEGABYTE < gone.bytes < 130 * MEGABYTE
    assert kept.bytes < 20 * MEGABYTE and held.sum() > 0


def test_an_earlier_peak_stays(tmp_path):
    with watched(CPU):
        torch.ones(100 * MEGABYTE // 4)
    with watched(CPU) as little:
        torch.ones(10)
    assert little.bytes < 20 * MEGABYTE


def test_a_machine_that_does_not_tell_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_RESET", tmp_path / "none" / "clear_refs")
    with watched(CPU) as peak:
        torch.ones(10)
    assert peak.bytes is None
