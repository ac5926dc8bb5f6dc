"""Bars and manifests of the store, read the one way that assets and notebooks share."""

import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from trade_pipeline.market.bars import adjusted
from trade_pipeline.market.coverage import Manifest, grid, parse_manifest
from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import (
    StorageError,
    read_frame,
    read_hash,
    read_metadata,
)
from trade_pipeline.storage.location import ArtifactLocation

CONFIRMED = "confirmed"  # key of a partition's metadata: intervals known to be complete

Interval = tuple[int, int]


@dataclass(frozen=True)
class StoredBars:
    """All stored bars of a series.

    Attributes:
        bars: frame of `bars.BAR_SCHEMA`, sorted by ts.
        confirmed: [start, end) intervals in ms in which a missing bar is known to be quiet.
        hashes: content hash by year of every partition that holds anything.
    """

    bars: pl.DataFrame
    confirmed: list[Interval]
    hashes: dict[str, str]


def confirmed_metadata(confirmed: list[Interval]) -> dict[str, str]:
    """Key-value metadata of a partition's file."""
    return {CONFIRMED: canonical_json([list(one) for one in sorted(set(confirmed))])}


def read_partition(location: ArtifactLocation) -> tuple[pl.DataFrame, list[Interval]]:
    """Bars and confirmed intervals of one stored year."""
    confirmed = json.loads(read_metadata(location).get(CONFIRMED, "[]"))
    return read_frame(location), [(int(start), int(end)) for start, end in confirmed]


def read_bars(store: Path, series: str) -> StoredBars:
    """Read every stored year of a series.

    Raises:
        StorageError: nothing is stored, or no stored year holds a bar.
    """
    folder = layout.ohlcv(store, series, 0).path.parent
    frames: list[pl.DataFrame] = []
    confirmed: list[Interval] = []
    hashes: dict[str, str] = {}
    for path in sorted(folder.glob("*.parquet")):
        location = layout.ohlcv(store, series, int(path.stem))
        bars, intervals = read_partition(location)
        if bars.is_empty() and not intervals:
            continue
        frames.append(bars)
        confirmed.extend(intervals)
        hashes[path.stem] = read_hash(location)
    if not frames:
        raise StorageError(
            f"{series}: no bars are stored under {folder}; materialize ohlcv of this series first."
        )
    return StoredBars(pl.concat(frames), confirmed, hashes)


def read_manifest(store: Path, series: str) -> Manifest:
    """The stored coverage manifest of a series. Raises `StorageError` when absent."""
    location = layout.manifest(store, series)
    if not location.path.exists():
        raise StorageError(f"{series}: no manifest at {location.path}; materialize manifest first.")
    return parse_manifest(read_json(location))


def read_grids(store: Path, series: SeriesSettings) -> list[pl.DataFrame]:
    """The grid of each slice of a series' manifest, prices adjusted; see `coverage.grid`.

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
    bars = adjusted(stored.bars)
    return [grid(bars, one, stored.confirmed, series) for one in manifest.slices]
