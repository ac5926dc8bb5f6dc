"""What tests may rely on when they use `FakeKraken` and `MadeMarket`, and the traps of ccxt."""

import http.client
import json
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import ccxt
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline_tests.fakes.kraken import (
    GARBAGE,
    PERMANENT,
    SILENT,
    TRANSIENT,
    Clock,
    FakeKraken,
    MadeMarket,
)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
NS_PER_MS, NS_PER_S = 1_000_000, 1_000_000_000
START = 1_735_689_600_000  # 2025-01-01
BUSY = START + 2 * HOUR + 7_000
HALT = (START + 3 * HOUR, START + 6 * HOUR)
MARKET = MadeMarket(7, START, START + 2 * DAY, halts=[HALT], busy_seconds={BUSY: 1_500})
NOW = START + DAY + 30_500


@pytest.fixture
def clock() -> Clock:
    return Clock(NOW)


@pytest.fixture
def fake(clock: Clock) -> Iterator[FakeKraken]:
    with FakeKraken(MARKET, clock) as fake:
        yield fake
    assert not fake.unused


def get(fake: FakeKraken, target: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", int(fake.url.rpartition(":")[2]))
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def ask(fake: FakeKraken, endpoint: str, **params: object) -> dict[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in params.items())
    status, body = get(fake, f"/0/public/{endpoint}?{query}")
    assert status == 200
    return json.loads(body)


def ohlc(fake: FakeKraken, **params: object) -> tuple[list[list[Any]], Any]:
    result = ask(fake, "OHLC", **{"pair": "XBTUSD", **params})["result"]
    return result["XXBTZUSD"], result["last"]


def trades(fake: FakeKraken, **params: object) -> tuple[list[list[Any]], str]:
    result = ask(fake, "Trades", **{"pair": "XBTUSD", **params})["result"]
    return result["XXBTZUSD"], result["last"]


def ccxt_kraken(fake: FakeKraken) -> ccxt.kraken:
    exchange = ccxt.kraken({"enableRateLimit": False, "timeout": 5_000})
    exchange.urls["api"]["public"] = fake.url
    exchange.load_markets()
    return exchange


def shown(now_ms: int, timeframe_ms: int = MINUTE) -> pl.DataFrame:
    """The made market's bars of all trades until now."""
    until = MARKET.trades.filter(pl.col("time_ns") <= now_ms * NS_PER_MS)
    return MadeMarket.of(until).bars(timeframe_ms, 0, now_ms + 1)


# --- the made market ------------------------------------------------------------------------------


def test_the_same_arguments_make_the_same_trades_and_another_seed_makes_others() -> None:
    def make(seed: int) -> pl.DataFrame:
        return MadeMarket(seed, START, START + HOUR, busy_seconds={START: 9}).trades

    assert_frame_equal(make(1), make(1), check_exact=True)
    assert not make(1).equals(make(2))


def test_made_trades_have_contiguous_ids_rising_ns_and_whole_ticks_and_lots() -> None:
    made = MARKET.trades
    assert made["id"].diff().drop_nulls().unique().to_list() == [1]
    assert made["time_ns"].diff().drop_nulls().min() >= 1
    assert made["time_ns"][0] >= START * NS_PER_MS
    assert made["time_ns"][-1] < (START + 2 * DAY) * NS_PER_MS
    assert made["price"].to_list() == [float(f"{price:.1f}") for price in made["price"]]
    assert made["volume"].to_list() == [float(f"{volume:.8f}") for volume in made["volume"]]
    assert made["price"].min() > 0 and made["volume"].min() > 0
    # Fills of one order: different ns, and yet the same number once written as a float.
    assert (made["time_ns"] / NS_PER_S).diff().eq(0).any()
    assert 2.7 < MadeMarket(3, START, START + 10 * DAY).trades.height / (10 * DAY / MINUTE) < 3.3


def test_a_busy_second_has_exactly_its_trades_and_a_halt_has_none() -> None:
    at_ms = pl.col("time_ns") // NS_PER_MS
    assert MARKET.trades.filter(at_ms // 1000 * 1000 == BUSY).height == 1_500
    assert MARKET.trades.filter((at_ms >= HALT[0]) & (at_ms < HALT[1])).is_empty()
    assert not MARKET.trades.filter((at_ms >= HALT[1]) & (at_ms < HALT[1] + HOUR)).is_empty()


@pytest.mark.parametrize("second", [START // 1000, START + 1, START + 2 * DAY])
def test_a_busy_second_that_is_no_second_of_the_market_is_refused(second: int) -> None:
    with pytest.raises(ValueError, match=f"busy second {second} is not the start of a second"):
        MadeMarket(1, START, START + DAY, busy_seconds={second: 5})


def test_bars_of_a_made_market_worked_out_by_hand() -> None:
    times_ms = [60_000, 61_000, 119_999, 120_000, 240_000]
    market = MadeMarket.of(
        pl.DataFrame(
            {
                "id": range(5),
                "time_ns": [ms * NS_PER_MS for ms in times_ms],
                "price": [10.0, 12.5, 9.5, 11.0, 13.0],
                "volume": [0.1, 0.2, 0.3, 1.0, 2.0],
            }
        )
    )
    rows = market.bars(60_000, 0, 240_000).with_columns(pl.col("ts").dt.epoch("ms")).rows()
    assert rows == [
        (60_000, 10.0, 12.5, 9.5, 9.5, 0.6, 3),  # 0.1 + 0.2 + 0.3 as floats is another number
        (120_000, 11.0, 11.0, 11.0, 11.0, 1.0, 1),
    ]
    assert market.bars(300_000, 0, 240_000)["trades"].to_list() == [5]


# --- the recorded venue ---------------------------------------------------------------------------


def test_recorded_bodies_are_served_byte_for_byte(shared_data) -> None:
    folder = shared_data / "kraken_http"
    with FakeKraken.recorded(folder, Clock(0)) as fake:
        for target, name in (
            ("OHLC?pair=XBTUSDT&interval=1", "ohlc"),
            ("OHLC?pair=XBTUSDT&since=1500000000", "ohlc"),
            ("Trades?pair=XBTUSDT", "trades"),
            ("Trades?pair=XBTUSDT&since=1762795433971744400", "trades"),
            ("AssetPairs", "asset_pairs"),
            ("Time", "server_time"),
            ("SystemStatus", "system_status"),
        ):
            assert get(fake, f"/0/public/{target}") == (
                200,
                (folder / f"http_{name}.json").read_bytes(),
            ), target


def test_recorded_trades_come_in_pages_and_end_with_the_recorded_cursor(shared_data) -> None:
    with FakeKraken.recorded(shared_data / "kraken_http", Clock(0)) as fake:
        cursor, ids = "1762795433971744400", []
        for _ in range(9):
            result = ask(fake, "Trades", pair="XBTUSDT", since=cursor, count=130)["result"]
            ids += [row[6] for row in result["XBTUSDT"]]
            cursor = result["last"]
        assert ids == list(range(10218208, 10219208))
        assert result == {"XBTUSDT": [], "last": "1762820035982277754"}


def test_recorded_candles_after_since_are_served_with_the_uncommitted_one(shared_data) -> None:
    with FakeKraken.recorded(shared_data / "kraken_http", Clock(0)) as fake:
        result = ask(fake, "OHLC", pair="XBTUSDT", since=1762820040)["result"]
        assert [row[0] for row in result["XBTUSDT"]] == [1762820100, 1762820160, 1762820220]
        assert result["last"] == 1762820160


def test_real_ccxt_fetches_the_recorded_market(shared_data) -> None:
    with FakeKraken.recorded(shared_data / "kraken_http", Clock(0)) as fake:
        exchange = ccxt_kraken(fake)
        assert list(exchange.markets) == ["BTC/USDT"]
        bars = exchange.fetch_ohlcv("BTC/USDT", "1m")
        assert len(bars) == 721
        assert bars[2] == [1762777140000, *[106038.3] * 4, 0.00032101]
        assert len(exchange.fetch_trades("BTC/USDT")) == 1_000
        assert exchange.fetch_time() == 1762820224000
    assert not fake.unexpected


def test_candles_made_of_the_recorded_trades_equal_the_recorded_candles_text_for_text(
    shared_data,
) -> None:
    """So what the fake makes of a made market is what Kraken makes of a real one."""
    folder = shared_data / "kraken_http"
    rows, candles = (
        json.loads((folder / f"http_{name}.json").read_bytes())["result"]
        for name in ("trades", "ohlc")
    )
    tape = pl.DataFrame(
        {
            "id": [row[6] for row in rows["XBTUSDT"]],
            "time_ns": [int(Decimal(repr(row[2])) * NS_PER_S) for row in rows["XBTUSDT"]],
            "price": [float(row[0]) for row in rows["XBTUSDT"]],
            "volume": [float(row[1]) for row in rows["XBTUSDT"]],
        }
    )
    with FakeKraken({"BTC/USDT": MadeMarket.of(tape)}, Clock(1762820224_000)) as fake:
        made = ask(fake, "OHLC", pair="XBTUSDT")["result"]
        made_trades = ask(fake, "Trades", pair="XBTUSDT")["result"]["XBTUSDT"]
    whole = 1762795433 // 60 * 60 + 60  # the first trade's minute is partial
    recorded = [row for row in candles["XBTUSDT"] if row[0] >= whole]
    assert len(recorded) == 414 and sum(row[7] > 0 for row in recorded) == 273
    assert made["XBTUSDT"][1:] == recorded
    assert made["last"] == candles["last"]
    # The sides and order types of a made market are anything.
    assert [(*row[:3], *row[5:]) for row in made_trades] == [
        (*row[:3], *row[5:]) for row in rows["XBTUSDT"]
    ]


# --- real ccxt ------------------------------------------------------------------------------------


def test_real_ccxt_loads_the_markets_under_all_their_names(fake: FakeKraken) -> None:
    exchange = ccxt_kraken(fake)
    names = {
        symbol: (market["id"], market["info"]["altname"], market["info"]["wsname"])
        for symbol, market in exchange.markets.items()
    }
    assert names == {
        "BTC/USD": ("XXBTZUSD", "XBTUSD", "XBT/USD"),
        "ETH/USD": ("XETHZUSD", "ETHUSD", "ETH/USD"),
        "DOGE/USD": ("XDGUSD", "XDGUSD", "XDG/USD"),
        "BTC/USDT": ("XBTUSDT", "XBTUSDT", "XBT/USDT"),
    }
    assert {"BTC", "ETH", "DOGE", "USD", "USDT"} <= set(exchange.currencies)
    assert all(market["spot"] and market["active"] for market in exchange.markets.values())
    assert exchange.fetch_time() == NOW // 1000 * 1000
    assert exchange.fetch_status()["status"] == "ok"
    assert not fake.unexpected


@pytest.mark.parametrize("timeframe", ["1m", "5m", "1h", "4h", "1d"])
def test_real_ccxt_fetches_the_bars_that_the_oracle_makes(fake: FakeKraken, timeframe: str) -> None:
    got = ccxt_kraken(fake).fetch_ohlcv("BTC/USD", timeframe)
    truth = shown(NOW, ccxt.kraken.parse_timeframe(timeframe) * 1000)
    traded = [tuple(row) for row in got if row[5] > 0]
    in_window = truth.filter(pl.col("ts").dt.epoch("ms") >= got[0][0]).drop("trades")
    assert traded == in_window.with_columns(pl.col("ts").dt.epoch("ms")).rows()


def test_real_ccxt_fetches_trades_of_each_pair_from_its_own_market(clock: Clock) -> None:
    other = MadeMarket(8, START, START + DAY)
    with FakeKraken({"BTC/USD": MARKET, "XBT/USDT": other}, clock) as fake:
        exchange = ccxt_kraken(fake)
        for symbol, market in (("BTC/USD", MARKET), ("BTC/USDT", other)):
            got = exchange.fetch_trades(symbol, START)
            assert [trade["price"] for trade in got] == market.trades["price"][:1000].to_list()
        assert exchange.fetch_trades("DOGE/USD", START) == []


# --- OHLC -----------------------------------------------------------------------------------------


def test_ohlc_gives_720_committed_candles_and_the_uncommitted_one(fake: FakeKraken) -> None:
    rows, last = ohlc(fake)
    opens = [row[0] for row in rows]
    uncommitted = NOW // MINUTE * 60
    assert opens == list(range(uncommitted - 720 * 60, uncommitted + 60, 60))
    assert last == uncommitted - 60


def test_an_old_since_gives_the_newest_window_without_a_word(fake: FakeKraken) -> None:
    assert ohlc(fake, since=START // 1000) == ohlc(fake, since=0) == ohlc(fake)


def test_since_of_ohlc_is_exclusive_and_the_uncommitted_candle_always_comes(
    fake: FakeKraken,
) -> None:
    rows, last = ohlc(fake)
    at = rows[700][0]
    assert ohlc(fake, since=at) == (rows[701:], last)
    assert ohlc(fake, since=at - 1) == (rows[700:], last)
    assert ohlc(fake, since=last) == (rows[-1:], last)
    assert ohlc(fake, since=last + 999_999) == (rows[-1:], last)


def test_minutes_without_a_trade_are_flat_rows_at_the_close_before(fake: FakeKraken) -> None:
    fake.clock.now_ms = HALT[1]
    rows, _ = ohlc(fake)
    halted = [row for row in rows if HALT[0] // 1000 <= row[0] < HALT[1] // 1000]
    close = next(row[4] for row in rows if row[0] == HALT[0] // 1000 - 60)
    assert len(halted) == 180
    assert all(row[1:] == [close] * 4 + ["0.0", "0.00000000", 0] for row in halted)


def test_a_pair_younger_than_the_window_begins_with_its_first_trade(fake: FakeKraken) -> None:
    fake.clock.now_ms = START + 10 * MINUTE
    rows, last = ohlc(fake)
    assert rows[0][0] == MARKET.trades["time_ns"][0] // NS_PER_S // 60 * 60
    assert rows[0][7] > 0
    assert last == START // 1000 + 9 * 60
    fake.clock.now_ms = START - 1
    assert ohlc(fake) == ([], 0)


def test_the_uncommitted_candle_changes_with_the_clock_and_last_moves(fake: FakeKraken) -> None:
    before, last = ohlc(fake)
    fake.clock.sleep(25)
    grown, same_last = ohlc(fake)
    assert same_last == last and grown[:-1] == before[:-1]
    assert grown[-1][7] > before[-1][7]
    fake.clock.sleep(30)
    after, next_last = ohlc(fake)
    assert next_last == last + 60 == before[-1][0]
    assert after[:-2] == before[1:-1] and len(after) == 721
    assert float(after[-2][6]) >= float(grown[-1][6])


@pytest.mark.parametrize("second", [0, 20, 40, 59])
def test_the_uncommitted_candle_holds_the_trades_until_the_venues_time(
    fake: FakeKraken, second: int
) -> None:
    for minute in range(20):
        fake.clock.now_ms = START + DAY + minute * MINUTE + second * 1000
        rows, _ = ohlc(fake, since=fake.now_ms // 1000)
        opens_ns = (START + DAY + minute * MINUTE) * NS_PER_MS
        until = fake.now_ms * NS_PER_MS
        inside = MARKET.trades.filter(pl.col("time_ns").is_between(opens_ns, until))
        assert rows[0][7] == inside.height


def test_last_can_be_text(fake: FakeKraken) -> None:
    fake.last_is_text = True
    assert ohlc(fake)[1] == str(NOW // MINUTE * 60 - 60)


def test_the_clock_of_the_venue_can_be_skewed(fake: FakeKraken) -> None:
    fake.skew_ms = -5 * MINUTE
    assert ohlc(fake)[1] == NOW // MINUTE * 60 - 60 - 300
    assert ask(fake, "Time")["result"]["unixtime"] == (NOW - 5 * MINUTE) // 1000
    assert fake.requests[0].at_ms == NOW


# --- Trades ---------------------------------------------------------------------------------------


def test_pages_by_the_ns_cursor_hold_every_trade_once_even_in_a_busy_second(
    fake: FakeKraken,
) -> None:
    known = MARKET.trades.filter(pl.col("time_ns") <= NOW * NS_PER_MS)
    cursor, ids = str(START * NS_PER_MS - 1), []
    for _ in range(known.height // 1000 + 1):
        rows, last = trades(fake, since=cursor)
        assert len(rows) <= 1000 and last.isdigit() and len(last) == 19
        ids += [row[6] for row in rows]
        assert int(last) == known.filter(pl.col("id") == ids[-1])["time_ns"].item()
        cursor = last
    assert ids == known["id"].to_list()
    assert trades(fake, since=cursor) == ([], cursor)
    assert not fake.unexpected


def test_a_cursor_in_ms_as_ccxt_keeps_it_loses_trades_of_a_busy_second(fake: FakeKraken) -> None:
    """Documents the trap: ccxt cuts `since` to seconds, and a page ends within the second."""
    exchange = ccxt_kraken(fake)
    since, ids = BUSY - MINUTE, set()
    while since < BUSY + MINUTE:
        page = exchange.fetch_trades("BTC/USD", since)
        ids |= {int(trade["id"]) for trade in page}
        since = page[-1]["timestamp"] + 1 if page else (since // 1000 + 1) * 1000
    busy = MARKET.trades.filter(pl.col("time_ns") // NS_PER_S == BUSY // 1000)
    assert 500 <= len(set(busy["id"]) - ids) < 1_500


def test_since_of_trades_is_exclusive_and_may_be_in_seconds(fake: FakeKraken) -> None:
    third = MARKET.trades["time_ns"][2]
    assert trades(fake, since=third, count=1)[0][0][6] == MARKET.trades["id"][3]
    assert trades(fake, since=third - 1, count=1)[0][0][6] == MARKET.trades["id"][2]
    assert trades(fake, since=0) == trades(fake, since=START // 1000)
    assert trades(fake, since=BUSY // 1000) == trades(fake, since=BUSY * NS_PER_MS)


def test_trades_of_the_venues_future_are_never_given(fake: FakeKraken) -> None:
    known = MARKET.trades.filter(pl.col("time_ns") <= NOW * NS_PER_MS)
    newest, last = trades(fake)
    assert [row[6] for row in newest] == known["id"][-1000:].to_list()
    assert last == str(known["time_ns"][-1])
    assert trades(fake, since=last) == ([], last)
    assert trades(fake, since=(NOW + HOUR) * NS_PER_MS)[0] == []
    fake.clock.sleep(600)
    assert trades(fake, since=last)[0][0][6] == known["id"][-1] + 1


def test_count_is_a_thousand_by_default_and_at_most(fake: FakeKraken) -> None:
    assert [len(trades(fake, since=0, count=count)[0]) for count in (1, 999, 1000, 5000)] == [
        1,
        999,
        1000,
        1000,
    ]
    assert len(trades(fake, since=0)[0]) == 1000


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "text", "odd"),
    [
        ("/0/public/OHLC?pair=NOPE", "EQuery:Unknown asset pair", False),
        ("/0/public/Trades?pair=BTC/USD", "EQuery:Unknown asset pair", False),  # ccxt's symbol
        ("/0/public/AssetPairs?pair=XBTUSD,NOPE", "EQuery:Unknown asset pair", False),
        ("/0/public/Assets?asset=NOPE", "EQuery:Unknown asset", False),
        ("/0/public/OHLC", "EGeneral:Invalid arguments", True),
        ("/0/public/OHLC?pair=XBTUSD&interval=7", "EGeneral:Invalid arguments", True),
        ("/0/public/OHLC?pair=XBTUSD&interval=1m", "EGeneral:Invalid arguments", True),
        ("/0/public/OHLC?pair=XBTUSD&since=now", "EGeneral:Invalid arguments", True),
        # Milliseconds are neither of the units.
        (f"/0/public/OHLC?pair=XBTUSD&since={START}", "EGeneral:Invalid arguments", True),
        (f"/0/public/Trades?pair=XBTUSD&since={START}", "EGeneral:Invalid arguments", True),
        ("/0/public/Trades?pair=XBTUSD&count=0", "EGeneral:Invalid arguments", True),
        ("/0/public/Ticker?pair=XBTUSD", "EGeneral:Unknown method", True),
        ("/1/public/Time", "EGeneral:Unknown method", True),
        ("/", "EGeneral:Unknown method", True),
    ],
)
def test_what_kraken_refuses_is_refused_in_its_words(
    fake: FakeKraken, target: str, text: str, odd: bool
) -> None:
    status, body = get(fake, target)
    assert (status, json.loads(body)) == (200, {"error": [text]})
    assert len(fake.unexpected) == odd


def test_a_parameter_that_kraken_does_not_have_is_ignored_but_listed(fake: FakeKraken) -> None:
    plain = get(fake, "/0/public/OHLC?pair=XBTUSD")
    assert get(fake, "/0/public/OHLC?pair=XBTUSD&limit=5") == plain
    assert get(fake, "/0/public/OHLC?pair=XBTUSD&pair=XBTUSD") == plain
    get(fake, "/0/public/Time", method="POST")
    assert [request.endpoint for request in fake.unexpected] == ["OHLC", "OHLC", "/0/public/Time"]
    assert fake.unexpected[0].params == {"pair": "XBTUSD", "limit": "5"}


@pytest.mark.parametrize("name", ["XXBTZUSD", "XBTUSD", "xbtusd", "XBT/USD"])
def test_a_pair_is_found_by_each_of_its_names(fake: FakeKraken, name: str) -> None:
    assert set(ask(fake, "OHLC", pair=name)["result"]) == {"XXBTZUSD", "last"}
    assert set(ask(fake, "AssetPairs", pair=name)["result"]) == {"XXBTZUSD"}


def test_asking_a_pair_faster_than_the_limit_is_refused_until_the_clock_has_moved_on(
    fake: FakeKraken,
) -> None:
    fake.limit(15)
    refusal = {"error": ["EAPI:Rate limit exceeded"]}
    assert ohlc(fake)
    fake.clock.now_ms += 3_999
    assert ask(fake, "Trades", pair="XBTUSD") == refusal
    assert ask(fake, "Trades", pair="ETHUSD")["error"] == []  # of each pair by itself
    assert ask(fake, "AssetPairs")["error"] == ask(fake, "Time")["error"] == []
    fake.clock.now_ms += 1
    assert trades(fake)
    assert fake.rate_limited == 1
    fake.limit(None)
    assert ohlc(fake)


# --- faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*TRANSIENT, *PERMANENT, *GARBAGE])
def test_a_fault_appears_exactly_as_often_as_asked_for(fake: FakeKraken, kind: str) -> None:
    fake.hold_s = 0.01
    # The oldest page has a thousand trades.
    target = "/0/public/Trades?pair=XBTUSD&since=0"
    good = get(fake, target)
    fake.fail("Trades", kind, times=2, after=1)
    assert fake.unused == [("Trades", kind, 2)]
    answers = []
    for _ in range(4):
        try:
            answers.append(get(fake, target) == good)
        except OSError:
            answers.append(False)
        assert get(fake, "/0/public/Time")[0] == 200  # other endpoints are well
    assert answers == [True, False, False, True]
    faults = [request.fault for request in fake.requests if request.endpoint == "Trades"]
    assert faults == [None, None, kind, kind, None]


def test_faults_of_one_endpoint_come_one_after_the_other(fake: FakeKraken) -> None:
    fake.fail("OHLC", "500", times=2)
    fake.fail("OHLC", "busy", after=1)
    for _ in range(5):
        get(fake, "/0/public/OHLC?pair=XBTUSD")
    assert [request.fault for request in fake.requests] == ["500", "500", None, "busy", None]


def test_a_fault_that_needs_rows_waits_for_an_answer_that_has_them(fake: FakeKraken) -> None:
    fake.fail("Trades", "ids with a hole")
    assert len(trades(fake, since=0, count=2)[0]) == 2
    assert len(trades(fake, since=0, count=5)[0]) == 4
    assert [request.fault for request in fake.requests] == [None, "ids with a hole"]


@pytest.mark.parametrize(
    ("endpoint", "kind", "times", "message"),
    [
        ("Ohlc", "500", 1, "no endpoint 'Ohlc'"),
        ("OHLC", "418", 1, "no fault '418'"),
        ("Time", "missing last", 1, "Time cannot show the fault 'missing last'"),
        ("OHLC", "ids with a hole", 1, "OHLC cannot show the fault 'ids with a hole'"),
        ("OHLC", "500", 0, "times is 0"),
    ],
)
def test_faults_that_cannot_happen_are_refused(
    fake: FakeKraken, endpoint: str, kind: str, times: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fake.fail(endpoint, kind, times)


def spoilt(fake: FakeKraken, endpoint: str, kind: str) -> bytes:
    fake.fail(endpoint, kind)
    return get(fake, f"/0/public/{endpoint}?pair=XBTUSD")[1]


def test_each_garbage_body_is_what_its_name_says(fake: FakeKraken) -> None:
    assert spoilt(fake, "OHLC", "") == b""
    assert spoilt(fake, "OHLC", "html").startswith(b"<!DOCTYPE html>")
    assert spoilt(fake, "OHLC", "null") == b"null"
    assert spoilt(fake, "OHLC", "[]") == b"[]"
    assert json.loads(spoilt(fake, "OHLC", '{"error":[]}')) == {"error": []}
    with pytest.raises(json.JSONDecodeError):
        json.loads(spoilt(fake, "OHLC", "truncated json"))
    for endpoint, sound, price in (("OHLC", ohlc(fake)[0], 4), ("Trades", trades(fake)[0], 0)):
        result = json.loads(spoilt(fake, endpoint, "another pair's key"))["result"]
        assert result["XREPZEUR"] == sound and "XXBTZUSD" not in result
        result = json.loads(spoilt(fake, endpoint, "missing last"))["result"]
        assert result == {"XXBTZUSD": sound}
        rows = json.loads(spoilt(fake, endpoint, "rows not lists"))["result"]["XXBTZUSD"]
        assert [type(row) for row in rows].count(str) == 1
        rows = json.loads(spoilt(fake, endpoint, "NaN price"))["result"]["XXBTZUSD"]
        (changed,) = (at for at, row in enumerate(rows) if row != sound[at])
        assert rows[changed][price] == "NaN"
        assert 0 < changed < len(rows) - 1 and (endpoint == "Trades" or rows[changed][7] > 0)
        rows = json.loads(spoilt(fake, endpoint, "unsorted"))["result"]["XXBTZUSD"]
        assert rows != sound and sorted(rows) == sorted(sound)
    rows = json.loads(spoilt(fake, "Trades", "ids with a hole"))["result"]["XXBTZUSD"]
    ids = [row[6] for row in rows]
    assert ids[-1] - ids[0] == len(ids)


@pytest.mark.parametrize("kind", SILENT)
def test_plain_ccxt_takes_garbage_for_no_data(fake: FakeKraken, kind: str) -> None:
    """Documents the trap: no exception, an empty list."""
    exchange = ccxt_kraken(fake)
    assert len(exchange.fetch_ohlcv("BTC/USD", "1m")) == 721
    fake.fail("OHLC", kind)
    assert exchange.fetch_ohlcv("BTC/USD", "1m") == []
    fake.fail("Trades", kind)
    assert exchange.fetch_trades("BTC/USD") == []


@pytest.mark.parametrize("kind", TRANSIENT)
def test_ccxt_raises_what_the_reference_calls_retryable(fake: FakeKraken, kind: str) -> None:
    exchange = ccxt_kraken(fake)
    if kind == "timeout":
        exchange.timeout, fake.hold_s = 200, 60.0
    fake.fail("OHLC", kind)
    with pytest.raises(ccxt.ExchangeError if kind in ("throttled", "deadline") else Exception) as e:
        exchange.fetch_ohlcv("BTC/USD", "1m")
    assert isinstance(e.value, ccxt.OperationFailed) or "EService:" in str(e.value)
    assert isinstance(e.value, ccxt.RequestTimeout) == (kind == "timeout")
    exchange.timeout = 10_000
    assert len(exchange.fetch_ohlcv("BTC/USD", "1m")) == 721


@pytest.mark.parametrize("kind", PERMANENT)
def test_ccxt_raises_what_the_reference_calls_permanent(fake: FakeKraken, kind: str) -> None:
    exchange = ccxt_kraken(fake)
    fake.fail("OHLC", kind)
    with pytest.raises(ccxt.ExchangeError) as e:
        exchange.fetch_ohlcv("BTC/USD", "1m")
    assert not isinstance(e.value, ccxt.OperationFailed) and "EService:" not in str(e.value)


def test_leaving_the_venue_hangs_up_on_everybody_at_once() -> None:
    with FakeKraken(MARKET, Clock(NOW)) as fake:
        exchange = ccxt_kraken(fake)
    began = time.monotonic()
    with pytest.raises(ccxt.NetworkError):
        exchange.fetch_time()
    assert time.monotonic() - began < 10, "ccxt's own limit"
