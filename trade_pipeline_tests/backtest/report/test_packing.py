"""What is packed comes back to the last bit, in few bytes."""

import base64
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.backtest.report.packing import Packer, in_ticks, pack
from trade_pipeline_tests.backtest.report.reading import unpacked

numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)


def bytes_of(packed):
    return len(base64.b64decode(packed["bdata"]))


@given(st.lists(numbers, max_size=30))
def test_any_numbers_come_back_the_same(values):
    array = np.array(values, np.float64)
    assert np.array_equal(unpacked(pack(array)), array, equal_nan=True)


@given(st.lists(st.integers(-(10**9), 10**9), max_size=30), st.integers(0, 8))
def test_decimals_come_back_the_same(ticks, decimals):
    array = np.array(ticks, np.float64) / 10**decimals
    assert np.array_equal(unpacked(pack(array)), array)


@given(st.lists(st.integers(-(2**50), 2**50), max_size=30))
def test_whole_numbers_come_back_the_same(values):
    assert np.array_equal(unpacked(pack(np.array(values, np.int64))), np.array(values, np.float64))


@pytest.mark.parametrize(
    ("values", "size"),
    [
        (1_672_531_200_000 + np.arange(200) * 60_000.0, 1),  # times on a grid
        (np.round(20_000 + np.arange(1_000) * 0.25, 2), 2),  # prices in ticks
        (np.round(20_000 + np.arange(1_000) * 123.47, 2), 2),
        (np.cumsum(np.full(100, 1 / 3)), 8),
        (np.cumsum(np.full(100, 1 / 3)).astype(np.float32), 4),
        (np.array([1.0, np.nan]), 8),
        (np.zeros(5), 1),
    ],
)
def test_numbers_on_a_grid_need_few_bytes(values, size):
    assert bytes_of(pack(values)) == size * values.size
    assert in_ticks(values) == (size < 4)


def test_equal_arrays_are_kept_once():
    packer = Packer()
    value = {"x": np.arange(5.0), "again": [np.arange(5.0)], "other": np.arange(6.0)}
    assert json.loads(json.dumps(value, default=packer.default)) == {
        "x": {"array": 0},
        "again": [{"array": 0}],
        "other": {"array": 1},
    }
    assert [unpacked(one).tolist() for one in packer.arrays] == [[0, 1, 2, 3, 4], [*range(6)]]


def test_what_is_no_array_is_named():
    with pytest.raises(TypeError, match="set has no JSON"):
        json.dumps({"x": set()}, default=Packer().default)
