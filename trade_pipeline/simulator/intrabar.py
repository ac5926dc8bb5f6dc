"""Stops, take-profits and liquidation inside a bar.

Compiled functions on one account, as in `accounting`; letters in comments are parts of section 4
of docs/simulator.md. Start at `inside_bar`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.accounting import (
    EXTREME,
    HIGH,
    LIQUIDATION,
    LOW,
    OPEN,
    SET_NOW,
    STOP,
    TAKE,
    TRADED,
    VOLUME,
    close_position,
    gross,
    worth,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import FloatArray
from trade_pipeline.simulator.rules import Rules


@compiled
def open_gaps(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    prices: FloatArray,
    instruments: int,
) -> int:
    """A bar that opens at or beyond a level trades at its open (a); NaN levels never match.

    A take-profit that this bar's order set never rested: where the open has crossed it already, an
    agent could otherwise leave at the open without slippage by growing a little.
    """
    for n in range(instruments):
        position = positions[n]
        if position.quantity == 0.0 or prices[TRADED, n] == 0.0:
            continue
        side = 1.0 if position.quantity > 0 else -1.0
        price = prices[OPEN, n]
        stopped = side * price <= side * position.stop_price
        if stopped or side * price >= side * position.take_price:
            reason = STOP if stopped else TAKE
            resting = not stopped and prices[SET_NOW, n] == 0.0
            volume = prices[VOLUME, n]
            count = close_position(
                balance, positions, n, log, count, rules, price, volume, reason, resting
            )
    return count


@compiled
def liquidate(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    prices: FloatArray,
    kind: int,
    instruments: int,
) -> int:
    """Close all that trades if margin is breached at the prices of that kind (b, c)."""
    margin = rules.maintenance_margin * gross(positions, prices, kind, instruments)
    if worth(balance, positions, prices, kind, instruments) < margin:
        for n in range(instruments):
            position = positions[n]
            if position.quantity != 0.0 and prices[TRADED, n] != 0.0:
                price = prices[kind, n]
                volume = prices[VOLUME, n]
                count = close_position(
                    balance, positions, n, log, count, rules, price, volume, LIQUIDATION, False
                )
    return count


@compiled
def liquidation_level(cash: float, quantity: float, rules: Rules) -> float:
    """Where cash + q L = margin |q| L for one instrument; NaN for a long without debt."""
    side = 1.0 if quantity > 0 else -1.0
    level = -cash / (quantity * (1.0 - side * rules.maintenance_margin))
    return np.nan if (quantity > 0) & (cash >= 0) else level


@compiled
def inside_bar(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    prices: FloatArray,
    instruments: int,
) -> int:
    """Brackets and margin inside the bar, entry bar included; returns how many fills."""
    if gross(positions, prices, OPEN, instruments) == 0.0:
        return count
    alone = instruments == 1
    count = open_gaps(balance, positions, log, count, rules, prices, instruments)
    count = liquidate(balance, positions, log, count, rules, prices, OPEN, instruments)
    for n in range(instruments):
        position = positions[n]
        prices[EXTREME, n] = prices[OPEN, n]
        if position.quantity == 0.0 or prices[TRADED, n] == 0.0:
            continue
        long = position.quantity > 0
        side = 1.0 if long else -1.0
        low = prices[LOW, n]
        high = prices[HIGH, n]
        worst = low if long else high
        best = high if long else low
        prices[EXTREME, n] = worst
        price = position.stop_price
        reason = STOP
        closes = side * worst <= side * price
        if closes and side * best >= side * position.take_price:
            balance.ambiguous += 1
        # The level costs a division: it is only worked out where the margin at the worst price
        # leaves room for no more than a rounding error.
        at_worst = position.quantity * worst
        margin = rules.maintenance_margin * abs(at_worst)
        room = balance.cash + at_worst - margin
        if alone and room <= 1e-9 * (abs(balance.cash) + abs(at_worst)):
            level = liquidation_level(balance.cash, position.quantity, rules)
            if side * worst <= side * level and not (closes and side * price >= side * level):
                price = level
                reason = LIQUIDATION
                closes = True
        if closes:
            volume = prices[VOLUME, n]
            count = close_position(
                balance, positions, n, log, count, rules, price, volume, reason, False
            )
    if not alone:
        before = count
        count = liquidate(balance, positions, log, count, rules, prices, EXTREME, instruments)
        balance.ambiguous += 1 if count > before else 0
    for n in range(instruments):
        position = positions[n]
        if position.quantity == 0.0 or prices[TRADED, n] == 0.0:
            continue
        long = position.quantity > 0
        side = 1.0 if long else -1.0
        low = prices[LOW, n]
        high = prices[HIGH, n]
        best = high if long else low
        price = position.take_price
        if side * best >= side * price:
            volume = prices[VOLUME, n]
            count = close_position(
                balance, positions, n, log, count, rules, price, volume, TAKE, True
            )
    return count
