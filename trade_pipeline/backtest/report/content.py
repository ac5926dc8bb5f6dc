"""What a report shows, as plain values; no html, no charts, no storage.

Start at `ReportInput`; `check` says what cannot be drawn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
DAY_MS = 86_400_000
Prices = tuple[IntArray, FloatArray, FloatArray, FloatArray, FloatArray]

TRIP_COLUMNS = (
    "instrument",
    "side",
    "entry_time",
    "entry_price",
    "exit_time",
    "exit_price",
    "net",
    "entry_reason",
    "exit_reason",
)
SENSITIVITY_COLUMNS = ("name", "strategy")


@dataclass(frozen=True)
class Curve:
    """Equity over time.

    A policy is in the foreground: a report's median seed, stitched, or what a page is about; a
    trial is another seed of it.
    """

    name: str
    kind: Literal["trial", "baseline", "policy"]
    ts: IntArray
    """[n] ms UTC, increasing."""
    equity: FloatArray
    """[n] quote currency, E_0 first."""


class Fold(NamedTuple):
    """Times of one fold, each first and last, ms UTC."""

    train: tuple[int, int]
    validation: tuple[int, int]
    test: tuple[int, int]
    curve: tuple[int, int]
    """Of the closes that its equity is known at: from the first decision on."""


@dataclass(frozen=True)
class ReportInput:
    """Everything the page shows; what is empty has no place on it."""

    title: str
    curves: list[Curve]
    leaderboard: pl.DataFrame
    """One row a policy or baseline. `<x>_min` and `<x>_max` are shown beside `<x>`."""
    prices: dict[str, Prices]
    """Instrument to (ts of bar opens in ms UTC, open, high, low, close), [n] each."""
    trips: pl.DataFrame
    """`TRIP_COLUMNS` of the trial shown; exit columns and net are null where still open, which
    then has `realised` and `unrealised`, as `open_trips` gives them. Further columns are shown
    where there are: `quantity`, `fee`, `mfe` and `mae` (price units), `regime`, `entry_row` and
    `exit_row`, or `bars`. Empty without columns is fine."""
    metrics: dict[str, dict[str, Any]]
    """Column name to the result of `evaluation.metrics.metrics`, or of `bundle.figures`, which
    has `market`, `capacity` and `regimes` besides."""
    provenance: dict[str, str]
    notes: list[str] = field(default_factory=list)
    financing: float | None = None
    """Interest, borrowing and funding that the trial shown paid, quote currency; None: trades and
    equity are not reconciled."""
    folds: list[Fold] = field(default_factory=list)
    """In time order, where the curves are stitched of the test parts of several, or of one."""
    months: pl.DataFrame = field(default_factory=pl.DataFrame)
    """`evaluation.periods.MONTH_SCHEMA` of the policy shown."""
    rolling: pl.DataFrame = field(default_factory=pl.DataFrame)
    """`evaluation.periods.ROLLING_SCHEMA` of the policy shown."""
    exposure: tuple[IntArray, FloatArray] | None = None
    """[n] ms UTC, increasing, and [n] gross exposure as a multiple of equity after each step."""
    regimes: tuple[IntArray, IntArray] | None = None
    """[n] ms UTC, increasing, and [n] label known at that bar: 0 is the calmest, -1 none."""
    learning: dict[str, pl.DataFrame] = field(default_factory=dict)
    """Trial to its `training.diagnostics.Diagnostics.frame()`."""
    sensitivity: pl.DataFrame = field(default_factory=pl.DataFrame)
    """`SENSITIVITY_COLUMNS` and figures: a row a strategy under other costs or delays."""
    configuration: str = ""
    """YAML text."""

    @property
    def seams(self) -> list[tuple[int, int]]:
        """From where the curve of one fold ends to where that of the next begins."""
        return [(one.curve[1], other.curve[0]) for one, other in pairwise(self.folds)]

    @property
    def daily(self) -> bool:
        """Whether every bar begins at midnight UTC, so that no time of day says anything."""
        opens = [ts for ts, *_ in self.prices.values()]
        return bool(opens) and all(bool((ts % DAY_MS == 0).all()) for ts in opens)


def check(report: ReportInput) -> None:
    """Raise where something cannot be drawn.

    Raises:
        ValueError: arrays are ragged, empty or not finite, two curves share a name, or a frame
            lacks a column.
    """
    names = [curve.name for curve in report.curves]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two curves are called {name!r}; each needs a name of its own")
    for curve in report.curves:
        _check_arrays(f"curve {curve.name!r}", {"ts": curve.ts, "equity": curve.equity})
    for instrument, arrays in report.prices.items():
        named = dict(zip(("ts", "open", "high", "low", "close"), arrays, strict=True))
        _check_arrays(f"prices of {instrument!r}", named)
    for subject, pair in (("exposure", report.exposure), ("regimes", report.regimes)):
        if pair is not None:
            _check_arrays(subject, {"ts": pair[0], "values": pair[1]})
    _check_columns("trips", report.trips, TRIP_COLUMNS, "the price charts need it")
    _check_columns("months", report.months, ("year", "month", "return"), "the heat map needs it")
    _check_columns(
        "rolling", report.rolling, ("time", "sharpe", "volatility"), "their chart needs it"
    )
    _check_columns(
        "sensitivity", report.sensitivity, SENSITIVITY_COLUMNS, "each row is named by them"
    )
    for key, frame in report.learning.items():
        _check_columns(f"learning of {key!r}", frame, ("frames",), "curves are drawn over it")


def _check_columns(
    subject: str, frame: pl.DataFrame, needed: tuple[str, ...], purpose: str
) -> None:
    missing = [name for name in needed if name not in frame.columns]
    if missing and frame.height:
        raise ValueError(f"{subject} have no column {', '.join(missing)}; {purpose}")


def _check_arrays(subject: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    size = arrays["ts"].size
    if size == 0 or any(shape != (size,) for shape in shapes.values()):
        raise ValueError(f"{subject}: shapes are {shapes}; equal, not empty, one axis is expected")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{subject}: {name} is {array[row]} at row {row}; only numbers draw")
