"""Where a series' bars come from: the `source` of an entry of `configs/series.yaml`.

One model a kind; the kind says which model. Start at `SourceSettings`.
"""

from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, field_validator, model_validator

from trade_pipeline.settings.base import Settings, closest

BaseUrl = Annotated[
    str | None,
    Field(
        pattern=r"^https?://",
        description="Another address of the venue, such as a proxy; absent: the venue's own.",
    ),
]


class BokehSampleSource(Settings):
    """Daily stocks shipped inside the PyPI package `bokeh_sampledata`, 2000 to 2013."""

    kind: Literal["bokeh_sample"]
    ticker: Literal["AAPL", "FB", "GOOG", "IBM", "MSFT"]


class Columns(Settings):
    """Which column of the file holds what: a header name, or a 0-based position."""

    ts: str | int
    open: str | int
    high: str | int
    low: str | int
    close: str | int
    volume: str | int
    trades: str | int | None = None
    adj_close: str | int | None = Field(
        default=None, description="Adjusted close; turned into adj_factor, so stocks only."
    )


class FileSource(Settings):
    """CSV or Parquet files on disk, plain, gzipped or zipped."""

    kind: Literal["file"]
    path: str = Field(
        description="File, or glob such as data/*.zip; relative to the configs folder's parent."
    )
    format: Literal["csv", "parquet"] = "csv"
    header: bool = Field(default=True, description="Whether the first CSV line names columns.")
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    columns: Columns
    row_filter: dict[str, str] = Field(
        default_factory=dict,
        description="Keep only rows whose column equals the value, e.g. {tic: AAPL}.",
    )
    time_unit: Literal["s", "ms", "us", "ns", "text", "ms_of_day"] = Field(
        default="text",
        description="Unit of the time column since 1970; `text` is parsed with time_format; "
        "`ms_of_day` counts from midnight of the date in the file's name.",
    )
    time_format: str | None = Field(
        default=None, description="strptime format of a text time; ISO 8601 when absent."
    )
    date_in_name: str | None = Field(
        default=None,
        description=r"Regular expression with one group of YYYYMMDD, for ms_of_day: (\d{8}).",
    )
    timezone: str = Field(default="UTC", description="Timezone of the file's local times.")
    price_scale: float = Field(
        default=1.0, gt=0, description="Prices in the file are divided by this (LEAN: 10000)."
    )
    missing_bars: Literal["unknown", "quiet"] = Field(
        default="unknown",
        description="What a bar absent between the file's first and last one means: unknown, or "
        "quiet when the provider writes every bar in which something traded.",
    )

    @model_validator(mode="after")
    def _time_of_day_needs_a_date(self) -> "FileSource":
        if (self.time_unit == "ms_of_day") != (self.date_in_name is not None):
            raise ValueError("time_unit: ms_of_day and date_in_name go together")
        if self.time_format is not None and self.time_unit != "text":
            raise ValueError("time_format is read only with time_unit: text")
        return self


class KrakenSource(Settings):
    """Kraken spot: archives for cold history, trades for the middle, OHLC for the last hours."""

    kind: Literal["kraken"]
    symbol: str = Field(min_length=3, description="As ccxt writes it: BTC/USD.")
    ohlcvt_zip: str | None = Field(
        default=None,
        description="Kraken's OHLCVT archives, full and quarterly: a path, or a glob such as "
        "inbox/Kraken_OHLCVT*.zip; relative to the configs folder's parent.",
    )
    trades_zip: str | None = Field(
        default=None, description="Kraken's time-and-sales archives: a path or glob likewise."
    )
    calls_per_minute: PositiveFloat = Field(
        default=15, description="Most requests a minute for this pair; Kraken counts by address."
    )
    base_url: BaseUrl = None


class CcxtSource(Settings):
    """An exchange with real history of bars, through ccxt: Binance, Coinbase, Bybit, OKX."""

    kind: Literal["ccxt"]
    exchange: str = Field(description="ccxt's id of the venue: binance, coinbase, bybit, okx.")
    symbol: str = Field(min_length=3, description="As ccxt writes it: BTC/USDT, BTC/USDT:USDT.")
    market: Literal["spot", "swap", "future"] = Field(
        default="spot", description="What the symbol must be at the venue."
    )
    calls_per_minute: PositiveFloat | None = Field(
        default=None, description="Most requests a minute; absent: the pace that ccxt declares."
    )
    base_url: BaseUrl = None

    @field_validator("exchange")
    @classmethod
    def _ccxt_knows_it(cls, exchange: str) -> str:
        # By the names of its files: importing ccxt takes a second, loading configs must not.
        spec = find_spec("ccxt")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("ccxt is not installed")
        folder = Path(spec.submodule_search_locations[0])
        known = [path.stem for path in (folder / "async_support").glob("[a-z]*.py")]
        if exchange not in known:
            raise ValueError(f"ccxt has no exchange {exchange!r}.{closest(exchange, known)}")
        if exchange == "kraken":
            raise ValueError("kraken has a source of its own; use kind: kraken")
        return exchange


class YahooSource(Settings):
    """Daily stocks, indices and crypto from Yahoo Finance through yfinance (extra `yahoo`)."""

    kind: Literal["yahoo"]
    ticker: str = Field(
        pattern=r"^[^\s/?#%\\]+$", description="As Yahoo writes it: AAPL, BRK-B, ^GSPC, BTC-USD."
    )
    calls_per_minute: PositiveFloat = Field(
        default=30, description="Most requests a minute, of all tickers; Yahoo counts by address."
    )
    base_url: BaseUrl = None


class AlpacaSource(Settings):
    """Stocks or crypto from Alpaca through alpaca-py (extra `alpaca`).

    Credentials are read from APCA_API_KEY_ID and APCA_API_SECRET_KEY of the environment; crypto
    needs none.
    """

    kind: Literal["alpaca"]
    symbol: str = Field(min_length=1, description="AAPL for stocks, BTC/USD for crypto.")
    asset_class: Literal["stocks", "crypto"] = "stocks"
    feed: Literal["iex", "sip"] = Field(
        default="iex",
        description="Of stocks: sip is every US exchange, iex one of them. A free account may ask "
        "both, since bars younger than 16 minutes are left for later.",
    )
    asof: date | None = Field(
        default=None,
        description="A day on which the stock's company had the symbol, for one that has changed "
        "hands; absent: today's company.",
    )
    calls_per_minute: PositiveFloat = Field(
        default=150, description="Most requests a minute, of all symbols; Alpaca counts by account."
    )
    base_url: BaseUrl = None


class SchwabSource(Settings):
    """Stocks from Charles Schwab through schwab-py (extra `schwab`).

    Credentials are read from SCHWAB_APP_KEY and SCHWAB_APP_SECRET of the environment.
    """

    kind: Literal["schwab"]
    symbol: str = Field(min_length=1, description="AAPL, $SPX.")
    token_file: str = Field(
        description="Token that schwab-py wrote at login; relative to the configs folder's parent."
    )
    calls_per_minute: PositiveFloat = 100
    base_url: BaseUrl = None


class DerivedSource(Settings):
    """Bars of a longer timeframe, made from the stored bars of another series."""

    kind: Literal["derived"]
    derived_from: str = Field(description="Key of the series with the shorter bars.")


SourceSettings = Annotated[
    BokehSampleSource
    | FileSource
    | KrakenSource
    | CcxtSource
    | YahooSource
    | AlpacaSource
    | SchwabSource
    | DerivedSource,
    Field(discriminator="kind"),
]
