import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from trade_pipeline.market.bars import BAR_SCHEMA, empty_bars, violations
from trade_pipeline.market.rebuild import (
    TRADE_SCHEMA,
    TradePage,
    TradesBodyError,
    TradesOrderError,
    bars_of_trades,
    parse_trades,
    require_contiguous,
)

from .series import MINUTE, START, crypto

PAIR = "XBTUSDT"
LAST = "1762820035982277754"
MINUTE_NS = MINUTE * 1_000_000
FIRST_ID = 10_218_208
TRADE = ["105899.40000", "0.00009443", "1762820035.9822779", "s", "m", "", FIRST_ID]


def body(rows: Any, last: Any = LAST, pair: str = PAIR) -> dict[str, Any]:
    return {"error": [], "result": {pair: rows, "last": last}}


def with_field(at: int, value: object) -> dict[str, Any]:
    """A page whose second trade has this value in one of its fields."""
    return body([TRADE, [*TRADE[:at], value, *TRADE[at + 1 :]]])


def trades_at(times_ns: list[int], prices: list[float] | None = None) -> pl.DataFrame:
    """Contiguous trades at these times after `START`."""
    count = len(times_ns)
    return pl.DataFrame(
        {
            "id": [FIRST_ID + index for index in range(count)],
            "time": [START * 1_000_000 + time for time in times_ns],
            "price": prices or [100.0 + index % 7 for index in range(count)],
            "volume": [0.1 * (1 + index % 5) for index in range(count)],
        },
        schema=TRADE_SCHEMA,
    )


def opens(bars: pl.DataFrame) -> list[int]:
    """Minutes after `START` at which these bars open."""
    return [(at - START) // MINUTE for at in bars["ts"].dt.epoch("ms").to_list()]


def within(start: int, end: int) -> tuple[int, int]:
    return START + start * MINUTE, START + end * MINUTE


def recorded(shared_data: Path) -> TradePage:
    text = (shared_data / "kraken_http" / "http_trades.json").read_text()
    return parse_trades(json.loads(text, parse_float=str), PAIR)


def test_rebuilding_the_recorded_trades_gives_the_recorded_candles(shared_data: Path) -> None:
    page = recorded(shared_data)
    assert page.trades.height == 1000
    assert page.last == LAST

    bars, confirmed = bars_of_trades(page.trades, MINUTE)

    assert confirmed is not None
    candles = json.loads((shared_data / "kraken_http" / "http_ohlc.json").read_text())
    inside = [
        row
        for row in candles["result"][PAIR]
        if confirmed[0] <= row[0] * 1000 < confirmed[1] and row[7] > 0
    ]
    assert bars.height == len(inside) == 272
    assert bars["ts"].dt.epoch("s").to_list() == [row[0] for row in inside]
    for name, at in {"open": 1, "high": 2, "low": 3, "close": 4}.items():
        assert bars[name].to_list() == [float(row[at]) for row in inside]
    assert bars["trades"].to_list() == [row[7] for row in inside]
    assert bars["volume"].to_list() == [float(row[6]) for row in inside]
    # Every candle without a trade in the confirmed time is a minute that has no bar.
    assert (confirmed[1] - confirmed[0]) // MINUTE - bars.height == sum(
        confirmed[0] <= row[0] * 1000 < confirmed[1] and row[7] == 0
        for row in candles["result"][PAIR]
    )
    assert violations(bars, crypto(), 2025).is_empty()


@pytest.mark.parametrize("as_text", [True, False])
def test_numbers_may_be_quoted_or_whole_as_ccxt_and_json_decode_them(as_text: bool) -> None:
    trade = [*TRADE[:6], str(FIRST_ID) if as_text else FIRST_ID]
    page = parse_trades(body([trade]), PAIR)
    assert page.trades.rows() == [(FIRST_ID, 1_762_820_035_982_277_900, 105899.4, 0.00009443)]
    assert dict(page.trades.schema) == TRADE_SCHEMA


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1762820159.999999999", 1_762_820_159_999_999_999),  # as a float this is ...160.0
        ("1762820160.000000001", 1_762_820_160_000_000_001),
        ("1762820160.1", 1_762_820_160_100_000_000),
        ("1762820160", 1_762_820_160_000_000_000),
        (1762820160, 1_762_820_160_000_000_000),
        ("8999999999.999999999", 8_999_999_999_999_999_999),
    ],
)
def test_times_are_parsed_to_the_nanosecond(text: object, nanoseconds: int) -> None:
    page = parse_trades(body([[*TRADE[:2], text, *TRADE[3:]]]), PAIR)
    assert page.trades["time"].to_list() == [nanoseconds]


@given(st.integers(10**18, 9 * 10**18 - 1))
def test_any_time_survives_being_written_with_nine_decimals(nanoseconds: int) -> None:
    seconds, fraction = divmod(nanoseconds, 10**9)
    page = parse_trades(body([[*TRADE[:2], f"{seconds}.{fraction:09d}", *TRADE[3:]]]), PAIR)
    assert page.trades["time"].to_list() == [nanoseconds]


def test_a_page_without_trades_is_a_page() -> None:
    page = parse_trades(body([]), PAIR)
    assert_frame_equal(page.trades, pl.DataFrame(schema=TRADE_SCHEMA))
    assert page.last == LAST


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        ("", "is '' instead of a JSON object"),
        ("<html>" + "x" * 500, "instead of a JSON object"),
        ('{"error":[],"result":{"XBT', "instead of a JSON object"),
        (None, "is None instead of a JSON object"),
        ([], r"is \[\] instead of a JSON object"),
        ({}, "reports error None"),
        ({"error": []}, "has result None"),
        ({"error": [], "result": None}, "has result None"),
        ({"error": [], "result": []}, r"has result \[\]"),
        ({"error": [], "result": {}}, r"holds the keys \[\]"),
        ({"error": None, "result": body([])["result"]}, "reports error None"),
        ({"error": ["EService:Busy"], "result": body([])["result"]}, "EService:Busy"),
        ({"error": ["EQuery:Unknown asset pair"]}, "EQuery:Unknown asset pair"),
        (body([], pair="XETHZUSD"), "'XETHZUSD'"),
        ({"error": [], "result": {PAIR: [], "XETHZUSD": [], "last": LAST}}, "'XETHZUSD'"),
        ({"error": [], "result": {"last": LAST}}, f"not {PAIR} and last"),
        ({"error": [], "result": {PAIR: []}}, "has last None"),
        (body([], last=None), "has last None"),
        (body([], last=""), "has last ''"),
        (body([], last="0"), "has last '0'"),
        (body([], last="1762820035"), "has last '1762820035'"),  # seconds
        (body([], last=LAST + " "), "has last"),
        (body([], last="-" + LAST[1:]), "has last"),
        (body([], last=int(LAST)), "has last 17"),
        (body([], last=float(LAST)), "has last 1.7"),
        (body(None), "has trades None"),
        (body({}), "has trades {}"),
        (body([TRADE, None]), "position 1 of its trades None"),
        (body([TRADE, TRADE[:6]]), "position 1 .* 7 fields"),
        (with_field(2, 1762820035.9822779), "no time in digits .*parse_float=str"),
        (with_field(2, "1762820035.1234567890"), "no time"),
        (with_field(2, "1762820035982"), "no time"),  # milliseconds
        (with_field(2, "1.7e9"), "no time"),
        (with_field(2, "9999999999"), "no time"),  # more ns than 64 bits hold
        (with_field(2, "١٧٦٢٨٢٠٠٣٥"), "no time"),
        (with_field(0, "nan"), "no price"),
        (with_field(0, "-1.0"), "no price"),
        (with_field(0, "0.00000"), "price 0.00000, which must be above 0"),
        (with_field(0, None), "the price None"),
        (with_field(1, "inf"), "no volume"),
        (with_field(1, ""), "the volume ''"),
        (with_field(6, True), "the id True"),
        (with_field(6, ""), "the id ''"),
        (with_field(6, -1), "no id"),
    ],
)
def test_garbage_is_an_error_and_never_no_trades(garbage: object, said: str) -> None:
    with pytest.raises(TradesBodyError, match=said) as raised:
        parse_trades(garbage, PAIR)
    message = str(raised.value)
    assert message.startswith(f"pair {PAIR}: the answer of /0/public/Trades ")
    assert message.endswith("Ask again from the same cursor.")
    assert len(message) < 400


def test_a_gap_is_named() -> None:
    trades = trades_at(list(range(10)))
    with pytest.raises(TradesOrderError, match="trades 10218211 to 10218213 are missing") as raised:
        require_contiguous(pl.concat([trades[:3], trades[6:8], trades[9:]]))
    assert "between 10218210 and 10218214 (gaps in all: 2)" in str(raised.value)


@pytest.mark.parametrize("column", ["time", "price", "volume"])
def test_an_id_with_two_contents_is_an_error(column: str) -> None:
    trades = trades_at(list(range(5)))
    other = trades[2:3].with_columns(pl.col(column) + 1)
    with pytest.raises(TradesOrderError, match="trade 10218210 comes with two contents"):
        require_contiguous(pl.concat([trades, trades, other]))


def test_equal_trades_with_ids_of_their_own_are_all_kept() -> None:
    trades = trades_at([7] * 4, [100.0] * 4).with_columns(volume=pl.lit(0.5))
    assert_frame_equal(require_contiguous(trades), trades)


def test_time_must_not_fall_as_ids_rise() -> None:
    with pytest.raises(TradesOrderError, match=r"trade 10218210 at .* is earlier than trade"):
        bars_of_trades(trades_at([0, 10, 9, 200]), MINUTE)


def test_a_timeframe_must_be_positive() -> None:
    with pytest.raises(ValueError, match="timeframe_ms is 0"):
        bars_of_trades(trades_at([0]), 0)


@pytest.mark.parametrize(
    "times", [[], [0], [0, 1, MINUTE_NS - 1], [0, MINUTE_NS], [MINUTE_NS - 1, 2 * MINUTE_NS - 1]]
)
def test_trades_that_cover_no_whole_interval_give_nothing(times: list[int]) -> None:
    bars, confirmed = bars_of_trades(trades_at(times), MINUTE)
    assert_frame_equal(bars, empty_bars())
    assert confirmed is None


def test_a_wholly_quiet_window_is_confirmed_without_bars() -> None:
    bars, confirmed = bars_of_trades(trades_at([0, 5 * MINUTE_NS]), MINUTE)
    assert_frame_equal(bars, empty_bars())
    assert confirmed == within(1, 5)


def test_the_edges_are_dropped_and_quiet_minutes_confirmed() -> None:
    minutes_of_trades = [0, 1, 1, 4, 6, 6]
    trades = trades_at(
        [minute * MINUTE_NS + at for at, minute in enumerate(minutes_of_trades)],
        [9.0, 5.0, 7.0, 6.0, 1.0, 2.0],
    )
    bars, confirmed = bars_of_trades(trades, MINUTE)
    assert confirmed == within(1, 6)
    assert opens(bars) == [1, 4]
    assert bars.select("open", "high", "low", "close", "trades").rows() == [
        (5.0, 7.0, 5.0, 7.0, 2),
        (6.0, 6.0, 6.0, 6.0, 1),
    ]
    assert bars["source"].to_list() == ["trades"] * 2
    assert bars["adj_factor"].null_count() == 2
    assert dict(bars.schema) == BAR_SCHEMA


def test_a_trade_on_the_boundary_belongs_to_the_interval_it_opens() -> None:
    times = [MINUTE_NS - 1, MINUTE_NS, 2 * MINUTE_NS - 1, 2 * MINUTE_NS, 3 * MINUTE_NS]
    bars, confirmed = bars_of_trades(trades_at(times, [1.0, 2.0, 3.0, 4.0, 5.0]), MINUTE)
    assert confirmed == within(1, 3)
    assert opens(bars) == [1, 2]
    assert bars.select("open", "close", "trades").rows() == [(2.0, 3.0, 2), (4.0, 4.0, 1)]


def test_a_window_that_starts_or_ends_on_a_boundary_still_drops_its_edges() -> None:
    bars, confirmed = bars_of_trades(trades_at([0, MINUTE_NS, 2 * MINUTE_NS]), MINUTE)
    assert confirmed == within(1, 2)
    assert opens(bars) == [1]


def test_a_busy_second_keeps_every_trade_in_order_of_id() -> None:
    count = 1510
    prices = [100.0 + (index * 7919) % 101 for index in range(count)]
    busy = [MINUTE_NS + 5] * count
    trades = trades_at([0, *busy, 2 * MINUTE_NS], [1.0, *prices, 1.0])
    pages = [trades[start : start + 1000] for start in (0, 500, 1000)]
    bars, _ = bars_of_trades(pl.concat(reversed(pages)), MINUTE)
    assert bars.select("open", "high", "low", "close", "trades").rows() == [
        (prices[0], max(prices), min(prices), prices[-1], count)
    ]


def one_minute_of(volumes: list[float]) -> float:
    """The volume of the bar of trades with these volumes."""
    trades = trades_at(list(range(len(volumes))))
    trades = trades.with_columns(volume=pl.Series(volumes, dtype=pl.Float64))
    start = START * 1_000_000
    (volume,) = bars_of_trades(trades, MINUTE, start, start + MINUTE_NS).bars["volume"]
    return float(volume)


def test_small_volumes_beside_a_huge_one_are_not_lost() -> None:
    assert one_minute_of([1e15, *[0.1] * 10, 0.0]) == 1e15 + 1


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=60))
def test_the_volume_is_the_float_nearest_to_the_sum_of_lots(lots: list[int]) -> None:
    assert one_minute_of([one / 10**8 for one in lots]) == sum(lots) / 10**8


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60))
def test_any_other_volume_is_within_a_rounding_of_the_true_sum(volumes: list[float]) -> None:
    true = math.fsum(volumes)
    assert abs(one_minute_of(volumes) - true) <= math.ulp(true)


def test_with_known_bounds_the_edges_are_bars_too() -> None:
    trades = trades_at([0, 1, MINUTE_NS, 3 * MINUTE_NS + 5], [1.0, 2.0, 3.0, 4.0])
    start, end = START * 1_000_000, START * 1_000_000 + 5 * MINUTE_NS
    bars, confirmed = bars_of_trades(trades, MINUTE, start, end)
    assert confirmed == within(0, 5)
    assert opens(bars) == [0, 1, 3]
    assert bars.select("open", "close", "trades").rows() == [
        (1.0, 2.0, 2),
        (3.0, 3.0, 1),
        (4.0, 4.0, 1),
    ]
    assert bars_of_trades(trades, MINUTE, known_from_ns=start).confirmed == within(0, 3)
    assert bars_of_trades(trades, MINUTE, known_until_ns=end).confirmed == within(1, 5)


def test_a_bound_within_an_interval_leaves_that_interval_out() -> None:
    trades = trades_at([at * MINUTE_NS // 2 for at in range(12)])
    start = START * 1_000_000 + 1
    bars, confirmed = bars_of_trades(trades, MINUTE, start, start + 4 * MINUTE_NS)
    assert confirmed == within(1, 4)
    assert opens(bars) == [1, 2, 3]
    assert bars_of_trades(trades, MINUTE, start, start + MINUTE_NS - 2).confirmed is None


def test_a_known_time_without_a_trade_is_confirmed_to_be_quiet() -> None:
    none = pl.DataFrame(schema=TRADE_SCHEMA)
    start = START * 1_000_000
    bars, confirmed = bars_of_trades(none, MINUTE, start, start + 3 * MINUTE_NS)
    assert_frame_equal(bars, empty_bars())
    assert confirmed == within(0, 3)
    assert bars_of_trades(none, MINUTE, known_from_ns=start).confirmed is None
    assert bars_of_trades(none, MINUTE, known_until_ns=start).confirmed is None


@st.composite
def windows(draw: st.DrawFn) -> pl.DataFrame:
    """Contiguous trades within a few minutes, often at the same time or on a boundary."""
    times = draw(
        st.lists(
            st.one_of(
                st.integers(0, 8).map(lambda minute: minute * MINUTE_NS),
                st.integers(0, 8 * MINUTE_NS),
            ),
            min_size=1,
            max_size=40,
        ).map(sorted)
    )
    count = len(times)
    prices = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    volumes = draw(st.lists(st.floats(0, 1e9), min_size=count, max_size=count))
    trades = trades_at(times, [price / 10 for price in prices])
    return trades.with_columns(volume=pl.Series(volumes, dtype=pl.Float64))


def slow_bars(trades: pl.DataFrame) -> dict[int, list[float]]:
    """Minutes after `START` and their open, high, low, close and count, by the plain way."""
    minutes: dict[int, list[float]] = {}
    for _, time, price, _ in trades.sort("id").rows():
        minutes.setdefault((time - START * 1_000_000) // MINUTE_NS, []).append(price)
    edges = min(minutes), max(minutes)
    return {
        minute: [prices[0], max(prices), min(prices), prices[-1], len(prices)]
        for minute, prices in minutes.items()
        if minute not in edges
    }


@given(windows())
def test_bars_are_those_of_a_plain_loop(trades: pl.DataFrame) -> None:
    bars, _ = bars_of_trades(trades, MINUTE)
    columns = bars.select("open", "high", "low", "close", "trades").rows()
    assert dict(zip(opens(bars), map(list, columns), strict=True)) == slow_bars(trades)


@given(windows(), st.data())
def test_overlapping_pages_in_any_order_give_the_same_bars(
    trades: pl.DataFrame, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, 12), label="page size")
    overlap = data.draw(st.integers(0, size - 1), label="overlap")
    pages = [trades[start : start + size] for start in range(0, trades.height, size - overlap)]
    shuffled = pl.concat(data.draw(st.permutations(pages), label="order of pages"))
    rows = data.draw(st.permutations(range(shuffled.height)), label="order of rows")

    whole = bars_of_trades(trades, MINUTE)
    for together in (pl.concat(pages), shuffled, shuffled[rows]):
        assert_frame_equal(require_contiguous(together), trades)
        joined = bars_of_trades(together, MINUTE)
        assert_frame_equal(joined.bars, whole.bars, check_exact=True)
        assert joined.confirmed == whole.confirmed


@given(windows(), st.data())
def test_confirmed_bars_never_change_when_more_trades_come(
    trades: pl.DataFrame, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, trades.height - 1))
    part = trades[start : data.draw(st.integers(start, trades.height))]
    bars, confirmed = bars_of_trades(part, MINUTE)
    if confirmed is None:
        return
    ms = pl.col("ts").dt.epoch("ms")
    known = bars_of_trades(trades, MINUTE).bars.filter(ms >= confirmed[0], ms < confirmed[1])
    assert_frame_equal(bars, known, check_exact=True)


@given(windows(), st.data())
def test_taking_a_window_in_parts_gives_its_bars(trades: pl.DataFrame, data: st.DataObject) -> None:
    """As a crawl does: whole minutes of what has come, the rest with the next pages."""
    start, end = START * 1_000_000, START * 1_000_000 + 9 * MINUTE_NS
    whole = bars_of_trades(trades, MINUTE, start, end)
    cuts = data.draw(st.lists(st.integers(1, trades.height), max_size=5).map(sorted))
    parts, waiting, known, done = [], trades[:0], start, 0
    for cut in cuts:
        waiting = pl.concat([waiting, trades[done:cut]])
        done = cut
        part = bars_of_trades(waiting, MINUTE, known, int(waiting["time"][-1]))
        if part.confirmed is not None:
            assert part.confirmed[0] * 1_000_000 == known
            known = part.confirmed[1] * 1_000_000
            parts.append(part.bars)
            waiting = waiting.filter(pl.col("time") >= known)
    rest = bars_of_trades(pl.concat([waiting, trades[done:]]), MINUTE, known, end)
    assert_frame_equal(pl.concat([*parts, rest.bars]), whole.bars, check_exact=True)
    assert whole.confirmed == within(0, 9)
