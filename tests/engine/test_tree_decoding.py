"""Trees leave the text what it is, whatever they are, and find more of it in a pass than chains do."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import is_empty
from pard2 import Engine, Pard2Error, SamplingParams
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.engine.proposal import Proposal
from pard2.engine.verification import agreeing_path, choose_coupled, choose_greedy
from tiny import greedy, pard_draft, random_prompts, tiny_draft, tiny_lm_draft, tiny_target

PROMPTS = random_prompts(4, seed=9)
ARCHITECTURES = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "phi3", "qwen3_moe", "opt"]
DRAWN = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, repetition_penalty=1.2, presence_penalty=0.5, seed=4)


def texts(engine, params, prompts=PROMPTS):
    return [out.token_ids for out in engine.generate(prompts, params)]


# --- the rule ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_on_chains_the_hosts_rule_is_that_on_tensors(said, data):
    """`choose_greedy` and `choose_coupled` are its readable twins."""
    proposed = data.draw(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=len(said) - 1, max_size=len(said) - 1))
    rows = torch.nn.functional.one_hot(torch.tensor(said), 3).float()
    u = torch.full((len(said),), 0.5, dtype=torch.float64)
    path = agreeing_path(said, proposed)
    tokens = torch.tensor(proposed, dtype=torch.long)
    for choices in (choose_greedy(rows, tokens), choose_coupled(rows, tokens, u)):
        assert path == list(range(int(choices.accepted)))
    assert path == agreeing_path(said, proposed, tuple(range(-1, len(proposed) - 1)))


def longest_agreeing(said, proposed, parents):
    """By looking at the path to every node."""
    best = []
    for node in range(len(proposed)):
        path, at = [], node
        while at >= 0:
            path.append(at)
            at = parents[at]
        path.reverse()
        if all(proposed[n] == said[parent + 1] for parent, n in zip([-1, *path], path, strict=False)) and len(path) > len(best):
            best = path
    return best


@given(st.data(), st.integers(0, 9))
def test_of_a_tree_the_longest_agreeing_path_is_taken(data, nodes):
    parents = tuple(data.draw(st.integers(-1, node - 1)) for node in range(nodes))
    taken: dict[int, set[int]] = {}
    proposed = []
    for parent in parents:  # siblings differ
        proposed.append(data.draw(st.sampled_from([t for t in range(12) if t not in taken.get(parent, set())])))
        taken.setdefault(parent, set()).add(proposed[-1])
    said = [data.draw(st.sampled_from(proposed or [0])) for _ in range(nodes + 1)]
    assert agreeing_path(said, proposed, parents) == longest_agreeing(said, proposed, parents)


# --- any tree whatsoever ----------------------------------------------------------------------------


def grow_at_random(monkeypatch, target, seed):
    """Random trees, of which one branch often is what the target will say: other drafters than
    ours may propose anything."""
    choose = random.Random(seed)
    known: dict[tuple[int, ...], list[int]] = {}
    contexts: dict[int, list[int]] = {}
    update, propose = ParallelDrafter.update, ParallelDrafter.propose

    def noting(self, state, token_ids, *features):
        contexts.setdefault(id(state), []).extend(token_ids)
        update(self, state, token_ids, *features)

    def growing(self, requests, selector):
        drafted = propose(self, requests, selector)
        grown = []
        for number, (request, proposal) in enumerate(zip(requests, drafted.proposals, strict=True)):
            size = min(choose.randint(0, 12), (selector._tree_nodes or [0] * len(requests))[number])
            text = contexts[id(request.state)]
            if request.depth == 0 or size == 0:
                grown.append(proposal.first(0))
                continue
            right = known.setdefault(tuple(text), greedy(target, text, request.depth)) if choose.random() < 0.7 else []
            parents, tokens, depths, on_way = [], [], [], -1
            for node in range(size):
                parent = choose.choice([n for n in range(-1, node) if n < 0 or depths[n] < request.depth])
                if len([d for d in range(len(right)) if d == (depths[on_way] if on_way >= 0 else 0)]) and choose.random() < 0.5:
                    parent = on_way
                depth = 1 + (depths[parent] if parent >= 0 else 0)
                siblings = {tokens[n] for n in range(node) if parents[n] == parent}
                token = choose.choice([t for t in range(60) if t not in siblings])
                if parent == on_way and depth <= len(right) and right[depth - 1] not in siblings:
                    token, on_way = right[depth - 1], node
                parents.append(parent)
                tokens.append(token)
                depths.append(depth)
            grown.append(Proposal(token_ids=torch.tensor(tokens), parents=tuple(parents), probabilities=(0.1,) * size))
        return type(drafted)(grown, drafted.passes)

    monkeypatch.setattr(ParallelDrafter, "update", noting)
    monkeypatch.setattr(ParallelDrafter, "propose", growing)


@pytest.mark.parametrize("tree", [0, 8])
def test_a_drafter_is_told_the_features_of_another_place(monkeypatch, tree):
    """The text is right whatever they are, and merely takes more cycles. Each token's are those that the
    target, run over the whole text by its own code, has at the token before it."""
    target = tiny_target()
    told: dict[int, tuple[list[int], list[torch.Tensor]]] = {}
    update = ParallelDrafter.update

    def noting(self, state, token_ids, features, rows=None):
        tokens, seen = told.setdefault(id(state), ([], []))
        tokens += token_ids
        seen.append(features[list(range(len(token_ids)) if rows is None else rows)])
        update(self, state, token_ids, features, rows)

    monkeypatch.setattr(ParallelDrafter, "update", noting)
    engine = Engine(target, tiny_draft(target), "pard2-td", draft_tokens=4, max_batch=4, tree=tree)
    done = engine.generate(PROMPTS, SamplingParams(max_tokens=20, ignore_eos=True))
    assert sum(one.stats.accepted for one in done) > 0 and len(told) == len(PROMPTS)
    for tokens, seen in told.values():
        features = target.forward(torch.tensor([tokens]), num_logits=0, layers=(-1, -2)).features[0]
        torch.testing.assert_close(torch.cat(seen)[1:], features[:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_trees_leave_the_text(architecture, monkeypatch):
    """Greedy and drawn texts, in a batch; fails if the path's keys are not moved together, or a node
    stands at a wrong position."""
    target = tiny_target(architecture=architecture)
    draft = tiny_draft(target)
    greedy_texts, drawn = texts(Engine(target), SamplingParams(max_tokens=24)), texts(Engine(target), DRAWN)
    for seed in range(2):
        with monkeypatch.context() as patch:
            grow_at_random(patch, target, seed)
            engine = Engine(target, draft, "pard2-td", "full", tree=12)
            outs = engine.generate(PROMPTS, SamplingParams(max_tokens=24))
            assert [out.token_ids for out in outs] == greedy_texts
            assert sum(out.stats.accepted for out in outs) > 8, "nothing was accepted, so nothing was tried"
            assert texts(Engine(target, draft, "pard2-td", "full", tree=12), DRAWN) == drawn
            assert is_empty(engine)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 20), st.sampled_from(["pard", "pard2-ti", "pard2-td"]), st.sampled_from([1, 3, "auto", "full"]), st.integers(1, 4), st.booleans()
)
def test_the_drafts_own_trees_leave_the_text(nodes, method, draft_tokens, max_batch, sampled):
    target = tiny_target()
    draft = pard_draft(target) if method == "pard" else tiny_draft(target)
    params = DRAWN if sampled else SamplingParams(max_tokens=24)
    engine = Engine(target, draft, method, draft_tokens, max_batch=max_batch, tree=nodes if nodes < 20 else "auto")
    assert texts(engine, params) == texts(Engine(target), params)


def test_chains_and_trees_of_one_batch_leave_the_text(monkeypatch):
    """Some sequences have room for a tree, some for one node, some propose nothing."""
    target = tiny_target()
    params = [SamplingParams(max_tokens=n) for n in (2, 30, 3, 9)]
    engine = Engine(target, tiny_draft(target), "pard2-td", "full", tree=16)
    assert texts(engine, params) == texts(Engine(target), params)


# --- what they bring ----------------------------------------------------------------------------------


def test_trees_accept_less_than_chains():
    target = tiny_target()
    accepted = []
    for tree in (0, 8, 32):
        engine = Engine(target, tiny_draft(target), "pard2-td", "full", tree=tree)
        outs = list(engine.generate(random_prompts(12, seed=2), SamplingParams(max_tokens=24)))
        accepted.append(sum(out.stats.accepted for out in outs) / sum(out.stats.cycles for out in outs))
    assert accepted[0] < accepted[2] and accepted[1] <= accepted[2]


def test_a_tree_is_larger_than_was_asked_for(monkeypatch):
    target = tiny_target()
    sizes = []
    propose = ParallelDrafter.propose

    def noting(self, requests, selector):
        drafted = propose(self, requests, selector)
        sizes.extend(proposal.num_nodes for proposal in drafted.proposals)
        return drafted

    monkeypatch.setattr(ParallelDrafter, "propose", noting)
    Engine(target, tiny_draft(target), "pard2-td", 4, tree=7).generate(PROMPTS, SamplingParams(max_tokens=20))
    assert max(sizes) == 7


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tree": -1}, "`tree` -1"),
        ({"tree": 2.5}, "`tree` 2.5"),
        ({"tree": "large"}, "`tree` 'large'"),
        ({"tree": 90, "cache_tokens": 80}, "does not fit the cache of 80"),
        ({"tree": 4, "verification": "block", "draft_sampling": "sampled"}, "`verification` token"),
        ({"tree": 4, "draft_sampling": "sampled"}, "`draft_sampling` greedy"),
        ({"tree": 4, "method": "vsd"}, "`method` vsd proposes no trees"),
        ({"tree": 4, "method": "ar"}, "`method` ar proposes no trees"),
    ],
)
def test_a_tree_that_cannot_be_is_refused(options, said):
    target = tiny_target()
    draft = tiny_lm_draft() if options.get("method") == "vsd" else tiny_draft(target)
    with pytest.raises(Pard2Error) as refused:
        Engine(target, draft, **options)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_ordinary_lm_proposes_no_trees():
    """Its method is chosen by the draft, after the options were checked."""
    with pytest.raises(Pard2Error, match="`method` vsd proposes no trees"):
        Engine(tiny_target(), tiny_lm_draft(), tree=4)
