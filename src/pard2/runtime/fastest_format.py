"""Which form of the weights this machine decodes fastest with: measured once on a small model, and kept.

No rule tells it: it depends on the processor, its memory and its number of threads.
"""

import json
import os
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from pard2.errors import Pard2Error
from pard2.files import write_whole
from pard2.kernels.weight_format import WeightFormat
from pard2.reading import read_json
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.support import new_decoder
from pard2.runtime.token_batch import QuerySpan, TokenBatch

ROWS = (1, 6, 24, 96)  # of the passes that are timed
_SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
_PAST = 128  # tokens
_SECONDS = 0.1  # a format and number of rows
Times = dict[WeightFormat, list[float]]


def machine_key() -> str:
    """What the times depend on."""
    has = torch.cpu.get_capabilities()
    packages = [f"{name} {version(name)}" for name in ("torch", "numba", "pard2") if find_spec(name)]
    return ", ".join([str(has.get("cpu_name") or platform.machine()), f"{os.cpu_count()} cores", f"{torch.get_num_threads()} threads", *packages])


def format_times(formats: Sequence[WeightFormat], file: Path) -> Times:
    """Milliseconds of a pass over each number of `ROWS`, for each format.

    file: where earlier measurements are kept, of any machine; what it lacks is measured, a second a
        format, and added.
    """
    key, known = machine_key(), _read(file)
    times = known.setdefault(key, {})
    missing = [name for name in formats if name not in times]
    if missing:
        times |= {name: [_milliseconds(name, rows) for rows in ROWS] for name in missing}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(known, indent=1).encode())
        except (OSError, Pard2Error):
            pass  # a cache that cannot be written is measured again
    return {name: times[name] for name in formats}


def fastest(times: Times, sequences: int) -> WeightFormat:
    """The format for so many sequences at once: of the least time for a plain step and a verification of
    six rows together.
    """

    def spent(name: WeightFormat) -> float:
        return sum(_at(times[name], rows * sequences) for rows in (1, 6))

    return min(times, key=spent)


def _at(times: list[float], rows: int) -> float:
    """The time of a pass, between those measured on a straight line, beyond the last in proportion."""
    if rows >= ROWS[-1]:
        return times[-1] * rows / ROWS[-1]
    after = next(i for i, measured in enumerate(ROWS) if measured >= rows)
    if ROWS[after] == rows:
        return times[after]
    share = (rows - ROWS[after - 1]) / (ROWS[after] - ROWS[after - 1])
    return times[after - 1] + share * (times[after] - times[after - 1])


def _read(file: Path) -> dict[str, Times]:
    """What a file of earlier times holds; nothing of one that is damaged."""
    try:
        held = read_json(file)
        entries = held.items() if isinstance(held, dict) else ()
        return {key: {name: list(map(float, each)) for name, each in times.items() if len(each) == len(ROWS)} for key, times in entries}
    except (OSError, ValueError, TypeError, AttributeError, Pard2Error):
        return {}


@torch.inference_mode()
def _milliseconds(weight_format: WeightFormat, rows: int) -> float:
    """The least that a pass takes."""
    config = transformers.LlamaConfig(**_SHAPE, vocab_size=64, max_position_embeddings=2 * _PAST + ROWS[-1], dtype="bfloat16")
    torch_state = torch.random.get_rng_state()
    try:
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    finally:
        torch.random.set_rng_state(torch_state)
    decoder = new_decoder(model, "a small model", HiddenStateRecorder(model), weight_format)
    cache = KVCache(config.num_hidden_layers, _PAST + rows)
    region = cache.reserve(_PAST + rows)
    assert region is not None
    decoder.run(TokenBatch(cache, [QuerySpan(region, 0, _PAST)], torch.zeros(_PAST, dtype=torch.long)), None, None)
    tokens, began = torch.zeros(rows, dtype=torch.long), time.perf_counter()
    found: list[float] = []
    while len(found) < 3 or time.perf_counter() - began < _SECONDS:
        start = time.perf_counter()
        decoder.run(TokenBatch(cache, [QuerySpan(region, _PAST, rows)], tokens), None, None)
        found.append((time.perf_counter() - start) * 1e3)
    return min(found)
