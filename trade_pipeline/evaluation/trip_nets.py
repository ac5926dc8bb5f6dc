"""Net results of trades in compiled code, the same floats as `trades.match_fills` gives.

What a trip from flat to flat earns needs no matching: it is the cash of its fills. That cash is
summed in pairs of floats (Dekker, "A floating-point technique for extending the available
precision", 1971) with a bound on the error, from the decimals that prices, quantities and fees
print as. A sum whose rounding the bound leaves open, and anything out of the ordinary, is left to
the exact decimals. Start at `trip_nets`.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.evaluation.measure import FloatArray
from trade_pipeline.evaluation.trades import DUST, FILL_SCHEMA, match_fills
from trade_pipeline.simulator.compiled import compiled

IntArray = npt.NDArray[np.int64]
Pair = tuple[float, float]  # the number is their sum; the second is below half a step of the first

POWERS = np.array([10.0**k for k in range(23)])  # exact in float64
SMALLEST, LARGEST = 1e-6, 1e15  # of numbers whose 17 digits `POWERS` reach
FEW_DECIMALS = 5  # most prices and quantities have fewer
SPLITTER = 134217729.0  # 2^27 + 1 halves a mantissa
STEP = 2.0**-98  # more than a few operations on pairs lose, as a fraction
MOST_DUST = float(DUST)
NEAR_LIMIT = 1e-6  # a leftover so near the limit of dust is left to the exact decimals
# What is known of an instrument since it was flat. Amounts that are pairs have a field `_low`.
BOOK = np.dtype(
    [
        *((name, np.float64) for name in ("held", "held_low", "held_doubt")),
        *((name, np.float64) for name in ("cash", "cash_low", "cash_doubt")),
        *((name, np.float64) for name in ("newest", "newest_price", "newest_price_low")),
        ("largest", np.float64),
        *((f"{name}_decimals", np.int64) for name in ("quantity", "price", "fee")),
        ("has_quotient", np.bool_),
    ]
)


def trip_nets(fills: pl.DataFrame) -> FloatArray:
    """Net result of each closed trip, quote currency, in the order in which they closed.

    Args:
        fills: columns of `FILL_SCHEMA`, in any order of rows.

    Returns:
        `match_fills(fills).trips["net"]`, to the last bit.

    Raises:
        ValueError: see `match_fills`.
    """
    found = _in_order(fills)
    if found is not None:
        nets = np.empty(fills.height)
        instrument, (quantities, prices, fees), instruments = found
        books = np.zeros(instruments, BOOK)
        closed = _sum_trips(instrument, quantities, prices, fees, books, nets)
        if closed >= 0:
            return nets[:closed]
    return match_fills(fills).trips["net"].to_numpy()


def _in_order(fills: pl.DataFrame) -> tuple[IntArray, list[FloatArray], int] | None:
    """Number of the instrument of each fill, their quantities, prices and fees, and instruments.

    None where rows are out of order, come twice, or lack something.
    """
    needed = ("time", "instrument", "quantity", "price", "fee", "fill_id")
    if dict(fills.schema) != FILL_SCHEMA or any(fills[name].null_count() for name in needed):
        return None
    later = np.diff(fills["time"].to_physical().to_numpy()) >= 0
    newer = np.diff(fills["fill_id"].to_numpy()) > 0
    numbers = [fills[name].to_numpy() for name in ("quantity", "price", "fee")]
    if not (later.all() and newer.all() and all(np.isfinite(one).all() for one in numbers)):
        return None
    names = fills["instrument"].unique(maintain_order=True)
    if len(names) <= 1:
        return np.zeros(fills.height, np.int64), numbers, 1
    number = fills["instrument"].replace_strict(names, np.arange(len(names)), return_dtype=pl.Int64)
    return number.to_numpy(), numbers, len(names)


@compiled
def _sum_trips(
    instrument: IntArray,
    quantities: FloatArray,
    prices: FloatArray,
    fees: FloatArray,
    books: Any,
    nets: FloatArray,
) -> int:
    """Trips closed, their nets written; -1 where something is left to the exact decimals."""
    closed = 0
    for i in range(len(instrument)):
        quantity, quantity_decimals = _decimal(quantities[i])
        price, price_decimals = _decimal(prices[i])
        fee, fee_decimals = _decimal(fees[i])
        if min(quantity_decimals, price_decimals, fee_decimals) < 0 or quantity[0] == 0.0:
            return -1
        book = books[instrument[i]]
        book.quantity_decimals = max(book.quantity_decimals, quantity_decimals)
        book.price_decimals = max(book.price_decimals, price_decimals)
        book.fee_decimals = max(book.fee_decimals, fee_decimals)
        held = (book.held, book.held_low)
        total = _sum(held, quantity)
        book.held_doubt += (abs(held[0]) + abs(quantity[0])) * STEP
        is_flat = abs(total[0]) <= book.held_doubt
        if is_flat and not 2 * book.held_doubt < 10.0 ** -float(book.quantity_decimals):
            return -1
        left = abs(total[0])
        goes_on = (total[0] > 0) == (quantity[0] > 0)  # to the side that was traded
        spent = _product(quantity, price)
        if held[0] == 0.0 or (held[0] > 0) == (quantity[0] > 0):
            book.largest = max(book.largest, left)
            book.newest = abs(quantity[0])
            book.newest_price, book.newest_price_low = price
            _pay(book, _sum(spent, fee))
            book.held, book.held_low = total
            continue
        limit = MOST_DUST * book.largest
        if (not is_flat) and abs(left - limit) <= NEAR_LIMIT * limit:
            return -1
        is_dust = (not is_flat) and left < limit
        if not (is_flat or is_dust or goes_on):
            _pay(book, _sum(spent, fee))
            book.held, book.held_low = total
            continue
        if (not is_flat) and goes_on:  # more was traded than was held
            spent = _product(_minus(held), price)
        elif is_dust:  # what is left belongs to the newest entry, at its price
            if not left < book.newest:
                return -1
            spent = _sum(spent, _minus(_product(total, (book.newest_price, book.newest_price_low))))
        closing_fee = fee
        flips = not (is_flat or is_dust)
        if flips:
            closing_fee = _quotient(_product(fee, held), _minus(quantity))
            book.has_quotient = True
        _pay(book, _sum(spent, closing_fee))
        nets[closed] = _rounded(book)
        if math.isnan(nets[closed]):
            return -1
        closed += 1
        held_doubt, held_decimals = book.held_doubt, book.quantity_decimals
        _forget(book)
        if flips:
            book.held, book.held_low = total
            book.held_doubt, book.quantity_decimals = held_doubt, held_decimals
            book.largest = book.newest = left
            book.newest_price, book.newest_price_low = price
            book.cash_doubt = held_doubt * abs(price[0]) + abs(fee[0]) * STEP
            _pay(book, _sum(_product(total, price), _sum(fee, _minus(closing_fee))))
            book.has_quotient = True
    return closed


@compiled
def _pay(book: Any, amount: Pair) -> None:
    """Take an amount from a book's cash; what a pair of floats loses of it is in doubt."""
    cash = _sum((book.cash, book.cash_low), _minus(amount))
    book.cash, book.cash_low = cash
    book.cash_doubt += (abs(amount[0]) + abs(cash[0])) * STEP


@compiled
def _forget(book: Any) -> None:
    """Be flat, as at the beginning."""
    book.held = book.held_low = book.held_doubt = 0.0
    book.cash = book.cash_low = book.cash_doubt = 0.0
    book.largest = 0.0
    book.quantity_decimals = book.price_decimals = book.fee_decimals = 0
    book.has_quotient = False


@compiled
def _rounded(book: Any) -> float:
    """The float next to a book's cash; NaN where what is in doubt leaves it open."""
    high, low, doubt = book.cash, book.cash_low, book.cash_doubt
    if abs(high) <= doubt:
        decimals = max(book.quantity_decimals + book.price_decimals, book.fee_decimals)
        exact = (not book.has_quotient) and 2 * doubt < 10.0 ** -float(decimals)
        return 0.0 if exact else math.nan
    fraction, exponent = math.frexp(high)
    half = math.ldexp(1.0, exponent - 54)
    if abs(fraction) == 0.5 and (low > 0) != (high > 0):
        half /= 2  # floats lie nearer to each other below a power of two
    return high if abs(low) + doubt < half else math.nan


@compiled
def _decimal(number: float) -> tuple[Pair, int]:
    """The decimal that a float prints as, and decimals that hold it; these are -1 if unknown.

    The shortest one that reads as the float again, of these the nearest, as Python's repr.
    """
    size = abs(number)
    if size == 0.0:
        return (0.0, 0.0), 0
    if not SMALLEST <= size < LARGEST:
        return (0.0, 0.0), -1
    for k in range(FEW_DECIMALS):
        whole = np.rint(size * POWERS[k])
        if whole < 1e15 and whole / POWERS[k] == size:
            return _signed(number, size, k, int(whole)), k
    fraction, exponent = math.frexp(size)
    half = math.ldexp(1.0, exponent - 54)
    if fraction == 0.5:
        half /= 2
    before = 1
    while before < 16 and POWERS[before] <= size:
        before += 1
    if size < 1.0:
        before = 0
        while size * POWERS[1 - before] < 1.0:
            before -= 1
    for digits in range(15, 18):
        k = digits - before
        if k > 22:
            return (0.0, 0.0), -1
        product = _exact_product(size, POWERS[k])
        whole = np.rint(product[0])
        rest = (product[0] - whole) + product[1]
        value = int(whole) + int(np.rint(rest))
        away = abs(np.rint(rest) - rest) / POWERS[k]
        if away < half * (1 - 1e-9):
            return _signed(number, size, k, value), k
        if away <= half * (1 + 1e-9):
            return (0.0, 0.0), -1
    return (0.0, 0.0), -1


@compiled
def _signed(number: float, size: float, k: int, whole: int) -> Pair:
    """`whole` / 10^k, which is next to `size`, with the sign of a number."""
    product = _exact_product(size, POWERS[k])
    nearest = np.rint(product[0])
    away = (float(whole - int(nearest)) + (nearest - product[0])) - product[1]
    low = away / POWERS[k]
    return (number, low) if number > 0 else (number, -low)


@compiled
def _exact_product(a: float, b: float) -> Pair:
    product = a * b
    scaled_a, scaled_b = SPLITTER * a, SPLITTER * b
    high_a, high_b = scaled_a - (scaled_a - a), scaled_b - (scaled_b - b)
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    return product, error


@compiled
def _product(a: Pair, b: Pair) -> Pair:
    high, low = _exact_product(a[0], b[0])
    return _normal(high, low + (a[0] * b[1] + a[1] * b[0]))


@compiled
def _sum(a: Pair, b: Pair) -> Pair:
    high, low = _exact_sum(a[0], b[0])
    other_high, other_low = _exact_sum(a[1], b[1])
    high, low = _normal(high, low + other_high)
    return _normal(high, low + other_low)


@compiled
def _quotient(a: Pair, b: Pair) -> Pair:
    first = a[0] / b[0]
    rest = _sum(a, _minus(_product((first, 0.0), b)))
    second = rest[0] / b[0]
    rest = _sum(rest, _minus(_product((second, 0.0), b)))
    high, low = _normal(first, second)
    return _normal(high, low + rest[0] / b[0])


@compiled
def _minus(a: Pair) -> Pair:
    return -a[0], -a[1]


@compiled
def _exact_sum(a: float, b: float) -> Pair:
    high = a + b
    other = high - a
    return high, (a - (high - other)) + (b - other)


@compiled
def _normal(high: float, low: float) -> Pair:
    total = high + low
    return total, low - (total - high)
