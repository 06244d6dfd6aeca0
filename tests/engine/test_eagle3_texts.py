"""Whatever an EAGLE-3 draft proposes, the text is plain decoding's."""

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

from engines import is_empty, new_draft, run_dry, shared_target
from fitted_eagle3 import PROMPTS, fitted_eagle3
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.engine.options import EngineOptions
from pard2.kernels.weight_format import weight_formats
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from tiny import greedy, perfect_draft, random_prompts, tiny_draft, tiny_lm_draft, tiny_target
from tiny_eagle3 import tiny_eagle3

LONG = (1, 1, 2, 511, 512, 513, 640)  # a chunk of a prompt has 512
# Settings that prompts take in turn; answers of all lengths, so that texts join and leave.
SETTINGS: list[dict[str, Any]] = [
    {},
    {"stop_token_ids": [7, 20, 33]},
    {"repetition_penalty": 1.3},
    {"logit_bias": {5: 4.0, 11: -100.0}, "frequency_penalty": 0.5},
    {"stop_token_ids": [3, 14, 40], "min_tokens": 6},
    {"temperature": 0.8, "seed": 11},
    {},
    {"temperature": 1.2, "top_k": 12, "top_p": 0.9, "presence_penalty": 0.7, "seed": 12},
]


@cache
def world() -> tuple[Target, Eagle3Draft, list[list[int]], list[SamplingParams], list[list[int]]]:
    """A target, a draft that knows some of its texts, 60 prompts, and what plain decoding says to them."""
    target = tiny_target(context=1024)
    prompts = [*random_prompts(53, 40, seed=21), *([(7 * n + length) % 60 for n in range(length)] for length in LONG)]
    settings = [SETTINGS[n % len(SETTINGS)] for n in range(len(prompts))]
    params = [SamplingParams(max_tokens=one.get("min_tokens", 1) + (5 * n) % 27, **one) for n, one in enumerate(settings)]
    plain = [out.token_ids for out in Engine(target).generate(prompts, params)]
    return target, fitted_eagle3(target, prompts=[prompt for prompt in prompts if len(prompt) < 25]), prompts, params, plain


def test_the_texts_are_worth_testing_with():
    target, draft, prompts, params, plain = world()
    assert len(prompts) == 60 and len({tuple(text) for text in plain}) > 50 and draft.spec.draft_tokens < 12
    unlike = sum(text != greedy(target, prompt, len(text)) for text, prompt in zip(plain, prompts, strict=True))
    assert 20 < unlike < 50, "settings that change nothing"
    assert sum(len(text) < one.max_tokens for text, one in zip(plain, params, strict=True)) > 3, "nothing stops early"


@pytest.mark.parametrize(
    ("max_batch", "options"),
    [
        (1, {"draft_tokens": 3}),
        (5, {"draft_tokens": 1}),
        (5, {"draft_tokens": 12}),  # deeper than it was trained
        (16, {"draft_tokens": "full"}),
        (5, {"draft_tokens": "auto"}),
        (1, {"draft_tokens": 5, "tree": 12, "tree_top_k": 4}),
        (5, {"draft_tokens": "full", "tree": 60}),
        (5, {"draft_tokens": 9, "tree": 9, "tree_top_k": 1}),
        (16, {"draft_tokens": 3, "tree": 1}),
        (5, {"draft_tokens": "auto", "tree": "auto"}),
        (3, {"draft_tokens": 2, "tree": 7, "tree_top_k": 55}),
        (5, {"draft_tokens": 4, "ngram_first": 3, "ngram_min": 1}),
        (5, {"draft_tokens": 4, "tree": 10, "ngram_first": 3, "ngram_min": 1}),
    ],
    ids=str,
)
def test_sixty_ragged_prompts(max_batch, options):
    target, draft, prompts, params, plain = world()
    engine = Engine(target, draft, "eagle3", max_batch=max_batch, cache_tokens=2000, **options)
    done = engine.generate(prompts, params)
    assert [out.token_ids for out in done] == plain
    assert is_empty(engine) and engine.free_cache_tokens == 2000
    assert "auto" in options.values() or sum(out.stats.accepted for out in done) > 60


@pytest.mark.parametrize("architecture", ["qwen3", "mistral", "gemma2", "gpt2"])
def test_targets_of_other_kinds(architecture):
    """gpt2 fails past its last position, mistral and gemma2 have windows shorter than the texts."""
    target = tiny_target(architecture=architecture)
    prompts = random_prompts(5, 12, seed=3)
    draft = fitted_eagle3(target, prompts=prompts, steps=60)
    plain = [out.token_ids for out in Engine(target).generate(prompts, SamplingParams(max_tokens=24))]
    for options in ({}, {"tree": 12, "tree_top_k": 4}):
        done = Engine(target, draft, "eagle3", 4, max_batch=3, **options).generate(prompts, SamplingParams(max_tokens=24))
        assert [out.token_ids for out in done] == plain
        assert sum(out.stats.accepted for out in done) > 20


# --- memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tree": 30}, {"tree": "auto"}, {"ngram_first": 2}], ids=str)
def test_a_cache_of_just_what_a_request_needs(options):
    """A tree's nodes beside the text have places in the draft's cache, and none in the target's."""
    target, draft = shared_target(), new_draft("eagle3", shared_target())
    for prompt in PROMPTS[:4]:
        positions = len(prompt) + 24
        if options.get("tree") == 30 and positions <= 30:
            continue
        engine = Engine(target, draft, "eagle3", 7, cache_tokens=positions, **options)
        done = engine.generate([prompt] * 3, SamplingParams(max_tokens=24))
        assert [out.token_ids for out in done] == [greedy(target, prompt, 24)] * 3
        assert engine.free_cache_tokens == positions and is_empty(engine)


@pytest.mark.parametrize("tree", [0, 12])
def test_texts_up_to_the_last_position(tree):
    target = tiny_target(architecture="gpt2", context=32)
    prompt = (random_prompts(1, seed=1)[0] * 40)[:25]
    (out,) = Engine(target, tiny_eagle3(target), "eagle3", 6, tree=tree).generate([prompt], SamplingParams(max_tokens=100))
    assert out.token_ids == greedy(target, prompt, 8) and out.finish_reason == "length"


@pytest.mark.parametrize("tree", [0, 12])
def test_cancelled_streams_leave_nothing(tree):
    target, draft = shared_target(), new_draft("eagle3", shared_target())
    engine = Engine(target, draft, "eagle3", 4, tree=tree, max_batch=3)
    streams = [engine.stream(prompt, SamplingParams(max_tokens=30)) for prompt in PROMPTS[:5]]
    said = [next(stream).token_ids for stream in streams[:3]]
    streams[1].close()
    said[0] += tuple(token for step in streams[0] for token in step.token_ids)
    assert list(said[0]) == greedy(target, PROMPTS[0], 30)
    waiting = engine.submit(PROMPTS[5], SamplingParams(max_tokens=9))
    next(streams[3])
    for stream in streams[2:]:
        stream.close()
    run_dry(engine)
    assert waiting.completions()[0].token_ids == greedy(target, PROMPTS[5], 9)
    assert is_empty(engine)


# --- forms of weights ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    target = tiny_target(architecture="qwen3")
    target.model.save_pretrained(place / "target")
    save_draft(fitted_eagle3(target, steps=60, prompts=random_prompts(6, seed=3)), place / "draft")
    return str(place / "target"), str(place / "draft")


@pytest.mark.parametrize("draft_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "fbgemm", "onednn", "panels", "int8"])
def test_every_form_says_what_plain_decoding_says_in_it(directories, form, draft_dtype):
    """Of a target in bfloat16 or float32; a draft in the one dtype reads features in the other.

    In half precision our own products alone give a row the same bits whatever shares its pass.
    """
    if form not in weight_formats(torch.device("cpu"), torch.bfloat16):
        pytest.skip("this CPU has no such products")
    exact = form in ("panels", "int8")
    for dtype in ("bfloat16", "float32") if form in ("int8", "plain") else ("bfloat16",):
        target = load_target(directories[0], dtype, "cpu", form)
        draft = load_draft(directories[1], target, draft_dtype, weight_format="plain" if draft_dtype is torch.float32 else form)
        prompts, params = random_prompts(6, seed=3), SamplingParams(max_tokens=24, ignore_eos=True)
        plain = [out.token_ids for out in Engine(target, None, "ar", max_batch=1).generate(prompts, params)]
        accepted = 0
        for options in ({"max_batch": 1}, {"max_batch": 6}, {"tree": 9, "tree_top_k": 3}, {"tree": 9, "tree_top_k": 3, "max_batch": 1}):
            done = Engine(target, draft, "eagle3", 4, **options).generate(prompts, params)
            assert not (exact or dtype == "float32") or [out.token_ids for out in done] == plain, options
            accepted += sum(out.stats.accepted for out in done)
        assert accepted > 20


@pytest.mark.parametrize("form", ["panels", "int8", "fbgemm"])
def test_a_draft_in_another_form_proposes_nearly_the_same(form):
    if form not in weight_formats(torch.device("cpu"), torch.float32 if form == "int8" else torch.bfloat16):
        pytest.skip("this CPU has no such products")
    target, accepted = shared_target(), []
    for chosen in ("plain", form):
        draft = new_draft("eagle3", target)
        if form != "int8":
            draft.bfloat16()
        draft.convert(chosen)
        done = Engine(target, draft, "eagle3", 4).generate(PROMPTS[:6], SamplingParams(max_tokens=20))
        assert [out.token_ids for out in done] == [greedy(target, prompt, 20) for prompt in PROMPTS[:6]]
        accepted.append(sum(out.stats.accepted for out in done))
    assert accepted[1] > 0.8 * accepted[0] > 20


# --- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": 9, "tree_top_k": 0}, "^`tree_top_k` 0: give a number of tokens from 1 to 64$"),
        ({"tree": 9, "tree_top_k": 65}, "^`tree_top_k` 65: give a number of tokens from 1 to 64$"),
        ({"tree": 9, "tree_top_k": 2.0}, "^`tree_top_k` 2.0: "),
        ({"tree": 9, "tree_top_k": True}, "^`tree_top_k` True: "),
        ({"tree_top_k": 4}, "^`tree_top_k` 4 is for the trees of `method` eagle3; add `tree`, or leave `tree_top_k` out$"),
        ({"tree_top_k": 4, "method": "eagle3"}, "; add `tree`, or leave"),
        (
            {"tree": 9, "tree_top_k": 4, "method": "pard2-td"},
            "^`tree_top_k` 4 is for the trees of `method` eagle3; use it, or leave `tree_top_k` out$",
        ),
        ({"tree": 9, "draft_sampling": "sampled", "method": "eagle3"}, "^`tree` 9: the proposals of trees are greedy"),
    ],
)
def test_trees_that_mean_nothing(options, message):
    with pytest.raises(Pard2Error, match=message) as refused:
        EngineOptions(**options)
    assert "\n" not in str(refused.value)


def test_a_top_k_that_the_draft_does_not_have():
    target = shared_target()
    draft = tiny_eagle3(target, 8)
    with pytest.raises(Pard2Error, match="^`tree_top_k` 9: draft 'tiny-eagle3' can propose 8 tokens; give so many at most$"):
        Engine(target, draft, tree=5, tree_top_k=9)
    assert Engine(target, draft, tree=5, tree_top_k=8).options.tree_top_k == 8
    (out,) = Engine(target, draft, tree=20).generate([PROMPTS[0]], SamplingParams(max_tokens=12))  # 10 is no demand
    assert out.token_ids == greedy(target, PROMPTS[0], 12)
    with pytest.raises(Pard2Error, match="^`tree_top_k` 4 is for the trees of `method` eagle3; use it, or leave `tree_top_k` out$"):
        Engine(target, tiny_draft(target), tree=5, tree_top_k=4)  # whose method is chosen by the draft


def test_a_method_for_another_kind_of_draft():
    target = shared_target()
    eagle3 = tiny_eagle3(target)
    for draft, best in ((tiny_draft(target), "pard2-td"), (tiny_lm_draft(), "vsd"), (perfect_draft(target), "vsd")):
        with pytest.raises(Pard2Error, match=f"^`method` eagle3: draft .* is no EAGLE-3 draft; use `method` {best}, or another draft with `draft`$"):
            Engine(target, draft, "eagle3")
    for method in ("vsd", "pard", "pard2-ti", "pard2-td"):
        with pytest.raises(Pard2Error, match=f"^`method` {method}: draft 'tiny-eagle3' is an EAGLE-3 draft; use `method` eagle3, or another draft"):
            Engine(target, eagle3, method)
    with pytest.raises(Pard2Error, match="^`method` eagle3 needs a draft; name one with `draft`, or use `method` ar or ngram$"):
        Engine(target, None, "eagle3")
    for method in ("ar", "ngram", "eagle3", None):  # a draft that is not used does no harm
        engine = Engine(target, eagle3, method)
        assert engine.method == (method or "eagle3")
    with pytest.raises(Pard2Error, match="^`cuda_graphs`"):
        Engine(target, eagle3, cuda_graphs=True)
    with pytest.raises(Pard2Error, match="^`draft` 'tiny-eagle3' was made for a vocabulary of 61, the target 'tiny-llama' has one of 50; name the"):
        Engine(tiny_target(vocab=50), eagle3)
    with pytest.raises(Pard2Error, match="^feature layer 9 does not exist"):
        Engine(target, tiny_eagle3(target, target_layers=(0, 9)))


def test_how_deep_proposals_may_be():
    """As many as were trained by default; more on request, for each depth is the same pass once more."""
    target = shared_target()
    draft = tiny_eagle3(target, draft_tokens=5)
    deepest = {asked: Engine(target, draft, draft_tokens=asked).draft_tokens for asked in ("auto", "full", 3, 12)}
    assert deepest == {"auto": 5, "full": 5, 3: 3, 12: 12}
    assert dataclasses.replace(EngineOptions(method="eagle3"), draft_tokens=12).most_draft_tokens(draft) == 12
