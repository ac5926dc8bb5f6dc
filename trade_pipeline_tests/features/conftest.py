"""Bars the feature tests share."""

import gzip
import importlib.resources

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="session")
def apple() -> pl.DataFrame:
    """Real daily bars of AAPL, 2000 to 2013, unadjusted: three splits among 3,270 days."""
    packed = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
    table = pl.read_csv(gzip.decompress(packed.read_bytes()), try_parse_dates=True)
    return table.filter(pl.col("Ticker") == "AAPL").select(
        ts=pl.col("Date").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        **{name: pl.col(name.title()).cast(pl.Float64) for name in PRICES},
        volume=pl.col("Volume").cast(pl.Float64),
    )


@pytest.fixture(scope="session")
def thin() -> pl.DataFrame:
    """Minutes of a thin market: two in three without a trade, one pause of 300, a volume spike."""
    generator = np.random.default_rng(7)
    rows = 1_000
    traded = generator.random(rows) < 1 / 3
    traded[500:800] = False
    close = np.round(20 * np.exp(np.cumsum(traded * generator.normal(0, 1e-3, rows))), 3)
    opened = np.concatenate([[20.0], close[:-1]])
    reach = traded * generator.integers(0, 4, rows) * 1e-3
    volume = np.where(traded, generator.exponential(1.0, rows), 0.0)
    volume[200] = 1e9
    return minutes(
        open=opened,
        high=np.maximum(opened, close) + reach,
        low=np.minimum(opened, close) - reach,
        close=close,
        volume=volume,
    )


@pytest.fixture(scope="session")
def still() -> pl.DataFrame:
    """A price that never moves and volume that is always zero."""
    price = np.full(400, 0.1)
    return minutes(open=price, high=price, low=price, close=price, volume=np.zeros(400))


PRICES = ("open", "high", "low", "close")


def minutes(**columns: np.ndarray) -> pl.DataFrame:
    """Contiguous one-minute bars from 2024-01-01."""
    rows = len(columns["close"])
    start = 1_704_067_200_000
    times = pl.Series(range(start, start + rows * 60_000, 60_000)).cast(pl.Datetime("ms", "UTC"))
    return pl.DataFrame({"ts": times, **columns})
