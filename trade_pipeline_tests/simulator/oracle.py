"""The oracle of the simulator: one environment, bar by bar, in plain python floats and lists.

Written from docs/simulator.md alone and slow on purpose: it shares no line, no array and no
assumption with the kernel, so that what both agree on was said by the specification.
Only the order of rounding, which the page leaves open, follows the kernel (`equity_at`, the fee).
It must not import the kernel. Start at `step`; its numbered comments are the page's sections.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

NONE = math.nan  # no entry, no level, no fraction; every comparison with it is false


class Bar(NamedTuple):  # one grid row; every list has one entry an instrument
    close_ts: int
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]
    traded: list[bool]


class Order(NamedTuple):  # what the account asks of one instrument
    target_weight: float
    hold: bool = False
    stop_fraction: float = NONE
    take_fraction: float = NONE


class Fill(NamedTuple):
    instrument: int
    quantity: float  # signed
    price: float
    fee: float
    slippage: float
    reason: str


class Account:
    """State of one environment, what its last step did, and how often each rule has ever fired."""

    def __init__(self, instruments: int, equity: float, rules: Any) -> None:
        # Rules are whatever has the named numbers: importing the kernel's would be too much trust.
        self.instruments, self.rules = instruments, rules
        self.equity = self.peak_equity = equity
        self.terminated, self.ambiguous, self.seen = False, 0, Counter[str]()
        self.start_flat(equity)
        self.forget_last_step()

    def start_flat(self, cash: float) -> None:
        self.cash, self.quantity = cash, [0.0] * self.instruments
        self.entry, self.stop, self.take = ([NONE] * self.instruments for _ in range(3))

    def forget_last_step(self) -> None:
        self.fills: list[Fill] = []
        self.fees = self.slippage = self.financing = self.traded_notional = 0.0

    def side(self, n: int) -> float:
        return -1.0 if self.quantity[n] < 0.0 else 1.0

    def equity_at(self, price: list[float]) -> float:
        return sum((q * p for q, p in zip(self.quantity, price, strict=True)), self.cash)

    def exposure(self, price: list[float]) -> float:
        return sum(abs(q) * p for q, p in zip(self.quantity, price, strict=True))

    def margin_breached(self, price: list[float]) -> bool:
        need = self.rules.maintenance_margin * self.exposure(price)
        return self.equity_at(price) < need

    def liquidation_level(self) -> float:
        quantity, margin = self.quantity[0], self.rules.maintenance_margin
        if quantity < 0.0:
            return self.cash / (abs(quantity) * (1.0 + margin))
        if quantity > 0.0 and self.cash < 0.0:
            return -self.cash / (quantity * (1.0 - margin))
        return NONE

    def at_stop(self, n: int, price: float) -> bool:
        return self.side(n) * price <= self.side(n) * self.stop[n]

    def at_take(self, n: int, price: float) -> bool:
        return self.side(n) * price >= self.side(n) * self.take[n]

    def to_lot(self, quantity: float) -> float:
        lot = self.rules.lot_size
        return quantity if lot == 0.0 else math.trunc(quantity / lot) * lot

    def limited(self, leg: float, most: float) -> float:
        if abs(leg) > most:
            leg = self.to_lot(math.copysign(most, leg))
            self.seen["partial" if leg != 0.0 else "cut to nothing"] += 1
        return leg

    def too_small(self, leg: float, price: float) -> bool:
        small = leg != 0.0 and abs(leg) * price < self.rules.min_notional
        self.seen["minimum notional"] += small
        return small

    def trade(self, n: int, quantity: float, reference: float, reason: str) -> None:
        """Fill a signed quantity at a reference price, slippage against the trader."""
        if quantity == 0.0:
            return
        slip = 0.0 if reason == "take" else self.rules.slippage_bps / 1e4
        price = reference * (1.0 + slip) if quantity > 0.0 else reference * (1.0 - slip)
        fee = self.rules.fee_bps / 1e4 * (abs(quantity) * price)
        slippage, held = abs(quantity) * abs(price - reference), self.quantity[n]
        if held == 0.0:
            self.entry[n] = price
        elif held * quantity > 0.0:
            self.seen["growth"] += 1
            paid = abs(held) * self.entry[n] + abs(quantity) * price
            self.entry[n] = paid / (abs(held) + abs(quantity))
        self.quantity[n] = held + quantity
        self.cash -= quantity * price + fee
        self.fees += fee
        self.slippage += slippage
        self.traded_notional += abs(quantity) * price
        self.fills.append(Fill(n, quantity, price, fee, slippage, reason))
        self.seen[reason] += 1
        if self.quantity[n] == 0.0:
            self.entry[n] = self.stop[n] = self.take[n] = NONE

    def set_brackets(self, n: int, order: Order) -> None:
        side, tick = self.side(n), self.rules.tick_size
        stop, take = (self.stop, -side, order.stop_fraction), (self.take, side, order.take_fraction)
        for levels, away, fraction in (stop, take):
            level = self.entry[n] * (1.0 + away * fraction)
            if tick > 0.0 and not math.isnan(level):
                level = (math.ceil if away > 0.0 else math.floor)(level / tick) * tick
            self.seen["level at or below zero"] += level <= 0.0
            levels[n] = NONE if level <= 0.0 else level

    def mark(self, price: list[float]) -> None:
        self.equity = self.equity_at(price)
        if self.equity <= 0.0:
            self.seen["ruin"] += 1
            self.terminated, self.equity = True, 0.0
            self.start_flat(0.0)
        self.peak_equity = max(self.peak_equity, self.equity)


def step(account: Account, now: Bar, then: Bar, orders: list[Order]) -> None:
    """Carry the account from the close of `now` to the close of `then`, the row after it."""
    account.forget_last_step()
    if account.terminated:
        return
    rules, seen, everything = account.rules, account.seen, range(account.instruments)
    traded = [n for n in everything if then.traded[n]]
    equity = account.equity_at(now.close)
    # 0. Financing
    years = (then.close_ts - now.close_ts) / (365 * 24 * 3600 * 1000)
    loan = max(0.0, -account.cash)
    shorts = sum(max(0.0, -account.quantity[n]) * now.close[n] for n in everything)
    account.financing = years * (rules.borrow_rate * shorts + rules.interest_rate * loan)
    account.cash -= account.financing
    # 1. Target quantity, split into a reduction and an increase
    reduction, increase = [0.0 for _ in everything], [0.0 for _ in everything]
    for n in everything:
        quantity = target = account.quantity[n]
        if not orders[n].hold:
            target = account.to_lot(orders[n].target_weight * equity / now.close[n])
        change = abs(target - quantity) * now.close[n]
        if quantity != 0.0 and target != 0.0 and change < rules.no_trade_band * equity:
            seen["no-trade band"] += target != quantity
            target = quantity
        if quantity * target < 0.0:
            reduction[n], increase[n] = -quantity, target
        elif abs(target) < abs(quantity):
            reduction[n] = target - quantity
        else:
            increase[n] = target - quantity
        seen["flip"] += quantity * target < 0.0
        seen["expired"] += target != quantity and n not in traded
    # 2. Trading at the open of `then`
    if rules.participation > 0.0:
        for n in traded:
            most = rules.participation * then.volume[n]
            reduction[n] = account.limited(reduction[n], most)
            increase[n] = account.limited(increase[n], max(0.0, most - abs(reduction[n])))
    for n in traded:
        ends_flat = account.quantity[n] + reduction[n] == 0.0
        if ends_flat or not account.too_small(reduction[n], then.open[n]):
            account.trade(n, reduction[n], then.open[n], "order")
    most = rules.max_leverage * account.equity_at(then.open)
    held = account.exposure(then.open)
    wanted = sum(abs(increase[n]) * then.open[n] for n in traded)
    if wanted > 0.0 and held + wanted > most:
        seen["leverage scaled"] += 1
        factor = max(0.0, most - held) / wanted
        increase = [account.to_lot(leg * factor) for leg in increase]
    for n in traded:
        if increase[n] != 0.0 and not account.too_small(increase[n], then.open[n]):
            account.trade(n, increase[n], then.open[n], "order")
            account.set_brackets(n, orders[n])  # 3.
    # 4a. Gaps
    for n in traded:
        stop, take = (touched(n, then.open[n]) for touched in (account.at_stop, account.at_take))
        if stop or take:
            seen["gap stop" if stop else "gap take"] += 1
            account.trade(n, -account.quantity[n], then.open[n], "stop" if stop else "take")
    # 4b. Margin at the open
    if account.margin_breached(then.open):
        for n in traded:
            seen["liquidation at the open"] += account.quantity[n] != 0.0
            account.trade(n, -account.quantity[n], then.open[n], "liquidation")
    # 4c. Stops and liquidation inside the bar
    worst, best = list(then.open), list(then.open)
    for n in traded:
        extremes = then.low[n], then.high[n]
        worst[n], best[n] = extremes if account.side(n) > 0.0 else extremes[::-1]
    stopped = [n for n in traded if account.at_stop(n, worst[n])]
    account.ambiguous += sum(account.at_take(n, best[n]) for n in stopped)
    if account.instruments > 1:
        for n in stopped:
            account.trade(n, -account.quantity[n], account.stop[n], "stop")
        if any(account.quantity[n] for n in traded) and account.margin_breached(worst):
            account.ambiguous += 1
            seen["liquidation at the extremes"] += 1
            for n in traded:
                account.trade(n, -account.quantity[n], worst[n], "liquidation")
    elif traded:
        side, level = account.side(0), account.liquidation_level()
        liquidated = side * worst[0] <= side * level  # false without a level
        if stopped and not (liquidated and side * account.stop[0] < side * level):
            seen["stop before liquidation"] += liquidated
            account.trade(0, -account.quantity[0], account.stop[0], "stop")
        elif liquidated:
            seen["liquidation at its level"] += 1
            seen["liquidation before stop"] += len(stopped)
            account.trade(0, -account.quantity[0], level, "liquidation")
    # 4d. Take-profit
    for n in traded:
        if account.at_take(n, best[n]):
            account.trade(n, -account.quantity[n], account.take[n], "take")
    account.mark(then.close)  # 5.


def close_out(account: Account, now: Bar) -> None:
    """Slice end: every position closes at the close of `now`."""
    account.forget_last_step()
    if account.terminated:
        return
    for n in range(account.instruments):
        account.trade(n, -account.quantity[n], now.close[n], "slice_end")
    account.mark(now.close)
