"""The test of sampling must pass honest draws at the rate that it states, and find false ones."""

from collections import Counter

import pytest
import torch
from transformers import PreTrainedModel

from pard2.engine import randomness, verification
from pard2.engine.engine import Engine
from pard2.errors import Pard2Error
from pard2.models.target import Target
from pard2.verify.distribution import FALSE_ALARM, ChiSquare, DistributionTest, Draws, compare, draw, judge, measure, rank
from tiny import random_prompts, tiny_draft, tiny_target

PROMPT = random_prompts(1, seed=4)[0]


def sampled(model: PreTrainedModel, count: int, length: int, temperature: float, seed: int) -> list[tuple[int, ...]]:
    """Texts by multinomial draws from the model, one position after the other."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([PROMPT] * count)
    for _ in range(length):
        with torch.no_grad():
            p = (model(input_ids=tokens).logits[:, -1] / temperature).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=generator)], dim=1)
    return [tuple(text) for text in tokens[:, len(PROMPT) :].tolist()]


def peaked(vocab: int = 61) -> Target:
    """With weights this small a few tokens are likely and all are possible, as in
    a language model at work."""
    return tiny_target(vocab=vocab, initializer_range=0.2)


# --- the statistics ---------------------------------------------------------------------------------


def test_false_alarms_are_as_frequent_as_stated():
    """Chi-square's tail, at a bar that can be reached by simulation: both statistics
    together, 400 honest audits."""
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.5, 0.2, 0.1, *[0.02] * 10], dtype=torch.float64)
    chances = []
    for _ in range(400):
        tokens = torch.multinomial(p, 200, replacement=True, generator=generator)
        places = rank(p.expand(200, -1), tokens, torch.rand(200, generator=generator, dtype=torch.float64))
        chances.append(judge([Draws(200, tuple(places.tolist()), 1, compare(p, Counter(tokens.tolist())))]).chance)
    assert sum(chance < 0.1 for chance in chances) < 400 * 0.1 + 3 * (400 * 0.1 * 0.9) ** 0.5
    assert sum(chance < 0.5 for chance in chances) > 400 * 0.25  # nor is it deaf
    assert min(chances) > FALSE_ALARM


def test_ranks_fill_the_unit_interval_exactly():
    """Each token's stretch is as long as it is probable, and they neither overlap nor
    leave gaps, ties included."""
    p = torch.tensor([0.1, 0.4, 0.1, 0.25, 0.15], dtype=torch.float64).expand(5, -1)
    tokens = torch.arange(5)
    starts, ends = rank(p, tokens, torch.zeros(5)), rank(p, tokens, torch.ones(5))
    torch.testing.assert_close(ends - starts, p[0])
    torch.testing.assert_close(starts.sort().values[1:], ends.sort().values[:-1])
    assert starts.argsort().tolist() == [1, 3, 4, 0, 2]


def test_a_prefix_is_cut_into_cells_of_enough_expected_counts():
    p = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.05, 0.05], dtype=torch.float64)
    # Expected: 30, 30, 20, 10, and 10 in the two last.
    assert compare(p, Counter({0: 30, 1: 30, 2: 20, 3: 10, 4: 5, 5: 5})) == ChiSquare(pytest.approx(0.0), 4)
    assert compare(p, Counter({0: 20, 1: 40, 2: 20, 3: 10, 4: 10})) == ChiSquare(pytest.approx(100 / 30 + 100 / 30), 4)
    # Of 20: the two first fill a cell, and of the four others too little is expected for one.
    assert compare(p, Counter({0: 20})).freedom == 0
    # Tokens beyond the most probable ones count in the tail.
    many = torch.full((1000,), 1e-3, dtype=torch.float64)
    assert compare(many, Counter({999: 100})) == ChiSquare(0.0, 0)


def test_the_chance_is_chi_squares():
    assert ChiSquare(3.841459, 1).chance == pytest.approx(0.05, abs=1e-6)  # from any table
    assert ChiSquare(37.697, 15).chance == pytest.approx(0.001, abs=1e-6)
    assert ChiSquare(5.0, 0).chance == 1.0


@pytest.mark.parametrize("chances", [(float("nan"), 0.5), (0.5, float("nan"))])
def test_a_nan_is_no_verdict_of_losslessness(chances):
    ranks, prefixes = chances
    assert not DistributionTest(completions=1, tokens=1, prefixes=1, ranks_chance=ranks, prefixes_chance=prefixes).lossless


# --- real draws -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_honest_texts_pass_and_those_of_another_temperature_do_not(temperature):
    target = peaked()
    texts = sampled(target.model, 200, 5, temperature, 1)
    test = judge([measure(target, PROMPT, texts, temperature, 0)])
    assert test.lossless and test.tokens == 1000 and test.prefixes > 1
    assert not judge([measure(target, PROMPT, texts, temperature + 0.5, 0)]).lossless


def test_either_statistic_finds_what_it_is_for():
    target = peaked()
    sharp = judge([measure(target, PROMPT, sampled(target.model, 200, 5, 0.6, 1), 1.0, 0)])
    assert 2 * sharp.ranks_chance < FALSE_ALARM
    # Two tokens of nearly equal probability that change places say little of ranks, but a
    # prefix's own counts show it.
    texts = sampled(target.model, 400, 1, 1.0, 1)
    first, second = (token for (token,), _ in Counter(texts).most_common(2))
    shifted = [(first,) if text == (second,) else text for text in texts]
    assert 2 * judge([measure(target, PROMPT, shifted, 1.0, 0)]).prefixes_chance < FALSE_ALARM


def test_the_order_of_texts_and_the_size_of_chunks_do_not_matter(monkeypatch):
    target = peaked()
    texts = sampled(target.model, 60, 4, 1.0, 3)
    whole = measure(target, PROMPT, texts, 1.0, 0)
    monkeypatch.setattr("pard2.verify.distribution._LOGITS", 7 * 4 * target.vocab_size)
    pieces = measure(target, PROMPT, texts, 1.0, 0)
    assert pieces.ranks == pytest.approx(whole.ranks, abs=1e-5) and pieces.by_prefix.freedom == whole.by_prefix.freedom
    assert pieces.by_prefix.value == pytest.approx(whole.by_prefix.value, rel=1e-4)


@pytest.mark.parametrize("rules", [{}, {"draft_sampling": "sampled"}, {"draft_sampling": "sampled", "verification": "block"}], ids=str)
def test_an_honest_engine_passes(rules):
    target = peaked()
    engine = Engine(target, tiny_draft(target, [0], projection=0.1), "pard2-td", 4, **rules)
    draws = [draw(engine, prompt, 48, 6, 1.0, 48 * i) for i, prompt in enumerate(random_prompts(2, seed=4))]
    test = judge(draws)
    assert test.lossless and (test.completions, test.tokens) == (96, 576)


def share_one_generator(monkeypatch):
    number = randomness._uniform
    monkeypatch.setattr(randomness, "_uniform", lambda seed, index, position, purpose, block: number(seed, index, position, 0, block))


def draw_the_residual_from_p(monkeypatch):
    monkeypatch.setattr(verification, "_remainder", lambda p, q, accepted, *rest: p.index_select(0, accepted[None])[0].double())


@pytest.mark.parametrize("fault", [share_one_generator, draw_the_residual_from_p])
def test_an_engine_that_is_not_lossless_is_found(fault, monkeypatch):
    target = tiny_target(seed=3, vocab=6, hidden=16, context=32, initializer_range=0.5)
    engine = Engine(target, tiny_draft(target, [0], 4, projection=0.3, mask_token=5), "pard2-td", 4, draft_sampling="sampled", max_batch=64)
    assert judge([draw(engine, [1, 2, 0], 256, 6, 1.0, 0)]).lossless
    fault(monkeypatch)
    assert not judge([draw(engine, [1, 2, 0], 256, 6, 1.0, 0)]).lossless


def test_texts_at_the_contexts_end_are_shorter_and_still_measured():
    target = tiny_target(context=32)
    assert len(draw(Engine(target), list(range(30)), 16, 12, 1.0, 0).ranks) == 16 * 3


def test_half_precision_is_no_deviation():
    target = peaked()
    target.model.to(torch.bfloat16)
    assert judge([draw(Engine(target), PROMPT, 64, 4, 1.0, 0)]).lossless


def test_end_of_answer_tokens_do_not_cut_texts_short():
    target = peaked()
    assert target.model.generation_config is not None
    target.model.generation_config.eos_token_id = list(range(20))
    assert len(draw(Engine(target), PROMPT, 16, 5, 1.0, 0).ranks) == 80


def test_a_completion_that_fails_is_an_error():
    target = peaked()
    with torch.no_grad():
        target.model.lm_head.weight[3] = float("nan")
    with pytest.raises(Pard2Error, match="NaN"):
        draw(Engine(target), PROMPT, 16, 4, 1.0, 0)
