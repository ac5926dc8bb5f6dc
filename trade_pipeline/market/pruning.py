"""Removing stored bars of a range, so that a clean import asks its source for all of it again.

With the bars go the intervals that were confirmed, the actions, and what the checks found there.
Knows no Dagster, source or clock. Start at `prune`.
"""

from pathlib import Path
from typing import NamedTuple

import polars as pl

from trade_pipeline.market import verdicts
from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.sources.base import Interval, without, year_interval
from trade_pipeline.market.stored import Partition, partition_metadata, read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, write_frame
from trade_pipeline.storage.location import StorageError


class Pruned(NamedTuple):
    """What became of one partition.

    Attributes:
        content_hash: of what is stored now.
        rows: bars that are left.
        removed_bars: bars that went; None where the old file could not be read.
    """

    content_hash: str
    rows: int
    removed_bars: int | None


def prune(store: Path, series: SeriesSettings, year: int, interval: Interval) -> Pruned | None:
    """Remove what one partition holds of [start, end) in ms, atomically and under its lock.

    A year pruned whole stays as an empty frame, even where its file was damaged, which makes this
    the way to repair one.

    Returns:
        None when nothing is stored, or nothing of the range.

    Raises:
        StorageError: part of a damaged year is to go, or the store cannot be written.
    """
    location = layout.ohlcv(store, series.key, year)
    if not location.path.exists():
        return None
    with frame_lock(location):
        try:
            stored = read_partition(location)
        except StorageError:
            if without(*year_interval(year), [interval]):
                raise
            left, removed = Partition(empty_bars(), (), ()), None
        else:
            left = _outside(stored, interval)
            removed = stored.bars.height - left.bars.height
            if (
                left.confirmed == stored.confirmed
                and left.actions == stored.actions
                and not removed
            ):
                return None
        digest = write_frame(location, left.bars, partition_metadata(left.confirmed, left.actions))
    _prune_verdicts(store, series, year, left, interval)
    return Pruned(digest, left.bars.height, removed)


def _outside(stored: Partition, interval: Interval) -> Partition:
    start, end = interval
    ms = pl.col("ts").dt.epoch("ms")
    return Partition(
        stored.bars.filter((ms < start) | (ms >= end)),
        tuple(part for one in stored.confirmed for part in without(*one, [interval])),
        tuple(one for one in stored.actions if not start <= one.ts_ms < end),
    )


def _prune_verdicts(
    store: Path, series: SeriesSettings, year: int, left: Partition, interval: Interval
) -> None:
    """The checks' verdicts of what is left; none for a partition that holds nothing now.

    What an import was refused for stays while part of the year does: nothing was offered again.
    """
    key = series.key
    if left.bars.is_empty() and not left.confirmed:
        for check in verdicts.CHECKS:
            verdicts.keep(store, check, key, year, ())
        return
    verdicts.judge(store, series, year, left)
    kept = {str(ts) for ts in left.bars["ts"]}
    standing = verdicts.read(store, verdicts.DIFFERENCES, key, year)
    differing = [row for row in standing if row["ts"] in kept]
    verdicts.keep(store, verdicts.DIFFERENCES, key, year, differing)
