"""What the benchmark scripts share: work that takes turns, and the prompts that it is done on."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pard2.bench.suites import read_suites
from pard2.checkpoints.loading import load_target, parse_device
from pard2.checkpoints.pruning import as_parallel_draft, cut_draft, even_layers
from pard2.config import ObjectiveConfig
from pard2.data.corpus import Example
from pard2.engine.prompts import encode_prompt
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.train.packed_sequences import PackedSequence, lay_out

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def in_turn(work: Mapping[Key, Callable[[], Value]], rounds: int) -> dict[Key, list[Value]]:
    """What each piece of work returned, round by round. Every other round goes the other way, so that nobody always comes first."""
    done: dict[Key, list[Value]] = {key: [] for key in work}
    for number in range(rounds):
        for key in list(work)[:: -1 if number % 2 else 1]:
            done[key].append(work[key]())
    return done


def seconds(action: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of one call on average, the device's work included."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(times):
        action()
    _wait(device)
    return (time.perf_counter() - started) / times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second that the device reads from memory when it does hardly anything else. The buffer must exceed its caches."""
    buffer = torch.ones(megabytes * 2**18, device=device)
    buffer.sum()
    return buffer.nbytes / min(seconds(buffer.sum, device) for _ in range(5))


def suite_prompts(paths: Sequence[Path], target: Target, most: int) -> dict[str, list[list[int]]]:
    """Token ids of the first `most` prompts of each suite, by its name."""
    return {suite.name: [encode_prompt(target, prompt) for prompt in suite.prompts] for suite in read_suites(paths, most)}


def training_pair(shape: str, layers: int, draft_tokens: int, share_vocabulary: bool, device: str | None) -> tuple[Target, Draft]:
    """A target and a fresh float32 draft to train: the embedded pair, or random weights in the shape of another."""
    if shape == "smollm2":
        target = load_target("smollm2", "float32", device, weight_format="plain")
        draft = cut_draft(target, even_layers(layers, target.num_states - 1), 16, draft_tokens, shared_vocabulary=share_vocabulary)
    else:
        where = parse_device(device)
        dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
        target_shape, draft_shape = SHAPES[shape]
        target = Target(random_model(target_shape, 8192, dtype, where), name=shape)
        lm = Draft(random_model(draft_shape, 8192, torch.float32, where), None, name=f"{shape} draft")
        draft = as_parallel_draft(lm, target, target.vocab_size - 1, draft_tokens)
    return target, draft.to(target.device).float().train().requires_grad_(True)


# vocabulary, hidden, intermediate, layers, heads, key-value heads, head_dim of a target and its draft; llama: 3.1-8B and 3.2-1B
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
