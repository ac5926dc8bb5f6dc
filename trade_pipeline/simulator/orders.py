"""What an account wants, and how that trades at the next open.

Compiled functions on one account, as in `accounting`; numbers in comments are sections of
docs/simulator.md. Conditions stand in the order in which a processor guesses them best: what an
agent does next is hard to guess, and a wrong guess costs as much as all the arithmetic of a fill.
Start at `Orders` and `trade_orders`.
"""

from typing import Any, NamedTuple

import numpy as np

from trade_pipeline.simulator.accounting import (
    INCREASE,
    NOW,
    OPEN,
    ORDER,
    SET_NOW,
    TARGET,
    TRADED,
    VOLUME,
    fill,
    gross,
    to_lot,
    worth,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import BoolArray, FloatArray
from trade_pipeline.simulator.rules import Rules


class Orders(NamedTuple):
    """What each account wants, decided on the close of its row.

    Attributes:
        target_weight: float64 [E, N] signed fraction of equity; ignored where held.
        hold: bool [E, N] keep quantity and brackets as they are.
        stop_fraction: float64 [E, N] stop distance as a fraction of the entry; NaN is none.
        take_fraction: float64 [E, N] likewise for the take-profit.
    """

    target_weight: FloatArray
    hold: BoolArray
    stop_fraction: FloatArray
    take_fraction: FloatArray

    @classmethod
    def room(cls, environments: int, instruments: int) -> "Orders":
        """Arrays to write orders into."""
        shape = (environments, instruments)
        return cls(np.zeros(shape), np.zeros(shape, np.bool_), np.zeros(shape), np.zeros(shape))


@compiled
def set_brackets(
    position: Any, tick_size: float, stop_fraction: float, take_fraction: float
) -> None:
    """Levels from the average entry and an order's fractions (3); NaN stays NaN."""
    side = 1.0 if position.quantity > 0 else -1.0
    stop = position.entry_price * (1.0 - side * stop_fraction)
    take = position.entry_price * (1.0 + side * take_fraction)
    if tick_size > 0:  # away from the entry: a long's stop down and take up, a short's mirrored
        stop = side * np.floor(side * stop / tick_size) * tick_size
        take = side * np.ceil(side * take / tick_size) * tick_size
    position.stop_price = stop if stop > 0 else np.nan
    position.take_price = take if take > 0 else np.nan


@compiled
def choose_targets(
    positions: Any,
    rules: Rules,
    orders: Orders,
    e: int,
    equity: float,
    prices: FloatArray,
    instruments: int,
) -> None:
    """Target quantities into `prices[TARGET]`, under the position and turnover caps (1)."""
    turnover = 0.0
    for n in range(instruments):
        held = positions[n].quantity
        close = prices[NOW, n]
        weight = orders.target_weight[e, n]
        weight = min(max(weight, rules.lowest_weight), rules.highest_weight)
        target = to_lot(weight * equity / close, rules.steps[n].lot_size)
        small = abs(target - held) * close < rules.no_trade_band * equity
        kept = orders.hold[e, n] | (small & (held != 0.0) & (target != 0.0))
        target = held if kept else target
        prices[TARGET, n] = target
        turnover += abs(target - held) * close
    if rules.max_turnover > 0 and turnover > rules.max_turnover * equity:
        part = rules.max_turnover * equity / turnover
        for n in range(instruments):
            held = positions[n].quantity
            if prices[TARGET, n] != held:
                change = part * (prices[TARGET, n] - held)
                prices[TARGET, n] = held + to_lot(change, rules.steps[n].lot_size)


@compiled
def legs(
    held: float, target: float, rules: Rules, n: int, prices: FloatArray
) -> tuple[float, float]:
    """Sizes of the reducing leg and of the increase, signed by its direction (1, 2)."""
    same_side = ((held > 0) & (target > 0)) | ((held < 0) & (target < 0))
    kept = min(abs(held), abs(target)) if same_side else 0.0
    reduction = abs(held) - kept
    increase = abs(target) - kept
    if rules.participation > 0:
        limit = rules.participation * prices[VOLUME, n]
        if reduction > limit:
            reduction = to_lot(limit, rules.steps[n].lot_size)
            increase = 0.0  # a flip goes through zero or not at all
        elif increase > limit - reduction:
            increase = to_lot(limit - reduction, rules.steps[n].lot_size)
    if reduction * prices[OPEN, n] < rules.steps[n].min_notional and reduction < abs(held):
        reduction = 0.0
    return reduction, increase if target > 0 else -increase


@compiled
def trade_orders(
    balance: Any,
    positions: Any,
    log: Any,
    rules: Rules,
    orders: Orders,
    e: int,
    prices: FloatArray,
    instruments: int,
) -> int:
    """All reductions, then all increases under the leverage cap, at the open (2, 3)."""
    count = 0
    wanted = 0.0
    for n in range(instruments):
        prices[INCREASE, n] = 0.0
        prices[SET_NOW, n] = 0.0
        if prices[TRADED, n] == 0.0:
            continue
        held = positions[n].quantity
        price = prices[OPEN, n]
        volume = prices[VOLUME, n]
        reduction, prices[INCREASE, n] = legs(held, prices[TARGET, n], rules, n, prices)
        wanted += abs(prices[INCREASE, n]) * price
        if reduction > 0:
            signed = -reduction if held > 0 else reduction
            fill(balance, positions[n], log[count], rules, n, signed, price, volume, ORDER, False)
            count += 1
    if wanted == 0.0:
        return count
    held_gross = gross(positions, prices, OPEN, instruments)
    most = rules.max_leverage * worth(balance, positions, prices, OPEN, instruments)
    scaled = held_gross + wanted > most
    scale = max(0.0, most - held_gross) / wanted
    for n in range(instruments):
        quantity = prices[INCREASE, n]
        price = prices[OPEN, n]
        if scaled:
            quantity = to_lot(quantity * scale, rules.steps[n].lot_size)
        if quantity != 0.0 and abs(quantity) * price >= rules.steps[n].min_notional:
            volume = prices[VOLUME, n]
            fill(balance, positions[n], log[count], rules, n, quantity, price, volume, ORDER, False)
            count += 1
            prices[SET_NOW, n] = 1.0
            set_brackets(
                positions[n],
                rules.steps[n].tick_size,
                orders.stop_fraction[e, n],
                orders.take_fraction[e, n],
            )
    return count
