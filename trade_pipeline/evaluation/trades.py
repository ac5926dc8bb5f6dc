"""Trades out of fills: first in, first out, with exact bookkeeping.

Every float becomes the decimal it prints as, and sums and products are exact from there on, so
the net results of matches plus what open lots have not realised yet equal the change of equity
to the last digit (financing aside: it belongs to no fill). Prices include slippage.
Start at `match_fills` (frames) or `ledger` (exact decimals).
"""

from collections import deque
from dataclasses import dataclass, field
from decimal import (
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
    localcontext,
)
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

FloatArray = npt.NDArray[np.float64]

_TIME = pl.Datetime("ms", "UTC")
FILL_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "time": _TIME,
    "row": pl.Int64,
    "instrument": pl.String,
    "quantity": pl.Float64,  # signed: positive buys
    "price": pl.Float64,  # slippage included
    "fee": pl.Float64,  # quote currency; negative is a rebate
    "slippage": pl.Float64,  # quote currency, already in the price
    "reason": pl.String,
    "fill_id": pl.Int64,
}
_ENTRY: dict[str, pl.DataType | type[pl.DataType]] = {
    "trip": pl.Int64,
    "instrument": pl.String,
    "side": pl.String,
    "quantity": pl.Float64,
    "entry_row": pl.Int64,
    "entry_time": _TIME,
    "entry_price": pl.Float64,
    "entry_reason": pl.String,
}
_EXIT: dict[str, pl.DataType | type[pl.DataType]] = {
    "exit_row": pl.Int64,
    "exit_time": _TIME,
    "exit_price": pl.Float64,
    "exit_reason": pl.String,
    "gross": pl.Float64,
    "fee": pl.Float64,
    "net": pl.Float64,
}
# Of a trip that was built up or closed in parts, entry and exit price are means over quantity; the
# other two are prices of its first and last fill.
TRIP_SCHEMA = _ENTRY | _EXIT | {"first_price": pl.Float64, "last_price": pl.Float64}
MATCH_SCHEMA = _ENTRY | _EXIT | {"entry_fill": pl.Int64, "exit_fill": pl.Int64}
OPEN_LOT_SCHEMA = _ENTRY | {"fee": pl.Float64, "entry_fill": pl.Int64}

SIDES = {1: "long", -1: "short"}

# Enough digits for any sum of products of float64 numbers; rounding anywhere is an error.
EXACT = Context(prec=4_000, traps=[Inexact, InvalidOperation, DivisionByZero, Overflow])
# Splitting a fee is the one division; the last slice takes the exact remainder.
_SPLIT = Context(prec=34)
# An account kept in floats may close 0.30000000000000004 after buying 0.1 and 0.2. What is left
# below this part of the trip's largest position is no position: it ends the trip.
DUST = Decimal("1e-9")
_ZERO = Decimal(0)


class Match(NamedTuple):
    """Part of an exit fill against part of an entry fill; indices count the ordered fills."""

    trip: int
    entry: int
    exit: int
    side: int
    quantity: Decimal
    entry_price: Decimal
    exit_price: Decimal
    gross: Decimal
    fee: Decimal
    net: Decimal


class Lot(NamedTuple):
    """What an entry fill still holds; `fee` is what is left of the entry's fee."""

    trip: int
    entry: int
    side: int
    quantity: Decimal
    price: Decimal
    fee: Decimal

    def unrealised(self, mark: Decimal) -> Decimal:
        """Result if closed at `mark` for free; exact within `localcontext(EXACT)`."""
        return self.side * (mark - self.price) * self.quantity - self.fee


class Ledger(NamedTuple):
    """Exact outcome. `dust` are leftovers of float arithmetic, open but part of no trip."""

    fills: pl.DataFrame
    matches: tuple[Match, ...]
    closed_trips: frozenset[int]
    lots: tuple[Lot, ...]
    dust: tuple[Lot, ...]


class TradeTables(NamedTuple):
    """Frames of `MATCH_SCHEMA`, `TRIP_SCHEMA` and `OPEN_LOT_SCHEMA`.

    A trip goes from flat to flat, so only closed trips have a row; its prices are means over
    quantity. What a position still open has realised is in `matches`, what it holds in
    `open_lots`. Floats are the exact decimals rounded once.
    """

    matches: pl.DataFrame
    trips: pl.DataFrame
    open_lots: pl.DataFrame


def match_fills(fills: pl.DataFrame) -> TradeTables:
    """Matches, trips and open lots of a fill table.

    Args:
        fills: columns of `FILL_SCHEMA`, in any order of rows.

    Raises:
        ValueError: a column is missing, a fill id comes twice with different content, or a fill
            has no quantity, price or fee.
    """
    exact = ledger(fills)
    rows = exact.fills.to_dicts()
    matches = [_match_row(match, rows) for match in exact.matches]
    trips: dict[int, list[Match]] = {}
    for match in exact.matches:
        if match.trip in exact.closed_trips:
            trips.setdefault(match.trip, []).append(match)
    closed = sorted(trips.values(), key=lambda parts: parts[-1].exit)
    lots = [
        _entry_row(lot, rows)
        | {
            "entry_price": float(lot.price),
            "fee": float(lot.fee),
            "entry_fill": rows[lot.entry]["fill_id"],
        }
        for lot in exact.lots
    ]
    with localcontext(EXACT):
        trip_rows = [_trip_row(parts, rows) for parts in closed]
    return TradeTables(
        pl.DataFrame(matches, schema=MATCH_SCHEMA),
        pl.DataFrame(trip_rows, schema=TRIP_SCHEMA),
        pl.DataFrame(lots, schema=OPEN_LOT_SCHEMA),
    )


def ledger(fills: pl.DataFrame) -> Ledger:
    """Match fills first in, first out; arguments and errors as for `match_fills`."""
    ordered = _ordered(fills)
    books: dict[str, _Book] = {}
    journal = _Journal()
    columns = [ordered[name].to_list() for name in ("instrument", "quantity", "price", "fee")]
    with localcontext(EXACT):
        for index, (instrument, *numbers) in enumerate(zip(*columns, strict=True)):
            quantity, price, fee = (Decimal(repr(number)) for number in numbers)
            books.setdefault(instrument, _Book(journal)).apply(index, quantity, price, fee)
    lots = sorted((lot for book in books.values() for lot in book.open_lots()), key=_entry_order)
    return Ledger(
        ordered,
        tuple(journal.matches),
        frozenset(journal.closed_trips),
        tuple(lots),
        tuple(journal.dust),
    )


@dataclass
class _Journal:
    """What the books of all instruments write."""

    matches: list[Match] = field(default_factory=list)
    closed_trips: list[int] = field(default_factory=list)
    dust: list[Lot] = field(default_factory=list)
    opened_trips: int = 0


@dataclass
class _Part:
    """Quantity and fee not used up yet, of an entry or of the fill at hand."""

    index: int
    quantity: Decimal
    price: Decimal
    fee: Decimal

    def take(self, quantity: Decimal) -> Decimal:
        """Take a quantity out and return its part of the fee."""
        if quantity == self.quantity:
            fee = self.fee
        else:
            fee = _SPLIT.divide(self.fee * quantity, self.quantity)
        self.quantity -= quantity
        self.fee -= fee
        return fee


@dataclass
class _Book:
    """Open lots of one instrument, oldest first; empty when flat."""

    journal: _Journal
    lots: deque[_Part] = field(default_factory=deque)
    side: int = 0
    held: Decimal = _ZERO
    largest: Decimal = _ZERO
    trip: int = -1

    def apply(self, index: int, quantity: Decimal, price: Decimal, fee: Decimal) -> None:
        """Enter one fill; runs within `localcontext(EXACT)`."""
        side = 1 if quantity > 0 else -1
        fill = _Part(index, abs(quantity), price, fee)
        if self.held and side != self.side:
            self._close(fill)
        if fill.quantity:
            self._open(fill, side)

    def open_lots(self) -> list[Lot]:
        return [self._lot(part, self.side) for part in self.lots]

    def _open(self, fill: _Part, side: int) -> None:
        if not self.held:
            self.side, self.largest = side, _ZERO
            self.trip = self.journal.opened_trips
            self.journal.opened_trips += 1
        self.lots.append(fill)
        self.held += fill.quantity
        self.largest = max(self.largest, self.held)

    def _close(self, fill: _Part) -> None:
        negligible = DUST * self.largest
        left = abs(self.held - fill.quantity)
        ends_in_dust = 0 < left <= negligible
        while self.lots and fill.quantity:
            lot = self.lots[0]
            quantity = min(lot.quantity, fill.quantity)
            entry_fee, exit_fee = lot.take(quantity), fill.take(quantity)
            last = self.held == quantity or not fill.quantity
            if ends_in_dust and last:
                # Leftovers carry no fee: the trip they end paid it.
                exit_fee += fill.fee
                fill.fee = _ZERO
                for rest in self.lots:
                    entry_fee += rest.fee
                    rest.fee = _ZERO
            self._match(lot, fill, quantity, entry_fee + exit_fee)
            self.held -= quantity
            if not lot.quantity:
                self.lots.popleft()
        if ends_in_dust:
            self.journal.dust.extend(self.open_lots())
            if fill.quantity:
                self.journal.dust.append(self._lot(fill, -self.side))
            fill.quantity = _ZERO
            self.lots.clear()
            self.held = _ZERO
        if not self.held:
            self.journal.closed_trips.append(self.trip)

    def _match(self, lot: _Part, fill: _Part, quantity: Decimal, fee: Decimal) -> None:
        gross = self.side * (fill.price - lot.price) * quantity
        self.journal.matches.append(
            Match(
                self.trip,
                lot.index,
                fill.index,
                self.side,
                quantity,
                lot.price,
                fill.price,
                gross,
                fee,
                gross - fee,
            )
        )

    def _lot(self, part: _Part, side: int) -> Lot:
        return Lot(self.trip, part.index, side, part.quantity, part.price, part.fee)


def _entry_order(lot: Lot) -> int:
    return lot.entry


def _entry_row(part: Match | Lot, rows: list[dict[str, Any]]) -> dict[str, Any]:
    entry = rows[part.entry]
    return {
        "trip": part.trip,
        "instrument": entry["instrument"],
        "side": SIDES[part.side],
        "quantity": float(part.quantity),
        "entry_row": entry["row"],
        "entry_time": entry["time"],
        "entry_reason": entry["reason"],
    }


def _exit_row(part: Match, rows: list[dict[str, Any]]) -> dict[str, Any]:
    leaving = rows[part.exit]
    return {
        "exit_row": leaving["row"],
        "exit_time": leaving["time"],
        "exit_reason": leaving["reason"],
    }


def _match_row(match: Match, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return (
        _entry_row(match, rows)
        | _exit_row(match, rows)
        | {
            "entry_price": float(match.entry_price),
            "exit_price": float(match.exit_price),
            "gross": float(match.gross),
            "fee": float(match.fee),
            "net": float(match.net),
            "entry_fill": rows[match.entry]["fill_id"],
            "exit_fill": rows[match.exit]["fill_id"],
        }
    )


def _trip_row(parts: list[Match], rows: list[dict[str, Any]]) -> dict[str, Any]:
    quantity = sum((part.quantity for part in parts), _ZERO)
    entered = sum((part.quantity * part.entry_price for part in parts), _ZERO)
    left = sum((part.quantity * part.exit_price for part in parts), _ZERO)
    return (
        _entry_row(parts[0], rows)
        | _exit_row(parts[-1], rows)
        | {
            "quantity": float(quantity),
            "entry_price": float(_SPLIT.divide(entered, quantity)),
            "exit_price": float(_SPLIT.divide(left, quantity)),
            "gross": float(sum((part.gross for part in parts), _ZERO)),
            "fee": float(sum((part.fee for part in parts), _ZERO)),
            "net": float(sum((part.net for part in parts), _ZERO)),
            "first_price": float(parts[0].entry_price),
            "last_price": float(parts[-1].exit_price),
        }
    )


def _ordered(fills: pl.DataFrame) -> pl.DataFrame:
    """Fills checked, without repeats, by time and then fill id."""
    missing = [name for name in FILL_SCHEMA if name not in fills.columns]
    if missing:
        raise ValueError(
            f"fills have no column {', '.join(missing)}; columns must be {', '.join(FILL_SCHEMA)}"
        )
    fills = fills.select(list(FILL_SCHEMA)).cast(FILL_SCHEMA).unique(maintain_order=True)  # type: ignore[arg-type]
    repeated = fills.filter(pl.col("fill_id").is_duplicated())
    if repeated.height:
        raise ValueError(
            f"fill {repeated['fill_id'][0]} comes again with different content; "
            "a fill id names one fill"
        )
    numbers = ("quantity", "price", "fee")
    wrong = fills.filter(
        pl.any_horizontal(pl.col("time", "instrument", "fill_id", *numbers).is_null())
        | ~pl.all_horizontal(pl.col(*numbers).is_finite())
        | (pl.col("quantity") == 0)
    )
    if wrong.height:
        found = wrong.row(0, named=True)
        raise ValueError(
            f"fill {found['fill_id']} of {found['instrument']} at {found['time']} has quantity "
            f"{found['quantity']}, price {found['price']}, fee {found['fee']}; "
            "each must be a finite number and the quantity not zero"
        )
    return fills.sort("time", "fill_id")
