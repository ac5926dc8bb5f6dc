"""Rules that are long, short or flat; the oracles are written from their definitions alone."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import talib

from trade_pipeline.backtest.signals import find_rsi
from trade_pipeline.settings.baselines import BaselineSettings
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest.rule_markets import (
    FloatArray,
    each_market,
    each_stretch,
    market,
    planned,
    rule,
    stocks,
)


def check_sides(entry: BaselineSettings, dataset: Dataset, sides: FloatArray) -> None:
    """The plan is the even share on these sides, kept while the side stays."""
    plan = planned(entry, dataset)
    np.testing.assert_array_equal(plan.weights, sides / len(dataset.instruments))
    np.testing.assert_array_equal(plan.hold, sides != 0)


@each_market
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("entry", "exit_"), [(20, 10), (5, 12), (1, 1)])
def test_donchian_follows_breaks_of_earlier_extremes(
    made: Callable[[], Dataset], short: bool, entry: int, exit_: int
) -> None:
    def decide(bars: pd.DataFrame) -> list[float]:
        top, bottom = bars.high.shift().rolling(entry).max(), bars.low.shift().rolling(entry).min()
        ceiling = bars.high.shift().rolling(exit_).max()
        floor = bars.low.shift().rolling(exit_).min()
        sides, now = [], 0.0
        for t, close in enumerate(bars.close):
            if t >= max(entry, exit_):
                if now > 0 and close < floor[t]:
                    now = 0.0
                if now < 0 and close > ceiling[t]:
                    now = 0.0
                if close > top[t]:
                    now = 1.0
                if short and close < bottom[t]:
                    now = -1.0
            sides.append(now)
        return sides

    dataset = made()
    sides = each_stretch(dataset, decide)
    assert {0.0, 1.0, *([-1.0] if short else [])} == set(sides.ravel())
    check_sides(rule(kind="donchian", entry=entry, exit=exit_, short=short), dataset, sides)


def test_a_donchian_channel_worked_by_hand() -> None:
    close = [10, 11, 12, 13, 13, 12, 11, 10, 9, 8]
    high = [10, 11, 12, 13, 14, 13, 12, 11, 10, 9]
    low = [10, 11, 12, 13, 13, 12, 11, 10, 9, 8]
    dataset = market(close, high, low)
    # Row 3 closes at 13, above the 12 of rows 0 to 2, and row 4 at the 13 of row 3: no break. Row 5
    # closes at 12, below the 13 of rows 3 and 4, but not below the 12 of row 2; row 6 at 11 is.
    entry = rule(kind="donchian", entry=3, exit=2)
    assert planned(entry, dataset).weights[:, 0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    both = rule(kind="donchian", entry=3, exit=2, short=True)
    assert planned(both, dataset).weights[:, 0].tolist() == [0, 0, 0, 1, 1, 0, -1, -1, -1, -1]


@each_market
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("period", "low", "high"), [(14, 40.0, 60.0), (2, 10.0, 90.0)])
def test_rsi_reversion_buys_below_low_and_sells_above_high(
    made: Callable[[], Dataset], short: bool, period: int, low: float, high: float
) -> None:
    def decide(bars: pd.DataFrame) -> list[float]:
        sides, now = [], 0.0
        moved = (bars.close != bars.close[0]).cumsum() > 0
        # TA-Lib calls it 0 where nothing has moved yet, which is no fall.
        values = np.where(moved, talib.RSI(bars.close.to_numpy(), period), 50.0)
        for value in values:
            if value < low:
                now = 1.0
            if value > high:
                now = -1.0 if short else 0.0
            sides.append(now)
        return sides

    dataset = made()
    sides = each_stretch(dataset, decide)
    assert {0.0, 1.0, *([-1.0] if short else [])} == set(sides.ravel())
    entry = rule(kind="rsi_reversion", period=period, low=low, high=high, short=short)
    check_sides(entry, dataset, sides)


@pytest.mark.parametrize("period", [2, 14, 100])
def test_the_rsi_is_that_of_ta_lib(period: int) -> None:
    close = np.array(stocks().close)
    found = np.full(close.shape, np.nan)
    find_rsi(close, period, found)
    for n in range(2):
        np.testing.assert_allclose(
            found[:, n], talib.RSI(close[:, n].copy(), period), rtol=1e-12, atol=1e-12
        )


def test_the_rsi_of_a_price_that_never_moved_is_neutral() -> None:
    dataset = market(np.full(50, 7.0))
    entry = rule(kind="rsi_reversion", period=5, low=30, high=70, short=True)
    assert not planned(entry, dataset).weights.any()


@each_market
@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize(("lookback", "skip"), [(20, 0), (20, 5), (3, 20)])
def test_momentum_has_the_sign_of_the_return_over_the_lookback(
    made: Callable[[], Dataset], short: bool, lookback: int, skip: int
) -> None:
    def decide(bars: pd.DataFrame) -> list[float]:
        change = bars.close.shift(skip) - bars.close.shift(skip + lookback)
        return [0.0 if math.isnan(one) else float(np.sign(one)) for one in change]

    dataset = made()
    sides = each_stretch(dataset, decide)
    assert {-1.0, 0.0, 1.0} == set(sides.ravel())
    entry = rule(kind="momentum", lookback=lookback, skip=skip, short=short)
    check_sides(entry, dataset, sides if short else np.maximum(sides, 0.0))


def test_a_signal_is_flat_where_the_price_is_what_it_was() -> None:
    dataset = market([0.1, 0.3, 0.1, 0.2, 0.1])
    entry = rule(kind="momentum", lookback=2, short=True)
    assert planned(entry, dataset).weights[:, 0].tolist() == [0, 0, 0, -1, 0]
