"""Logits that are no numbers: what a draft makes of them is no proposal, and what a target
makes of them ends one text.

Half precision overflows, so no damaged file is needed. The rules are tried alone, then as a cycle puts them
together, then the whole engine. What they emit with a draft that breaks down now and then is measured exactly
in test_verification ("broken") and test_distribution.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engines import DRAFTED, is_empty, new_draft, shared_target
from pard2 import Engine, SamplingParams
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.processors import probabilities
from pard2.engine.sequence import Sequence
from pard2.engine.token_selection import verify
from pard2.engine.verification import NOTHING, choose_by_block, choose_by_rejection, choose_coupled, choose_greedy
from tiny import random_prompts

NAN, INF = math.nan, math.inf
RULES = [{}, {"draft_sampling": "sampled"}, {"draft_sampling": "sampled", "verification": "block"}]


@st.composite
def broken_logits(draw, rows: int, vocabulary: int) -> Tensor:
    """Random logits [rows, vocabulary]; here and there NaN, an infinity, or what
    half precision cannot hold."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = 3 * torch.randn(rows, vocabulary, generator=generator)
    for _ in range(draw(st.integers(0, 3)) if rows else 0):
        value = draw(st.sampled_from([NAN, INF, -INF, 1e38]))
        row, token = draw(st.integers(0, rows - 1)), draw(st.integers(-1, vocabulary - 1))
        logits[row, slice(None) if token < 0 else token] = value
    return logits


def leading(sound: Tensor) -> int:
    return int(sound.long().cumprod(0).sum())


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 4), st.integers(2, 5), st.sampled_from([choose_by_rejection, choose_by_block]))
def test_a_rule_judges_a_block_as_if_it_ended_before_what_is_no_distribution(data, k, vocabulary, rule):
    """A single number may be broken here, which softmax would spread over its row:
    a rule is right by itself."""
    p, q = data.draw(broken_logits(k + 1, vocabulary)).softmax(-1), data.draw(broken_logits(k, vocabulary)).softmax(-1)
    for _ in range(data.draw(st.integers(0, 2)) if k else 0):
        q[data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, vocabulary - 1))] = data.draw(st.sampled_from([NAN, INF, -INF]))
    proposed = torch.tensor([data.draw(st.integers(NOTHING, vocabulary - 1)) for _ in range(k)], dtype=torch.long)
    u = torch.tensor([data.draw(st.sampled_from([0.0, 0.3, 0.999])) for _ in range(2 * k + 1)], dtype=torch.float64)
    made = leading(q.isfinite().all(-1) & p[:-1].isfinite().all(-1) & (proposed != NOTHING))
    whole, cut = rule(p, q, proposed, u[:k], u[k:]), rule(p[: made + 1], q[:made], proposed[:made], u[:made], u[k : k + made + 1])
    accepted = int(whole.accepted)
    assert accepted == int(cut.accepted) <= made
    sound = leading(p.isfinite().all(-1))
    assert whole.tokens[: min(accepted + 1, sound)].tolist() == cut.tokens[: min(accepted + 1, sound)].tolist()
    assert all(p[i, token] > 0 for i, token in enumerate(whole.tokens[: min(accepted + 1, sound)].tolist()))


def test_nothing_agrees_with_no_choice():
    rows, u = torch.eye(3), torch.full((3,), 0.5, dtype=torch.float64)
    for proposed, accepted in (([0, 1], 2), ([0, NOTHING], 1), ([NOTHING, 1], 0)):
        tokens = torch.tensor(proposed)
        assert int(choose_greedy(rows, tokens).accepted) == int(choose_coupled(rows, tokens, u).accepted) == accepted


# --- a cycle without its models -----------------------------------------------------------------------


PARAMS = [
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=9, logit_bias={0: 1.0}),
    SamplingParams(max_tokens=9, temperature=1.0, seed=1),
    SamplingParams(max_tokens=9, temperature=0.00001, seed=2),  # divides large numbers out of float32
    SamplingParams(max_tokens=9, temperature=0.8, top_k=2, seed=3),
]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 4), st.integers(2, 5), st.sampled_from(PARAMS), st.sampled_from(RULES))
def test_whatever_a_cycle_says_the_target_could_have_said(data, k, vocabulary, params, rules):
    sequence = Sequence(prompt=[1], params=params, seed=params.seed or 0, index=0, max_new_tokens=9, stop_token_ids=frozenset(), text=None)
    wanted, guessed = data.draw(broken_logits(k + 1, vocabulary)), data.draw(broken_logits(k, vocabulary))
    sampling, rule = rules.get("draft_sampling", "greedy"), rules.get("verification", "token")
    (proposal,) = DraftSelector([sequence], sampling, rule, vocabulary).parallel(guessed, [k])
    proposed = proposal.token_ids
    newest = torch.zeros(1, dtype=torch.long)
    (one,) = verify([sequence], wanted, [proposal], torch.cat([newest, proposed]), rule)
    said = params if params.temperature else SamplingParams(max_tokens=9, temperature=1.0, logit_bias=params.logit_bias)
    p, q = (probabilities(rows, said, None, proposed[:0]) for rows in (wanted, guessed))
    assert one.accepted <= one.proposed <= k
    drawn = sampling == "sampled" and params.temperature > 0
    sound = q.isfinite().all(-1) if drawn else guessed.amax(-1).isfinite() if k else torch.ones(0, dtype=torch.bool)
    assert one.proposed == leading(sound)
    judged = p if params.temperature else (wanted + 0).amax(-1, keepdim=True)
    assert one.sound == bool(judged[: one.accepted + 1].isfinite().all())
    if one.sound:
        assert all(p[i, token] > 0 for i, token in enumerate(one.token_ids))
    if not drawn:  # then the text is the target's alone
        (plain,) = verify([sequence], wanted[:1], [proposal.first(0)], newest, "token")
        assert plain.token_ids == one.token_ids[:1] or not plain.sound


# --- the engine ---------------------------------------------------------------------------------------


PROMPTS = random_prompts(3, seed=6)
# Of each prompt, whatever the rule: the first two can say one token alone at each place.
SETTINGS = [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=12, temperature=1.0, top_k=1, seed=5),
    SamplingParams(max_tokens=12, temperature=1.0, seed=2),
]
BROKEN = {
    "a token, NaN": (lambda rows: rows.index_fill(1, torch.tensor([7]), NAN), 0),
    "a token, inf": (lambda rows: rows.index_fill(1, torch.tensor([7]), INF), 0),
    "a token, -inf": (lambda rows: rows.index_fill(1, torch.tensor([7]), -INF), None),  # masked: the others are as good as ever
    "all, NaN": (lambda rows: rows * NAN, 0),
    "all, inf": (lambda rows: rows * 0 + INF, 0),
    "all, -inf": (lambda rows: rows * 0 - INF, 0),
}


@pytest.mark.parametrize("rules", RULES, ids=["greedy", "token", "block"])
@pytest.mark.parametrize("method", DRAFTED)
@pytest.mark.parametrize("kind", BROKEN)
def test_a_draft_whose_logits_are_no_numbers_proposes_nothing(kind, method, rules, monkeypatch):
    damage, proposed = BROKEN[kind]
    target = shared_target()
    draft = new_draft(method, target)
    run = draft.run

    def damaged(*arguments):
        logits, *others = run(*arguments) if method == "eagle3" else (run(*arguments),)
        logits = None if logits is None else damage(logits)
        return (logits, *others) if others else logits

    monkeypatch.setattr(draft, "run", damaged)
    engine = Engine(target, draft, method, 4, **rules)
    outs = engine.generate(PROMPTS, SETTINGS)
    plain = Engine(target).generate(PROMPTS, SETTINGS)
    same = 3 if "verification" not in rules and (proposed == 0 or not rules) else 2  # where numbers of a position decide alone, or p does
    assert [out.token_ids for out in outs[:same]] == [out.token_ids for out in plain[:same]]
    assert [out.finish_reason for out in outs] == ["length"] * 3
    if proposed is not None:
        assert [out.stats.proposed for out in outs] == [proposed] * 3
    else:
        assert sum(out.stats.proposed for out in outs) > 40
    assert is_empty(engine)


@pytest.mark.parametrize("rules", RULES, ids=["greedy", "token", "block"])
@pytest.mark.parametrize("method", DRAFTED)
def test_what_stands_before_the_break_is_still_proposed(method, rules, monkeypatch):
    target = shared_target()
    draft = new_draft(method, target)
    engine = Engine(target, draft, method, 4, **rules)
    places: list[int] = []
    one_by_one, at_once = DraftSelector.next, DraftSelector.parallel

    def damaged(logits, at):
        places.extend(at)
        logits = logits.clone()
        logits[[row for row, place in enumerate(at) if place == 2], 0] = NAN
        return logits

    monkeypatch.setattr(DraftSelector, "next", lambda self, x, ns: one_by_one(self, damaged(x, [len(self._guesses[n]) for n in ns]), ns))
    monkeypatch.setattr(DraftSelector, "parallel", lambda self, x, ks: at_once(self, damaged(x, [d for k in ks for d in range(k)]), ks))
    outs = engine.generate(PROMPTS, SETTINGS)
    plain = Engine(target).generate(PROMPTS, SETTINGS)
    assert [out.token_ids for out in outs[:2]] == [out.token_ids for out in plain[:2]]
    assert max(places) == 3 and {p for out in outs for p in out.stats.proposed_per_cycle} <= {0, 1, 2}
    assert sum(out.stats.proposed for out in outs) > 20


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("rules", RULES, ids=["greedy", "token", "block"])
def test_a_target_whose_logits_are_no_numbers_ends_one_text_and_says_none_of_them(rules, value, monkeypatch):
    """From the fifth token of the second text on."""
    target = shared_target()
    engine = Engine(target, new_draft("pard2-td", target), "pard2-td", 4, **rules)
    expected = [out.token_ids for out in engine.generate(PROMPTS, SETTINGS)]
    place = expected[1][4]
    assert place not in PROMPTS[1] + expected[1][:4] + PROMPTS[0] + expected[0] + PROMPTS[2] + expected[2]
    run = target.run

    def broken(batch, rows, layers=()):
        output = run(batch, rows, layers)
        if output.logits is not None and len(output.logits) == batch.num_tokens:
            output.logits[batch.token_ids == place, 3] = value
        return output

    monkeypatch.setattr(target, "run", broken)
    outs = engine.generate(PROMPTS, SETTINGS)
    assert [outs[n].token_ids for n in (0, 2)] == [expected[0], expected[2]]
    assert outs[1].finish_reason == "error" and "NaN" in outs[1].error and outs[1].token_ids == expected[1][: len(outs[1].token_ids)]
    assert len(outs[1].token_ids) <= 5 and is_empty(engine)
