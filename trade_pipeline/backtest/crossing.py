"""Where one moving average of prices is above another, in whole ticks. Start at `find_above`."""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled

# Averages are compared in whole ticks of this part of a price: sums of floats tie by accident.
TICKS_PER_UNIT = 10**8
MOST_UNITS = 2**36  # times the ticks of a unit, and more ticks, these fit 64 bits


@compiled
def _split(price: float) -> tuple[int, int]:
    """Whole units, and ticks of the rest."""
    units = np.floor(price)
    return int(units), int(np.rint((price - units) * TICKS_PER_UNIT))


@compiled
def find_above(prices: NDArray[np.float64], fast: int, slow: int, above: NDArray[np.bool_]) -> None:
    """Whether the mean of the last `fast` rows is above that of the last `slow`; no rounding.

    Sums are compared times the other's length, units and ticks apart: both together of a price in
    rupiah would not fit 64 bits.

    Args:
        prices: float64 [T, N], zero to 1e15, without a gap.
        fast: rows, fewer than `slow`.
        slow: rows; times `fast` at most 1e10, and times the price, too, below 9e18.
        above: bool [T, N] to write into; the first `slow` - 1 rows stay as they are.
    """
    for n in range(prices.shape[1]):
        fast_units, fast_ticks = 0, 0
        slow_units, slow_ticks = 0, 0
        for t in range(prices.shape[0]):
            units, ticks = _split(prices[t, n])
            fast_units += units
            fast_ticks += ticks
            slow_units += units
            slow_ticks += ticks
            if t >= fast:
                units, ticks = _split(prices[t - fast, n])
                fast_units -= units
                fast_ticks -= ticks
            if t >= slow:
                units, ticks = _split(prices[t - slow, n])
                slow_units -= units
                slow_ticks -= ticks
            if t >= slow - 1:
                units = fast_units * slow - slow_units * fast
                ticks = fast_ticks * slow - slow_ticks * fast
                few = abs(units) < MOST_UNITS
                above[t, n] = units * TICKS_PER_UNIT + ticks > 0 if few else units > 0
