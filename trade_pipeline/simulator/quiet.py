"""Bars on which an account that asks for nothing does not trade: most of a rule's backtest.

The kernel does everything for many accounts side by side. One account alone is faster if it is
first asked whether anything can happen at all; where something may, the kernel steps it. Both give
the same bits, which tests prove. Numbers and letters are those of docs/simulator.md. Start at
`pass_bar`.
"""

from typing import Any

from trade_pipeline.simulator.accounting import YEAR_MS
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import fundings_between
from trade_pipeline.simulator.lanes import clear
from trade_pipeline.simulator.rules import Rules

NEAR = 1e-9  # as in `intrabar`: margin left at the worst price, relative to what is held


@compiled
def financing_of(cash: float, positions: Any, rules: Rules, bars: Any, row: int) -> float:
    """Borrow, interest and funding from the close of `row` to the next one (0); prices as given."""
    start_ms, end_ms = bars[row, 0].close_ts, bars[row + 1, 0].close_ts
    short = 0.0
    paid = 0.0
    constant = 0.0
    if rules.funding_rate != 0.0:
        constant = rules.funding_rate * fundings_between(start_ms, end_ms, rules.funding_ms)
    for n in range(positions.shape[0]):
        worth = positions[n].quantity * bars[row, n].close
        short -= worth if worth < 0.0 else 0.0
        funding = bars[row + 1, n].funding + constant
        if funding != 0.0:
            paid += worth * funding
    rate = rules.borrow_rate * short
    if cash < 0.0:
        rate = rate - rules.interest_rate * cash
    elif (rules.cash_rate > 0.0) & (cash > short):
        rate = rate - rules.cash_rate * (cash - short)
    if rate != 0.0:
        paid += float(end_ms - start_ms) / YEAR_MS * rate
    return paid


@compiled
def pass_bar(balance: Any, positions: Any, rules: Rules, bars: Any, row: int) -> bool:
    """Carry an account that asks for nothing from the close of `row` to the next, if it is quiet.

    Args:
        balance: BALANCE of one account that is not ruined, its price scale 1; changed.
        positions: POSITION [N] of it; they stay as they are.
        rules: costs and limits.
        bars: BAR [T, N].
        row: t.

    Returns:
        Whether it was. If a level or a margin may be reached, the account is as it was before.
    """
    instruments = positions.shape[0]
    financing = financing_of(balance.cash, positions, rules, bars, row)
    cash = balance.cash - financing
    equity = cash
    worth_open, gross_open = cash, 0.0
    worth_worst, gross_worst = cash, 0.0
    for n in range(instruments):
        position = positions[n]
        quantity = position.quantity
        if quantity == 0.0:
            continue
        bar = bars[row + 1, n]
        long = quantity > 0.0
        worst = bar.low if long else bar.high
        best = bar.high if long else bar.low
        stop, take = position.stop_price, position.take_price
        # NaN levels never match. An open beyond a level is an extreme beyond it, too (a, c, d).
        stopped = (worst <= stop) if long else (worst >= stop)
        taken = (best >= take) if long else (best <= take)
        if stopped | taken:
            return False
        worst = worst if bar.traded else bar.open
        size = abs(quantity)
        worth_open += quantity * bar.open
        gross_open += size * bar.open
        worth_worst += quantity * worst
        gross_worst += size * worst
        equity += quantity * bar.close
    margin = rules.maintenance_margin
    left = worth_worst - margin * gross_worst
    if (worth_open < margin * gross_open) | (left <= NEAR * (abs(cash) + gross_worst)):
        return False  # liquidated, or so near to it that the kernel has to say (b, c)
    if not equity > 0.0:
        return False
    clear(balance)
    balance.cash = cash
    balance.equity = equity
    balance.peak_equity = max(balance.peak_equity, equity)
    balance.financing = financing
    return True
