"""Steps an account through orders that were given ahead, in compiled code.

The same kernel as bar by bar, and the same bits. Knows nothing of strategies or tables. Start at
`trade_plan`.
"""

from typing import Any

import numpy as np

from trade_pipeline.backtest.protocol import Plan
from trade_pipeline.simulator import lanes
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.kernel import (
    Account,
    BoolArray,
    Fills,
    FloatArray,
    IntArray,
    Market,
    Orders,
    Rules,
    check_account,
    step_block,
)
from trade_pipeline.simulator.quiet import pass_bars
from trade_pipeline.simulator.recording import (
    Record,
    Recorder,
    is_full,
    record_fills,
    record_orders,
    record_state,
)

# In pieces, so that who cancels does not wait for millions of bars.
ROWS_AT_A_TIME = 2**15
AHEAD = 64  # rows looked at together: what follows a reached level is looked at again


class PlanError(ValueError):
    """A plan does not fit its dataset, or holds what is no order; the message names the row."""


def trade_plan(
    plan: Plan,
    account: Account,
    market: Market,
    rows: tuple[int, int],
    rules: Rules,
    recorder: Recorder,
) -> None:
    """Carry out a plan on the close of each row of a range, until the end or ruin.

    Args:
        plan: orders of T rows.
        account: one account, changed in place; its scales are 1.
        market: T bars.
        rows: the first row that is decided on, and the one after the last.
        rules: costs and limits.
        recorder: what happened is added to it.

    Raises:
        PlanError: a shape does not fit, or a weight or distance of these rows is none.
    """
    check_account(account, market.instruments, rules)
    first, end = rows
    if not 0 <= first <= end < market.rows:
        raise PlanError(f"rows {first} to {end} must lie in the market's {market.rows} rows")
    _check(plan, (market.rows, market.instruments), first, end)
    orders = Orders.room(1, market.instruments)
    fills = Fills.empty(1, market.instruments)
    blocks, holdings = lanes.room(1, market.instruments)
    row = np.array([first])
    while row[0] < end and not account.terminated[0]:
        piece = slice(int(row[0]), min(int(row[0]) + ROWS_AT_A_TIME, end))
        steps = _trade_rows(
            np.ascontiguousarray(plan.weights[piece], np.float64),
            np.ascontiguousarray(plan.hold[piece], np.bool_),
            _distances(plan.stop_fraction, piece),
            _distances(plan.take_fraction, piece),
            _distances(plan.band, piece),
            rules,
            orders,
            account.balances,
            account.positions,
            account.daily_volume,
            fills.count,
            fills.records,
            market.bars,
            blocks[0],
            holdings[0],
            row,
            recorder.room(piece.stop - piece.start),
        )
        recorder.advance(steps)


def _check(plan: Plan, shape: tuple[int, int], first: int, end: int) -> None:
    """Refuse what compiled code would read beyond its arrays for, and what the kernel refuses."""
    for name, array in plan._asdict().items():
        if array is None:
            continue
        if array.shape != shape:
            raise PlanError(
                f"the plan's {name} has shape {array.shape}; [T, N] = {shape} is expected"
            )
        given = array[first:end]
        if name == "hold":
            if array.dtype != np.bool_:
                raise PlanError(f"the plan's hold has dtype {array.dtype}; bool is expected")
            continue
        wrong = ~np.isfinite(given) if name == "weights" else given < 0
        if wrong.any():
            row, instrument = (int(index) for index in np.argwhere(wrong)[0])
            rule = "a finite number" if name == "weights" else "zero or more, or NaN for none"
            raise PlanError(
                f"the plan's {name} of row {first + row}, instrument {instrument} is "
                f"{given[row, instrument]}; it must be {rule}"
            )


def _distances(fractions: FloatArray | None, piece: slice) -> FloatArray:
    """Stops, takes or bands of some rows, [n, N], or [0, 0] where there are none at all."""
    if fractions is None:
        return np.zeros((0, 0))
    return np.ascontiguousarray(fractions[piece], np.float64)


@compiled
def _is_kept(
    weight: float, hold: bool, quantity: float, close: float, equity: float, band: float
) -> bool:
    """Whether a position is held for a weight: it is one, not of the other sign, within the band.

    A band of NaN is none.
    """
    kept = hold & (quantity != 0.0) & (weight * quantity >= 0.0)
    if kept and not np.isnan(band):  # a division that most rules never need
        return not abs(weight - quantity * close / equity) > band * abs(weight)
    return bool(kept)


@compiled
def _unasked(
    weights: FloatArray,
    hold: BoolArray,
    bands: FloatArray,
    held: Any,
    equity: float,
    bars: Any,
    row: int,
) -> int:
    """Rows from the first on that ask for nothing; with bands, which look at the account, one."""
    rows = min(AHEAD, weights.shape[0]) if bands.shape[0] == 0 else 1
    for t in range(rows):
        for n in range(held.shape[0]):
            weight, quantity = weights[t, n], held[n].quantity
            band = bands[t, n] if bands.shape[0] > 0 else np.nan
            kept = _is_kept(weight, hold[t, n], quantity, bars[row, n].close, equity, band)
            if (not kept) & ((weight != 0.0) | (quantity != 0.0)):
                return t
    return rows


@compiled
def _trade_rows(
    weights: FloatArray,
    hold: BoolArray,
    stops: FloatArray,
    takes: FloatArray,
    bands: FloatArray,
    rules: Rules,
    orders: Orders,
    balances: Any,
    positions: Any,
    daily_volume: FloatArray,
    counts: IntArray,
    records: Any,
    bars: Any,
    block: Any,
    holdings: Any,
    row: IntArray,
    record: Record,
) -> int:
    """Steps made: fewer than there are weights if the last ruined, or the record is full."""
    balance = balances[0]
    held = positions[0]
    instruments = positions.shape[1]
    steps = weights.shape[0]
    step = 0
    while step < steps:
        now = row[0]
        asks_from = _unasked(
            weights[step:], hold[step:], bands[step:], held, balance.equity, bars, now
        )
        if asks_from > 0:
            passed = pass_bars(balance, held, rules, bars, now, record, step, asks_from)
            if passed > 0:
                row[0] += passed
                step += passed
                continue
        if is_full(record, instruments):
            return step
        for n in range(instruments):
            weight, quantity = weights[step, n], held[n].quantity
            band = bands[step, n] if bands.shape[0] > 0 else np.nan
            orders.hold[0, n] = _is_kept(
                weight, hold[step, n], quantity, bars[now, n].close, balance.equity, band
            )
            orders.target_weight[0, n] = weight
            orders.stop_fraction[0, n] = stops[step, n] if stops.shape[0] > 0 else np.nan
            orders.take_fraction[0, n] = takes[step, n] if takes.shape[0] > 0 else np.nan
        record_orders(record, orders, held, row[0])
        step_block(
            block,
            holdings,
            balances,
            positions,
            daily_volume,
            counts,
            records,
            rules,
            orders,
            bars,
            row,
        )
        row[0] += 1
        record_state(record, step, balance, held, bars, row[0])
        record_fills(record, step, balance, row[0], counts[0], records[0])
        step += 1
        if balance.terminated:
            break
    return step
