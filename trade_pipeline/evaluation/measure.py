"""A figure or the reason that it has none, and what counts as no spread.

Start at `Measure`; `undefined` and `finite` make them, `as_json` lays them out for a file.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NO_SPREAD = 1e-12  # a standard deviation below this times |mean| is rounding, not spread
# Equity is rounded at each bar, a day of minutes 1440 times: an account that only earns interest
# has daily returns that vary by up to that often 1e-16, however small they are.
RETURN_ROUNDING = 1e-13


class Measure(NamedTuple):
    """A figure, or the reason it has none."""

    value: float | int | None
    reason: str | None


def undefined(reason: str) -> Measure:
    """No figure, and why."""
    return Measure(None, reason)


def finite(value: float) -> Measure:
    """The figure, or that it exceeds any number."""
    if math.isfinite(value):
        return Measure(float(value), None)
    return undefined("the result exceeds any number")


def too_few(count: int, needed: int = 2) -> Measure:
    """No figure, because there are `count` returns and `needed` are needed."""
    words = {2: "two"}.get(needed, str(needed))
    return undefined(f"{count} returns; at least {words} are needed")


def as_json(measures: Mapping[str, Measure]) -> dict[str, Any]:
    """`values` (name to number or None) and `undefined` (name to reason)."""
    return {
        "values": {name: measure.value for name, measure in measures.items()},
        "undefined": {name: m.reason for name, m in measures.items() if m.reason is not None},
    }


def no_spread(spread: float, mean: float, rounding: float = 0.0) -> bool:
    """Whether a standard deviation is nothing but rounding.

    Args:
        spread: the standard deviation, or another root mean square.
        mean: of the same numbers.
        rounding: to which each of them is known at best; `RETURN_ROUNDING` for returns.
    """
    return spread <= max(NO_SPREAD * abs(mean), rounding)


def per_period(annual: float, periods_per_year: float) -> float:
    """Rate of one period that compounds to an annual rate: (1 + a)^(1/P) - 1."""
    return float((1 + annual) ** (1 / periods_per_year) - 1)
