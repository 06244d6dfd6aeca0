"""Proposals copied from the text itself: what a scan of all of it finds, before a draft or without one."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engines import is_empty, new_engine, shared_target
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.engine.ngrams import NgramIndex
from pard2.engine.options import EngineOptions
from tiny import greedy, random_prompts, tiny_draft, tiny_lm_draft, tiny_target

NEW = 40
DRAWN = SamplingParams(NEW, temperature=0.8, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.3, seed=4)
BEFORE_A_DRAFT = {"ngram_first": 3, "ngram_min": 1, "ngram_cap": 2}
METHODS = ("vsd", "pard", "pard2-ti", "pard2-td")


def scan(text: list[int], shortest: int, longest: int) -> tuple[int, int]:
    """By definition: the longest match of the text's end, and where its latest earlier occurrence ends."""
    for size in range(min(longest, len(text) - 1), shortest - 1, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[len(text) - size :]:
                return size, end
    return 0, 0


def copied(text: list[int], place: int, count: int) -> list[int]:
    longer = list(text)
    for at in range(place, place + count):
        longer.append(longer[at])
    return longer[len(text) :]


def repeating_prompts() -> list[list[int]]:
    """Of few tokens, so that the ends of their texts have often been there before."""
    choose = random.Random(3)
    return [[choose.randrange(6) for _ in range(length)] for length in (3, 9, 20, 31)] + [[7, 8, 9, 4] * 4] + random_prompts(1, seed=8)


def texts(engine: Engine, params: SamplingParams) -> list[list[int]]:
    return [out.token_ids for out in engine.generate(repeating_prompts(), params)]


def watch(engine: Engine) -> list[tuple[list[int], int, list[int], tuple[int, ...] | None]]:
    """Of every later proposal: the text, the depth that was asked for, the tokens, and their parents."""
    seen: list[tuple[list[int], int, list[int], tuple[int, ...] | None]] = []
    drafter = engine._cycle._drafter
    propose = drafter.propose

    def watching(requests, selector):
        drafted = propose(requests, selector)
        of_state = {id(s.memory.draft): s.prompt + s.tokens for s in engine._scheduler.sequences}
        for request, proposal in zip(requests, drafted.proposals, strict=True):
            seen.append((of_state[id(request.state)], request.depth, proposal.token_ids.tolist(), proposal.parents))
        return drafted

    drafter.propose = watching
    return seen


# --- the index ----------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 5), st.integers(0, 12))
def test_the_index_finds_what_a_scan_finds(blocks, shortest, more, count):
    index, text = NgramIndex(shortest, shortest + more), []
    for block in blocks:
        index.read(block)
        text += block
        match, place = scan(text, shortest, shortest + more)
        assert index.match == match
        assert index.continuation(count) == (copied(text, place, count) if match else [])


def test_a_text_that_repeats_itself_is_continued_past_its_end():
    index = NgramIndex(2, 8)
    index.read([1, 2, 3, 1, 2, 3, 1, 2])
    assert (index.match, index.continuation(7)) == (5, [3, 1, 2, 3, 1, 2, 3])


# --- without a draft ----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("draft_tokens", [1, 4, "auto", "full"])
def test_without_a_draft_texts_are_those_of_plain_decoding(draft_tokens, max_batch):
    plain = Engine(shared_target())
    for options in ({"ngram_min": 1, "ngram_max": 3}, {}):
        engine = new_engine("ngram", draft_tokens, max_batch=max_batch, **options)
        done = list(engine.generate(repeating_prompts(), SamplingParams(NEW)))
        assert [out.token_ids for out in done] == texts(plain, SamplingParams(NEW))
        assert 0 < sum(out.stats.accepted for out in done) < sum(out.stats.proposed for out in done)
        assert texts(engine, DRAWN) == texts(plain, DRAWN)
        assert is_empty(engine)
    target = shared_target()
    assert texts(plain, SamplingParams(NEW)) == [greedy(target, prompt, NEW) for prompt in repeating_prompts()]


@pytest.mark.parametrize(("shortest", "longest"), [(1, 1), (1, 3), (2, 8)])
def test_proposals_are_those_of_a_scan(shortest, longest):
    engine = new_engine("ngram", "full", max_batch=3, ngram_min=shortest, ngram_max=longest)
    seen = watch(engine)
    done = list(engine.generate(repeating_prompts(), SamplingParams(NEW)))
    full = {len(prompt) + NEW - 1 for prompt in repeating_prompts()}  # with room for the target's own token alone
    proposed = 0
    for text, depth, tokens, _ in seen:
        match, place = scan(text, shortest, longest)
        assert tokens == (copied(text, place, depth) if match else [])
        assert depth > 0 or match == 0 or len(text) in full
        proposed += len(tokens)
    assert proposed > 100 and any(not tokens for _, _, tokens, _ in seen)
    assert max(len(tokens) for _, _, tokens, _ in seen) == 16 and all(out.stats.accepted <= out.stats.proposed for out in done)


@pytest.mark.parametrize("draft_tokens", ["auto", "full"])
def test_a_text_that_repeats_itself_takes_few_passes(draft_tokens):
    """`auto` learns that look-ups cost nothing and stand."""
    (out,) = new_engine("ngram", draft_tokens).generate([[3, 1, 4]], SamplingParams(max_tokens=120, logit_bias={7: 100.0}))
    assert out.token_ids == [7] * 120
    assert out.stats.acceptance_length > 4


def test_stop_strings_logprobs_and_completions_are_those_of_plain_decoding():
    params = SamplingParams(NEW, temperature=0.7, seed=3, n=3, logprobs=2)
    found = []
    for engine in (Engine(shared_target()), new_engine("ngram", 6, ngram_min=1)):
        outs = list(engine.generate(repeating_prompts()[:3], params))
        found.append(([out.token_ids for out in outs], [[(p.token_id, [t for t, _ in p.top]) for p in out.logprobs] for out in outs]))
    assert found[0] == found[1]


@pytest.mark.parametrize("rules", [{"draft_sampling": "sampled"}, {"draft_sampling": "sampled", "verification": "block"}], ids=str)
def test_copies_are_judged_alike_whatever_rule_drawn_proposals_have(rules):
    """They are not drawn. A seeded text is that of plain decoding."""
    engine = new_engine("ngram", 5, ngram_min=1, **rules)
    assert texts(engine, DRAWN) == texts(Engine(shared_target()), DRAWN)


# --- before a draft -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("draft_tokens", [3, "auto", "full"])
@pytest.mark.parametrize("method", METHODS)
def test_before_a_draft_texts_are_those_of_plain_decoding(method, draft_tokens, max_batch):
    engine = new_engine(method, draft_tokens, max_batch=max_batch, **BEFORE_A_DRAFT)
    seen = watch(engine)
    assert texts(engine, SamplingParams(NEW)) == texts(Engine(shared_target()), SamplingParams(NEW))
    assert any(depth and tokens for _, depth, tokens, _ in seen) and any(tokens and not depth for _, depth, tokens, _ in seen)
    assert texts(engine, DRAWN) == texts(Engine(shared_target()), DRAWN)
    assert is_empty(engine)


def test_a_match_is_copied_and_all_other_texts_of_the_batch_are_drafted():
    engine = new_engine("pard2-td", "full", max_batch=3, **BEFORE_A_DRAFT)
    seen = watch(engine)
    list(engine.generate(repeating_prompts(), SamplingParams(NEW)))
    longest = {len(prompt) + NEW - 1 for prompt in repeating_prompts()}
    lengths = set()
    for text, depth, tokens, _ in seen:
        match, place = scan(text, 1, 3)
        if match:
            assert depth == 0 and tokens == copied(text, place, len(tokens))
            assert len(tokens) == (16 if match == 3 else 2) or len(text) + len(tokens) in longest
            lengths.add((match, len(tokens)))
        else:
            assert len(tokens) == depth > 0 or len(text) in longest
    assert {(3, 16), (2, 2), (1, 2)} <= lengths


def test_a_number_of_draft_tokens_bounds_copies_too():
    engine = new_engine("pard", 3, ngram_first=2, ngram_min=1)
    seen = watch(engine)
    list(engine.generate(repeating_prompts(), SamplingParams(NEW)))
    assert max(len(tokens) for _, _, tokens, _ in seen) == 3


@pytest.mark.parametrize("method", METHODS)
def test_what_the_draft_did_not_read_meanwhile_it_reads_with_its_next_proposal(method):
    """Its proposal after a copy is that of an engine for which all of the text before was a prompt."""
    target = tiny_target()
    draft = tiny_lm_draft() if method == "vsd" else None
    engine = Engine(target, draft, method, 4, **BEFORE_A_DRAFT) if draft else new_engine(method, 4, target, **BEFORE_A_DRAFT)
    seen = watch(engine)
    list(engine.generate([repeating_prompts()[2]], SamplingParams(NEW)))
    after = [now for before, now in pairwise(seen) if now[1] == 4 and before[1] == 0 and before[2]]
    assert after, "the draft was never asked after a copy"
    for text, _, tokens, _ in after:
        fresh = new_engine(method, 4, target) if draft is None else Engine(target, draft, method, 4)
        theirs = watch(fresh)
        list(fresh.generate([text[:-1]], SamplingParams(max_tokens=6)))
        assert theirs[0][0] == text and theirs[0][2] == tokens


def test_where_trees_are_proposed_a_match_gives_a_chain():
    for tree in (6, "auto"):
        engine = new_engine("pard2-td", "full", tree=tree, max_batch=2, **BEFORE_A_DRAFT)
        seen = watch(engine)
        done = list(engine.generate(repeating_prompts(), SamplingParams(NEW)))
        assert [out.token_ids for out in done] == texts(Engine(shared_target()), SamplingParams(NEW))
        assert any(parents for _, depth, _, parents in seen if depth)
        assert any(tokens for _, depth, tokens, _ in seen if not depth) and not any(parents for _, depth, _, parents in seen if not depth)
        # What was copied is verified, and not cut to a size that suits trees.
        assert max(out.stats.proposed_per_cycle[i] for out in done for i in range(out.stats.cycles)) > 6


def test_copies_teach_the_draft_length_nothing():
    """They are not the draft's: neither its acceptance rates nor the credit of its trials may count them."""
    engine = new_engine("pard2-td", "auto", max_batch=1, ngram_first=1)
    lengths, learnt = engine._cycle._lengths, []
    observe = lengths.observe
    lengths.observe = lambda cycle: (learnt.append(cycle), observe(cycle))
    (out,) = engine.generate([[7, 8] * 12], SamplingParams(NEW))
    matched = [cycle for cycle in learnt if cycle.verify_rows > 1 and not cycle.draft_rows]
    assert matched and out.stats.accepted > 0
    assert all(sum(cycle.proposed) == sum(cycle.accepted) == 0 for cycle in matched)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngram_min": 0}, "^`ngram_min` 0: give a number of tokens from 1 to 32$"),
        ({"ngram_max": 0}, "^`ngram_max` 0: give a number of tokens from 1 to 32$"),
        ({"ngram_first": 0}, "^`ngram_first` 0: give a number of tokens from 1 to 32$"),
        ({"ngram_cap": 0}, "^`ngram_cap` 0: "),
        ({"ngram_max": None}, "^`ngram_max` None: "),
        ({"ngram_min": 2.5}, "^`ngram_min` 2.5: "),
        ({"ngram_first": True}, "^`ngram_first` True: "),
        ({"ngram_min": 9}, "^`ngram_min` 9 is above `ngram_max` 8; give a smaller `ngram_min`$"),
        ({"ngram_min": 5, "ngram_first": 4}, "^`ngram_min` 5 is above `ngram_first` 4; "),
        ({"ngram_first": 8, "method": "ar"}, "^`ngram_first` 8: `method` ar has no draft that a match could come before; "),
        ({"ngram_first": 8, "method": "ngram"}, "^`ngram_first` 8: `method` ngram has no draft"),
        ({"tree": 4, "method": "ngram"}, "^`tree` 4: `method` ngram proposes no trees"),
    ],
)
def test_options_that_mean_nothing(options, message):
    with pytest.raises(Pard2Error, match=message) as refused:
        EngineOptions(**options)
    assert "\n" not in str(refused.value)


def test_a_match_before_a_draft_needs_one():
    with pytest.raises(Pard2Error, match="`method` ar has no draft"):
        Engine(tiny_target(), ngram_first=8)
    with pytest.raises(Pard2Error, match="`method` ar has no draft"):
        Engine.from_pretrained("/no/such/model", ngram_first=8)
    target = tiny_target()
    assert Engine(target, tiny_draft(target), ngram_first=8).method == "pard2-td"


def test_sizes_that_were_not_named_fit_those_that_were():
    assert EngineOptions().shortest_match == 2 and EngineOptions(ngram_max=1).shortest_match == 1
    assert EngineOptions(ngram_first=8).shortest_match == 4 and EngineOptions(ngram_first=3).shortest_match == 3
    assert EngineOptions(ngram_first=12, ngram_min=10).shortest_match == 10
    assert torch.cuda.is_available() or Engine(tiny_target(), None, "ngram").draft_tokens == 16
