"""The one simulator kernel: what happens to an account from the close of bar t to that of t+1.

Training environments and backtests both step this; the rules are written in docs/simulator.md. It
knows nothing of actions, rewards, observations or episodes. Start at `step`, then read `step_one`,
which is one account's bar; its parts are in `accounting`, `orders` and `intrabar`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.accounting import (
    CLOSE,
    NOW,
    PRICE_ROWS,
    SLICE_END,
    VOLUME,
    choose_fee_tier,
    clear,
    close_position,
    finance,
    flatten,
    load,
    mark,
    remember_volume,
    to_lot,
    worth,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.intrabar import inside_bar
from trade_pipeline.simulator.market import (
    BoolArray,
    FloatArray,
    IntArray,
    Market,
    MarketError,
)
from trade_pipeline.simulator.orders import Orders, choose_targets, set_brackets, trade_orders
from trade_pipeline.simulator.rules import Rules
from trade_pipeline.simulator.state import (
    FILLS_PER_INSTRUMENT,
    NO_DAY,
    REASONS,
    VOLUME_DAYS,
    Account,
    Fill,
    Fills,
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
    "step",
]

IMPLEMENTATION = 2


def step(
    account: Account, market: Market, row: IntArray, orders: Orders, rules: Rules, fills: Fills
) -> None:
    """Carry every account from the close of `row` to the close of the next bar, in place.

    Args:
        account: E accounts; the terminated ones stay as they are.
        market: the bars; `market.pair(t)` with row 0 is as good as the whole with row t.
        row: int64 [E] row t of each account, whose close has been seen; t + 1 must exist.
        orders: decided on that close.
        rules: costs and limits.
        fills: cleared, then filled with what this step traded.

    Raises:
        ValueError: if a shape or a row does not fit, or a weight is not a number.
    """
    _check_shapes(account, market, row, rules, fills)
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
            f"[0, {market.rows - 1}), and of instrument {instrument} the target weight "
            f"{orders.target_weight[environment, instrument]} must be a finite number, the stop "
            f"{orders.stop_fraction[environment, instrument]} and the take "
            f"{orders.take_fraction[environment, instrument]} zero or more, or NaN for none"
        )
    _step(
        account.balances,
        account.positions,
        account.daily_volume,
        fills.count,
        fills.records,
        rules,
        orders,
        market.bars,
        row,
        np.empty((PRICE_ROWS, market.instruments)),
        several(market),
    )


def several(market: Market) -> int | None:
    """N, or None for one instrument, for which other code is compiled: without loops."""
    return None if market.instruments == 1 else market.instruments


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
    _check_shapes(account, market, row, rules, fills)
    if row.size and not (row.min() >= 0 and row.max() < market.rows):
        raise ValueError(f"rows {row.min()} to {row.max()} must lie in [0, {market.rows})")
    _close_out(
        account.balances,
        account.positions,
        account.daily_volume,
        fills.count,
        fills.records,
        rules,
        market.bars,
        row,
        np.empty((PRICE_ROWS, market.instruments)),
    )


def check_account(account: Account, instruments: int, rules: Rules) -> None:
    """Refuse accounts that a market or rules do not fit.

    Raises:
        ValueError: naming what differs.
    """
    held = account.positions.shape[1]
    if held != instruments:
        raise ValueError(f"the account holds {held} instruments, the market {instruments}")
    if len(rules.fee_tiers) > 1 and account.daily_volume.shape[1] != VOLUME_DAYS:
        raise ValueError(
            "fees have tiers, but the account keeps no daily volumes; make it with "
            "Account.start(..., fee_tiers=True)"
        )


def _check_shapes(
    account: Account, market: Market, row: IntArray, rules: Rules, fills: Fills
) -> None:
    environments, instruments = account.positions.shape
    check_account(account, market.instruments, rules)
    if rules.steps.shape != (instruments,):
        raise ValueError(
            f"the rules are for {len(rules.steps)} instruments, the market has {instruments}; "
            "make them with Rules.of(settings, instruments)"
        )
    if row.shape != (environments,):
        raise ValueError(f"row has shape {row.shape}; [E] = ({environments},) is expected")
    if fills.records.shape != (environments, FILLS_PER_INSTRUMENT * instruments):
        raise ValueError(
            f"fills has shape {fills.records.shape}; make it with "
            f"Fills.empty({environments}, {instruments})"
        )


@compiled
def _first_wrong(row: IntArray, orders: Orders, rows: int) -> int:
    """Flat index of the first order that cannot be carried out, or -1."""
    environments, instruments = orders.hold.shape
    for e in range(environments):
        for n in range(instruments):
            fine = orders.hold[e, n] or np.isfinite(orders.target_weight[e, n])
            # NaN is no level and passes both
            fine = fine and not (orders.stop_fraction[e, n] < 0 or orders.take_fraction[e, n] < 0)
            if not fine or row[e] < 0 or row[e] >= rows:
                return int(e * instruments + n)
    return -1


@compiled
def step_one(
    balance: Any,
    positions: Any,
    daily_volume: FloatArray,
    log: Any,
    rules: Rules,
    orders: Orders,
    e: int,
    bars: Any,
    row: int,
    prices: FloatArray,
    instruments: int,
) -> int:
    """One account from the close of `row` to that of the next; returns how many fills.

    Args:
        balance: its BALANCE record.
        positions: its POSITION records [N].
        daily_volume: of all accounts.
        log: its FILL records.
        rules: costs and limits.
        orders: of all accounts.
        e: which account it is.
        bars: BAR [T, N].
        row: t.
        prices: float64 [PRICE_ROWS, N] to work in.
        instruments: N.
    """
    clear(balance)
    scale = balance.price_scale
    for n in range(instruments):
        prices[NOW, n] = bars[row, n].close * scale
    load(prices, bars, row + 1, scale, instruments)
    end_ms = bars[row + 1, 0].close_ts
    choose_fee_tier(balance, daily_volume, e, rules, end_ms)
    equity = worth(balance, positions, prices, NOW, instruments)
    start_ms = bars[row, 0].close_ts
    finance(balance, positions, rules, prices, start_ms, end_ms, instruments)
    choose_targets(positions, rules, orders, e, equity, prices, instruments)
    count = trade_orders(balance, positions, log, rules, orders, e, prices, instruments)
    count = inside_bar(balance, positions, log, count, rules, prices, instruments)
    mark(balance, positions, prices, instruments)
    remember_volume(balance, daily_volume, e, rules)
    return count


@compiled
def begin_one(
    balance: Any,
    positions: Any,
    daily_volume: FloatArray,
    rules: Rules,
    orders: Orders,
    e: int,
    bars: Any,
    row: int,
    equity: float,
) -> None:
    """Wipe one account, give it `equity`, and the position ordered.

    The position was taken at the close of `row` without cost, brackets anchored there; weights
    beyond the leverage cap are scaled down to it. `hold` starts flat. The scales stay.
    """
    clear(balance)
    balance.cash = equity
    balance.equity = equity
    balance.peak_equity = equity
    balance.ambiguous = 0
    balance.terminated = False
    if rules.fee_tiers.shape[0] > 1:
        balance.volume_day = NO_DAY
        daily_volume[e, :] = 0.0
    wanted = 0.0
    for n in range(bars.shape[1]):
        flatten(positions[n])
        if not orders.hold[e, n]:
            wanted += abs(orders.target_weight[e, n])
    part = rules.max_leverage / wanted if wanted > rules.max_leverage else 1.0
    for n in range(bars.shape[1]):
        if orders.hold[e, n]:
            continue
        price = bars[row, n].close * balance.price_scale
        weight = part * orders.target_weight[e, n]
        quantity = to_lot(weight * equity / price, rules.steps[n].lot_size)
        if quantity != 0.0:
            position = positions[n]
            balance.cash -= quantity * price
            position.quantity = quantity
            position.entry_price = price
            set_brackets(
                position,
                rules.steps[n].tick_size,
                orders.stop_fraction[e, n],
                orders.take_fraction[e, n],
            )


@compiled
def fetch_bars(bars: Any, row: IntArray, first: int, last: int, prices: FloatArray) -> None:
    """Read the next bar of accounts [first, last), so that each is at hand when its turn comes.

    A step waits for its bar as long as its arithmetic takes; reads that do not depend on each
    other are waited for together.
    """
    total = 0.0
    for e in range(first, last):
        total += bars[row[e] + 1, 0].close
    prices[NOW, 0] = total  # only so that the reads are not left out as useless


@compiled
def _step(
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    counts: IntArray,
    records: Any,
    rules: Rules,
    orders: Orders,
    bars: Any,
    row: IntArray,
    prices: FloatArray,
    several: int | None,
) -> None:
    """Every account in turn; `several` is N, or None for one instrument."""
    instruments = 1 if several is None else several
    fetch_bars(bars, row, 0, row.shape[0], prices)
    for e in range(row.shape[0]):
        balance = balances[e]
        if balance.terminated:
            clear(balance)
            counts[e] = 0
        else:
            log = records[e]
            counts[e] = step_one(
                balance,
                positions[e],
                daily_volume,
                log,
                rules,
                orders,
                e,
                bars,
                row[e],
                prices,
                instruments,
            )


@compiled
def _close_out(
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    counts: IntArray,
    records: Any,
    rules: Rules,
    bars: Any,
    row: IntArray,
    prices: FloatArray,
) -> None:
    """Every position of every account, in index order."""
    for e in range(row.shape[0]):
        balance = balances[e]
        clear(balance)
        counts[e] = 0
        if balance.terminated:
            continue
        load(prices, bars, row[e], balance.price_scale, bars.shape[1])
        choose_fee_tier(balance, daily_volume, e, rules, bars[row[e], 0].close_ts)
        for n in range(bars.shape[1]):
            if positions[e, n].quantity != 0.0:
                price, volume = prices[CLOSE, n], prices[VOLUME, n]
                log, held, count = records[e], positions[e], counts[e]
                counts[e] = close_position(
                    balance, held, n, log, count, rules, price, volume, SLICE_END, False
                )
        mark(balance, positions[e], prices, bars.shape[1])
        remember_volume(balance, daily_volume, e, rules)
