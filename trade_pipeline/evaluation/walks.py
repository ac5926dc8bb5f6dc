"""Long arrays walked once, in compiled code: drawdowns, resampled returns, growth of a market.

Sums go from the first number to the last, so the bits are the same on every machine.
"""

import numpy as np
import numpy.typing as npt

from trade_pipeline.evaluation.measure import FloatArray, IntArray
from trade_pipeline.simulator.compiled import compiled


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
    peak, top = equity[0], 0
    for t in range(1, len(equity)):
        if equity[t] >= peak:
            if t > top + 1:
                longest = max(longest, close_ts[t] - close_ts[top])
            peak, top = equity[t], t
        else:
            deepest = min(deepest, equity[t] / peak - 1)
    if top < len(equity) - 1:
        longest = max(longest, close_ts[len(equity) - 1] - close_ts[top])
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
        total, wealth, peak, deepest = 0.0, 1.0, 1.0, 1.0
        t, block = 0, 0
        while t < count:
            at = starts[i, block]
            for _ in range(min(length, count - t)):
                value = returns[at]
                values[t] = value
                total += value
                wealth *= value + 1
                peak = max(peak, wealth)
                deepest = min(deepest, wealth / peak)
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
        drawn[i, 3] = deepest - 1


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
        moves = 0.0
        for n in range(instruments):
            moves += close[row[t], n] / close[row[t] - 1, n]
        worth[t] = worth[t - 1] * (moves / instruments)
