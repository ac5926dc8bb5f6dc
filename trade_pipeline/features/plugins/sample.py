"""Made-up minute bars that look like a market's: jumps, gaps, spikes, pauses, a standstill.

The same on every call and machine. Start at `sample_bars`.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.features.indicator import PRICES_AND_VOLUME, Array, reference_column

START_MS = 1_704_067_200_000  # 2024-01-01
MINUTE_MS = 60_000
TICK = 0.01
BLOCK = 5_000  # a standstill in each
STANDSTILL = (2_000, 2_700)  # rows of a block
JUMP = np.log(1.35)  # up by 35 %, down by 26 %
LIMIT = np.log(1.1)  # of each bar of a run
RUN = 3
SPIKE = 200.0  # times the usual volume
# One after another, so many bars apart; the steps of the price cancel out over a round.
EVENTS = ("jump up", "gap down", "volume", "limit up", "jump down", "gap up", "limit down")
APART = 71
ROUNDS = 8  # in a block


def sample_bars(rows: int, references: Sequence[str], *, rare: bool = False) -> pl.DataFrame:
    """Bars of a market with changing volatility, quiet hours and a long standstill.

    Args:
        rows: how many minutes, contiguous; fewer rows are a prefix of more.
        references: keys of other series, whose columns come beside.
        rare: with jumps, gaps, runs at a limit and spikes of volume, so often that each is met
            in any thousand bars of trade.

    Returns:
        `ts`, `close_ts` and Float64 prices and volume, as `table.feature_table` wants them.
    """
    columns = _walk(rows, 1, rare)
    for position, series in enumerate(references):
        other = _walk(rows, 2 + position, rare)
        columns |= {reference_column(name, series): values for name, values in other.items()}
    return _frame(columns)


def still_bars(rows: int, references: Sequence[str]) -> pl.DataFrame:
    """Bars at one price, without volume, of all series."""
    one = dict.fromkeys(PRICES_AND_VOLUME, np.full(rows, 0.1)) | {"volume": np.zeros(rows)}
    columns = dict(one)
    for series in references:
        columns |= {reference_column(name, series): values for name, values in one.items()}
    return _frame(columns)


def _walk(rows: int, seed: int, rare: bool) -> dict[str, Array]:
    """Prices in ticks that follow each other, and volume; drawn row by row."""
    draws = np.random.default_rng(seed).random((rows, 6))
    at = np.arange(rows)
    # Quiet for a third of each day, and for a standstill of 700 bars in each 5,000.
    traded = draws[:, 0] < np.where(at % 1_440 < 480, 0.4, 0.97)
    traded &= (at % BLOCK < STANDSTILL[0]) | (at % BLOCK >= STANDSTILL[1])
    events = _events(rows) if rare else np.full(rows, "")
    traded |= events != ""
    swing = 4e-4 * (1 + np.sin(at / 900) ** 2)
    steps = np.where(draws[:, 1] < 0.002, 12.0, 1.0) * swing * (draws[:, 2] + draws[:, 3] - 1) * 2.4
    run = np.char.startswith(events, "limit")
    size = np.where(run, LIMIT, np.where(events == "volume", 0.0, JUMP)) * (events != "")
    steps = np.where(run, 0.0, steps) + np.where(np.char.endswith(events, "up"), size, -size)
    close = np.round(100 * np.exp(np.cumsum(np.where(traded, steps, 0.0))) / TICK) * TICK
    opened = np.concatenate([[100.0], close[:-1]])[:rows]
    opened = np.where(run | np.char.startswith(events, "gap"), close, opened)
    reach = np.where((traded & ~run)[:, None], np.round(draws[:, 4:] * 6), 0) * TICK
    volume = np.where(traded, np.exp(2 * draws[:, 1] + 3 * draws[:, 4] ** 4), 0.0)
    volume = np.where(events == "volume", SPIKE, 1.0) * volume
    return {
        "open": opened,
        "high": np.maximum(opened, close) + reach[:, 0],
        "low": np.minimum(opened, close) - reach[:, 1],
        "close": close,
        "volume": volume,
    }


def _events(rows: int) -> NDArray[np.str_]:
    """[rows] what is special about each; empty: nothing. A run at the limit has several rows."""
    # Rows of a block from the end of its standstill to the next one.
    at = (np.arange(rows) - STANDSTILL[1]) % BLOCK
    number, since = np.divmod(at, APART)
    names = np.array(EVENTS)[number % len(EVENTS)]
    length = np.where(np.char.startswith(names, "limit"), RUN, 1)
    return np.where((since < length) & (number < ROUNDS * len(EVENTS)), names, "")


def _frame(columns: dict[str, Array]) -> pl.DataFrame:
    opens = START_MS + MINUTE_MS * np.arange(len(columns["close"]), dtype=np.int64)
    times = {"ts": opens, "close_ts": opens + MINUTE_MS}
    cast = [pl.Series(name, one).cast(pl.Datetime("ms", "UTC")) for name, one in times.items()]
    return pl.DataFrame([*cast, *(pl.Series(name, one) for name, one in columns.items())])
