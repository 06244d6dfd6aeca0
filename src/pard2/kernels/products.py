"""Products of a few rows of float32 with a matrix of bfloat16 or int8 weights: vector code of our own.

Every output is ONE chain of fused multiply-adds over its inputs, first to last, from zero, and nothing else:

    sum = 0
    for k in 0 .. inputs - 1:  sum = fma(x[row, k], weight[output, k], sum)
    out = fma(sum, scale, bias)

So a row comes out the same, bit for bit, whatever rows share its pass, in however many threads, and with
vectors of any width. Speed comes from many chains side by side: the lanes of a vector are outputs. A
compiler left alone would rather split each chain, and otherwise for 1 row than for 7; so the inner loop
is written in LLVM's instructions, for each number of rows (`_emit_block`).

Weights lie in panels (`panels.Panels`): `PANEL` outputs side by side, input after input, so that a thread
reads memory from one end to the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from pard2.kernels.vectors import (
    FLOAT,
    I64,
    INTEGERS,
    LANES,
    REGISTERS,
    VECTOR,
    ZERO,
    choose,
    fma,
    integers,
    intrinsic,
    load,
    loop,
    offset,
    prefetch,
    splat,
    store,
)

Array = np.ndarray

PANEL = 2 * LANES  # outputs
_MOST = 12 if LANES == 16 else 6  # rows of a block: two sums each, and a few registers for what is multiplied
_AHEAD = 2048  # bytes of a panel that are asked for before they are needed: the sums of many rows leave memory idle
_UNROLLED = 4  # inputs of a round of the inner loop


def _side_by_side(rows: int) -> int:
    """How many panels a block of so many rows takes: enough chains to hide how long one multiply-add
    takes, few enough for the registers.
    """
    return max(1, min(4, (REGISTERS - 4) // (2 * rows + 2)))


# --- a block in LLVM's instructions --------------------------------------------------------------


def _bfloat16(builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """A panel's weights of one input: number j is the low, number LANES + j the high half of 32 bits."""
    both = load(builder, address, INTEGERS)
    return [builder.bitcast(half, VECTOR) for half in (builder.shl(both, integers(16)), builder.and_(both, integers(-65536)))]


def _int8(builder: ir.IRBuilder, address: ir.Value) -> list[ir.Value]:
    """A panel's weights of one input: one byte each."""
    parts = [load(builder, builder.add(address, I64(first)), ir.VectorType(ir.IntType(8), LANES)) for first in (0, LANES)]
    return [builder.sitofp(builder.sext(part, INTEGERS), VECTOR) for part in parts]


# By the weights' type in memory: how a panel is read, and the bytes of a weight.
_KINDS: dict[types.Type, tuple[Callable[[ir.IRBuilder, ir.Value], list[ir.Value]], int]] = {types.uint16: (_bfloat16, 2), types.int8: (_int8, 1)}
_NAMES = ("x", "x_stride", "weight", "scale", "bias", "inputs", "out", "out_stride")


def _emit_block(builder: ir.IRBuilder, kind: types.Type, rows: int, panels: int, given: dict[str, ir.Value]) -> None:
    """All outputs of `panels` panels for `rows` rows."""
    read, size = _KINDS[kind]
    xs = [offset(builder, given["x"], (given["x_stride"], 4 * row)) for row in range(rows)]
    weights = [offset(builder, given["weight"], (given["inputs"], PANEL * size * panel)) for panel in range(panels)]

    def step(unrolled: int, k: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        for weight in weights:
            for line in range(0, unrolled * PANEL * size, 64):
                prefetch(builder, offset(builder, weight, (k, PANEL * size), (_AHEAD + line, 1)))
        for ahead in range(unrolled):
            vectors = [vector for weight in weights for vector in read(builder, offset(builder, weight, (k, PANEL * size), (ahead, PANEL * size)))]
            splats = [splat(builder, load(builder, offset(builder, x, (k, 4), (ahead, 4)), FLOAT)) for x in xs]
            sums = [fma(builder, x, vector, sums[row * len(vectors) + i]) for row, x in enumerate(splats) for i, vector in enumerate(vectors)]
        return sums

    whole = builder.and_(given["inputs"], I64(-_UNROLLED))
    sums = loop(builder, I64(0), whole, _UNROLLED, [ZERO] * (2 * rows * panels), partial(step, _UNROLLED))
    sums = loop(builder, whole, given["inputs"], 1, sums, partial(step, 1))
    for i in range(2 * panels):
        scale, bias = (load(builder, offset(builder, given[name], (i, 4 * LANES))) for name in ("scale", "bias"))
        for row in range(rows):
            result = fma(builder, sums[row * 2 * panels + i], scale, bias)
            store(builder, result, offset(builder, given["out"], (i, 4 * LANES), (given["out_stride"], 4 * row)))


@intrinsic
def _block(typing: Any, like: Any, rows: Any, panels: Any, given: Any) -> Any:
    """One block: `rows` of 1 to `_MOST`, `panels` 1 or `_side_by_side(rows)`.

    like: an array of the weights' type.
    given: what `_NAMES` names, addresses and numbers of elements.
    """

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        values = dict(zip(_NAMES, (builder.extract_value(arguments[3], i) for i in range(len(_NAMES))), strict=True))
        cases = {
            8 * rows + panels: partial(_emit_block, builder, like.dtype, rows, panels, values)
            for rows in range(1, _MOST + 1)
            for panels in {1, _side_by_side(rows)}
        }
        choose(builder, builder.add(builder.mul(arguments[1], I64(8)), arguments[2]), cases)
        return ir.Constant(ir.IntType(1), 0)

    return types.boolean(like, types.int64, types.int64, types.UniTuple(types.int64, len(_NAMES))), emit


# --- a matrix ------------------------------------------------------------------------------------

compiled = njit(cache=True, nogil=True, error_model="numpy")
_SIDES = tuple([1, *(_side_by_side(rows) for rows in range(1, _MOST + 1))])


@compiled
def multiply(like: Array, matrix: Array, x: Array, out: Array, first: int, last: int) -> None:
    """out[:, o] = x @ weight[o] * scale[o] + bias[o] for the outputs o of panels `first` to `last - 1`.

    like: an array of the weights' type, which decides what is compiled.
    matrix: `Panels.numbers`.
    x: [N, inputs] and out: [N, at least PANEL * last], float32, each row's elements side by side.
    """
    weight, scale, bias, inputs = matrix[0], matrix[1], matrix[2], matrix[3]
    rows = x.shape[0]
    pieces = (rows + _MOST - 1) // _MOST
    most = (rows + pieces - 1) // pieces
    side, panel = _SIDES[most], first
    while panel < last:
        count = side if panel + side <= last else 1
        row = 0
        while row < rows:  # the panels stay in the nearest cache for the next rows
            some = min(most, rows - row)
            wide = count if count == _SIDES[some] else 1
            for p in range(panel, panel + count, wide):
                _block(
                    like,
                    some,
                    wide,
                    (
                        x.ctypes.data + row * x.strides[0],
                        x.strides[0] // 4,
                        weight + p * PANEL * inputs * like.itemsize,
                        scale + p * PANEL * 4,
                        bias + p * PANEL * 4,
                        inputs,
                        out.ctypes.data + row * out.strides[0] + p * PANEL * 4,
                        out.strides[0] // 4,
                    ),
                )
            row += some
        panel += count


@compiled
def multiply_part(like: Array, matrix: Array, x: Array, out: Array, _meeting: Array, part: int, parts: int) -> None:
    """One part of `multiply` with all panels that fill `out`, as `team.Team.run` calls it."""
    count = out.shape[1] // PANEL
    multiply(like, matrix, x, out, part * count // parts, (part + 1) * count // parts)
