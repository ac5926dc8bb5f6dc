"""Bars the feature tests share."""

import gzip
import importlib.resources
from pathlib import Path

import numpy as np
import polars as pl
import pytest


@pytest.fixture(scope="session")
def apple() -> pl.DataFrame:
    """Real daily bars of AAPL, 2000 to 2013, unadjusted: three splits among 3,270 days."""
    return sample_days("AAPL")


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


@pytest.fixture(scope="session")
def apple_beside(apple: pl.DataFrame) -> pl.DataFrame:
    """The real daily bars, when each closed, and the closes of two other stocks on those days."""
    others = {one: sample_days(one) for one in ("MSFT", "IBM")}
    for bars in others.values():
        assert bars["ts"].equals(apple["ts"])
    closes = {f"close@sample.{name}.1d": bars["close"] for name, bars in others.items()}
    return apple.with_columns(close_ts=pl.col("ts") + pl.duration(hours=21), **closes)


@pytest.fixture(scope="session")
def thin_beside(thin: pl.DataFrame) -> pl.DataFrame:
    """The thin minutes beside one market that trades each minute and one that hardly ever does."""
    generator = np.random.default_rng(8)
    steps = generator.normal(0, 1e-3, (2, thin.height))
    steps[1, generator.random(thin.height) < 0.99] = 0.0
    busy, rare = 50 * np.exp(np.cumsum(steps, axis=1))
    return closing(thin).with_columns(
        pl.Series("close@sample.MSFT.1d", busy), pl.Series("close@sample.IBM.1d", rare)
    )


@pytest.fixture(scope="session")
def still_beside(still: pl.DataFrame) -> pl.DataFrame:
    """The price that never moves beside two others that do not either."""
    return closing(still).with_columns(
        pl.lit(7.3).alias("close@sample.MSFT.1d"), pl.lit(1e-3).alias("close@sample.IBM.1d")
    )


@pytest.fixture(scope="session")
def bitcoin(shared_data: Path) -> pl.DataFrame:
    """Real one-minute bars of January 2022 without a gap; skips where they are absent.

    The middle of each bar's range stands in for another series.
    """
    path = shared_data / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz"
    if not path.is_file():
        pytest.skip(f"no real minutes: {path} is absent")
    table = pl.read_csv(path, try_parse_dates=True)
    bars = table.select(
        pl.col("timestamp").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC").alias("ts"),
        pl.col(*PRICES, "volume").cast(pl.Float64),
        ((pl.col("high") + pl.col("low")) / 2).alias("close@sample.MSFT.1d"),
    )
    return closing(bars)


PRICES = ("open", "high", "low", "close")


def minutes(**columns: np.ndarray) -> pl.DataFrame:
    """Contiguous one-minute bars from 2024-01-01."""
    rows = len(columns["close"])
    start = 1_704_067_200_000
    times = pl.Series(range(start, start + rows * 60_000, 60_000)).cast(pl.Datetime("ms", "UTC"))
    return pl.DataFrame({"ts": times, **columns})


def closing(bars: pl.DataFrame) -> pl.DataFrame:
    """One-minute bars with the moment at which each closes."""
    return bars.with_columns(close_ts=pl.col("ts") + pl.duration(minutes=1))


def sample_days(ticker: str) -> pl.DataFrame:
    """Daily bars of one stock of the sample data, unadjusted."""
    packed = importlib.resources.files("bokeh_sampledata") / "_data" / "stocks.csv.gz"
    table = pl.read_csv(gzip.decompress(packed.read_bytes()), try_parse_dates=True)
    return table.filter(pl.col("Ticker") == ticker).select(
        ts=pl.col("Date").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        **{name: pl.col(name.title()).cast(pl.Float64) for name in PRICES},
        volume=pl.col("Volume").cast(pl.Float64),
    )
