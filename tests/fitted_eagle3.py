"""An EAGLE-3 draft that is often right: fitted to what a tiny target says."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from pard2 import Engine, SamplingParams
from pard2.models.eagle3 import Eagle3Draft
from pard2.models.target import Target
from pard2.objective.layout import build_layout
from pard2.train.unrolled import unrolled_states
from tiny import random_prompts
from tiny_eagle3 import tiny_eagle3

DEPTHS = 4
ANSWERS = SamplingParams(max_tokens=24, ignore_eos=True)
# On which most tests decode. To other prompts a random target says what nothing could have foretold.
PROMPTS = [*random_prompts(6, seed=3), *random_prompts(5, seed=6), *random_prompts(5, seed=8)]


def fitted_eagle3(
    target: Target, size: int = 55, steps: int = 40, prompts: Sequence[list[int]] = PROMPTS, params: SamplingParams = ANSWERS, **spec: Any
) -> Eagle3Draft:
    """`tiny_eagle3` after so many steps of Adam on the target's own answers to these prompts."""
    draft = tiny_eagle3(target, size, **spec)
    answers = Engine(target).generate(prompts, params)
    texts = [prompt + answer.token_ids for prompt, answer in zip(prompts, answers, strict=True)]
    lengths = [len(text) for text in texts]
    layout = build_layout(lengths, [[torch.arange(1, length - depth) for depth in range(1, DEPTHS)] for length in lengths])
    features = torch.cat([target.forward(torch.tensor([text]), num_logits=0, layers=draft.spec.target_layers).features[0] for text in texts])
    token_ids = torch.tensor([token for text in texts for token in text])
    places = torch.full((target.vocab_size,), -100)  # which cross-entropy leaves out
    places[draft.token_ids] = torch.arange(size)
    ends = torch.tensor(lengths).cumsum(0)[layout.document]
    trained = (layout.anchor > 0) & (layout.predicted_index < ends)
    labels = places[token_ids[layout.predicted_index[trained]]]
    draft.requires_grad_(True)
    optimizer = torch.optim.Adam(draft.parameters(), 2e-2)
    for _ in range(steps):
        states = unrolled_states(draft, token_ids, features, layout, "dense")[trained]
        optimizer.zero_grad()
        F.cross_entropy(draft.lm_head(states), labels).backward()
        optimizer.step()
    return draft.requires_grad_(False)
