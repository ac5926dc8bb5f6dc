"""Nets of trips in compiled code are those of the exact decimals, to the last bit."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trade_pipeline.evaluation import trip_nets as subject
from trade_pipeline.evaluation.trades import FILL_SCHEMA, match_fills
from trade_pipeline.evaluation.trip_nets import trip_nets

START = datetime(2024, 1, 1, tzinfo=UTC)
Trade = tuple[str, float, float, float]  # instrument, quantity, price, fee


def table(trades: list[Trade]) -> pl.DataFrame:
    rows: list[dict[str, Any]] = [
        {
            "time": START + timedelta(minutes=number),
            "row": number,
            "instrument": instrument,
            "quantity": quantity,
            "price": price,
            "fee": fee,
            "slippage": 0.0,
            "reason": "order",
            "fill_id": number,
        }
        for number, (instrument, quantity, price, fee) in enumerate(trades)
    ]
    return pl.DataFrame(rows, schema=FILL_SCHEMA)


def compiled(fills: pl.DataFrame) -> np.ndarray | None:
    """What compiled code says alone; None where it leaves it to the decimals."""
    found = subject._in_order(fills)
    assert found is not None
    instrument, numbers, instruments = found
    nets = np.empty(len(instrument))
    closed = subject._sum_trips(instrument, *numbers, np.zeros(instruments, subject.BOOK), nets)
    return None if closed < 0 else nets[:closed]


def exact(fills: pl.DataFrame) -> np.ndarray:
    return match_fills(fills).trips["net"].to_numpy()


numbers = st.one_of(
    st.integers(1, 2_000).map(float),
    st.integers(1, 10**7).map(lambda n: n / 100),
    st.integers(1, 10**12).map(lambda n: n / 10**8),
    st.floats(1e-5, 1e6),
)
fees = st.one_of(st.just(0.0), numbers, numbers.map(lambda n: -n / 100))


@st.composite
def fill_tables(draw: st.DrawFn) -> pl.DataFrame:
    """Entries, exits in parts and whole, flips, leftovers of float arithmetic."""
    trades: list[Trade] = []
    held = {"a": 0.0, "b": 0.0}
    for _ in range(draw(st.integers(0, 30))):
        name = draw(st.sampled_from("ab"))
        how = draw(st.sampled_from(["any", "close", "part", "flip", "dust"]))
        if how == "any" or not held[name]:
            quantity = draw(numbers) * draw(st.sampled_from([1, -1]))
        elif how == "close":
            quantity = -held[name]
        elif how == "part":
            quantity = -held[name] * draw(st.sampled_from([0.5, 0.25, 1 / 3]))
        elif how == "flip":
            quantity = -held[name] * 2
        else:
            quantity = -held[name] * draw(st.sampled_from([1 - 1e-10, 1 + 1e-10, 1 - 2e-16]))
        held[name] += quantity
        if quantity:
            trades.append((name, quantity, draw(numbers), draw(fees)))
    return table(trades)


@settings(max_examples=400, deadline=None)
@given(fills=fill_tables())
@example(fills=table([("a", 0.1, 1.5, 0.0), ("a", 0.2, 2.5, 0.0), ("a", -0.3, 2.0, 0.0)]))
@example(fills=table([("a", 1.0, 1.0, 0.1), ("a", -1.0, 1.3, 0.2)]))
@example(fills=table([("a", 0.3, 7.0, 0.1), ("a", -0.1, 8.0, 0.2), ("a", -0.2, 6.0, 0.0)]))
def test_nets_are_those_of_the_exact_decimals(fills: pl.DataFrame) -> None:
    assert trip_nets(fills).tobytes() == exact(fills).tobytes()


@pytest.mark.parametrize("quantities", ["one", "random", "flips", "parts"])
def test_ordinary_trades_need_no_decimals(quantities: str) -> None:
    rng = np.random.default_rng(0)
    prices = np.round(100 * np.exp(np.cumsum(rng.normal(0, 1e-3, 4_000))), 2) * (1 + 2e-4)
    sizes = np.ones(4_000) if quantities == "one" else rng.uniform(0.1, 9, 4_000)
    signs = np.tile([1.0, -1.0], 2_000)
    if quantities in ("one", "random"):
        sizes[1::2] = sizes[::2]
    elif quantities == "flips":  # each sells all that is held, and as much as it likes beyond
        sizes[1:] += sizes[:-1].copy()
    elif quantities == "parts":
        sizes = np.tile([1.5, 0.7, 1.0, 1.2], 1_000)
        signs = np.tile([1.0, 1.0, -1.0, -1.0], 1_000)
    trades = [
        ("a", float(size * sign), float(price), float(abs(size) * price * 0.0026))
        for size, sign, price in zip(sizes, signs, prices, strict=True)
    ]
    fills = table(trades)
    found = compiled(fills)
    assert found is not None
    assert found.size > 900
    assert found.tobytes() == exact(fills).tobytes()


def test_rows_out_of_order_and_repeats_are_left_to_the_decimals() -> None:
    fills = table([("a", 1.0, 10.0, 0.1), ("a", -1.0, 12.0, 0.1), ("a", 2.0, 11.0, 0.0)])
    for given_ in (fills.reverse(), pl.concat([fills, fills])):
        assert trip_nets(given_).tolist() == [1.8]
    with pytest.raises(ValueError, match="no column fee"):
        trip_nets(fills.drop("fee"))
    with pytest.raises(ValueError, match="finite number"):
        trip_nets(fills.with_columns(price=pl.lit(np.inf)))


@settings(max_examples=500, deadline=None)
@given(number=st.one_of(numbers, st.floats(1e-6, 9e14), st.floats(-9e14, -1e-6)))
@example(number=9007199254740993.0 / 16)
@example(number=0.3 - 0.1)
@example(number=5e-6)
@example(number=2.0**-19)
def test_a_number_is_the_decimal_that_it_prints_as(number: float) -> None:
    (high, low), decimals = subject._decimal(number)
    if decimals < 0:
        assert abs(number) < 1e-5
        return
    printed = Decimal(repr(number))
    away = Fraction(printed) - Fraction(high) - Fraction(low)
    assert high == number
    assert abs(away) <= abs(Fraction(number)) / 2**103
    assert -int(printed.normalize().as_tuple().exponent) <= decimals
