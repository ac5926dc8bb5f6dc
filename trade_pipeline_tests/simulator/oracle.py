"""The oracle of the simulator: one environment, bar by bar, in plain python floats and lists.

Written from docs/simulator.md alone and slow on purpose: it shares no line, no array and no
assumption with the kernel, so that what both agree on was said by the specification.
Only the order of rounding, which the page leaves open, follows the kernel (`equity_at`, `slip`,
`fee`, the average entry). It must not import the kernel. Start at `step`; numbers in comments are
the page's sections.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

NONE = math.nan  # no entry, no level, no fraction; every comparison with it is false
DAY_MS = 24 * 3600 * 1000
HOUR_MS = 3600 * 1000


class Bar(NamedTuple):  # one grid row; every list has one entry an instrument
    close_ts: int
    open: list[float]
    high: list[float]
    low: list[float]
    close: list[float]
    volume: list[float]
    traded: list[bool]
    funding: list[float]

    def scaled(self, k: float) -> "Bar":
        prices = ([price * k for price in prices] for prices in self[1:5])
        return Bar(self.close_ts, *prices, [v / k for v in self.volume], self.traded, self.funding)


class Rules(NamedTuple):  # the numbers of the kernel's `Rules.plain`, under the same names
    fee_bps: float = 0.0
    tiers: Sequence[tuple[float, float, float]] = ()  # volume, maker, taker; none: fee_bps
    fee_per_share: float = 0.0
    fee_minimum: float = 0.0
    fee_maximum_fraction: float = math.inf
    slippage_bps: float = 0.0
    impact_bps: float = 0.0
    borrow_rate: float = 0.0
    interest_rate: float = 0.0
    cash_rate: float = 0.0
    funding_rate: float = 0.0
    funding_hours: int = 8
    lot_size: float | Sequence[float] = 0.0
    tick_size: float | Sequence[float] = 0.0
    min_notional: float | Sequence[float] = 0.0
    participation: float = 0.0
    max_leverage: float = 1.0
    maintenance_margin: float = 0.0
    no_trade_band: float = 0.0
    max_turnover: float = 0.0
    lowest_weight: float = -math.inf
    highest_weight: float = math.inf


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


def total(numbers: Iterable[float], start: float = 0.0) -> float:
    """One after the other; `sum` rounds less from python 3.12 on."""
    for number in numbers:
        start += number
    return start


class Account:
    """State of one environment, what its last step did, and how often each rule has ever fired."""

    def __init__(self, instruments: int, equity: float, rules: Rules) -> None:
        self.instruments, self.rules = instruments, rules
        self.fee_scale = self.slippage_scale = self.price_scale = 1.0
        self.equity = self.peak_equity = equity
        self.terminated, self.ambiguous, self.seen = False, 0, Counter[str]()
        self.traded_on, self.tier = Counter[int](), 0  # notional of each UTC day; fee tier in force
        self.start_flat(equity)

    def start_flat(self, cash: float) -> None:
        self.cash, self.quantity = cash, [0.0] * self.instruments
        self.entry, self.stop, self.take = ([NONE] * self.instruments for _ in range(3))

    def begin(self, bar: Bar) -> None:
        """Forget the last step; what trades now trades on this bar, in the fee tier of its day."""
        self.fills: list[Fill] = []
        self.fees = self.slippage = self.financing = self.traded_notional = 0.0
        self.bar, self.today = bar, bar.close_ts // DAY_MS
        traded = total(self.traded_on[day] for day in range(self.today - 29, self.today + 1))
        before, self.tier = self.tier, 0
        for number, (volume, _, _) in enumerate(self.rules.tiers):
            self.tier = number if volume <= traded else self.tier
        self.seen["tier up"] += self.tier > before
        self.seen["tier falls back"] += self.tier < before

    def side(self, n: int) -> float:
        return -1.0 if self.quantity[n] < 0.0 else 1.0

    def equity_at(self, price: list[float]) -> float:
        return total((q * p for q, p in zip(self.quantity, price, strict=True)), self.cash)

    def exposure(self, price: list[float]) -> float:
        return total(abs(q) * p for q, p in zip(self.quantity, price, strict=True))

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

    def own(self, number: float | Sequence[float], n: int) -> float:
        return number[n] if isinstance(number, Sequence) else number

    def to_lot(self, n: int, quantity: float) -> float:
        lot = self.own(self.rules.lot_size, n)
        return quantity if lot == 0.0 else math.trunc(quantity / lot) * lot

    def limited(self, n: int, leg: float, most: float) -> float:
        if abs(leg) > most:
            leg = self.to_lot(n, math.copysign(most, leg))
            self.seen["partial" if leg != 0.0 else "cut to nothing"] += 1
        return leg

    def too_small(self, n: int, leg: float) -> bool:
        least = self.own(self.rules.min_notional, n)
        small = leg != 0.0 and abs(leg) * self.bar.open[n] < least
        self.seen["minimum notional"] += small
        return small

    def slip(self, n: int, quantity: float) -> float:
        rules, volume = self.rules, self.bar.volume[n]
        if rules.impact_bps == 0.0:
            return self.slippage_scale * (rules.slippage_bps / 1e4)
        share = 1.0 if volume == 0.0 else min(1.0, abs(quantity) / volume)
        self.seen["impact of all the volume" if share == 1.0 else "impact"] += 1
        impact = rules.impact_bps / 1e4 * math.sqrt(share)
        return self.slippage_scale * (rules.slippage_bps / 1e4 + impact)

    def fee(self, quantity: float, notional: float, maker: bool) -> float:
        rules = self.rules
        _, *bps = rules.tiers[self.tier] if rules.tiers else (0.0, rules.fee_bps, rules.fee_bps)
        self.seen["maker"] += maker and bps[0] != bps[1]
        fee = bps[0 if maker else 1] / 1e4 * notional + rules.fee_per_share * abs(quantity)
        self.seen["fee minimum"] += fee < rules.fee_minimum
        fee = max(fee, rules.fee_minimum)
        self.seen["fee maximum"] += fee > rules.fee_maximum_fraction * notional
        return self.fee_scale * min(fee, rules.fee_maximum_fraction * notional)

    def trade(
        self, n: int, quantity: float, reference: float, reason: str, rested: bool = False
    ) -> None:
        """Fill a signed quantity at a reference price, slippage against who did not rest."""
        if quantity == 0.0:
            return
        slip = 0.0 if rested else self.slip(n, quantity)
        price = reference * (1.0 + slip) if quantity > 0.0 else reference * (1.0 - slip)
        notional = abs(quantity) * price
        fee = self.fee(quantity, notional, maker=rested)
        slippage, held = abs(quantity) * abs(price - reference), self.quantity[n]
        if held == 0.0:
            self.entry[n] = price
        elif held * quantity > 0.0:
            self.seen["growth"] += 1
            paid = abs(held) * self.entry[n] + notional
            self.entry[n] = paid / (abs(held) + abs(quantity))
        self.quantity[n] = held + quantity
        self.cash -= quantity * price + fee
        self.fees += fee
        self.slippage += slippage
        self.traded_notional += notional
        self.fills.append(Fill(n, quantity, price, fee, slippage, reason))
        self.seen[reason] += 1
        if self.quantity[n] == 0.0:
            self.entry[n] = self.stop[n] = self.take[n] = NONE

    def set_brackets(self, n: int, order: Order) -> None:
        side, tick = self.side(n), self.own(self.rules.tick_size, n)
        stop, take = (self.stop, -side, order.stop_fraction), (self.take, side, order.take_fraction)
        for levels, away, fraction in (stop, take):
            level = self.entry[n] * (1.0 + away * fraction)
            if tick > 0.0 and not math.isnan(level):
                level = (math.ceil if away > 0.0 else math.floor)(level / tick) * tick
            self.seen["level at or below zero"] += level <= 0.0
            levels[n] = NONE if level <= 0.0 else level

    def end(self) -> None:  # 5. Mark
        self.traded_on[self.today] += self.traded_notional
        self.equity = self.equity_at(self.bar.close)
        if self.equity <= 0.0:
            self.seen["ruin"] += 1
            self.terminated, self.equity = True, 0.0
            self.start_flat(0.0)
        self.peak_equity = max(self.peak_equity, self.equity)


def financing(account: Account, now: Bar, then: Bar) -> float:
    """What carrying the account from close to close costs; income where negative."""
    rules, seen, cash = account.rules, account.seen, account.cash
    years = (then.close_ts - now.close_ts) / (365 * DAY_MS)
    shorts = total(max(0.0, -q) * p for q, p in zip(account.quantity, now.close, strict=True))
    loan, own = max(0.0, -cash), max(0.0, cash - shorts)
    seen["cash interest"] += own > 0.0 and rules.cash_rate > 0.0
    seen["short proceeds"] += shorts > 0.0 and cash > 0.0 and rules.cash_rate > 0.0
    debit = rules.borrow_rate * shorts + rules.interest_rate * loan
    interest = years * (debit - rules.cash_rate * own)
    apart = rules.funding_hours * HOUR_MS  # the stamps before `then`, less those before `now`
    stamps = (then.close_ts - 1) // apart - (now.close_ts - 1) // apart
    paid = 0.0
    for n, quantity in enumerate(account.quantity):
        rate = then.funding[n] + stamps * rules.funding_rate
        paid += quantity * now.close[n] * rate
        seen["funding from the market"] += quantity * then.funding[n] != 0.0
        seen["constant funding"] += quantity * stamps * rules.funding_rate != 0.0
        seen["no funding stamp"] += rules.funding_rate != 0.0 and stamps == 0
    seen["financing is income"] += interest + paid < 0.0
    return interest + paid


def targets(account: Account, close: list[float], orders: list[Order]) -> list[float]:
    """Section 1: the quantities wanted, decided at these closes."""
    rules, seen, quantity, wanted = account.rules, account.seen, account.quantity, list[float]()
    equity = account.equity_at(close)
    for n, order in enumerate(orders):
        target = quantity[n]
        if not order.hold:
            weight = min(max(order.target_weight, rules.lowest_weight), rules.highest_weight)
            seen["position cap"] += weight != order.target_weight
            target = account.to_lot(n, weight * equity / close[n])
        change = abs(target - quantity[n]) * close[n]
        if quantity[n] != 0.0 and target != 0.0 and change < rules.no_trade_band * equity:
            seen["no-trade band"] += target != quantity[n]
            target = quantity[n]
        wanted.append(target)
    changes = [target - held for target, held in zip(wanted, quantity, strict=True)]
    turnover = total(abs(change) * price for change, price in zip(changes, close, strict=True))
    most = rules.max_turnover * equity
    if rules.max_turnover > 0.0 and turnover > most:
        seen["turnover cap"] += 1
        for n, change in enumerate(changes):
            if change != 0.0:
                wanted[n] = quantity[n] + account.to_lot(n, most / turnover * change)
    return wanted


def step(account: Account, now: Bar, then: Bar, orders: list[Order]) -> None:
    """Carry the account from the close of `now` to the close of `then`, the row after it."""
    now, then = now.scaled(account.price_scale), then.scaled(account.price_scale)
    account.begin(then)
    if account.terminated:
        return
    rules, seen, everything = account.rules, account.seen, range(account.instruments)
    traded = [n for n in everything if then.traded[n]]
    wanted = targets(account, now.close, orders)  # 1., with the equity before financing
    account.financing = financing(account, now, then)  # 0.
    account.cash -= account.financing
    reduction, increase = [0.0 for _ in everything], [0.0 for _ in everything]
    for n, (quantity, target) in enumerate(zip(account.quantity, wanted, strict=True)):
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
            most, asked = rules.participation * then.volume[n], reduction[n]
            reduction[n] = account.limited(n, asked, most)
            if reduction[n] != asked:
                seen["flip cut before zero"] += increase[n] != 0.0
                increase[n] = 0.0
            increase[n] = account.limited(n, increase[n], max(0.0, most - abs(reduction[n])))
    for n in traded:
        ends_flat = account.quantity[n] + reduction[n] == 0.0
        if ends_flat or not account.too_small(n, reduction[n]):
            account.trade(n, reduction[n], then.open[n], "order")
    most, held = rules.max_leverage * account.equity_at(then.open), account.exposure(then.open)
    growth = total(abs(increase[n]) * then.open[n] for n in traded)
    if growth > 0.0 and held + growth > most:
        seen["leverage scaled"] += 1
        factor = max(0.0, most - held) / growth
        increase = [account.to_lot(n, leg * factor) for n, leg in enumerate(increase)]
    set_now = set[int]()
    for n in traded:
        if increase[n] != 0.0 and not account.too_small(n, increase[n]):
            account.trade(n, increase[n], then.open[n], "order")
            account.set_brackets(n, orders[n])  # 3.
            set_now.add(n)
    # 4a. Gaps
    for n in traded:
        stop, take = (touched(n, then.open[n]) for touched in (account.at_stop, account.at_take))
        if stop or take:
            seen["gap stop" if stop else "gap take"] += 1
            rested = not stop and n not in set_now
            seen["take that never rested"] += not stop and n in set_now
            reason = "stop" if stop else "take"
            account.trade(n, -account.quantity[n], then.open[n], reason, rested)
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
            account.trade(n, -account.quantity[n], account.take[n], "take", rested=True)
    account.end()


def close_out(account: Account, now: Bar) -> None:
    """Slice end: every position closes at the close of `now`."""
    now = now.scaled(account.price_scale)
    account.begin(now)
    if account.terminated:
        return
    for n in range(account.instruments):
        account.trade(n, -account.quantity[n], now.close[n], "slice_end")
    account.end()
