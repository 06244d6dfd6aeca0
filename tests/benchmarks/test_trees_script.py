"""What the comparison of trees and chains counts, on engines whose acceptance differs."""

import pytest

import trees
from pard2 import Engine
from tiny import perfect_draft, random_prompts, tiny_lm_draft, tiny_target


@pytest.fixture(scope="module")
def engines():
    """Two arms of quite different acceptance; what proposes, a tree or a chain, is the same to the script."""
    target = tiny_target()
    return {trees.CHAIN: Engine(target, tiny_lm_draft(), "vsd", 4), "tree 4": Engine(target, perfect_draft(target), "vsd", 4)}


@pytest.fixture(scope="module")
def done(engines):
    return trees.decode(engines, {"one": random_prompts(3), "two": random_prompts(2, seed=1)}, 16, 60)


def test_an_arm_lacks_a_prompt(done):
    assert {suite: {arm: len(some) for arm, some in arms.items()} for suite, arms in done.items()} == {
        "one": {"chain": 3, "tree 4": 3},
        "two": {"chain": 2, "tree 4": 2},
    }
    assert all(len(completion.token_ids) == 16 for arms in done.values() for some in arms.values() for completion in some)


def test_acceptance_and_speed_are_over_those_of_chains(done):
    chain, tree = trees.summarise("one", done["one"])
    assert chain["acceptance_length_over_chain"] == chain["speed_over_chain"] == 1
    assert tree["acceptance_length"] > 4 > chain["acceptance_length"] >= 1
    assert tree["acceptance_length_over_chain"] == pytest.approx(tree["acceptance_length"] / chain["acceptance_length"])
    assert tree["speed_over_chain"] == pytest.approx(tree["tokens_per_second"] / chain["tokens_per_second"])
    low, high = tree["acceptance_length_over_chain_interval"]
    assert low <= tree["acceptance_length_over_chain"] <= high
    assert tree["equal_outputs"] == tree["prompts"] == 3


def test_an_answer_that_differs_is_counted_as_equal(done):
    chains = done["one"]["chain"]
    assert trees.summarise("one", {"chain": chains, "tree 4": chains[::-1]})[1]["equal_outputs"] < 3


def test_the_time_is_up_and_it_goes_on(engines):
    done = trees.decode(engines, {"one": random_prompts(3)}, 4, 0.0)
    assert [len(some) for some in done["one"].values()] == [0, 0] and trees.summarise("one", done["one"]) == []
