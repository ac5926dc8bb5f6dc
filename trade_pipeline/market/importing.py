"""From sources to partitions: plan, fetch, validate, merge, store; batch by batch.

Each batch is validated, merged under the partition's lock and durable before its source is asked
for the next, and the intervals it confirms are written in the same file as its bars. So a killed
import resumes from what is stored, asks again for what was not, and ends with the same bytes.
Knows no Dagster. Start at `import_bars`.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.market import bars as market_bars
from trade_pipeline.market import verdicts
from trade_pipeline.market.calendars import DAY_MS, CalendarError, find_calendar
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Interval,
    Leg,
    Source,
    SourceBars,
    SourceError,
    Surroundings,
    Wanted,
    split_years,
    within,
    without,
    year_interval,
)
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.sources.transport import duration
from trade_pipeline.market.stored import (
    Partition,
    partition_metadata,
    read_confirmed,
    read_partition,
)
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, read_hash, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError

CONTENT_HASH = "content_hash"  # metadata key of what the import says that it stored
MOST_ROWS_SHOWN = 20
LONGEST_BAR_MS = 4 * DAY_MS  # a session may close days after the UTC date it is stamped with
SOURCE_RULE = "source"  # what a verdict says when no row is to blame


class SeriesYear(NamedTuple):
    """One partition of `ohlcv`."""

    series: str
    year: int

    @property
    def key(self) -> str:
        """`<series>|<year>`, its key in Dagster."""
        return f"{self.series}|{self.year}"


class Refusal(NamedTuple):
    """Why a partition was not written: a sentence, and the first bad rows as a table."""

    sentence: str
    rows: list[dict[str, object]]


@dataclass
class Outcome:
    """What became of the partitions of one run.

    A partition stands in both when a source failed after some of its batches were stored.
    """

    committed: dict[SeriesYear, dict[str, Any]] = field(default_factory=dict)  # their metadata
    refused: dict[SeriesYear, Refusal] = field(default_factory=dict)


def import_bars(
    series: dict[str, SeriesSettings],
    partitions: Iterable[SeriesYear],
    around: Surroundings,
    window: Interval | None = None,
    route: str | None = None,
) -> Outcome:
    """Import the wanted partitions, series by series.

    A partition with a bad row is refused whole; when a source fails, what it gave before stays.

    Args:
        series: all series by key.
        partitions: which years of which series.
        around: folders, clock, log.
        window: take only this part of the years; None: all of them.
        route: the source's route to use alone; None: the source chooses.
    """
    outcome = Outcome()
    around = replace(around, all_series=series)
    by_series: dict[str, list[int]] = {}
    for one in partitions:
        by_series.setdefault(one.series, []).append(one.year)
    started = time.monotonic()
    for done, (key, years) in enumerate(by_series.items(), start=1):
        _SeriesImport(series[key], sorted(years), around, outcome).run(window, route)
        left = (time.monotonic() - started) / done * (len(by_series) - done)
        refused = sum(one.series == key for one in outcome.refused)
        around.log(
            f"{key}: {len(years)} years, {refused} of them refused; "
            f"{done} of {len(by_series)} series, {duration(left)} left"
        )
    return outcome


def store_batch(store: Path, series: str, year: int, batch: SourceBars) -> int:
    """Merge one batch of valid bars of one year into its partition; durable on return.

    Holds the partition's lock, so that writers of other processes lose nothing. Bars and the
    intervals they confirm go into one file: no crash can part them.

    Returns:
        How many bars more are stored than before.
    """
    location = layout.ohlcv(store, series, year)
    with frame_lock(location):
        known, before = Partition(market_bars.empty_bars(), (), ()), None
        if location.path.exists():
            known = read_partition(location)
            before = partition_metadata(known.confirmed, known.actions)
        left = known
        if batch.replaces is not None:
            left = left.without(batch.replaces)
        else:
            _keep_differences(store, series, year, known, batch)
        merged = market_bars.merge(left.bars, batch.stored)
        metadata = partition_metadata(
            (*left.confirmed, *batch.confirmed), (*left.actions, *batch.actions)
        )
        if metadata != before or not merged.equals(known.bars):
            write_frame(location, merged, metadata)
    return merged.height - known.bars.height


def _keep_differences(
    store: Path, series: str, year: int, known: Partition, batch: SourceBars
) -> None:
    """Before the bars are replaced, so that a kill in between loses no difference.

    A row goes when its two sources were compared again: not when the better one alone came back.
    """
    standing = verdicts.read(store, verdicts.DIFFERENCES, series, year)
    found = [
        *market_bars.differences(known.bars, batch.stored).to_dicts(),
        *_one_sided(known, batch),
    ]
    if not standing and not found:
        return
    again = {
        (str(ts), frozenset(sources))
        for ts, *sources in market_bars.compared(known.bars, batch.stored)
        .select("ts", pl.col("source", "source_incoming").cast(pl.String))
        .iter_rows()
    }
    kept = [
        row
        for row in standing
        if (row["ts"], frozenset((row["stored_source"], row["incoming_source"]))) not in again
    ]
    rows = {(str(row["ts"]), str(row["column"])): row for row in [*kept, *found]}
    ordered = [rows[key] for key in sorted(rows)]
    verdicts.keep(store, verdicts.DIFFERENCES, series, year, ordered)


def _one_sided(known: Partition, batch: SourceBars) -> list[dict[str, object]]:
    """Bars that one source has of a time that the other knows to be quiet."""
    incoming = batch.stored
    sources, stored_sources = (set(frame["source"]) for frame in (incoming, known.bars))
    if len(sources) > 1 or stored_sources == sources:  # one source alone corrects itself
        return []
    gone = _inside(known.bars, batch.confirmed).join(incoming, on="ts", how="anti")
    gone = gone.filter(~pl.col("source").is_in(list(sources)))
    new = _inside(incoming, known.confirmed).join(known.bars, on="ts", how="anti")
    sides = (
        (gone, {"stored_source": "source", "stored": "close"}, "incoming_source"),
        (new, {"incoming_source": "source", "incoming": "close"}, "stored_source"),
    )
    empty = dict.fromkeys(("stored_source", "stored", "incoming_source", "incoming"))
    return [
        {"column": "bar", **empty, quiet: "quiet", "ts": row["ts"]}
        | {name: row[column] for name, column in told.items()}
        for frame, told, quiet in sides
        for row in frame.iter_rows(named=True)
    ]


def _inside(bars: pl.DataFrame, intervals: Iterable[Interval]) -> pl.DataFrame:
    """Bars that open in one of the intervals."""
    edges = np.array(joined(intervals), dtype=np.int64).ravel()
    inside = np.searchsorted(edges, bars["ts"].dt.epoch("ms").to_numpy(), side="right") % 2 == 1
    return bars.filter(inside)


class _SeriesImport:
    """Imports some years of one series and notes what became of each."""

    def __init__(
        self, series: SeriesSettings, years: list[int], around: Surroundings, outcome: Outcome
    ) -> None:
        self.series, self.years, self.around, self.outcome = series, years, around, outcome
        self.source: Source = source_for(series)
        self.new_bars = dict.fromkeys(years, 0)
        self.spoiled: set[int] = set()  # years of which a row was bad
        self.answers = 0
        self.origins: dict[int, dict[str, None]] = {year: {} for year in years}
        self.plan = "nothing to fetch"

    def run(self, window: Interval | None, route: str | None) -> None:
        """Plan, fetch every leg, then report each year."""
        legs: list[Leg] = []
        try:
            wanted = self._wanted(window)
            legs = self.source.plan(self.series, wanted, route, self.around)
            routes = self.source.routes(self.series)
            asks = {name: one.calls_per_minute is not None for name, one in routes.items()}
            self._announce(legs, any(asks[leg.route] for leg in legs))
            for number, leg in enumerate(legs):
                try:
                    for batch in self.source.fetch(self.series, leg, self.around):
                        self._take(batch, asked=asks[leg.route])
                except HistoryUnavailable as error:  # that venue answers: the other legs may serve
                    self._refuse_legs([leg], error)
                except (SourceError, StorageError, SettingsError) as error:
                    self._refuse_legs(legs[number:], error)
                    break
        except (SourceError, StorageError, SettingsError) as error:
            for year in self.years:
                self._refuse(year, str(error), [{"rule": SOURCE_RULE, "value": str(error)}])
        for year in self.years:
            try:
                self._report(year)
            except StorageError as error:
                self._refuse(year, str(error), [{"rule": SOURCE_RULE, "value": str(error)}])

    def _announce(self, legs: list[Leg], asks: bool) -> None:
        """Tell the plan, before the first request if there are any."""
        if legs:
            self.plan = "; ".join(_leg_text(leg) for leg in legs)
        self.around.log(f"{self.series.key}: plan: {self.plan}")
        if asks:
            self.around.announce(self.series.key, self.plan)

    def _refuse_legs(self, legs: list[Leg], error: Exception) -> None:
        """Refuse every year that these legs should have served."""
        for year in self.years:
            if within([leg[1:] for leg in legs], *year_interval(year)):
                self._refuse(year, str(error), [{"rule": SOURCE_RULE, "value": str(error)}])

    def _wanted(self, window: Interval | None) -> Wanted:
        """The run's range up to now, and what of it no earlier import confirmed."""
        first, last = window or (0, year_interval(self.years[-1])[1])
        first = max(first, year_interval(self.series.first_year)[0])
        last = min(last, self.around.now_ms())
        missing: list[Interval] = []
        for year in self.years:
            start, end = year_interval(year)
            stored = read_confirmed(self._location(year))
            missing += without(max(start, first), min(end, last), stored)
        start = max(first, year_interval(self.years[0])[0])
        return Wanted(start, max(start, last), joined(missing))

    def _take(self, batch: SourceBars, asked: bool) -> None:
        """Store one batch; returns once it is durable.

        Args:
            batch: from the source.
            asked: a venue gave it, whose clock says what has closed; for a file ours does.
        """
        if not asked:
            batch = self._closed(batch)
        self.answers += batch.answers
        for note in batch.notes:
            self.around.log(f"{self.series.key}: {note}")
        for year, part in split_years(batch, self.years).items():
            if year in self.spoiled:
                continue
            if part.bars.is_empty() and not (part.confirmed or part.actions or part.replaces):
                continue
            latest = None if asked else self.around.now_ms()
            bad = market_bars.violations(part.bars, self.series, year, latest)
            if bad.is_empty():
                self.new_bars[year] += store_batch(self.around.store, self.series.key, year, part)
                self.origins[year][part.origin] = None
                continue
            rows = [{"file": part.origin, **row} for row in bad.head(MOST_ROWS_SHOWN).to_dicts()]
            self.spoiled.add(year)
            self._refuse(year, market_bars.explain(bad, self.series.key, part.origin), rows)

    def _closed(self, batch: SourceBars) -> SourceBars:
        """Without the bar that is still open; a venue knows that itself, a file does not."""
        now = self.around.now_ms()
        ts = batch.bars["ts"].dt.epoch("ms").to_numpy()
        newest = np.flatnonzero((ts > now - LONGEST_BAR_MS) & (ts <= now))
        try:
            closes = find_calendar(self.series.calendar).close_ts(
                ts[newest], self.series.timeframe_ms, self.series.is_daily_session
            )
        except CalendarError:  # off its grid: that row will be named
            return batch
        still_open = newest[closes > now]
        if not len(still_open):
            return batch
        self.around.log(f"{self.series.key}: the bar that has not closed yet is left out")
        kept = np.ones(len(ts), dtype=np.bool_)
        kept[still_open] = False
        known = within(batch.confirmed, 0, int(ts[still_open].min()))
        return replace(batch, bars=batch.bars.filter(kept), confirmed=known)

    def _refuse(self, year: int, sentence: str, rows: list[dict[str, object]]) -> None:
        self.outcome.refused[SeriesYear(self.series.key, year)] = Refusal(sentence, rows)
        try:
            verdicts.keep(self.around.store, verdicts.VALID, self.series.key, year, rows)
        except StorageError as error:  # the disk that is full may be why it is refused
            self.around.log(f"{self.series.key}: {error}")

    def _report(self, year: int) -> None:
        """Verdicts and metadata of what is stored of a year now, whoever stored it."""
        one = SeriesYear(self.series.key, year)
        refused = one in self.outcome.refused
        if refused and not self.origins[year]:
            return
        location = self._location(year)
        with frame_lock(location):
            if not location.path.exists():
                write_frame(location, market_bars.empty_bars(), partition_metadata((), ()))
            stored, version = read_partition(location), read_hash(location)
        store = self.around.store
        if not refused and self._settled(year):
            verdicts.keep(store, verdicts.VALID, one.series, year, ())
        gaps, outliers = verdicts.judge(store, self.series, year, stored)
        differences = verdicts.read(store, verdicts.DIFFERENCES, one.series, year)
        self.outcome.committed[one] = {
            CONTENT_HASH: version,
            "dagster/row_count": stored.bars.height,
            "new_bars": self.new_bars[year],
            "first_bar": str(stored.bars["ts"].min()),
            "last_bar": str(stored.bars["ts"].max()),
            "source": ", ".join(list(self.origins[year])[:5]) or "nothing new",
            "plan": self.plan,
            "answers": self.answers,
            "gaps": gaps,
            "outliers": outliers,
            "source_differences": len({row["ts"] for row in differences}),
            "bytes": location.path.stat().st_size,
        }

    def _settled(self, year: int) -> bool:
        """Whether a refusal of earlier is over: the year was offered again, or nothing is missing.

        A run that asked for something else says nothing of the rows that were refused.
        """
        if self.origins[year]:
            return True
        standing = verdicts.read(self.around.store, verdicts.VALID, self.series.key, year)
        if all(row["rule"] == SOURCE_RULE for row in standing):
            return True
        start, end = year_interval(year)
        stored = read_confirmed(self._location(year))
        return not without(start, min(end, self.around.now_ms()), stored)

    def _location(self, year: int) -> ArtifactLocation:
        return layout.ohlcv(self.around.store, self.series.key, year)


def _leg_text(leg: Leg) -> str:
    first, last = (
        datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        for ms in (leg.start_ms, leg.end_ms)
    )
    return f"{leg.route} {first} to {last} UTC"
