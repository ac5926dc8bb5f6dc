"""Rules that weigh by volatility; the oracles are written from their definitions alone."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trade_pipeline.backtest.engine import BacktestResult, backtest
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.backtest.rule_markets import (
    MARKETS,
    FloatArray,
    each_market,
    each_stretch,
    environment,
    market,
    planned,
    rule,
)


def check_orders(
    result: BacktestResult,
    dataset: Dataset,
    wanted: FloatArray,
    band: float,
    anew: NDArray[np.bool_] | None = None,
) -> list[int]:
    """Orders are for what is wanted where nothing is held, is off by the band, or is set anew.

    Positions are read off the fills, equity off the equity table. Gives the rows of the orders.
    """
    names = list(dataset.instruments)
    given = {
        (row, names.index(key)): weight
        for row, key, weight in result.orders.select("row", "instrument", "target_weight").rows()
    }
    fills = result.fills.select("row", "instrument", "quantity").rows()
    held, at = [0.0] * len(names), 0
    rows, slices = result.row.tolist(), result.slice_number.tolist()
    for t, row in enumerate(rows[:-1]):
        while at < len(fills) and fills[at][0] <= row:
            held[names.index(fills[at][1])] += fills[at][2]
            at += 1
        if slices[t + 1] != slices[t]:
            row = rows[t + 1] - 1  # the first decision of the next slice is not in the table
        equity = result.equity[t]
        for n, price in enumerate(dataset.close[row]):
            want, share = wanted[row, n], held[n] * price / equity
            if abs(share) < 1e-12:
                ordered = want > 0
            elif math.isnan(want):
                ordered = False
            elif anew is not None:
                ordered = bool(anew[row, n])
            elif abs(abs(want - share) - band * want) < 1e-9:
                continue  # rounding decides
            else:
                ordered = abs(want - share) > band * want
            assert ((row, n) in given) == ordered, (row, n)
            if ordered:
                assert given[row, n] == pytest.approx(want, rel=1e-9)
    return sorted({row for row, _ in given})


def volatilities(dataset: Dataset, window: int) -> FloatArray:
    """NaN where the window has no move."""
    found = each_stretch(
        dataset, lambda bars: bars.close.pct_change().rolling(window).std().to_list()
    )
    return np.where(found > 1e-6, found, np.nan)


@each_market
@pytest.mark.parametrize(("window", "target", "most"), [(20, 0.2, 1.0), (10, 0.5, 3.0)])
def test_a_volatility_target_scales_the_share_of_each_instrument(
    made: Callable[[], Dataset], window: int, target: float, most: float
) -> None:
    dataset = made()
    annual = volatilities(dataset, window) * math.sqrt(dataset.bars_per_year)
    wanted = np.minimum(target / annual, most) / len(dataset.instruments)
    entry = rule(
        kind="volatility_target", window=window, target=target, max_leverage=most, band=0.1
    )
    caps = environment(max_leverage=5.0, max_position=5.0)
    result = backtest(dataset, dataset.segments, caps, baseline(entry))
    ordered = check_orders(result, dataset, wanted, 0.1)
    assert 10 < len(ordered) < 0.9 * len(dataset.ts)
    assert result.orders["target_weight"].max() <= most / len(dataset.instruments)


@pytest.mark.parametrize(
    "entry",
    [
        rule(kind="volatility_target", window=20, target=0.2, band=0.99),
        rule(kind="inverse_volatility", window=20, rebalance=10_000),
    ],
    ids=lambda one: one.kind,
)
def test_a_range_begins_with_what_is_wanted_then(entry: Any) -> None:
    dataset = MARKETS["stocks"]()
    deviation = volatilities(dataset, 20)
    if entry.kind == "volatility_target":
        wanted = np.minimum(0.2 / (deviation * math.sqrt(dataset.bars_per_year)), 1.0) / 2
    else:
        wanted = (1 / deviation) / (1 / deviation).sum(axis=1, keepdims=True)
    seen = []
    for first in (1000, 1013, 2500):  # none of them a day of rebalancing
        part = np.array([[first, first + 300]])
        orders = backtest(dataset, part, environment(), baseline(entry)).orders[:2]
        assert orders["row"].to_list() == [first, first]
        np.testing.assert_allclose(orders["target_weight"], wanted[first], rtol=1e-9)
        seen.append(tuple(orders["target_weight"]))
    assert len(set(seen)) == 3


def test_a_volatility_target_keeps_to_the_caps_of_the_environment() -> None:
    dataset = MARKETS["one"]()
    entry = rule(kind="volatility_target", window=5, target=9.0, max_leverage=4.0)
    for changes, most in (
        ({"max_leverage": 5.0, "max_position": 5.0}, 4.0),
        ({"max_leverage": 2.0, "max_position": 2.0}, 2.0),
        ({"max_leverage": 2.0, "max_position": 0.7}, 0.7),
    ):
        assert planned(entry, dataset, **changes).weights.max() == most


def test_a_volatility_target_worked_by_hand() -> None:
    # Returns +1 %, -1 %, +1 %, -1 % have a deviation of 1 % x sqrt(4/3) in any window of 4.
    close = 100 * np.cumprod([1, 1.01, 0.99, 1.01, 0.99])
    dataset = replace(market(close), bars_per_year=100.0)
    deviation = math.sqrt(4 / 3) * 0.01
    entry = rule(kind="volatility_target", window=4, target=0.05)
    (*warm_up, weight) = planned(entry, dataset).weights[:, 0]
    assert warm_up == [0, 0, 0, 0]
    assert weight == pytest.approx(0.05 / (deviation * 10))


def test_without_a_move_there_is_no_volatility_and_what_is_held_stays() -> None:
    moving = 100 * np.cumprod(1 + 0.01 * np.tile([1.0, -1.0], 10))
    close = np.concatenate([np.full(10, 100.0), moving, np.full(30, moving[-1])])
    dataset = market(close)
    entry = rule(kind="volatility_target", window=4, target=0.05)
    result = backtest(dataset, dataset.segments, environment(), baseline(entry))
    assert result.orders["row"].min() == 10  # the first move is the eleventh close
    last = result.orders["row"].max()
    assert 10 < last < 34 and result.summary["open_positions"]
    beyond = backtest(dataset, np.array([[34, 60]]), environment(), baseline(entry))
    assert beyond.orders.is_empty()  # nothing is held, and nothing says how much


def test_a_volatility_target_has_a_weight_whatever_was_lost() -> None:
    moving = 100 * np.cumprod(1 + 0.001 * np.tile([1.0, -1.0], 20))
    dataset = market(np.concatenate([moving, moving / 2]))  # half of it gone with four times equity
    entry = rule(kind="volatility_target", window=5, target=9.0, max_leverage=4.0)
    limits = {"max_leverage": 5.0, "max_position": 5.0}
    plan = planned(entry, dataset, **limits)
    assert (plan.weights[5:] > 0).all() and np.isfinite(plan.weights).all()
    assert plan.weights[-1] == 4.0
    ruined = backtest(dataset, dataset.segments, environment(**limits), baseline(entry))
    assert ruined.summary["terminated"] and ruined.row[-1] == 40


@each_market
@pytest.mark.parametrize(("window", "every"), [(10, 7), (20, 1), (5, 100)])
def test_inverse_volatility_weighs_by_one_over_volatility_now_and_then(
    made: Callable[[], Dataset], window: int, every: int
) -> None:
    dataset = made()
    inverse = 1 / volatilities(dataset, window)
    wanted = inverse / inverse.sum(axis=1, keepdims=True)  # none where one has none
    anew = np.zeros(wanted.shape, np.bool_)
    for a, b in dataset.segments.tolist():
        open_order = np.zeros(wanted.shape[1], np.bool_)
        for t in range(a, b):
            open_order &= ~dataset.traded[t]
            if t >= a + window and (t - a - window) % every == 0 and not np.isnan(wanted[t]).any():
                open_order[:] = True
            anew[t] = open_order
    entry = rule(kind="inverse_volatility", window=window, rebalance=every)
    result = backtest(dataset, dataset.segments, environment(), baseline(entry))
    assert len(check_orders(result, dataset, wanted, 0.0, anew)) > 3
    plan = planned(entry, dataset)
    total = plan.weights.sum(axis=1)
    np.testing.assert_allclose(total[total > 0], 1.0)
    halved = planned(entry, dataset, max_leverage=0.5, max_position=0.5)
    np.testing.assert_allclose(halved.weights, plan.weights / 2, rtol=1e-9)


def test_inverse_volatility_waits_until_every_instrument_moves() -> None:
    moving = 100 * np.cumprod(1 + 0.01 * np.tile([1.0, -1.0, 0.5], 20))
    late = np.where(np.arange(60) < 20, 50.0, moving / 2)
    dataset = market(np.stack([moving, late], axis=1))
    entry = rule(kind="inverse_volatility", window=5, rebalance=6)
    result = backtest(dataset, dataset.segments, environment(), baseline(entry))
    # The second does not move before row 20; what is flat is bought then, and not on row 23.
    assert result.orders["row"][:3].to_list() == [20, 20, 23]


def test_an_order_is_repeated_until_a_bar_trades() -> None:
    dataset = MARKETS["one"]()
    row = 200
    after = slice(row + 1, row + 3)
    quiet = {name: np.array(getattr(dataset, name)) for name in ("open", "high", "low", "close")}
    for prices in quiet.values():
        prices[after] = dataset.close[row]
    traded = np.array(dataset.traded)
    traded[after], traded[row + 3] = False, True
    silent = replace(dataset, **quiet, traded=traded)
    for entry in (
        rule(kind="volatility_target", window=5, target=0.1, band=0.5),
        rule(kind="inverse_volatility", window=5, rebalance=50),
    ):
        found = backtest(silent, np.array([[row, row + 6]]), environment(), baseline(entry))
        assert found.orders["row"][:3].to_list() == [row, row + 1, row + 2]
        assert found.fills["row"][0] == row + 3
    # A rebalancing of what is held, too: row 195 is the first one after 5 bars and then every 38.
    entry = rule(kind="inverse_volatility", window=10, rebalance=38)
    assert (row - 10) % 38 == 0
    found = backtest(silent, np.array([[row - 9, row + 6]]), environment(), baseline(entry))
    assert found.orders["row"].to_list() == [row - 9, row, row + 1, row + 2]
