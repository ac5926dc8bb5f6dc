"""Moving averages are compared exactly, whatever the price."""

from fractions import Fraction

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from trade_pipeline.backtest.crossing import TICKS_PER_UNIT, find_above

# Cents of a cheap token, of bitcoin in dollars, and of bitcoin in rupiah.
LEVELS = (0.0003, 61_234.56, 1_634_567_890.0, 9.8e13)


@st.composite
def paths(draw: st.DrawFn) -> np.ndarray:
    """Prices [T, 1] that move by few ticks around a level, so that averages often tie."""
    level = draw(st.sampled_from(LEVELS))
    tick = draw(st.sampled_from([1e-8, 0.01, 1.0, 1000.0]))
    moves = draw(st.lists(st.integers(-3, 3), min_size=1, max_size=80))
    return np.abs(level + tick * np.cumsum(moves)).reshape(-1, 1)


def mean(prices: np.ndarray) -> Fraction:
    """In ticks, each price rounded to one."""
    ticks = [round(Fraction(price) * TICKS_PER_UNIT) for price in prices.tolist()]
    return Fraction(sum(ticks), len(ticks))


@example(prices=1e12 * np.arange(1.0, 31.0).reshape(-1, 1), fast=5, more=15)
@given(prices=paths(), fast=st.integers(1, 20), more=st.integers(1, 40))
def test_a_mean_is_above_another_exactly_as_fractions_say(
    prices: np.ndarray, fast: int, more: int
) -> None:
    slow = fast + more
    above = np.zeros(prices.shape, np.bool_)
    find_above(prices, fast, slow, above)
    path = prices[:, 0]
    for t in range(len(path)):
        known = t >= slow - 1
        expected = known and mean(path[t - fast + 1 : t + 1]) > mean(path[t - slow + 1 : t + 1])
        assert above[t, 0] == expected, (t, path[t])
