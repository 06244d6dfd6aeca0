"""Softmax attention of a few rows over a cache, in vector code of our own.

What a row comes out as depends on its query and on the keys and values that it sees, in their order, and
on nothing else. The sum of a score runs over the lanes of a vector and then over these in halves; that of an
output is one chain of fused multiply-adds over the places. So it is the same, bit for bit, whether the places
lie side by side or apart, in whatever company and in however many threads.
"""

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from pard2.kernels.elementwise import softmax
from pard2.kernels.products import compiled
from pard2.kernels.vectors import (
    FLOAT,
    I64,
    LANES,
    ZERO,
    choose,
    first_lanes,
    fma,
    intrinsic,
    load,
    load_lanes,
    loop,
    offset,
    splat,
    store,
    store_lanes,
    sum_of_lanes,
)

Array = np.ndarray

_HEADS = 4 if LANES == 16 else 2  # of one key head, that are computed side by side
_PLACES = 4  # keys side by side


def _emit_scores(builder: ir.IRBuilder, heads: int, query: ir.Value, keys: list[ir.Value], width: ir.Value, out: ir.Value, stride: ir.Value) -> None:
    """out[head * stride + place] = query[head] . key[place] for `heads` query heads and four places."""

    def add(sums: list[ir.Value], at: ir.Value, mask: ir.Value | None) -> list[ir.Value]:
        def read(address: ir.Value) -> ir.Value:
            address = offset(builder, address, (at, 4))
            return load(builder, address) if mask is None else load_lanes(builder, address, mask)

        found, rows = [], [read(key) for key in keys]
        for head in range(heads):
            part = read(offset(builder, query, (width, 4 * head)))
            found += [fma(builder, part, row, sums[head * _PLACES + place]) for place, row in enumerate(rows)]
        return found

    whole = builder.and_(width, I64(-LANES))
    sums = loop(builder, I64(0), whole, LANES, [ZERO] * (heads * _PLACES), lambda at, sums: add(sums, at, None))
    rest = first_lanes(builder, builder.sub(width, whole))
    sums = loop(builder, whole, width, LANES, sums, lambda at, sums: add(sums, at, rest))
    for head in range(heads):
        store(builder, sum_of_lanes(builder, sums[head * _PLACES : (head + 1) * _PLACES]), offset(builder, out, (stride, 4 * head)))


@intrinsic
def _scores(typing: Any, heads: Any, query: Any, keys: Any, width: Any, out: Any, stride: Any) -> Any:
    """`_emit_scores` of 1 to `_HEADS` heads. Addresses, and strides in elements."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        count, query, keys, width, out, stride = arguments
        places = [builder.extract_value(keys, i) for i in range(_PLACES)]
        choose(builder, count, {n: partial(_emit_scores, builder, n, query, places, width, out, stride) for n in range(1, _HEADS + 1)})
        return ir.Constant(ir.IntType(1), 0)

    integer = types.int64
    return types.boolean(integer, integer, types.UniTuple(integer, _PLACES), integer, integer, integer), emit


def _emit_values(builder: ir.IRBuilder, heads: int, given: dict[str, ir.Value]) -> None:
    """out[head] += the sum over `count` places, one after another, of score[head, place] * value[place]."""
    width, most = given["width"], 4 if heads * 4 <= LANES - 4 else 2  # vectors of each head that are summed side by side

    def sum_places(vectors: int, at: ir.Value, mask: ir.Value | None) -> None:
        places = [
            offset(builder, given["out"], (width, 4 * head), (at, 4), (vector, 4 * LANES)) for head in range(heads) for vector in range(vectors)
        ]
        sums = [load(builder, place) if mask is None else load_lanes(builder, place, mask) for place in places]

        def step(place: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            value = offset(builder, given["value"], (builder.mul(place, given["value_stride"]), 4), (at, 4))
            parts = [offset(builder, value, (vector, 4 * LANES)) for vector in range(vectors)]
            read = [load(builder, part) if mask is None else load_lanes(builder, part, mask) for part in parts]
            found = []
            for head in range(heads):
                score = splat(builder, load(builder, offset(builder, given["score"], (given["score_stride"], 4 * head), (place, 4)), FLOAT))
                found += [fma(builder, score, part, sums[head * vectors + i]) for i, part in enumerate(read)]
            return found

        for place, result in zip(places, loop(builder, I64(0), given["count"], 1, sums, step), strict=True):
            if mask is None:
                store(builder, result, place)
            else:
                store_lanes(builder, result, place, mask)

    def sum_vectors(vectors: int, start: ir.Value) -> ir.Value:
        """From `start` on, as many outputs as fill so many vectors. Returns where the rest begins."""
        end = builder.add(start, builder.and_(builder.sub(width, start), I64(-vectors * LANES)))

        def step(at: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
            sum_places(vectors, at, None)
            return []

        loop(builder, start, end, vectors * LANES, [], step)
        return end

    rest = sum_vectors(1, sum_vectors(most, I64(0)))
    left = builder.sub(width, rest)
    with builder.if_then(builder.icmp_signed(">", left, I64(0))):
        sum_places(1, rest, first_lanes(builder, left))


_NAMES = ("score", "score_stride", "value", "value_stride", "count", "width", "out")


@intrinsic
def _values(typing: Any, heads: Any, given: Any) -> Any:
    """`_emit_values` of 1 to `_HEADS` heads.

    given: what `_NAMES` names, addresses and numbers of elements.
    """

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        named = dict(zip(_NAMES, (builder.extract_value(arguments[1], i) for i in range(len(_NAMES))), strict=True))
        choose(builder, arguments[0], {n: partial(_emit_values, builder, n, named) for n in range(1, _HEADS + 1)})
        return ir.Constant(ir.IntType(1), 0)

    return types.boolean(types.int64, types.UniTuple(types.int64, len(_NAMES))), emit


@compiled
def _place(visible: Array, at: int) -> int:
    """Where the `at`-th of the keys lies that a row sees; the last one for those beyond."""
    behind = at - (visible[1] - visible[0])
    return visible[0] + at if behind < 0 else visible[3 + min(behind, visible[2] - 1)]


@compiled
def _attend_one(queries: Array, key: int, value: int, stride: int, visible: Array, scale: float, scores: Array, out: Array) -> None:
    """One row of the query heads that share a key head.

    queries, out: [heads, D].
    key, value: addresses of place 0 of that head, `stride` elements a place.
    visible: [3 + A].
    scores: [heads, at least places + 4], for use in here.
    """
    heads, width = queries.shape
    stretch, singles = visible[1] - visible[0], visible[2]
    count = stretch + singles
    out[:] = 0
    for first in range(0, heads, _HEADS):
        some = min(_HEADS, heads - first)
        query, score, result = queries[first].ctypes.data, scores[first].ctypes.data, out[first].ctypes.data
        for at in range(0, count, _PLACES):
            if at + _PLACES <= stretch:
                places = (visible[0] + at, visible[0] + at + 1, visible[0] + at + 2, visible[0] + at + 3)
            elif singles:
                places = (_place(visible, at), _place(visible, at + 1), _place(visible, at + 2), _place(visible, at + 3))
            else:
                last = visible[1] - 1
                places = (visible[0] + at, min(visible[0] + at + 1, last), min(visible[0] + at + 2, last), last)
            keys = (
                key + 4 * stride * places[0],
                key + 4 * stride * places[1],
                key + 4 * stride * places[2],
                key + 4 * stride * places[3],
            )
            _scores(some, query, keys, width, score + 4 * at, scores.shape[1])
        for head in range(first, first + some):
            softmax(scores[head, :count], scale)
        _values(some, (score, scores.shape[1], value + 4 * stride * visible[0], stride, stretch, width, result))
        for single in range(singles):
            at = value + 4 * stride * visible[3 + single]
            _values(some, (score + 4 * (stretch + single), scores.shape[1], at, stride, 1, width, result))


@compiled
def attend(queries: Array, cache: tuple[int, int, int], visible: Array, scale: float, scores: Array, out: Array, part: int, parts: int) -> None:
    """Softmax attention of one part of the rows and key heads.

    queries, out: [N, H, D].
    cache: addresses of its keys and values, [places, KV, D], and KV.
    visible: [N, 3 + A], the places that each row sees: begin and end of a stretch, how many single ones
        follow, and these.
    scores: [H, at least places seen + 4], for use in here.
    """
    key, value, kv_heads = cache
    rows, heads, width = queries.shape
    group = heads // kv_heads
    tasks = rows * kv_heads
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        shared, row = task // rows, task % rows  # rows of one key head after another, that share its keys
        mine, start = slice(shared * group, (shared + 1) * group), 4 * shared * width
        _attend_one(queries[row, mine], key + start, value + start, kv_heads * width, visible[row], scale, scores, out[row, mine])
