"""Trade matching against worked examples, and exactly on random fills."""

import json
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.evaluation.excursions import excursions
from trade_pipeline.evaluation.trades import (
    EXACT,
    FILL_SCHEMA,
    MATCH_SCHEMA,
    OPEN_LOT_SCHEMA,
    TRIP_SCHEMA,
    ledger,
    match_fills,
)

START = datetime(2024, 1, 1, tzinfo=UTC)
FIFO_CASES = (
    "1 simple long",
    "2 partial exits",
    "3 scale-in FIFO",
    "4 flip through zero",
    "5 short, partial fills of one order, open end",
    "6 maker rebate + crypto dust",
)


def fill_table(rows, instrument="BTC-USD"):
    """Fills of [time, side, quantity, price, fee] rows; the fill id is the row number."""
    return pl.DataFrame(
        [
            {
                "time": START + timedelta(minutes=minute),
                "row": minute,
                "instrument": instrument,
                "quantity": float(side * quantity),
                "price": float(price),
                "fee": float(fee),
                "slippage": 0.0,
                "reason": "order",
                "fill_id": number,
            }
            for number, (minute, side, quantity, price, fee) in enumerate(rows)
        ],
        schema=FILL_SCHEMA,
    )


def close_to(found: Decimal, expected: str) -> bool:
    """Equal but for the examples' 28 digits: the last digits of a split fee."""
    return abs(found - Decimal(expected)) <= Decimal("1e-26")


@pytest.fixture(scope="module")
def fifo_cases(shared_data):
    return json.loads((shared_data / "vectors" / "fifo_cases.json").read_text())


@pytest.mark.parametrize("name", FIFO_CASES)
def test_matching_follows_the_worked_example(fifo_cases, name):
    assert set(fifo_cases) == set(FIFO_CASES)
    case = fifo_cases[name]
    found = ledger(fill_table(case["fills"]))
    assert len(found.matches) == len(case["matches"])
    for match, expected in zip(found.matches, case["matches"], strict=True):
        assert match.entry == int(expected["entry"])
        assert match.exit == int(expected["exit"])
        assert match.side == int(expected["side"])
        assert match.quantity == Decimal(expected["qty"])
        assert match.entry_price == Decimal(expected["ep"])
        assert match.exit_price == Decimal(expected["xp"])
        assert match.gross == Decimal(expected["gross"])
        assert close_to(match.fee, expected["fee"])
        assert close_to(match.net, expected["net"])
    assert len(found.lots) == len(case["open"])
    for lot, expected in zip(found.lots, case["open"], strict=True):
        assert lot.entry == int(expected["i"])
        assert lot.side == int(expected["s"])
        assert lot.quantity == Decimal(expected["q"])
        assert lot.price == Decimal(expected["p"])
        assert lot.fee == Decimal(expected["f"])
    assert found.dust == ()


quantities = st.integers(1, 10**7).map(lambda steps: steps / 10**5)
prices = st.integers(1, 10**8).map(lambda ticks: ticks / 100)
fees = st.floats(-10, 1e4, allow_nan=False)
fill_rows = st.lists(
    st.tuples(st.sampled_from([-1, 1]), quantities, prices, fees), min_size=1, max_size=30
)
any_float = st.floats(1e-8, 1e12, allow_nan=False)
wild_rows = st.lists(
    st.tuples(st.sampled_from([-1, 1]), any_float, any_float, fees), min_size=1, max_size=12
)


@settings(deadline=None)
@given(rows=st.one_of(fill_rows, wild_rows), mark=prices)
def test_net_and_unrealised_sum_to_the_change_in_equity_exactly(rows, mark):
    found = ledger(fill_table([(minute, *row) for minute, row in enumerate(rows)]))
    with localcontext(EXACT):
        last = Decimal(repr(mark))
        cash = position = Decimal(0)
        for side, *numbers in rows:
            quantity, price, fee = (Decimal(repr(number)) for number in numbers)
            cash -= side * quantity * price + fee
            position += side * quantity
        realised = sum((match.net for match in found.matches), Decimal(0))
        open_lots = found.lots + found.dust
        unrealised = sum((lot.unrealised(last) for lot in open_lots), Decimal(0))
        assert realised + unrealised == cash + position * last
        assert sum((lot.side * lot.quantity for lot in open_lots), Decimal(0)) == position


@settings(deadline=None)
@given(rows=fill_rows)
def test_a_trip_goes_from_flat_to_flat_and_sums_its_matches(rows):
    fills = fill_table([(minute, *row) for minute, row in enumerate(rows)])
    tables = match_fills(fills)
    assert tables.matches.schema == pl.Schema(MATCH_SCHEMA)
    assert tables.trips.schema == pl.Schema(TRIP_SCHEMA)
    assert tables.open_lots.schema == pl.Schema(OPEN_LOT_SCHEMA)
    for trip in tables.trips.iter_rows(named=True):
        parts = tables.matches.filter(pl.col("trip") == trip["trip"])
        assert parts["net"].sum() == pytest.approx(trip["net"], abs=1e-6, rel=1e-9)
        assert parts["quantity"].sum() == pytest.approx(trip["quantity"])
        assert (parts["side"] == trip["side"]).all()
    assert not set(tables.trips["trip"]) & set(tables.open_lots["trip"])


def test_a_flip_ends_one_trip_and_begins_the_next_at_the_same_time():
    tables = match_fills(fill_table([(1, 1, 2, 100, 0), (2, -1, 5, 110, 0), (3, 1, 3, 105, 0)]))
    assert tables.trips["side"].to_list() == ["long", "short"]
    assert tables.trips["exit_time"][0] == tables.trips["entry_time"][1]
    assert tables.trips["net"].to_list() == [20.0, 15.0]


def test_what_float_arithmetic_leaves_over_is_no_trade():
    # The account held 0.1 + 0.2 = 0.30000000000000004 and closed just that, twice.
    rows = [(1, 1, 0.1, 100, 1), (2, 1, 0.2, 100, 1), (3, -1, 0.1 + 0.2, 110, 1)]
    again = [(minute + 3, *rest) for minute, *rest in rows]
    found = ledger(fill_table(rows + again))
    assert len(found.matches) == 4
    assert found.lots == ()
    assert [lot.quantity for lot in found.dust] == [Decimal("4E-17")] * 2
    assert [lot.fee for lot in found.dust] == [0, 0]
    tables = match_fills(fill_table(rows + again))
    assert tables.trips.height == 2
    assert tables.trips["fee"].to_list() == [3.0, 3.0]
    short = ledger(fill_table([(1, 1, 0.1 + 0.2, 100, 1), (2, -1, 0.3, 110, 1)]))
    assert (len(short.matches), short.lots, short.matches[0].fee) == (1, (), 2)


def test_instruments_are_kept_apart():
    btc = fill_table([(1, 1, 1, 100, 0), (3, -1, 1, 110, 0)])
    eth = fill_table([(2, -1, 1, 50, 0)], "ETH-USD").with_columns(fill_id=pl.lit(9, pl.Int64))
    tables = match_fills(pl.concat([eth, btc]))
    assert tables.trips["instrument"].to_list() == ["BTC-USD"]
    assert tables.open_lots["instrument"].to_list() == ["ETH-USD"]
    assert tables.open_lots["side"].to_list() == ["short"]


def test_no_fills_give_empty_tables():
    tables = match_fills(fill_table([]))
    assert [table.height for table in tables] == [0, 0, 0]
    assert tables.trips.schema == pl.Schema(TRIP_SCHEMA)


def test_a_repeated_fill_counts_once_and_a_contradicting_one_is_an_error():
    fills = fill_table([(1, 1, 1, 100, 0), (2, -1, 1, 110, 0)])
    assert match_fills(pl.concat([fills, fills])).trips.height == 1
    other = fills.with_columns(price=pl.col("price") + 1)
    with pytest.raises(ValueError, match="fill 0 comes again with different content"):
        match_fills(pl.concat([fills, other]))


@pytest.mark.parametrize(
    ("column", "value"), [("quantity", 0.0), ("price", float("nan")), ("fee", None)]
)
def test_an_unusable_fill_is_named(column, value):
    fills = fill_table([(1, 1, 1, 100, 0)]).with_columns(pl.lit(value).alias(column))
    with pytest.raises(ValueError, match="fill 0 of BTC-USD"):
        match_fills(fills)


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column fee"):
        match_fills(fill_table([]).drop("fee"))


def test_thirty_thousand_fills_match_within_seconds():
    random = np.random.default_rng(0)
    size = 30_000
    rows = zip(
        range(size),
        random.choice([-1, 1], size),
        random.random(size) + 0.1,
        100 + random.random(size),
        random.random(size),
        strict=True,
    )
    fills = fill_table(rows)
    begun = time.perf_counter()
    match_fills(fills)
    assert time.perf_counter() - begun < 20  # measured 1.5 s; the bound only catches a blow-up


@pytest.fixture(scope="module")
def excursion_cases(shared_data):
    return json.loads((shared_data / "vectors" / "mfe_mae_cases.json").read_text())


@pytest.mark.parametrize("number", range(4))
def test_excursions_follow_the_worked_example(excursion_cases, number):
    assert len(excursion_cases["cases"]) == 4
    case = excursion_cases["cases"][number]
    bars = np.array(excursion_cases["bars"], dtype=float)
    row, _, price = case["entry"]
    trade = {
        "instrument": "X",
        "side": {"L": "long", "S": "short"}[case["side"]],
        "entry_row": row,
        "entry_price": float(price),
    }
    if case["exit"] is not None:
        row, where, price = case["exit"]
        reason = {"open": "order", "intrabar": "stop"}[where]
        trade |= {"exit_row": row, "exit_price": float(price), "exit_reason": reason}
    found = excursions(pl.DataFrame([trade]), {"X": bars[:, 2]}, {"X": bars[:, 3]})
    assert found.select("mfe", "mae", "mfe_hi").row(0) == (
        case["mfe"],
        case["mae"],
        case["mfe_hi"],
    )


def test_a_trip_in_parts_is_measured_from_the_mean_entry_of_what_it_holds():
    """Bought at 100 and 110, half sold at 104: held from 100, then 105, then 110 (first out)."""
    fills = fill_table(
        [(0, 1, 1, 100, 0), (2, 1, 1, 110, 0), (4, -1, 1, 104, 0), (6, -1, 1, 107, 0)]
    )
    tables = match_fills(fills)
    high = np.array([101.0, 103.0, 112.0, 111.0, 116.0, 115.0, 200.0])
    low = np.array([99.0, 98.0, 104.0, 101.0, 102.0, 106.0, 1.0])
    rows = tables.trips["entry_row"][0], tables.trips["exit_row"][0]
    bars = {"BTC-USD": high}, {"BTC-USD": low}
    assert rows == (0, 6)
    assert tables.trips.select("entry_price", "first_price", "exit_price", "last_price").row(0) == (
        105.0,
        100.0,
        105.5,
        107.0,
    )
    found = excursions(tables.trips, *bars, tables.matches)
    # For: 103 over 100, 112 over 105, 116 over 110. Against: 98 under 100, 101 under 105, 102
    # under 110; the exit at 107 is 3 under 110.
    assert found.select("mfe", "mae", "mfe_hi").row(0) == (7.0, 8.0, 7.0)
    short = fills.with_columns(quantity=-pl.col("quantity"))
    tables = match_fills(short)
    found = excursions(tables.trips, *bars, tables.matches)
    assert found.select("mfe", "mae", "mfe_hi").row(0) == (8.0, 7.0, 8.0)
    single = match_fills(fills.head(1).vstack(fills.tail(1)))
    with_matches = excursions(single.trips, *bars, single.matches)
    assert with_matches.equals(excursions(single.trips, *bars))


def test_an_exit_at_a_slice_end_counts_its_whole_bar():
    trade = {
        "instrument": "X",
        "side": "short",
        "entry_row": 0,
        "entry_price": 100.0,
        "exit_row": 1,
        "exit_price": 99.0,
        "exit_reason": "slice_end",
    }
    high, low = np.array([101.0, 104.0, 150.0]), np.array([98.0, 97.0, 50.0])
    found = excursions(pl.DataFrame([trade]), {"X": high}, {"X": low})
    assert found.select("mfe", "mae", "mfe_hi").row(0) == (3.0, 4.0, 3.0)


def test_excursions_take_every_table_of_match_fills():
    fills = fill_table([(0, 1, 2, 100, 0), (1, -1, 1, 101, 0), (2, -1, 1, 99, 0), (2, 1, 1, 99, 0)])
    high, low = {"BTC-USD": np.full(4, 103.0)}, {"BTC-USD": np.full(4, 98.0)}
    for table in match_fills(fills):
        assert (excursions(table, high, low)["mfe"] >= 0).all()
    none = match_fills(fills.clear()).trips
    assert excursions(none, high, low).columns[-3:] == ["mfe", "mae", "mfe_hi"]
