"""What lies between the matrices of a Llama-like model, compiled for the CPU by numba, in float32.

Each function replaces a dozen small tensor operations, whose fixed costs dominate a pass over a few rows once the weights
stream through the caches. The tensor operations of `LeanDecoder` are their readable twins. All work in place on
arrays that share memory with tensors, in one thread.
"""

import numpy as np
from numba import njit

Array = np.ndarray

# Sums may be reordered, but NaN and infinity keep their meaning: damaged weights must show as NaN logits of their own sequence, neither
# be optimised away nor raise ZeroDivisionError for the whole batch.
_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz", "afn"})


@_compiled
def add_and_norm(x: Array, update: Array, weight: Array, eps: float, out: Array) -> None:
    """x += update; out = x / sqrt(mean(x^2) + eps) * weight. x, update, out: [N, hidden]. weight: [hidden]."""
    rows, width = x.shape
    for row in range(rows):
        total = np.float32(0)
        for i in range(width):
            x[row, i] += update[row, i]
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.sqrt(total / np.float32(width) + np.float32(eps))
        for i in range(width):
            out[row, i] = x[row, i] * factor * weight[i]


@_compiled
def _norm_head(head: Array, weight: Array, eps: float) -> None:
    total = np.float32(0)
    for i in range(len(head)):
        total += head[i] * head[i]
    factor = np.float32(1) / np.sqrt(total / np.float32(len(head)) + np.float32(eps))
    for i in range(len(head)):
        head[i] = head[i] * factor * weight[i]


@_compiled
def rotate_and_store(
    qkv: Array, cos: Array, sin: Array, query_norm: Array, key_norm: Array, eps: float, slots: Array, queries: Array, keys: Array, values: Array
) -> None:
    """Rotate queries and keys to their positions; keys and values go to their slots of the cache.

    qkv: [N, (H + 2 KV) * D]. cos, sin: [N, D / 2]. query_norm, key_norm: [D] weights of a norm before the rotation, or [0] for none.
    slots: [N]. queries: [N, H, D], written. keys, values: [positions, KV, D], written at the slots.
    """
    rows, heads, width = queries.shape
    kv_heads, half = keys.shape[1], width // 2
    for row in range(rows):
        slot = slots[row]
        for head in range(heads + kv_heads):
            start = head * width
            if head < heads and len(query_norm):
                _norm_head(qkv[row, start : start + width], query_norm, eps)
            if head >= heads and len(key_norm):
                _norm_head(qkv[row, start : start + width], key_norm, eps)
            to = queries[row, head] if head < heads else keys[slot, head - heads]
            for i in range(half):
                a, b = qkv[row, start + i], qkv[row, start + half + i]
                to[i] = a * cos[row, i] - b * sin[row, i]
                to[half + i] = b * cos[row, i] + a * sin[row, i]
        for head in range(kv_heads):
            start = (heads + kv_heads + head) * width
            for i in range(width):
                values[slot, head, i] = qkv[row, start + i]


@_compiled
def attend(queries: Array, keys: Array, values: Array, begins: Array, ends: Array, scale: float, out: Array) -> None:
    """Each row's softmax attention over slots begins[row] .. ends[row] - 1. queries, out: [N, H, D]. keys, values: [positions, KV, D]."""
    rows, heads, width = queries.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    longest = 0
    for row in range(rows):
        longest = max(longest, ends[row] - begins[row])
    scores = np.empty((group, longest), np.float32)
    for row in range(rows):
        begin, count = begins[row], ends[row] - begins[row]
        for kv_head in range(kv_heads):
            first = kv_head * group
            for at in range(count):
                key = keys[begin + at, kv_head]
                for g in range(group):
                    query = queries[row, first + g]
                    total = np.float32(0)
                    for i in range(width):
                        total += query[i] * key[i]
                    scores[g, at] = total * np.float32(scale)
            for g in range(group):
                highest = scores[g, 0]
                for at in range(1, count):
                    highest = max(highest, scores[g, at])
                total = np.float32(0)
                for at in range(count):
                    scores[g, at] = np.exp(scores[g, at] - highest)
                    total += scores[g, at]
                for at in range(count):
                    scores[g, at] /= total
                for i in range(width):
                    out[row, first + g, i] = np.float32(0)
            for at in range(count):
                value = values[begin + at, kv_head]
                for g in range(group):
                    share = scores[g, at]
                    result = out[row, first + g]
                    for i in range(width):
                        result[i] += share * value[i]


@_compiled
def silu_and_multiply(gate_up: Array, out: Array) -> None:
    """out = silu(gate) * up. gate_up: [N, 2 * width], gates first. out: [N, width]."""
    rows, width = out.shape
    for row in range(rows):
        for i in range(width):
            gate = gate_up[row, i]
            out[row, i] = gate / (np.float32(1) + np.exp(-gate)) * gate_up[row, width + i]
