"""Figures of one equity curve: growth, risk, Sharpe with its interval, activity and trades.

Numpy arrays in, plain numbers out. It knows no instrument, file, frame or clock. A figure that
has no value is null with a reason, never infinite, NaN or 0 by default.
Start at `metrics`; the formulas are also there one by one (`sharpe`, `sortino`, `drawdown`).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

IMPLEMENTATION = 1

MS_PER_DAY = 86_400_000
MS_PER_YEAR = 365 * MS_PER_DAY
FEW_DAYS = 60  # below this a Sharpe ratio is mostly chance, and the reader is told so
RESAMPLES = 1_000
FEWEST_RESAMPLED = 10  # returns; resampling fewer shows the resampling, not the strategy
NO_SPREAD = 1e-12  # a standard deviation below this times |mean| is rounding, not spread


class Measure(NamedTuple):
    """A figure, or the reason it has none."""

    value: float | int | None
    reason: str | None


def metrics(
    equity: FloatArray,
    close_ts: IntArray,
    bars_per_year: float,
    days_per_year: float,
    exposure: FloatArray,
    turnover_notional: FloatArray,
    trade_nets: FloatArray,
    fees_paid: float = 0.0,
    slippage_paid: float = 0.0,
    financing_paid: float = 0.0,
    risk_free: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one curve, ready for JSON.

    The headline `sharpe`, and `sortino`, `volatility`, `var_5`, `cvar_5`, `omega`, `tail_ratio`,
    `psr` use returns from UTC day end to UTC day end (days without a bar do not count; the first
    return starts at E_0). `sharpe_bar`, `cagr`, `max_drawdown`, `exposure`, `time_in_market`,
    `turnover` use bars. `hit_rate`, `profit_factor`, `average_trade`, `sqn` use closed trades.
    After ruin (equity at or below zero) nothing is counted any more.

    Args:
        equity: [n+1] account value in quote currency, E_0 first.
        close_ts: [n+1] close of each bar in ms UTC, increasing; the first is E_0's time.
        bars_per_year: bars in a year of this calendar, such as 525600.
        days_per_year: trading days in a year, 365 or 252.
        exposure: [n] gross exposure as a multiple of equity at each bar's close.
        turnover_notional: [n] notional traded in each bar, quote currency.
        trade_nets: [trades] net result of each closed trade, quote currency.
        fees_paid: total over the curve, quote currency; likewise the next two.
        slippage_paid: see `fees_paid`.
        financing_paid: see `fees_paid`.
        risk_free: annual rate taken off returns, as a fraction.
        seed: of the bootstrap behind `sharpe_low` and `sharpe_high`.

    Returns:
        `values` (name to number or None), `undefined` (name to reason), `periods_per_year`
        (`bar` and `day`) and `warnings` (sentences).

    Raises:
        ValueError: shapes disagree, a number is not finite, or time runs backwards.
    """
    _check(equity, close_ts, exposure, turnover_notional, trade_nets)
    warnings: list[str] = []
    ruined = np.flatnonzero(equity <= 0)
    if ruined.size:
        end = int(ruined[0])
        equity = np.append(equity[:end], 0.0)
        close_ts = close_ts[: end + 1]
        warnings.append(
            f"The account was ruined after {end} of {exposure.size} bars; later bars do not count."
        )
    bars = equity.size - 1
    by_bar = equity[1:] / equity[:-1] - 1
    by_day = day_returns(equity, close_ts)
    if by_day.size < FEW_DAYS:
        warnings.append(
            f"Only {by_day.size} days: under {FEW_DAYS} days a Sharpe ratio is mostly chance."
        )
    low, high = sharpe_interval(by_day, days_per_year, risk_free, seed)
    measures = {
        "sharpe": sharpe(by_day, days_per_year, risk_free),
        "sharpe_low": low,
        "sharpe_high": high,
        "sharpe_bar": sharpe(by_bar, bars_per_year, risk_free),
        "psr": probabilistic_sharpe(by_day, days_per_year, risk_free),
        **_growth(equity, close_ts, bars_per_year),
        **_distribution(by_day, days_per_year, risk_free),
        **_activity(equity, exposure[:bars], turnover_notional[:bars], bars_per_year),
        **_trades(trade_nets),
        "fees_paid": Measure(float(fees_paid), None),
        "slippage_paid": Measure(float(slippage_paid), None),
        "financing_paid": Measure(float(financing_paid), None),
        "bars": Measure(bars, None),
        "days": Measure(int(by_day.size), None),
    }
    return {
        "values": {name: measure.value for name, measure in measures.items()},
        "undefined": {name: m.reason for name, m in measures.items() if m.reason is not None},
        "periods_per_year": {"bar": float(bars_per_year), "day": float(days_per_year)},
        "warnings": warnings,
    }


def day_returns(equity: FloatArray, close_ts: IntArray) -> FloatArray:
    """[days] returns between the last closes of UTC days, the first one from E_0.

    A bar that closes at midnight belongs to the day it ends.
    """
    if equity.size < 2:
        return np.empty(0)
    day = (close_ts[1:] - 1) // MS_PER_DAY
    last = np.flatnonzero(np.append(day[1:] != day[:-1], True)) + 1
    ends = equity[np.append(0, last)]
    returns: FloatArray = ends[1:] / ends[:-1] - 1
    return returns


def drawdown(equity: FloatArray) -> FloatArray:
    """[n] equity over its highest value so far, minus one; never positive.

    >>> drawdown(np.array([100.0, 120.0, 90.0]))
    array([ 0.  ,  0.  , -0.25])
    """
    under: FloatArray = equity / np.maximum.accumulate(equity) - 1
    return under


def sharpe(returns: FloatArray, periods_per_year: float, risk_free: float = 0.0) -> Measure:
    """Mean excess return over its standard deviation (ddof 1), annualised."""
    if returns.size < 2:
        return _undefined(f"{returns.size} returns; at least two are needed")
    excess = returns - _per_period(risk_free, periods_per_year)
    mean, spread = float(excess.mean()), float(excess.std(ddof=1))
    if spread <= NO_SPREAD * abs(mean):
        return _undefined("returns do not vary")
    return _finite(mean / spread * math.sqrt(periods_per_year))


def sharpe_interval(
    returns: FloatArray, periods_per_year: float, risk_free: float = 0.0, seed: int = 0
) -> tuple[Measure, Measure]:
    """95 % interval of the Sharpe ratio: circular block bootstrap, blocks of n^(1/3) returns."""
    count = returns.size
    if count < FEWEST_RESAMPLED:
        few = _undefined(f"{count} returns; at least {FEWEST_RESAMPLED} are needed to resample")
        return few, few
    length = max(1, round(count ** (1 / 3)))
    random = np.random.default_rng(seed)
    offsets = np.arange(length)
    ratios = []
    for _ in range(RESAMPLES):
        starts = random.integers(0, count, size=-(-count // length))
        rows = ((starts[:, None] + offsets) % count).ravel()[:count]
        ratio = sharpe(returns[rows], periods_per_year, risk_free).value
        if ratio is not None:
            ratios.append(ratio)
    if len(ratios) < RESAMPLES // 2:
        flat = _undefined("most resampled returns do not vary")
        return flat, flat
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Measure(float(low), None), Measure(float(high), None)


def probabilistic_sharpe(
    returns: FloatArray,
    periods_per_year: float,
    risk_free: float = 0.0,
    benchmark: float = 0.0,
) -> Measure:
    """Probability that the true Sharpe ratio is above `benchmark` (both annualised)."""
    annual = sharpe(returns, periods_per_year, risk_free)
    if annual.value is None:
        return annual
    root = math.sqrt(periods_per_year)
    ratio, against = annual.value / root, benchmark / root
    centred = returns - returns.mean()
    variance = float((centred**2).mean())
    skew = float((centred**3).mean()) / variance**1.5
    kurtosis = float((centred**4).mean()) / variance**2
    under = 1 - skew * ratio + (kurtosis - 1) / 4 * ratio**2
    if under <= 0:
        return _undefined("the variance of the Sharpe ratio comes out negative")
    z = (ratio - against) * math.sqrt(returns.size - 1) / math.sqrt(under)
    return Measure(0.5 * (1 + math.erf(z / math.sqrt(2))), None)


def sortino(returns: FloatArray, periods_per_year: float, minimum: float = 0.0) -> Measure:
    """Mean return above an annual `minimum` over the root mean square shortfall, annualised."""
    if returns.size < 2:
        return _undefined(f"{returns.size} returns; at least two are needed")
    excess = returns - _per_period(minimum, periods_per_year)
    mean = float(excess.mean())
    shortfall = math.sqrt(float((np.minimum(excess, 0.0) ** 2).mean()))
    if shortfall <= NO_SPREAD * abs(mean):
        return _undefined("no return falls short")
    return _finite(mean / shortfall * math.sqrt(periods_per_year))


def _growth(equity: FloatArray, close_ts: IntArray, bars_per_year: float) -> dict[str, Measure]:
    """Total and annual growth, the deepest drawdown and their ratio."""
    if equity.size < 2:
        none = _undefined("no bars")
        return dict.fromkeys(
            ("total_return", "cagr", "cagr_calendar", "max_drawdown", "calmar"), none
        )
    growth = float(equity[-1] / equity[0])
    deepest = float(drawdown(equity).min())
    cagr = _annual(growth, bars_per_year / (equity.size - 1))
    if cagr.value is None:
        calmar = cagr
    elif deepest == 0:
        calmar = _undefined("equity never fell below its highest value")
    else:
        calmar = _finite(cagr.value / abs(deepest))
    return {
        "total_return": _finite(growth - 1),
        "cagr": cagr,
        "cagr_calendar": _annual(growth, MS_PER_YEAR / float(close_ts[-1] - close_ts[0])),
        "max_drawdown": Measure(deepest, None),
        "calmar": calmar,
    }


def _distribution(
    returns: FloatArray, periods_per_year: float, risk_free: float
) -> dict[str, Measure]:
    """Shape of the daily returns."""
    measures = {"sortino": sortino(returns, periods_per_year, risk_free)}
    if returns.size < 2:
        none = _undefined(f"{returns.size} returns; at least two are needed")
        names = ("volatility", "var_5", "cvar_5", "omega", "tail_ratio")
        return measures | dict.fromkeys(names, none)
    low, high = (float(level) for level in np.percentile(returns, [5, 95]))
    excess = returns - _per_period(risk_free, periods_per_year)
    gained = float(excess[excess > 0].sum())
    lost = float(-excess[excess < 0].sum())
    return measures | {
        "volatility": _finite(float(returns.std(ddof=1)) * math.sqrt(periods_per_year)),
        "var_5": Measure(low, None),
        "cvar_5": Measure(float(returns[returns <= low].mean()), None),
        "omega": _finite(gained / lost) if lost > 0 else _undefined("no return falls short"),
        "tail_ratio": (
            _finite(abs(high) / abs(low))
            if low != 0
            else _undefined("the 5 % quantile of returns is zero")
        ),
    }


def _activity(
    equity: FloatArray, exposure: FloatArray, notional: FloatArray, bars_per_year: float
) -> dict[str, Measure]:
    """How much was held and traded; turnover is annual, in multiples of equity."""
    if exposure.size == 0:
        return dict.fromkeys(("exposure", "time_in_market", "turnover"), _undefined("no bars"))
    # Exposure relative to an equity of zero means nothing: the bar of ruin is left out.
    held = exposure[equity[1:] > 0]
    none = _undefined("ruined in the first bar")
    return {
        "exposure": Measure(float(held.mean()), None) if held.size else none,
        "time_in_market": Measure(float((held > 0).mean()), None) if held.size else none,
        "turnover": _finite(float((notional / equity[:-1]).mean()) * bars_per_year),
    }


def _trades(nets: FloatArray) -> dict[str, Measure]:
    """Results of closed trades."""
    names = ("hit_rate", "profit_factor", "average_trade", "sqn")
    count = Measure(int(nets.size), None)
    if nets.size == 0:
        return {"trades": count, **dict.fromkeys(names, _undefined("no closed trades"))}
    won, lost = float(nets[nets > 0].sum()), float(-nets[nets < 0].sum())
    mean = float(nets.mean())
    spread = float(nets.std(ddof=1)) if nets.size > 1 else 0.0
    if nets.size < 2:
        quality = _undefined("one closed trade; at least two are needed")
    elif spread <= NO_SPREAD * abs(mean):
        quality = _undefined("trade results do not vary")
    else:
        quality = _finite(math.sqrt(nets.size) * mean / spread)
    return {
        "trades": count,
        "hit_rate": Measure(float((nets > 0).mean()), None),
        "profit_factor": _finite(won / lost) if lost > 0 else _undefined("no losing trade"),
        "average_trade": Measure(mean, None),
        "sqn": quality,
    }


def _annual(growth: float, power: float) -> Measure:
    """Growth factor raised to `power`, minus one."""
    if growth == 0:
        return Measure(-1.0, None)
    try:
        return _finite(math.expm1(math.log(growth) * power))
    except OverflowError:
        return _undefined("the curve is too short to annualise: the result exceeds any number")


def _per_period(annual: float, periods_per_year: float) -> float:
    return float((1 + annual) ** (1 / periods_per_year) - 1)


def _undefined(reason: str) -> Measure:
    return Measure(None, reason)


def _finite(value: float) -> Measure:
    if math.isfinite(value):
        return Measure(value, None)
    return _undefined("the result exceeds any number")


def _check(
    equity: FloatArray,
    close_ts: IntArray,
    exposure: FloatArray,
    turnover_notional: FloatArray,
    trade_nets: FloatArray,
) -> None:
    if equity.ndim != 1 or equity.size == 0:
        raise ValueError(f"equity has shape {equity.shape}; [n+1] with E_0 first is expected")
    expected: Sequence[tuple[str, npt.NDArray[Any], int]] = (
        ("close_ts", close_ts, equity.size),
        ("exposure", exposure, equity.size - 1),
        ("turnover_notional", turnover_notional, equity.size - 1),
    )
    for name, array, size in expected:
        if array.shape != (size,):
            raise ValueError(
                f"{name} has shape {array.shape}, but equity has {equity.size} values; "
                f"({size},) is expected"
            )
    alive = np.append(True, equity[:-1] > 0)
    for name, array in (
        ("equity", equity),
        ("exposure", exposure[equity[1:] > 0]),
        ("turnover_notional", turnover_notional[alive[1:]]),
        ("trade_nets", trade_nets),
    ):
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name} is {array[row]} at row {row}; only finite numbers are")
    if equity[0] <= 0:
        raise ValueError(f"equity starts at {equity[0]}; it must start above zero")
    if (np.diff(close_ts) <= 0).any():
        row = int(np.flatnonzero(np.diff(close_ts) <= 0)[0]) + 1
        raise ValueError(
            f"close_ts is {close_ts[row]} at row {row} after {close_ts[row - 1]}; "
            "times must increase"
        )
