"""Matrix products in compiled code, with the same bits on every processor.

Libraries choose kernels by the processor, and each adds in an order of its own. Here every number
of a product is one chain of fused multiply-adds in the order of its terms (IEEE 754, rounded once a
term); vector instructions compute neighbours side by side, which changes none of them. Start at
`add_product`.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from trade_pipeline.simulator.compiled import compiled_apart, stay_apart
from trade_pipeline.training.inference import Float32Array

LANES = 16  # numbers of a vector: a cache line; narrower processors take it in parts
# A tile of the result stays in registers while its terms are added.
WIDE_REGISTERS = bool(llvm.get_host_cpu_features().get("avx512f", False))
TILE_ROWS, TILE_VECTORS = (6, 4) if WIDE_REGISTERS else (4, 1)

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_NUMBERS = ir.VectorType(ir.IntType(64), LANES)


def _tile(rows: int, vectors: int, whole: bool) -> Any:
    """Add a product to a tile of `rows` by `vectors * LANES`, or its first `left` columns.

    The intrinsic takes arrays and positions in them: `(a, a_at, a_row, a_step, b, b_at, b_step, c,
    c_at, c_row, count, left)`, see `add_product`.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        def pointer(number: int) -> ir.Value:
            array = context.make_array(signature.args[number])(context, builder, arguments[number])
            return builder.gep(array.data, [arguments[number + 1]])

        a, b, c = pointer(0), pointer(4), pointer(7)
        (a_row, a_step), b_step, (c_row, count, left) = arguments[2:4], arguments[6], arguments[9:]
        load, store = _memory(builder, left, whole)

        def at(base: ir.Value, row: int, stride: ir.Value, vector: int) -> ir.Value:
            return builder.gep(
                base, [builder.add(builder.mul(_INDEX(row), stride), _INDEX(vector * LANES))]
            )

        places = [at(c, row, c_row, vector) for row in range(rows) for vector in range(vectors)]
        before = [load(place) for place in places]
        entry = builder.block
        body, done = builder.append_basic_block("terms"), builder.append_basic_block("added")
        builder.cbranch(builder.icmp_signed(">", count, _INDEX(0)), body, done)

        builder.position_at_end(body)
        term, sums = builder.phi(_INDEX), [builder.phi(_VECTOR) for _ in places]
        from_b = builder.gep(b, [builder.mul(term, b_step)])
        from_a = builder.gep(a, [builder.mul(term, a_step)])
        others = [load(at(from_b, 0, b_step, vector)) for vector in range(vectors)]
        fma = _intrinsic(builder, "llvm.fma.v16f32", _VECTOR, [_VECTOR] * 3)
        after = []
        for row in range(rows):
            factor = _spread(builder, builder.load(at(from_a, row, a_row, 0)), _VECTOR)
            for vector in range(vectors):
                summed = sums[row * vectors + vector]
                after.append(builder.call(fma, [factor, others[vector], summed]))
        following = builder.add(term, _INDEX(1))
        builder.cbranch(builder.icmp_signed("<", following, count), body, done)
        term.add_incoming(_INDEX(0), entry)
        term.add_incoming(following, body)
        for summed, first, last in zip(sums, before, after, strict=True):
            summed.add_incoming(first, entry)
            summed.add_incoming(last, body)

        builder.position_at_end(done)
        found = [builder.phi(_VECTOR) for _ in places]
        for place, first, last, value in zip(places, before, after, found, strict=True):
            value.add_incoming(first, entry)
            value.add_incoming(last, body)
            store(value, place)
        return context.get_dummy_value()

    def tile(
        _context: Any,
        a: Any,
        a_at: Any,
        a_row: Any,
        a_step: Any,
        b: Any,
        b_at: Any,
        b_step: Any,
        c: Any,
        c_at: Any,
        c_row: Any,
        count: Any,
        left: Any,
    ) -> Any:
        whole_numbers = (types.intp,) * 3
        return types.void(
            a, *whole_numbers, b, *whole_numbers[:2], c, *whole_numbers[:2], *whole_numbers[:2]
        ), generate

    return intrinsic(tile)


def _memory(
    builder: ir.IRBuilder, left: ir.Value, whole: bool
) -> tuple[Callable[[ir.Value], ir.Value], Callable[[ir.Value, ir.Value], None]]:
    """How vectors come from and go to memory: all of them, or their first `left` numbers."""
    to_vector = _VECTOR.as_pointer()
    if whole:

        def load_all(place: ir.Value) -> ir.Value:
            return builder.load(builder.bitcast(place, to_vector), align=4)

        def store_all(value: ir.Value, place: ir.Value) -> None:
            builder.store(value, builder.bitcast(place, to_vector), align=4)

        return load_all, store_all
    numbers = ir.Constant(_NUMBERS, list(range(LANES)))
    mask = builder.icmp_signed("<", numbers, _spread(builder, left, _NUMBERS))
    align = ir.IntType(32)(4)

    def load_some(place: ir.Value) -> ir.Value:
        given = [to_vector, align.type, _MASK, _VECTOR]
        read = _intrinsic(builder, "llvm.masked.load.v16f32.p0", _VECTOR, given)
        nothing = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.call(read, [builder.bitcast(place, to_vector), align, mask, nothing])

    def store_some(value: ir.Value, place: ir.Value) -> None:
        given = [_VECTOR, to_vector, align.type, _MASK]
        write = _intrinsic(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), given)
        builder.call(write, [value, builder.bitcast(place, to_vector), align, mask])

    return load_some, store_some


def _intrinsic(
    builder: ir.IRBuilder, name: str, returned: ir.Type, given: list[ir.Type]
) -> ir.Function:
    """An instruction of LLVM's, by its whole name."""
    known = builder.module.globals.get(name)
    return known or ir.Function(builder.module, ir.FunctionType(returned, given), name)


def _spread(builder: ir.IRBuilder, value: ir.Value, vector: ir.VectorType) -> ir.Value:
    """A number in each place of a vector."""
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, undefined, everywhere)


_wide: Any = _tile(TILE_ROWS, TILE_VECTORS, whole=True)
_wide_row: Any = _tile(1, TILE_VECTORS, whole=True)
_narrow: Any = _tile(TILE_ROWS, 1, whole=False)
_narrow_row: Any = _tile(1, 1, whole=False)
TILE_COLUMNS = TILE_VECTORS * LANES
TERMS = 128  # added at a time: what they need of both factors stays in the first cache


@compiled_apart
def add_product(
    a: Float32Array,
    a_row: int,
    a_step: int,
    b: Float32Array,
    b_step: int,
    c: Float32Array,
    c_row: int,
    rows: int,
    columns: int,
    count: int,
) -> None:
    """Add `a @ b` to `c`: c[i, j] += a[i, 0] * b[0, j], and so on in the order of terms.

    Args:
        a: float32, of any shape; a[i, p] lies at `i * a_row + p * a_step`.
        a_row: numbers from a row to the next, likewise `a_step` from a term to the next.
        a_step: see `a_row`.
        b: float32; b[p, j] lies at `p * b_step + j`.
        b_step: numbers from a term to the next.
        c: float32; c[i, j] lies at `i * c_row + j`.
        c_row: numbers from a row to the next.
        rows: of `a` and `c`.
        columns: of `b` and `c`.
        count: terms of each sum.
    """
    stay_apart()
    together = rows - rows % TILE_ROWS
    wide = columns - columns % TILE_COLUMNS
    for first in range(0, count, TERMS):
        terms, a_at, b_at = min(TERMS, count - first), first * a_step, first * b_step
        for j in range(0, wide, TILE_COLUMNS):
            for i in range(0, together, TILE_ROWS):
                here, at = a_at + i * a_row, i * c_row + j
                _wide(a, here, a_row, a_step, b, b_at + j, b_step, c, at, c_row, terms, LANES)
            for i in range(together, rows):
                here, at = a_at + i * a_row, i * c_row + j
                _wide_row(a, here, a_row, a_step, b, b_at + j, b_step, c, at, c_row, terms, LANES)
        for j in range(wide, columns, LANES):
            left = columns - j
            for i in range(0, together, TILE_ROWS):
                here, at = a_at + i * a_row, i * c_row + j
                _narrow(a, here, a_row, a_step, b, b_at + j, b_step, c, at, c_row, terms, left)
            for i in range(together, rows):
                here, at = a_at + i * a_row, i * c_row + j
                _narrow_row(a, here, a_row, a_step, b, b_at + j, b_step, c, at, c_row, terms, left)
