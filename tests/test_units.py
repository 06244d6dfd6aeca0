"""Numbers as people read them."""

from pard2.units import amount, counted, duration, size


def test_a_unit_is_off():
    assert [duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
    assert [size(n) for n in (3e6, 2.5e9, 1.5e12)] == ["3 MB", "2.5 GB", "1,500.0 GB"]
    assert [counted(n, "answer") for n in (0, 1, 2000)] == ["0 answers", "1 answer", "2,000 answers"]
    assert [amount(n) for n in (512, 12_340, 134.5e6, 8.03e9)] == ["512", "12.3 k", "134.5 M", "8.03 B"]
