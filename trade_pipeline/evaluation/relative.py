"""Figures of an equity curve beside another one on the same days. Start at `relative`."""

import math
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from trade_pipeline.evaluation.growth import (
    MS_PER_DAY,
    annual_growth,
    day_ends,
    simple_returns,
    until_ruin,
)
from trade_pipeline.evaluation.measure import (
    RETURN_ROUNDING,
    FloatArray,
    IntArray,
    Measure,
    finite,
    no_spread,
    per_period,
    too_few,
    undefined,
)

NAMES = (
    "alpha",
    "beta",
    "correlation",
    "tracking_error",
    "information_ratio",
    "up_capture",
    "down_capture",
)


def relative(
    equity: FloatArray,
    close_ts: IntArray,
    benchmark: FloatArray,
    benchmark_close_ts: IntArray,
    days_per_year: float,
    risk_free: float = 0.0,
) -> dict[str, Measure]:
    """`NAMES` of daily returns, from UTC day end to UTC day end; after either's ruin none count.

    Beta is the slope of excess returns on the benchmark's; alpha the mean rest of a day,
    compounded over a year. Tracking error is the annual standard deviation (ddof 1) of the
    difference r - b, the information ratio its annual mean over that. A capture is the annual
    growth over the days on which the benchmark rose (or fell), over the benchmark's own.

    Args:
        equity: [n+1] account value, E_0 first.
        close_ts: [n+1] ms UTC, as in `metrics.metrics`.
        benchmark: [m+1] the other curve, in any unit.
        benchmark_close_ts: [m+1] ms UTC.
        days_per_year: trading days in a year.
        risk_free: annual rate taken off returns for alpha and beta.

    Raises:
        ValueError: the curves do not end the same days.
    """
    ours, days = _returns(equity, close_ts)
    theirs, benchmark_days = _returns(benchmark, benchmark_close_ts)
    _require_same(days, benchmark_days)
    count = min(ours.size, theirs.size)
    ours, theirs = ours[:count], theirs[:count]
    if count < 2:
        return dict.fromkeys(NAMES, too_few(count))
    return {
        **_line(ours, theirs, days_per_year, risk_free),
        **_difference(ours - theirs, days_per_year),
        "up_capture": _capture(ours, theirs, theirs > 0, days_per_year, "rose"),
        "down_capture": _capture(ours, theirs, theirs < 0, days_per_year, "fell"),
    }


def _returns(equity: FloatArray, close_ts: IntArray) -> tuple[FloatArray, IntArray]:
    """Daily returns until ruin, and all days."""
    ends, days = day_ends(close_ts)
    return simple_returns(until_ruin(equity[np.append(0, ends)])), days


def _require_same(days: IntArray, others: IntArray) -> None:
    differing = np.setxor1d(days, others)
    if differing.size:
        day = datetime.fromtimestamp(int(differing[0]) * MS_PER_DAY / 1000, UTC)
        raise ValueError(
            f"the curve has {days.size} days and the benchmark {others.size}; {day:%Y-%m-%d} is in "
            "only one of them. Cut both to the days they share."
        )


def _line(
    ours: FloatArray, theirs: FloatArray, days_per_year: float, risk_free: float
) -> dict[str, Measure]:
    names = ("alpha", "beta", "correlation")
    rate = per_period(risk_free, days_per_year)
    mean, mean_theirs = float(ours.mean()), float(theirs.mean())
    around, around_theirs = ours - mean, theirs - mean_theirs
    # Products and sums of our own: a matrix product's last bits depend on threads.
    with np.errstate(over="ignore", invalid="ignore"):
        variance = float((around * around).mean())
        variance_theirs = float((around_theirs * around_theirs).mean())
        both = float((around * around_theirs).mean())
    if not math.isfinite(variance + variance_theirs):
        return dict.fromkeys(names, finite(variance + variance_theirs))
    if no_spread(math.sqrt(variance_theirs), mean_theirs, RETURN_ROUNDING):
        return dict.fromkeys(names, undefined("the benchmark's returns do not vary"))
    beta = both / variance_theirs
    rest = (mean - rate) - beta * (mean_theirs - rate)
    flat = no_spread(math.sqrt(variance), mean, RETURN_ROUNDING)
    return {
        "alpha": (
            annual_growth(1 + rest, days_per_year)
            if rest > -1
            else undefined("the mean rest of a day is a loss of all and cannot be compounded")
        ),
        "beta": finite(beta),
        "correlation": (
            undefined("returns do not vary")
            if flat
            else finite(both / math.sqrt(variance) / math.sqrt(variance_theirs))
        ),
    }


def _difference(difference: FloatArray, days_per_year: float) -> dict[str, Measure]:
    root, mean = math.sqrt(days_per_year), float(difference.mean())
    with np.errstate(over="ignore", invalid="ignore"):
        spread = float(difference.std(ddof=1))
    if no_spread(spread, mean, RETURN_ROUNDING):
        return {
            "tracking_error": Measure(0.0, None),
            "information_ratio": undefined("the difference to the benchmark does not vary"),
        }
    return {
        "tracking_error": finite(spread * root),
        "information_ratio": finite(mean / spread * root if math.isfinite(spread) else spread),
    }


def _capture(
    ours: FloatArray,
    theirs: FloatArray,
    rows: npt.NDArray[np.bool_],
    days_per_year: float,
    word: str,
) -> Measure:
    count = int(np.count_nonzero(rows))
    if not count:
        return undefined(f"the benchmark never {word}")
    growth, growth_theirs = (
        annual_growth(float(np.prod(1 + returns[rows])), days_per_year / count)
        for returns in (ours, theirs)
    )
    if growth.value is None:
        return growth
    if growth_theirs.value is None:
        return growth_theirs
    if growth_theirs.value == 0:
        return undefined(f"the benchmark's growth on days when it {word} is only rounding")
    return finite(growth.value / growth_theirs.value)
