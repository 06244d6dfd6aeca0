"""Which configurations run, and in which turn."""

from itertools import groupby

import pytest
from bench_plans import plan, suite

from pard2.bench.plan import Configuration, configurations


def test_base_forgotten_where_only_drafting_is_asked_for():
    found = configurations(["pard2-td"], [1, 8], ["auto", 4], [0.0, 1.0])
    assert all(one.base in found for one in found)
    assert len(found) == 2 * 2 * (1 + 2)


def test_ar_runs_once_for_every_k():
    found = configurations(["ar", "vsd"], [1], [1, 2, 3], [0.0])
    assert [one.method for one in found] == ["ar", "vsd", "vsd", "vsd"]
    assert found[0] == Configuration(method="ar", batch_size=1, draft_tokens=0, temperature=0.0)


def test_same_thing_asked_for_twice_runs_twice():
    assert len(configurations(["vsd", "vsd"], [1, 1], [2, 2], [0.0])) == 2


@pytest.mark.parametrize("prompts", [1, 3, 7, 33])
def test_chunks_lose_or_repeat_a_prompt(prompts):
    run = plan(suite(prompts=prompts), sizes=(1, 2, 3), repeats=2)
    for size in (1, 2, 3):
        for repeat in (0, 1):
            asked = [i for c in run.chunks() if (c.batch_size, c.repeat) == (size, repeat) for i in range(c.first, c.first + c.count)]
            assert asked == list(range(prompts))


def test_thin_batches_of_leftover_prompts():
    """33 prompts in chunks of 8 would leave one prompt to be decoded alone, in the name of batch size 2."""
    assert min(c.count for c in plan(suite(prompts=33), sizes=(2,)).chunks()) >= 8


def test_one_batch_size_runs_before_another():
    """A machine that slows down would be taken for a batch size that is slow."""
    order = [c.batch_size for c in plan(suite(prompts=32), sizes=(1, 4)).chunks()]
    assert [(size, len(list(run))) for size, run in groupby(order)] == [(1, 16), (4, 1), (1, 16), (4, 1)]


def test_plans_that_ask_other_things_look_alike():
    same = plan(suite())
    assert plan(suite()).as_dict() == same.as_dict()
    others = [plan(suite(prompts=3)), plan(suite("other")), plan(sizes=(2,)), plan(ks=(3,)), plan(new_tokens=11), plan(seed=1), plan(repeats=2)]
    assert all(other.as_dict() != same.as_dict() for other in others)
