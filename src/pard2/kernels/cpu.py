"""What lies between the matrices of a Llama-like model, compiled for the CPU by numba, in float32.

Each function replaces a dozen small tensor operations, whose fixed costs dominate a pass over a few rows once
the weights stream through the caches. The tensor operations of `LlamaDecoder` are their readable twins. All
work in place on arrays that share memory with tensors, in one thread.
"""

import math
from collections.abc import Callable
from functools import cache
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
def add_and_norm(x: Array, update: Array, weight: Array, eps: float, out: Array) -> None:
    """x += update; out = x / sqrt(mean(x^2) + eps) * weight.

    x, update, out: [N, hidden]. weight: [hidden].
    """
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(width):
            x[row, i] += update[row, i]
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            out[row, i] = x[row, i] * factor * weight[i]


@compiled
def _norm_head(head: Array, weight: Array, eps: float) -> None:
    total = np.float32(0)
    for i in range(len(head)):
        total += head[i] * head[i]
    factor = np.float32(1) / np.sqrt(total / np.float32(len(head)) + np.float32(eps))
    for i in range(len(head)):
        head[i] = head[i] * factor * weight[i]


@compiled
def rotate_and_store(
    qkv: Array, cos: Array, sin: Array, query_norm: Array, key_norm: Array, eps: float, places: Array, queries: Array, keys: Array, values: Array
) -> None:
    """Rotate queries and keys to their positions; keys and values go to their places in the cache.

    qkv: [N, (H + 2 KV) * D].
    cos, sin: [N, D / 2].
    query_norm, key_norm: [D] weights of a norm before the rotation, or [0] for none.
    places: [N].
    queries: [N, H, D], written.
    keys, values: [cache places, KV, D], written at `places`.
    """
    rows, heads, width = queries.shape
    kv_heads, half = keys.shape[1], width // 2
    for row in range(rows):
        place = places[row]
        for head in range(heads + kv_heads):
            start = head * width
            if head < heads and len(query_norm):
                _norm_head(qkv[row, start : start + width], query_norm, eps)
            if head >= heads and len(key_norm):
                _norm_head(qkv[row, start : start + width], key_norm, eps)
            to = queries[row, head] if head < heads else keys[place, head - heads]
            for i in range(half):
                a, b = qkv[row, start + i], qkv[row, start + half + i]
                to[i] = a * cos[row, i] - b * sin[row, i]
                to[half + i] = b * cos[row, i] + a * sin[row, i]
        for head in range(kv_heads):
            start = (heads + kv_heads + head) * width
            for i in range(width):
                values[place, head, i] = qkv[row, start + i]


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
def _place(visible: Array, row: int, at: int) -> Any:
    """Where the `at`-th of the keys lies that a row sees."""
    behind = at - (visible[row, 1] - visible[row, 0])
    return visible[row, 0] + at if behind < 0 else visible[row, 3 + behind]


@compiled
def _places(visible: Array, row: int, at: int) -> tuple[Any, Any, Any, Any]:
    """Where the keys `at` to `at + 3` lie."""
    first = visible[row, 0] + at
    if first + 4 <= visible[row, 1]:
        return first, first + 1, first + 2, first + 3
    return _place(visible, row, at), _place(visible, row, at + 1), _place(visible, row, at + 2), _place(visible, row, at + 3)


@cache
def attention(width: int, group: int) -> Callable[[Array, Array, Array, Array, float, Array], None]:
    """Softmax attention of single rows, compiled for heads of `width`, `group` of which share a key head:
    loops of known length unroll.

    `attend(queries, keys, values, visible, scale, out)`: queries: [N, H, width]. keys, values: [places, H /
    group, width]. visible: [N, 3 + A], the places that each row sees: begin and end of a stretch, how many
    single ones follow, and these. out: [N, H, width], written.

    All heads take four places together. A row comes out the same, bit for bit, whether its
    keys lie side by side or apart.
    """

    @compiled
    def attend(queries: Array, keys: Array, values: Array, visible: Array, scale: float, out: Array) -> None:
        rows, heads = queries.shape[:2]
        scores = np.empty((heads, (visible[:, 1] - visible[:, 0] + visible[:, 2]).max()), np.float32)
        for row in range(rows):
            count = visible[row, 1] - visible[row, 0] + visible[row, 2]
            fours = count - count % 4
            for at in range(0, fours, 4):
                p0, p1, p2, p3 = _places(visible, row, at)
                for shared in range(keys.shape[1]):
                    k0, k1, k2, k3 = keys[p0, shared], keys[p1, shared], keys[p2, shared], keys[p3, shared]
                    for head in range(shared * group, (shared + 1) * group):
                        query = queries[row, head]
                        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                        for i in range(width):
                            a += query[i] * k0[i]
                            b += query[i] * k1[i]
                            c += query[i] * k2[i]
                            d += query[i] * k3[i]
                        scores[head, at], scores[head, at + 1], scores[head, at + 2], scores[head, at + 3] = a, b, c, d
            for at in range(fours, count):
                for head in range(heads):
                    query, k = queries[row, head], keys[_place(visible, row, at), head // group]
                    a = np.float32(0)
                    for i in range(width):
                        a += query[i] * k[i]
                    scores[head, at] = a
            for head in range(heads):
                _softmax(scores[head, :count], scale)
            out[row] = np.float32(0)
            for at in range(0, fours, 4):
                p0, p1, p2, p3 = _places(visible, row, at)
                for shared in range(keys.shape[1]):
                    v0, v1, v2, v3 = values[p0, shared], values[p1, shared], values[p2, shared], values[p3, shared]
                    for head in range(shared * group, (shared + 1) * group):
                        result = out[row, head]
                        a, b, c, d = scores[head, at], scores[head, at + 1], scores[head, at + 2], scores[head, at + 3]
                        for i in range(width):
                            result[i] += a * v0[i] + b * v1[i] + c * v2[i] + d * v3[i]
            for at in range(fours, count):
                place = _place(visible, row, at)
                for head in range(heads):
                    result, v = out[row, head], values[place, head // group]
                    a = scores[head, at]
                    for i in range(width):
                        result[i] += a * v[i]

    return attend


@compiled
def _softmax(scores: Array, scale: float) -> None:
    """In place."""
    highest = scores[0]
    for at in range(1, len(scores)):
        highest = max(highest, scores[at])
    total = np.float32(0)
    for at in range(len(scores)):
        scores[at] = exp((scores[at] - highest) * np.float32(scale))
        total += scores[at]
    for at in range(len(scores)):
        scores[at] /= total


@compiled
def silu_and_multiply(gate_up: Array, out: Array) -> None:
    """out = silu(gate) * up. gate_up: [N, 2 * width], gates first. out: [N, width]."""
    rows, width = out.shape
    for row in range(rows):
        for i in range(width):
            gate = gate_up[row, i]
            out[row, i] = gate / (np.float32(1) + exp(-gate)) * gate_up[row, width + i]
