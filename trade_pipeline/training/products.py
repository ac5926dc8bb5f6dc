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
from trade_pipeline.simulator.market import IntArray
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

    The intrinsic takes arrays, the tile's first row and term, and positions in arrays: `(a, a_row,
    a_step, row, term, b, b_at, b_step, c, c_at, c_row, count, left, anew)`, see `add_product`.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        def data(number: int) -> ir.Value:
            make = context.make_array(signature.args[number])
            return make(context, builder, arguments[number]).data

        def begin(number: int, index: ir.Value) -> ir.Value:
            """Where a row or a term of `a` begins."""
            if isinstance(signature.args[number], types.Array):
                return builder.load(builder.gep(data(number), [index]))
            return builder.mul(index, arguments[number])

        first_row, first_term = arguments[3:5]
        a, b, c = data(0), *(builder.gep(data(at), [arguments[at + 1]]) for at in (5, 8))
        b_step, (c_row, count, left, anew) = arguments[7], arguments[10:]
        load, store = _memory(builder, left, whole)

        def at(base: ir.Value, row: int, stride: ir.Value, vector: int) -> ir.Value:
            return builder.gep(
                base, [builder.add(builder.mul(_INDEX(row), stride), _INDEX(vector * LANES))]
            )

        a_rows = [
            builder.gep(a, [begin(1, builder.add(first_row, _INDEX(row)))]) for row in range(rows)
        ]
        places = [at(c, row, c_row, vector) for row in range(rows) for vector in range(vectors)]
        nothing = ir.Constant(_VECTOR, [0.0] * LANES)
        before = [builder.select(anew, nothing, load(place)) for place in places]
        entry = builder.block
        body, done = builder.append_basic_block("terms"), builder.append_basic_block("added")
        builder.cbranch(builder.icmp_signed(">", count, _INDEX(0)), body, done)

        builder.position_at_end(body)
        term, sums = builder.phi(_INDEX), [builder.phi(_VECTOR) for _ in places]
        from_b = builder.gep(b, [builder.mul(term, b_step)])
        from_row = begin(2, builder.add(first_term, term))
        others = [load(at(from_b, 0, b_step, vector)) for vector in range(vectors)]
        fma = _intrinsic(builder, "llvm.fma.v16f32", _VECTOR, [_VECTOR] * 3)
        after = []
        for row in range(rows):
            number = builder.load(builder.gep(a_rows[row], [from_row]))
            factor = _spread(builder, number, _VECTOR)
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
        a_row: Any,
        a_step: Any,
        row: Any,
        term: Any,
        b: Any,
        b_at: Any,
        b_step: Any,
        c: Any,
        c_at: Any,
        c_row: Any,
        count: Any,
        left: Any,
        anew: Any,
    ) -> Any:
        places = types.Array(types.int64, 1, "C")
        a_row, a_step = (
            places if isinstance(at, types.Array) else types.intp for at in (a_row, a_step)
        )
        two = types.intp, types.intp
        taken = a, a_row, a_step, *two, b, *two, c, *two, *two, types.boolean
        return types.void(*taken), generate

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
    a_row: int | IntArray,
    a_step: int | IntArray,
    b: Float32Array,
    b_step: int,
    c: Float32Array,
    c_row: int,
    rows: int,
    columns: int,
    count: int,
    anew: bool,
) -> None:
    """Add `a @ b` to `c`: c[i, j] += a[i, 0] * b[0, j], and so on in the order of terms.

    Args:
        a: float32, of any shape; a[i, p] lies where row i begins and then term p.
        a_row: numbers from a row to the next, or int64 [rows], where each begins.
        a_step: numbers from a term to the next, or int64 [count], where each begins.
        b: float32; b[p, j] lies at `p * b_step + j`.
        b_step: numbers from a term to the next.
        c: float32; c[i, j] lies at `i * c_row + j`.
        c_row: numbers from a row to the next.
        rows: of `a` and `c`.
        columns: of `b` and `c`.
        count: terms of each sum.
        anew: whether sums begin at zero instead of what `c` holds; then there must be a term.
    """
    stay_apart()
    together = rows - rows % TILE_ROWS
    wide = columns - columns % TILE_COLUMNS
    for p in range(0, count, TERMS):
        terms, b_at, new = min(TERMS, count - p), p * b_step, anew and p == 0
        for j in range(0, wide, TILE_COLUMNS):
            here = b_at + j
            for i in range(0, together, TILE_ROWS):
                at = i * c_row + j
                _wide(a, a_row, a_step, i, p, b, here, b_step, c, at, c_row, terms, LANES, new)
            for i in range(together, rows):
                at = i * c_row + j
                _wide_row(a, a_row, a_step, i, p, b, here, b_step, c, at, c_row, terms, LANES, new)
        for j in range(wide, columns, LANES):
            here, left = b_at + j, columns - j
            for i in range(0, together, TILE_ROWS):
                at = i * c_row + j
                _narrow(a, a_row, a_step, i, p, b, here, b_step, c, at, c_row, terms, left, new)
            for i in range(together, rows):
                at = i * c_row + j
                _narrow_row(a, a_row, a_step, i, p, b, here, b_step, c, at, c_row, terms, left, new)
