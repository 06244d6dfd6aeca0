"""Random numbers: they depend on what they are for, and on nothing else."""

import random

import numpy as np
import torch

from pard2.engine.randomness import Purpose, block_uniforms, uniforms


def test_a_seeded_text_survives_the_next_release():
    # Written down once: a change of hash, key or order changes every seeded text there is.
    assert uniforms(0, 0, 0, 2, Purpose.DRAFT).tolist() == [0.9167714930654337, 0.6417866186010575]
    assert block_uniforms(2**63 - 1, 127, 10**6, 1, Purpose.TARGET).tolist() == [0.5237683378948497]


def test_a_positions_number_does_not_depend_on_the_block_it_lies_in():
    whole = uniforms(7, 1, 100, 16, Purpose.TARGET)
    for start, count in ((100, 1), (103, 5), (115, 1), (110, 0)):
        assert torch.equal(uniforms(7, 1, start, count, Purpose.TARGET), whole[start - 100 : start - 100 + count])


def test_seeds_do_not_leak_into_or_out_of_the_global_generators():
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    first = uniforms(1, 0, 0, 4, Purpose.ACCEPT)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    torch.manual_seed(123)
    assert torch.equal(uniforms(1, 0, 0, 4, Purpose.ACCEPT), first)


def test_draft_acceptance_and_residual_never_share_a_number_nor_do_completions_seeds_or_kinds_of_block():
    numbers = []
    for seed in (0, 1, 2**63 - 1):
        for index in (0, 1):
            for purpose in Purpose:
                numbers += uniforms(seed, index, 0, 40, purpose).tolist()
                for start in (0, 1, 2, 39):
                    numbers += block_uniforms(seed, index, start, 16, purpose).tolist()
    assert len(set(numbers)) == len(numbers)


def test_what_block_verification_dropped_is_drawn_anew_in_the_next_block():
    first, second = block_uniforms(3, 0, 10, 8, Purpose.ACCEPT), block_uniforms(3, 0, 12, 8, Purpose.ACCEPT)
    assert not set(first.tolist()) & set(second.tolist())


def test_numbers_lie_below_one_and_are_exact_in_float64():
    numbers = uniforms(5, 0, 0, 4096, Purpose.ACCEPT)
    assert numbers.dtype == torch.float64 and numbers.shape == (4096,)
    assert bool((numbers >= 0).all()) and bool((numbers < 1).all())
    scaled = numbers * 2**53
    assert torch.equal(scaled, scaled.round())
    # Mean and variance of a uniform number, within four standard errors.
    assert abs(numbers.mean() - 1 / 2) < 4 * (1 / 12 / 4096) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 4 * (1 / 180 / 4096) ** 0.5
    assert len(torch.histc(numbers.float(), 16, 0, 1).nonzero()) == 16


def test_an_empty_block_has_no_numbers():
    assert uniforms(0, 0, 5, 0, Purpose.DRAFT).shape == block_uniforms(0, 0, 5, 0, Purpose.DRAFT).shape == (0,)
