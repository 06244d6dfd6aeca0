"""Losslessness: in float32, every method emits exactly what transformers' own greedy `generate` emits."""

from itertools import zip_longest

import pytest
import torch

from engines import record_proposals
from pard2 import Engine, SamplingParams
from pard2.checkpoints.pruning import cut_draft
from tiny import MASK, greedy, pard_draft, perfect_draft, random_prompts, tiny_draft, tiny_lm_draft, tiny_target

NEW = 24


def engines(architecture: str):
    target = tiny_target(architecture=architecture)
    draft = tiny_draft(target)
    yield Engine(target, None, "ar")
    yield Engine(target, tiny_lm_draft(architecture=architecture), "vsd", 4)
    yield Engine(target, perfect_draft(target), "vsd", 4)
    yield Engine(target, pard_draft(target), "pard", 5)
    yield Engine(target, draft, "pard2-ti", 6)
    yield Engine(target, draft, "pard2-td", 6)
    yield Engine(target, draft, "pard2-td", "auto")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma2", "gpt2"])
def test_every_method_says_what_transformers_says(architecture):
    prompts = random_prompts(6 if architecture == "llama" else 3, seed=3)
    expected = None
    for engine in engines(architecture):
        if expected is None:
            expected = [greedy(engine.target, prompt, NEW) for prompt in prompts]
            assert len({tuple(text) for text in expected}) > 2 and len(set(expected[0])) > 3, "texts too dull to tell anything"
        outputs = engine.generate(prompts, SamplingParams(max_tokens=NEW))
        assert [out.token_ids for out in outputs] == expected, engine.method
        assert [out.prompt_tokens for out in outputs] == [len(prompt) for prompt in prompts]


def test_both_kinds_of_cycle_occur():
    """Else the equality above would say nothing of acceptance or of rejection."""
    target = tiny_target()
    for method in ("pard2-ti", "pard2-td"):
        stats = [
            out.stats for out in Engine(target, tiny_draft(target), method, 6).generate(random_prompts(6, seed=3), SamplingParams(max_tokens=NEW))
        ]
        accepted = [a for s in stats for a in s.accepted_per_cycle]
        assert sum(accepted) > 0 and min(accepted) < 2, method


def test_many_prompts_through_one_engine_leave_no_trace():
    target = tiny_target(seed=4)
    engine = Engine(target, tiny_draft(target))
    prompts = random_prompts(12, seed=9)
    assert [out.token_ids for out in engine.generate(prompts, SamplingParams(max_tokens=12))] == [greedy(target, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("method", ["ar", "vsd", "pard2-ti", "pard2-td"])
def test_what_shares_the_batch_changes_nothing(method):
    """Neither the text nor what is proposed and accepted for it; places are too few for all, so
    that texts join and leave."""
    target = tiny_target(architecture="mistral")
    draft = None if method == "ar" else tiny_lm_draft() if method == "vsd" else tiny_draft(target)
    prompts = random_prompts(5, seed=8)
    params = [SamplingParams(max_tokens=length, temperature=heat, seed=7) for length, heat in [(3, 0), (20, 1), (9, 0), (16, 0.7), (12, 0)]]
    said = []
    for max_batch in (1, 2, 5):
        outputs = Engine(target, draft, method, 4, max_batch=max_batch).generate(prompts, params)
        said.append([(out.token_ids, out.stats.accepted_per_cycle, out.stats.proposed_per_cycle) for out in outputs])
    assert said[0] == said[1] == said[2]


def test_engines_and_streams_in_turn_do_not_disturb_each_other():
    """The target's feature hooks are shared, so each engine must restore its own,
    else TD loses its features."""
    target = tiny_target()
    draft = tiny_draft(target)
    methods = ["pard2-td", "pard2-td", "pard2-ti", "ar"]
    prompts = random_prompts(4, seed=11)
    alone = [list(Engine(target, draft, m, 3).stream(p, SamplingParams(max_tokens=20))) for m, p in zip(methods, prompts, strict=True)]
    streams = [Engine(target, draft, m, 3).stream(p, SamplingParams(max_tokens=20)) for m, p in zip(methods, prompts, strict=True)]
    in_turn = [[step for step in steps if step] for steps in zip(*zip_longest(*streams), strict=True)]
    assert [[(s.token_ids, s.accepted) for s in steps] for steps in in_turn] == [[(s.token_ids, s.accepted) for s in steps] for steps in alone]
    assert [[t for s in steps for t in s.token_ids] for steps in in_turn] == [greedy(target, prompt, 20) for prompt in prompts]


def test_a_draft_whose_vocabulary_differs_is_still_lossless():
    """Ids that only one of the two knows must neither be proposed nor fed."""
    target = tiny_target(vocab=61)
    for vocab in (50, 61, 80):
        engine = Engine(target, tiny_lm_draft(vocab=vocab), "vsd", 3)
        assert engine.generate([[59, 60, 58]], SamplingParams(max_tokens=30))[0].token_ids == greedy(target, [59, 60, 58], 30)


@pytest.mark.parametrize("method", ["pard2-td", "pard2-ti"])
def test_a_draft_that_can_propose_some_tokens_alone_is_lossless(method):
    """And proposes no other."""
    target, some = tiny_target(vocab=61), torch.arange(0, 61, 3)
    draft = cut_draft(target, [0, 1], MASK, 4, (-1,), shared_vocabulary=True, vocabulary=some).eval()
    engine = Engine(target, draft, method, 3)
    proposed = record_proposals(engine)
    prompts = [[5, 9, 2], [30, 1, 7, 7]]
    assert [out.token_ids for out in engine.generate(prompts, SamplingParams(max_tokens=30))] == [greedy(target, prompt, 30) for prompt in prompts]
    assert {token for tokens in proposed for token in tokens} <= set(some.tolist()) and len(proposed) > 10
