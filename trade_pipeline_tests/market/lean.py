"""Daily bars and factor files of LEAN's sample data, for tests of adjustment.

A factor file's row says what holds up to and including its date: price factor (dividends), split
factor, and the close of that date. Both factors are 1 after the last action.
"""

import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import TS

COLUMNS = ("date", "open", "high", "low", "close", "volume")
PRICES = ("open", "high", "low", "close")


def daily(folder: Path, ticker: str) -> pl.DataFrame:
    """ts, open, high, low, close as traded, volume."""
    with zipfile.ZipFile(folder / "lean_equity_daily" / f"{ticker}.zip") as archive:
        (name,) = archive.namelist()
        table = pl.read_csv(archive.read(name), has_header=False, new_columns=COLUMNS)
    return table.select(
        ts=pl.col("date").str.strptime(pl.Datetime("ms"), "%Y%m%d %H:%M").cast(TS),
        # Not polars' quotient, which is one bit off the decimal number.
        **{name: pl.Series(table[name].to_numpy() / 10_000) for name in PRICES},
        volume=pl.col("volume").cast(pl.Float64),
    )


def factor_rows(folder: Path, ticker: str) -> pl.DataFrame:
    """ts, price factor, split factor; rising."""
    text = (folder / "lean_equity_daily" / f"{ticker}_factor.csv").read_text()
    lines = [line.split(",") for line in text.split()]
    return pl.DataFrame(
        {
            "ts": [line[0] for line in lines],
            "price": [float(line[1]) for line in lines],
            "split": [float(line[2]) for line in lines],
        }
    ).with_columns(pl.col("ts").str.strptime(pl.Datetime("ms"), "%Y%m%d").cast(TS))


def factors(folder: Path, ticker: str, sessions: pl.Series) -> np.ndarray:
    """LEAN's price times split factor [n] of each session."""
    rows = factor_rows(folder, ticker)
    at = np.searchsorted(rows["ts"].to_numpy(), sessions.to_numpy())
    return (rows["price"] * rows["split"]).to_numpy()[at]


def actions(folder: Path, ticker: str, bars: pl.DataFrame) -> list[Action]:
    """What happened: ratios as small fractions, dividends in hundredths of a cent."""
    rows = factor_rows(folder, ticker)
    sessions = bars["ts"].dt.epoch("ms").to_numpy()
    found = []
    for before, after in zip(
        rows.iter_rows(named=True), rows.tail(-1).iter_rows(named=True), strict=False
    ):
        last = int(np.searchsorted(sessions, int(before["ts"].timestamp()) * 1000))
        if last + 1 >= len(sessions):
            continue
        ex = int(sessions[last + 1])
        ratio = Fraction(after["split"] / before["split"]).limit_denominator(50)
        if ratio != 1:
            found.append(Action(ex, "split", float(ratio)))
        paid = bars["close"][last] / float(ratio) * (1 - before["price"] / after["price"])
        if round(paid, 4) > 0.001:
            found.append(Action(ex, "dividend", round(paid, 4)))
    return found
