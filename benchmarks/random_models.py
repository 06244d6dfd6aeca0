"""Models of random weights in the shapes of real ones, made where they shall run: nothing is loaded."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pard2.models.draft import Draft, DraftSpec

# vocabulary, hidden, intermediate, layers, heads, key-value heads, head_dim of a target and its
# draft; llama: 3.1-8B and 3.2-1B
SHAPES = {
    "llama": ((128256, 4096, 14336, 32, 32, 8, 128), (128256, 2048, 8192, 16, 32, 8, 64)),
    "tiny": ((512, 64, 128, 30, 4, 2, 16), (512, 32, 64, 2, 4, 2, 8)),
}


def random_model(shape: Sequence[int], positions: int, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    vocabulary, hidden, intermediate, layers, heads, kv_heads, head_dim = shape
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=positions,
        rope_theta=500000.0,
        eos_token_id=None,
        bos_token_id=None,
    )
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def random_draft(shape: Sequence[int], target_hidden: int, draft_tokens: int, positions: int, dtype: torch.dtype, device: torch.device) -> Draft:
    """A PARD-2 draft for the last four hidden states of a target of this width.

    Its last token id is the mask.
    """
    layers = (-1, -2, -3, -4)
    width = target_hidden * len(layers)
    spec = DraftSpec(mask_token=shape[0] - 1, draft_tokens=draft_tokens, target_layers=layers, target_dim=width)
    projection = nn.Linear(width, shape[1], bias=False, dtype=dtype, device=device)
    lm = random_model(shape, positions, dtype, device)
    return Draft(lm, spec, projection, name="random draft").eval().requires_grad_(False)


def weight_bytes(model: PreTrainedModel) -> int:
    """Of all matrices that a pass reads: everything but the embedding, of which it
    reads a row for each token."""
    table = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not table)


def position_bytes(model: PreTrainedModel) -> int:
    """Of the keys and values of one position."""
    config = model.config
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
