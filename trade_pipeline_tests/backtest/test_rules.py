"""Each rule decides what its definition says; the oracles here are written from that alone."""

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import talib
from numpy.typing import NDArray

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.protocol import Plan
from trade_pipeline.backtest.signals import find_rsi
from trade_pipeline.backtest.strategies import PlannedStrategy, StrategyError, baseline
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.baselines import BaselineKind, BaselineSettings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.small_project import EXPERIMENT
from trade_pipeline_tests.training import synthetic

FloatArray = NDArray[np.float64]


def market(
    close: Any,
    high: Any = None,
    low: Any = None,
    traded: Any = None,
    segments: Sequence[tuple[int, int]] | None = None,
) -> Dataset:
    """A dataset of some closes [T] or [T, N]; high and low are the close where not given."""
    close = np.asarray(close, np.float64)
    close = close[:, None] if close.ndim == 1 else close
    rows, count = close.shape

    def shaped(given: Any) -> FloatArray:
        return close if given is None else np.asarray(given, np.float64).reshape(close.shape)

    ts = synthetic.START_MS + np.arange(rows) * synthetic.HOUR_MS
    return replace(
        synthetic.dataset(tuple(f"demo.{'ABCDEFGHI'[n]}.1h" for n in range(count))),
        ts=ts,
        close_ts=ts + synthetic.HOUR_MS,
        open=close,
        high=shaped(high),
        low=shaped(low),
        close=close,
        volume=np.full(close.shape, 1e9),
        traded=np.ones(close.shape, np.bool_)
        if traded is None
        else np.asarray(traded).reshape(close.shape),
        features=np.zeros((rows, count, 1), np.float32),
        segments=np.array([(0, rows)] if segments is None else segments, np.int64),
        folds=(),
    )


def environment(**changes: Any) -> EnvironmentSettings:
    given = {"window": 1, "actions": {"kind": "weights", "short": True}, **changes}
    return EnvironmentSettings.model_validate(given)


def rule(**entry: Any) -> BaselineSettings:
    """An entry of `baselines`."""
    experiment = parse_settings({**EXPERIMENT, "baselines": [entry]}, ExperimentSettings, "x.yaml")
    return experiment.baselines[0]


def planned(entry: BaselineSettings, dataset: Dataset, **changes: Any) -> Plan:
    strategy = baseline(entry)
    assert isinstance(strategy, PlannedStrategy)
    chosen = environment(**changes)
    strategy.start(dataset, chosen)
    plan = strategy.plan(dataset, chosen)
    assert plan is not None
    return plan


def stocks() -> Dataset:
    """Two stocks by day over 13 years, in three stretches, with a quiet day now and then."""
    packed = (resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz").read_bytes()
    table = pl.read_csv(gzip.decompress(packed), try_parse_dates=True)
    columns: dict[str, list[Any]] = {"High": [], "Low": [], "Close": []}
    for symbol in ("AAPL", "MSFT"):
        mine = table.filter(pl.col("Ticker") == symbol).sort("Date")
        for name, found in columns.items():
            found.append(mine[name].to_numpy())
    high, low, close = (np.stack(one, axis=1) for one in columns.values())
    traded = np.random.default_rng(0).random(close.shape) > 0.05
    traded[0] = True
    for n in range(2):
        for t in np.flatnonzero(~traded[:, n]):
            close[t, n] = high[t, n] = low[t, n] = close[t - 1, n]
    rows = len(close)
    return market(close, high, low, traded, [(0, 900), (900, 960), (960, rows)])


def ties() -> Dataset:
    """Two instruments whose prices are few whole numbers, still at times, with gaps."""
    rng = np.random.default_rng(1)
    steps = rng.integers(-1, 2, (1500, 2)) * (rng.random((1500, 2)) < 0.5)
    close = 20.0 + np.abs(np.cumsum(steps, axis=0) % 16 - 8)
    traded = np.append([[True, True]], close[1:] != close[:-1], axis=0)
    high = close + rng.integers(0, 2, close.shape) * traded
    low = close - rng.integers(0, 2, close.shape) * traded
    return market(close, high, low, traded, [(0, 700), (700, 705), (705, 1500)])


MARKETS: dict[str, Callable[[], Dataset]] = {
    "one": lambda: synthetic.dataset(),
    "two": lambda: synthetic.dataset(("demo.A.1h", "demo.B.1h")),
    "stocks": stocks,
    "ties": ties,
}
each_market = pytest.mark.parametrize("made", MARKETS.values(), ids=MARKETS)


def each_stretch(
    dataset: Dataset, decide: Callable[[pd.DataFrame], list[float]]
) -> NDArray[np.float64]:
    """Apply a rule to each instrument in each gap-free stretch."""
    found = np.zeros(dataset.close.shape)
    for a, b in dataset.segments.tolist():
        for n in range(len(dataset.instruments)):
            columns = {name: getattr(dataset, name)[a:b, n] for name in ("close", "high", "low")}
            found[a:b, n] = decide(pd.DataFrame(columns))
    return found


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


def drifted(
    dataset: Dataset, wanted: FloatArray, band: float
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Weights last ordered and whether they are kept, bar by bar, as docs/strategies.md says."""
    weights, hold = np.zeros(wanted.shape), np.zeros(wanted.shape, np.bool_)
    for a, b in dataset.segments.tolist():
        money, units = 1.0, [0.0] * wanted.shape[1]
        ordered = [0.0] * wanted.shape[1]
        open_order = [False] * wanted.shape[1]
        for t in range(a, b):
            if t > a:
                gained = [
                    unit * (new - old)
                    for unit, new, old in zip(
                        units, dataset.close[t], dataset.close[t - 1], strict=True
                    )
                ]
                money += sum(gained)
            for n, price in enumerate(dataset.close[t]):
                if dataset.traded[t, n]:
                    open_order[n] = False
                want = wanted[t, n]
                if not math.isnan(want) and abs(want - units[n] * price / money) > band * want:
                    ordered[n], units[n], open_order[n] = want, want * money / price, True
                weights[t, n] = ordered[n]
                hold[t, n] = ordered[n] != 0 and not open_order[n]
    return weights, hold


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
    weights, hold = drifted(dataset, wanted, 0.1)
    entry = rule(
        kind="volatility_target", window=window, target=target, max_leverage=most, band=0.1
    )
    plan = planned(entry, dataset, max_leverage=5.0, max_position=5.0)
    np.testing.assert_allclose(plan.weights, weights, rtol=1e-9)
    np.testing.assert_array_equal(plan.hold, hold)
    assert 0 < (np.diff(plan.weights, axis=0) != 0).mean() < 0.4
    assert plan.weights.max() <= most / len(dataset.instruments)


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
    plan = planned(rule(kind="volatility_target", window=4, target=0.05), market(close))
    assert not plan.weights[:10].any()
    assert (plan.weights[33:] == plan.weights[33]).all() and plan.weights[33] > 0
    assert plan.hold[34:].all()


def test_a_volatility_target_goes_on_after_a_ruin() -> None:
    moving = 100 * np.cumprod(1 + 0.001 * np.tile([1.0, -1.0], 20))
    dataset = market(np.concatenate([moving, moving / 2]))  # half of it gone with four times equity
    entry = rule(kind="volatility_target", window=5, target=9.0, max_leverage=4.0)
    plan = planned(entry, dataset, max_leverage=5.0, max_position=5.0)
    assert (plan.weights[5:] > 0).all() and np.isfinite(plan.weights).all()
    assert plan.weights[-1] == 4.0 and not plan.hold[40].any()


@each_market
@pytest.mark.parametrize(("window", "every"), [(10, 7), (20, 1), (5, 100)])
def test_inverse_volatility_weighs_by_one_over_volatility_now_and_then(
    made: Callable[[], Dataset], window: int, every: int
) -> None:
    dataset = made()
    inverse = 1 / volatilities(dataset, window)
    wanted = inverse / inverse.sum(axis=1, keepdims=True)  # none where one has none
    due = np.zeros(len(wanted), np.bool_)
    for a, b in dataset.segments.tolist():
        due[a + window : b : every] = True
    wanted[~due] = np.nan
    weights, hold = drifted(dataset, wanted, 0.0)
    plan = planned(rule(kind="inverse_volatility", window=window, rebalance=every), dataset)
    np.testing.assert_allclose(plan.weights, weights, rtol=1e-9)
    if every > 1:  # where weights are set anew and hardly moved, rounding decides
        np.testing.assert_array_equal(plan.hold[~due], hold[~due])
    total = plan.weights.sum(axis=1)
    np.testing.assert_allclose(total[total > 0], 1.0)
    halved = planned(
        rule(kind="inverse_volatility", window=window, rebalance=every),
        dataset,
        max_leverage=0.5,
        max_position=0.5,
    )
    np.testing.assert_allclose(halved.weights, weights / 2, rtol=1e-9)


def test_inverse_volatility_waits_until_every_instrument_moves() -> None:
    moving = 100 * np.cumprod(1 + 0.01 * np.tile([1.0, -1.0, 0.5], 20))
    late = np.where(np.arange(60) < 20, 50.0, moving / 2)
    dataset = market(np.stack([moving, late], axis=1))
    plan = planned(rule(kind="inverse_volatility", window=5, rebalance=6), dataset)
    first = int(np.flatnonzero(plan.weights.any(axis=1))[0])
    assert first == 23  # rows 5, 11, 17 have no move of the second; row 23 has
    assert (plan.weights[first:] > 0).all()


def test_an_order_is_repeated_until_a_bar_trades() -> None:
    dataset = MARKETS["one"]()
    entry = rule(kind="volatility_target", window=5, target=0.1, band=0.5)
    first = planned(entry, dataset)
    orders = (first.weights[:-3] > 0) & ~first.hold[:-3]
    row = int(np.flatnonzero(orders[:, 0] & first.hold[1:-2, 0] & first.hold[2:-1, 0])[5])
    after = slice(row + 1, row + 3)
    quiet = {name: np.array(getattr(dataset, name)) for name in ("open", "high", "low", "close")}
    for prices in quiet.values():
        prices[after] = dataset.close[row]
    traded = np.array(dataset.traded)
    traded[after], traded[row + 3] = False, True
    silent = replace(dataset, **quiet, traded=traded)
    plan = planned(entry, silent)
    assert not plan.hold[row : row + 3].any()
    assert (plan.weights[row : row + 3] == first.weights[row]).all()
    result = backtest(silent, np.array([[row - 9, row + 6]]), environment(), baseline(entry))
    assert {row - 8, row + 3} <= set(result.fills["row"])
    assert not {row, row + 1, row + 2} & set(result.fills["row"])


@pytest.mark.parametrize("limits", [{}, {"max_turnover": 0.3}, {"costs": {"participation": 0.01}}])
def test_a_position_of_the_wrong_side_is_traded_away_however_slowly(limits: dict[str, Any]) -> None:
    close = np.concatenate([np.linspace(100, 150, 40), np.linspace(150, 90, 60)])
    dataset = replace(market(close), volume=np.full((100, 1), 20_000.0))
    for entry in (
        rule(kind="donchian", entry=5, exit=3, short=True),
        rule(kind="rsi_reversion", period=5, short=True),
        rule(kind="momentum", lookback=4, short=True),
    ):
        result = backtest(dataset, np.array([[0, 100]]), environment(**limits), baseline(entry))
        (key,) = dataset.instruments
        side = -1 if entry.kind != "rsi_reversion" else 1
        assert result.summary["open_positions"][key] * side > 0, entry.label
        signs = set(np.sign(np.cumsum(result.fills["quantity"].to_numpy()).round(9)))
        assert {-1.0, 1.0} <= signs, entry.label


@pytest.mark.parametrize("kind", ["donchian", "rsi_reversion", "momentum"])
def test_selling_short_needs_an_environment_that_allows_it(kind: str) -> None:
    dataset = MARKETS["one"]()
    strategy = baseline(rule(kind=kind, short=True))
    only_long = environment(actions={"kind": "weights", "short": False})
    with pytest.raises(StrategyError, match=r"sells short, but environment\.actions\.short is"):
        strategy.start(dataset, only_long)
    actions = {"environment": {"window": 4, "actions": {"kind": "weights"}}}
    with pytest.raises(SettingsError, match=f"baseline {kind}.* sells short, but variant base"):
        parse_settings(
            {**EXPERIMENT, **actions, "baselines": [{"kind": kind, "short": True}]},
            ExperimentSettings,
            "x.yaml",
        )


def test_the_leverage_cap_lowers_every_signal() -> None:
    dataset = MARKETS["two"]()
    for kind in ("donchian", "rsi_reversion", "momentum"):
        entry = {"kind": kind, "short": True}
        if kind == "momentum":
            entry["lookback"] = 20
        weights = planned(rule(**entry), dataset, max_leverage=0.6, max_position=0.6).weights
        assert set(np.abs(weights).ravel()) == {0.0, 0.3}


def test_a_plan_starts_anew_after_a_gap() -> None:
    dataset = MARKETS["one"]()
    (_, b) = dataset.segments[1].tolist()
    for entry in (
        rule(kind="donchian"),
        rule(kind="rsi_reversion"),
        rule(kind="momentum", lookback=20),
        rule(kind="volatility_target", window=20),
        rule(kind="inverse_volatility", window=20),
    ):
        later = planned(entry, dataset).weights[b:]
        changed = {
            name: np.concatenate([getattr(dataset, name)[:b] * 3, getattr(dataset, name)[b:]])
            for name in ("open", "high", "low", "close")
        }
        np.testing.assert_array_equal(
            planned(entry, replace(dataset, **changed)).weights[b:], later
        )
        assert not later[:10].any()


def test_every_kind_can_be_listed_and_beaten_under_a_name_of_its_own() -> None:
    kinds = list(BaselineKind.__args__)  # type: ignore[attr-defined]
    entries = [{"kind": kind} | ({"name": "mine"} if kind == "plugin" else {}) for kind in kinds]
    experiment = parse_settings(
        {**EXPERIMENT, "baselines": entries, "promotion": {"beat": kinds}},
        ExperimentSettings,
        "x.yaml",
    )
    labels = [one.label for one in experiment.baselines]
    assert len(set(labels)) == len(kinds)
    assert {one.kind for one in experiment.baselines} == set(kinds)
    for one in experiment.baselines:
        if one.kind != "plugin":
            assert baseline(one).name == one.label
    with pytest.raises(SettingsError, match="beat names donchian, which `baselines` does not list"):
        parse_settings(
            {**EXPERIMENT, "promotion": {"beat": ["donchian"]}}, ExperimentSettings, "x.yaml"
        )


def labels(*entries: dict[str, Any]) -> list[str]:
    experiment = parse_settings(
        {**EXPERIMENT, "baselines": list(entries)}, ExperimentSettings, "x.yaml"
    )
    return [one.label for one in experiment.baselines]


def test_a_rule_listed_with_other_parameters_has_another_name() -> None:
    found = labels(
        {"kind": "donchian"},
        {"kind": "donchian", "exit": 5},
        {"kind": "donchian", "short": True},
        {"kind": "momentum"},
        {"kind": "momentum", "skip": 21},
        {"kind": "volatility_target", "target": 0.1},
        {"kind": "volatility_target", "target": 0.1, "band": 0.2},
        {"kind": "plugin", "name": "mine"},
        {"kind": "plugin", "name": "mine", "parameters": {"period": 5}},
        {"kind": "plugin", "name": "mine", "parameters": {"period": 6, "deep": {"a": [1.5]}}},
    )
    assert found[:9] == [
        "donchian_20_10",
        "donchian_20_5",
        "donchian_20_10_short",
        "momentum_252",
        "momentum_252_skip_21",
        "volatility_target_0p1_60",
        "volatility_target_0p1_60_band_0p2",
        "mine",
        "mine_period_5",
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"kind": "flat"}, {"kind": "flat"}], "'flat' is listed 2 times"),
        ([{"kind": "donchian"}, {"kind": "donchian", "entry": 20}], "'donchian_20_10' is listed 2"),
        ([{"kind": "flat"}, {"kind": "plugin", "name": "flat"}], "'flat' is listed 2 times"),
        ([{"kind": "donchian", "entry": 0}], "baselines.0.entry"),
        ([{"kind": "donchian", "enter": 5}], "unknown key 'baselines.0.enter'"),
        ([{"kind": "rsi_reversion", "low": 70, "high": 30}], "low 70 must be below high 30"),
        ([{"kind": "rsi_reversion", "high": 100}], "baselines.0.high"),
        ([{"kind": "momentum", "skip": -1}], "baselines.0.skip"),
        ([{"kind": "volatility_target", "window": 1}], "baselines.0.window"),
        ([{"kind": "volatility_target", "target": 0}], "baselines.0.target"),
        ([{"kind": "volatility_target", "band": 1}], "baselines.0.band"),
        ([{"kind": "inverse_volatility", "rebalance": 0}], "baselines.0.rebalance"),
        ([{"kind": "plugin", "name": "a", "parameters": {"b": math.inf}}], "cannot be a setting"),
        ([{"kind": "plugin", "name": "a", "parameters": {"b": [date(2020, 1, 1)]}}], "as text"),
        ([{"kind": "plugin", "parameters": {}}], "'baselines.0.name' is missing"),
        ([{"kind": "donchain"}], "donchian"),
    ],
)
def test_wrong_entries_are_refused_with_their_key(
    entries: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        labels(*entries)
    assert words in str(refused.value)


def test_a_variant_cannot_have_the_name_of_a_baseline() -> None:
    with pytest.raises(SettingsError, match="variant 'flat' has the name of a baseline"):
        parse_settings({**EXPERIMENT, "variants": {"flat": {}}}, ExperimentSettings, "x.yaml")
