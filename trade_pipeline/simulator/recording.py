"""What one account does, step after step, written down by compiled code.

Arrays for all steps are made once; fills and orders go into buffers, which are emptied when they
have no room for one more step. Knows nothing of what decides. Start at `Recorder`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import FloatArray, IntArray, Market
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.state import FILL, FILLS_PER_INSTRUMENT, Account, Fills

FLOWS = ("exposure", "turnover", "fees", "slippage", "financing")
ENTRIES_AT_A_TIME = 2**14

FILLED = np.dtype(
    [("row", np.int64), *((name, FILL[name]) for name in FILL.names or ())], align=True
)
ORDERED = np.dtype(
    [("row", np.int64), ("instrument", np.int64)]
    + [(name, np.float64) for name in ("target_weight", "stop_fraction", "take_fraction")],
    align=True,
)


class Record(NamedTuple):
    """Room for the next steps, as compiled code writes it.

    Attributes:
        equity: float64 [n] quote currency, after each step.
        exposure: float64 [n] gross exposure / equity after each step; this and all that follow up
            to `financing` come as 0.
        turnover: float64 [n] quote currency, of each step; likewise fees, slippage, financing.
        fees: as turnover.
        slippage: as turnover.
        financing: as turnover.
        fills: FILLED, written from the front; `row` is the bar they happened in.
        orders: ORDERED, likewise; `row` is that on whose close they were given.
        counts: int64 [2] how many fills and how many orders are there.
    """

    equity: FloatArray
    exposure: FloatArray
    turnover: FloatArray
    fees: FloatArray
    slippage: FloatArray
    financing: FloatArray
    fills: npt.NDArray[np.void]
    orders: npt.NDArray[np.void]
    counts: IntArray


class Recorder:
    """The course of one account over a known number of steps, or fewer.

    Attributes:
        steps: how many have been recorded.
        equity: float64 [most steps + 1] quote currency, before the first and after each.
        flows: each of `FLOWS`, float64 [most steps].
    """

    def __init__(self, most_steps: int, account: Account) -> None:
        instruments = account.positions.shape[1]
        self.steps = 0
        self.equity = np.empty(most_steps + 1)
        self.equity[0] = account.equity[0]
        self.flows = {name: np.zeros(most_steps) for name in FLOWS}
        entries = min(max(most_steps, 1), ENTRIES_AT_A_TIME)
        self._fills = np.zeros(max(entries, FILLS_PER_INSTRUMENT * instruments), FILLED)
        self._orders = np.zeros(max(entries, instruments), ORDERED)
        self._counts = np.zeros(2, np.int64)
        self._kept_fills: list[npt.NDArray[np.void]] = []
        self._kept_orders: list[npt.NDArray[np.void]] = []

    def room(self, steps: int) -> Record:
        """Where compiled code writes the next steps; then tell `advance` how many there were."""
        first, end = self.steps, self.steps + steps
        return Record(
            equity=self.equity[first + 1 : end + 1],
            **{name: flow[first:end] for name, flow in self.flows.items()},
            fills=self._fills,
            orders=self._orders,
            counts=self._counts,
        )

    def advance(self, steps: int) -> None:
        """So many steps were written into the room."""
        self.steps += steps
        for kept, buffer, count in (
            (self._kept_fills, self._fills, self._counts[0]),
            (self._kept_orders, self._orders, self._counts[1]),
        ):
            if count:
                kept.append(buffer[:count].copy())
        self._counts[:] = 0

    def order(self, row: int, orders: Orders, account: Account) -> None:
        """The orders given on the close of `row`."""
        _record_orders(self.room(1), orders, account.positions, row)
        self.advance(0)

    def step(self, row: int, account: Account, market: Market, fills: Fills) -> None:
        """The account at the close of `row`, and the fills of that bar."""
        _record_step(
            self.room(1),
            account.balances,
            account.positions,
            market.bars,
            row,
            fills.count,
            fills.records,
        )
        self.advance(1)

    def close_out(self, row: int, account: Account, fills: Fills) -> None:
        """All positions were closed at the close of `row`, the bar of the last step."""
        at = self.steps - 1
        self.equity[self.steps] = account.equity[0]
        self.flows["exposure"][at] = 0.0
        self.flows["turnover"][at] += account.traded_notional[0]
        for name in ("fees", "slippage", "financing"):
            self.flows[name][at] += getattr(account, name)[0]
        closed = np.zeros(int(fills.count[0]), FILLED)
        closed["row"] = row
        for name in FILL.names or ():
            closed[name] = fills.records[name][0, : len(closed)]
        self._kept_fills.append(closed)

    @property
    def filled(self) -> int:
        """How many fills there were."""
        return sum(map(len, self._kept_fills))

    def fills(self) -> npt.NDArray[np.void]:
        """FILLED, in the order they happened."""
        return _joined(self._kept_fills, FILLED)

    def orders(self) -> npt.NDArray[np.void]:
        """ORDERED, in the order they were given: those that asked for something."""
        return _joined(self._kept_orders, ORDERED)


def _joined(pieces: Sequence[npt.NDArray[np.void]], dtype: np.dtype[Any]) -> npt.NDArray[np.void]:
    """One array of all; `np.concatenate` compares the fields of each piece, which takes longer."""
    joined, at = np.empty(sum(map(len, pieces)), dtype), 0
    for piece in pieces:
        joined[at : at + len(piece)] = piece
        at += len(piece)
    return joined


@compiled
def is_full(record: Record, instruments: int) -> bool:
    """Whether the next step's fills or orders may not find room."""
    most_fills = record.counts[0] + FILLS_PER_INSTRUMENT * instruments
    most_orders = record.counts[1] + instruments
    return bool((most_fills > record.fills.shape[0]) | (most_orders > record.orders.shape[0]))


@compiled
def record_orders(record: Record, orders: Orders, positions: Any, row: int) -> None:
    """Orders [1, N] of an account, but for those to hold or to stay flat."""
    for n in range(positions.shape[0]):
        wanted = (orders.target_weight[0, n] != 0.0) | (positions[n].quantity != 0.0)
        if wanted and not orders.hold[0, n]:
            entry = record.orders[record.counts[1]]
            entry.row = row
            entry.instrument = n
            entry.target_weight = orders.target_weight[0, n]
            entry.stop_fraction = orders.stop_fraction[0, n]
            entry.take_fraction = orders.take_fraction[0, n]
            record.counts[1] += 1


@compiled
def write_state(record: Record, step: int, equity: float, gross: float, financing: float) -> None:
    """What a step left, and what carrying it cost; `gross` is what was held, in quote currency."""
    record.equity[step] = equity
    # What is 0 already is not written: pages of memory that nobody touches cost nothing.
    if (gross > 0.0) & (equity > 0.0):
        record.exposure[step] = gross / equity
    if financing != 0.0:
        record.financing[step] = financing


@compiled
def record_state(
    record: Record, step: int, balance: Any, positions: Any, bars: Any, row: int
) -> None:
    """Equity and exposure of an account at the close of `row`, and what carrying it cost."""
    gross = 0.0
    for n in range(positions.shape[0]):
        gross += abs(positions[n].quantity) * (bars[row, n].close * balance.price_scale)
    write_state(record, step, balance.equity, gross, balance.financing)


@compiled
def record_fills(record: Record, step: int, balance: Any, row: int, count: int, fills: Any) -> None:
    """What an account traded in the bar `row`; `fills` is FILL [4N]."""
    if count == 0:
        return
    record.turnover[step] = balance.traded_notional
    record.fees[step] = balance.fees
    record.slippage[step] = balance.slippage
    for k in range(count):
        fill = fills[k]
        entry = record.fills[record.counts[0]]
        entry.row = row
        entry.instrument = fill.instrument
        entry.quantity = fill.quantity
        entry.price = fill.price
        entry.fee = fill.fee
        entry.slippage = fill.slippage
        entry.reason = fill.reason
        record.counts[0] += 1


@compiled
def _record_orders(record: Record, orders: Orders, positions: Any, row: int) -> None:
    record_orders(record, orders, positions[0], row)


@compiled
def _record_step(
    record: Record,
    balances: Any,
    positions: Any,
    bars: Any,
    row: int,
    counts: IntArray,
    fills: Any,
) -> None:
    record_state(record, 0, balances[0], positions[0], bars, row)
    record_fills(record, 0, balances[0], row, counts[0], fills[0])
