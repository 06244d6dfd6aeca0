"""What the scripts that measure training share: pairs to train, rows to train them on, and memory."""

from pathlib import Path

import torch

from pard2.checkpoints.loading import load_target, parse_device
from pard2.checkpoints.pruning import as_parallel_draft, cut_draft, even_layers
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.models.draft import DEFAULT_SCALE, Draft
from pard2.models.target import Target
from pard2.train.packed_sequences import PackedSequence, lay_out
from random_models import SHAPES, random_model


def training_pair(shape: str, layers: int, draft_tokens: int, share_vocabulary: bool, device: str | None) -> tuple[Target, Draft]:
    """A target and a fresh float32 draft to train: the embedded pair, or random
    weights in the shape of another."""
    if shape == "smollm2":
        target = load_target("smollm2", "float32", device, weight_format="plain")
        draft = cut_draft(target, even_layers(layers, target.num_states - 1), 16, draft_tokens, shared_vocabulary=share_vocabulary)
    else:
        where = parse_device(device)
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        target_shape, draft_shape = SHAPES[shape]
        target = Target(random_model(target_shape, 8192, dtype, where), name=shape)
        lm = Draft(random_model(draft_shape, 8192, torch.float32, where), None, name=f"{shape} draft")
        draft = as_parallel_draft(lm, target, target.vocab_size - 1, draft_tokens, None, DEFAULT_SCALE)
    return target, draft.to(target.device).float().train().requires_grad_(True)


def training_row(target: Target | None, prompt: int, length: int, objective: ObjectiveConfig) -> PackedSequence:
    """A row of one conversation, random tokens of which all but the first `prompt` are an answer."""
    vocabulary = 49152 if target is None else target.vocab_size
    tokens = torch.randint(20, vocabulary - 1, (length,), generator=torch.Generator().manual_seed(0)).tolist()
    example = Example.of("random", tokens, [False] * prompt + [True] * (length - prompt))
    row = lay_out([example], objective, torch.Generator().manual_seed(0))
    return row if target is None else row.to(target.device)


def resting_bytes() -> int:
    """Memory that the process holds now; its peak is counted from here on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most since `resting_bytes`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
