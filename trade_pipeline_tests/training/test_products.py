"""Products of matrices are chains of fused multiply-adds, whatever is computed beside them."""

import ctypes
import ctypes.util
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trade_pipeline.training.products import TERMS, add_product

Matrix = NDArray[np.float32]


given_sizes = given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 15),
    columns=st.integers(1, 140),
    count=st.integers(1, TERMS + 40),
)


def product(a: Matrix, b: Matrix, c: Matrix, anew: bool = False) -> Matrix:
    """`c + a @ b`; the factors may be transposed views, `b` and `c` have contiguous rows."""
    result = c.copy()
    row, step = (stride // a.itemsize for stride in a.strides)
    flat = np.lib.stride_tricks.as_strided(a, (a.size,), (a.itemsize,))
    add_product(
        flat,
        row,
        step,
        b.reshape(-1),
        b.shape[1],
        result.reshape(-1),
        c.shape[1],
        *c.shape,
        len(b),
        anew,
    )
    return result


def drawn(seed: int, rows: int, columns: int, count: int) -> tuple[Matrix, Matrix, Matrix]:
    random = np.random.default_rng(seed)
    shapes = (rows, count), (count, columns), (rows, columns)
    a, b, c = (random.normal(size=shape).astype(np.float32) for shape in shapes)
    return a, b, c


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 15),
    columns=st.integers(1, 140),
    count=st.integers(0, TERMS + 40),
)
def test_each_number_is_a_chain_of_fused_multiply_adds(
    seed: int, rows: int, columns: int, count: int
) -> None:
    library = ctypes.CDLL(ctypes.util.find_library("m"))
    fused = library.fmaf
    fused.restype, fused.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    a, b, c = drawn(seed, rows, columns, count)
    found = product(a, b, c)
    random = np.random.default_rng(seed)
    for _ in range(5):
        i, j = random.integers(rows), random.integers(columns)
        expected = float(c[i, j])
        for p in range(count):
            expected = fused(float(a[i, p]), float(b[p, j]), expected)
        assert found[i, j] == np.float32(expected)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(2, 15),
    columns=st.integers(2, 140),
    count=st.integers(1, 60),
    at=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
)
def test_what_is_computed_beside_it_changes_no_bit(
    seed: int, rows: int, columns: int, count: int, at: tuple[int, int]
) -> None:
    a, b, c = drawn(seed, rows, columns, count)
    i, j = at[0] % rows, at[1] % columns
    whole = product(a, b, c)
    part = product(a[i:].copy(), b[:, : j + 1].copy(), c[i:, : j + 1].copy())
    assert part.tobytes() == whole[i:, : j + 1].tobytes()
    turned = product(a.T.copy().T, b, c)
    assert turned.tobytes() == whole.tobytes()


@settings(max_examples=60, deadline=None)
@given_sizes
def test_a_product_begun_anew_is_one_added_to_nothing(
    seed: int, rows: int, columns: int, count: int
) -> None:
    a, b, c = drawn(seed, rows, columns, count)
    assert product(a, b, c, anew=True).tobytes() == product(a, b, np.zeros_like(c)).tobytes()


@settings(max_examples=60, deadline=None)
@given_sizes
def test_rows_and_terms_may_lie_anywhere(seed: int, rows: int, columns: int, count: int) -> None:
    _, b, c = drawn(seed, rows, columns, count)
    random = np.random.default_rng(seed)
    flat = random.normal(size=1_000).astype(np.float32)
    sizes = rows, columns, count, False
    for placed in ("rows", "terms"):
        # What is placed may overlap; of the other a step is the next number.
        places = random.integers(
            0, len(flat) - max(rows, count), rows if placed == "rows" else count
        )
        a = flat[places[:, None] + np.arange(count if placed == "rows" else rows)]
        found = c.copy()
        row_step: tuple[Any, Any] = (places, 1) if placed == "rows" else (1, places)
        add_product(flat, *row_step, b.reshape(-1), columns, found.reshape(-1), columns, *sizes)
        expected = product(a if placed == "rows" else a.T.copy(), b, c)
        assert found.tobytes() == expected.tobytes()


def test_numbers_beyond_the_result_stay_as_they_are() -> None:
    rows, columns, count, beyond = 7, 21, 5, 13
    a, b, _ = drawn(0, rows, columns, count)
    c = np.full((rows, columns + beyond), 3.0, np.float32)
    add_product(
        a.reshape(-1), count, 1, b.reshape(-1), columns, c.reshape(-1), columns + beyond,
        rows, columns, count, False,
    )  # fmt: skip
    np.testing.assert_allclose(c[:, :columns], 3.0 + a @ b, rtol=1e-5, atol=1e-5)
    assert (c[:, columns:] == 3.0).all()
