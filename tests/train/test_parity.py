"""From training to decoding: an exported draft proposes in the engine what its training pass
says at the same anchors."""

from pathlib import Path

import pytest
import torch
from train_runs import Prepared, packed_loss, prepare

from pard2 import Engine, SamplingParams, Stats
from pard2.checkpoints.pruning import cut_draft
from pard2.checkpoints.read import load_draft
from pard2.checkpoints.write import save_draft
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.attention import AttentionKind
from pard2.train.packed_loss import PackedLoss
from tiny import MASK, random_prompts, tiny_draft, tiny_target

K = 6
ALL = ObjectiveConfig(draft_tokens=K, retention=1.0, feature_drop=0.0)


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], list[int]]:
    """What the engine's drafter proposes from now on, by all the tokens that it has read of a sequence."""
    contexts: dict[int, list[int]] = {}
    states = []  # kept, so that no number is given twice
    found: dict[tuple[int, ...], list[int]] = {}
    update, propose = ParallelDrafter.update, ParallelDrafter.propose

    def spied_update(self, state, token_ids, *features):
        states.append(state)
        contexts.setdefault(id(state), []).extend(token_ids)
        update(self, state, token_ids, *features)

    def spied_propose(self, requests, selector):
        drafted = propose(self, requests, selector)
        for request, proposal in zip(requests, drafted.proposals, strict=True):
            if request.depth:
                found[tuple(contexts[id(request.state)])] = proposal.token_ids.tolist()
        return drafted

    monkeypatch.setattr(ParallelDrafter, "update", spied_update)
    monkeypatch.setattr(ParallelDrafter, "propose", spied_propose)
    return found


@torch.no_grad()
def trained_guesses(draft: Draft, prepared: Prepared, attention: AttentionKind) -> dict[tuple[int, int, int], int]:
    """The training pass's most probable token at every slot (document, anchor, depth)."""
    layout = prepared.packed.layout
    features = None if draft.projection is None else prepared.states.features
    states = PackedLoss(draft, ALL, attention, torch.float32).states(prepared.packed, features)
    guesses = (states @ draft.lm.get_output_embeddings().weight.T).argmax(-1).tolist()
    slots = zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True)
    return dict(zip(slots, guesses, strict=True))


def exported(draft: Draft, target: Target, directory: Path) -> Draft:
    save_draft(draft, directory)
    return load_draft(str(directory), target, torch.float32)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("attention", ["blocks", "dense"])
@pytest.mark.parametrize("method", ["pard2-td", "pard2-ti", "pard"])
def test_decoding_proposes_what_training_trained(architecture, attention, method, proposed, tmp_path):
    """A feature one position off, a mask at a wrong position, a chain that sees too much: each lowers
    acceptance alone, and silently."""
    target = tiny_target(architecture=architecture)
    trained = tiny_draft(target, projection=3.0, draft_tokens=K)
    if method == "pard":
        trained = cut_draft(target, [0, 1], MASK, K, options=None).eval().requires_grad_(False)
    draft = exported(trained, target, tmp_path / "draft")
    prompts = random_prompts(5, 8, seed=2)
    completions = Engine(target, draft, method, K, max_batch=3).generate(prompts, SamplingParams(max_tokens=20))

    # The same texts as training sees them: packed into one sequence, every answer token predicted.
    examples = [
        Example.of(str(n), prompt + c.token_ids, [False] * len(prompt) + [True] * len(c.token_ids))
        for n, (prompt, c) in enumerate(zip(prompts, completions, strict=True))
    ]
    prepared = prepare(target, examples, ALL.model_copy(update={"feature_drop": float(method == "pard2-ti")}))
    guesses = trained_guesses(draft, prepared, attention)
    texts = {tuple(e.token_ids[: length + 1]): (document, length) for document, e in enumerate(examples) for length in range(len(e.token_ids))}
    compared = 0
    for context, tokens in proposed.items():
        document, anchor = texts[context]
        for depth, token in enumerate(tokens):
            if (document, anchor, depth) in guesses:  # slots past the text's end are not trained
                assert token == guesses[document, anchor, depth], (document, anchor, depth)
                compared += 1
    assert compared > 60


def test_the_two_modes_differ(proposed):
    """Else the comparison above would not notice that features are never fed."""
    target = tiny_target()
    draft = tiny_draft(target, projection=3.0, draft_tokens=K)
    first = []
    for method in ("pard2-td", "pard2-ti"):
        Engine(target, draft, method, K).generate([[3, 4, 5]], SamplingParams(max_tokens=8))
        first.append(proposed[min(proposed, key=len)])
        proposed.clear()
    assert first[0] and first[0] != first[1]


def acceptance_length(target: Target, draft: Draft, prompts: list[list[int]], method: str) -> float:
    completions = Engine(target, draft, method, draft_tokens=K).generate(prompts, SamplingParams(max_tokens=40))
    return sum((completion.stats for completion in completions), Stats()).acceptance_length


def test_training_raises_what_decoding_accepts():
    """The whole way: what the target says is learnt, and decoding gains by it in both modes."""
    target = tiny_target()
    prompts = random_prompts(4, 8, seed=1)
    examples = []
    for prompt, completion in zip(prompts, Engine(target).generate(prompts, SamplingParams(max_tokens=40)), strict=True):
        tokens = prompt + completion.token_ids
        examples.append(Example.of(str(len(examples)), tokens, [i >= len(prompt) for i in range(len(tokens))]))
    draft = tiny_draft(target, [1], draft_tokens=K, projection=0.0)
    before = {method: acceptance_length(target, draft, prompts, method) for method in ("pard2-td", "pard2-ti")}

    draft.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=5e-3, weight_decay=0.0)
    losses = []
    for step in range(120):
        objective = ObjectiveConfig(draft_tokens=K, feature_drop=0.5)
        out = packed_loss(draft, target, prepare(target, examples, objective, seed=step), objective)
        (out.loss / out.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach() / out.weight))
    assert losses[-1] < 0.3 * losses[0]

    draft.eval().requires_grad_(False)
    for method, untrained in before.items():
        assert acceptance_length(target, draft, prompts, method) > untrained + 1.5, (method, untrained)
