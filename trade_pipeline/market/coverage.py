"""Coverage of a series: which bars are there, which days are good, which slices readers get.

Training and backtests draw only from slices. Pure functions over frames: no Dagster, no
storage, no clock. Start at `coverage(bars, confirmed, series)`; readers use `parse_manifest`
and then `grid(bars, slice_, confirmed, series)`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, field_serializer

from trade_pipeline.market.bars import PRICES, TS
from trade_pipeline.market.calendars import DAY_MS, Instants, find_calendar
from trade_pipeline.settings.base import Settings, parse_settings
from trade_pipeline.settings.series import CoverageThresholds, SeriesSettings

IMPLEMENTATION = 1

# Positions in this tuple are the codes that the arrays below hold.
STATES = ("traded", "quiet", "unknown")
TRADED, QUIET, UNKNOWN = range(3)
STATE = pl.Enum(STATES)
DAY_SCHEMA: dict[str, pl.DataType] = {
    "day": pl.Date(),
    "expected": pl.Int64(),
    "traded": pl.Int64(),
    "quiet": pl.Int64(),
    "unknown": pl.Int64(),
    "duplicates": pl.Int64(),
    "good": pl.Boolean(),
    "reason": pl.String(),
}


class Slice(NamedTuple):
    """A stretch without a long gap; its first and last bars are traded ones.

    Attributes:
        start_ms: open of the first bar.
        end_ms: exclusive bound: one millisecond after the last bar's open.
        days: days with expected bars that the slice touches.
        rows: expected bars in it, which is the height of its grid.
    """

    start_ms: int
    end_ms: int
    days: int
    rows: int


class ExcludedDay(Settings):
    """A day that no slice contains, with the counts that excluded it."""

    day: date
    expected: int
    traded: int
    quiet: int
    unknown: int
    reason: str


class Manifest(Settings):
    """The coverage manifest of one series, as stored in JSON."""

    series: str
    implementation: int
    thresholds: CoverageThresholds
    partition_hashes: dict[str, str] = Field(description="Year to content hash of its bars.")
    days: int
    good_days: int
    expected: int
    traded: int
    quiet: int
    unknown: int
    duplicates: int
    slices: tuple[Slice, ...]
    excluded_days: tuple[ExcludedDay, ...]

    @field_serializer("slices")
    def _named(self, slices: tuple[Slice, ...]) -> list[dict[str, int]]:
        return [one._asdict() for one in slices]


@dataclass(frozen=True)
class Coverage:
    """What a series covers.

    Attributes:
        days: one row (`DAY_SCHEMA`) per UTC day that expects a bar, from the first stored bar's
            day to the last one's; `reason` says why a day is not good.
        slices: in order of time.
    """

    days: pl.DataFrame
    slices: tuple[Slice, ...]

    def to_document(
        self,
        series: str,
        thresholds: CoverageThresholds,
        partition_hashes: Mapping[str, str],
    ) -> dict[str, Any]:
        """The manifest, ready for JSON; equal coverage gives equal documents."""
        counts = ("expected", "traded", "quiet", "unknown", "duplicates")
        excluded = self.days.filter(~pl.col("good")).drop("good", "duplicates")
        manifest = Manifest(
            series=series,
            implementation=IMPLEMENTATION,
            thresholds=thresholds,
            partition_hashes=dict(sorted(partition_hashes.items())),
            days=self.days.height,
            good_days=int(self.days["good"].sum()),
            **{name: int(self.days[name].sum()) for name in counts},
            slices=self.slices,
            excluded_days=tuple(ExcludedDay(**row) for row in excluded.iter_rows(named=True)),
        )
        return manifest.model_dump(mode="json")


def parse_manifest(document: Any, origin: str = "coverage manifest") -> Manifest:
    """Read a manifest back. Raises `SettingsError` that names `origin` and the wrong key."""
    return parse_settings(document, Manifest, origin)


def coverage(
    bars: pl.DataFrame, confirmed: Iterable[tuple[int, int]], series: SeriesSettings
) -> Coverage:
    """Count each day's bars and find the slices.

    Args:
        bars: all stored years of the series, canonical columns, sorted by `ts`.
        confirmed: intervals [start, end) in ms of which the source knows every traded bar, so
            that a bar missing there is quiet; elsewhere it is unknown.
        series: timeframe, calendar and thresholds.

    Raises:
        ValueError: bars are not sorted or lie off the grid, which validation refuses.
        CalendarError: the calendar is unknown or does not reach that far.
    """
    ts = _instants(bars, series)
    if not len(ts):
        return Coverage(pl.DataFrame(schema=DAY_SCHEMA), ())
    # Whole days: the bars that the first and the last day lack are missing ones.
    start_ms = int(ts[0]) // DAY_MS * DAY_MS
    end_ms = (int(ts[-1]) // DAY_MS + 1) * DAY_MS
    expected, state = bar_states(ts, confirmed, series, start_ms, end_ms)
    days, day_of_bar = _days(expected, state, ts, series.coverage)
    good = days["good"].to_numpy()[day_of_bar]
    broken = ~good | _in_long_run(state == UNKNOWN, series.coverage.max_unknown_run)
    slices = []
    for first, stop in runs(~broken):
        traded = np.flatnonzero(state[first:stop] == TRADED)
        if not len(traded):
            continue
        a, b = first + int(traded[0]), first + int(traded[-1]) + 1
        touched = int(day_of_bar[b - 1] - day_of_bar[a] + 1)
        if touched >= series.coverage.min_slice_days:
            slices.append(Slice(int(expected[a]), int(expected[b - 1]) + 1, touched, b - a))
    return Coverage(days, tuple(slices))


def grid(
    bars: pl.DataFrame,
    slice_: Slice,
    confirmed: Iterable[tuple[int, int]],
    series: SeriesSettings,
) -> pl.DataFrame:
    """Every expected bar of a slice, in raw prices (see `bars.adjusted`).

    Args:
        bars: stored bars that contain the slice; sorted by `ts`.
        slice_: one of the coverage of these bars.
        confirmed: as in `coverage`.
        series: timeframe and calendar.

    Returns:
        ts, close_ts (when the bar is visible), open, high, low, close, volume, adj_factor,
        state (traded, quiet, unknown). A bar that is not traded is flat at the close before it,
        with volume 0.

    Raises:
        ValueError: the slice does not fit these bars.
    """
    ts = _instants(bars, series)
    inside = slice(*(int(at) for at in np.searchsorted(ts, (slice_.start_ms, slice_.end_ms))))
    expected, state = bar_states(ts[inside], confirmed, series, slice_.start_ms, slice_.end_ms)
    fits = len(expected) == slice_.rows and len(state) > 0 and state[0] == TRADED
    if not fits or np.count_nonzero(state == TRADED) != inside.stop - inside.start:
        raise ValueError(
            f"series {series.key}: the slice from {_text(slice_.start_ms)} to "
            f"{_text(slice_.end_ms)} has {slice_.rows} rows starting with a traded bar, but "
            f"these bars do not (or repeat a ts); rebuild the manifest from the same bars."
        )
    # Each expected bar takes the values of the last traded bar at or before it.
    source = np.cumsum(state == TRADED) - 1
    held = bars[inside].select(*PRICES, "volume", "adj_factor")[source]
    closes = find_calendar(series.calendar).close_ts(
        expected, series.timeframe_ms, series.is_daily_session
    )
    traded = pl.lit(pl.Series(state == TRADED))
    return held.select(
        ts=pl.Series(expected).cast(TS),
        close_ts=pl.Series(closes).cast(TS),
        **{p: pl.when(traded).then(pl.col(p)).otherwise(pl.col("close")) for p in PRICES},
        volume=pl.when(traded).then(pl.col("volume")).otherwise(0.0),
        adj_factor=pl.col("adj_factor"),
        state=pl.Series(state.astype(np.uint8)).cat.to(STATE),
    )


def joined(intervals: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same time as sorted intervals [start, end) that neither overlap nor touch."""
    result: list[tuple[int, int]] = []
    for start, end in sorted((a, b) for a, b in intervals if a < b):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return tuple(result)


def bar_states(
    ts: Instants,
    confirmed: Iterable[tuple[int, int]],
    series: SeriesSettings,
    start_ms: int,
    end_ms: int,
) -> tuple[Instants, npt.NDArray[np.int8]]:
    """Every bar that the calendar expects, and what is known of it.

    Args:
        ts: opens of the stored bars in [start_ms, end_ms), rising.
        confirmed: as in `coverage`.
        series: timeframe and calendar.
        start_ms: first instant.
        end_ms: first instant after.

    Returns:
        Opens [n] of the expected bars, and the code of `STATES` [n] of each.

    Raises:
        ValueError: a stored bar is none of the expected ones.
    """
    expected = find_calendar(series.calendar).expected(
        _instant(start_ms), _instant(end_ms), series.timeframe_ms, series.is_daily_session
    )
    quiet = within_intervals(expected, confirmed, series.timeframe_ms)
    state = np.where(quiet, QUIET, UNKNOWN).astype(np.int8)
    at = np.searchsorted(expected, ts)
    found = at < len(expected)
    found[found] = expected[at[found]] == ts[found]
    if not found.all():
        raise ValueError(
            f"series {series.key}: a bar at {_text(int(ts[~found][0]))} is not on the "
            f"{series.timeframe} grid of calendar {series.calendar}; such bars cannot be stored."
        )
    state[at] = TRADED
    return expected, state


def within_intervals(
    opens: Instants, intervals: Iterable[tuple[int, int]], timeframe_ms: int
) -> npt.NDArray[np.bool_]:
    """Which bars [n], by their rising opens, lie wholly inside confirmed intervals [start, end).

    A bar half confirmed may have traded in its other half.
    """
    inside = np.zeros(len(opens), dtype=np.bool_)
    for start, end in joined(intervals):
        first = np.searchsorted(opens, start)
        stop = np.searchsorted(opens, end - timeframe_ms, side="right")
        inside[first:stop] = True
    return inside


def runs(mask: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Bounds [first, stop) of each stretch of true values."""
    edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _instants(bars: pl.DataFrame, series: SeriesSettings) -> Instants:
    ts = bars["ts"].dt.epoch("ms").to_numpy()
    if (ts[1:] < ts[:-1]).any():
        raise ValueError(f"series {series.key}: bars must be sorted by ts; sort them first.")
    return ts


def _days(
    expected: Instants,
    state: npt.NDArray[np.int8],
    ts: Instants,
    thresholds: CoverageThresholds,
) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """The days frame, and the row of it [n] that each expected bar belongs to."""
    days, day_of_bar = np.unique(expected // DAY_MS, return_inverse=True)
    repeated = ts[1:][ts[1:] == ts[:-1]] // DAY_MS
    counts = {
        name: np.bincount(day_of_bar[state == code], minlength=len(days)).astype(np.int64)
        for code, name in enumerate(STATES)
    }
    frame = pl.DataFrame(
        {
            "day": pl.Series(days).cast(pl.Int32).cast(pl.Date),
            "expected": np.bincount(day_of_bar, minlength=len(days)).astype(np.int64),
            **counts,
            "duplicates": np.bincount(np.searchsorted(days, repeated), minlength=len(days)).astype(
                np.int64
            ),
        }
    )
    limit = thresholds.max_unknown_fraction
    unknown, of = pl.col("unknown"), pl.col("expected")
    found = pl.format("{} of {} bars are unknown", unknown, of)
    reason = (
        pl.when(unknown > limit * of)
        .then(pl.concat_str(found, pl.lit(f", more than {limit:.6g} of the day")))
        .when(unknown > thresholds.max_unknown_bars)
        .then(pl.concat_str(found, pl.lit(f", more than {thresholds.max_unknown_bars}")))
    )
    frame = frame.with_columns(good=reason.is_null(), reason=reason)
    return frame.select(*DAY_SCHEMA), day_of_bar.astype(np.int64)


def _in_long_run(mask: npt.NDArray[np.bool_], most: int) -> npt.NDArray[np.bool_]:
    """Where `mask` has been true for more than `most` in a row, over the whole run."""
    long = np.zeros_like(mask)
    for first, stop in runs(mask):
        if stop - first > most:
            long[first:stop] = True
    return long


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)


def _text(ms: int) -> str:
    return f"{_instant(ms):%Y-%m-%d %H:%M:%S} UTC"
