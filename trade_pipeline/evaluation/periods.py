"""Figures by year and month, and over a window of days that moves along a curve.

Frames in which an undefined figure is null and `reason` says why.
Start at `by_month`, `by_year`, `heat_map` and `rolling`.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.evaluation.growth import (
    day_ends,
    drawdown,
    simple_returns,
    until_ruin,
)
from trade_pipeline.evaluation.measure import FloatArray, IntArray, Measure, finite
from trade_pipeline.evaluation.ratios import sharpe, volatility

FIGURES: dict[str, Any] = {
    "days": pl.Int64(),
    "return": pl.Float64(),
    "sharpe": pl.Float64(),
    "volatility": pl.Float64(),
    "max_drawdown": pl.Float64(),
    "reason": pl.String(),
}
YEAR_SCHEMA: dict[str, Any] = {"year": pl.Int32(), **FIGURES}
MONTH_SCHEMA: dict[str, Any] = {"year": pl.Int32(), "month": pl.Int8(), **FIGURES}
ROLLING_SCHEMA: dict[str, Any] = {"time": pl.Datetime("ms", "UTC"), **FIGURES}
MONTHS = tuple(str(month) for month in range(1, 13))


def by_year(
    equity: FloatArray, close_ts: IntArray, days_per_year: float, risk_free: float = 0.0
) -> pl.DataFrame:
    """`YEAR_SCHEMA`, a row for each UTC year that has a bar; see `by_month`."""
    rows = _by("Y", equity, close_ts, days_per_year, risk_free)
    return pl.DataFrame(
        [{"year": 1970 + number, **row} for number, row in rows], YEAR_SCHEMA, orient="row"
    )


def by_month(
    equity: FloatArray, close_ts: IntArray, days_per_year: float, risk_free: float = 0.0
) -> pl.DataFrame:
    """`MONTH_SCHEMA`, a row for each UTC month that has a bar.

    Return and drawdown are of all bars, from the last close of the month before; Sharpe ratio and
    volatility are annualised, of the month's daily returns. After ruin there are no rows.

    Args:
        equity: [n+1] account value, E_0 first.
        close_ts: [n+1] close of each bar in ms UTC, increasing.
        days_per_year: trading days in a year.
        risk_free: annual rate taken off returns.
    """
    rows = _by("M", equity, close_ts, days_per_year, risk_free)
    return pl.DataFrame(
        [{"year": 1970 + number // 12, "month": number % 12 + 1, **row} for number, row in rows],
        MONTH_SCHEMA,
        orient="row",
    )


def heat_map(months: pl.DataFrame) -> pl.DataFrame:
    """Returns of `by_month` as a row a year and columns `1` to `12`; null where there is no bar."""
    years = months["year"].unique().sort()
    returns = {(row["year"], row["month"]): row["return"] for row in months.iter_rows(named=True)}
    return pl.DataFrame(
        {
            "year": years,
            **{
                name: pl.Series(
                    [returns.get((year, int(name))) for year in years], dtype=pl.Float64
                )
                for name in MONTHS
            },
        }
    )


def rolling(
    equity: FloatArray,
    close_ts: IntArray,
    window: int,
    days_per_year: float,
    risk_free: float = 0.0,
) -> pl.DataFrame:
    """`ROLLING_SCHEMA`, a row for each UTC day that has a bar, over it and the days before it.

    Args:
        equity: [n+1] account value, E_0 first.
        close_ts: [n+1] close of each bar in ms UTC, increasing.
        window: days that a figure looks back over; null until there are so many.
        days_per_year: trading days in a year.
        risk_free: annual rate taken off returns.

    Raises:
        ValueError: the window is shorter than two days.
    """
    if window < 2:
        raise ValueError(f"window is {window} days; at least two are needed")
    equity = until_ruin(equity)
    ends, _ = day_ends(close_ts[: equity.size])
    levels = equity[np.append(0, ends)] if ends.size else equity[:0]
    short = f"fewer than {window} days so far"
    rows: list[dict[str, Any]] = []
    for day in range(ends.size):
        if day + 1 < window:
            row: dict[str, Any] = dict.fromkeys(FIGURES) | {"days": day + 1, "reason": short}
        else:
            part = levels[day + 1 - window : day + 2]
            row = _row(part, simple_returns(part), days_per_year, risk_free)
        rows.append({"time": int(close_ts[ends[day]]), **row})
    schema = ROLLING_SCHEMA | {"time": pl.Int64()}
    frame = pl.DataFrame(rows, schema, orient="row")
    return frame.with_columns(pl.col("time").cast(ROLLING_SCHEMA["time"]))


def _by(
    unit: str, equity: FloatArray, close_ts: IntArray, days_per_year: float, risk_free: float
) -> list[tuple[int, dict[str, Any]]]:
    """Number of each year or month since 1970 that has a bar, and its figures."""
    equity = until_ruin(equity)
    ends, days = day_ends(close_ts[: equity.size])
    numbers = days.astype("datetime64[D]").astype(f"datetime64[{unit}]").astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), ends.size]
    starts = np.append(0, ends)
    rows = []
    for first, last in pairwise(edges if ends.size else [0]):
        returns = simple_returns(equity[starts[first : last + 1]])
        bars = equity[starts[first] : starts[last] + 1]
        rows.append((int(numbers[first]), _row(bars, returns, days_per_year, risk_free)))
    return rows


def _row(
    levels: FloatArray, returns: FloatArray, days_per_year: float, risk_free: float
) -> dict[str, Any]:
    """`FIGURES` of a stretch of a curve, the value that it starts from first."""
    measures: dict[str, Measure] = {
        "return": finite(float(levels[-1] / levels[0]) - 1),
        "sharpe": sharpe(returns, days_per_year, risk_free),
        "volatility": volatility(returns, days_per_year),
        "max_drawdown": finite(float(drawdown(levels).min())),
    }
    reasons: dict[str, list[str]] = {}
    for name, measure in measures.items():
        if measure.reason is not None:
            reasons.setdefault(measure.reason, []).append(name)
    said = [f"{' and '.join(names)}: {reason}" for reason, names in reasons.items()]
    return {
        "days": returns.size,
        **{name: measure.value for name, measure in measures.items()},
        "reason": "; ".join(said) or None,
    }
