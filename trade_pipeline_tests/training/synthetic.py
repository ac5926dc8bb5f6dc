"""A small made-up market for tests of training and backtest: three slices, noisy trends."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.training.dataset import Dataset, SeriesInput, build_dataset

HOUR_MS = 3_600_000
START_MS = int(datetime(2021, 1, 1, tzinfo=UTC).timestamp()) * 1000
TIME = pl.Datetime("ms", "UTC")
FEATURES = SimpleNamespace(
    names=("move", "constant"), lookback=3, scaling="standard", code={}, implementations={}
)


def series(key: str) -> SeriesSettings:
    return SeriesSettings.model_validate(
        {
            "key": key,
            "source": {"kind": "bokeh_sample", "ticker": "AAPL"},
            "timeframe": "1h",
            "first_year": 2021,
            "volume_unit": "base",
        }
    )


def bars(rng: np.random.Generator, start_ms: int, rows: int, price: float) -> pl.DataFrame:
    """A grid of one slice: a mean-reverting walk with a few untraded bars."""
    walk = np.zeros(rows)
    for t in range(1, rows):
        walk[t] = 0.9 * walk[t - 1] + rng.normal(0, 0.01)
    close = price * np.exp(walk)
    opened = np.concatenate([[close[0]], close[:-1]]) * np.exp(rng.normal(0, 0.001, rows))
    spread = np.exp(np.abs(rng.normal(0, 0.004, rows)))
    quiet = rng.random(rows) < 0.03
    quiet[[0, -1]] = False
    for t in np.flatnonzero(quiet):
        close[t] = opened[t] = close[t - 1]
    high = np.where(quiet, close, np.maximum(opened, close) * spread)
    low = np.where(quiet, close, np.minimum(opened, close) / spread)
    ts = start_ms + np.arange(rows) * HOUR_MS
    return pl.DataFrame(
        {
            "ts": pl.Series(ts).cast(TIME),
            "close_ts": pl.Series(ts + HOUR_MS).cast(TIME),
            "open": opened,
            "high": high,
            "low": low,
            "close": close,
            "volume": np.where(quiet, 0.0, 1000.0),
            "adj_factor": pl.Series([None] * rows, dtype=pl.Float64),
            "state": pl.Series(np.where(quiet, "quiet", "traded")).cast(
                pl.Enum(["traded", "quiet", "unknown"])
            ),
        }
    )


def features(grids: list[pl.DataFrame]) -> pl.DataFrame:
    """`move`: log close relative to its mean over the last four bars; `constant`: always 0.3."""
    parts = []
    for grid in grids:
        log = np.log(grid["close"].to_numpy())
        mean = np.convolve(log, np.ones(4) / 4, mode="valid")
        parts.append(
            pl.DataFrame(
                {
                    "ts": grid["ts"][3:],
                    "move": (log[3:] - mean).astype(np.float32),
                    "constant": np.full(grid.height - 3, 0.3, np.float32),
                }
            )
        )
    return pl.concat(parts)


def inputs(keys: tuple[str, ...], lengths: tuple[int, ...], seed: int = 0) -> list[SeriesInput]:
    """One input a key; slices of the given lengths lie ten hours apart."""
    found = []
    for number, key in enumerate(keys):
        rng = np.random.default_rng([seed, number])
        grids, start = [], START_MS
        for rows in lengths:
            grids.append(bars(rng, start, rows, price=100.0 * (number + 1)))
            start += (rows + 10) * HOUR_MS
        found.append(SeriesInput(series(key), grids, features(grids)))
    return found


def experiment(keys: tuple[str, ...] = ("demo.A.1h",), **changes: Any) -> ExperimentSettings:
    """A tiny experiment: brackets for one series, weights for more."""
    actions: dict[str, Any] = {"kind": "weights", "short": True}
    if len(keys) == 1:
        actions = {
            "kind": "brackets",
            "sizes": [0.5, 1.0],
            "stops": [None, 0.01],
            "takes": [None, 0.02],
        }
    content: dict[str, Any] = {
        "series": list(keys),
        "features": "tiny",
        "from": "2021-01-01",
        "to": "2022-01-01",
        "splits": {"kind": "fraction", "train": 0.5, "validation": 0.206, "test": 0.294},
        "environment": {
            "window": 4,
            "episode_bars": 40,
            "costs": {
                "fee": {"kind": "flat", "bps": 2.0},
                "slippage": {"kind": "fixed", "bps": 1.0},
                "borrow_rate": 0.05,
            },
            "actions": actions,
        },
        "algorithm": {
            "kind": "ppo",
            "total_frames": 1024,
            "environments": 16,
            "rollout_steps": 16,
            "batch_size": 128,
            "epochs": 2,
            "network": {"kind": "mlp", "hidden": [8, 8]},
        },
        "seeds": [0, 1],
    }
    for section, values in changes.items():
        content[section] = {**content[section], **values} if section in content else values
    return ExperimentSettings.model_validate(content)


def dataset(
    keys: tuple[str, ...] = ("demo.A.1h",),
    lengths: tuple[int, ...] = (400, 60, 50, 60),
    **changes: Any,
) -> Dataset:
    """Its fold tests on the end of the first gap-free run and the slices after it."""
    return build_dataset(
        inputs(keys, lengths),
        experiment(keys, **changes),
        FEATURES,  # type: ignore[arg-type]
        {"features/tiny|demo": "0" * 64},
        "experiment demo",
    )
