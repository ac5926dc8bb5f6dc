"""Figures of a series of returns, whatever its period: Sharpe, Sortino, tails, hit rate.

Formulas: `docs/metrics.md`. Start at `sharpe` and `distribution`.
"""

import math
from typing import NamedTuple

import numpy as np

from trade_pipeline.evaluation.measure import (
    RETURN_ROUNDING,
    FloatArray,
    Measure,
    finite,
    no_spread,
    per_period,
    too_few,
    undefined,
)
from trade_pipeline.evaluation.walks import LANES, add_returns, add_squares, added, cut_tails

MANY = 20_000  # returns; of fewer a quantile is found at once
WIDER = 1.5  # a tail is first cut so many times too long, then exactly


class Moments(NamedTuple):
    """Third and fourth standardised moments of a population; a normal one has 0 and 3."""

    skew: float
    kurtosis: float


class Sums(NamedTuple):
    """What the ratios of n returns are made of; see `sums`."""

    size: int
    mean: float
    spread: float
    gained: float
    lost: float
    shortfall: float
    up: int
    moved: int


class Tails(NamedTuple):
    """Quantiles 5 % and 95 %, and the mean of what is at or below the lower one."""

    low: float
    high: float
    below: float


def sums(returns: FloatArray, rate: float = 0.0) -> Sums:
    """Sums over returns, in a fixed order.

    Args:
        returns: [n], n of at least two.
        rate: taken off each for `gained` (sum above it), `lost` (sum below it, positive) and
            `shortfall` (root mean square of what falls short, over all n); `mean` and `spread`
            (ddof 1; zero where it is only rounding), `up` (above zero), `moved` (not zero) are of
            the returns as they are.
    """
    lanes, squares = np.zeros(6 * LANES), np.zeros(LANES)
    add_returns(returns, rate, lanes)
    total, gained, lost, misses, up, moved = added(lanes)
    mean = total / returns.size
    add_squares(returns, mean, squares)
    spread = math.sqrt(added(squares)[0] / (returns.size - 1))
    largest = max(abs(mean), abs(mean - rate))
    return Sums(
        returns.size,
        mean,
        0.0 if no_spread(spread, largest, RETURN_ROUNDING) else spread,
        gained,
        lost,
        math.sqrt(misses / returns.size),
        int(up),
        int(moved),
    )


def sharpe(returns: FloatArray, periods_per_year: float, risk_free: float = 0.0) -> Measure:
    """Mean excess return over its standard deviation (ddof 1), annualised."""
    if returns.size < 2:
        return too_few(returns.size)
    rate = per_period(risk_free, periods_per_year)
    return _sharpe(sums(returns, rate), rate, periods_per_year)


def sortino(returns: FloatArray, periods_per_year: float, minimum: float = 0.0) -> Measure:
    """Mean return above an annual `minimum` over the root mean square shortfall, annualised."""
    if returns.size < 2:
        return too_few(returns.size)
    rate = per_period(minimum, periods_per_year)
    return _sortino(sums(returns, rate), rate, periods_per_year)


def volatility(returns: FloatArray, periods_per_year: float) -> Measure:
    """Standard deviation (ddof 1), annualised; zero where it is only rounding."""
    if returns.size < 2:
        return too_few(returns.size)
    return finite(sums(returns).spread * math.sqrt(periods_per_year))


def distribution(
    returns: FloatArray, periods_per_year: float, risk_free: float = 0.0
) -> dict[str, Measure]:
    """Sharpe, Sortino, volatility, VaR and CVaR at 5 %, Omega, tail ratio and hit rate."""
    if returns.size < 2:
        names = ("sharpe", "sortino", "volatility", "var_5", "cvar_5", "omega", "tail_ratio")
        return dict.fromkeys((*names, "hit_rate"), too_few(returns.size))
    rate = per_period(risk_free, periods_per_year)
    found, tails = sums(returns, rate), _tails(returns)
    return {
        "sharpe": _sharpe(found, rate, periods_per_year),
        "sortino": _sortino(found, rate, periods_per_year),
        "volatility": finite(found.spread * math.sqrt(periods_per_year)),
        "var_5": finite(tails.low),
        "cvar_5": finite(tails.below),
        "omega": (
            finite(found.gained / found.lost)
            if found.lost > 0
            else undefined("no return falls short")
        ),
        "tail_ratio": (
            finite(abs(tails.high) / abs(tails.low))
            if tails.low != 0
            else undefined("the 5 % quantile of returns is zero")
        ),
        "hit_rate": (
            Measure(found.up / found.moved, None)
            if found.moved
            else undefined("no return but zero")
        ),
    }


def _sharpe(found: Sums, rate: float, periods_per_year: float) -> Measure:
    if found.spread == 0:
        return undefined("returns do not vary")
    if math.isinf(found.spread):
        return finite(found.spread)
    return finite((found.mean - rate) / found.spread * math.sqrt(periods_per_year))


def _sortino(found: Sums, rate: float, periods_per_year: float) -> Measure:
    mean = found.mean - rate
    if no_spread(found.shortfall, mean, RETURN_ROUNDING):
        return undefined("no return falls short")
    return finite(mean / found.shortfall * math.sqrt(periods_per_year))


def _tails(returns: FloatArray) -> Tails:
    """The exact quantiles, linear between neighbours, as `numpy.percentile` has them.

    Of many returns, those beyond a level read off a sample are looked at alone: a third of the
    time of sorting out all.
    """
    if returns.size < MANY:
        low, high = (float(level) for level in np.percentile(returns, [5, 95]))
        return Tails(low, high, float(returns[returns <= low].mean()))
    bounds = np.percentile(returns[:: returns.size // 1_000], [5 * WIDER, 100 - 5 * WIDER])
    tail, top = np.empty(returns.size), np.empty(returns.size)
    lower, upper = cut_tails(returns, bounds, tail, top)
    rank = 0.05 * (returns.size - 1)
    if min(lower, upper) < rank + 2:  # an unlucky sample
        tail, top = returns, returns
    else:
        tail, top = tail[:lower], top[:upper]
    low, high = _from_below(tail, rank), -_from_below(-top, rank)
    return Tails(low, high, float(tail[tail <= low].mean()))


def _from_below(values: FloatArray, rank: float) -> float:
    """The value at a rank that counts from zero, linear between the two neighbours."""
    first = math.floor(rank)
    below, above = np.partition(values, [first, first + 1])[first : first + 2].tolist()
    return float(below + (above - below) * (rank - first))


def moments(returns: FloatArray) -> Moments | None:
    """Skew and kurtosis (not in excess of 3) of the returns; None where they do not vary."""
    if returns.size < 2:
        return None
    mean = float(returns.mean())
    centred = returns - mean
    with np.errstate(over="ignore", invalid="ignore"):
        variance = float((centred * centred).mean())
        if no_spread(math.sqrt(variance), mean, RETURN_ROUNDING):
            return None
        scaled = centred / math.sqrt(variance)
        squares = scaled * scaled
        return Moments(float((squares * scaled).mean()), float((squares * squares).mean()))


def shape(returns: FloatArray) -> dict[str, Measure]:
    """`skew` and `kurtosis` as figures."""
    if returns.size < 2:
        return dict.fromkeys(Moments._fields, too_few(returns.size))
    found = moments(returns)
    if found is None:
        return dict.fromkeys(Moments._fields, undefined("returns do not vary"))
    return {name: finite(value) for name, value in found._asdict().items()}
