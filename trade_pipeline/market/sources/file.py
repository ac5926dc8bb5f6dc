"""CSV or Parquet files on disk, plain, gzipped or zipped, described by `FileSource` settings.

Files may overlap, as in a folder into which one export after another is dropped: of a bar that
several hold, the last one by name counts. A bar that no file holds any more stays stored: importing
merges and never deletes. `table` reads what is inside one. Start at `Files.fetch`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl

from trade_pipeline.market.bars import empty_bars
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import (
    Interval,
    Leg,
    SourceBars,
    SourceError,
    Surroundings,
    WholeHistory,
    within,
    year_interval,
)
from trade_pipeline.market.sources.table import (
    SPLIT_PART_UNKNOWN,
    anchored,
    continued,
    read_table,
)
from trade_pipeline.market.sources.unpack import members, require_matching
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import FileSource
from trade_pipeline.storage import layout

_REPEATED = "{} rows of {} stand in a later file too, which counts"


class Files(WholeHistory):
    """Reads all files that a path or glob matches, in the order of their names.

    With `missing_bars: quiet` a file confirms the time from its first bar to the end of its
    last one, each member of a ZIP its own; other files may confirm the rest. A bar that an
    earlier import stored stays even where a corrected file lacks it: prune its time first.
    """

    implementation = 2

    def read(self, series: SeriesSettings, base: Path) -> SourceBars:
        """All years of `fetch` in one piece. Raises `SourceError`."""
        files = _read_files(series, base, None)
        years = list(_years(files))
        return SourceBars(
            bars=pl.concat(year.bars for year in years),
            confirmed=joined(interval for year in years for interval in year.confirmed),
            origin=_names(files),
            notes=(*_notes(series), *(note for year in years for note in year.notes)),
        )

    def fetch(self, series: SeriesSettings, leg: Leg, around: Surroundings) -> Iterator[SourceBars]:
        """One batch a year, whatever the leg, after every file was read.

        So a partition is written once, however many files it comes from, and not at all when a
        row that counts is bad. Bars stand in order of time, unless a file repeats a time or runs
        backwards within the year: then the batch is that file's rows alone, as they stand, for
        `bars.violations` to name.

        Raises:
            SourceError: a file cannot be read, or has an adjusted close that does not go on from
                stored bars which no file holds (see `table.continued`).
            StorageError: these stored bars are damaged.
        """
        for note in _notes(series):
            around.log(f"{series.key}: {note}")
        yield from _years(_read_files(series, around.base, around.store))


class _File(NamedTuple):
    name: str
    bars: pl.DataFrame
    confirmed: tuple[Interval, ...]


def _settings(series: SeriesSettings) -> FileSource:
    if not isinstance(series.source, FileSource):
        raise TypeError(f"series {series.key} is not of kind file")
    return series.source


def _notes(series: SeriesSettings) -> tuple[str, ...]:
    return (SPLIT_PART_UNKNOWN,) if _settings(series).columns.adj_close is not None else ()


def _read_files(series: SeriesSettings, base: Path, store: Path | None) -> list[_File]:
    settings = _settings(series)
    files = []
    for name, path in require_matching(settings.path, base, series.key):
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SourceError(f"{name}: series {series.key}: cannot be read ({error}).") from error
        tables = [
            read_table(label, table, settings, series)
            for label, table in members(name, content, series.key)
        ]
        quiet = settings.missing_bars == "quiet"
        confirmed = tuple(_covered(bars, series) for bars in tables if quiet)
        files.append(_File(name, pl.concat(tables), confirmed))
    tables = anchored([file.bars for file in files], series)
    if store is not None and settings.columns.adj_close is not None:
        tables = continued(tables, _stored(series, store), series)
    return [file._replace(bars=bars) for file, bars in zip(files, tables, strict=True)]


def _stored(series: SeriesSettings, store: Path) -> pl.DataFrame:
    """All stored bars of the series."""
    folder = layout.ohlcv(store, series.key, 0).path.parent
    years = sorted(int(path.stem) for path in folder.glob("*.parquet"))
    parts = (read_partition(layout.ohlcv(store, series.key, year)).bars for year in years)
    return pl.concat([empty_bars(), *parts])


def _years(files: Sequence[_File]) -> Iterator[SourceBars]:
    """One batch for each year that a file reaches into; see `Files.fetch`."""
    confirmed = joined(interval for file in files for interval in file.confirmed)
    # Of a thousand daily files each is looked at in its own year only.
    spans = [_span(file.bars) for file in files]
    for year in range(min(first for first, _ in spans), max(last for _, last in spans) + 1):
        parts = [
            file._replace(bars=file.bars.filter(pl.col("ts").dt.year() == year))
            for file, (first, last) in zip(files, spans, strict=True)
            if first <= year <= last
        ]
        if not parts:
            continue
        parts = [part for part in parts if not _rises(part.bars)][:1] or parts
        bars = pl.concat(part.bars for part in parts)
        repeated = 0
        if len(parts) > 1:
            bars = bars.unique("ts", keep="last", maintain_order=True).sort("ts")
            repeated = sum(part.bars.height for part in parts) - bars.height
        yield SourceBars(
            bars,
            confirmed=within(confirmed, *year_interval(year)),
            origin=_names([part for part in parts if part.bars.height] or parts),
            notes=(_REPEATED.format(repeated, year),) if repeated else (),
        )


def _span(bars: pl.DataFrame) -> tuple[int, int]:
    """First and last year of some bars."""
    years = bars["ts"].dt.year().sort()
    return years[0], years[-1]


def _rises(bars: pl.DataFrame) -> bool:
    ts = bars["ts"].to_physical().to_numpy()
    return bool((ts[1:] > ts[:-1]).all())


def _names(files: Sequence[_File]) -> str:
    first, last = files[0].name, files[-1].name
    return first if len(files) == 1 else f"{first} to {last} ({len(files)} files)"


def _covered(bars: pl.DataFrame, series: SeriesSettings) -> Interval:
    """The interval [start, end) in ms of which one table tells every traded bar.

    It ends with the last bar: a day's file that stops in the afternoon may have been cut off.
    """
    first, last = (bars["ts"].dt.epoch("ms").sort()[at] for at in (0, -1))
    return first, last + series.timeframe_ms
