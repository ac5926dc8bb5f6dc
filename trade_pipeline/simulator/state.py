"""The arrays the kernel works on: market, accounts, fills.

They hold state and check it; what happens to it is in `kernel`, which offers these names too.
Start at `Market` and `Account`.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

REASONS = ("order", "stop", "take", "liquidation", "slice_end")
FILLS_PER_INSTRUMENT = 4


class MarketError(ValueError):
    """Bars that no simulation can use; the message names the row and the instrument."""


@dataclass(frozen=True)
class Market:
    """Bars of N instruments on common rows, checked and made read-only at construction.

    Attributes:
        ts: int64 [T] bar opens, ms UTC, strictly increasing.
        close_ts: int64 [T] when each bar is visible, ms UTC, after its open.
        open: float64 [T, N] quote currency; likewise high, low, close.
        volume: float64 [T, N] traded quantity.
        traded: bool [T, N]; False is a filler bar on which nothing fills.

    Raises:
        MarketError: if shapes differ or a row breaks a rule.
    """

    ts: IntArray
    close_ts: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray
    traded: BoolArray

    def __post_init__(self) -> None:
        shape = np.shape(self.close)
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise MarketError(f"close has shape {shape}; [T, N] with at least one row is expected")
        for field in fields(self):
            kind, wanted = np.float64, shape
            if field.name in ("ts", "close_ts"):
                kind, wanted = np.int64, shape[:1]  # type: ignore[assignment]
            elif field.name == "traded":
                kind = np.bool_  # type: ignore[assignment]
            array = np.ascontiguousarray(getattr(self, field.name), dtype=kind)
            if array.shape != wanted:
                raise MarketError(f"{field.name} has shape {array.shape}; {wanted} is expected")
            # A plain read-only view: nobody can edit the past, a memory-mapped array is not
            # copied, and the kernel is compiled for one array type only.
            view = array.view(np.ndarray)
            view.flags.writeable = False
            object.__setattr__(self, field.name, view)
        self._check_times()
        self._check_prices()

    @property
    def rows(self) -> int:
        """T, the number of bars."""
        return int(self.close.shape[0])

    @property
    def instruments(self) -> int:
        """N, the number of instruments."""
        return int(self.close.shape[1])

    def _check_times(self) -> None:
        for name, times in (("ts", self.ts), ("close_ts", self.close_ts)):
            late = np.flatnonzero(np.diff(times) <= 0)
            if late.size:
                row = int(late[0]) + 1
                raise MarketError(
                    f"row {row}: {name} {times[row]} does not come after row {row - 1}'s "
                    f"{times[row - 1]}; rows must be sorted and unique"
                )
        early = np.flatnonzero(self.close_ts <= self.ts)
        if early.size:
            row = int(early[0])
            raise MarketError(
                f"row {row}: close_ts {self.close_ts[row]} is not after ts {self.ts[row]}; "
                "a bar is visible only after it opened"
            )

    def _check_prices(self) -> None:
        for name in ("open", "high", "low", "close"):
            prices = getattr(self, name)
            self._refuse(~(np.isfinite(prices) & (prices > 0)), name, "is not a positive price")
        wrong_volume = ~(np.isfinite(self.volume) & (self.volume >= 0))
        self._refuse(wrong_volume, "volume", "is not a quantity of zero or more")
        self._refuse(
            self.low > np.minimum(self.open, self.close), "low", "is above the open or the close"
        )
        self._refuse(
            self.high < np.maximum(self.open, self.close), "high", "is below the open or the close"
        )

    def _refuse(self, wrong: BoolArray, name: str, rule: str) -> None:
        if wrong.any():
            row, instrument = (int(index) for index in np.argwhere(wrong)[0])
            raise MarketError(
                f"row {row} (ts {self.ts[row]}), instrument {instrument}: {name} "
                f"{getattr(self, name)[row, instrument]} {rule}; drop or repair the bar"
            )


BALANCE = np.dtype(
    [
        (name, np.float64)
        for name in (
            "cash",
            "equity",
            "peak_equity",
            "fees",
            "slippage",
            "financing",
            "traded_notional",
        )
    ]
    + [("ambiguous", np.int64), ("terminated", np.bool_)],
    align=True,
)
POSITION = np.dtype(
    [(name, np.float64) for name in ("quantity", "entry_price", "stop_price", "take_price")],
    align=True,
)


@dataclass(frozen=True)
class Account:
    """State of E accounts over N instruments, changed in place.

    One record an account and one a position, so that a step touches few cache lines; the
    properties are writable views of them. Money is in quote currency.

    Attributes:
        balances: BALANCE [E].
        positions: POSITION [E, N].
    """

    balances: npt.NDArray[np.void]
    positions: npt.NDArray[np.void]

    @classmethod
    def start(cls, environments: int, instruments: int, equity: float) -> "Account":
        """Flat accounts that hold `equity` in cash."""
        account = cls(
            balances=np.zeros(environments, BALANCE),
            positions=np.zeros((environments, instruments), POSITION),
        )
        for name in ("cash", "equity", "peak_equity"):
            account.balances[name] = equity
        for name in ("entry_price", "stop_price", "take_price"):
            account.positions[name] = np.nan
        return account

    def copy(self) -> "Account":
        """The same accounts in arrays of their own."""
        return Account(self.balances.copy(), self.positions.copy())

    @property
    def cash(self) -> FloatArray:
        """Float64 [E]; negative is borrowed."""
        return self.balances["cash"]

    @property
    def equity(self) -> FloatArray:
        """Float64 [E] as last marked."""
        return self.balances["equity"]

    @property
    def peak_equity(self) -> FloatArray:
        """Float64 [E] highest equity marked so far."""
        return self.balances["peak_equity"]

    @property
    def quantity(self) -> FloatArray:
        """Float64 [E, N] signed position."""
        return self.positions["quantity"]

    @property
    def entry_price(self) -> FloatArray:
        """Float64 [E, N] average entry fill price; NaN when flat."""
        return self.positions["entry_price"]

    @property
    def stop_price(self) -> FloatArray:
        """Float64 [E, N] stop level; NaN is none."""
        return self.positions["stop_price"]

    @property
    def take_price(self) -> FloatArray:
        """Float64 [E, N] take-profit level; NaN is none."""
        return self.positions["take_price"]

    @property
    def terminated(self) -> BoolArray:
        """Bool [E] ruined: nothing trades any more."""
        return self.balances["terminated"]

    @property
    def fees(self) -> FloatArray:
        """Float64 [E] paid in the last step."""
        return self.balances["fees"]

    @property
    def slippage(self) -> FloatArray:
        """Float64 [E] paid in the last step, already inside the fill prices."""
        return self.balances["slippage"]

    @property
    def financing(self) -> FloatArray:
        """Float64 [E] borrow and interest paid in the last step."""
        return self.balances["financing"]

    @property
    def traded_notional(self) -> FloatArray:
        """Float64 [E] sum of |quantity| x fill price in the last step."""
        return self.balances["traded_notional"]

    @property
    def ambiguous(self) -> IntArray:
        """Int64 [E] running count of bars whose OHLC does not tell what came first."""
        return self.balances["ambiguous"]


class Fill(NamedTuple):
    """One fill as plain values, for people and tables."""

    instrument: int
    quantity: float
    price: float
    fee: float
    slippage: float
    reason: str


FILL = np.dtype(
    [
        ("instrument", np.int64),
        ("quantity", np.float64),
        ("price", np.float64),
        ("fee", np.float64),
        ("slippage", np.float64),
        ("reason", np.int8),
    ],
    align=True,
)


@dataclass(frozen=True)
class Fills:
    """Fills of the last step in the order they happened; each step clears them.

    The properties are views [E, 4N]; entries from `count` on are leftovers.

    Attributes:
        count: int64 [E] fills of each account.
        records: FILL [E, 4N].
    """

    count: IntArray
    records: npt.NDArray[np.void]

    @classmethod
    def empty(cls, environments: int, instruments: int) -> "Fills":
        """Room for the fills of one step."""
        room = (environments, FILLS_PER_INSTRUMENT * instruments)
        return cls(np.zeros(environments, np.int64), np.zeros(room, FILL))

    def of(self, environment: int) -> list[Fill]:
        """The fills of one account, first to last."""
        return [
            Fill(instrument, quantity, price, fee, slippage, REASONS[reason])
            for instrument, quantity, price, fee, slippage, reason in self.records[
                environment, : self.count[environment]
            ].tolist()
        ]

    @property
    def instrument(self) -> IntArray:
        """Int64 [E, 4N]."""
        return self.records["instrument"]

    @property
    def quantity(self) -> FloatArray:
        """Float64 [E, 4N] signed, positive buys."""
        return self.records["quantity"]

    @property
    def price(self) -> FloatArray:
        """Float64 [E, 4N] slippage included."""
        return self.records["price"]

    @property
    def fee(self) -> FloatArray:
        """Float64 [E, 4N] quote currency."""
        return self.records["fee"]

    @property
    def slippage(self) -> FloatArray:
        """Float64 [E, 4N] quote currency, already inside the price."""
        return self.records["slippage"]

    @property
    def reason(self) -> npt.NDArray[np.int8]:
        """Int8 [E, 4N] index into `REASONS`."""
        return self.records["reason"]
