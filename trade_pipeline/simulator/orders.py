"""What an account wants, and how that trades at the next open.

Compiled functions on the lanes of a block, as in `accounting`; numbers in comments are sections of
docs/simulator.md. Start at `Orders` and `trade_orders`.
"""

from typing import Any, NamedTuple

import numpy as np

from trade_pipeline.simulator.accounting import ORDER, fill, value
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import to_lot
from trade_pipeline.simulator.lanes import NOW, OPEN
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
def bracket_levels(
    side: float, entry: float, tick_size: float, stop_fraction: float, take_fraction: float
) -> tuple[float, float]:
    """Stop and take from the average entry and an order's fractions (3); NaN stays NaN.

    `side` is 1 for a long position, -1 for a short one.
    """
    stop = entry * (1.0 - side * stop_fraction)
    take = entry * (1.0 + side * take_fraction)
    if tick_size > 0:  # away from the entry: a long's stop down and take up, a short's mirrored
        stop = side * np.floor(side * stop / tick_size) * tick_size
        take = side * np.ceil(side * take / tick_size) * tick_size
    return stop if stop > 0 else np.nan, take if take > 0 else np.nan


@compiled
def orders_between(orders: Orders, a: int, b: int) -> Orders:
    """Those of accounts [a, b)."""
    return Orders(
        orders.target_weight[a:b],
        orders.hold[a:b],
        orders.stop_fraction[a:b],
        orders.take_fraction[a:b],
    )


@compiled
def read_orders(holdings: Any, orders: Orders, lanes: int) -> None:
    """The accounts' orders into the lanes."""
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        for k in range(lanes):
            holding.target_weight[k] = orders.target_weight[k, n]
            holding.hold[k] = orders.hold[k, n]
            holding.stop_fraction[k] = orders.stop_fraction[k, n]
            holding.take_fraction[k] = orders.take_fraction[k, n]


@compiled
def choose_targets(block: Any, holdings: Any, rules: Rules, lanes: int) -> None:
    """Target quantities under the position and turnover caps (1); `block.equity` is at hand."""
    for k in range(lanes):
        block.wanted[k] = 0.0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        lot_size = rules.steps[n].lot_size
        for k in range(lanes):
            equity = block.equity[k]
            held = holding.quantity[k]
            close = holding.price[NOW, k]
            weight = holding.target_weight[k]
            hold = holding.hold[k] != 0.0
            weight = min(max(weight, rules.lowest_weight), rules.highest_weight)
            target = to_lot(weight * equity / close, lot_size)
            small = abs(target - held) * close < rules.no_trade_band * equity
            kept = hold | (small & (held != 0.0) & (target != 0.0))
            target = held if kept else target
            holding.target[k] = target
            block.wanted[k] += abs(target - held) * close
    if rules.max_turnover > 0:
        for n in range(holdings.shape[0]):
            holding = holdings[n]
            lot_size = rules.steps[n].lot_size
            for k in range(lanes):
                most = rules.max_turnover * block.equity[k]
                turnover = block.wanted[k]
                held = holding.quantity[k]
                target = holding.target[k]
                change = most / turnover * (target - held)
                cut = held + to_lot(change, lot_size)
                holding.target[k] = cut if (turnover > most) & (target != held) else target


@compiled
def legs(
    held: float,
    target: float,
    rules: Rules,
    lot_size: float,
    min_notional: float,
    price: float,
    volume: float,
) -> tuple[float, float]:
    """Sizes of the reducing leg and of the increase, signed by its direction (1, 2)."""
    same_side = ((held > 0) & (target > 0)) | ((held < 0) & (target < 0))
    kept = min(abs(held), abs(target)) if same_side else 0.0
    reduction = abs(held) - kept
    increase = abs(target) - kept
    if rules.participation > 0:
        limit = rules.participation * volume
        cut = to_lot(limit, lot_size)
        rest = to_lot(limit - reduction, lot_size)
        increase = rest if increase > limit - reduction else increase
        increase = 0.0 if reduction > limit else increase  # a flip goes through zero or not at all
        reduction = cut if reduction > limit else reduction
    trades = (reduction * price >= min_notional) | (reduction >= abs(held))
    return reduction if trades else 0.0, increase if target > 0 else -increase


@compiled
def trade_orders(block: Any, holdings: Any, records: Any, rules: Rules, lanes: int) -> None:
    """All reductions, then all increases under the leverage cap, at the open (2, 3)."""
    for k in range(lanes):
        block.wanted[k] = 0.0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        lot_size = rules.steps[n].lot_size
        min_notional = rules.steps[n].min_notional
        for k in range(lanes):
            held = holding.quantity[k]
            target = holding.target[k]
            price = holding.price[OPEN, k]
            volume = holding.volume[k]
            target = target if holding.traded[k] != 0.0 else held
            reduction, increase = legs(held, target, rules, lot_size, min_notional, price, volume)
            holding.increase[k] = increase
            block.wanted[k] += abs(increase) * price
            holding.trade[k] = -reduction if held > 0 else reduction
            holding.at[k] = price
            holding.resting[k] = 0.0
            holding.reason[k] = ORDER
            holding.set_now[k] = 0.0
        fill(block, holding, records, rules, n, lanes)
    value(block, holdings, OPEN, lanes)
    for k in range(lanes):
        gross = block.gross[k]
        wanted = block.wanted[k]
        most = rules.max_leverage * block.worth[k]
        scaled = (wanted != 0.0) & (gross + wanted > most)
        part = max(0.0, most - gross) / wanted
        block.flag[k] = 1.0 if scaled else 0.0
        block.part[k] = part if scaled else 1.0
    for n in range(holdings.shape[0]):
        holding = holdings[n]
        lot_size = rules.steps[n].lot_size
        tick_size = rules.steps[n].tick_size
        min_notional = rules.steps[n].min_notional
        for k in range(lanes):
            quantity = holding.increase[k]
            price = holding.price[OPEN, k]
            cut = to_lot(quantity * block.part[k], lot_size)
            quantity = cut if block.flag[k] != 0.0 else quantity
            trades = abs(quantity) * price >= min_notional
            holding.trade[k] = quantity if trades else 0.0
        if fill(block, holding, records, rules, n, lanes) == 0:
            continue
        for k in range(lanes):
            grown = holding.trade[k] != 0.0
            side = 1.0 if holding.quantity[k] > 0 else -1.0
            entry = holding.entry_price[k]
            stop_before = holding.stop_price[k]
            take_before = holding.take_price[k]
            stop, take = bracket_levels(
                side, entry, tick_size, holding.stop_fraction[k], holding.take_fraction[k]
            )
            holding.set_now[k] = 1.0 if grown else 0.0
            holding.stop_price[k] = stop if grown else stop_before
            holding.take_price[k] = take if grown else take_before
