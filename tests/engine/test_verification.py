"""Greedy acceptance against the loop that a person would write."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from pard2.engine.verification import verify_greedy

VOCABULARY = 4


def one_hot(choices: list[int]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([choices]), VOCABULARY).float()


@given(st.integers(0, 6).flatmap(lambda k: st.tuples(*[st.lists(st.integers(0, VOCABULARY - 1), min_size=n, max_size=n) for n in (k + 1, k)])))
def test_longest_agreeing_prefix_then_the_targets_own(case):
    choices, proposed = case
    expected = []
    for choice, guess in zip(choices, proposed, strict=False):
        if choice != guess:
            break
        expected.append(guess)
    accepted = len(expected)
    expected.append(choices[accepted])
    verification = verify_greedy(one_hot(choices), torch.tensor([proposed], dtype=torch.long))
    assert verification.accepted == accepted
    assert verification.token_ids == expected == verification.tokens[0].tolist()


def test_a_later_agreement_does_not_heal_a_rejection():
    verification = verify_greedy(one_hot([1, 2, 3, 0]), torch.tensor([[1, 0, 3]]))
    assert (verification.accepted, verification.token_ids) == (1, [1, 2])
