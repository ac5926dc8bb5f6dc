"""From sources to partitions: plan, fetch, validate, merge, store; batch by batch.

Each batch is validated, merged under the partition's lock and durable before its source is asked
for the next, and the intervals it confirms are written in the same file as its bars. So a killed
import resumes from what is stored, asks again for what was not, and ends with the same bytes.
Knows no Dagster. Start at `import_bars`.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from trade_pipeline.market import bars as market_bars
from trade_pipeline.market import verdicts
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import (
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
        around.log(
            f"{key}: {len(years)} years done; {done} of {len(by_series)} series, {left:.0f} s left"
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
            with _repairable(series, year):
                known = read_partition(location)
            before = partition_metadata(known.confirmed, known.actions)
        if batch.replaces:
            merged = batch.stored
            metadata = partition_metadata(batch.confirmed, batch.actions)
        else:
            merged = market_bars.merge(known.bars, batch.stored)
            metadata = partition_metadata(
                (*known.confirmed, *batch.confirmed), (*known.actions, *batch.actions)
            )
            _keep_differences(store, series, year, known.bars, batch.stored)
        if metadata != before or not merged.equals(known.bars):
            write_frame(location, merged, metadata)
    return merged.height - known.bars.height


@contextmanager
def _repairable(series: str, year: int) -> Iterator[None]:
    """Adds the way out to the error of a damaged partition, which no import can merge into."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"{error} Of bars that means: prune the whole of {year} of {series} (job prune_bars), "
            "then import it again."
        ) from error


def _keep_differences(
    store: Path, series: str, year: int, known: pl.DataFrame, incoming: pl.DataFrame
) -> None:
    """Before the bars are replaced, so that a kill in between loses no difference."""
    standing = verdicts.read(store, verdicts.DIFFERENCES, series, year)
    found = market_bars.differences(known, incoming).to_dicts()
    if not standing and not found:
        return
    compared = {str(ts) for ts in incoming["ts"]}
    kept = [row for row in standing if row["ts"] not in compared]
    rows = sorted([*kept, *found], key=lambda row: (str(row["ts"]), str(row["column"])))
    verdicts.keep(store, verdicts.DIFFERENCES, series, year, rows)


class _SeriesImport:
    """Imports some years of one series and notes what became of each."""

    def __init__(
        self, series: SeriesSettings, years: list[int], around: Surroundings, outcome: Outcome
    ) -> None:
        self.series, self.years, self.around, self.outcome = series, years, around, outcome
        self.source: Source = source_for(series)
        self.new_bars = dict.fromkeys(years, 0)
        self.answers = 0
        self.origins: dict[int, dict[str, None]] = {year: {} for year in years}
        self.plan = "nothing to fetch"

    def run(self, window: Interval | None, route: str | None) -> None:
        """Plan, fetch every leg, then report each year."""
        left = list(self.years)  # years that a failure from here on concerns
        try:
            legs = self.source.plan(self.series, self._wanted(window), route, self.around)
            if legs:
                self.plan = "; ".join(_leg_text(leg) for leg in legs)
            self.around.log(f"{self.series.key}: plan: {self.plan}")
            routes = self.source.routes(self.series)
            if any(routes[leg.route].calls_per_minute for leg in legs):
                self.around.announce(self.series.key, self.plan)
            for leg in legs:
                left = [
                    year
                    for year in self.years
                    if within([year_interval(year)], leg.start_ms, leg.end_ms)
                ]
                for batch in self.source.fetch(self.series, leg, self.around):
                    self._take(batch)
        except (SourceError, StorageError, SettingsError) as error:
            for year in left:
                self._refuse(year, str(error), [{"rule": "source", "value": str(error)}])
        for year in self.years:
            try:
                self._report(year)
            except StorageError as error:
                self._refuse(year, str(error), [{"rule": "store", "value": str(error)}])

    def _wanted(self, window: Interval | None) -> Wanted:
        """The run's range up to now, and what of it no earlier import confirmed."""
        first, last = window or (0, year_interval(self.years[-1])[1])
        last = min(last, self.around.now_ms())
        missing: list[Interval] = []
        for year in self.years:
            start, end = year_interval(year)
            with _repairable(self.series.key, year):
                stored = read_confirmed(self._location(year))
            missing += without(max(start, first), min(end, last), stored)
        start = max(first, year_interval(self.years[0])[0])
        return Wanted(start, max(start, last), joined(missing))

    def _take(self, batch: SourceBars) -> None:
        """Store one batch; returns once it is durable."""
        self.answers += batch.answers
        for note in batch.notes:
            self.around.log(f"{self.series.key}: {note}")
        for year, part in split_years(batch, self.years).items():
            if SeriesYear(self.series.key, year) in self.outcome.refused:
                continue
            if part.bars.is_empty() and not (part.confirmed or part.actions or part.replaces):
                continue
            bad = market_bars.violations(part.bars, self.series, year)
            if bad.is_empty():
                self.new_bars[year] += store_batch(self.around.store, self.series.key, year, part)
                self.origins[year][part.origin] = None
                continue
            rows = [{"file": part.origin, **row} for row in bad.head(MOST_ROWS_SHOWN).to_dicts()]
            self._refuse(year, market_bars.explain(bad, self.series.key, part.origin), rows)

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
        if not refused:
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
            "source_differences": len(differences),
            "bytes": location.path.stat().st_size,
        }

    def _location(self, year: int) -> ArtifactLocation:
        return layout.ohlcv(self.around.store, self.series.key, year)


def _leg_text(leg: Leg) -> str:
    first, last = (
        datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
        for ms in (leg.start_ms, leg.end_ms)
    )
    return f"{leg.route} {first} to {last} UTC"
