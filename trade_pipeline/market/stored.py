"""Bars and manifests of the store, read the one way that assets and notebooks share."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import TS, adjusted, empty_bars
from trade_pipeline.market.coverage import Manifest, grid, joined, parse_manifest
from trade_pipeline.market.sources.base import without, years_of
from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import (
    StorageError,
    StoredFrame,
    read_metadata,
    read_whole,
)
from trade_pipeline.storage.location import ArtifactLocation

# Keys of a partition's metadata.
CONFIRMED = "confirmed"  # intervals known to be complete
ACTIONS = "actions"  # splits and dividends of the year
READERS = 4  # threads; more only wait for each other

Interval = tuple[int, int]


class Partition(NamedTuple):
    """One stored year: its bars, the intervals known to be complete, and its actions."""

    bars: pl.DataFrame
    confirmed: tuple[Interval, ...]
    actions: tuple[Action, ...]

    def without(self, interval: Interval) -> "Partition":
        """What is left when everything of [start, end) in ms goes."""
        start, end = interval
        ms = pl.col("ts").dt.epoch("ms")
        return Partition(
            self.bars.filter((ms < start) | (ms >= end)),
            tuple(part for one in self.confirmed for part in without(*one, [interval])),
            tuple(one for one in self.actions if not start <= one.ts_ms < end),
        )


@dataclass(frozen=True)
class StoredBars:
    """All stored bars of a series.

    Attributes:
        bars: frame of `bars.BAR_SCHEMA`, sorted by ts.
        confirmed: [start, end) intervals in ms in which a missing bar is known to be quiet.
        hashes: content hash by year of every partition that holds anything.
        actions: splits and dividends, rising by time.
    """

    bars: pl.DataFrame
    confirmed: list[Interval]
    hashes: dict[str, str]
    actions: tuple[Action, ...] = ()


@contextmanager
def _repairable() -> Iterator[None]:
    """Adds the way out to the error of a damaged partition, which no import can merge into."""
    try:
        yield
    except StorageError as error:
        raise StorageError(
            f"{error} Of bars that means: prune that whole year (job prune_bars), then import it."
        ) from error


def partition_metadata(confirmed: Iterable[Interval], actions: Iterable[Action]) -> dict[str, str]:
    """Key-value metadata of a partition's file; the same however the intervals were cut."""
    metadata = {CONFIRMED: canonical_json([[int(a), int(b)] for a, b in joined(confirmed)])}
    if found := sorted(set(actions)):
        metadata[ACTIONS] = canonical_json([list(one) for one in found])
    return metadata


def read_partition(location: ArtifactLocation) -> Partition:
    """One stored year. Raises `StorageError` when it is missing or damaged."""
    with _repairable():
        return _partition(read_whole(location))


def _partition(stored: StoredFrame) -> Partition:
    confirmed = json.loads(stored.metadata.get(CONFIRMED, "[]"))
    actions = json.loads(stored.metadata.get(ACTIONS, "[]"))
    return Partition(
        stored.frame,
        tuple((int(start), int(end)) for start, end in confirmed),
        tuple(Action(*one) for one in actions),
    )


def read_confirmed(location: ArtifactLocation) -> tuple[Interval, ...]:
    """The intervals alone, without reading a bar; none when nothing is stored."""
    if not location.path.exists():
        return ()
    with _repairable():
        stored = json.loads(read_metadata(location).get(CONFIRMED, "[]"))
    return tuple((int(a), int(b)) for a, b in stored)


def read_bars(store: Path, series: str) -> StoredBars:
    """Read every stored year of a series.

    Raises:
        StorageError: nothing is stored, or no stored year holds a bar.
    """
    folder = layout.ohlcv(store, series, 0).path.parent
    frames: list[pl.DataFrame] = []
    confirmed: list[Interval] = []
    hashes: dict[str, str] = {}
    actions: list[Action] = []
    years = sorted(path.stem for path in folder.glob("*.parquet"))
    locations = [layout.ohlcv(store, series, int(year)) for year in years]
    # Parquet and hashing leave Python's lock, so years are read side by side.
    with _repairable(), ThreadPoolExecutor(READERS) as readers:
        files = list(readers.map(read_whole, locations))
    for year, file in zip(years, files, strict=True):
        bars, intervals, found = _partition(file)
        if bars.is_empty() and not intervals:
            continue
        frames.append(bars)
        confirmed.extend(intervals)
        actions.extend(found)
        hashes[year] = file.content_hash
    if not frames:
        raise StorageError(
            f"{series}: no bars are stored under {folder}; materialize ohlcv of this series first."
        )
    return StoredBars(pl.concat(frames), confirmed, hashes, tuple(sorted(actions)))


def read_window(store: Path, series: str, start_ms: int, end_ms: int) -> pl.DataFrame:
    """Stored bars that open in [start_ms, end_ms), read without the rest of their years.

    For looking at a day: what is read of a file is not compared with its hash, as `read_bars` does.
    """
    folder = layout.ohlcv(store, series, 0).path.parent
    years = years_of(start_ms, end_ms)
    paths = [path for path in sorted(folder.glob("*.parquet")) if int(path.stem) in years]
    if not paths:
        return empty_bars()
    start, end = (pl.lit(ms).cast(TS) for ms in (start_ms, end_ms))
    # Opened whole, so that no writer can replace a file between its end and its rows.
    opened = pl.scan_parquet([path.read_bytes() for path in paths])
    return opened.filter(pl.col("ts") >= start, pl.col("ts") < end).collect()


def read_manifest(store: Path, series: str) -> Manifest:
    """The stored coverage manifest of a series. Raises `StorageError` when absent."""
    location = layout.manifest(store, series)
    if not location.path.exists():
        raise StorageError(f"{series}: no manifest at {location.path}; materialize manifest first.")
    return parse_manifest(read_json(location))


def read_grids(store: Path, series: SeriesSettings, as_stored: bool = False) -> list[pl.DataFrame]:
    """The grid of each slice of a series' manifest; see `coverage.grid`.

    Args:
        store: the store's folder.
        series: which.
        as_stored: with raw prices, as a dataset takes them; else adjusted, as features do.

    Raises:
        StorageError: bars or manifest are missing, or the manifest describes other bars.
    """
    stored = read_bars(store, series.key)
    manifest = read_manifest(store, series.key)
    if manifest.partition_hashes != stored.hashes:
        years = sorted(
            year
            for year in {*manifest.partition_hashes, *stored.hashes}
            if manifest.partition_hashes.get(year) != stored.hashes.get(year)
        )
        raise StorageError(
            f"{series.key}: its manifest describes other bars of {', '.join(years)} than are "
            "stored; materialize manifest of this series again."
        )
    bars = stored.bars if as_stored else adjusted(stored.bars, stored.actions)
    return [grid(bars, one, stored.confirmed, series) for one in manifest.slices]
