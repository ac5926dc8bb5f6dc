"""What an equity curve is cut into: days, growth and drawdown.

Start at `day_ends`, `until_ruin`, `drawdown` and `growth`.
"""

import math

import numpy as np

from trade_pipeline.evaluation.measure import FloatArray, IntArray, Measure, finite, undefined
from trade_pipeline.evaluation.walks import deepest_and_longest

MS_PER_DAY = 86_400_000
MS_PER_YEAR = 365 * MS_PER_DAY


def until_ruin(equity: FloatArray) -> FloatArray:
    """[<= n+1] the curve until it is zero or below for the first time, which becomes zero."""
    ruined = equity <= 0
    return np.append(equity[: int(np.argmax(ruined))], 0.0) if ruined.any() else equity


def day_ends(close_ts: IntArray) -> tuple[IntArray, IntArray]:
    """The last bar of each UTC day that has one; a bar at midnight ends the day before.

    Args:
        close_ts: [n+1] close of each bar in ms UTC, increasing; the first is E_0's time, no bar.

    Returns:
        [days] index into `close_ts`, and [days] number of the day since 1970-01-01.
    """
    if close_ts.size < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    first, last = (int(ts - 1) // MS_PER_DAY for ts in (close_ts[1], close_ts[-1]))
    # Looked up day by day: dividing the time of each bar would take longer than all the rest.
    days = np.arange(first, last + 1)
    ends = np.searchsorted(close_ts[1:], (days + 1) * MS_PER_DAY, side="right")
    held = np.diff(ends, prepend=0) > 0
    return ends[held], days[held]


def day_returns(equity: FloatArray, close_ts: IntArray) -> FloatArray:
    """[days] returns between the last closes of UTC days, the first one from E_0.

    A bar that closes at midnight belongs to the day it ends.
    """
    ends, _ = day_ends(close_ts)
    returns: FloatArray = simple_returns(equity[np.append(0, ends)])
    return returns


def simple_returns(equity: FloatArray) -> FloatArray:
    """[n] E_t / E_(t-1) - 1."""
    returns: FloatArray = equity[1:] / equity[:-1]
    returns -= 1
    return returns


def drawdown(equity: FloatArray) -> FloatArray:
    """[n] equity over its highest value so far, minus one; never positive.

    >>> drawdown(np.array([100.0, 120.0, 90.0]))
    array([ 0.  ,  0.  , -0.25])
    """
    under: FloatArray = np.maximum.accumulate(equity)
    np.divide(equity, under, out=under)
    under -= 1
    return under


def growth(
    equity: FloatArray, close_ts: IntArray, bars_per_year: float, days_per_year: float
) -> dict[str, Measure]:
    """Total and annual growth, deepest and longest drawdown and Calmar ratio, by bar and by day.

    Args:
        equity: [n+1] quote currency, `until_ruin`.
        close_ts: [n+1] ms UTC.
        bars_per_year: bars in a year.
        days_per_year: trading days in a year.
    """
    if equity.size < 2:
        names = ("total_return", "cagr", "cagr_calendar", "max_drawdown", "calmar")
        more = ("cagr_day", "max_drawdown_day", "calmar_day", "longest_drawdown_days")
        return dict.fromkeys((*names, *more), undefined("no bars"))
    factor = float(equity[-1] / equity[0])
    ends, _ = day_ends(close_ts)
    deepest, longest = deepest_and_longest(equity, close_ts)
    deepest_day = float(drawdown(equity[np.append(0, ends)]).min())
    cagr = annual_growth(factor, bars_per_year / (equity.size - 1))
    cagr_day = annual_growth(factor, days_per_year / ends.size)
    return {
        "total_return": finite(factor - 1),
        "cagr": cagr,
        "cagr_calendar": annual_growth(factor, MS_PER_YEAR / float(close_ts[-1] - close_ts[0])),
        "max_drawdown": Measure(deepest, None),
        "calmar": _calmar(cagr, deepest, "equity"),
        "cagr_day": cagr_day,
        "max_drawdown_day": Measure(deepest_day, None),
        "calmar_day": _calmar(cagr_day, deepest_day, "equity at day ends"),
        "longest_drawdown_days": Measure(longest / MS_PER_DAY, None),
    }


def annual_growth(factor: float, power: float) -> Measure:
    """Growth factor raised to `power`, minus one."""
    if factor == 0:
        return Measure(-1.0, None)
    try:
        return finite(math.expm1(math.log(factor) * power))
    except OverflowError:
        return undefined("the curve is too short to annualise: the result exceeds any number")


def _calmar(cagr: Measure, deepest: float, what: str) -> Measure:
    if cagr.value is None:
        return cagr
    if deepest == 0:
        return undefined(f"{what} never fell below its highest value")
    return finite(cagr.value / abs(deepest))
