"""Where the tests of brokers import to: a folder, a clock standing still, what was said there."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.sources.base import Surroundings
from trade_pipeline.market.stored import read_bars, read_confirmed
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.market.series import DAY


@dataclass
class World:
    """Surroundings whose clock stands still, and what was said and waited for in them."""

    root: Path
    now_ms: int
    environment: dict[str, str]
    batch_answers: int = 50
    said: list[str] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    @property
    def around(self) -> Surroundings:
        return Surroundings(
            base=self.root,
            store=self.root / "store",
            environment=self.environment,
            now_ms=lambda: self.now_ms,
            sleep=self.slept.append,
            log=self.said.append,
            batch_answers=self.batch_answers,
        )

    def take(self, series: SeriesSettings, *years: int) -> Outcome:
        """Import these years; by default every one from `first_year` to now."""
        until = datetime.fromtimestamp(self.now_ms / 1000, UTC).year
        wanted = years or range(series.first_year, until + 1)
        return import_bars(
            {series.key: series}, [SeriesYear(series.key, year) for year in wanted], self.around
        )

    def good(self, series: SeriesSettings, *years: int) -> pl.DataFrame:
        """Import likewise; nothing may be refused."""
        outcome = self.take(series, *years)
        assert not outcome.refused
        return read_bars(self.around.store, series.key).bars

    def bad(self, series: SeriesSettings, *years: int) -> str:
        """Import likewise; the one sentence that every year is refused with."""
        outcome = self.take(series, *years)
        (sentence,) = {refusal.sentence for refusal in outcome.refused.values()}
        assert series.key in sentence
        return sentence

    def confirmed(self, series: SeriesSettings, year: int = 2024) -> tuple[tuple[int, int], ...]:
        return read_confirmed(layout.ohlcv(self.around.store, series.key, year))

    def bytes_of(self, series: SeriesSettings) -> dict[str, bytes]:
        folder = layout.ohlcv(self.around.store, series.key, 0).path.parent
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def opens_at(bars: pl.DataFrame) -> list[int]:
    return bars["ts"].dt.epoch("ms").to_list()


def sessions(start: int, end: int, timeframe: int = DAY) -> list[int]:
    """What XNYS expects in [start, end): its session dates, or its bars of a shorter timeframe."""
    first, last = (datetime.fromtimestamp(one / 1000, UTC) for one in (start, end))
    return find_calendar("XNYS").expected(first, last, timeframe, timeframe == DAY).tolist()
