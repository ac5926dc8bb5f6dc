"""A longer timeframe of a series, derived from its shorter bars.

Only complete bars come out: one whose shorter bars are all traded or known to be quiet. So a bar,
once derived, never changes when later bars arrive. Pure functions over frames: no storage, no
clock, no settings files. Start at `resample(bars, confirmed, series, timeframe)`.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, TS, empty_bars
from trade_pipeline.market.calendars import ALWAYS, DAY_MS, Instants, find_calendar
from trade_pipeline.market.coverage import joined, within_intervals
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings

IMPLEMENTATION = 1
Intervals = Iterable[tuple[int, int]]  # [start, end) in ms


def resample(
    bars: pl.DataFrame, confirmed: Intervals, series: SeriesSettings, timeframe: str
) -> tuple[pl.DataFrame, list[tuple[int, int]]]:
    """All complete bars of `timeframe`, each stamped with its open.

    On an exchange they start at each opening, so the last one of a session may be shorter; a day
    is a session, stamped with its date at 00:00Z. The series' own timeframe changes no bar.

    Args:
        bars: stored bars of the shorter series: canonical columns, sorted by `ts`.
        confirmed: intervals [start, end) in ms in which a missing shorter bar is quiet, as in
            `coverage`; elsewhere it is unknown.
        series: the shorter series.
        timeframe: of the result; a multiple of the series' own.

    Returns:
        Bars (`BAR_SCHEMA`), and intervals in order of time in which every derived bar is complete,
        so that one missing there is quiet. `trades` is null when that of any part is; `source` is
        the least precise one among the parts.

    Raises:
        ValueError: the timeframe cannot be made of these bars, or they are unsorted, repeated,
            off their grid, or change `adj_factor` within one derived bar.
        CalendarError: the calendar is unknown or does not reach that far.
    """
    if (whole_ms := TIMEFRAME_MS.get(timeframe)) is None:
        known = ", ".join(TIMEFRAME_MS)
        raise ValueError(f"series {series.key}: no timeframe {timeframe!r}; choose from {known}.")
    return resample_ms(bars, confirmed, series.key, series.calendar, series.timeframe_ms, whole_ms)


def resample_ms(
    bars: pl.DataFrame, confirmed: Intervals, key: str, calendar: str, part_ms: int, whole_ms: int
) -> tuple[pl.DataFrame, list[tuple[int, int]]]:
    """As `resample`, from bars of `part_ms` to bars of `whole_ms`, which is at most a day."""
    ts = bars["ts"].dt.epoch("ms").to_numpy()
    if (ts[1:] <= ts[:-1]).any():
        raise ValueError(f"series {key}: bars must be sorted by ts, each once; merge them first.")
    intervals = joined(confirmed)
    bounds = [*ts[:1], *ts[-1:], *(edge for interval in intervals for edge in interval)]
    if not bounds:
        return empty_bars(), []
    # One day more on either side, so that no session with a known bar is cut.
    around = ((int(min(bounds)) // DAY_MS - 1) * DAY_MS, (int(max(bounds)) // DAY_MS + 2) * DAY_MS)
    parts, whole_of_part, opens = _grids(key, calendar, around, part_ms, whole_ms)

    stray = _absent(ts, parts)
    if len(stray):
        raise ValueError(
            f"series {key}: the bar at {_instant(int(stray[0])):%Y-%m-%d %H:%M:%S} UTC is not on "
            f"the {part_ms} ms grid of calendar {calendar}; such bars cannot be stored."
        )
    at = np.searchsorted(parts, ts)
    known = within_intervals(parts, intervals, part_ms)
    known[at] = True
    expected = np.bincount(whole_of_part, minlength=len(opens))
    found = np.bincount(whole_of_part[known], minlength=len(opens))
    complete = (found == expected) & (expected > 0)
    done = opens[complete]
    runs = np.split(done, np.flatnonzero(np.diff(done) > whole_ms) + 1)
    kept = complete[whole_of_part[at]]
    derived = _grouped(bars.filter(kept), opens[whole_of_part[at[kept]]], key)
    return derived, [(int(run[0]), int(run[-1]) + whole_ms) for run in runs if len(run)]


def _grids(
    key: str, calendar: str, bounds_ms: tuple[int, int], part_ms: int, whole_ms: int
) -> tuple[Instants, npt.NDArray[np.intp], Instants]:
    """Opens of parts [n], which whole [n] each belongs to, opens of wholes; no part of none."""
    rules = find_calendar(calendar)
    start, end = (_instant(bound) for bound in bounds_ms)
    of_parts, of_wholes = (ms == DAY_MS and calendar != ALWAYS for ms in (part_ms, whole_ms))
    parts = rules.expected(start, end, part_ms, daily_session=of_parts)
    opens = rules.expected(start, end, whole_ms, daily_session=of_wholes)
    if of_wholes and not of_parts:
        # A session may open on the UTC day before its date, so its close decides.
        closes = rules.close_ts(opens, whole_ms, daily_session=True)
        whole = np.searchsorted(closes, parts, side="right")
    elif not len(_absent(opens, parts)):
        whole = np.searchsorted(opens, parts, side="right") - 1
    else:
        raise ValueError(
            f"series {key}: bars of {whole_ms} ms cannot be made of bars of {part_ms} ms on "
            f"calendar {calendar}; choose a timeframe that is a multiple of the series' own."
        )
    inside = (whole >= 0) & (whole < len(opens))
    return parts[inside], whole[inside], opens


def _grouped(bars: pl.DataFrame, opens: Instants, key: str) -> pl.DataFrame:
    """One bar for each run of equal values in `opens` [n], which says where each row belongs."""
    trades = pl.col("trades")
    groups = bars.with_columns(ts=pl.Series(opens).cast(TS)).group_by("ts", maintain_order=True)
    derived = groups.agg(
        pl.col("open", "adj_factor").first(),
        pl.col("high", "source").max(),  # sources stand in order of precision
        pl.col("low").min(),
        pl.col("close").last(),
        trades=pl.when(trades.null_count() == 0).then(trades.sum()),
        factors=pl.col("adj_factor").n_unique(),  # null counts as a value of its own
    )
    changed = derived.filter(pl.col("factors") > 1)["ts"]
    if len(changed):
        raise ValueError(
            f"series {key}: adj_factor changes within the bar at {changed[0]:%Y-%m-%d %H:%M:%S} "
            "UTC; a bar has one factor, so use adjusted bars or a shorter timeframe."
        )
    # bincount adds one row after the other; a polars sum depends on the number of threads.
    at = np.cumsum(np.diff(opens, prepend=opens[:1]) > 0)
    volume = np.bincount(at, weights=bars["volume"].to_numpy(), minlength=derived.height)
    return derived.with_columns(volume=pl.Series(volume, dtype=pl.Float64)).select(*BAR_SCHEMA)


def _absent(instants: Instants, grid: Instants) -> Instants:
    """Those of `instants` [n] that are not in `grid`, which rises."""
    following: Instants = np.append(grid, np.iinfo(np.int64).max)
    absent: Instants = instants[following[np.searchsorted(grid, instants)] != instants]
    return absent


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
