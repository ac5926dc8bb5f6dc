"""Accounts' money: fills with fee and slippage, financing, marking to market.

Compiled functions on the lanes of a block, see `lanes`: `block` is a BLOCK, `holdings` HOLDING [N],
`holding` one of them, `lanes` how many accounts there are. Numbers in comments are sections of
docs/simulator.md. Start at `fill`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import fee_of, slippage_fraction
from trade_pipeline.simulator.lanes import CLOSE, NOW
from trade_pipeline.simulator.rules import Rules
from trade_pipeline.simulator.state import REASONS

ORDER, STOP, TAKE, LIQUIDATION, SLICE_END = range(len(REASONS))
YEAR_MS = 365 * 86_400_000.0


@compiled
def choose(block: Any, flags: Any, lanes: int) -> int:
    """List the lanes whose flag is not 0 in `block.chosen`; returns how many there are."""
    chosen = block.chosen
    count = 0
    for k in range(lanes):
        chosen[count] = k
        count += int(flags[k] != 0.0)
    return count


@compiled
def fill(block: Any, holding: Any, records: Any, rules: Rules, n: int, lanes: int) -> int:
    """Carry out `holding.trade` at `holding.at` in the lanes where it is not 0.

    A trade grows or reduces the position, never both.

    Args:
        block: BLOCK.
        holding: of instrument n.
        records: FILL [.., 4N] of the block's accounts, written.
        rules: costs and limits.
        n: the instrument.
        lanes: how many accounts.

    Returns:
        In how many lanes something traded; `block.chosen` lists them.
    """
    count = choose(block, holding.trade, lanes)
    if count == 0:
        return 0
    for k in range(lanes):
        quantity = holding.trade[k]
        price = holding.at[k]
        resting = holding.resting[k] != 0.0
        held = holding.quantity[k]
        entry = holding.entry_price[k]
        stop = holding.stop_price[k]
        take = holding.take_price[k]
        maker_rate = block.maker_rate[k]
        taker_rate = block.taker_rate[k]
        fee_scale = block.fee_scale[k]
        slippage_scale = block.slippage_scale[k]
        volume = holding.volume[k]

        fills = quantity != 0.0
        size = abs(quantity)
        slip = slippage_fraction(slippage_scale, rules, size, volume)
        slip = 0.0 if resting else slip
        fill_price = price * (1.0 + (slip if quantity > 0 else -slip))
        notional = size * fill_price
        rate = maker_rate if resting else taker_rate
        fee = fee_of(fee_scale, rate, rules, size, notional)
        slippage = size * abs(fill_price - price)

        after = held + quantity
        grown = (abs(held) * entry + notional) / (abs(held) + size)
        entry_after = grown if (held > 0) == (quantity > 0) else entry
        entry_after = fill_price if held == 0.0 else entry_after
        ends = fills & (after == 0.0)  # no position, so no entry and no levels
        entry_after = np.nan if ends else entry_after
        holding.quantity[k] = after if fills else held
        holding.entry_price[k] = entry_after if fills else entry
        holding.stop_price[k] = np.nan if ends else stop
        holding.take_price[k] = np.nan if ends else take
        paid = quantity * fill_price + fee
        block.cash[k] -= paid if fills else 0.0
        block.fees[k] += fee if fills else 0.0
        block.slippage[k] += slippage if fills else 0.0
        block.traded_notional[k] += notional if fills else 0.0
        holding.fill_price[k] = fill_price
        holding.fee[k] = fee
        holding.slippage[k] = slippage
    for i in range(count):
        k = block.chosen[i]
        record = records[k, block.fills[k]]
        record.instrument = n
        record.quantity = holding.trade[k]
        record.price = holding.fill_price[k]
        record.fee = holding.fee[k]
        record.slippage = holding.slippage[k]
        record.reason = int(holding.reason[k])
        block.fills[k] += 1
    return count


@compiled
def value(block: Any, holdings: Any, kind: int, lanes: int) -> None:
    """`block.worth`, cash and positions at the prices of that kind, and `block.gross`."""
    for k in range(lanes):
        block.worth[k] = block.cash[k]
        block.gross[k] = 0.0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            quantity = holding.quantity[k]
            price = holding.price[kind, k]
            block.worth[k] += quantity * price
            block.gross[k] += abs(quantity) * price


@compiled
def finance(block: Any, holdings: Any, rules: Rules, lanes: int) -> None:
    """Borrow, interest and funding on what is carried over the interval (0)."""
    for k in range(lanes):
        block.short[k] = 0.0
        block.paid[k] = 0.0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            worth = holding.quantity[k] * holding.price[NOW, k]
            block.short[k] -= worth if worth < 0.0 else 0.0
            constant = rules.funding_rate * block.fundings[k] if rules.funding_rate != 0.0 else 0.0
            funding = holding.funding[k] + constant
            paid = worth * funding
            block.paid[k] += paid if funding != 0.0 else 0.0
    for k in range(lanes):
        cash = block.cash[k]
        short = block.short[k]
        paid = block.paid[k]
        elapsed_ms = block.elapsed_ms[k]
        rate = rules.borrow_rate * short
        owing = rate - rules.interest_rate * cash
        earning = rate - rules.cash_rate * (cash - short)
        earns = (rules.cash_rate > 0.0) & (cash > short)
        rate = owing if cash < 0.0 else (earning if earns else rate)
        interest = elapsed_ms / YEAR_MS * rate
        paid += interest if rate != 0.0 else 0.0
        block.financing[k] = paid
        block.cash[k] = cash - paid


@compiled
def mark(block: Any, holdings: Any, lanes: int) -> None:
    """Equity at the close; at or below zero it is exactly zero, for good (5)."""
    value(block, holdings, CLOSE, lanes)
    for k in range(lanes):
        equity = block.worth[k]
        cash = block.cash[k]
        block.peak_equity[k] = max(block.peak_equity[k], equity)
        ruined = equity <= 0.0
        block.equity[k] = 0.0 if ruined else equity
        block.cash[k] = 0.0 if ruined else cash
        block.flag[k] = 1.0 if ruined else 0.0
    if choose(block, block.flag, lanes) == 0:
        return
    for n in range(holdings.shape[0]):
        for k in range(lanes):
            flatten_lane(holdings[n], k, block.flag[k])


@compiled
def flatten_lane(holding: Any, k: int, flag: float) -> None:
    """No position, so no entry and no levels, if flagged."""
    quantity = holding.quantity[k]
    entry = holding.entry_price[k]
    stop = holding.stop_price[k]
    take = holding.take_price[k]
    holding.quantity[k] = 0.0 if flag != 0.0 else quantity
    holding.entry_price[k] = np.nan if flag != 0.0 else entry
    holding.stop_price[k] = np.nan if flag != 0.0 else stop
    holding.take_price[k] = np.nan if flag != 0.0 else take
