"""Reward of a step: weighted terms of one account, and functions of your own over all accounts.

The terms are specified in docs/simulator.md, section Reward. The built-in ones are compiled
functions on one account: `balance` is its BALANCE record, `positions` its POSITION records [N],
`memory` its MEMORY record, `row` the bar it is now marked at. To build one in, write such a
function, give it a place in `Weights` and `reward_one` and a name in settings/environment.py; a
custom term needs none of that. Start at `Reward`, then read `reward_one`.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from trade_pipeline.settings.environment import (
    CustomTerm,
    DifferentialSharpe,
    RewardTerm,
    TurbulenceGate,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import BoolArray, FloatArray, IntArray, Market
from trade_pipeline.simulator.state import Account

LOWEST_RATIO = 1e-3  # ruin is worth ln 1e-3, not minus infinity
# What counts as rounding rather than as something that prices did
NO_VARIANCE = 1e-12  # of the differential Sharpe ratio's returns, as a part of their second moment
VANISHED = 1e-200  # a variance whose power 1.5 would underflow, after very many returns of zero
NO_SPREAD = 1e-12  # standard deviation of an instrument's returns
NO_EIGENVALUE = 1e-10  # of the instruments' correlations, as a part of the largest
NOT_ABOVE = 1e-9  # as a part of the gate's threshold

# A custom term: E accounts after the step, equity before it [E], the market, the row they are now
# marked at [E]; gives float64 [E]. The market's prices are as they are where `price_scale` is 1.
Term = Callable[[Account, FloatArray, Market, IntArray], FloatArray]
# Moments A and B of the differential Sharpe ratio, one record an account
MEMORY = np.dtype([("first", np.float64), ("second", np.float64)], align=True)


class Weights(NamedTuple):
    """What `reward_one` reads: the weight of each term, where 0 is off, and its parameters."""

    log_return: float = 0.0
    cost: float = 0.0
    drawdown: float = 0.0
    exposure: float = 0.0
    turnover: float = 0.0
    inventory: float = 0.0
    turbulence_gate: float = 0.0
    differential_sharpe: float = 0.0
    decay: float = 0.0


class Reward:
    """The reward terms of an environment, checked and fitted once.

    Attributes:
        weights: of the built-in terms.
        turbulent: bool [T], read-only; True where the turbulence gate is shut. One False where no
            gate is configured.
        custom: weight and function of each term of your own.
    """

    def __init__(
        self, terms: Sequence[RewardTerm], market: Market, training_rows: IntArray
    ) -> None:
        """Fit the gate and import the custom functions; what has weight 0 is left out.

        Args:
            terms: from the settings.
            market: the bars.
            training_rows: int64 [K, 2] row ranges [a, b), each without a gap in the data, that
                the gate's statistics are fitted on; nothing else is read of them.

        Raises:
            ValueError: if a custom function cannot be imported, or the training rows hold no two
                returns for the gate.
        """
        numbers: dict[str, float] = {}
        names: list[str] = []
        custom: list[tuple[float, Term]] = []
        self.turbulent: BoolArray = np.zeros(1, np.bool_)
        for term in terms:
            if term.weight == 0:
                continue
            if isinstance(term, CustomTerm):
                names.append(term.function)
                custom.append((float(term.weight), _imported(term.function)))
                continue
            numbers[term.term] = float(term.weight)
            if isinstance(term, DifferentialSharpe):
                numbers["decay"] = float(term.decay)
            if isinstance(term, TurbulenceGate):
                self.turbulent = _turbulent(market, training_rows, term.quantile)
        self.turbulent.flags.writeable = False
        self.weights = Weights(**numbers)
        self.custom: tuple[tuple[float, Term], ...] = tuple(custom)
        self._names = tuple(names)

    def add_custom(
        self,
        rewards: FloatArray,
        account: Account,
        equity_before: FloatArray,
        market: Market,
        row: IntArray,
    ) -> None:
        """Add the custom terms to `rewards`, in place.

        Args:
            rewards: float64 [E].
            account: E accounts after the step.
            equity_before: float64 [E] equity before the step.
            market: the bars.
            row: int64 [E] the row each account is now marked at.

        Raises:
            ValueError: if a function gives anything but E finite numbers.
        """
        for name, (weight, function) in zip(self._names, self.custom, strict=True):
            # Copies: a term that writes must not move rows or make money.
            given = (account.copy(), equity_before.copy(), market, row.copy())
            try:
                values = np.asarray(function(*given))
            except Exception as error:
                raise ValueError(
                    f"reward term custom: {name} failed with {type(error).__name__}: {error}"
                ) from error
            if values.dtype.kind not in "fiub" or values.shape != rewards.shape:
                raise ValueError(
                    f"reward term custom: {name} gave {values.dtype} of shape {values.shape}; it "
                    f"must give one number an environment, float64 of shape {rewards.shape}"
                )
            wrong = np.flatnonzero(~np.isfinite(values))
            if wrong.size:
                e = int(wrong[0])
                raise ValueError(
                    f"reward term custom: {name} gave {values[e]} for environment {e} at row "
                    f"{row[e]}; it must be a finite number, also for a ruined account, whose "
                    "equity is 0"
                )
            rewards += weight * values
            if not np.isfinite(rewards).all():
                raise ValueError(f"reward term custom: {name} times {weight:g} is too large")


@compiled
def forget(memory: Any) -> None:
    """As at an episode's start: no returns seen."""
    memory.first = 0.0
    memory.second = 0.0


@compiled
def reward_one(
    weights: Weights,
    memory: Any,
    balance: Any,
    positions: Any,
    equity_before: float,
    bars: Any,
    row: int,
    turbulent: BoolArray,
) -> float:
    """Built-in terms of one account, weighted and summed; finite.

    Args:
        weights: a term of weight 0 is not computed.
        memory: its MEMORY record, changed.
        balance: its BALANCE record after the step.
        positions: its POSITION records [N] after the step.
        equity_before: before the step, zero or more.
        bars: BAR [T, N].
        row: t + 1, now closed.
        turbulent: bool [T], read only if the gate has a weight.
    """
    total = 0.0
    if weights.log_return != 0.0:
        total += weights.log_return * log_return(balance, equity_before)
    if weights.cost != 0.0:
        total += weights.cost * cost(balance, equity_before)
    if weights.drawdown != 0.0:
        total += weights.drawdown * drawdown(balance)
    if weights.exposure != 0.0:
        total += weights.exposure * exposure(balance, positions, bars, row)
    if weights.turnover != 0.0:
        total += weights.turnover * turnover(balance, equity_before)
    if weights.inventory != 0.0:
        total += weights.inventory * inventory(balance, positions, bars, row)
    if weights.turbulence_gate != 0.0:
        gated = turbulence_gate(balance, positions, bars, row, turbulent)
        total += weights.turbulence_gate * gated
    if weights.differential_sharpe != 0.0:
        sharpe = differential_sharpe(memory, balance, equity_before, weights.decay)
        total += weights.differential_sharpe * sharpe
    return total


@compiled
def over(numerator: float, equity: float) -> float:
    """As a fraction of an equity; 0 where that is ruined."""
    return numerator / equity if equity > 0 else 0.0


@compiled
def log_return(balance: Any, equity_before: float) -> float:
    """ln(E_{t+1} / E_t), at least ln 1e-3; 0 for an account that was ruined before."""
    if equity_before <= 0:
        return 0.0
    return float(np.log(max(balance.equity / equity_before, LOWEST_RATIO)))


@compiled
def cost(balance: Any, equity_before: float) -> float:
    """What the step paid in fees, slippage and financing, as a negative fraction of E_t."""
    return -over(balance.fees + balance.slippage + balance.financing, equity_before)


@compiled
def drawdown(balance: Any) -> float:
    """Equity below its peak as a negative fraction of the peak; -1 at ruin."""
    return min(0.0, over(balance.equity, balance.peak_equity) - 1.0)


@compiled
def exposure(balance: Any, positions: Any, bars: Any, row: int) -> float:
    """Gross position value as a negative fraction of equity; 0 at ruin."""
    gross = 0.0
    for n in range(positions.shape[0]):
        gross += abs(positions[n].quantity) * (bars[row, n].close * balance.price_scale)
    return -over(gross, balance.equity)


@compiled
def turnover(balance: Any, equity_before: float) -> float:
    """Traded notional of the step as a negative fraction of E_t."""
    return -over(balance.traded_notional, equity_before)


@compiled
def inventory(balance: Any, positions: Any, bars: Any, row: int) -> float:
    """Squared weights, summed and negative: one large position is worse than two small ones."""
    total = 0.0
    for n in range(positions.shape[0]):
        value = positions[n].quantity * (bars[row, n].close * balance.price_scale)
        total += over(value, balance.equity) ** 2
    return -total


@compiled
def turbulence_gate(
    balance: Any, positions: Any, bars: Any, row: int, turbulent: BoolArray
) -> float:
    """Exposure again while the gate is shut; otherwise 0."""
    return exposure(balance, positions, bars, row) if turbulent[row] else 0.0


@compiled
def moving_sharpe(first: float, second: float) -> float:
    """Sharpe ratio of two moving moments; 0 as long as the returns seen do not vary."""
    variance = second - first * first
    if variance <= NO_VARIANCE * second or variance < VANISHED:
        return 0.0
    return float(first / np.sqrt(variance))


@compiled
def differential_sharpe(memory: Any, balance: Any, equity_before: float, decay: float) -> float:
    """What the step's return adds to a moving Sharpe ratio, over the decay.

    The whole change, of which Moody and Saffell (2001, eq. 9-11) take the first-order part: that
    part pays for losses while the moments are young, whereas changes add up to the last ratio. 0
    for an account that was ruined before, whose memory stays.
    """
    if equity_before <= 0:
        return 0.0
    change = balance.equity / equity_before - 1.0
    before = moving_sharpe(memory.first, memory.second)
    memory.first += decay * (change - memory.first)
    memory.second += decay * (change * change - memory.second)
    return (moving_sharpe(memory.first, memory.second) - before) / decay


def turbulence(market: Market, segments: IntArray, training_rows: IntArray) -> FloatArray:
    """How unusual each row's returns are together (Kritzman and Li, 2010), float64 [T].

    The squared Mahalanobis distance of the instruments' returns from close to close. A row's value
    reads its close and the one before, and the training rows' mean and covariance. Every row but
    the first of the market and of each segment has one: rows outside of the segments as well, and
    there also across a gap, which nobody reads, since no step crosses one. Instruments that did not
    move in training, or only as others did, add nothing (pseudo-inverse of the correlations).

    Args:
        market: the bars.
        segments: int64 [S, 2] row ranges [a, b); the first row of each has turbulence 0.
        training_rows: int64 [K, 2] row ranges without a gap within; the first row of each has no
            return to fit on.

    Raises:
        ValueError: if a range does not lie in the market, or there are fewer than 2 returns.
    """
    fitted = _has_return(training_rows, market.rows)
    if fitted.sum() < 2:
        raise ValueError(
            f"reward term turbulence_gate: the training part's row ranges hold {fitted.sum()} "
            "returns, and 2 or more are needed; give training more data, or leave the term out"
        )
    returns = np.zeros((market.rows, market.instruments))
    returns[1:] = market.close[1:] / market.close[:-1] - 1.0
    deviation = returns - returns[fitted].mean(axis=0)
    spread = returns[fitted].std(axis=0, ddof=1)
    # Correlations, so that what counts as dependent is no matter of how much an instrument moves
    deviation = np.where(spread > NO_SPREAD, deviation / np.maximum(spread, NO_SPREAD), 0.0)
    # einsum loops by itself: a BLAS product's last bits would depend on the number of threads
    sample = deviation[fitted]
    correlation = np.einsum("ti,tj->ij", sample, sample) / (len(sample) - 1)
    inverse = np.linalg.pinv(correlation, hermitian=True, rtol=NO_EIGENVALUE)
    distance = (np.einsum("ti,ij->tj", deviation, inverse) * deviation).sum(axis=1)
    distance[0] = 0.0
    distance[_checked(segments, market.rows)[:, 0]] = 0.0
    return cast(FloatArray, distance)


def _turbulent(market: Market, training_rows: IntArray, quantile: float) -> BoolArray:
    """Where turbulence is above the quantile of the training rows that have a return.

    Slices are not known here, and need not be: a slice's first row ends no step, so that no reward
    reads it.
    """
    values = turbulence(market, training_rows, training_rows)
    threshold = np.quantile(values[_has_return(training_rows, market.rows)], quantile)
    # Where many rows are equally turbulent, rounding does not put some of them above
    return values > threshold * (1.0 + NOT_ABOVE)


def _has_return(training_rows: IntArray, rows: int) -> BoolArray:
    """Bool [T]: training rows with a training row before them in the same range."""
    fitted = np.zeros(rows, np.bool_)
    for a, b in _checked(training_rows, rows):
        fitted[a + 1 : b] = True
    return fitted


def _checked(ranges: IntArray, rows: int) -> IntArray:
    """The ranges that are not empty.

    Raises:
        ValueError: if they are no row ranges of the market.
    """
    if ranges.ndim != 2 or ranges.shape[1] != 2:
        raise ValueError(f"row ranges have shape {ranges.shape}; [K, 2] is expected")
    for a, b in ranges:
        if not 0 <= a <= b <= rows:
            raise ValueError(f"row range [{a}, {b}) does not lie in the market's {rows} rows")
    return ranges[ranges[:, 0] < ranges[:, 1]]


def _imported(name: str) -> Term:
    """The function of a custom term.

    Raises:
        ValueError: if there is none; says what to do.
    """
    wanted = f"reward term custom: function {name!r}"
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(
            f"{wanted}: module {module_name!r} cannot be imported ({error}); correct the name, or "
            "put the folder that holds it on PYTHONPATH"
        ) from error
    if not hasattr(module, function_name):
        raise ValueError(
            f"{wanted}: module {module_name!r} ({getattr(module, '__file__', None)}) has no "
            f"{function_name!r}; correct the name, or define it there"
        )
    function = getattr(module, function_name)
    if not callable(function):
        raise ValueError(
            f"{wanted}: it is a {type(function).__name__} that cannot be called; name a function "
            "of (account, equity_before, market, row)"
        )
    return cast(Term, function)
