"""Bars on which an account that asks for nothing does not trade: most of a rule's backtest.

The kernel does everything for many accounts side by side. One account alone is faster if it is
first asked whether anything can happen at all; where something may, the kernel steps it. Both give
the same bits, which tests prove. Numbers and letters are those of docs/simulator.md. Start at
`pass_bars`.
"""

from typing import Any

from trade_pipeline.simulator.accounting import YEAR_MS
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import fundings_between
from trade_pipeline.simulator.lanes import clear
from trade_pipeline.simulator.recording import Record, write_state
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
def is_idle(balance: Any, positions: Any, rules: Rules) -> bool:
    """Whether no price concerns an account: it holds nothing, and its cash earns nothing."""
    idle = (balance.cash > 0.0) & (rules.cash_rate == 0.0)
    for n in range(positions.shape[0]):
        idle &= positions[n].quantity == 0.0
    return bool(idle)


@compiled
def pass_bars(
    balance: Any,
    positions: Any,
    rules: Rules,
    bars: Any,
    row: int,
    record: Record,
    first: int,
    steps: int,
) -> int:
    """Carry an account that asks for nothing over the bars after `row`, as long as they are quiet.

    Args:
        balance: BALANCE of one account that is not ruined, its price scale 1; changed.
        positions: POSITION [N] of it; they stay as they are.
        rules: costs and limits.
        bars: BAR [T, N].
        row: t.
        record: where what each bar left is written.
        first: step of the bar after `row` in it.
        steps: bars at most, one or more.

    Returns:
        How many were. At the bar after them a level or a margin may be reached.
    """
    if is_idle(balance, positions, rules):
        clear(balance)
        for step in range(first, first + steps):
            write_state(record, step, balance.equity, 0.0, 0.0)
        return steps
    instruments = positions.shape[0]
    margin = rules.maintenance_margin
    cash, peak = balance.cash, balance.peak_equity
    owed, worth = 0.0, 0.0
    passed = 0
    while passed < steps:
        now = row + passed
        due = financing_of(cash, positions, rules, bars, now)
        left = cash - due
        worth_close, gross_close = left, 0.0
        worth_open, gross_open = left, 0.0
        worth_worst, gross_worst = left, 0.0
        reached = False
        for n in range(instruments):
            position = positions[n]
            quantity = position.quantity
            if quantity == 0.0:
                continue
            bar = bars[now + 1, n]
            long = quantity > 0.0
            worst = bar.low if long else bar.high
            best = bar.high if long else bar.low
            stop, take = position.stop_price, position.take_price
            # NaN levels never match. An open beyond a level is an extreme beyond it, too (a, c, d).
            reached |= (worst <= stop) if long else (worst >= stop)
            reached |= (best >= take) if long else (best <= take)
            worst = worst if bar.traded else bar.open
            size = abs(quantity)
            worth_open += quantity * bar.open
            gross_open += size * bar.open
            worth_worst += quantity * worst
            gross_worst += size * worst
            worth_close += quantity * bar.close
            gross_close += size * bar.close
        # Liquidated, or so near to it that the kernel has to say (b, c).
        reached |= worth_open < margin * gross_open
        reached |= worth_worst - margin * gross_worst <= NEAR * (abs(left) + gross_worst)
        if reached | (not worth_close > 0.0):
            break
        cash, worth, owed = left, worth_close, due
        peak = max(peak, worth)
        write_state(record, first + passed, worth, gross_close, owed)
        passed += 1
    if passed > 0:
        clear(balance)
        balance.cash = cash
        balance.equity = worth
        balance.peak_equity = peak
        balance.financing = owed
    return passed
