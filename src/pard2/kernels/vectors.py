"""Pieces of vector code in LLVM's instructions, for kernels whose order of sums must not be left to a
compiler.
"""

import platform
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba.extending
from llvmlite import ir
from numba.core import cgutils

intrinsic: Callable[[Callable[..., Any]], Any] = numba.extending.intrinsic  # a function written in instructions

I32, I64, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


@cache
def _features() -> dict[str, bool]:
    allowed = numba.config.CPU_FEATURES  # type: ignore[attr-defined]  # NUMBA_CPU_FEATURES, where somebody has set it
    return dict(llvm.get_host_cpu_features()) if allowed is None else {word[1:]: word[0] == "+" for word in allowed.split(",")}


LANES = 16 if _features().get("avx512f") else 8  # float32 numbers of a vector
REGISTERS = 32 if LANES == 16 else 16  # vectors
VECTOR, INTEGERS = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
ZERO = ir.Constant(VECTOR, [0.0] * LANES)


def has_vectors() -> bool:
    """Whether this processor has what the kernels are written for: fused multiply-adds of vectors."""
    return platform.machine() in ("arm64", "aarch64") or bool(_features().get("fma") and _features().get("avx2"))


def integers(values: int | Sequence[int]) -> ir.Constant:
    return ir.Constant(INTEGERS, [values] * LANES if isinstance(values, int) else list(values))


def load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type = VECTOR) -> ir.Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 1


def splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    """A number in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    empty = ir.Constant(kind, ir.Undefined)
    return builder.shuffle_vector(builder.insert_element(empty, scalar, I32(0)), empty, integers(0))


def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """a * b + c, rounded once."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fma.v{LANES}f32")
    return builder.call(function, [a, b, c])


def offset(builder: ir.IRBuilder, address: ir.Value, *products: tuple[ir.Value | int, int]) -> ir.Value:
    """An address and the sum of products of a value and a number."""
    for value, factor in products:
        address = builder.add(address, I64(value * factor) if isinstance(value, int) else builder.mul(value, I64(factor)))
    return address


def first_lanes(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    """A mask that is true in the first `count` lanes."""
    return builder.icmp_signed("<", integers(range(LANES)), splat(builder, builder.trunc(count, I32)))


def load_lanes(builder: ir.IRBuilder, address: ir.Value, mask: ir.Value) -> ir.Value:
    """A vector whose lanes outside of the mask are zero and not read."""
    kind = ir.FunctionType(VECTOR, [VECTOR.as_pointer(), I32, mask.type, VECTOR])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{LANES}f32.p0")
    return builder.call(function, [builder.inttoptr(address, VECTOR.as_pointer()), I32(4), mask, ZERO])


def store_lanes(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, mask: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [VECTOR, VECTOR.as_pointer(), I32, mask.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{LANES}f32.p0")
    builder.call(function, [value, builder.inttoptr(address, VECTOR.as_pointer()), I32(4), mask])


def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    """Ask for the cache line of an address, which need not be one of ours."""
    pointer = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32]), "llvm.prefetch.p0")
    builder.call(function, [builder.inttoptr(address, pointer), I32(0), I32(3), I32(1)])


def sum_of_lanes(builder: ir.IRBuilder, vectors: Sequence[ir.Value]) -> ir.Value:
    """[4]: of four vectors the sums over their lanes, halves upon halves."""
    undefined = [ir.Constant(vector.type, ir.Undefined) for vector in vectors]

    def pick(a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))

    width = LANES
    while width > 4:
        width //= 2
        folded = []
        for vector, nothing in zip(vectors, undefined, strict=True):
            folded.append(builder.fadd(pick(vector, nothing, range(width)), pick(vector, nothing, range(width, 2 * width))))
        vectors, undefined = folded, [ir.Constant(vector.type, ir.Undefined) for vector in folded]
    while len(vectors) > 1:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True))
        vectors = [builder.fadd(pick(a, b, (0, 2, 4, 6)), pick(a, b, (1, 3, 5, 7))) for a, b in pairs]
    return vectors[0]


def loop(
    builder: ir.IRBuilder,
    start: ir.Value,
    end: ir.Value,
    stride: int,
    carried: Sequence[ir.Value],
    step: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """What `step(counter, values)` makes of the carried values, for start, start + stride, ... while
    counter < end.
    """
    before, body, after = builder.block, builder.append_basic_block("body"), builder.append_basic_block("after")
    builder.cbranch(builder.icmp_signed("<", start, end), body, after)
    builder.position_at_end(body)
    counter, values = builder.phi(I64), [builder.phi(value.type) for value in carried]
    found = step(counter, list(values))
    last, following = builder.block, builder.add(counter, I64(stride))
    builder.cbranch(builder.icmp_signed("<", following, end), body, after)
    counter.add_incoming(start, before)
    counter.add_incoming(following, last)
    builder.position_at_end(after)
    results = [builder.phi(value.type) for value in carried]
    for phi, result, old, new in zip(values, results, carried, found, strict=True):
        for value, block in ((old, before), (new, last)):
            result.add_incoming(value, block)
            phi.add_incoming(value, block)
    return results


def choose(builder: ir.IRBuilder, number: ir.Value, cases: Mapping[int, Callable[[], None]]) -> None:
    """Run what the case of this number writes."""
    end = builder.append_basic_block("end")
    switch = builder.switch(number, end)
    for value, emit in cases.items():
        block = builder.append_basic_block(f"case{value}")
        switch.add_case(I64(value), block)
        builder.position_at_end(block)
        emit()
        builder.branch(end)
    builder.position_at_end(end)
