"""Stops, take-profits and liquidation inside a bar.

Compiled functions on the lanes of a block, as in `accounting`; letters in comments are parts of
section 4 of docs/simulator.md. Start at `inside_bar`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.accounting import (
    LIQUIDATION,
    STOP,
    TAKE,
    choose,
    fill,
    value,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.lanes import EXTREME, HIGH, LOW, OPEN
from trade_pipeline.simulator.rules import Rules


@compiled
def open_gaps(block: Any, holdings: Any, records: Any, rules: Rules, lanes: int) -> None:
    """A bar that opens at or beyond a level trades at its open (a); NaN levels never match.

    A take-profit that this bar's order set never rested: where the open has crossed it already, an
    agent could otherwise leave at the open without slippage by growing a little.
    """
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            quantity = holding.quantity[k]
            price = holding.price[OPEN, k]
            stop = holding.stop_price[k]
            take = holding.take_price[k]
            set_now = holding.set_now[k] != 0.0
            side = 1.0 if quantity > 0 else -1.0
            stopped = side * price <= side * stop
            closes = stopped | (side * price >= side * take)
            closes = closes & (holding.traded[k] != 0.0)
            rested = (not stopped) & (not set_now)
            holding.trade[k] = -quantity if closes else 0.0
            holding.at[k] = price
            holding.resting[k] = 1.0 if rested else 0.0
            holding.reason[k] = STOP if stopped else TAKE
        fill(block, holding, records, rules, n, lanes)


@compiled
def liquidate(block: Any, holdings: Any, records: Any, rules: Rules, kind: int, lanes: int) -> int:
    """Close all that trades if margin is breached at the prices of that kind (b, c).

    Returns:
        For how many accounts it is.
    """
    value(block, holdings, kind, lanes)
    for k in range(lanes):
        margin = rules.maintenance_margin * block.gross[k]
        block.flag[k] = 1.0 if block.worth[k] < margin else 0.0
    breached = choose(block, block.flag, lanes)
    if breached > 0:
        for n in range(holdings.shape[0]):
            holding = holdings[n]
            for k in range(lanes):
                quantity = holding.quantity[k]
                closes = (block.flag[k] != 0.0) & (holding.traded[k] != 0.0)
                holding.trade[k] = -quantity if closes else 0.0
                holding.at[k] = holding.price[kind, k]
                holding.resting[k] = 0.0
                holding.reason[k] = LIQUIDATION
            fill(block, holding, records, rules, n, lanes)
    return breached


@compiled
def liquidation_level(cash: float, quantity: float, rules: Rules) -> float:
    """Where cash + q L = margin |q| L for one instrument; NaN for a long without debt."""
    side = 1.0 if quantity > 0 else -1.0
    level = -cash / (quantity * (1.0 - side * rules.maintenance_margin))
    return np.nan if (quantity > 0) & (cash >= 0) else level


@compiled
def touch_stops(block: Any, holdings: Any, records: Any, rules: Rules, lanes: int) -> None:
    """Stops that the bar touches; alone, an instrument may reach its liquidation before (c)."""
    alone = holdings.shape[0] == 1
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            quantity = holding.quantity[k]
            opened = holding.price[OPEN, k]
            low = holding.price[LOW, k]
            high = holding.price[HIGH, k]
            stop = holding.stop_price[k]
            take = holding.take_price[k]
            cash = block.cash[k]
            long = quantity > 0
            side = 1.0 if long else -1.0
            worst = low if long else high
            best = high if long else low
            open_now = (quantity != 0.0) & (holding.traded[k] != 0.0)
            holding.price[EXTREME, k] = worst if open_now else opened
            closes = open_now & (side * worst <= side * stop)
            both = closes & (side * best >= side * take)
            block.ambiguous[k] += 1.0 if both else 0.0
            # The level counts only where the margin at the worst price leaves room for no more
            # than a rounding error.
            at_worst = quantity * worst
            margin = rules.maintenance_margin * abs(at_worst)
            room = cash + at_worst - margin
            level = liquidation_level(cash, quantity, rules)
            reached = side * worst <= side * level
            near = open_now & (room <= 1e-9 * (abs(cash) + abs(at_worst)))
            nearer = not (closes & (side * stop >= side * level))
            liquidated = near & reached & nearer if alone else False
            holding.trade[k] = -quantity if closes | liquidated else 0.0
            holding.at[k] = level if liquidated else stop
            holding.resting[k] = 0.0
            holding.reason[k] = LIQUIDATION if liquidated else STOP
        fill(block, holding, records, rules, n, lanes)


@compiled
def touch_takes(block: Any, holdings: Any, records: Any, rules: Rules, lanes: int) -> None:
    """Take-profits that the bar touches (d)."""
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            quantity = holding.quantity[k]
            low = holding.price[LOW, k]
            high = holding.price[HIGH, k]
            take = holding.take_price[k]
            long = quantity > 0
            side = 1.0 if long else -1.0
            best = high if long else low
            closes = (side * best >= side * take) & (holding.traded[k] != 0.0)
            holding.trade[k] = -quantity if closes else 0.0
            holding.at[k] = take
            holding.resting[k] = 1.0
            holding.reason[k] = TAKE
        fill(block, holding, records, rules, n, lanes)


@compiled
def inside_bar(block: Any, holdings: Any, records: Any, rules: Rules, lanes: int) -> None:
    """Brackets and margin inside the bar, entry bar included."""
    open_gaps(block, holdings, records, rules, lanes)
    liquidate(block, holdings, records, rules, OPEN, lanes)
    touch_stops(block, holdings, records, rules, lanes)
    if holdings.shape[0] > 1:
        for k in range(lanes):
            block.part[k] = block.fills[k]
        if liquidate(block, holdings, records, rules, EXTREME, lanes) > 0:
            for k in range(lanes):
                block.ambiguous[k] += 1.0 if block.fills[k] > block.part[k] else 0.0
    touch_takes(block, holdings, records, rules, lanes)
