"""From training to decoding: a draft proposes in the engine what its training pass says at the same anchors."""

import pytest
import torch

from pard2 import Engine, SamplingParams, Stats
from pard2.config import ObjectiveConfig
from pard2.data.chat import Example
from pard2.engine.drafters.base import Ask
from pard2.engine.drafters.parallel import ParallelDrafter
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.step import Row, prepare_row, row_loss, row_states
from tiny import random_prompts, tiny_draft, tiny_target

K = 6


@torch.no_grad()
def trained_guesses(draft: Draft, row: Row) -> dict[tuple[int, int, int], int]:
    """The training pass's most probable token at every slot (document, anchor, depth)."""
    layout = row.layout
    guesses = (row_states(draft, row) @ draft.lm.get_output_embeddings().weight.T).argmax(-1).tolist()
    places = zip(layout.document.tolist(), layout.anchor.tolist(), layout.depth.tolist(), strict=True)
    return dict(zip(places, guesses, strict=True))


@torch.inference_mode()
def proposals(target: Target, draft: Draft, context: list[int], use_features: bool) -> list[int]:
    drafter = ParallelDrafter(draft, use_features, target.vocab_size, 64)
    reading = drafter.open(64)
    assert reading is not None
    features = None
    if use_features:
        found = target.forward(torch.tensor([context[:-1]]), num_logits=0).features
        assert found is not None
        features = torch.cat([torch.zeros_like(found[0, :1]), found[0]])
    drafter.absorb(reading, context, features)
    return drafter.propose([Ask(reading, K)], lambda logits, numbers, places: logits.argmax(-1)).token_ids.tolist()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("use_features", [True, False], ids=["td", "ti"])
def test_decoding_proposes_what_training_trained(architecture, use_features):
    """A feature one place off, a mask at a wrong position, a chain that sees too much: each lowers acceptance alone, and silently."""
    target = tiny_target(architecture=architecture)
    draft = tiny_draft(target, projection=3.0, draft_tokens=K)
    target.capture(draft.spec.target_layers)
    examples = [Example("0", list(range(3, 15)), [True] * 12), Example("1", [9, 4, 4, 31, 0, 8, 22, 5], [True] * 8)]  # packed
    row = prepare_row(target, examples, ObjectiveConfig(draft_tokens=K, retention=1.0), torch.Generator(), use_features)
    guesses = trained_guesses(draft, row)
    compared = 0
    for document, example in enumerate(examples):
        for anchor in range(1, len(example.token_ids)):
            proposed = proposals(target, draft, example.token_ids[: anchor + 1], use_features)
            for depth in range(K):
                if (document, anchor, depth) in guesses:
                    assert proposed[depth] == guesses[document, anchor, depth], (document, anchor, depth)
                    compared += 1
    assert compared > 60


def test_the_two_modes_differ():
    """Else the comparison above would not notice that features are never fed."""
    target = tiny_target()
    draft = tiny_draft(target, projection=3.0, draft_tokens=K)
    target.capture(draft.spec.target_layers)
    assert proposals(target, draft, list(range(3, 15)), True) != proposals(target, draft, list(range(3, 15)), False)


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
        examples.append(Example(str(len(examples)), tokens, [i >= len(prompt) for i in range(len(tokens))]))
    draft = tiny_draft(target, [1], draft_tokens=K, projection=0.0)
    before = {method: acceptance_length(target, draft, prompts, method) for method in ("pard2-td", "pard2-ti")}

    target.capture(draft.spec.target_layers)
    draft.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=5e-3, weight_decay=0.0)
    objective = ObjectiveConfig(draft_tokens=K)
    losses = []
    for step in range(120):
        generator = torch.Generator().manual_seed(step)
        row = prepare_row(target, examples, objective, generator, use_features=step % 2 == 0)
        out = row_loss(draft, target, row, row.weights.sum(), objective)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.3 * losses[0]

    draft.eval().requires_grad_(False)
    for method, untrained in before.items():
        assert acceptance_length(target, draft, prompts, method) > untrained + 1.5, (method, untrained)
