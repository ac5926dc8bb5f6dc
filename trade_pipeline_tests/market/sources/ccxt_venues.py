"""Venues that the tests of `ccxt_exchange` ask, and the store that they import into."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.sources import ccxt_client
from trade_pipeline.market.sources.base import (
    Interval,
    Surroundings,
)
from trade_pipeline.market.stored import Partition, read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.fakes.binance import FakeBinance
from trade_pipeline_tests.fakes.coinbase import FakeCoinbase
from trade_pipeline_tests.fakes.market import MadeMarket
from trade_pipeline_tests.fakes.other_exchanges import FakeBitstamp, FakeBybit, FakeOkx
from trade_pipeline_tests.fakes.venue import FakeVenue
from trade_pipeline_tests.market.series import MINUTE, ms

HOUR = 60 * MINUTE
LISTED = ms(2024, 12, 31)
NOW = ms(2025, 1, 1, 12, 0) + 30_000  # half of the newest minute has passed
CLOSED = NOW // MINUTE * MINUTE
MARKET = MadeMarket(seed=1, start_ms=LISTED, end_ms=NOW + HOUR, trades_per_minute=2.0)
BUSY = MadeMarket(seed=2, start_ms=LISTED, end_ms=NOW + 3 * HOUR, trades_per_minute=4.0)
YEARS = (2024, 2025)


@dataclass(frozen=True)
class Venue:
    """How a fake is asked, and what ccxt should send it."""

    fake: type[FakeVenue]
    exchange: str
    symbol: str
    market: str
    candles: str  # route
    page: int
    start: str  # parameter and its unit
    start_ms: int

    def __str__(self) -> str:
        return f"{self.exchange}-{self.market}"

    def series(self, url: str, **changes: Any) -> SeriesSettings:
        source = {"exchange": self.exchange, "symbol": self.symbol, "market": self.market}
        entry = {
            "key": f"{self.exchange}.BTC.1m",
            "source": {"kind": "ccxt", "base_url": url} | source | changes.pop("source", {}),
            "timeframe": "1m",
            "first_year": 2024,
            "volume_unit": "base",
        }
        return SeriesSettings.model_validate(entry | changes)

    def starts(self, fake: FakeVenue) -> list[int]:
        """The starts of the pages that were asked for, in ms."""
        return [int(one[self.start]) * self.start_ms for one in fake.asked(self.candles)]


BINANCE = Venue(FakeBinance, "binance", "BTC/USDT", "spot", "/api/v3/klines", 1000, "startTime", 1)
SWAP = replace(BINANCE, symbol="BTC/USDT:USDT", market="swap", candles="/fapi/v1/klines", page=500)
COINBASE = Venue(FakeCoinbase, "coinbase", "BTC/USD", "spot", "/candles", 300, "start", 1000)
BYBIT = Venue(FakeBybit, "bybit", "BTC/USDT", "spot", "/kline", 1000, "start", 1)
OKX = Venue(FakeOkx, "okx", "BTC/USDT", "spot", "candles", 300, "before", 1)
BITSTAMP = Venue(FakeBitstamp, "bitstamp", "BTC/USD", "spot", "/ohlc/", 1000, "start", 1000)
MAIN = pytest.mark.parametrize("venue", [BINANCE, SWAP, COINBASE], ids=str)


@dataclass
class Here:
    """This machine: a store, and a clock that need not be the venue's."""

    root: Path
    now_ms: int = NOW
    batch_answers: int = 50
    slept: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ccxt_client._loaded.clear()  # a port may come back

    def run(
        self, series: SeriesSettings, start_ms: int = LISTED, end_ms: int = NOW + HOUR
    ) -> Outcome:
        around = Surroundings(
            base=self.root,
            store=self.root,
            environment={},
            now_ms=lambda: self.now_ms,
            sleep=self.slept.append,
            log=self.told.append,
            batch_answers=self.batch_answers,
        )
        years = [SeriesYear(series.key, year) for year in YEARS]
        return import_bars({series.key: series}, years, around, (start_ms, end_ms))

    def partition(self, series: SeriesSettings, year: int) -> Partition:
        return read_partition(layout.ohlcv(self.root, series.key, year))

    def bars(self, series: SeriesSettings) -> pl.DataFrame:
        return pl.concat(self.partition(series, year).bars for year in YEARS)

    def confirmed(self, series: SeriesSettings) -> tuple[Interval, ...]:
        found = [one for year in YEARS for one in self.partition(series, year).confirmed]
        new_year = (found[0][1], found[1][0]) if len(found) == 2 else None
        if new_year == (ms(2025, 1, 1),) * 2:
            return ((found[0][0], found[1][1]),)
        return tuple(found)

    def files(self) -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in self.root.rglob("*.parquet")}


@lru_cache
def truth(
    start_ms: int, end_ms: int, market: MadeMarket = MARKET, bar: int = MINUTE
) -> pl.DataFrame:
    """The bars as they must be stored; volumes have eight decimals on the wire as in the market."""
    bars = market.bars(bar, start_ms, end_ms).with_columns(
        trades=None, adj_factor=None, source=pl.lit("rest")
    )
    return bars.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


def sentence(outcome: Outcome) -> str:
    """The one refusal of a run."""
    (only,) = {one.sentence for one in outcome.refused.values()}
    return only
