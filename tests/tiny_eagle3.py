"""Tiny EAGLE-3 drafts for tests."""

from typing import Any

import torch

from pard2.models.eagle3 import Eagle3Draft, Eagle3Spec, layer_config
from pard2.models.target import Target


def tiny_eagle3(target: Target, size: int = 31, seed: int = 1, **spec: Any) -> Eagle3Draft:
    """A random draft that shares the target's embedding and can propose `size` of its tokens, in any order.

    spec: fields of `Eagle3Spec`; by default the last three hidden states are read.
    """
    states = tuple(range(target.num_states))[-3:]
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randperm(target.vocab_size, generator=generator)[:size]
    config = layer_config(target.config)
    whole = Eagle3Spec(**({"target_layers": states, "target_hidden_size": config.hidden_size} | spec))
    draft = Eagle3Draft(config, whole, token_ids, target.model.get_input_embeddings(), name="tiny-eagle3")
    for parameter in draft.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return draft.eval().requires_grad_(False)
