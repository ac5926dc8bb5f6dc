"""Bars around trades at full resolution, for charts whose candles are many bars each.

Start at `around_trades`.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.backtest.report.content import IntArray

MOST_WINDOW_BARS = 36_000  # of all instruments: about 1 MB of page
MARGIN = 25  # bars before and after
WHOLE = 300  # a trade of more bars is shown at its two ends only


def around_trades(ts: IntArray, trips: pl.DataFrame, most: int) -> IntArray:
    """Rows of the bars around the trades that won or lost most, those still open first.

    Args:
        ts: [n] open of each bar in ms UTC, increasing.
        trips: of this instrument, with `entry_time`, `exit_time` and `net`.
        most: rows to keep at most; a trade that does not fit any more is left out whole, and so
            is all that comes after it.
    """
    kept: npt.NDArray[np.bool_] = np.zeros(ts.size, bool)
    ordered = trips.sort(
        pl.col("net").abs(), descending=True, nulls_last=False, maintain_order=True
    )
    entries = _rows(ts, ordered["entry_time"])
    exits = _rows(ts, ordered["exit_time"].fill_null(ordered["entry_time"]))
    count = 0
    for entry, leaving in zip(entries.tolist(), exits.tolist(), strict=True):
        ends = [(entry, leaving)] if leaving - entry <= WHOLE else [(entry, entry), (leaving,) * 2]
        spans = [slice(max(a - MARGIN, 0), b + MARGIN + 1) for a, b in ends]
        count += sum(int(np.count_nonzero(~kept[span])) for span in spans)
        if count > most:
            break
        for span in spans:
            kept[span] = True
    return np.flatnonzero(kept).astype(np.int64)


def starts(rows: IntArray) -> IntArray:
    """Where each stretch of consecutive rows begins, as places in `rows`."""
    return np.flatnonzero(np.diff(rows, prepend=-2) != 1).astype(np.int64)


def _rows(ts: IntArray, times: pl.Series) -> IntArray:
    """The bar in which each time lies."""
    found = np.searchsorted(ts, times.dt.timestamp("ms").to_numpy(), side="right") - 1
    return np.clip(found, 0, ts.size - 1).astype(np.int64)
