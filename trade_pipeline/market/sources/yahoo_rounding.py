"""Money and shares as traded, from Yahoo's split-adjusted ones, and how far rounding can move them.

Pure functions over arrays: knows no wire, no store. Start at `as_traded`.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trade_pipeline.market.actions import Action, Sessions, Values

Prices = npt.NDArray[np.float64]  # [n, k]
ADJUSTED_UNIT = 1e-6  # Yahoo rounds what it adjusts to six decimals
FLOAT32_PART = 2.0**-23  # and keeps 24 bits of it


def as_traded(values: Prices, ratio: Values) -> Prices:
    """Split-adjusted money [n, k] times ratio [n], in the decimals that Yahoo's rounding leaves.

    The adjusted value was rounded to six decimals and then to float32's 24 bits. A row shares its
    decimals, so that rounding cannot bring low above close.
    """
    traded = values * ratio[:, np.newaxis]
    if not len(traded):
        return traded
    # What was never adjusted was never rounded to six decimals.
    six = np.where(ratio == 1, 0.0, ratio * ADJUSTED_UNIT)
    decimals = _decimals(six + np.nanmax(traded, axis=1) * FLOAT32_PART)
    for places in np.unique(decimals):
        rows = decimals == places
        traded[rows] = np.round(traded[rows], int(places))
    return traded


def shares_traded(volume: Values, ratio: Values) -> Values:
    """Whole shares, from split-adjusted volume [n] and ratio [n]."""
    return np.where(ratio == 1, volume, np.rint(volume / ratio))


def ratios_seen(ts: Sessions, actions: Iterable[Action]) -> tuple[Values, Values]:
    """The least and the greatest ratio [n] that each date's values were ever divided by.

    A date's values are adjusted anew with each later split, so the stored ones may have gone
    through any of the products so far, 1 among them.
    """
    product, least, most = (np.ones(len(ts)) for _ in range(3))
    for one in sorted(actions):
        if one.kind == "split":
            product = np.where(ts < one.ts_ms, product * one.value, product)
            least, most = np.minimum(least, product), np.maximum(most, product)
    return least, most


def money_tolerance(value: Values, least: Values, most: Values) -> Values:
    """How far [n] two values as traded may differ by rounding alone; 0 without a later split.

    Either was known no better than `doubt`, and then rounded to the decimals which that leaves.
    """
    doubt = most * ADJUSTED_UNIT + value * FLOAT32_PART
    return np.where(most == least, 0.0, 2 * doubt + 10.0 ** -_decimals(doubt))


def shares_tolerance(least: Values) -> Values:
    """The same for shares: a reverse split leaves multiples of 1 / ratio, another one no error.

    Half an adjusted share is 1 / (2 ratio) shares, and the result is rounded to whole ones; both
    the stored and the new number may be off by that.
    """
    return np.where(least < 1, 1 / least + 1, 0.0)


def _decimals(doubt: Values) -> Values:
    """The most decimals [n] whose unit is not below the doubt."""
    places = np.arange(1, 16)[:, np.newaxis]
    return np.asarray(np.count_nonzero(10.0**-places >= doubt, axis=0), dtype=np.float64)
