"""Long arrays walked in compiled code: sums, tails, drawdowns, resampled returns, market growth.

A sum is that of `LANES` sums side by side, of every so many numbers, which a processor adds at
once; or it goes from the first number to the last. So the bits are the same on every machine.
"""

from typing import cast

import numpy as np
import numpy.typing as npt

from trade_pipeline.evaluation.measure import FloatArray, IntArray
from trade_pipeline.simulator.compiled import compiled

LANES = 64


def added(lanes: FloatArray) -> list[float]:
    """The sums that each so many `LANES` hold together; infinite beyond any number."""
    with np.errstate(over="ignore"):
        return cast(list[float], lanes.reshape(-1, LANES).sum(axis=1).tolist())


@compiled
def add_returns(returns: FloatArray, rate: float, lanes: FloatArray) -> None:
    """Sums of returns, of those above and below a rate, and counts.

    Args:
        returns: [n].
        rate: taken off each for the sums named so.
        lanes: [6 x LANES] is added to: sums; above the rate; below it, positive; squares below it;
            counts above zero; counts unlike zero.
    """
    for first in range(0, len(returns), LANES):
        block = returns[first : first + LANES]
        for k in range(min(LANES, len(block))):
            value = block[k]
            excess = value - rate
            above = excess if excess > 0.0 else 0.0
            below = -excess if excess < 0.0 else 0.0
            lanes[k] += value
            lanes[LANES + k] += above
            lanes[2 * LANES + k] += below
            lanes[3 * LANES + k] += below * below
            lanes[4 * LANES + k] += 1.0 if value > 0.0 else 0.0
            lanes[5 * LANES + k] += 1.0 if value != 0.0 else 0.0


@compiled
def add_squares(values: FloatArray, mean: float, lanes: FloatArray) -> None:
    """Sums [LANES] of squared distances from a mean, added to."""
    for first in range(0, len(values), LANES):
        block = values[first : first + LANES]
        for k in range(min(LANES, len(block))):
            away = block[k] - mean
            lanes[k] += away * away


@compiled
def add_activity(
    exposure: FloatArray, notional: FloatArray, equity: FloatArray, lanes: FloatArray
) -> None:
    """Sums over bars of what was held and traded.

    Args:
        exposure: [n].
        notional: [n] traded in the bar.
        equity: [n] before it, above zero.
        lanes: [3 x LANES] is added to: exposures; bars with one; notional in multiples of equity.
    """
    for first in range(0, len(exposure), LANES):
        block = slice(first, first + LANES)
        held, traded, worth = exposure[block], notional[block], equity[block]
        for k in range(min(LANES, len(held))):
            lanes[k] += held[k]
            lanes[LANES + k] += 1.0 if held[k] > 0.0 else 0.0
            lanes[2 * LANES + k] += traded[k] / worth[k]


@compiled
def cut_tails(
    values: FloatArray, bounds: FloatArray, lowest: FloatArray, highest: FloatArray
) -> tuple[int, int]:
    """Copy what is at or below the first bound, and what is at or above the second; how many.

    Args:
        values: [n].
        bounds: [2].
        lowest: [n] is written from the front; likewise `highest`.
        highest: see `lowest`.
    """
    low, high = 0, 0
    for value in values:
        lowest[low] = value
        highest[high] = value
        low += value <= bounds[0]
        high += value >= bounds[1]
    return low, high


@compiled
def deepest_and_longest(equity: FloatArray, close_ts: IntArray) -> tuple[float, int]:
    """The deepest drawdown, never positive, and the longest time below a highest value, in ms.

    A time below ends at the bar that is as high again, or at the end without one. Bars at the top
    that follow each other have none between them.

    Args:
        equity: [n+1] above zero up to the last but one.
        close_ts: [n+1] ms UTC.
    """
    deepest, longest = 0.0, 0
    peak, lowest, top = equity[0], equity[0], 0
    for t in range(1, len(equity)):
        if equity[t] >= peak:
            if t > top + 1:
                longest = max(longest, close_ts[t] - close_ts[top])
                deepest = min(deepest, lowest / peak - 1)
            peak, lowest, top = equity[t], equity[t], t
        else:
            lowest = min(lowest, equity[t])
    if top < len(equity) - 1:
        longest = max(longest, close_ts[len(equity) - 1] - close_ts[top])
        deepest = min(deepest, lowest / peak - 1)
    return deepest, longest


@compiled
def resample(
    returns: FloatArray,
    starts: npt.NDArray[np.int64],
    length: int,
    values: FloatArray,
    drawn: FloatArray,
) -> None:
    """Mean, deviation (ddof 1), growth factor and deepest drawdown of series of drawn blocks.

    Args:
        returns: [n]; after the last comes the first again.
        starts: [resamples, blocks] where the blocks begin, more than enough for n returns.
        length: returns in a block.
        values: [n] room for one series.
        drawn: [resamples, 4] is written.
    """
    count = len(returns)
    for i in range(len(starts)):
        total, wealth, peak, lowest, deepest = 0.0, 1.0, 1.0, 1.0, 1.0
        t, block = 0, 0
        while t < count:
            at = starts[i, block]
            for _ in range(min(length, count - t)):
                value = returns[at]
                values[t] = value
                total += value
                wealth *= value + 1
                if wealth > peak:
                    deepest = min(deepest, lowest / peak)
                    peak, lowest = wealth, wealth
                lowest = min(lowest, wealth)
                at = at + 1 if at + 1 < count else 0
                t += 1
            block += 1
        mean, squares = total / count, 0.0
        for t in range(count):
            away = values[t] - mean
            squares += away * away
        drawn[i, 0] = mean
        drawn[i, 1] = np.sqrt(squares / (count - 1))
        drawn[i, 2] = wealth
        drawn[i, 3] = min(deepest, lowest / peak) - 1


@compiled
def grow_equally(close: FloatArray, row: IntArray, worth: FloatArray) -> None:
    """Worth of one unit that is spread equally over all instruments again at each close.

    Args:
        close: [T, N].
        row: [n+1] rows; the growth to each but the first is that from the row before it in `close`.
        worth: [n+1] is written, 1 first.
    """
    instruments = close.shape[1]
    worth[0] = 1.0
    for t in range(1, len(row)):
        moves = close[row[t], 0] / close[row[t] - 1, 0]
        for n in range(1, instruments):
            moves += close[row[t], n] / close[row[t] - 1, n]
        worth[t] = moves / instruments if instruments > 1 else moves
    for t in range(1, len(row)):  # not above: divisions need not wait for these products
        worth[t] *= worth[t - 1]
