"""Accounts and their fills, as the arrays that the kernel changes. Start at `Account`."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.market import BoolArray, FloatArray, IntArray

REASONS = ("order", "stop", "take", "liquidation", "slice_end")
FILLS_PER_INSTRUMENT = 4


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
            "fee_scale",
            "slippage_scale",
            "price_scale",
        )
    ]
    + [("ambiguous", np.int64), ("volume_day", np.int64), ("terminated", np.bool_)],
    align=True,
)
VOLUME_DAYS = 30
NO_DAY = -1_000_000
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
        daily_volume: float64 [E, 30] traded notional of the 30 UTC days up to `volume_day`, each
            at its number modulo 30; float64 [E, 0] where fees have no tiers.
    """

    balances: npt.NDArray[np.void]
    positions: npt.NDArray[np.void]
    daily_volume: FloatArray

    @classmethod
    def start(
        cls, environments: int, instruments: int, equity: float, fee_tiers: bool = True
    ) -> "Account":
        """Flat accounts that hold `equity` in cash; `fee_tiers` makes room for daily volumes."""
        account = cls(
            balances=np.zeros(environments, BALANCE),
            positions=np.zeros((environments, instruments), POSITION),
            daily_volume=np.zeros((environments, VOLUME_DAYS if fee_tiers else 0)),
        )
        for name in ("cash", "equity", "peak_equity"):
            account.balances[name] = equity
        for name in ("fee_scale", "slippage_scale", "price_scale"):
            account.balances[name] = 1.0
        account.balances["volume_day"] = NO_DAY
        for name in ("entry_price", "stop_price", "take_price"):
            account.positions[name] = np.nan
        return account

    def copy(self) -> "Account":
        """The same accounts in arrays of their own."""
        return Account(self.balances.copy(), self.positions.copy(), self.daily_volume.copy())

    def check(self) -> None:
        """Refuse accounts that no step could have left.

        Raises:
            ValueError: naming the account and the number.
        """
        for name in ("cash", "equity", "peak_equity", "quantity", "fee_scale", "slippage_scale"):
            wrong = ~np.isfinite(getattr(self, name))
            if wrong.any():
                raise ValueError(f"account {np.argwhere(wrong)[0][0]}: {name} is not finite")
        wrong = (self.price_scale <= 0) | (self.peak_equity <= 0) | (self.equity < 0)
        if wrong.any():
            e = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"account {e}: price_scale {self.price_scale[e]} and peak_equity "
                f"{self.peak_equity[e]} must be above 0, equity {self.equity[e]} not below"
            )

    def chosen(self, index: IntArray) -> "Account":
        """Some of the accounts, in arrays of their own."""
        return Account(self.balances[index], self.positions[index], self.daily_volume[index])

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
        """Float64 [E] borrow, interest and funding paid in the last step; negative is income."""
        return self.balances["financing"]

    @property
    def traded_notional(self) -> FloatArray:
        """Float64 [E] sum of |quantity| x fill price in the last step."""
        return self.balances["traded_notional"]

    @property
    def fee_scale(self) -> FloatArray:
        """Float64 [E] multiplies fees."""
        return self.balances["fee_scale"]

    @property
    def slippage_scale(self) -> FloatArray:
        """Float64 [E] multiplies slippage."""
        return self.balances["slippage_scale"]

    @property
    def price_scale(self) -> FloatArray:
        """Float64 [E] multiplies the market's prices and divides its volumes."""
        return self.balances["price_scale"]

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
