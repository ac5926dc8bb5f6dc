"""One account's money: fills with fee and slippage, financing, marking to market.

Compiled functions on one account: `balance` is its BALANCE record, `positions` its POSITION
records [N], `position` one of them, `prices` the arrays that `load` fills. `instruments` is N: a
caller that writes 1 gets loops without looping. Numbers in comments are sections of
docs/simulator.md. Start at `fill`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import FloatArray
from trade_pipeline.simulator.rules import Rules
from trade_pipeline.simulator.state import REASONS, VOLUME_DAYS

ORDER, STOP, TAKE, LIQUIDATION, SLICE_END = range(len(REASONS))
YEAR_MS = 365 * 86_400_000.0
DAY_MS = 86_400_000

# Rows of `prices`, float64 [PRICE_ROWS, N]: two bars as an account sees them, and room to work.
NOW, OPEN, HIGH, LOW, CLOSE, VOLUME, FUNDING, TARGET, INCREASE, EXTREME, SET_NOW, TRADED = range(12)
PRICE_ROWS = 12


@compiled
def load(prices: FloatArray, bars: Any, row: int, scale: float, instruments: int) -> None:
    """Bar `row` into `prices`, in the prices of an account with that scale."""
    for n in range(instruments):
        bar = bars[row, n]
        prices[OPEN, n] = bar.open
        prices[HIGH, n] = bar.high
        prices[LOW, n] = bar.low
        prices[CLOSE, n] = bar.close
        prices[VOLUME, n] = bar.volume
        prices[FUNDING, n] = bar.funding
        prices[TRADED, n] = bar.traded
        if scale != 1.0:
            for kind in range(OPEN, CLOSE + 1):
                prices[kind, n] *= scale
            prices[VOLUME, n] /= scale


@compiled
def to_lot(quantity: float, lot_size: float) -> float:
    """Rounded toward zero to a multiple of the lot; lot 0 leaves it."""
    return np.trunc(quantity / lot_size) * lot_size if lot_size > 0 else quantity


@compiled
def flatten(position: Any) -> None:
    """No position, so no entry and no levels."""
    position.quantity = 0.0
    position.entry_price = np.nan
    position.stop_price = np.nan
    position.take_price = np.nan


@compiled
def clear(balance: Any) -> None:
    """Forget what the last step cost and traded."""
    balance.fees = 0.0
    balance.slippage = 0.0
    balance.financing = 0.0
    balance.traded_notional = 0.0


@compiled
def choose_fee_tier(
    balance: Any, daily_volume: FloatArray, e: int, rules: Rules, close_ts: int
) -> None:
    """The rates that the volume of the last 30 days has earned (2)."""
    tiers = rules.fee_tiers
    tier = 0
    if tiers.shape[0] > 1:
        day = close_ts // DAY_MS
        passed = min(day - balance.volume_day, VOLUME_DAYS)
        for k in range(passed):
            daily_volume[e, (day - k) % VOLUME_DAYS] = 0.0
        balance.volume_day = day
        volume = 0.0
        for k in range(VOLUME_DAYS):
            volume += daily_volume[e, k]
        while tier + 1 < tiers.shape[0] and tiers[tier + 1, 0] <= volume:
            tier += 1
    balance.maker_rate = tiers[tier, 1]
    balance.taker_rate = tiers[tier, 2]


@compiled
def remember_volume(balance: Any, daily_volume: FloatArray, e: int, rules: Rules) -> None:
    """Count what the step traded towards its day."""
    if rules.fee_tiers.shape[0] > 1:
        daily_volume[e, balance.volume_day % VOLUME_DAYS] += balance.traded_notional


@compiled
def slippage_fraction(balance: Any, rules: Rules, size: float, volume: float) -> float:
    """How much worse than the market's price a trade of that size fills (2)."""
    fraction = rules.slippage
    if rules.impact > 0:
        share = size / volume if size < volume else 1.0
        fraction += rules.impact * np.sqrt(share)
    return float(balance.slippage_scale * fraction)


@compiled
def fee_of(balance: Any, rules: Rules, size: float, notional: float, resting: bool) -> float:
    """What a fill pays (2); an order that rested in the book pays as a maker."""
    rate = balance.maker_rate if resting else balance.taker_rate
    fee = rate * notional
    if rules.fee_per_share > 0:
        fee += rules.fee_per_share * size
    if rules.fee_minimum > 0:
        fee = max(fee, rules.fee_minimum)
    if rules.fee_maximum_fraction < np.inf:
        fee = min(fee, rules.fee_maximum_fraction * notional)
    return float(balance.fee_scale * fee)


@compiled
def fill(
    balance: Any,
    position: Any,
    record: Any,
    rules: Rules,
    instrument: int,
    quantity: float,
    price: float,
    volume: float,
    reason: int,
    resting: bool,
) -> None:
    """Trade a signed quantity that grows or reduces the position, never both."""
    size = abs(quantity)
    slip = 0.0 if resting else slippage_fraction(balance, rules, size, volume)
    fill_price = price * (1.0 + (slip if quantity > 0 else -slip))
    notional = size * fill_price
    fee = fee_of(balance, rules, size, notional, resting)
    slippage = size * abs(fill_price - price)

    held = position.quantity
    position.quantity = held + quantity
    if held == 0.0:
        position.entry_price = fill_price
    elif (held > 0) == (quantity > 0):
        cost = abs(held) * position.entry_price + notional
        position.entry_price = cost / (abs(held) + size)
    elif position.quantity == 0.0:
        flatten(position)
    balance.cash -= quantity * fill_price + fee
    balance.fees += fee
    balance.slippage += slippage
    balance.traded_notional += notional
    record.instrument = instrument
    record.quantity = quantity
    record.price = fill_price
    record.fee = fee
    record.slippage = slippage
    record.reason = reason


@compiled
def close_position(
    balance: Any,
    positions: Any,
    n: int,
    log: Any,
    count: int,
    rules: Rules,
    price: float,
    volume: float,
    reason: int,
    resting: bool,
) -> int:
    """Trade all of instrument n away, as fill number `count`; returns how many fills there are."""
    quantity = -positions[n].quantity
    fill(balance, positions[n], log[count], rules, n, quantity, price, volume, reason, resting)
    return count + 1


@compiled
def worth(balance: Any, positions: Any, prices: FloatArray, kind: int, instruments: int) -> float:
    """Cash and positions at the prices of that kind."""
    total = balance.cash
    for n in range(instruments):
        total += positions[n].quantity * prices[kind, n]
    return float(total)


@compiled
def gross(positions: Any, prices: FloatArray, kind: int, instruments: int) -> float:
    """Absolute position value at the prices of that kind."""
    total = 0.0
    for n in range(instruments):
        total += abs(positions[n].quantity) * prices[kind, n]
    return total


@compiled
def fundings_between(start_ms: int, end_ms: int, every_ms: int) -> int:
    """How many multiples of `every_ms` lie in [start, end)."""
    return (end_ms - 1) // every_ms - (start_ms - 1) // every_ms


@compiled
def finance(
    balance: Any,
    positions: Any,
    rules: Rules,
    prices: FloatArray,
    start_ms: int,
    end_ms: int,
    instruments: int,
) -> None:
    """Borrow, interest and funding on what is carried over the interval (0)."""
    constant = 0.0
    if rules.funding_rate != 0.0:
        fundings = fundings_between(start_ms, end_ms, rules.funding_ms)
        constant = rules.funding_rate * fundings
    short = 0.0
    paid = 0.0
    for n in range(instruments):
        value = positions[n].quantity * prices[NOW, n]
        if value < 0.0:
            short -= value
        funding = prices[FUNDING, n] + constant
        if funding != 0.0:
            paid += value * funding
    rate = rules.borrow_rate * short
    if balance.cash < 0.0:
        rate -= rules.interest_rate * balance.cash
    elif rules.cash_rate > 0.0 and balance.cash > short:
        rate -= rules.cash_rate * (balance.cash - short)
    if rate != 0.0:
        paid += (end_ms - start_ms) / YEAR_MS * rate
    balance.financing = paid
    balance.cash -= paid


@compiled
def mark(balance: Any, positions: Any, prices: FloatArray, instruments: int) -> None:
    """Equity at the close; at or below zero it is exactly zero, for good (5)."""
    balance.equity = worth(balance, positions, prices, CLOSE, instruments)
    balance.peak_equity = max(balance.peak_equity, balance.equity)
    if balance.equity <= 0.0:
        balance.equity = 0.0
        balance.cash = 0.0
        balance.terminated = True
        for n in range(instruments):
            flatten(positions[n])
