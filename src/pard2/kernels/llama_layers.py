"""All layers of a Llama-like model for a few rows, as one compiled call that several threads run together.

Each thread keeps the residual stream for itself and computes its share of everything else. A layer has
six points where they wait for one another.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types

from pard2.kernels.attention import attend
from pard2.kernels.elementwise import add_and_norm, norm, rotate_and_store, silu_and_multiply
from pard2.kernels.products import compiled, multiply_part
from pard2.kernels.team import meet
from pard2.kernels.vectors import intrinsic

Array = np.ndarray


@intrinsic
def _floats(typing: Any, address: Any) -> Any:
    """A pointer to float32 numbers."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), emit


class LayerWeights(NamedTuple):
    """like: an array of the weights' type.
    matrices: [layers, 4, 4], `Panels.numbers` of q-k-v, attention's output, gate-up and down.
    norms: [layers, hidden] before attention, [layers, D or 0] of queries, and of keys, [layers, hidden]
        before the MLP.
    last_norm: [hidden].
    windows: [layers], which of a pass's kinds of window a layer has.
    """

    like: Array
    matrices: Array
    norms: tuple[Array, ...]
    last_norm: Array
    windows: Array


class PassRows(NamedTuple):
    """embeddings: [N, hidden].
    rotation: cosines and sines, [2, N, D / 2].
    places: [N] in the cache.
    visible: [kinds of window, N, 3 + A], each as `attention.attend` takes it.
    cache: [layers, 2], addresses of the keys and values, [places, KV, D].
    """

    embeddings: Array
    rotation: Array
    places: Array
    visible: Array
    cache: Array


@compiled
def run_layers(
    weights: LayerWeights,
    numbers: tuple[int, int, float, float],
    rows: PassRows,
    work: tuple[Array, ...],
    asked: tuple[Array, Array],
    meeting: Array,
    part: int,
    parts: int,
) -> None:
    """One pass. It ends in work[1][0], the states after the last norm.

    numbers: places of the cache, key heads, epsilon of the norms, scale of the scores.
    work: what is written on the way, as `LlamaPanelsDecoder` makes it.
    asked: [N, F * hidden], written, F states side by side, and [F], of which layers.
    """
    places, kv_heads, eps, scale = numbers
    streams, normed_, qkv, queries, attended, update, gate_up, hidden, scores = work
    stream, normed = streams[part], normed_[part]
    heads, width = queries.shape[1:]
    flat, layers = attended.reshape((len(queries), heads * width)), len(weights.matrices)
    stream[:] = rows.embeddings
    for layer in range(layers):
        matrices = weights.matrices[layer]
        if layer == 0:
            norm(stream, weights.norms[0][layer], eps, normed)
        else:
            add_and_norm(stream, update, weights.norms[0][layer], eps, normed)
        _note(stream, layer, asked, part)
        multiply_part(weights.like, matrices[0], normed, qkv, meeting, part, parts)
        meet(meeting, parts)
        key, value = rows.cache[layer, 0], rows.cache[layer, 1]
        keys, values = carray(_floats(key), (places, kv_heads, width)), carray(_floats(value), (places, kv_heads, width))
        head_norms = weights.norms[1][layer], weights.norms[2][layer]
        rotate_and_store(qkv, rows.rotation, head_norms, eps, rows.places, queries, keys, values, part, parts)
        meet(meeting, parts)
        attend(queries, (key, value, kv_heads), rows.visible[weights.windows[layer]], scale, scores[part], attended, part, parts)
        meet(meeting, parts)
        multiply_part(weights.like, matrices[1], flat, update, meeting, part, parts)
        meet(meeting, parts)
        add_and_norm(stream, update, weights.norms[3][layer], eps, normed)
        multiply_part(weights.like, matrices[2], normed, gate_up, meeting, part, parts)
        meet(meeting, parts)
        silu_and_multiply(gate_up, hidden, part, parts)
        meet(meeting, parts)
        multiply_part(weights.like, matrices[3], hidden, update, meeting, part, parts)
        meet(meeting, parts)
    add_and_norm(stream, update, weights.last_norm, eps, normed)
    _note(normed, layers, asked, part)


@compiled
def _note(states: Array, layer: int, asked: tuple[Array, Array], part: int) -> None:
    features, wanted = asked
    width = states.shape[1]
    for place in range(len(wanted)):
        if part == 0 and wanted[place] == layer:
            features[:, place * width : (place + 1) * width] = states
