"""Acceptance rates by position, learnt from cycles."""

import pytest

from pard2.engine.draft_length.acceptance import Acceptance


def test_positions_behind_the_first_rejection_do_not_count():
    acceptance = Acceptance(4)
    before = acceptance.rates()
    acceptance.observe(4, 1)
    after = acceptance.rates()
    assert after[0] > before[0] and after[1] < before[1]
    only_guessed = Acceptance(4)
    only_guessed.observe(2, 1)
    assert after == only_guessed.rates()  # positions 2 and 3 were proposed and never tested


def test_a_fully_accepted_block_does_not_count_a_rejection_after_it():
    acceptance = Acceptance(4)
    acceptance.observe(2, 2)
    assert min(acceptance.rates()) > 0.8


def test_chances_are_prefix_products():
    acceptance = Acceptance(3)
    for accepted in (3, 1, 0, 2):
        acceptance.observe(3, accepted)
    a, b, c = acceptance.rates()
    assert acceptance.chances() == pytest.approx([a, a * b, a * b * c])


def test_a_new_sequence_starts_from_what_all_others_did():
    population = Acceptance(4)
    assert population.rates() == [0.8] * 4
    for _ in range(100):
        Acceptance(4, population).observe(4, 0)
    assert Acceptance(4, population).rates()[0] < 0.1


def test_hard_text_is_not_thought_easy_where_it_is_seldom_seen():
    population = Acceptance(8)
    for _ in range(200):
        population.observe(8, 8)
    hard = Acceptance(8, population)
    for _ in range(10):
        hard.observe(8, 0)
    assert hard.rates()[0] < 0.4 and hard.rates()[4] < 0.5 < population.rates()[4]


def test_without_proposals_a_sequence_drifts_back_to_the_population():
    population = Acceptance(4)
    poor, rich = Acceptance(4, population), Acceptance(4, population)
    for _ in range(50):
        poor.observe(4, 0)
        rich.observe(4, 4)
    low, level = poor.rates()[0], population.rates()[0]
    for _ in range(200):
        poor.observe(0, 0)
    assert low < 0.2 and poor.rates()[0] == pytest.approx(population.rates()[0], abs=0.1)
    assert population.rates()[0] > level  # and the population, with nobody asking, to optimism
