"""Reward terms: functions over arrays of accounts, summed with the weights of the settings.

To add a term, write a function with the signature of `Term`, give it a name in `TERMS` and allow
that name in `RewardTerm`; the kernel stays as it is. Start at `reward`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from trade_pipeline.settings.experiment import RewardTerm
from trade_pipeline.simulator.kernel import Account, FloatArray, IntArray, Market

LOWEST_RATIO = 1e-3  # ruin is worth ln 1e-3, not minus infinity

Term = Callable[[Account, FloatArray, Market, IntArray], FloatArray]


def reward(
    terms: Sequence[RewardTerm],
    account: Account,
    equity_before: FloatArray,
    market: Market,
    row: IntArray,
) -> FloatArray:
    """Reward of the last step, the weighted sum of terms.

    Args:
        terms: names and weights.
        account: E accounts after the step.
        equity_before: float64 [E] equity before the step.
        market: the bars.
        row: int64 [E] the row each account is now marked at.

    Returns:
        float64 [E], finite.
    """
    total = np.zeros(row.shape[0])
    for term in terms:
        total += term.weight * TERMS[term.term](account, equity_before, market, row)
    return total


def log_return(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """ln(E_{t+1} / E_t), at least ln 1e-3; 0 for an account that was ruined before."""
    ratio = _over(account.equity, equity_before, 1.0)
    return np.log(np.maximum(ratio, LOWEST_RATIO))


def cost(account: Account, equity_before: FloatArray, market: Market, row: IntArray) -> FloatArray:
    """What the step paid in fees, slippage and financing, as a negative fraction of E_t."""
    return -_over(account.fees + account.slippage + account.financing, equity_before, 0.0)


def drawdown(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """Equity below its peak as a negative fraction of the peak."""
    return account.equity / account.peak_equity - 1.0


def exposure(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """Gross position value as a negative fraction of equity; 0 at ruin."""
    gross = np.zeros(row.shape[0])
    for n in range(market.instruments):  # element-wise, so that E does not change the bits
        gross += np.abs(account.quantity[:, n]) * market.close[row, n]
    return -_over(gross, account.equity, 0.0)


def turnover(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """Traded notional of the step as a negative fraction of E_t."""
    return -_over(account.traded_notional, equity_before, 0.0)


TERMS: dict[str, Term] = {
    "log_return": log_return,
    "cost": cost,
    "drawdown": drawdown,
    "exposure": exposure,
    "turnover": turnover,
}


def _over(numerator: FloatArray, denominator: FloatArray, otherwise: float) -> FloatArray:
    """Quotient where the denominator is positive."""
    quotient = np.full(numerator.shape, otherwise)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
