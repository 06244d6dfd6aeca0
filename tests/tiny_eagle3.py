"""A tiny EAGLE-3 draft for tests: random weights, a layer like the target's, part of its vocabulary."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config

from pard2.checkpoints.read import load_draft
from pard2.models.eagle3 import Eagle3Draft, Eagle3Spec, layer_config
from pard2.models.target import Target


def tiny_eagle3(
    target: Target, size: int = 31, own_embedding: bool = False, seed: int = 3, config: dict[str, Any] | None = None, **spec: Any
) -> Eagle3Draft:
    """A draft that can propose `size` of the target's tokens, on its device.

    own_embedding: a table of its own, else the target's.
    config: entries of the layer's config that differ from the target's; its `model_type` may be qwen3.
    spec: fields of `Eagle3Spec`; by default two of the target's hidden states feed it.
    """
    torch.manual_seed(seed)
    fields = {"target_layers": (1, target.num_states - 1), "target_hidden_size": target.hidden_size, "draft_tokens": 5} | spec
    tokens = torch.randperm(target.vocab_size)[:size].sort().values
    layer = layer_config(target.config, **{key: value for key, value in (config or {}).items() if key != "model_type"})
    if (config or {}).get("model_type") == "qwen3":
        layer = Qwen3Config.from_dict({key: value for key, value in layer.to_dict().items() if key != "model_type"})
    embedding = None if own_embedding else target.model.get_input_embeddings()
    draft = Eagle3Draft(layer, Eagle3Spec(**fields), tokens, embedding, name="tiny-eagle3")
    with torch.no_grad():
        for name, parameter in draft.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)  # norms and biases that do something
            else:
                parameter.normal_(0, 0.3 if "embed" not in name else 1.0)
    return draft.to(target.device).eval().requires_grad_(False)


def read(directory: Path, target: Target) -> Eagle3Draft:
    """The EAGLE-3 draft in a directory, in float32."""
    draft = load_draft(str(directory), target, torch.float32)
    assert isinstance(draft, Eagle3Draft)
    return draft
