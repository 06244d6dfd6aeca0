"""What the whole engine says when it samples, against what the target alone would
say, computed prefix by prefix.

Where proposals are greedy, a text is a function of its random numbers, so every token is checked. Where
they are drawn, the first tokens of many seeded texts are counted and compared with their exact
distribution. The seeds are fixed: a result repeats, and the engine as it should be would fail for less than
one in a million choices of them.
"""

import dataclasses
import itertools
import math
import random
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest
import torch

from pard2 import Engine, SamplingParams
from pard2.checkpoints.pruning import cut_draft
from pard2.engine import cycle, randomness, token_selection, verification
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.randomness import Purpose, uniforms
from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target
from tiny import set_eos, tiny_draft, tiny_lm_draft, tiny_model, tiny_target
from tiny_eagle3 import tiny_eagle3

VOCABULARY, MASK = 5, 4  # the mask token is an ordinary one to the target, which says it now and then
PROMPT = [1, 2, 0]
DEPTH = 4  # tokens whose joint distribution is compared
SAMPLES = 560  # 7 seeds of 16 completions for each of 5 K
FAIR = 1e-9  # smallest chance allowed; where 10 are expected in each cell, chi-square's tail is right to far better than 1 in 1000

# Every processor, alone and in company.
SETTINGS = {
    "plain": {"temperature": 1.0},
    "temperature": {"temperature": 0.6},
    "top-k": {"temperature": 1.3, "top_k": 3},
    "top-p": {"temperature": 1.0, "top_p": 0.75},
    "min-p": {"temperature": 1.2, "min_p": 0.2},
    "repetition": {"temperature": 1.0, "repetition_penalty": 2.5},
    "presence": {"temperature": 1.0, "presence_penalty": 1.8},
    "frequency": {"temperature": 1.0, "frequency_penalty": 1.5},
    "bias": {"temperature": 1.0, "logit_bias": {0: 1.5, 3: -2.0}},
    "all": {
        "temperature": 0.8,
        "top_k": 4,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.6,
        "logit_bias": {2: 0.7},
    },
}
# Counting takes many texts, so there processors share them.
COUNTED = {
    "plain": {"temperature": 1.0},
    "truncated": {"temperature": 1.3, "top_k": 4, "top_p": 0.9, "min_p": 0.1},
    "penalised": {"temperature": 1.0, "repetition_penalty": 1.5, "presence_penalty": 1.2, "frequency_penalty": 1.5},
    "all": SETTINGS["all"],
}
KS: list[int | str] = [1, 2, 3, 4, "auto"]
DRAFTED = ["vsd", "pard", "pard2-ti", "pard2-td", "eagle3"]


# --- what the target alone would say -----------------------------------------------------------------


def naive_distribution(
    logits: list[float], params: SamplingParams, prompt: list[int], answer: tuple[int, ...], eos: int | None = None
) -> list[float]:
    """The definition of each processor, token by token."""
    scores = dict(enumerate(logits))
    for token in scores:
        scores[token] += (params.logit_bias or {}).get(token, 0.0)
        if token in prompt or token in answer:
            scores[token] = scores[token] / params.repetition_penalty if scores[token] > 0 else scores[token] * params.repetition_penalty
        if token in answer:
            scores[token] -= params.presence_penalty + params.frequency_penalty * answer.count(token)
        scores[token] /= params.temperature
    order = sorted(scores, key=lambda token: -scores[token])
    if len(answer) < params.min_tokens:
        order = [token for token in order if token != eos]
    if params.top_k:
        order = order[: params.top_k]
    weights = {token: math.exp(scores[token] - scores[order[0]]) for token in order}
    total, seen, kept = sum(weights.values()), 0.0, []
    for token in order:
        if seen < params.top_p * total and weights[token] >= params.min_p:
            kept.append(token)
        seen += weights[token]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


@cache
def world(eos: int | None = None) -> tuple[Target, dict[tuple[int, ...], list[float]]]:
    """A target, and its logits after the prompt and each answer of fewer than DEPTH tokens, by
    transformers' own forward pass."""
    target = tiny_target(seed=3, vocab=VOCABULARY, hidden=16, layers=2, context=32, initializer_range=0.35)
    if eos is not None:
        set_eos(target, eos)
    logits = {}
    for length in range(DEPTH):
        answers = list(itertools.product(range(VOCABULARY), repeat=length))
        with torch.no_grad():
            rows = target.model(input_ids=torch.tensor([PROMPT + list(answer) for answer in answers])).logits[:, -1]
        logits |= dict(zip(answers, rows.tolist(), strict=True))
    return target, logits


def exact_texts(params: SamplingParams, eos: int | None = None) -> dict[tuple[int, ...], float]:
    """The probability of each beginning of an answer, DEPTH tokens long or ended by `eos` before."""
    _, logits = world(eos)
    texts, unfinished = {}, {(): 1.0}
    for _ in range(DEPTH):
        longer = {}
        for answer, chance in unfinished.items():
            for token, p in enumerate(naive_distribution(logits[answer], params, PROMPT, answer, eos)):
                if p > 0:
                    (texts if token == eos else longer)[(*answer, token)] = chance * p
        unfinished = longer
    return texts | unfinished


def chance_of(counts: Counter[tuple[int, ...]], texts: dict[tuple[int, ...], float]) -> float:
    """Pearson's chi-square test: the chance of such counts or odder ones, at most, by whole texts, by
    pairs and by single tokens."""
    views = [slice(None), *(slice(i, i + width) for width in (1, 2) for i in range(DEPTH + 1 - width))]
    chances = []
    for view in views:
        seen, expected = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
        for text, count in counts.items():
            seen[text[view]] += count
        for text, p in texts.items():
            expected[text[view]] += p * counts.total()
        if any(cell not in expected for cell in seen):
            return 0.0  # the target never says this
        chances.append(_pearson(seen, expected))
    return min(1.0, len(views) * min(chances))


def _pearson(seen: Counter[tuple[int, ...]], expected: Counter[tuple[int, ...]]) -> float:
    """Rare cells are pooled until 10 are expected in each."""
    cells = [[0.0, 0.0]]
    for cell, count in sorted(expected.items(), key=lambda item: (item[1], item[0])):
        if cells[-1][0] >= 10:
            cells.append([0.0, 0.0])
        cells[-1][0] += count
        cells[-1][1] += seen[cell]
    if len(cells) == 1:
        return 1.0
    statistic = sum((count - wanted) ** 2 / wanted for wanted, count in cells)
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


def test_the_statistic_knows_fair_counts_from_false_ones():
    texts = exact_texts(SamplingParams(temperature=1.0))
    drawn = random.Random(1).choices(list(texts), list(texts.values()), k=SAMPLES)
    assert chance_of(Counter(drawn), texts) > 0.001
    assert chance_of(Counter(drawn), exact_texts(SamplingParams(temperature=0.7))) < FAIR
    assert chance_of(Counter(drawn), exact_texts(SamplingParams(temperature=1.0, frequency_penalty=1.0))) < FAIR


# --- what the engine says ---------------------------------------------------------------------------


def new_engine(target: Target, method: str, k: int | str, **rules: str | int) -> Engine:
    """With a draft that is neither right nor useless."""
    if method == "ngram":
        draft, rules = None, rules | {"ngram_min": 1}
    elif method == "vsd":
        draft = tiny_lm_draft(vocab=VOCABULARY, hidden=16, context=32)
    elif method == "pard":
        lm = tiny_model(seed=6, vocab=VOCABULARY, hidden=16, layers=1, context=32, initializer_range=0.25)
        draft = Draft(lm, DraftSpec(mask_token=MASK, draft_tokens=4), None, name="tiny-pard")
    elif method == "eagle3":
        draft = tiny_eagle3(target, 4, draft_tokens=4)
    else:
        draft = tiny_draft(target, [0], 4, projection=0.3, mask_token=MASK)
    return Engine(target, draft, method, k, max_batch=64, **rules)


def first_tokens(engine: Engine, params: SamplingParams, count: int, base: int) -> list[tuple[int, ...]]:
    """Beginnings of `count` answers, some from seeds of their own, some from the
    n completions of one seed."""
    # One token comes with the prompt, and after K proposals one is the target's own: shorter
    # answers would never ask for K.
    room = max(DEPTH, engine.draft_tokens + 2)
    each = [dataclasses.replace(params, max_tokens=room, n=16, seed=base + i) for i in range(count // 16)]
    return [tuple(out.token_ids[:DEPTH]) for out in engine.generate([PROMPT] * len(each), each)]


def sampled_counts(params: SamplingParams, method: str, rule: str, ks: list[int | str] = KS, eos: int | None = None) -> Counter[tuple[int, ...]]:
    counts: Counter[tuple[int, ...]] = Counter()
    for i, k in enumerate(ks):
        engine = new_engine(world(eos)[0], method, k, draft_sampling="sampled", verification=rule)
        counts.update(first_tokens(engine, params, SAMPLES // len(ks), 1000 * i))
    return counts


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("setting", COUNTED)
def test_drawn_proposals_leave_the_targets_distribution(setting, rule):
    """Every method with either rule, every processor with either rule."""
    method = DRAFTED[(list(COUNTED).index(setting) + 2 * (rule == "block")) % len(DRAFTED)]
    params = SamplingParams(**COUNTED[setting])
    counts = sampled_counts(params, method, rule)
    assert counts.total() == SAMPLES
    assert chance_of(counts, exact_texts(params)) > FAIR


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("method", ["ngram", *DRAFTED])
def test_copies_leave_the_targets_distribution(method, rule, monkeypatch):
    """Alone, and in turn with drawn proposals, whose blocks look at numbers of later positions."""
    params = SamplingParams(**COUNTED["penalised" if method == "vsd" else "plain" if method == "pard" else "all"])
    counts, nodes = Counter[tuple[int, ...]](), Counter[bool]()

    def counting(sequences, logits, proposals, token_ids, rule):
        nodes.update({copied: sum(p.num_nodes for p in proposals if (p.q is None) == copied) for copied in (True, False)})
        return token_selection.verify(sequences, logits, proposals, token_ids, rule)

    monkeypatch.setattr(cycle, "verify", counting)
    for i, k in enumerate(KS):
        before_a_draft = {} if method == "ngram" else {"ngram_first": 2, "ngram_min": 1, "ngram_cap": 2}
        engine = new_engine(world()[0], method, k, draft_sampling="sampled", verification=rule, **before_a_draft)
        counts.update(first_tokens(engine, params, SAMPLES // len(KS), 1000 * i))
    assert chance_of(counts, exact_texts(params)) > FAIR
    assert nodes[True] > 200 and (nodes[False] > 200 or method == "ngram")


@pytest.mark.parametrize("method", ["pard2-td", "eagle3"])
@pytest.mark.parametrize("rule", ["token", "block"])
def test_tokens_that_a_draft_cannot_propose_are_said_as_often_as_others(rule, method):
    """Two of the five have a chance of zero in every proposal."""
    target, _ = world()
    if method == "eagle3":
        draft = tiny_eagle3(target, 3)
    else:
        draft = cut_draft(target, [0], MASK, 4, (-1,), shared_vocabulary=True, vocabulary=torch.tensor([0, 2, 3])).eval()
    params = SamplingParams(**SETTINGS["all"])
    counts: Counter[tuple[int, ...]] = Counter()
    for i, k in enumerate(KS):
        engine = Engine(target, draft, method, k, max_batch=64, draft_sampling="sampled", verification=rule)
        counts.update(first_tokens(engine, params, SAMPLES // len(KS), 1000 * i))
    assert chance_of(counts, exact_texts(params)) > FAIR
    assert {token for text in counts for token in text} == set(range(VOCABULARY))


@pytest.mark.parametrize(("method", "rule"), [("vsd", "block"), ("pard2-td", "block"), ("pard", "token"), ("eagle3", "token")])
def test_a_draft_that_breaks_down_now_and_then_leaves_the_targets_distribution(method, rule, monkeypatch):
    """Its logits are NaN wherever its favourite is one of two tokens: in every place of a
    block, and not in others."""

    def breaking(take):
        def broken(self, logits, which):
            favourites = logits.argmax(-1, keepdim=True)
            return take(self, logits.masked_fill((favourites == 1) | (favourites == 3), torch.nan), which)

        return broken

    for name in ("next", "parallel"):
        monkeypatch.setattr(DraftSelector, name, breaking(getattr(DraftSelector, name)))
    params = SamplingParams(**COUNTED["truncated"])
    counts = sampled_counts(params, method, rule)
    assert chance_of(counts, exact_texts(params)) > FAIR


@pytest.mark.parametrize(("method", "rule"), [("vsd", "block"), ("pard2-td", "token")])
def test_an_end_token_inside_an_accepted_block_ends_the_text_there(method, rule):
    """Texts of all lengths, each as often as the target would end there."""
    params, eos = SamplingParams(temperature=1.0), 3
    texts = exact_texts(params, eos)
    assert len({len(text) for text in texts}) == DEPTH
    assert chance_of(sampled_counts(params, method, rule, eos=eos), texts) > FAIR


@pytest.mark.parametrize(("method", "rule"), [("vsd", "token"), ("pard", "block"), ("pard2-td", "block"), ("pard2-ti", "token")])
def test_an_answer_that_may_not_end_yet_has_the_targets_distribution_without_its_end(method, rule):
    """The end has no chance in the first two places, inside of a block as well, then its usual one."""
    params, eos = SamplingParams(temperature=1.3, top_k=3, min_tokens=2), 3
    texts = exact_texts(params, eos)
    assert {len(text) for text in texts} == {3, 4}
    assert chance_of(sampled_counts(params, method, rule, eos=eos), texts) > FAIR


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_proposals_leave_every_token_to_its_number(setting):
    """By definition: the first token whose cumulative probability exceeds the number of its position.

    Every method, K 1 to 4 and auto.
    """
    params = SamplingParams(**SETTINGS[setting])
    target, logits = world()
    expected = []
    for seed, index in itertools.product(range(2), range(2)):
        answer: tuple[int, ...] = ()
        for position in range(DEPTH):
            u = float(uniforms(seed, index, position, 1, Purpose.TARGET))
            ends = itertools.accumulate(naive_distribution(logits[answer], params, PROMPT, answer))
            answer += (next(token for token, end in enumerate(ends) if u < end),)
        expected.append(answer)
    assert len(set(expected)) > 1
    turn = list(SETTINGS).index(setting)
    drafting = [new_engine(target, method, KS[(turn + i) % len(KS)]) for i, method in enumerate(["ngram", *DRAFTED])]
    drafting.append(new_engine(target, DRAFTED[turn % len(DRAFTED)], 4, ngram_first=2))
    for engine in (Engine(target), *drafting):
        each = [dataclasses.replace(params, max_tokens=6, n=2, seed=seed) for seed in range(2)]
        outs = engine.generate([PROMPT] * 2, each)
        assert [tuple(out.token_ids[:DEPTH]) for out in outs] == expected, (engine.method, engine.draft_tokens)


def test_proposals_are_both_accepted_and_rejected():
    """Else the tests above would compare the target with itself."""
    for rules in ({}, {"draft_sampling": "sampled"}, {"draft_sampling": "sampled", "verification": "block"}):
        for method in ("ngram", *DRAFTED):
            params = SamplingParams(max_tokens=6, temperature=1.0, n=32, seed=5)
            stats = [out.stats for out in new_engine(world()[0], method, 4, **rules).generate([PROMPT], params)]
            accepted, proposed = sum(s.accepted for s in stats), sum(s.proposed for s in stats)
            assert 0.05 < accepted / proposed < 0.95, (method, rules, accepted / proposed)


# --- bugs that others shipped (METHOD: section 6), put in on purpose ----------------------------------


def peek(sequences, logits, proposals, token_ids, rule):
    """Proposes up to the first token that is not the draft's own favourite, having looked at it."""
    ends, kept, left = [], [], []
    counts = [proposal.num_nodes + 1 for proposal in proposals]
    for proposal, rows, ids in zip(proposals, logits.split(counts), token_ids.split(counts), strict=True):
        doubted = [] if proposal.q is None else (proposal.q.argmax(-1) != proposal.token_ids).nonzero()[:, 0].tolist()
        end = doubted[0] if doubted else proposal.num_nodes
        kept.append(proposal.first(end))
        ends.append(rows[: end + 1])
        left.append(ids[: end + 1])
    return token_selection.verify(sequences, torch.cat(ends), kept, torch.cat(left), rule)


def share_one_generator(monkeypatch):
    number = randomness._uniform
    monkeypatch.setattr(randomness, "_uniform", lambda seed, index, position, purpose, block: number(seed, index, position, 0, block))


def penalise_once_per_block(monkeypatch):
    probabilities = token_selection.probabilities
    monkeypatch.setattr(
        token_selection, "probabilities", lambda logits, params, counts, proposed, *_: probabilities(logits, params, counts, proposed[:0])
    )


def choose_k_by_dropped_tokens(monkeypatch):
    monkeypatch.setattr(cycle, "verify", peek)


def draw_the_residual_from_p(monkeypatch):
    monkeypatch.setattr(verification, "_remainder", lambda p, q, accepted, *rest: p.index_select(0, accepted[None])[0].double())


def judge_by_another_q(monkeypatch):
    decide = token_selection.choose_by_rejection
    monkeypatch.setattr(token_selection, "choose_by_rejection", lambda p, q, *others: decide(p, q.sqrt(), *others))


def give_each_completion_the_same_numbers(monkeypatch):
    number = randomness._uniform
    monkeypatch.setattr(randomness, "_uniform", lambda seed, index, *rest: number(seed, 0, *rest))


FAULTS = [
    (share_one_generator, "plain"),
    (choose_k_by_dropped_tokens, "plain"),
    (draw_the_residual_from_p, "plain"),
    (judge_by_another_q, "plain"),
    (give_each_completion_the_same_numbers, "plain"),
    (penalise_once_per_block, "penalised"),
]


@pytest.mark.parametrize(("fault", "setting"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_the_distribution_gives_away(fault, setting, monkeypatch):
    fault(monkeypatch)
    params = SamplingParams(**COUNTED[setting])
    assert chance_of(sampled_counts(params, "vsd", "token", [4]), exact_texts(params)) < FAIR


@pytest.mark.parametrize("method", DRAFTED)
def test_a_number_that_a_block_was_dropped_for_is_not_met_again(method, monkeypatch):
    """Too small an effect for counts: block verification drops proposals for their values, so a later block
    needs numbers of its own."""
    number, blocks = randomness._uniform, defaultdict(set)

    def recorded(seed, index, position, purpose, block):
        blocks[purpose, index, position].add(block)
        return number(seed, index, position, purpose, block)

    monkeypatch.setattr(randomness, "_uniform", recorded)
    engine = new_engine(world()[0], method, 4, draft_sampling="sampled", verification="block")
    engine.generate([PROMPT], SamplingParams(max_tokens=8, temperature=1.0, n=8, seed=3))
    for purpose in (Purpose.DRAFT, Purpose.ACCEPT):
        used = [starts for (its, _, _), starts in blocks.items() if its == purpose]
        assert all(start < 8 for starts in used for start in starts), "numbers that blocks share"
        assert any(len(starts) > 1 for starts in used), "nothing was dropped, so nothing could have been met again"


# --- those that show in single texts ------------------------------------------------------------------


@pytest.mark.parametrize("rules", [{}, {"draft_sampling": "sampled"}, {"draft_sampling": "sampled", "verification": "block"}], ids=str)
def test_a_seed_neither_uses_nor_moves_the_global_generators(rules):
    engine = new_engine(world()[0], "pard2-td", 3, **rules)
    params = SamplingParams(max_tokens=8, temperature=1.0, n=8, seed=11)
    texts = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        np.random.seed(global_seed)
        random.seed(global_seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        texts.append([out.token_ids for out in engine.generate([PROMPT], params)])
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert texts[0] == texts[1] and len({tuple(text) for text in texts[0]}) > 1


@pytest.mark.parametrize("method", DRAFTED)
def test_logprobs_are_the_targets_and_not_the_drafts(method):
    """Of accepted tokens too, and before any processing."""
    engine = new_engine(world()[0], method, 3, draft_sampling="sampled")
    params = SamplingParams(max_tokens=DEPTH, temperature=0.7, top_k=3, frequency_penalty=0.5, n=24, seed=2, logprobs=2)
    outs = engine.generate([PROMPT], params)
    assert sum(out.stats.accepted for out in outs) > 5
    for out in outs:
        for position, said in enumerate(out.logprobs):
            expected = torch.tensor(world()[1][tuple(out.token_ids[:position])]).log_softmax(-1)
            assert said.token_id == out.token_ids[position]
            assert said.logprob == pytest.approx(float(expected[said.token_id]), abs=1e-4)
            best = expected.topk(2)
            assert [token for token, _ in said.top] == best.indices.tolist()
            assert [value for _, value in said.top] == pytest.approx(best.values.tolist(), abs=1e-4)
