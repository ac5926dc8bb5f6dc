"""Prices that tests of rules decide on, and what a rule plans on them."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from numpy.typing import NDArray

from trade_pipeline.backtest.protocol import Plan
from trade_pipeline.backtest.strategies import PlannedStrategy, baseline
from trade_pipeline.settings.base import parse_settings
from trade_pipeline.settings.baselines import BaselineSettings
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
