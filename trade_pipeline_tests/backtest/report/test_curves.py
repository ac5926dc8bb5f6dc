"""Thinning keeps what a reader measures; aggregation keeps what candles mean."""

import numpy as np
import pytest

from trade_pipeline.backtest.report.curves import Candles, aggregate, thin
from trade_pipeline.evaluation.metrics import drawdown


def walk(size, seed=0):
    steps = np.random.default_rng(seed).normal(0, 0.002, size)
    return np.arange(size, dtype=np.int64) * 60_000, 1e5 * np.exp(np.cumsum(steps))


def test_a_short_curve_is_kept_whole():
    ts, equity = walk(5_000)
    points = thin(ts, equity)
    assert np.array_equal(points.ts, ts) and np.array_equal(points.equity, equity)
    assert np.array_equal(points.drawdown, drawdown(equity))


@pytest.mark.parametrize("seed", range(5))
def test_a_long_curve_keeps_ends_extremes_and_its_deepest_fall(seed):
    ts, equity = walk(50_000, seed)
    points = thin(ts, equity)
    assert points.ts.size <= 5_000
    assert (np.diff(points.ts) > 0).all()
    assert (points.ts[0], points.ts[-1]) == (ts[0], ts[-1])
    assert points.equity.max() == equity.max() and points.equity.min() == equity.min()
    assert points.drawdown.min() == drawdown(equity).min()
    # The peak is there too, so the fall can be computed again from the points alone.
    assert drawdown(points.equity).min() == drawdown(equity).min()


def test_thinning_repeats():
    ts, equity = walk(20_000)
    assert all(
        np.array_equal(a, b) for a, b in zip(thin(ts, equity), thin(ts, equity), strict=True)
    )


def test_candles_are_aggregated_without_losing_extremes():
    ts, close = walk(7_001)
    open_ = np.append(close[0], close[:-1])
    bars = Candles(ts, open_, np.maximum(open_, close) * 1.001, np.minimum(open_, close), close)
    few, together = aggregate(bars)
    assert together == 3
    assert few.ts.size == 2_334 <= 3_000
    assert few.open[1] == bars.open[3] and few.close[0] == bars.close[2]
    assert few.high[0] == bars.high[:3].max() and few.low[0] == bars.low[:3].min()
    assert few.close[-1] == bars.close[-1] and few.high.max() == bars.high.max()
    assert aggregate(few) == (few, 1)
