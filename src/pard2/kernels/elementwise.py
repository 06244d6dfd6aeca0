"""What lies between the matrices of a Llama-like model, compiled for the CPU by numba, in float32.

Each function replaces a dozen small tensor operations, whose fixed costs dominate a pass over a few rows once
the weights stream through the caches. The tensor operations of `LlamaDecoder` are their readable twins. All
work in place on arrays that share memory with tensors; some do one part of it, for as many threads.
"""

import math
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray

# Sums may be reordered, but NaN and infinity keep their meaning: damaged weights must show as NaN logits of
# their own sequence, neither be optimised away nor raise ZeroDivisionError for the whole batch.
compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz", "afn"})

_LEAST, _MOST = np.float32(-87), np.float32(88)  # exponents whose powers are normal numbers
_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(355 / 512)  # ln 2 in two parts, the first with so few bits that its multiples are exact
_LN2_LOW = np.float32(math.log(2) - 355 / 512)
_SERIES = tuple(np.float32(1 / math.factorial(n)) for n in range(7, -1, -1))


@compiled
def norm(x: Array, weight: Array, eps: float, out: Array) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight. x, out: [N, hidden]. weight: [hidden]."""
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(width):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            out[row, i] = x[row, i] * factor * weight[i]


@compiled
def add_and_norm(x: Array, update: Array, weight: Array, eps: float, out: Array) -> None:
    """x += update, and `norm`. update: [N, at least hidden]."""
    rows, width = x.shape
    for row in range(rows):
        for i in range(width):
            x[row, i] += update[row, i]
    norm(x, weight, eps, out)


@compiled
def rotate_and_store(
    qkv: Array,
    rotation: Array,
    head_norms: tuple[Array, Array],
    eps: float,
    places: Array,
    queries: Array,
    keys: Array,
    values: Array,
    part: int,
    parts: int,
) -> None:
    """Rotate queries and keys to their positions; keys and values go to their places in the cache. One
    part of it.

    qkv: [N, at least (H + 2 KV) * D].
    rotation: cosines and sines, [2, N, D / 2].
    head_norms: of queries and keys, [D] weights of a norm before the rotation, or [0] for none.
    places: [N].
    queries: [N, H, D], written.
    keys, values: [cache places, KV, D], written at `places`.
    """
    rows, heads, width = queries.shape
    kv_heads, half = keys.shape[1], width // 2
    each = heads + 2 * kv_heads
    for task in range(part * rows * each // parts, (part + 1) * rows * each // parts):
        row, head = task // each, task % each
        place, start = places[row], head * width
        if head >= heads + kv_heads:
            values[place, head - heads - kv_heads] = qkv[row, start : start + width]
            continue
        weight = head_norms[0] if head < heads else head_norms[1]
        if len(weight):
            head_row = qkv[row : row + 1, start : start + width]
            norm(head_row, weight, eps, head_row)
        to = queries[row, head] if head < heads else keys[place, head - heads]
        for i in range(half):
            a, b = qkv[row, start + i], qkv[row, start + half + i]
            to[i] = a * rotation[0, row, i] - b * rotation[1, row, i]
            to[half + i] = b * rotation[0, row, i] + a * rotation[1, row, i]


@compiled
def exp(x: Any) -> Any:
    """exp(x) to float32's last bits, in operations that a compiler vectorises, as it does not the library's.
    NaN stays NaN; the rest is kept within float32's range.
    """
    x = _LEAST if x < _LEAST else x
    x = _MOST if x > _MOST else x
    whole = np.floor(x * _LOG2_E + np.float32(0.5))
    rest = x - whole * _LN2_HIGH - whole * _LN2_LOW  # within ln 2 / 2 of 0, where seven terms of the series suffice
    series = _SERIES[0]
    for coefficient in _SERIES[1:]:
        series = series * rest + coefficient
    return series * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)  # 2 ** whole, by its bits


@compiled
def softmax(scores: Array, scale: float) -> None:
    """In place. A NaN makes all of them NaN."""
    # Sixteen maxima at a time: a compiler that must not lose a NaN leaves one maximum to one element
    # after another.
    most = np.full(16, -np.inf, np.float32)
    whole = len(scores) - len(scores) % 16
    for at in range(0, whole, 16):
        for i in range(16):
            most[i] = scores[at + i] if scores[at + i] > most[i] else most[i]
    highest = most[0]
    for i in range(1, 16):
        highest = most[i] if most[i] > highest else highest
    for at in range(whole, len(scores)):
        highest = scores[at] if scores[at] > highest else highest
    total = np.float32(0)
    for at in range(len(scores)):
        scores[at] = exp((scores[at] - highest) * np.float32(scale))
        total += scores[at]
    for at in range(len(scores)):
        scores[at] /= total


@compiled
def silu_and_multiply(gate_up: Array, out: Array, part: int, parts: int) -> None:
    """out = silu(gate) * up. One part of it.

    gate_up: [N, at least 2 * width], gates first.
    out: [N, width].
    """
    rows, width = out.shape
    first, last = part * width // parts, (part + 1) * width // parts
    for row in range(rows):
        for i in range(first, last):
            gate = gate_up[row, i]
            out[row, i] = gate / (np.float32(1) + exp(-gate)) * gate_up[row, width + i]
