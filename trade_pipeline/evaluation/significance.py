"""How far chance alone may account for a figure.

Block-bootstrap intervals, the probabilistic Sharpe ratio, the Sharpe ratio deflated by how many
trials there were (Bailey and Lopez de Prado, "The Deflated Sharpe Ratio", 2014), and the spread
over seeds. Start at `intervals`, `deflated_sharpe` and `seed_spread`.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from trade_pipeline.evaluation.measure import (
    NO_SPREAD,
    RETURN_ROUNDING,
    FloatArray,
    Measure,
    as_json,
    finite,
    no_spread,
    per_period,
    too_few,
    undefined,
)
from trade_pipeline.evaluation.ratios import moments, sharpe
from trade_pipeline.evaluation.walks import resample

RESAMPLES = 1_000
FEWEST_RESAMPLED = 10  # returns; resampling fewer shows the resampling, not the strategy
EULER_GAMMA = 0.5772156649015329
NORMAL = NormalDist()


def intervals(
    returns: FloatArray, periods_per_year: float, risk_free: float = 0.0, seed: int = 0
) -> dict[str, tuple[Measure, Measure]]:
    """95 % intervals of `sharpe`, `cagr` and `max_drawdown` of the returns.

    Circular block bootstrap, blocks of n^(1/3) returns, percentiles 2.5 and 97.5 of `RESAMPLES`.

    Returns:
        Name to lower and upper end.
    """
    count = returns.size
    names = ("sharpe", "cagr", "max_drawdown")
    if count < FEWEST_RESAMPLED:
        few = undefined(f"{count} returns; at least {FEWEST_RESAMPLED} are needed to resample")
        return dict.fromkeys(names, (few, few))
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    starts = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, blocks))
    rate = per_period(risk_free, periods_per_year)
    drawn = np.empty((RESAMPLES, 4))
    resample(returns, starts, length, np.empty(count), drawn)
    means, spreads, factors, deepest = drawn.T
    largest = np.maximum(np.abs(means), np.abs(means - rate))
    varied = spreads > np.maximum(NO_SPREAD * largest, RETURN_ROUNDING)
    with np.errstate(over="ignore"):
        growth = factors ** (periods_per_year / count) - 1
    if np.count_nonzero(varied) < RESAMPLES // 2:
        flat = undefined("most resampled returns do not vary")
        of_sharpe = (flat, flat)
    else:
        ratios = (means[varied] - rate) / spreads[varied] * math.sqrt(periods_per_year)
        # Over a spread beyond any number a ratio would be 0: that is beyond any number, too.
        of_sharpe = _middle(np.where(np.isfinite(spreads[varied]), ratios, np.inf))
    return {"sharpe": of_sharpe, "cagr": _middle(growth), "max_drawdown": _middle(deepest)}


def sharpe_interval(
    returns: FloatArray, periods_per_year: float, risk_free: float = 0.0, seed: int = 0
) -> tuple[Measure, Measure]:
    """95 % interval of the Sharpe ratio; see `intervals`."""
    return intervals(returns, periods_per_year, risk_free, seed)["sharpe"]


def probabilistic_sharpe(
    returns: FloatArray,
    periods_per_year: float,
    risk_free: float = 0.0,
    benchmark: float = 0.0,
) -> Measure:
    """Probability that the true Sharpe ratio is above `benchmark` (both annualised)."""
    annual = sharpe(returns, periods_per_year, risk_free)
    found = moments(returns)
    if annual.value is None or found is None:
        return annual
    root = math.sqrt(periods_per_year)
    return probability_above(annual.value / root, benchmark / root, returns.size, *found)


def probability_above(
    ratio: float, benchmark: float, count: int, skew: float, kurtosis: float
) -> Measure:
    """Phi((sr - sr*) sqrt(n-1) / sqrt(1 - g3 sr + (g4-1)/4 sr^2)); nothing is annualised here.

    Args:
        ratio: Sharpe ratio a period.
        benchmark: that the true one should exceed, a period.
        count: returns that `ratio` was measured on.
        skew: of these returns.
        kurtosis: of these returns, 3 where normal.
    """
    if count < 2:
        return too_few(count)
    under = 1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2
    if not math.isfinite(under):
        return finite(under)
    if under <= 0:
        return undefined("the variance of the Sharpe ratio comes out negative")
    z = (ratio - benchmark) * math.sqrt(count - 1) / math.sqrt(under)
    return Measure(NORMAL.cdf(z), None)


def expected_maximum_sharpe(trials: int, sharpes: Sequence[float | None]) -> Measure:
    """The Sharpe ratio that the best of `trials` worthless strategies is expected to reach.

    sqrt(V) ((1-g) Phi^-1(1 - 1/N) + g Phi^-1(1 - 1/(N e))), g Euler's constant; 0 for one trial.

    Args:
        trials: N, how many were ever tried.
        sharpes: those that are known; their variance (ddof 1) is V. The unit of the result.

    Raises:
        ValueError: `trials` is below one.
    """
    if trials < 1:
        raise ValueError(f"trials is {trials}; the strategy itself is one, so count from 1")
    if trials == 1:
        return Measure(0.0, None)
    known = np.array([value for value in sharpes if value is not None], np.float64)
    if known.size < 2:
        return undefined(
            f"{known.size} of {trials} trials have a Sharpe ratio; their variance needs two"
        )
    if trials < known.size:
        return undefined(f"{known.size} Sharpe ratios are more than the {trials} trials counted")
    spread = float(known.std(ddof=1))
    if no_spread(spread, float(known.mean())):
        return undefined("the trials' Sharpe ratios do not vary")
    best = (1 - EULER_GAMMA) * NORMAL.inv_cdf(1 - 1 / trials)
    best += EULER_GAMMA * NORMAL.inv_cdf(1 - 1 / (trials * math.e))
    return finite(spread * best)


def deflated_sharpe(
    returns: FloatArray,
    periods_per_year: float,
    trials: int,
    sharpes: Sequence[float | None],
    risk_free: float = 0.0,
) -> Measure:
    """Probability that the true Sharpe ratio is above what the best of all trials has by chance.

    Args:
        returns: of the strategy that was chosen.
        periods_per_year: of these returns.
        trials: how many were ever tried.
        sharpes: the trials' annualised Sharpe ratios, None where undefined.
        risk_free: annual rate taken off returns.

    Raises:
        ValueError: `trials` is below one.
    """
    against = expected_maximum_sharpe(trials, sharpes)
    if against.value is None:
        return against
    return probabilistic_sharpe(returns, periods_per_year, risk_free, against.value)


def seed_spread(
    seeds: Mapping[int, Mapping[str, float | None]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """How far figures differ between trainings that differ in nothing but the seed.

    The median is a figure that a seed has: of an even number the lower one in the middle. A seed
    without the figure counts in none of them but `undefined_seeds`.

    Args:
        seeds: the `values` of `metrics.metrics` by seed.
        names: of the figures.

    Returns:
        Name to `values` and `undefined` of minimum, median, maximum, mean, deviation (ddof 1),
        seeds and undefined_seeds.
    """
    found = {}
    for name in names:
        known = np.array(
            sorted(v for one in seeds.values() if (v := one[name]) is not None), np.float64
        )
        none = undefined("no seed has this figure")
        held = known.size > 0
        found[name] = as_json(
            {
                "minimum": finite(float(known[0])) if held else none,
                "median": finite(float(known[(known.size - 1) // 2])) if held else none,
                "maximum": finite(float(known[-1])) if held else none,
                "mean": finite(float(known.mean())) if held else none,
                "deviation": (
                    finite(float(known.std(ddof=1)))
                    if known.size > 1
                    else undefined("one seed has this figure; two are needed")
                    if held
                    else none
                ),
                "seeds": Measure(len(seeds), None),
                "undefined_seeds": Measure(len(seeds) - known.size, None),
            }
        )
    return found


def _middle(values: FloatArray) -> tuple[Measure, Measure]:
    """The percentiles 2.5 and 97.5."""
    if not np.isfinite(values).all():
        beyond = undefined("what is resampled exceeds any number")
        return beyond, beyond
    low, high = np.percentile(values, [2.5, 97.5])
    return finite(float(low)), finite(float(high))
