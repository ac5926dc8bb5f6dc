"""The one simulator kernel: what happens to an account from the close of bar t to that of t+1.

Training environments and backtests both step this; the rules are written in docs/simulator.md. It
knows nothing of actions, rewards, observations or episodes. Start at `step`, then read
`step_block`, which is one bar of up to `LANES` accounts side by side; its parts are in `lanes`,
`accounting`, `orders` and `intrabar`.
"""

from typing import Any

import numpy as np

from trade_pipeline.simulator.accounting import SLICE_END, fill, finance, mark, value
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.costs import to_lot
from trade_pipeline.simulator.intrabar import inside_bar
from trade_pipeline.simulator.lanes import (
    CLOSE,
    LANES,
    NOW,
    clear,
    read_accounts,
    room,
    write_accounts,
)
from trade_pipeline.simulator.market import (
    BoolArray,
    FloatArray,
    IntArray,
    Market,
    MarketError,
)
from trade_pipeline.simulator.orders import (
    Orders,
    bracket_levels,
    choose_targets,
    orders_between,
    read_orders,
    trade_orders,
)
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
        *room(1, market.instruments),
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
        *room(1, market.instruments),
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
def step_block(
    block: Any,
    holdings: Any,
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    counts: IntArray,
    records: Any,
    rules: Rules,
    orders: Orders,
    bars: Any,
    row: IntArray,
) -> None:
    """A block of accounts from the close of their rows to that of the next.

    Args:
        block: BLOCK to work in.
        holdings: HOLDING [N] to work in.
        balances: BALANCE of the block's accounts, LANES at most; all that follow are theirs.
        positions: POSITION [.., N].
        daily_volume: as in `Account`.
        counts: int64, becomes how many fills each account has.
        records: FILL [.., 4N].
        rules: costs and limits.
        orders: what they want.
        bars: BAR [T, N].
        row: int64, t of each.
    """
    lanes = row.shape[0]
    read_accounts(block, holdings, balances, positions, daily_volume, rules, bars, row, 1)
    read_orders(holdings, orders, lanes)
    value(block, holdings, NOW, lanes)
    for k in range(lanes):
        block.equity[k] = block.worth[k]
    finance(block, holdings, rules, lanes)
    choose_targets(block, holdings, rules, lanes)
    trade_orders(block, holdings, records, rules, lanes)
    inside_bar(block, holdings, records, rules, lanes)
    mark(block, holdings, lanes)
    write_accounts(block, holdings, balances, positions, daily_volume, counts, rules)


@compiled
def flatten(position: Any) -> None:
    """No position, so no entry and no levels."""
    position.quantity = 0.0
    position.entry_price = np.nan
    position.stop_price = np.nan
    position.take_price = np.nan


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
            stop, take = bracket_levels(
                1.0 if quantity > 0 else -1.0,
                price,
                rules.steps[n].tick_size,
                orders.stop_fraction[e, n],
                orders.take_fraction[e, n],
            )
            position.stop_price = stop
            position.take_price = take


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
    blocks: Any,
    holdings: Any,
) -> None:
    """Every account, a block after the other."""
    for a in range(0, row.shape[0], LANES):
        b = min(a + LANES, row.shape[0])
        step_block(
            blocks[0],
            holdings[0],
            balances[a:b],
            positions[a:b],
            daily_volume[a:b],
            counts[a:b],
            records[a:b],
            rules,
            orders_between(orders, a, b),
            bars,
            row[a:b],
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
    blocks: Any,
    holdings: Any,
) -> None:
    """Every position of every account, in index order."""
    block = blocks[0]
    held = holdings[0]
    for a in range(0, row.shape[0], LANES):
        b = min(a + LANES, row.shape[0])
        lanes = b - a
        days = daily_volume[a:b]
        read_accounts(block, held, balances[a:b], positions[a:b], days, rules, bars, row[a:b], 0)
        for n in range(held.shape[0]):
            holding = held[n]
            for k in range(lanes):
                holding.trade[k] = -holding.quantity[k]
                holding.at[k] = holding.price[CLOSE, k]
                holding.resting[k] = 0.0
                holding.reason[k] = SLICE_END
            fill(block, holding, records[a:b], rules, n, lanes)
        mark(block, held, lanes)
        write_accounts(block, held, balances[a:b], positions[a:b], days, counts[a:b], rules)
