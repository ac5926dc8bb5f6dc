"""Sliding windows, each added up afresh from its oldest value to its newest.

A running sum would be quicker still, but keeps the rounding of a spike that has left the window,
so that a value would rest on bars beyond its lookback. Where a window holds NaN, or begins before
the first value, the result is NaN. Start at `window_sums`.
"""

import numpy as np

from trade_pipeline.features.indicator import Array


def window_sums(values: Array, period: int) -> Array:
    """Sum of the window that ends with each value: [T] float64 to [T] float64.

    >>> window_sums(np.array([1.0, 2.0, 4.0]), 2)
    array([nan,  3.,  6.])
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    sums = np.full(values.size, np.nan)
    kernels.sums(values, period, sums[period - 1 :])
    return sums


def window_products(
    one: Array, one_mean: Array, other: Array, other_mean: Array, period: int
) -> Array:
    """Sum of (one - its window's mean) (other - its window's mean) over each window.

    All [T] float64. Divided by the period it is the variance (ddof 0) where both are the same.
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    sums = np.full(one.size, np.nan)
    tail = slice(period - 1, None)
    kernels.products(one, one_mean[tail], other, other_mean[tail], period, sums[tail])
    return sums


def window_standing(values: Array, period: int, width: float) -> tuple[Array, Array]:
    """Where each value stands among those of the window that ends with it.

    Args:
        values: [T] float64, none negative.
        period: bars of a window.
        width: standard deviations (ddof 0) that make a reach.

    Returns:
        Distance from the mean in reaches, and the reach as a share of the mean, both [T] float64;
        0 and 0 where all values of the window are equal.
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    distance, reach = np.full(values.size, np.nan), np.full(values.size, np.nan)
    tail = slice(period - 1, None)
    kernels.standings(values, period, width, distance[tail], reach[tail])
    return distance, reach
