"""Figures of one equity curve: growth, risk, Sharpe with its interval, activity and trades.

Numpy arrays in, plain numbers out. It knows no instrument, file, frame or clock. A figure that
has no value is null with a reason, never infinite, NaN or 0 by default. Formulas: docs/metrics.md.
Start at `metrics`. Beside it stand `periods` (years, months, rolling), `by_regime`, `relative`
(another curve), `significance` (intervals, deflated Sharpe ratio, seeds) and `costs`.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from trade_pipeline.evaluation.costs import cost_shares
from trade_pipeline.evaluation.growth import (
    MS_PER_DAY,
    day_returns,
    drawdown,
    growth,
    simple_returns,
    until_ruin,
)
from trade_pipeline.evaluation.measure import (
    FloatArray,
    IntArray,
    Measure,
    as_json,
    finite,
    no_spread,
    undefined,
)
from trade_pipeline.evaluation.ratios import distribution, shape, sharpe, sortino
from trade_pipeline.evaluation.significance import (
    intervals,
    probabilistic_sharpe,
    sharpe_interval,
)
from trade_pipeline.evaluation.walks import LANES, add_activity, added

__all__ = [
    "IMPLEMENTATION",
    "MS_PER_DAY",
    "Measure",
    "day_returns",
    "drawdown",
    "metrics",
    "probabilistic_sharpe",
    "sharpe",
    "sharpe_interval",
    "sortino",
]

# Stands for every module of figures beside this one, too.
IMPLEMENTATION = 4
FEW_DAYS = 60  # below this a Sharpe ratio is mostly chance, and the reader is told so


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
    `skew`, `kurtosis`, `psr` and what ends in `_day` use returns from UTC day end to UTC day end
    (days without a bar do not count; the first return starts at E_0), and so do the 95 % intervals
    `sharpe_low` to `sharpe_high`, `cagr_day_low` and `max_drawdown_day_low` likewise. What ends in
    `_bar`, `cagr`, `max_drawdown`, `calmar`, `exposure`, `time_in_market`, `turnover` use bars.
    `hit_rate`, `profit_factor`, `average_trade`, `sqn` use closed trades; `fees_share` and the
    like are of `gross_result`. After ruin (equity at or below zero) nothing is counted any more.

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
        seed: of the bootstrap behind the intervals.

    Returns:
        `values` (name to number or None), `undefined` (name to reason), `periods_per_year`
        (`bar` and `day`) and `warnings` (sentences).

    Raises:
        ValueError: shapes disagree, a number is not finite, or time runs backwards.
    """
    _check(equity, close_ts, exposure, turnover_notional, trade_nets)
    warnings: list[str] = []
    alive = until_ruin(equity)
    if alive[-1] <= 0:
        warnings.append(
            f"The account was ruined after {alive.size - 1} of {exposure.size} bars; later bars do "
            "not count."
        )
    equity, close_ts = alive, close_ts[: alive.size]
    bars = equity.size - 1
    by_bar = simple_returns(equity)
    by_day = day_returns(equity, close_ts)
    if by_day.size < FEW_DAYS:
        warnings.append(
            f"Only {by_day.size} days: under {FEW_DAYS} days a Sharpe ratio is mostly chance."
        )
    within = intervals(by_day, days_per_year, risk_free, seed)
    of_days = distribution(by_day, days_per_year, risk_free)
    of_bars = distribution(by_bar, bars_per_year, risk_free)
    measures = {
        "sharpe": of_days.pop("sharpe"),
        "sharpe_low": within["sharpe"][0],
        "sharpe_high": within["sharpe"][1],
        "sharpe_bar": of_bars.pop("sharpe"),
        "psr": probabilistic_sharpe(by_day, days_per_year, risk_free),
        **growth(equity, close_ts, bars_per_year, days_per_year),
        "cagr_day_low": within["cagr"][0],
        "cagr_day_high": within["cagr"][1],
        "max_drawdown_day_low": within["max_drawdown"][0],
        "max_drawdown_day_high": within["max_drawdown"][1],
        # `hit_rate` is that of trades.
        **{("hit_rate_day" if name == "hit_rate" else name): one for name, one in of_days.items()},
        **shape(by_day),
        **{f"{name}_bar": measure for name, measure in of_bars.items()},
        **_activity(equity, exposure[:bars], turnover_notional[:bars], bars_per_year),
        **_trades(trade_nets),
        "fees_paid": Measure(float(fees_paid), None),
        "slippage_paid": Measure(float(slippage_paid), None),
        "financing_paid": Measure(float(financing_paid), None),
        **cost_shares(float(equity[-1] - equity[0]), fees_paid, slippage_paid, financing_paid),
        "bars": Measure(bars, None),
        "days": Measure(int(by_day.size), None),
    }
    return {
        **as_json(measures),
        "periods_per_year": {"bar": float(bars_per_year), "day": float(days_per_year)},
        "warnings": warnings,
    }


def _activity(
    equity: FloatArray, exposure: FloatArray, notional: FloatArray, bars_per_year: float
) -> dict[str, Measure]:
    """How much was held and traded; turnover is annual, in multiples of equity."""
    if exposure.size == 0:
        return dict.fromkeys(("exposure", "time_in_market", "turnover"), undefined("no bars"))
    # Exposure relative to an equity of zero means nothing: the bar of ruin is left out.
    bars = exposure.size - int(equity[-1] <= 0)
    lanes = np.zeros(3 * LANES)
    add_activity(exposure[:bars], notional[:bars], equity[:bars], lanes)
    held, count, traded = added(lanes)
    if bars < exposure.size:
        traded += float(notional[bars] / equity[bars])
    none = undefined("ruined in the first bar")
    return {
        "exposure": finite(held / bars) if bars else none,
        "time_in_market": finite(count / bars) if bars else none,
        "turnover": finite(traded / exposure.size * bars_per_year),
    }


def _trades(nets: FloatArray) -> dict[str, Measure]:
    """Results of closed trades."""
    names = ("hit_rate", "profit_factor", "average_trade", "sqn")
    count = Measure(int(nets.size), None)
    if nets.size == 0:
        return {"trades": count, **dict.fromkeys(names, undefined("no closed trades"))}
    won, lost = float(nets[nets > 0].sum()), float(-nets[nets < 0].sum())
    mean = float(nets.mean())
    spread = float(nets.std(ddof=1)) if nets.size > 1 else 0.0
    if nets.size < 2:
        quality = undefined("one closed trade; at least two are needed")
    elif no_spread(spread, mean):
        quality = undefined("trade results do not vary")
    else:
        quality = finite(math.sqrt(nets.size) * mean / spread)
    return {
        "trades": count,
        "hit_rate": Measure(float((nets > 0).mean()), None),
        "profit_factor": finite(won / lost) if lost > 0 else undefined("no losing trade"),
        "average_trade": Measure(mean, None),
        "sqn": quality,
    }


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
    alive = until_ruin(equity).size - 1
    for name, array in (
        ("equity", equity),
        ("exposure", exposure[: alive - (equity[alive] <= 0)]),
        ("turnover_notional", turnover_notional[:alive]),
        ("trade_nets", trade_nets),
    ):
        with np.errstate(over="ignore", invalid="ignore"):
            adds_up = math.isfinite(float(array.sum()))
        if not adds_up and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{name} is {array[row]} at row {row}; only finite numbers are")
    if equity[0] <= 0:
        raise ValueError(f"equity starts at {equity[0]}; it must start above zero")
    if (close_ts[1:] <= close_ts[:-1]).any():
        row = int(np.flatnonzero(np.diff(close_ts) <= 0)[0]) + 1
        raise ValueError(
            f"close_ts is {close_ts[row]} at row {row} after {close_ts[row - 1]}; "
            "times must increase"
        )
