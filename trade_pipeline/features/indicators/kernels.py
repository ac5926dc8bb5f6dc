"""The loops of indicators, compiled; whoever needs one imports this module when it computes.

Numba takes half a second to load, which nobody should wait for who only looks at definitions. All
arrays are float64 and of one length T where nothing else is said. No fastmath: the same bits.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from trade_pipeline.features.indicator import Array

Integers = NDArray[np.int64]

compiled = numba.njit(cache=True, error_model="numpy", nogil=True)

MINUTE_MS = 60_000
DAY_MS = 86_400_000
# Results of so many windows stay in the nearest cache while bar after bar is added to them.
AT_ONCE = 512
# A deviation below this share of the mean is the rounding of equal values.
ROUNDING = 1e-12


@compiled
def _add(values: Array, period: int, sums: Array) -> None:
    """Add to [rows] sums the windows of [rows + period - 1] values."""
    for offset in range(period):
        added = values[offset : offset + sums.size]
        for row in range(sums.size):
            sums[row] += added[row]


@compiled
def _add_products(
    one: Array, one_mean: Array, other: Array, other_mean: Array, period: int, sums: Array
) -> None:
    """Add to [rows] sums the products within windows of [rows + period - 1] values."""
    for offset in range(period):
        first = one[offset : offset + sums.size]
        second = other[offset : offset + sums.size]
        for row in range(sums.size):
            sums[row] += (first[row] - one_mean[row]) * (second[row] - other_mean[row])


@compiled
def sums(values: Array, period: int, sums: Array) -> None:
    """Write all [rows] sums of [rows + period - 1] values."""
    sums[:] = 0.0
    for start in range(0, sums.size, AT_ONCE):
        _add(values[start:], period, sums[start : start + AT_ONCE])


@compiled
def products(
    one: Array, one_mean: Array, other: Array, other_mean: Array, period: int, sums: Array
) -> None:
    """Write all [rows] sums of products of [rows + period - 1] values."""
    sums[:] = 0.0
    for start in range(0, sums.size, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        _add_products(
            one[start:], one_mean[part], other[start:], other_mean[part], period, sums[part]
        )


@compiled
def standings(values: Array, period: int, width: float, distance: Array, reach: Array) -> None:
    """Write all [rows] distances and reaches of [rows + period - 1] values."""
    mean, square = np.empty(AT_ONCE), np.empty(AT_ONCE)
    for start in range(0, distance.size, AT_ONCE):
        rows = min(AT_ONCE, distance.size - start)
        mean[:rows] = 0.0
        _add(values[start:], period, mean[:rows])
        for row in range(rows):
            mean[row] /= period
        square[:rows] = 0.0
        _add_products(
            values[start:], mean[:rows], values[start:], mean[:rows], period, square[:rows]
        )
        for row in range(rows):
            deviation = np.sqrt(square[row] / period)
            if deviation <= ROUNDING * mean[row]:
                distance[start + row] = 0.0
                reach[start + row] = 0.0
            else:
                value = values[start + row + period - 1]
                distance[start + row] = (value - mean[row]) / (width * deviation)
                reach[start + row] = width * deviation / mean[row]


@compiled
def rest(close: Array, still: int, column: Array) -> None:
    """Write 50 where the close has not moved for so many bars, in place; [T] both."""
    unmoved = 0
    for row in range(1, close.size):
        unmoved = unmoved + 1 if close[row] == close[row - 1] else 0
        if unmoved >= still:
            column[row] = 50.0


@compiled
def place_in_range(close: Array, bottom: Array, top: Array) -> None:
    """Turn the top of each range into where the close lies in it, in place; all [T]."""
    for row in range(close.size):
        width = (top[row] - bottom[row]) / 100
        top[row] = (close[row] - bottom[row]) / width if width != 0 else 50.0


@compiled
def distances_from_average(close: Array, traded: Array, column: Array) -> None:
    """Turn money paid into the distance of the close from the average price, in place; all [T]."""
    for row in range(column.size):
        # Volumes so small that their product with a price vanishes count as none.
        if traded[row] <= 0 or column[row] <= 0:
            column[row] = 0.0
        else:
            column[row] = close[row] / (column[row] / traded[row]) - 1


@compiled
def turn(closes: Array, sine: Array, cosine: Array) -> None:
    """Write sine and cosine of each moment's place in its day; all [T].

    One value at a time, since numpy's own may differ in the last bit between kinds of processors.
    Most bars close on a minute, and those of a day are soon known.
    """
    minutes = np.full((DAY_MS // MINUTE_MS, 2), np.nan)
    for row in range(closes.size):
        moment = np.int64(closes[row]) % DAY_MS
        minute = moment // MINUTE_MS
        known = moment == minute * MINUTE_MS
        if known and not np.isnan(minutes[minute, 0]):
            sine[row] = minutes[minute, 0]
            cosine[row] = minutes[minute, 1]
            continue
        angle = 2 * math.pi * (moment / DAY_MS)
        sine[row] = math.sin(angle)
        cosine[row] = math.cos(angle)
        if known:
            minutes[minute, 0] = sine[row]
            minutes[minute, 1] = cosine[row]


@compiled
def within_session(
    closes: Array,
    starts: Integers,
    offsets: Integers,
    opens_ms: int,
    length_ms: int,
    inside: Array,
    elapsed: Array,
) -> None:
    """Write 1 and the part that is over where a moment lies in the session; [T] but the offsets."""
    at = 0
    for row in range(closes.size):
        moment = np.int64(closes[row])
        while at + 1 < starts.size and starts[at + 1] <= moment:
            at += 1
        while at > 0 and starts[at] > moment:
            at -= 1
        passed_ms = (moment + offsets[at] - opens_ms) % DAY_MS
        if 0 < passed_ms <= length_ms:
            inside[row] = 1.0
            elapsed[row] = passed_ms / length_ms


@compiled
def mahalanobis(
    today: Array, products: Array, period: int, still: float, ridge: float, distances: Array
) -> None:
    """Solve one small system a bar, on correlations, by Cholesky's method.

    today [N, rows] returns less their means; products [N (N + 1) / 2, rows] sums of products of
    such differences, the lower triangle row by row; distances [rows], written.
    """
    series = today.shape[0]
    factor = np.empty((series, series))
    solved = np.empty(series)
    varies = np.empty(series, np.bool_)
    for row in range(distances.size):
        total = 0.0
        for i in range(series):
            square = products[i * (i + 1) // 2 + i, row]
            varies[i] = square > period * still * still
            value = today[i, row] / np.sqrt(square / (period - 1)) if varies[i] else 0.0
            for j in range(i + 1):
                if i == j:
                    entry = 1.0 + ridge
                elif varies[i] and varies[j]:
                    other = products[j * (j + 1) // 2 + j, row]
                    entry = products[i * (i + 1) // 2 + j, row] / np.sqrt(square * other)
                else:
                    entry = 0.0
                for k in range(j):
                    entry -= factor[i, k] * factor[j, k]
                if i == j:
                    factor[i, i] = np.sqrt(max(entry, ridge))
                else:
                    factor[i, j] = entry / factor[j, j]
            for k in range(i):
                value -= factor[i, k] * solved[k]
            solved[i] = value / factor[i, i]
            total += solved[i] * solved[i]
        distances[row] = total / series
