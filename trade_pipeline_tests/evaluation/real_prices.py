"""Real prices that figures are compared on: stocks by day, a crypto perpetual by minute."""

import gzip
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import polars as pl

from trade_pipeline.evaluation.metrics import MS_PER_DAY

NEW_YORK_CLOSE_MS = 21 * 3_600_000


class Prices(NamedTuple):
    """close [n+1] and when each was known [n+1] ms UTC."""

    close: np.ndarray
    close_ts: np.ndarray

    @property
    def returns(self) -> pd.Series:
        """Returns with the dates of their days, as the other libraries take them."""
        dates = pd.to_datetime(self.close_ts[1:] // MS_PER_DAY, unit="D")
        return pd.Series(self.close[1:] / self.close[:-1] - 1, index=dates)


def stock(symbol: str) -> Prices:
    """Adjusted daily closes of bokeh_sampledata, March 2000 to 2013."""
    packed = (resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz").read_bytes()
    table = pl.read_csv(gzip.decompress(packed), try_parse_dates=True)
    table = table.filter(pl.col("Ticker") == symbol)
    days = table["Date"].cast(pl.Date).to_numpy().astype("datetime64[D]").astype(np.int64)
    return Prices(table["Adj Close"].to_numpy(), days * MS_PER_DAY + NEW_YORK_CLOSE_MS)


def minutes(shared_data: Path) -> Prices:
    """Closes of BTC-PERP by minute, a month."""
    table = pl.read_csv(shared_data / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz")
    close = table["close"].to_numpy().astype(float)
    start = int(datetime(2021, 12, 31, 23, 1, tzinfo=UTC).timestamp() * 1000)
    return Prices(close, start + 60_000 * np.arange(close.size, dtype=np.int64))
