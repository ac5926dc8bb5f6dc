"""CSV or Parquet files on disk, plain, gzipped or zipped, described by `FileSource` settings.

Finds the files and confirms the time they cover; `table` reads what is inside one.
Start at `Files.read`.
"""

import glob
from pathlib import Path

import polars as pl

from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import SourceBars, SourceError, WholeHistory
from trade_pipeline.market.sources.table import SPLIT_PART_UNKNOWN, read_table, whole_history
from trade_pipeline.market.sources.unpack import members
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import FileSource


class Files(WholeHistory):
    """Reads all files that a path or glob matches, in the order of their names."""

    implementation = 1

    def read(self, series: SeriesSettings, base: Path) -> SourceBars:
        """All bars of all files, one after another. Raises `SourceError`.

        With `missing_bars: quiet` a file confirms the time from its first bar to the end of its
        last one, or the whole day that its name gives (`ms_of_day`).
        """
        settings = series.source
        if not isinstance(settings, FileSource):
            raise TypeError(f"series {series.key} is not of kind file")
        paths = _matching(settings.path, base, series.key)
        names = [name for name, _ in paths]
        parts: list[pl.DataFrame] = []
        confirmed: list[tuple[int, int]] = []
        for name, path in paths:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise SourceError(
                    f"{name}: series {series.key}: cannot be read ({error})."
                ) from error
            for label, table in members(name, content, series.key):
                bars = read_table(label, table, settings, series)
                parts.append(bars)
                if settings.missing_bars == "quiet":
                    confirmed.append(_covered(bars, series))
        several = f"{names[0]} to {names[-1]} ({len(names)} files)"
        return SourceBars(
            bars=whole_history(pl.concat(parts), series),
            confirmed=joined(confirmed),
            origin=names[0] if len(names) == 1 else several,
            notes=(SPLIT_PART_UNKNOWN,) if settings.columns.adj_close is not None else (),
        )


def _matching(pattern: str, base: Path, key: str) -> list[tuple[str, Path]]:
    """Name for people and path of each file, in the order of the names."""
    # A path that exists is taken as it is, so that a bracket in a name is no glob.
    # Path.glob refuses absolute patterns, and would read brackets in `base` as one.
    found = [pattern] if (base / pattern).is_file() else glob.glob(pattern, root_dir=base)  # noqa: PTH207
    paths = [(Path(one).as_posix(), base / one) for one in found if (base / one).is_file()]
    if not paths:
        raise SourceError(
            f"{pattern}: series {key}: no file matches in {base}; correct the path in the "
            "series' source, or put the file there."
        )
    return sorted(paths)


def _covered(bars: pl.DataFrame, series: SeriesSettings) -> tuple[int, int]:
    """The interval [start, end) in ms of which one table tells every traded bar.

    It ends with the last bar: a day's file that stops in the afternoon may have been cut off.
    """
    first, last = (bars["ts"].dt.epoch("ms").sort()[at] for at in (0, -1))
    return first, last + series.timeframe_ms
