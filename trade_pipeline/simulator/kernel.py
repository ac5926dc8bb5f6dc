"""The one simulator kernel: what happens to an account from the close of bar t to that of t+1.

Training environments and backtests both step this; the rules are written in docs/simulator.md and
the numbers in the comments below are its sections. It knows nothing of actions, rewards,
observations or episodes. Start at `step`, then read `_step_one`, which is one account's bar.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

from trade_pipeline.settings.experiment import EnvironmentSettings
from trade_pipeline.simulator.state import (
    FILLS_PER_INSTRUMENT,
    REASONS,
    Account,
    BoolArray,
    Fill,
    Fills,
    FloatArray,
    IntArray,
    Market,
    MarketError,
)

__all__ = [
    "IMPLEMENTATION",
    "REASONS",
    "Account",
    "BoolArray",
    "Fill",
    "Fills",
    "FloatArray",
    "IntArray",
    "Market",
    "MarketError",
    "Orders",
    "Rules",
    "close_out",
    "compiled",
    "restart",
    "step",
]

IMPLEMENTATION = 1

ORDER, STOP, TAKE, LIQUIDATION, SLICE_END = range(len(REASONS))
YEAR_MS = 365 * 86_400_000.0

# `Rules`, `Orders` and `Bars` live in this file because numba's cache notices a change of this
# file, and of a record type, but not of a tuple's field order elsewhere.


class Rules(NamedTuple):
    """Costs and limits as plain floats; meanings and units as in `CostSettings`."""

    fee_bps: float = 0.0
    slippage_bps: float = 0.0
    borrow_rate: float = 0.0
    interest_rate: float = 0.0
    lot_size: float = 0.0
    tick_size: float = 0.0
    min_notional: float = 0.0
    participation: float = 0.0
    max_leverage: float = 1.0
    maintenance_margin: float = 0.0
    no_trade_band: float = 0.0

    @classmethod
    def of(cls, settings: EnvironmentSettings) -> "Rules":
        """The rules of an experiment's environment."""
        return cls(
            **{name: float(value) for name, value in settings.costs.model_dump().items()},
            max_leverage=float(settings.max_leverage),
            maintenance_margin=float(settings.maintenance_margin),
            no_trade_band=float(settings.no_trade_band),
        )


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


class Bars(NamedTuple):
    """The market's arrays as the kernel takes them; see `Market`."""

    close_ts: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    traded: BoolArray


Compiled = TypeVar("Compiled", bound=Callable[..., Any])


def compiled(function: Compiled) -> Compiled:
    """Compile with numba, cached on disk; no fastmath, so the same inputs give the same bits.

    Each option is worth a multiple of the arithmetic. `_nrt=False`: no counting of references to
    each array argument of each call; nothing compiled here may allocate. `forceinline`: no copying
    of array headers between the small functions. `error_model="numpy"`: no checks for division by
    zero, which no divisor here can be.
    """
    options: dict[str, Any] = {"_nrt": False, "forceinline": True, "error_model": "numpy"}
    return cast(Compiled, numba.njit(cache=True, **options)(function))


def step(
    account: Account, market: Market, row: IntArray, orders: Orders, rules: Rules, fills: Fills
) -> None:
    """Carry every account from the close of `row` to the close of the next bar, in place.

    Args:
        account: E accounts; the terminated ones stay as they are.
        market: the bars.
        row: int64 [E] row t of each account, whose close has been seen; t + 1 must exist.
        orders: decided on that close.
        rules: costs and limits.
        fills: cleared, then filled with what this step traded.

    Raises:
        ValueError: if a shape or a row does not fit, or a weight is not a number.
    """
    _check_shapes(account, market, row, fills)
    for name, array in zip(Orders._fields, orders, strict=True):
        if array.shape != account.quantity.shape:
            raise ValueError(
                f"{name} has shape {array.shape}; [E, N] = {account.quantity.shape} is expected"
            )
    wrong = _first_wrong(row, orders, market.rows - 1)
    if wrong >= 0:
        environment, instrument = divmod(int(wrong), market.instruments)
        raise ValueError(
            f"environment {environment}: row {row[environment]} must lie in "
            f"[0, {market.rows - 1}), and the target weight of instrument {instrument}, "
            f"{orders.target_weight[environment, instrument]}, must be a finite number"
        )
    _step(
        account.balances,
        account.positions,
        fills.count,
        fills.records,
        rules,
        orders,
        Bars(*(getattr(market, name) for name in Bars._fields)),
        row,
        np.empty((1, market.instruments)),
    )


def close_out(account: Account, market: Market, row: IntArray, rules: Rules, fills: Fills) -> None:
    """Close every position at the close of `row` (a slice's last), with costs, in place.

    Args:
        account: E accounts; `fees` and the like then describe this closing alone.
        market: the bars.
        row: int64 [E] the row whose close is traded.
        rules: costs and limits.
        fills: cleared, then filled with the closing trades.

    Raises:
        ValueError: if a shape or a row does not fit.
    """
    _check_shapes(account, market, row, fills)
    if row.size and not (row.min() >= 0 and row.max() < market.rows):
        raise ValueError(f"rows {row.min()} to {row.max()} must lie in [0, {market.rows})")
    _close_out(
        account.balances,
        account.positions,
        fills.count,
        fills.records,
        rules,
        row,
        market.close,
    )


def restart(
    account: Account,
    market: Market,
    index: IntArray,
    row: IntArray,
    orders: Orders,
    rules: Rules,
    equity: float,
) -> None:
    """Begin new episodes in place: each account owns `equity`, in the position ordered.

    The position was taken at the close of its row without cost, brackets anchored there; weights
    beyond the leverage cap are scaled down to it. `hold` starts flat.

    Args:
        account: E accounts.
        market: the bars.
        index: int64 [K] accounts that begin.
        row: int64 [K] their first decision rows.
        orders: [K, N] positions to begin with.
        rules: costs and limits.
        equity: quote currency.
    """
    _restart(account.balances, account.positions, rules, orders, index, row, market.close, equity)


def _check_shapes(account: Account, market: Market, row: IntArray, fills: Fills) -> None:
    environments, instruments = account.quantity.shape
    if instruments != market.instruments:
        raise ValueError(
            f"the account holds {instruments} instruments, the market {market.instruments}"
        )
    if row.shape != (environments,):
        raise ValueError(f"row has shape {row.shape}; [E] = ({environments},) is expected")
    if fills.price.shape != (environments, FILLS_PER_INSTRUMENT * instruments):
        raise ValueError(
            f"fills has shape {fills.price.shape}; make it with "
            f"Fills.empty({environments}, {instruments})"
        )


@compiled
def _first_wrong(row: IntArray, orders: Orders, rows: int) -> int:
    """Flat index of the first order that cannot be carried out, or -1."""
    environments, instruments = orders.hold.shape
    for e in range(environments):
        for n in range(instruments):
            finite = orders.hold[e, n] or np.isfinite(orders.target_weight[e, n])
            if not finite or row[e] < 0 or row[e] >= rows:
                return int(e * instruments + n)
    return -1


# The functions below take one account: `balance` is a BALANCE record, `positions` its POSITION
# records [N], `position` one of them, `log` its FILL records. Prices and orders come as whole
# arrays with a row, because making views costs more than the arithmetic.


@compiled
def _to_lot(quantity: float, lot_size: float) -> float:
    """Rounded toward zero to a multiple of the lot; lot 0 leaves it."""
    return np.trunc(quantity / lot_size) * lot_size if lot_size > 0 else quantity


@compiled
def _flatten(position: Any) -> None:
    """No position, so no entry and no levels."""
    position.quantity = 0.0
    position.entry_price = np.nan
    position.stop_price = np.nan
    position.take_price = np.nan


@compiled
def _clear(balance: Any) -> None:
    """Forget what the last step cost and traded."""
    balance.fees = 0.0
    balance.slippage = 0.0
    balance.financing = 0.0
    balance.traded_notional = 0.0


@compiled
def _fill(
    balance: Any,
    position: Any,
    record: Any,
    rules: Rules,
    instrument: int,
    quantity: float,
    price: float,
    reason: int,
) -> None:
    """Trade a signed quantity that grows or reduces the position, never both."""
    slip = 0.0 if reason == TAKE else rules.slippage_bps / 1e4  # a take is a resting limit order
    fill_price = price * (1.0 + slip) if quantity > 0 else price * (1.0 - slip)
    size = abs(quantity)
    notional = size * fill_price
    fee = rules.fee_bps / 1e4 * notional
    slippage = size * abs(fill_price - price)

    held = position.quantity
    balance.cash -= quantity * fill_price + fee
    position.quantity = held + quantity
    if held == 0.0:
        position.entry_price = fill_price
    elif (held > 0) == (quantity > 0):
        cost = abs(held) * position.entry_price + notional
        position.entry_price = cost / (abs(held) + size)
    elif position.quantity == 0.0:
        _flatten(position)

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
def _set_brackets(position: Any, rules: Rules, stop_fraction: float, take_fraction: float) -> None:
    """Levels from the average entry and an order's fractions (3); NaN stays NaN."""
    side = 1.0 if position.quantity > 0 else -1.0
    stop = position.entry_price * (1.0 - side * stop_fraction)
    take = position.entry_price * (1.0 + side * take_fraction)
    tick = rules.tick_size
    if tick > 0:  # away from the entry: a long's stop down and take up, a short's mirrored
        stop = side * np.floor(side * stop / tick) * tick
        take = side * np.ceil(side * take / tick) * tick
    position.stop_price = stop if stop > 0 else np.nan
    position.take_price = take if take > 0 else np.nan


@compiled
def _worth(balance: Any, positions: Any, price: FloatArray, row: int) -> float:
    """Cash and positions at a row's prices."""
    worth = balance.cash
    for n in range(positions.shape[0]):
        worth += positions[n].quantity * price[row, n]
    return float(worth)


@compiled
def _gross(positions: Any, price: FloatArray, row: int) -> float:
    """Absolute position value at a row's prices."""
    gross = 0.0
    for n in range(positions.shape[0]):
        gross += abs(positions[n].quantity) * price[row, n]
    return gross


@compiled
def _finance(
    balance: Any, positions: Any, rules: Rules, close: FloatArray, row: int, elapsed_ms: int
) -> None:
    """Borrow and interest on what is carried over the interval (0)."""
    short = 0.0
    for n in range(positions.shape[0]):
        short += max(0.0, -positions[n].quantity) * close[row, n]
    borrowed = max(0.0, -balance.cash)
    rate = rules.borrow_rate * short + rules.interest_rate * borrowed
    balance.financing = elapsed_ms / YEAR_MS * rate
    balance.cash -= balance.financing


@compiled
def _legs(
    held: float,
    weight: float,
    rules: Rules,
    equity: float,
    close: float,
    next_open: float,
    next_volume: float,
) -> tuple[float, float]:
    """Sizes of the reducing leg and of the increase, signed by its direction (1, 2)."""
    target = _to_lot(weight * equity / close, rules.lot_size)
    both = held != 0.0 and target != 0.0
    if both and abs(target - held) * close < rules.no_trade_band * equity:
        return 0.0, 0.0
    if both and (held > 0) == (target > 0):
        reduction = max(0.0, abs(held) - abs(target))
        increase = max(0.0, abs(target) - abs(held))
    else:
        reduction = abs(held)
        increase = abs(target)
    if rules.participation > 0:
        limit = rules.participation * next_volume
        if reduction > limit:
            reduction = _to_lot(limit, rules.lot_size)
            increase = 0.0  # a flip goes through zero or not at all
        elif increase > limit - reduction:
            increase = _to_lot(limit - reduction, rules.lot_size)
    if reduction < abs(held) and reduction * next_open < rules.min_notional:
        reduction = 0.0
    return reduction, increase if target > 0 else -increase


@compiled
def _trade_orders(
    balance: Any,
    positions: Any,
    log: Any,
    rules: Rules,
    orders: Orders,
    e: int,
    row: int,
    equity: float,
    bars: Bars,
    increases: FloatArray,
) -> int:
    """All reductions, then all increases under the leverage cap, at the next open (2, 3)."""
    count = 0
    wanted = 0.0
    for n in range(positions.shape[0]):
        increases[n] = 0.0
        if orders.hold[e, n] or not bars.traded[row + 1, n]:
            continue
        held = positions[n].quantity
        price = bars.open[row + 1, n]
        reduction, increases[n] = _legs(
            held,
            orders.target_weight[e, n],
            rules,
            equity,
            bars.close[row, n],
            price,
            bars.volume[row + 1, n],
        )
        wanted += abs(increases[n]) * price
        if reduction > 0:
            signed = -reduction if held > 0 else reduction
            _fill(balance, positions[n], log[count], rules, n, signed, price, ORDER)
            count += 1
    if wanted == 0.0:
        return count
    held_gross = _gross(positions, bars.open, row + 1)
    most = rules.max_leverage * _worth(balance, positions, bars.open, row + 1)
    scaled = held_gross + wanted > most
    scale = max(0.0, most - held_gross) / wanted
    for n in range(positions.shape[0]):
        quantity = increases[n]
        price = bars.open[row + 1, n]
        if scaled:
            quantity = _to_lot(quantity * scale, rules.lot_size)
        if quantity != 0.0 and abs(quantity) * price >= rules.min_notional:
            _fill(balance, positions[n], log[count], rules, n, quantity, price, ORDER)
            count += 1
            _set_brackets(
                positions[n], rules, orders.stop_fraction[e, n], orders.take_fraction[e, n]
            )
    return count


@compiled
def _open_gaps(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    bars: Bars,
    row: int,
) -> int:
    """A bar that opens at or beyond a level trades at its open (4a); NaN levels never match."""
    for n in range(positions.shape[0]):
        position = positions[n]
        if not bars.traded[row, n] or position.quantity == 0.0:
            continue
        side = 1.0 if position.quantity > 0 else -1.0
        price = bars.open[row, n]
        stopped = side * price <= side * position.stop_price
        if stopped or side * price >= side * position.take_price:
            reason = STOP if stopped else TAKE
            _fill(balance, position, log[count], rules, n, -position.quantity, price, reason)
            count += 1
    return count


@compiled
def _liquidate(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    price: FloatArray,
    row: int,
    traded: BoolArray,
) -> int:
    """Close all that trades if margin is breached at a row's prices (4b, 4c)."""
    margin = rules.maintenance_margin * _gross(positions, price, row)
    if _worth(balance, positions, price, row) < margin:
        for n in range(positions.shape[0]):
            position = positions[n]
            if traded[n] and position.quantity != 0.0:
                quantity = -position.quantity
                _fill(balance, position, log[count], rules, n, quantity, price[row, n], LIQUIDATION)
                count += 1
    return count


@compiled
def _liquidation_level(cash: float, quantity: float, rules: Rules) -> float:
    """Where cash + q L = margin |q| L for one instrument; NaN for a long without debt."""
    if quantity > 0 and cash >= 0:
        return np.nan
    side = 1.0 if quantity > 0 else -1.0
    return -cash / (quantity * (1.0 - side * rules.maintenance_margin))


@compiled
def _inside_bar(
    balance: Any,
    positions: Any,
    log: Any,
    count: int,
    rules: Rules,
    bars: Bars,
    row: int,
    extremes: FloatArray,
) -> int:
    """Brackets and margin inside a bar, entry bar included (4); extremes is scratch [1, N]."""
    traded = bars.traded[row]
    alone = positions.shape[0] == 1
    count = _open_gaps(balance, positions, log, count, rules, bars, row)
    count = _liquidate(balance, positions, log, count, rules, bars.open, row, traded)
    for n in range(positions.shape[0]):
        position = positions[n]
        extremes[0, n] = bars.open[row, n]
        if not traded[n] or position.quantity == 0.0:
            continue
        side = 1.0 if position.quantity > 0 else -1.0
        worst = bars.low[row, n] if position.quantity > 0 else bars.high[row, n]
        best = bars.high[row, n] if position.quantity > 0 else bars.low[row, n]
        extremes[0, n] = worst
        price = position.stop_price
        reason = STOP
        closes = side * worst <= side * price
        if closes and side * best >= side * position.take_price:
            balance.ambiguous += 1
        if alone:
            level = _liquidation_level(balance.cash, position.quantity, rules)
            if side * worst <= side * level and not (closes and side * price >= side * level):
                price = level
                reason = LIQUIDATION
                closes = True
        if closes:
            _fill(balance, position, log[count], rules, n, -position.quantity, price, reason)
            count += 1
    if not alone:
        before = count
        count = _liquidate(balance, positions, log, count, rules, extremes, 0, traded)
        balance.ambiguous += 1 if count > before else 0
    for n in range(positions.shape[0]):
        position = positions[n]
        if not traded[n] or position.quantity == 0.0:
            continue
        side = 1.0 if position.quantity > 0 else -1.0
        best = bars.high[row, n] if position.quantity > 0 else bars.low[row, n]
        price = position.take_price
        if side * best >= side * price:
            _fill(balance, position, log[count], rules, n, -position.quantity, price, TAKE)
            count += 1
    return count


@compiled
def _mark(balance: Any, positions: Any, close: FloatArray, row: int) -> None:
    """Equity at the close; at or below zero it is exactly zero, for good (5)."""
    balance.equity = _worth(balance, positions, close, row)
    balance.peak_equity = max(balance.peak_equity, balance.equity)
    if balance.equity <= 0.0:
        balance.equity = 0.0
        balance.cash = 0.0
        balance.terminated = True
        for n in range(positions.shape[0]):
            _flatten(positions[n])


@compiled
def _step_one(
    balance: Any,
    positions: Any,
    log: Any,
    rules: Rules,
    orders: Orders,
    e: int,
    bars: Bars,
    row: int,
    scratch: FloatArray,
) -> int:
    """One account from the close of `row` to that of the next; returns how many fills."""
    equity = _worth(balance, positions, bars.close, row)
    elapsed_ms = bars.close_ts[row + 1] - bars.close_ts[row]
    _finance(balance, positions, rules, bars.close, row, elapsed_ms)
    count = _trade_orders(balance, positions, log, rules, orders, e, row, equity, bars, scratch[0])
    count = _inside_bar(balance, positions, log, count, rules, bars, row + 1, scratch)
    _mark(balance, positions, bars.close, row + 1)
    return count


@compiled
def _step(
    balances: Any,
    positions: Any,
    counts: IntArray,
    records: Any,
    rules: Rules,
    orders: Orders,
    bars: Bars,
    row: IntArray,
    scratch: FloatArray,
) -> None:
    """Every account in turn."""
    for e in range(row.shape[0]):
        _clear(balances[e])
        counts[e] = 0
        if not balances[e].terminated:
            counts[e] = _step_one(
                balances[e], positions[e], records[e], rules, orders, e, bars, row[e], scratch
            )


@compiled
def _close_out(
    balances: Any,
    positions: Any,
    counts: IntArray,
    records: Any,
    rules: Rules,
    row: IntArray,
    close: FloatArray,
) -> None:
    """Every position of every account, in index order."""
    for e in range(row.shape[0]):
        balance = balances[e]
        _clear(balance)
        counts[e] = 0
        if balance.terminated:
            continue
        for n in range(close.shape[1]):
            position = positions[e, n]
            if position.quantity != 0.0:
                record = records[e, counts[e]]
                price = close[row[e], n]
                _fill(balance, position, record, rules, n, -position.quantity, price, SLICE_END)
                counts[e] += 1
        _mark(balance, positions[e], close, row[e])


@compiled
def _restart(
    balances: Any,
    positions: Any,
    rules: Rules,
    orders: Orders,
    index: IntArray,
    row: IntArray,
    close: FloatArray,
    equity: float,
) -> None:
    """Every account of `index`: wiped, then given its position."""
    for k in range(index.shape[0]):
        balance = balances[index[k]]
        _clear(balance)
        balance.cash = equity
        balance.equity = equity
        balance.peak_equity = equity
        balance.ambiguous = 0
        balance.terminated = False
        gross = 0.0
        for n in range(close.shape[1]):
            _flatten(positions[index[k], n])
            if not orders.hold[k, n]:
                gross += abs(orders.target_weight[k, n])
        scale = rules.max_leverage / gross if gross > rules.max_leverage else 1.0
        for n in range(close.shape[1]):
            if orders.hold[k, n]:
                continue
            price = close[row[k], n]
            weight = scale * orders.target_weight[k, n]
            quantity = _to_lot(weight * equity / price, rules.lot_size)
            if quantity != 0.0:
                position = positions[index[k], n]
                balance.cash -= quantity * price
                position.quantity = quantity
                position.entry_price = price
                _set_brackets(
                    position, rules, orders.stop_fraction[k, n], orders.take_fraction[k, n]
                )
