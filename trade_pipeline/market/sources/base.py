"""What every source gives: its bars with their origin, or one sentence that says what is wrong.

A source reads its whole history; the years that a run needs are cut out of it here.
Start at `Source`; to add one, write a module beside this and name it in `registry`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.settings.series import SeriesSettings, start_of_year


class SourceError(Exception):
    """A source cannot be read; the message names file, series and row, and what to do."""


@dataclass(frozen=True)
class SourceBars:
    """Bars as a source gives them.

    Attributes:
        bars: canonical columns in the source's order, then `file` and `row` (1-based line of
            the file, its header counted). Rows may still break the invariants of a bar:
            `bars.violations` names them.
        confirmed: intervals [start, end) in ms of which the source has every traded bar.
        origin: the files, for people.
        notes: what a reader of these bars should know.
    """

    bars: pl.DataFrame
    confirmed: tuple[tuple[int, int], ...]
    origin: str
    notes: tuple[str, ...] = ()

    @property
    def stored(self) -> pl.DataFrame:
        """The canonical columns alone, as they are stored once `violations` finds nothing."""
        return self.bars.select(*BAR_SCHEMA)


class Source(Protocol):
    """A place that bars come from."""

    implementation: int

    def read(self, series: SeriesSettings, base: Path) -> SourceBars:
        """The whole history that the source has, none of it before `first_year`.

        Args:
            series: which bars, and where they are.
            base: folder that relative paths in the settings start from.

        Raises:
            SourceError: missing, damaged or unparsable input.
        """
        ...


def split_years(source_bars: SourceBars, years: Iterable[int]) -> dict[int, SourceBars]:
    """Each year's bars, in the source's order, with the part of `confirmed` inside it.

    A year without bars gives an empty frame. Bars of other years are left out.
    """
    year_of_row = source_bars.bars["ts"].dt.year()
    return {
        year: replace(
            source_bars,
            bars=source_bars.bars.filter(year_of_row == year),
            confirmed=_within_year(source_bars.confirmed, year),
        )
        for year in years
    }


def _within_year(intervals: tuple[tuple[int, int], ...], year: int) -> tuple[tuple[int, int], ...]:
    first, stop = (int(start_of_year(y).timestamp()) * 1000 for y in (year, year + 1))
    cut = ((max(start, first), min(end, stop)) for start, end in intervals)
    return tuple((start, end) for start, end in cut if start < end)
