"""What rules read out of prices, row by row, in compiled code; a row never depends on later ones.

Arrays are [T, N], without a gap in time. Sums run in the order of rows, so the bits are the same
everywhere. `rules` says what is done with it; averages that cross are in `crossing`.
"""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled

FloatArray = NDArray[np.float64]
SideArray = NDArray[np.int8]
# A deviation below this share of the mean is the rounding of equal values.
ROUNDING = 1e-12


@compiled
def find_breakouts(
    close: FloatArray,
    high: FloatArray,
    low: FloatArray,
    entry: int,
    exit_: int,
    short: bool,
    side: SideArray,
) -> None:
    """Which side the last break of a Donchian channel left a rule on.

    Prices are compared as they are: without arithmetic a tie is a tie.

    Args:
        close: prices.
        high: prices.
        low: prices.
        entry: earlier rows whose range a close must leave to open a position.
        exit_: earlier rows whose range a close must leave to end one.
        short: whether there are positions of -1.
        side: int8 to write into, 1, 0 or -1; the first max(entry, exit_) rows stay as they are.
    """
    begin = max(entry, exit_)
    for n in range(close.shape[1]):
        now = 0
        entry_top, exit_top, entry_bottom, exit_bottom = -1, -1, -1, -1
        for t in range(begin, close.shape[0]):
            entry_top = _extreme(high[:, n], t - entry, t, entry_top, 1.0)
            exit_top = _extreme(high[:, n], t - exit_, t, exit_top, 1.0)
            entry_bottom = _extreme(low[:, n], t - entry, t, entry_bottom, -1.0)
            exit_bottom = _extreme(low[:, n], t - exit_, t, exit_bottom, -1.0)
            price = close[t, n]
            if price > high[entry_top, n]:
                now = 1
            elif price < low[entry_bottom, n] and short:
                now = -1
            elif (now == 1 and price < low[exit_bottom, n]) or (
                now == -1 and price > high[exit_top, n]
            ):
                now = 0
            side[t, n] = now


@compiled
def _extreme(prices: FloatArray, start: int, end: int, found: int, sign: float) -> int:
    """Row of the greatest `sign` x price of [start, end), the latest of equals.

    `found` is that row for the range before, or -1: it need not be looked for while it is inside.
    """
    first = end - 1
    if found < start:
        found = start
        first = start + 1
    for row in range(first, end):
        if sign * prices[row] >= sign * prices[found]:
            found = row
    return found


@compiled
def find_rsi(close: FloatArray, period: int, rsi: FloatArray) -> None:
    """Wilder's relative strength index, 0 to 100 (Wilder 1978).

    The first average is the plain mean of `period` changes, each next one weighs the newest change
    with 1 / period. Where no change was ever seen the index is 50.

    Args:
        close: prices.
        period: rows.
        rsi: to write into; the first `period` rows stay as they are.
    """
    for n in range(close.shape[1]):
        up = 0.0
        down = 0.0
        for t in range(1, close.shape[0]):
            change = close[t, n] - close[t - 1, n]
            if t > period:
                up *= period - 1
                down *= period - 1
            if change > 0:
                up += change
            else:
                down -= change
            if t >= period:
                up /= period
                down /= period
                both = up + down
                rsi[t, n] = 100.0 * (up / both) if both > 0 else 50.0


@compiled
def find_reversals(
    values: FloatArray, low: float, high: float, short: bool, side: SideArray
) -> None:
    """Which side a rule is on that buys below `low` and sells above `high`.

    Args:
        values: NaN where there is none yet.
        low: below it the side becomes 1.
        high: above it the side becomes 0, or -1 with `short`.
        short: whether there are positions of -1.
        side: int8 to write into, 1, 0 or -1.
    """
    above = -1 if short else 0
    for n in range(values.shape[1]):
        now = 0
        for t in range(values.shape[0]):
            if values[t, n] < low:
                now = 1
            elif values[t, n] > high:
                now = above
            side[t, n] = now


@compiled
def find_volatility(returns: FloatArray, window: int, deviation: FloatArray) -> None:
    """Standard deviation (ddof 1) of the last `window` returns.

    Each window is summed anew: what once was large leaves no rounding behind.

    Args:
        returns: [N, T], of which the first is none.
        window: returns, two or more.
        deviation: to write into, 0 where returns are equal; the first `window` rows stay as they
            are.
    """
    for n in range(returns.shape[0]):
        for t in range(window, returns.shape[1]):
            seen = returns[n, t - window + 1 : t + 1]
            total = 0.0
            for row in range(window):
                total += seen[row]
            mean = total / window
            square = 0.0
            for row in range(window):
                square += (seen[row] - mean) * (seen[row] - mean)
            found = np.sqrt(square / (window - 1))
            deviation[t, n] = found if found > ROUNDING * abs(mean) else 0.0
