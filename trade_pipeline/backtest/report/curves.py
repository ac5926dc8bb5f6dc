"""Fewer points for pictures: curves and candles that a page can hold.

Arrays in, arrays out; nothing here knows plotly, matplotlib or a page.
Start at `thin` (equity and drawdown), `aggregate` (candles) and `steps` (exposure).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tsdownsample import MinMaxLTTBDownsampler

from trade_pipeline.evaluation.metrics import drawdown

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_POINTS = 5_000
MOST_CANDLES = 3_000
FEWEST_POINTS = 100
MOST_STEPS = 2_000


class ThinCurve(NamedTuple):
    """Points kept of one curve, [m] each; drawdown was computed on all points."""

    ts: IntArray
    equity: FloatArray
    drawdown: FloatArray


class Candles(NamedTuple):
    """Bars of one instrument, [m] each; `ts` is each bar's open in ms UTC."""

    ts: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray


def thin(ts: IntArray, equity: FloatArray, most: int = MOST_POINTS) -> ThinCurve:
    """At most `most` points: those that shape equity or drawdown, ends, deepest fall.

    The peak before the deepest drawdown and its trough are always kept, so a reader can measure
    the figure in the table on the picture.

    Args:
        ts: [n] ms UTC, increasing.
        equity: [n] quote currency.
        most: points to keep, at least `FEWEST_POINTS`.
    """
    under = drawdown(equity)
    if equity.size <= most:
        return ThinCurve(ts, equity, under)
    trough = int(under.argmin())
    peak = int(equity[: trough + 1].argmax())
    forced = np.array([0, peak, trough, equity.size - 1])
    # Each picture gets half the points, and both share them: hovering shows one moment.
    half = max(most, FEWEST_POINTS) // 2 - forced.size
    downsampler = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]
    kept = [downsampler.downsample(ts, values, n_out=half) for values in (equity, under)]
    rows = np.unique(np.concatenate([forced, *kept]).astype(np.int64))
    return ThinCurve(ts[rows], equity[rows], under[rows])


def aggregate(candles: Candles, most: int = MOST_CANDLES) -> tuple[Candles, int]:
    """Candles of k consecutive bars, the smallest k that leaves at most `most`; and k."""
    count = candles.ts.size
    together = -(-count // most)
    if together <= 1:
        return candles, 1
    starts = np.arange(0, count, together)
    ends = np.append(starts[1:], count) - 1
    return (
        Candles(
            candles.ts[starts],
            candles.open[starts],
            np.maximum.reduceat(candles.high, starts),
            np.minimum.reduceat(candles.low, starts),
            candles.close[ends],
        ),
        together,
    )


def steps(ts: IntArray, values: FloatArray, most: int = MOST_STEPS) -> tuple[IntArray, FloatArray]:
    """Means of k consecutive values at the time of the first; the smallest k that leaves `most`."""
    together = -(-ts.size // most)
    if together <= 1:
        return ts, values
    starts = np.arange(0, ts.size, together)
    counts = np.diff(np.append(starts, ts.size))
    return ts[starts], np.add.reduceat(values, starts) / counts


def thin_line(x: IntArray, y: FloatArray, most: int) -> tuple[IntArray, FloatArray]:
    """At most `most` points of a line: those that shape it."""
    if x.size <= most:
        return x, y
    downsampler = MinMaxLTTBDownsampler()  # type: ignore[no-untyped-call]
    rows = downsampler.downsample(x, y, n_out=most).astype(np.int64)
    return x[rows], y[rows]
