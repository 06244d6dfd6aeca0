"""What a draft proposes under a bias and penalties: against sums over lists, and by what stands."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pard2 import Engine, SamplingParams
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.processors import TokenCounts
from pard2.engine.sequence import Sequence
from tiny import perfect_draft, tiny_draft, tiny_target

VOCABULARY, DEPTH = 10, 3
PROMPT, SAID = [1, 2, 2, 5], [3, 5]

requests = st.builds(
    SamplingParams,
    repetition_penalty=st.sampled_from([1.0, 1.3, 3.0]),
    presence_penalty=st.sampled_from([0.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.8]),
    logit_bias=st.sampled_from([None, {4: 2.0, 7: -100.0}]),
)


def sequence_of(params: SamplingParams) -> Sequence:
    sequence = Sequence(prompt=PROMPT, params=params, seed=0, index=0, max_new_tokens=20, stop_token_ids=frozenset(), text=None)
    sequence.tokens = list(SAID)
    sequence.counts = TokenCounts(PROMPT, VOCABULARY)
    sequence.counts.add(torch.tensor(SAID))
    return sequence


def scores(logits: torch.Tensor, params: SamplingParams, path: list[int]) -> list[float]:
    """One row's biased and penalised logits behind the text and a path, token by token."""
    answer = SAID + path
    found = []
    for token, score in enumerate(logits.tolist()):
        score += (params.logit_bias or {}).get(token, 0.0)
        if token in PROMPT + answer:
            score = score / params.repetition_penalty if score > 0 else score * params.repetition_penalty
        found.append(score - params.presence_penalty * (token in answer) - params.frequency_penalty * answer.count(token))
    return found


@settings(deadline=None)
@given(params=requests, seed=st.integers(0, 10_000))
def test_a_chain_ignores_a_penalty(params, seed):
    logits = 3 * torch.randn(DEPTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    (parallel,) = DraftSelector([sequence_of(params)], "greedy", "token", VOCABULARY).parallel(logits, [DEPTH])
    one_by_one = DraftSelector([sequence_of(params)], "greedy", "token", VOCABULARY)
    path: list[int] = []
    for row in logits:
        found = scores(row, params, path)
        path.append(found.index(max(found)))
        assert one_by_one.next(row[None].clone(), [0]).tolist() == path[-1:]
    assert parallel.token_ids.tolist() == path
    assert one_by_one.chains(logits.device)[0].token_ids.tolist() == path


@settings(deadline=None)
@given(params=requests, seed=st.integers(0, 10_000), nodes=st.integers(VOCABULARY, 24))
def test_a_tree_ignores_a_penalty(params, seed, nodes):
    """Of all paths it holds those of the highest value: the sum, over the path, of a token's penalised logit
    less the logarithm of its level's sum of powers."""
    logits = 3 * torch.randn(DEPTH, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    (tree,) = DraftSelector([sequence_of(params)], "greedy", "token", VOCABULARY, [nodes]).parallel(logits, [DEPTH])
    totals = [math.log(sum(math.exp(score) for score in scores(row, params, []))) for row in logits]
    values = {}
    for depth in range(1, DEPTH + 1):
        for path in itertools.product(range(VOCABULARY), repeat=depth):
            own = scores(logits[depth - 1], params, list(path[:-1]))[path[-1]] - totals[depth - 1]
            values[path] = values.get(path[:-1], 0.0) + own
    best = sorted(values, key=values.__getitem__, reverse=True)[:nodes]
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert sorted(values[path] for path in paths) == pytest.approx(sorted(values[path] for path in best), abs=1e-4)
    assert [math.exp(values[path]) for path in paths] == pytest.approx(tree.probabilities, rel=1e-3)


@settings(deadline=None, max_examples=25)
@given(params=requests)
def test_a_draft_that_is_the_target_is_rejected(params):
    """By `vsd` its guesses are the target's own words, penalties and all."""
    target = tiny_target()
    engine = Engine(target, perfect_draft(target), "vsd", draft_tokens=4, max_batch=1, cache_tokens=64)
    params = SamplingParams(**(vars(params) | {"max_tokens": 16, "ignore_eos": True}))
    (completion,) = engine.generate([[1, 2, 3]], params)
    assert completion.stats.accepted == completion.stats.proposed


@pytest.mark.parametrize("tree", [0, 8])
def test_a_penalty_changes_the_text(tree):
    target = tiny_target()
    plain = Engine(target, None, "ar", max_batch=1, cache_tokens=128)
    engine = Engine(target, tiny_draft(target), "pard2-td", draft_tokens=4, max_batch=1, cache_tokens=128, tree=tree)
    for setting in ({"repetition_penalty": 1.3}, {"presence_penalty": 1.2}, {"logit_bias": {7: 9.0}, "frequency_penalty": 0.5}):
        params = SamplingParams(max_tokens=30, ignore_eos=True, **setting)
        (one,), (same,) = (used.generate([[1, 2, 3]], params) for used in (engine, plain))
        assert one.token_ids == same.token_ids
