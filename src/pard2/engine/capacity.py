"""How many positions the caches may hold on this machine."""

import os

import torch

from pard2.errors import Pard2Error
from pard2.models.any_draft import AnyDraft
from pard2.models.target import Target

_SHARE = {"cuda": 0.8, "cpu": 0.25}  # of the memory that is free once the models are loaded
_FEWEST = 64


def cache_positions(target: Target, draft: AnyDraft | None, max_batch: int) -> int:
    """As many as `max_batch` full contexts need, or as fit into a share of the free memory.

    Raises `Pard2Error` for a device that has room for hardly any.
    """
    size = position_bytes(target.config, target.decoder_dtype)
    if draft is not None:
        size += position_bytes(draft.config, draft.decoder_dtype)
    wanted = max_batch * (target.context_length + 1)
    fitting = int(_SHARE.get(target.device.type, 0.25) * free_bytes(target.device)) // size
    if fitting < min(wanted, _FEWEST):
        raise Pard2Error(f"{target.device} has no memory left for a cache after loading {target.name!r}; use a smaller model or another `device`")
    return min(wanted, fitting)


def position_bytes(config, dtype: torch.dtype) -> int:
    """Keys and values of one position in all layers."""
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads if hasattr(config, "num_key_value_heads") else heads
    head_dim = config.head_dim if hasattr(config, "head_dim") else config.hidden_size // heads
    return 2 * config.num_hidden_layers * (kv_heads or heads) * (head_dim or config.hidden_size // heads) * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
