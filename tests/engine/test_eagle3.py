"""What the EAGLE-3 drafter proposes, reads and keeps, against a drafter without a cache, over many cycles.

The text is right whatever it proposes, so each known bug of others has a test here that it makes fail.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from engines import is_empty, new_draft, shared_target
from fitted_eagle3 import PROMPTS
from pard2 import Engine, SamplingParams
from pard2.engine.draft_selection import DraftSelector
from pard2.engine.drafters.base import MOST_PENDING, DraftRequest
from pard2.engine.drafters.eagle3 import Eagle3Drafter
from pard2.engine.proposal import Proposal
from pard2.engine.sequence import Sequence
from pard2.models.eagle3 import Eagle3Draft, Eagle3Spec, layer_config
from plain_eagle3 import PlainEagle3
from tiny import random_prompts, tiny_target
from tiny_eagle3 import tiny_eagle3

# Of one token, which no feature precedes, of two, long ones, and some that the draft was fitted to.
RAGGED = [*PROMPTS[:4], [9], [4, 4], *random_prompts(1, seed=5), *PROMPTS[6:8]]
GREEDY = SamplingParams(max_tokens=20)
DRAWN = SamplingParams(max_tokens=20, temperature=0.9, seed=3)


@dataclass
class Seen:
    """One proposal: the text before it, the depth and nodes that it might have, and itself."""

    text: list[int]
    depth: int
    nodes: int
    temperature: float
    proposal: Proposal

    @property
    def paths(self) -> dict[tuple[int, ...], float]:
        """The probability of each path of a tree."""
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(self.proposal.token_ids.tolist(), self.proposal.parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        return dict(zip(paths, self.proposal.probabilities, strict=True))


def watch(engine: Engine) -> list[Seen]:
    """Every later proposal of the draft, whose passes have the rows that they are said to have."""
    seen: list[Seen] = []
    rows: list[int] = []
    states = engine.draft.states
    engine.draft.states = lambda token_ids, *others: (rows.append(len(token_ids)), states(token_ids, *others))[1]
    drafter = engine._cycle._drafter
    drafter = getattr(drafter, "_drafter", drafter)  # behind a match
    propose = drafter.propose

    def watching(requests, selector):
        rows.clear()
        drafted = propose(requests, selector)
        assert drafted.passes == tuple(rows), "the adaptive draft length learns times by them"
        running = {id(s.memory.draft): s for s in engine._scheduler.sequences}
        for number, (request, proposal) in enumerate(zip(requests, drafted.proposals, strict=True)):
            one = running[id(request.state)]
            seen.append(Seen(one.prompt + one.tokens, request.depth, selector.nodes(number), one.params.temperature or 1.0, proposal))
        return drafted

    drafter.propose = watching
    return seen


def check(engine: Engine, seen: list[Seen]) -> int:
    """That all of these are the plain drafter's; how many tokens there were."""
    plain, width = PlainEagle3(engine.target, engine.draft), getattr(engine.options, "tree_top_k", None) or 10
    for one in seen:
        if one.depth == 0:
            assert one.proposal.num_nodes == 0
        elif one.nodes == 0:
            assert one.proposal.token_ids.tolist() == plain.chain(one.text, one.depth), (len(one.text), one.depth)
        else:
            expected = plain.tree(one.text, one.depth, width, one.nodes, one.temperature)
            assert one.paths.keys() == expected.keys()
            assert [math.log(p) for p in one.paths.values()] == pytest.approx([expected[path] for path in one.paths], abs=2e-3)
    return sum(one.proposal.num_nodes for one in seen)


def run(draft: Eagle3Draft, target: Any = None, prompts: Any = RAGGED, params: Any = GREEDY, **options: Any) -> int:
    """Decode, check every proposal, and count what was accepted. Trees are narrow: `PlainEagle3` is slow."""
    options = {"tree_top_k": 3 if options.get("tree") else None} | options
    engine = Engine(target or shared_target(), draft, "eagle3", **options)
    seen = watch(engine)
    done = engine.generate(prompts, params)
    assert check(engine, seen) > (0 if "auto" in options.values() else 20) and is_empty(engine)
    return sum(one.stats.accepted for one in done)


# --- proposals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 4])
@pytest.mark.parametrize("draft_tokens", [1, 4, 9, "auto"])
def test_chains_are_those_of_the_plain_drafter(draft_tokens, max_batch):
    accepted = run(new_draft("eagle3", shared_target()), draft_tokens=draft_tokens, max_batch=max_batch)
    assert accepted > 20 or draft_tokens == "auto", "too little was accepted to tell what is kept of guesses that stand"


@pytest.mark.parametrize(("nodes", "width", "depth", "max_batch"), [(1, 2, 2, 1), (6, 1, 4, 3), (12, 3, 3, 4), (40, 4, 4, 1), (9, 3, "auto", 4)])
def test_trees_are_those_of_the_plain_drafter(nodes, width, depth, max_batch):
    options = {"draft_tokens": depth, "tree": nodes, "tree_top_k": width, "max_batch": max_batch}
    accepted = run(new_draft("eagle3", shared_target()), prompts=RAGGED[:6], **options)
    assert accepted > 12 or depth == "auto"


def test_drawn_texts_whose_guesses_mostly_fall():
    for tree in (0, 8):
        run(new_draft("eagle3", shared_target()), prompts=RAGGED[:5], params=DRAWN, draft_tokens=3, tree=tree, max_batch=2)


def test_prompts_longer_than_a_chunk():
    target = tiny_target(context=1024)
    prompts = [*random_prompts(1, seed=2), *([n % 60 for n in range(7, 7 + length * 7, 7)] for length in (511, 512, 513, 1, 650))]
    for tree in (0, 6):
        run(tiny_eagle3(target), target, prompts, SamplingParams(max_tokens=6), draft_tokens=3, tree=tree, max_batch=3)


@pytest.mark.parametrize(
    "spec",
    [
        {"norm_before_residual": True},
        {"norm_output": True},
        {"feature_norm": "joint"},
        {"feature_norm": "each", "norm_before_residual": True},
        {"target_layers": (0, 1, 2, 1)},
    ],
    ids=str,
)
def test_every_form_of_the_layer(spec):
    for tree in (0, 6):
        run(tiny_eagle3(shared_target(), **spec), prompts=RAGGED[:5], draft_tokens=3, tree=tree)


@pytest.mark.parametrize("tree", [0, 8])
def test_what_was_copied_is_read_with_its_true_features(tree):
    """By `ngram_first` the draft is not asked for some cycles."""
    draft, target = new_draft("eagle3", shared_target()), shared_target()
    engine = Engine(target, draft, "eagle3", 3, tree=tree, tree_top_k=3 if tree else None, ngram_first=2, ngram_min=1)
    seen = watch(engine)
    prompts = [[7, 8, 9, 4] * 4, PROMPTS[0] * 2, [3, 3, 3]]
    done = engine.generate(prompts, GREEDY)
    assert any(one.depth == 0 for one in seen) and check(engine, seen) > 20
    assert [one.token_ids for one in done] == [one.token_ids for one in Engine(target).generate(prompts, GREEDY)]
    assert is_empty(engine)


# --- bugs of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [0, 8])
def test_feature_off_by_one(tree, monkeypatch):
    """The token at t is read once, at t - 1, with the feature of t - 1; the first one never."""
    target, draft = shared_target(), new_draft("eagle3", shared_target())
    read: list[tuple[int, int, torch.Tensor]] = []
    fuse, states = draft.fuse, draft.states
    fused: list[torch.Tensor] = []

    def fusing(features):
        fused.append(fuse(features))
        return fused[-1]

    def noting(token_ids, feature, positions, attend):
        if fused and feature is fused[-1]:
            read.extend(zip(token_ids.tolist(), positions.tolist(), feature, strict=True))
        return states(token_ids, feature, positions, attend)

    monkeypatch.setattr(draft, "fuse", fusing)
    monkeypatch.setattr(draft, "states", noting)
    engine = Engine(target, draft, "eagle3", 4, max_batch=1, tree=tree)
    for prompt in RAGGED:
        read.clear()
        (out,) = engine.generate([prompt], GREEDY)
        text, features = prompt + out.token_ids, PlainEagle3(target, draft).features(prompt + out.token_ids)
        assert [position for _, position, _ in read] == list(range(len(read))) and len(read) > len(prompt)
        for token, position, feature in read:
            assert token == text[position + 1]
            torch.testing.assert_close(feature, features[position], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tree", [0, 8])
def test_kv_of_guesses_kept(tree):
    """After each cycle, what the cache holds of the text is what the text's own features make."""
    target, draft = shared_target(), new_draft("eagle3", shared_target())
    engine = Engine(target, draft, "eagle3", 4, max_batch=3, tree=tree)
    plain, drafter = PlainEagle3(target, draft), engine._cycle._drafter
    requests = [engine.submit(prompt, GREEDY) for prompt in RAGGED[:5]]
    compared = 0
    while not engine.idle:
        engine.step()
        for sequence in engine._scheduler.sequences:
            state, text = sequence.memory.draft, sequence.prompt + sequence.tokens
            read = state.num_computed_tokens
            assert read + len(state.pending) == len(text) - 1
            if read:
                keys, values = (part[state.region.start :][:read] for part in drafter.cache._layers[0])
                _, _, k, v = plain.layer(text[1 : read + 1], plain.features(text)[:read])
                torch.testing.assert_close(keys, k, rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(values, v, rtol=1e-3, atol=1e-3)
                compared += read
    assert compared > 300 and sum(out.stats.accepted for request in requests for out in request.completions()) > 20


def test_layer_ids_counted_one_lower():
    """As DFlash counts them: the draft gets the states that transformers calls by these numbers."""
    target = shared_target()
    draft = tiny_eagle3(target, target_layers=(0, 1))
    engine = Engine(target, draft, "eagle3", 2, max_batch=1)
    told, prefill = [], engine._cycle._drafter.prefill
    engine._cycle._drafter.prefill = lambda chunks: (told.append(chunks[0].features), prefill(chunks))
    engine.generate([[5, 9, 2]], SamplingParams(max_tokens=4))
    states = target.model(input_ids=torch.tensor([[5, 9, 2]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(told[0], torch.cat([states[0][0], states[1][0]], -1), rtol=1e-4, atol=1e-4)


def test_d2t_as_absolute_ids():
    """Ids of the draft's vocabulary are no ids of the target: here they are in no order at all."""
    target = shared_target()
    sorted_draft = tiny_eagle3(target)
    ids = sorted_draft.token_ids[torch.randperm(31, generator=torch.Generator().manual_seed(2))]
    draft = Eagle3Draft(sorted_draft.config, sorted_draft.spec, ids, target.model.get_input_embeddings()).eval().requires_grad_(False)
    draft.load_state_dict(sorted_draft.state_dict())
    for options in ({}, {"tree": 8, "tree_top_k": 3}, {"params": DRAWN, "draft_sampling": "sampled"}):
        engine = Engine(target, draft, "eagle3", 3, **{name: value for name, value in options.items() if name != "params"})
        seen = watch(engine)
        engine.generate(RAGGED[:5], options.get("params", GREEDY))
        assert {token for one in seen for token in one.proposal.token_ids.tolist()} <= set(ids.tolist())
        assert "params" in options or check(engine, seen) > 20


def test_rope_or_window_lost():
    """A draft's own frequencies and window, which differ from its target's."""
    target = shared_target()
    run(tiny_eagle3(target, config={"rope_parameters": {"rope_type": "default", "rope_theta": 25.0}}), prompts=RAGGED[:5], draft_tokens=3)
    sizes = layer_config(target.config).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps")
    config = transformers.Qwen3Config(
        **{name: sizes[name] for name in names},
        **{"num_hidden_layers": 1, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0, "tie_word_embeddings": False},
    )
    spec = Eagle3Spec(target_layers=(1, 2), target_hidden_size=32)
    torch.manual_seed(4)
    draft = Eagle3Draft(config, spec, torch.arange(0, 61, 2), target.model.get_input_embeddings()).eval().requires_grad_(False)
    for parameter in draft.parameters():
        parameter.normal_(0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    for tree in (0, 8):
        run(draft, prompts=RAGGED[:5], draft_tokens=3, tree=tree)


# --- where it ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [0, 8])
def test_a_draft_with_a_shorter_context_than_its_targets(tree):
    """It proposes as its definition says up to its last position, and nothing after it."""
    target = shared_target()
    draft = tiny_eagle3(target, config={"max_position_embeddings": 20})
    engine = Engine(target, draft, "eagle3", 4, tree=tree, tree_top_k=3 if tree else None, max_batch=3)
    seen = watch(engine)
    prompts = [PROMPTS[0], [5], list(range(19)), list(range(20)), list(range(30))]
    done = engine.generate(prompts, GREEDY)
    assert [one.token_ids for one in done] == [one.token_ids for one in Engine(target).generate(prompts, GREEDY)]
    assert check(engine, seen) > 20 and is_empty(engine)
    for one in seen:
        assert one.depth <= max(0, 20 - len(one.text) + 1)
    assert any(len(one.text) == 20 and one.depth == 1 for one in seen) and any(len(one.text) > 21 for one in seen)


@pytest.mark.parametrize("broken", ["fc", "midlayer.mlp.down_proj", "norm", "lm_head"])
@pytest.mark.parametrize("tree", [0, 8])
def test_weights_that_are_no_numbers_propose_nothing(tree, broken):
    target = shared_target()
    draft = tiny_eagle3(target)
    draft.get_submodule(broken).weight.fill_(math.nan)
    engine = Engine(target, draft, "eagle3", 4, tree=tree)
    done = engine.generate(RAGGED[:5], GREEDY)
    assert [one.token_ids for one in done] == [one.token_ids for one in Engine(target).generate(RAGGED[:5], GREEDY)]
    assert sum(one.stats.proposed for one in done) == 0 and is_empty(engine)


@pytest.mark.parametrize("tree", [0, 8])
def test_a_guess_that_breaks_the_draft_ends_the_path(tree):
    """A token whose own embedding is damaged: what was guessed before it is still proposed."""
    target = shared_target()
    draft = tiny_eagle3(target, own_embedding=True)
    engine = Engine(target, draft, "eagle3", 4, tree=tree, tree_top_k=3 if tree else None)
    seen = watch(engine)
    engine.generate(PROMPTS[:4], GREEDY)
    common = max(draft.token_ids.tolist(), key=[token for one in seen for token in one.proposal.token_ids.tolist()].count)
    draft.embed_tokens.weight[common] = math.nan
    seen.clear()
    done = engine.generate(PROMPTS[:4], GREEDY)
    assert [one.token_ids for one in done] == [one.token_ids for one in Engine(target).generate(PROMPTS[:4], GREEDY)]
    behind = [one for one in seen if common in one.proposal.token_ids.tolist()]
    assert behind and is_empty(engine)
    for one in behind:
        tokens = one.proposal.token_ids.tolist()
        if tree:
            assert not any(parent >= 0 and tokens[parent] == common for parent in one.proposal.parents)
        else:
            assert set(tokens[tokens.index(common) + 1 :]) <= {-1}


@pytest.mark.parametrize("nodes", [0, 8])
def test_nothing_asked_for_costs_no_pass_until_much_is_pending(nodes):
    """Features that nobody reads would pile up."""
    target = tiny_target(context=1024)
    drafter = Eagle3Drafter(tiny_eagle3(target), target.vocab_size, 2048, 4, 4, 2)
    state, features = drafter.open(MOST_PENDING + 8), torch.randn(MOST_PENDING, 64)
    one = Sequence(prompt=[1], params=GREEDY, seed=0, index=0, max_new_tokens=9, stop_token_ids=frozenset(), text=None)

    def passes(depth):
        selector = DraftSelector([one], "greedy", "token", 61, [nodes])
        drafted = drafter.propose([DraftRequest(state, depth)], selector)
        assert (drafted.proposals[0].num_nodes > 0) == (depth > 0)
        return drafted.passes

    drafter.update(state, [7] * (MOST_PENDING - 1), features[1:])
    assert passes(0) == ()
    drafter.update(state, [7], features[:1])
    assert passes(0) == (MOST_PENDING,) and (state.num_computed_tokens, state.pending, state.features) == (MOST_PENDING, [], [])
    drafter.update(state, [7, 8], features[:2])
    assert passes(2) == ((2, 1) if nodes == 0 else (2, 5))
    assert state.num_computed_tokens == MOST_PENDING + 2
    drafter.close(state)
    assert drafter.cache.free == drafter.cache.num_places


def test_fitted_to_its_target_it_is_often_right():
    """Else little of the above would have been tried."""
    target = shared_target()
    done = Engine(target, new_draft("eagle3", target), "eagle3", 5).generate(PROMPTS, SamplingParams(max_tokens=24))
    assert 1 + sum(one.stats.accepted for one in done) / sum(one.stats.cycles for one in done) > 2
