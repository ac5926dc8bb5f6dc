"""What looks wrong in valid bars: holes in time, and prices that jump and come back.

Pure functions over frames, one stored year at a time; nothing here stops an import. Start at
`gaps` and `outliers`.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.market.bars import TS
from trade_pipeline.market.coverage import UNKNOWN, bar_states, runs
from trade_pipeline.settings.series import SeriesSettings

GAP_SCHEMA: dict[str, pl.DataType] = {"first": TS, "last": TS, "bars": pl.Int64()}
OUTLIER_SCHEMA: dict[str, pl.DataType] = {
    "ts": TS,
    "column": pl.String(),
    "value": pl.Float64(),
    "usual": pl.Float64(),
    "times": pl.Float64(),
}
# From this many usual ranges outside the bars around it a price is an outlier. Real prices keep to
# it: one of 45,000 minutes of a perpetual future passes, and of 12,000 days of AAPL, GOOG, IBM and
# MSFT only 6 May 2010; of 23,000 days built from raw ticks 27, wrong ones but for that same day.
MOST_RANGES = 6.0
# Where usual ranges are smaller, jumps of less than 2 % would be told: a few ticks, no errors.
LEAST_RANGE = 0.02 / MOST_RANGES
MOST_VOLUMES = 50.0  # of those minutes and days none passes 8
FEWEST_BARS = 20  # of fewer nobody can say what is usual
BLOCK = 32  # bars

Floats = npt.NDArray[np.float64]


def gaps(
    bars: pl.DataFrame, confirmed: Iterable[tuple[int, int]], series: SeriesSettings
) -> pl.DataFrame:
    """Runs of unknown bars longer than a slice may hold, between the first and last stored bar.

    Args:
        bars: stored bars of one year, sorted by `ts`.
        confirmed: intervals [start, end) in ms, as in `coverage`: a bar missing there is quiet.
        series: timeframe, calendar, and `coverage.max_unknown_run`.

    Returns:
        `GAP_SCHEMA`: first and last missing bar of each run, and how many are expected in it.
    """
    if bars.is_empty():
        return pl.DataFrame(schema=GAP_SCHEMA)
    ts = bars["ts"].dt.epoch("ms").to_numpy()
    expected, state = bar_states(ts, confirmed, series, int(ts[0]), int(ts[-1]) + 1)
    found = [
        (expected[first], expected[stop - 1], stop - first)
        for first, stop in runs(state == UNKNOWN)
        if stop - first > series.coverage.max_unknown_run
    ]
    lines = np.array(found, dtype=np.int64).reshape(-1, 3)
    columns = [pl.Series(column) for column in lines.T]
    return pl.DataFrame(
        {
            name: column.cast(dtype)
            for (name, dtype), column in zip(GAP_SCHEMA.items(), columns, strict=True)
        }
    )


def outliers(bars: pl.DataFrame, series: SeriesSettings) -> pl.DataFrame:
    """Prices far outside the bars around them, and volumes beyond all proportion.

    A bad tick jumps and comes back; news jump and stay. So a bar is compared with the two closes
    before it and the two after it: of these four the middle two span what is to be expected, and
    neither a step nor one more wrong bar beside it moves both. The bar's high or low is an outlier
    when it lies more than `MOST_RANGES` usual ranges outside that span. A usual
    range is the median true range (Wilder 1978) of the year, or of the bars nearby if these are
    wilder: a median, since a year's few wrong bars must not hide themselves, and not a deviation
    of returns, which is zero where most minutes close unchanged. Prices are adjusted, so a split
    is no outlier. Rounding, a few ticks and errors that stay are not found; the first and last two
    bars of a year are not judged.

    A volume is an outlier when it exceeds `MOST_VOLUMES` times what 99 of 100 bars stay within.

    Args:
        bars: stored bars of one year, sorted by `ts`.
        series: whose bars these are; so far one rule serves them all.

    Returns:
        `OUTLIER_SCHEMA`, sorted by `ts`: which column, its value, the nearest price (or volume)
        that would have been usual, and how many usual ranges (or volumes) beyond that it is.
    """
    if bars.height < FEWEST_BARS:
        return pl.DataFrame(schema=OUTLIER_SCHEMA)
    factor = np.log(bars["adj_factor"].fill_null(1.0).to_numpy())
    high, low, close = (np.log(bars[name].to_numpy()) + factor for name in ("high", "low", "close"))
    least, most = _span_of_neighbours(close)
    usual = _usual_ranges(high, low, close)
    found = []
    for column, beyond, edge in (("high", high - most, most), ("low", least - low, least)):
        at = np.flatnonzero(beyond > MOST_RANGES * usual)
        found.append(_lines(bars, column, at, np.exp(edge - factor)[at], (beyond / usual)[at]))
    volume = bars["volume"].to_numpy()
    usual_volume = float(np.quantile(volume, 0.99, method="lower"))
    if usual_volume > 0:
        at = np.flatnonzero(volume > MOST_VOLUMES * usual_volume)
        times = volume[at] / usual_volume
        found.append(_lines(bars, "volume", at, np.full(len(at), usual_volume), times))
    return pl.concat(found).sort("ts", maintain_order=True)


def _span_of_neighbours(close: Floats) -> tuple[Floats, Floats]:
    """Middle two of the four closes around each bar [n], lower and upper; infinite at the ends."""
    least, most = np.full(len(close), -np.inf), np.full(len(close), np.inf)
    before, after = (close[:-4], close[1:-3]), (close[3:-1], close[4:])
    one = np.maximum(np.minimum(*before), np.minimum(*after))
    other = np.minimum(np.maximum(*before), np.maximum(*after))
    least[2:-2], most[2:-2] = np.minimum(one, other), np.maximum(one, other)
    return least, most


def _usual_ranges(high: Floats, low: Floats, close: Floats) -> Floats:
    """Median true range [n] of the year, or of the block of a bar and those beside it."""
    last = np.concatenate([close[:1], close[:-1]])
    ranges = np.maximum(high, last) - np.minimum(low, last)
    moving = ranges[ranges > 0]
    of_year = float(np.median(moving)) if len(moving) >= FEWEST_BARS else 0.0
    usual = np.full(len(ranges), max(of_year, LEAST_RANGE))
    if blocks := len(ranges) // BLOCK:
        medians = np.median(ranges[: blocks * BLOCK].reshape(blocks, BLOCK), axis=1)
        around = np.concatenate([medians[:1], medians, medians[-1:]])
        nearby = np.maximum(np.maximum(around[:-2], around[2:]), medians)
        block_of_bar = np.minimum(np.arange(len(ranges)) // BLOCK, blocks - 1)
        usual = np.maximum(usual, nearby[block_of_bar])
    return usual


def _lines(
    bars: pl.DataFrame, column: str, at: npt.NDArray[np.intp], usual: Floats, times: Floats
) -> pl.DataFrame:
    return bars[at].select(
        "ts",
        column=pl.lit(column),
        value=column,
        usual=pl.Series(usual),
        times=pl.Series(times),
    )
