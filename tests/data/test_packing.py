"""Packing: every document once, no row too long, few tokens empty, the same rows for the same seed."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2.data.packing import pack
from pard2.errors import Pard2Error


def conversations(count: int, longest: int = 512, seed: int = 0) -> list[int]:
    """Lengths as conversations have them: many short ones, a long tail that is cut at `longest`."""
    normal = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return [min(longest, int(length)) for length in (5.5 + 0.6 * normal).exp()]


def fill(lengths: list[int], rows: list[list[int]], row_length: int) -> float:
    return sum(lengths) / (len(rows) * row_length)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 50), st.integers(0, 2**31))
def test_every_document_once_in_rows_that_hold_it(lengths, row_length, seed):
    rows = pack(lengths, row_length, seed)
    assert sorted(document for row in rows for document in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[document] for document in row) <= row_length for row in rows)


def test_more_documents_than_are_sorted_together():
    lengths = conversations(9000)
    rows = pack(lengths, 512, 0)
    assert sorted(document for row in rows for document in row) == list(range(9000))


@pytest.mark.parametrize(("count", "row_length"), [(300, 512), (300, 2048), (9000, 512), (9000, 4096)])
def test_few_tokens_of_a_row_stay_empty(count, row_length):
    lengths = conversations(count)
    assert fill(lengths, pack(lengths, row_length, 0), row_length) > 0.95


def test_the_seed_decides():
    lengths = conversations(500)
    assert pack(lengths, 1024, 7) == pack(lengths, 1024, 7) != pack(lengths, 1024, 8)
    assert pack(np.array(lengths), 1024, 7) == pack(lengths, 1024, 7)


def test_neither_rows_nor_documents_come_by_length():
    """Longest first would train on long conversations before short ones, in the
    same order in each sequence."""
    lengths = conversations(4000)
    rows = pack(lengths, 2048, 0)
    first = [lengths[row[0]] for row in rows]
    last = [lengths[row[-1]] for row in rows]
    assert abs(np.mean(first) / np.mean(last) - 1) < 0.15
    half = len(rows) // 2
    longest = [max(lengths[document] for document in row) for row in rows]
    assert abs(np.mean(longest[:half]) / np.mean(longest[half:]) - 1) < 0.1


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(Pard2Error, match="a document has 513 tokens, a row holds 512; set data.row_length=513 or more"):
        pack([3, 513, 20], 512, 0)
    assert sorted(pack([512, 512], 512, 0)) == [[0], [1]]


def test_a_hundred_thousand_documents_take_seconds():
    lengths = conversations(100_000)
    started = time.process_time()
    pack(lengths, 2048, 0)
    assert time.process_time() - started < 10  # a scan of all open rows for each document would take minutes
