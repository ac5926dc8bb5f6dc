"""Removing stored bars of a range, so that a clean import asks its source for all of it again.

With the bars go the intervals that were confirmed, the actions, and what the checks found there.
Only whole bars go: of one cut in two no planner would ask for the rest. Knows no Dagster, source or
clock. Start at `prune`.
"""

from pathlib import Path
from typing import NamedTuple

from trade_pipeline.market import verdicts
from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.calendars import ALWAYS, DAY_MS
from trade_pipeline.market.sources.base import Interval, without, year_interval
from trade_pipeline.market.stored import Partition, partition_metadata, read_partition
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, write_frame
from trade_pipeline.storage.location import StorageError

LONGEST_ON_GRID_MS = TIMEFRAME_MS["15m"]


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


def whole_bars(series: SeriesSettings, interval: Interval) -> Interval:
    """[start, end) in ms, widened to whole bars; it stays within the same UTC days.

    Bars lie on the timeframe's grid where the market never closes, and up to 15 minutes; longer
    ones of an exchange start at its opening and sessions are dated, so there whole UTC days go.
    """
    start, end = interval
    on_grid = series.calendar == ALWAYS or series.timeframe_ms <= LONGEST_ON_GRID_MS
    step = series.timeframe_ms if on_grid else DAY_MS
    return start // step * step, -(-end // step) * step


def prune(store: Path, series: SeriesSettings, year: int, interval: Interval) -> Pruned | None:
    """Remove what one partition holds of [start, end) in ms, atomically and under its lock.

    The interval is widened to whole bars (`whole_bars`): a bar confirmed in part would be asked
    for by nobody, since sources plan in whole bars, and so be lost.

    A year pruned whole stays as an empty frame, even where its file was damaged, which makes this
    the way to repair one.

    Returns:
        None when nothing is stored, or nothing of the range.

    Raises:
        StorageError: part of a damaged year is to go, or the store cannot be written.
    """
    interval = whole_bars(series, interval)
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
            left = stored.without(interval)
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
