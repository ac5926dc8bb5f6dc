"""Where one moving average of prices is above another, in whole ticks. Start at `find_above`."""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled


@compiled
def find_above(ticks: NDArray[np.int64], fast: int, slow: int, above: NDArray[np.bool_]) -> None:
    """Whether the mean of the last `fast` rows is above that of the last `slow`; no rounding.

    Sums may wrap around; differences over a window are still exact. Means are compared as whole
    numbers and remainders, because a product of sums and lengths might not fit 64 bits.

    Args:
        ticks: int64 [T, N] prices, zero or more, without a gap.
        fast: rows, fewer than `slow`.
        slow: rows.
        above: bool [T, N] to write into; the first `slow` - 1 rows stay as they are.
    """
    for n in range(ticks.shape[1]):
        fast_sum = np.int64(0)
        slow_sum = np.int64(0)
        for t in range(ticks.shape[0]):
            fast_sum += ticks[t, n]
            slow_sum += ticks[t, n]
            if t >= fast:
                fast_sum -= ticks[t - fast, n]
            if t >= slow:
                slow_sum -= ticks[t - slow, n]
            if t >= slow - 1:
                fast_mean = fast_sum // fast
                slow_mean = slow_sum // slow
                fast_rest = fast_sum - fast_mean * fast
                slow_rest = slow_sum - slow_mean * slow
                nearer = fast_rest * slow > slow_rest * fast
                above[t, n] = nearer if fast_mean == slow_mean else fast_mean > slow_mean
