"""Kraken's source end to end: real ccxt against the fake venue, into partitions."""

import itertools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ccxt
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.sources import kraken_http
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Interval,
    Leg,
    Surroundings,
    within,
)
from trade_pipeline.market.sources.kraken import Kraken
from trade_pipeline.market.sources.kraken_http import (
    may_pass,
    next_page,
    read_candles,
    read_time,
    require_result,
)
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS, BadResponseError
from trade_pipeline.market.stored import Partition, read_partition
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.fakes.kraken import (
    GARBAGE,
    PERMANENT,
    SILENT,
    TRANSIENT,
    Clock,
    FakeKraken,
)
from trade_pipeline_tests.fakes.market import TRADES, MadeMarket

from ..series import MINUTE, ms

HOUR = 60 * MINUTE
START = ms(2025, 3, 1)
CLOSED = START + 24 * HOUR
NOW = CLOSED + 34_567
HALT = (START + 3 * HOUR + 10 * MINUTE + 1, START + 5 * HOUR)
BUSY = START + 90 * MINUTE + 17_000
LATE_BUSY = CLOSED - 90 * MINUTE + 59_000
# Slow enough for many minutes without a trade.
MARKET = MadeMarket(
    seed=7,
    start_ms=START,
    end_ms=CLOSED + 48 * HOUR,
    trades_per_minute=2.5,
    halts=[HALT],
    busy_seconds={BUSY: 1500, LATE_BUSY: 1500},
)
# Few trades and no older ones: for tests of single answers.
SMALL = MadeMarket(seed=8, start_ms=CLOSED - 13 * HOUR, end_ms=NOW, trades_per_minute=4.0)
SMALL_WINDOW = (CLOSED - 10 * HOUR, CLOSED)
WINDOWS = {
    None: (START, NOW),
    "trades": (START, NOW),
    "rest": (CLOSED - 11 * HOUR, NOW),
}


class World:
    """A fake venue, a store, and a clock that both go by."""

    def __init__(self, fake: FakeKraken, root: Path) -> None:
        self.fake, self.root = fake, root
        self.log: list[str] = []

    def series(self, timeframe: str = "1m", **source: Any) -> SeriesSettings:
        settings = {
            "kind": "kraken",
            "symbol": "BTC/USD",
            "base_url": self.fake.url,
            "calls_per_minute": 1e9,
        }
        return SeriesSettings.model_validate(
            {
                "key": f"kraken.BTC-USD.{timeframe}",
                "source": settings | source,
                "timeframe": timeframe,
                "first_year": 2025,
                "volume_unit": "base",
            }
        )

    def around(self, store: str = "store", batch_answers: int = 2) -> Surroundings:
        return Surroundings(
            base=self.root,
            store=self.root / store,
            environment={},
            now_ms=lambda: self.fake.clock.now_ms,
            sleep=self.fake.clock.sleep,
            log=self.log.append,
            batch_answers=batch_answers,
        )

    def take(
        self,
        window: Interval | None = None,
        route: str | None = None,
        series: SeriesSettings | None = None,
        **around: Any,
    ) -> Outcome:
        series = series or self.series()
        partitions = [SeriesYear(series.key, 2025)]
        return import_bars(
            {series.key: series}, partitions, self.around(**around), window=window, route=route
        )

    def stored(self, series: SeriesSettings | None = None, store: str = "store") -> Partition:
        key = (series or self.series()).key
        return read_partition(layout.ohlcv(self.root / store, key, 2025))

    def bytes(self, store: str = "store") -> bytes:
        return layout.ohlcv(self.root / store, self.series().key, 2025).path.read_bytes()

    def asked(self, endpoint: str) -> int:
        return sum(one.endpoint == endpoint for one in self.fake.requests)


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pair is known yet: the system may give a fake the port of an earlier one."""
    monkeypatch.setattr(kraken_http, "_pair_ids", {})


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """The venue of `MARKET`, or of the market that the test names."""
    market = getattr(request, "param", MARKET)
    with FakeKraken(market, Clock(NOW)) as fake:
        yield World(fake, tmp_path)
    assert not fake.unexpected
    assert not fake.unused


small = pytest.mark.parametrize("world", [SMALL], indirect=True)


def sentence(outcome: Outcome) -> str:
    """Why the one partition was refused."""
    (refusal,) = outcome.refused.values()
    return refusal.sentence


def succeed(outcome: Outcome) -> None:
    assert not outcome.refused, sentence(outcome)


def assert_true(
    partition: Partition,
    market: MadeMarket,
    window: Interval,
    length: int = MINUTE,
    source: tuple[str, ...] = ("rest", "trades"),
) -> None:
    """The stored bars are those that traded, all of them, and the window is known to the end."""
    truth = market.bars(length, *window)
    assert_frame_equal(partition.bars.select(truth.columns), truth, check_exact=True)
    assert partition.confirmed == (window,)
    assert set(partition.bars["source"]) == set(source)
    assert partition.bars["adj_factor"].null_count() == partition.bars.height


@pytest.mark.parametrize("route", WINDOWS)
def test_partitions_equal_the_market_by_every_route(world: World, route: str | None) -> None:
    window = WINDOWS[route]
    succeed(world.take(window, route))
    source = ("rest", "trades") if route is None else (route,)
    assert_true(world.stored(), MARKET, (window[0], CLOSED), source=source)


def test_a_whole_year_is_asked_for_from_its_first_second(world: World) -> None:
    succeed(world.take())
    partition = world.stored()
    assert partition.confirmed == ((ms(2025, 1, 1), CLOSED),)
    truth = MARKET.bars(MINUTE, START, CLOSED)
    assert_frame_equal(partition.bars.select(truth.columns), truth, check_exact=True)


@pytest.mark.parametrize("timeframe", ["5m", "1h", "4h", "1d"])
@pytest.mark.parametrize("route", ["rest", "trades"])
def test_longer_bars_equal_the_market_too(world: World, timeframe: str, route: str) -> None:
    world.fake.clock.now_ms += 30 * HOUR
    series = world.series(timeframe)
    length = TIMEFRAME_MS[timeframe]
    window = (START, world.fake.clock.now_ms // length * length)
    succeed(world.take((START, world.fake.clock.now_ms), route, series))
    truth = MARKET.bars(length, *window)
    partition = world.stored(series)
    assert_frame_equal(partition.bars.select(truth.columns), truth, check_exact=True)
    assert partition.confirmed == (window,)


def test_a_halt_of_hours_is_known_to_be_quiet(world: World) -> None:
    succeed(world.take(WINDOWS["trades"], "trades"))
    partition = world.stored()
    halted = pl.col("ts").dt.epoch("ms").is_between(HALT[0], HALT[1], closed="none")
    assert partition.bars.filter(halted).is_empty()
    assert within(partition.confirmed, *HALT) == (HALT,)


def test_a_pair_that_no_longer_trades_is_quiet_to_the_end_if_its_newest_trade_is_known(
    world: World,
) -> None:
    world.fake.clock.now_ms = CLOSED + 72 * HOUR + 5_000
    window = (CLOSED + 49 * HOUR, CLOSED + 72 * HOUR)
    succeed(world.take(window, "trades"))
    assert world.stored().bars.is_empty()
    assert world.stored().confirmed == (window,)
    assert world.asked("Trades") == 2


def test_pages_without_trades_are_not_believed_while_there_are_newer_trades(world: World) -> None:
    world.fake.fail("Trades", "no rows", times=3, after=2)
    succeed(world.take(WINDOWS["trades"], "trades"))
    window = (WINDOWS["trades"][0], CLOSED)
    assert_true(world.stored(), MARKET, window, source=("trades",))


def test_years_that_a_failed_plan_never_came_to_are_not_said_to_be_empty(world: World) -> None:
    world.fake.fail("OHLC", "500", times=8)
    series = world.series().model_copy(update={"first_year": 2024})
    years = [SeriesYear(series.key, year) for year in (2024, 2025)]
    outcome = import_bars({series.key: series}, years, world.around())
    assert set(outcome.refused) == set(years)
    assert not outcome.committed
    assert world.asked("Trades") == 0


def test_a_venue_that_goes_on_saying_there_are_no_trades_is_not_believed(world: World) -> None:
    world.fake.fail("Trades", "no rows", times=10, after=2)
    said = sentence(world.take(WINDOWS["trades"], "trades"))
    assert "says 5 times that there is no trade after" in said
    confirmed = world.stored().confirmed
    assert_subset(world.stored(), WINDOWS["trades"])
    assert confirmed[-1][1] < WINDOWS["trades"][1]


@small
def test_quiet_minutes_are_confirmed_and_fillers_not_stored(world: World) -> None:
    succeed(world.take(SMALL_WINDOW, "rest"))
    partition = world.stored()
    assert partition.bars.height < 600
    assert partition.bars["trades"].min() == 1
    assert partition.confirmed == (SMALL_WINDOW,)


@small
@pytest.mark.parametrize("route", ["rest", "trades"])
def test_running_again_asks_nothing_and_changes_no_byte(world: World, route: str) -> None:
    succeed(world.take(SMALL_WINDOW, route))
    before, asked = world.bytes(), len(world.fake.requests)
    succeed(world.take(SMALL_WINDOW, route))
    assert world.bytes() == before
    assert len(world.fake.requests) == asked


def test_running_later_asks_only_for_what_is_new(world: World) -> None:
    succeed(world.take((START, NOW)))
    world.fake.clock.now_ms = NOW + 6 * HOUR
    asked = len(world.fake.requests)
    succeed(world.take((START, NOW + 6 * HOUR)))
    assert_true(world.stored(), MARKET, (START, CLOSED + 6 * HOUR))
    assert [one.endpoint for one in world.fake.requests[asked:]] == ["OHLC"]


@small
def test_candles_and_trades_agree_to_the_last_bit(world: World) -> None:
    for route in ("rest", "trades"):
        succeed(world.take(SMALL_WINDOW, route, store=route))
    rest, trades = (world.stored(store=one).bars.drop("source") for one in ("rest", "trades"))
    assert_frame_equal(rest, trades, check_exact=True)


@pytest.mark.parametrize("batch_answers", [1, 3, 1000])
def test_how_many_answers_make_a_batch_changes_no_byte(world: World, batch_answers: int) -> None:
    for store, answers in (("two", 2), ("other", batch_answers)):
        succeed(world.take(WINDOWS["trades"], "trades", store=store, batch_answers=answers))
    assert world.bytes("two") == world.bytes("other")


@pytest.mark.parametrize("route", [None, "trades"])
def test_where_a_crawl_breaks_off_changes_no_byte(world: World, route: str | None) -> None:
    window = (START, NOW)
    succeed(world.take(window, route, store="whole"))
    pages = world.asked("Trades")
    assert pages > 3
    for good in range(pages):
        store = f"after{good}"
        world.fake.fail("Trades", "unknown pair", after=good)
        assert world.take(window, route, store=store, batch_answers=1).refused
        if good or route is None:
            assert_subset(world.stored(store=store), window)
        succeed(world.take(window, route, store=store, batch_answers=1))
        assert world.bytes(store) == world.bytes("whole")


def assert_subset(partition: Partition, window: Interval, market: MadeMarket = MARKET) -> None:
    """Nothing that is stored or confirmed is wrong, though much may be missing."""
    truth = market.bars(MINUTE, *window)
    ts = pl.col("ts").dt.epoch("ms")
    known = pl.any_horizontal(
        pl.lit(False), *((ts >= start) & (ts < end) for start, end in partition.confirmed)
    )
    stored = partition.bars.select(truth.columns)
    assert_frame_equal(stored, truth.filter(known), check_exact=True)


def test_a_batch_is_whole_minutes_and_the_rest_waits(world: World) -> None:
    leg = Leg("trades", START, CLOSED - 11 * HOUR)
    batches = list(Kraken().fetch(world.series(), leg, world.around(batch_answers=1)))
    assert len(batches) > 3
    ends = [leg.start_ms]
    for batch in batches:
        ((start, end),) = batch.confirmed
        assert start == ends[-1]
        ends.append(end)
        truth = MARKET.bars(MINUTE, start, end)
        assert_frame_equal(batch.bars.select(truth.columns), truth, check_exact=True)
    assert ends[-1] == leg.end_ms


def test_a_minute_of_more_trades_than_a_batch_holds_is_put_together(world: World) -> None:
    minute = BUSY // MINUTE * MINUTE
    leg = Leg("trades", minute, minute + MINUTE)
    (batch,) = Kraken().fetch(world.series(), leg, world.around(batch_answers=1))
    assert batch.bars["trades"].to_list()[0] >= 1500
    assert batch.answers == 2


def test_a_trade_that_is_shown_at_the_edge_of_a_minute_stays_where_it_is_shown(
    tmp_path: Path,
) -> None:
    edge = START + 10 * MINUTE
    # Too near to the edge for a float of seconds: shown at the edge, but its cursor is before it.
    times = [
        START * 10**6 + 5,
        edge * 10**6 - 50,
        edge * 10**6 + 10**9,
        (edge + 3 * MINUTE) * 10**6,
    ]
    trades = pl.DataFrame(
        {"id": range(4), "time_ns": times, "price": [10.0, 11.0, 12.0, 13.0], "volume": [1.0] * 4},
        schema=TRADES,
    )
    with FakeKraken(MadeMarket.of(trades), Clock(NOW)) as fake:
        world = World(fake, tmp_path)
        succeed(world.take((START, edge + 2 * MINUTE), "trades", store="whole"))
        for window in ((START, edge), (edge, edge + 2 * MINUTE)):
            succeed(world.take(window, "trades", store="parts"))
        assert world.bytes("whole") == world.bytes("parts")
        assert world.stored(store="whole").bars["trades"].to_list() == [1, 2]


@small
@pytest.mark.parametrize("skew_ms", [HOUR, -HOUR])
@pytest.mark.parametrize("route", [None, "rest", "trades"])
def test_a_venue_whose_clock_differs_by_an_hour_gives_no_uncommitted_bar_and_loses_none(
    world: World, skew_ms: int, route: str | None
) -> None:
    clock = world.fake.clock
    world.fake.skew_ms = skew_ms
    clock.now_ms = NOW - 2 * HOUR
    first = CLOSED - 12 * HOUR
    succeed(world.take((first, NOW), route))
    reached = CLOSED - 2 * HOUR + min(skew_ms, 0)
    assert_subset(world.stored(), (first, CLOSED), SMALL)
    assert world.stored().confirmed == ((first, reached),)

    world.fake.skew_ms = 0
    clock.now_ms = NOW
    succeed(world.take((first, NOW), route))
    truth = SMALL.bars(MINUTE, first, CLOSED)
    assert_frame_equal(world.stored().bars.select(truth.columns), truth, check_exact=True)
    assert world.stored().confirmed == ((first, CLOSED),)


def test_trades_confirm_no_minute_that_the_venue_may_still_publish_trades_of(world: World) -> None:
    world.fake.clock.now_ms = CLOSED + 4_999
    succeed(world.take((CLOSED - HOUR, CLOSED), "trades"))
    assert world.stored().confirmed == ((CLOSED - HOUR, CLOSED - MINUTE),)
    world.fake.clock.now_ms = CLOSED + 5_000
    succeed(world.take((CLOSED - HOUR, CLOSED), "trades"))
    assert_true(world.stored(), MARKET, (CLOSED - HOUR, CLOSED), source=("trades",))


@small
def test_last_may_be_text(world: World) -> None:
    world.fake.last_is_text = True
    succeed(world.take(SMALL_WINDOW, "rest"))
    assert_true(world.stored(), SMALL, SMALL_WINDOW, source=("rest",))


@small
def test_older_candles_than_kraken_keeps_are_said_to_be_so(world: World) -> None:
    world.fake.clock.now_ms += 3 * HOUR
    leg = Leg("rest", CLOSED - 10 * HOUR, CLOSED)  # planned three hours ago
    with pytest.raises(HistoryUnavailable, match=r"gave none before .* Take route trades"):
        list(Kraken().fetch(world.series(), leg, world.around()))


FAULTY = [
    *((endpoint, kind) for endpoint in ("OHLC", "Trades") for kind in (*TRANSIENT, *GARBAGE)),
    *((endpoint, kind) for endpoint in ("AssetPairs", "Time") for kind in TRANSIENT),
    *((endpoint, kind) for endpoint in ("AssetPairs", "Time") for kind in SILENT[:-1]),
]
FAULTY.remove(("OHLC", "ids with a hole"))


@small
@pytest.mark.parametrize(("endpoint", "kind"), FAULTY)
def test_a_fault_that_passes_costs_nothing_but_time(
    world: World, endpoint: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "timeout":
        monkeypatch.setattr(kraken_http, "TIMEOUT_MS", 300)
    route = "rest" if endpoint in ("OHLC", "AssetPairs") else "trades"
    after = 1 if endpoint == "Trades" else 0
    world.fake.fail(endpoint, kind, times=2, after=after)
    succeed(world.take(SMALL_WINDOW, route, batch_answers=1))
    assert_true(world.stored(), SMALL, SMALL_WINDOW, source=(route,))
    repeated = sum("attempt" in line for line in world.log)
    if kind == "timeout":  # on a busy machine a good answer may be that late, too
        assert repeated >= 2
    else:  # trades out of order are put in order, anything else is asked for again
        assert repeated == (0 if (endpoint, kind) == ("Trades", "unsorted") else 2)


@small
@pytest.mark.parametrize("kind", ["429", "html", "truncated json", "another pair's key", "busy"])
@pytest.mark.parametrize("endpoint", ["OHLC", "Trades"])
def test_a_fault_that_stays_is_a_sentence_and_what_came_before_is_kept(
    world: World, endpoint: str, kind: str
) -> None:
    route = {"OHLC": "rest", "Trades": "trades"}[endpoint]
    whole = (CLOSED - 13 * HOUR, CLOSED) if route == "trades" else SMALL_WINDOW
    after = 1 if route == "trades" else 0
    world.fake.fail(endpoint, kind, times=MOST_ATTEMPTS, after=after)
    outcome = world.take(whole, route, batch_answers=1)
    said = sentence(outcome)
    assert said.startswith(f"kraken at {world.fake.url} BTC/USD: {endpoint} since 2025-03-01 ")
    assert f"given up after {MOST_ATTEMPTS} attempts" in said
    if route == "trades":
        assert_subset(world.stored(), whole, SMALL)
        assert not world.stored().bars.is_empty()
    succeed(world.take(whole, route))
    assert_true(world.stored(), SMALL, whole, source=(route,))


@small
@pytest.mark.parametrize("kind", PERMANENT)
@pytest.mark.parametrize("endpoint", ["OHLC", "Trades"])
def test_what_asking_again_does_not_help_is_asked_once(
    world: World, endpoint: str, kind: str
) -> None:
    world.fake.fail(endpoint, kind)
    route = {"OHLC": "rest", "Trades": "trades"}[endpoint]
    assert "asking again would not help" in sentence(world.take(SMALL_WINDOW, route))
    assert world.asked(endpoint) == 1


@small
def test_an_unknown_symbol_is_named_with_the_closest_one(world: World) -> None:
    series = world.series(symbol="BTC/USDD")
    said = sentence(world.take(SMALL_WINDOW, "rest", series))
    assert "Kraken has no symbol 'BTC/USDD'. Did you mean 'BTC/USD'?" in said
    assert [one.endpoint for one in world.fake.requests] == ["AssetPairs"]


def test_an_empty_list_of_pairs_is_garbage_and_not_an_unknown_symbol(tmp_path: Path) -> None:
    with FakeKraken(SMALL, Clock(NOW), pairs=()) as fake:
        said = sentence(World(fake, tmp_path).take(SMALL_WINDOW, "rest"))
    assert "the list of pairs is empty; given up" in said


@pytest.mark.parametrize(
    ("symbol", "pair"),
    [("BTC/USD", "XXBTZUSD"), ("DOGE/USD", "XDGUSD"), ("BTC/USDT", "XBTUSDT")],
)
def test_symbols_are_ccxts_and_pairs_the_venues(world: World, symbol: str, pair: str) -> None:
    series = world.series(symbol=symbol)
    leg = Leg("rest", CLOSED - HOUR, CLOSED)
    list(Kraken().fetch(series, leg, world.around()))
    asked = [one.params["pair"] for one in world.fake.requests if one.endpoint == "OHLC"]
    assert asked == [pair]


def test_the_list_of_pairs_is_asked_for_once_in_a_process(world: World) -> None:
    for hours in (3, 2, 1):
        succeed(world.take((CLOSED - hours * HOUR, CLOSED), "rest", store=f"store{hours}"))
    assert world.asked("AssetPairs") == 1


def test_requests_keep_the_pace_that_the_series_asks_for(world: World) -> None:
    world.fake.limit(15)
    succeed(world.take(WINDOWS["trades"], "trades", world.series(calls_per_minute=15)))
    assert world.fake.rate_limited == 0
    times = [one.at_ms for one in world.fake.requests]
    assert all(after - before >= 4_000 for before, after in itertools.pairwise(times))
    assert any("% done" in line and " left" in line for line in world.log)


def test_the_recorded_venue_gives_the_same_bars_by_candles_and_by_trades(
    shared_data: Path, tmp_path: Path
) -> None:
    folder = shared_data / "kraken_http"
    rows = json.loads((folder / "http_ohlc.json").read_text())["result"]["XBTUSDT"]
    now_ms = ms(2025, 11, 11, 0, 17) + 4_000
    with FakeKraken.recorded(folder, Clock(now_ms)) as fake:
        world = World(fake, tmp_path)
        series = world.series(symbol="BTC/USDT")
        first, committed = rows[0][0] * 1000, rows[-2][0] * 1000 + MINUTE
        succeed(world.take((first, now_ms), "rest", series))
        found = world.stored(series)
        # The last row is not committed, and a row without a trade is no bar.
        traded = [row for row in rows[:-1] if row[7]]
        assert found.bars["ts"].dt.epoch("s").to_list() == [row[0] for row in traded]
        for name, at in {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 6}.items():
            assert found.bars[name].to_list() == [float(row[at]) for row in traded]
        assert found.bars["trades"].to_list() == [row[7] for row in traded]
        assert found.confirmed == ((first, committed),)

        # The recorded trades begin in the minute before this one.
        window = (ms(2025, 11, 10, 17, 24), committed - 2 * MINUTE)
        leg = Leg("trades", *window)
        (batch,) = Kraken().fetch(series, leg, world.around(batch_answers=50))
        same = found.bars.filter(pl.col("ts").dt.epoch("ms").is_between(*window, closed="left"))
        assert_frame_equal(batch.bars.drop("source"), same.drop("source"), check_exact=True)
        assert batch.confirmed == (window,)
        assert not fake.unexpected


def test_archives_trades_and_candles_meet_without_a_seam(world: World) -> None:
    archived = (START + 2 * HOUR, START + 9 * HOUR)
    lines = [
        f"{ts // 1000},{','.join(map(repr, row))}"
        for ts, *row in MARKET.bars(MINUTE, *archived)
        .with_columns(pl.col("ts").dt.epoch("ms"))
        .iter_rows()
    ]
    with zipfile.ZipFile(world.root / "Kraken_OHLCVT.zip", "w") as file:
        file.writestr("XBTUSD_1.csv", "\n".join(lines))
    series = world.series(ohlcvt_zip="*.zip", trades_zip="not_there/*.zip")
    succeed(world.take((START, NOW), None, series))
    assert_true(world.stored(), MARKET, (START, CLOSED), source=("rest", "zip", "trades"))
    plan = next(line for line in world.log if "plan:" in line)
    assert [part.split()[0] for part in plan.split("plan: ")[1].split("; ")] == [
        "rest",
        "zip",
        "trades",
        "trades",
    ]
    asked = [one for one in world.fake.requests if one.endpoint == "Trades"]
    first_cursors = {int(one.params["since"]) // 10**9 for one in asked}
    assert {START // 1000 - 1, archived[1] // 1000 - 1} <= first_cursors


def test_a_bar_in_two_archives_comes_from_the_first_whatever_is_stored_already(
    world: World,
) -> None:
    for name, hours, price in (("a.zip", (0, 6), 1), ("b.zip", (4, 9), 2)):
        times = range(START + hours[0] * HOUR, START + hours[1] * HOUR, MINUTE)
        rows = [f"{at // 1000},{price},{price},{price},{price},1,1" for at in times]
        with zipfile.ZipFile(world.root / name, "w") as file:
            file.writestr("XBTUSD_1.csv", "\n".join(rows))
    series = world.series(ohlcvt_zip="?.zip")
    succeed(world.take((START, START + 9 * HOUR), None, series, store="whole"))
    for hours in (5, 7, 9):
        succeed(world.take((START, START + hours * HOUR), None, series, store="parts"))
    assert world.bytes("whole") == world.bytes("parts")
    closes = world.stored(store="whole").bars["close"].to_list()
    assert closes == [1.0] * 360 + [2.0] * 180
    assert world.fake.requests == []


PAIR = "XXBTZUSD"
CANDLES = [
    [1_740_873_540, "1.0", "2.0", "0.5", "1.5", "1.2", "3.00000000", 7],
    [1_740_873_600, "1.5", "1.5", "1.5", "1.5", "0.0", "0.00000000", 0],
    [1_740_873_660, "1.5", "2.5", "1.5", "2.0", "1.9", "0.25000000", 2],
    [1_740_873_720, "2.0", "2.0", "2.0", "2.0", "2.0", "1.00000000", 1],
]
COMMITTED = 1_740_873_660


def result(rows: Any = CANDLES, last: Any = COMMITTED, pair: str = PAIR) -> dict[str, Any]:
    return {pair: rows, "last": last}


def with_field(at: int, value: object) -> dict[str, Any]:
    """Candles whose first one has this value in one of its fields."""
    first = [*CANDLES[0][:at], value, *CANDLES[0][at + 1 :]]
    return result([first, *CANDLES[1:]])


@pytest.mark.parametrize(
    ("last", "opens"),
    [
        (COMMITTED, [1_740_873_540, 1_740_873_660]),
        (str(COMMITTED), [1_740_873_540, 1_740_873_660]),
        (1_740_873_720, [1_740_873_540, 1_740_873_660, 1_740_873_720]),
        (1_740_873_600, [1_740_873_540]),
        (1_740_873_480, []),  # only newer ones were asked for
        (0, []),  # nothing is committed yet
    ],
)
def test_a_candle_is_complete_when_the_venue_says_so_wherever_it_stands(
    last: Any, opens: list[int]
) -> None:
    found = read_candles(result(last=last), PAIR, MINUTE)
    assert found.bars["ts"].dt.epoch("s").to_list() == opens
    assert (found.first_ms, found.last_ms) == (CANDLES[0][0] * 1000, int(last) * 1000)


@pytest.mark.parametrize(
    ("garbage", "said"),
    [
        ({}, r"holds the keys \[\]"),
        (result(pair="XETHZUSD"), "XETHZUSD"),
        ({**result(), "XETHZUSD": []}, "XETHZUSD"),
        ({PAIR: CANDLES}, f"not {PAIR} and last"),
        (result(None), "has candles None"),
        (result({}), "has candles {}"),
        (result([]), r"has candles \[\]"),
        (result(last=None), "has last None"),
        (result(last=True), "has last True"),
        (result(last=""), "has last ''"),
        (result(last="1740873660.0"), "has last '1740873660.0'"),
        (result(last=COMMITTED * 1000), "has last 1740873660000"),
        (
            result(last=COMMITTED + 1),
            "names the time 1740873661, which is not on the grid of 1 min",
        ),
        (result(last=1_740_873_780), "and does not have it"),
        (result([CANDLES[0], *CANDLES[2:]], last=1_740_873_600), "and does not have it"),
        (result([*CANDLES, None]), "the candle None"),
        (result([*CANDLES, CANDLES[0][:7]]), "list of 8 fields"),
        (result([CANDLES[0], CANDLES[2], CANDLES[1]]), "they must rise"),
        (result([CANDLES[0], *CANDLES[2:]]), "lacks the candles between"),
        (result([CANDLES[0], *CANDLES]), "they must rise"),
        (with_field(0, "1740873540"), "has a candle at '1740873540'"),
        (with_field(0, 1_740_873_541), "not on the grid"),
        (with_field(0, True), "has a candle at True"),
        (with_field(1, "NaN"), "has 'NaN' in a candle"),
        (with_field(2, "1e999"), "has '1e999' in a candle"),
        (with_field(3, None), "has None in a candle"),
        (with_field(4, "-1.5"), "has '-1.5' in a candle"),
        (with_field(4, "1_5"), "has '1_5' in a candle"),
        (with_field(5, ""), "has '' in a candle"),
        (with_field(6, "inf"), "has 'inf' in a candle"),
        (with_field(6, [1]), r"has \[1\] in a candle"),
        (with_field(7, "7"), "with count '7'"),
        (with_field(7, -1), "with count -1"),
    ],
)
def test_garbage_is_an_error_and_never_no_candles(garbage: dict[str, Any], said: str) -> None:
    with pytest.raises(BadResponseError, match=said):
        read_candles(garbage, PAIR, MINUTE)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<html>", "is '<html>' instead of a JSON object"),
        (None, "is None instead"),
        ([], r"is \[\] instead"),
        ({}, "reports error None"),
        ({"error": None, "result": result()}, "reports error None"),
        ({"error": "", "result": result()}, "reports error ''"),
        ({"error": ["EService:Busy"], "result": result()}, "EService:Busy"),
        ({"error": []}, "has result None"),
        ({"error": [], "result": []}, r"has result \[\]"),
    ],
)
def test_an_answer_without_a_result_is_asked_for_again(body: object, said: str) -> None:
    with pytest.raises(BadResponseError, match=said):
        require_result(body)


CURSOR = "1740873600000000000"


def page(*ids: int, last: int = int(CURSOR) + 10**10) -> dict[str, Any]:
    rows = [["1.0", "1.0", f"{1_740_873_601 + at}", "b", "m", "", at] for at in ids]
    return {"error": [], "result": {PAIR: rows, "last": str(last)}}


@pytest.mark.parametrize(
    ("body", "newest_id", "said"),
    [
        (page(1, 2, last=int(CURSOR)), None, "has 2 trades, but its last .* is not after"),
        (page(1, 2, last=int(CURSOR) - 1), None, "is not after"),
        (page(last=int(CURSOR) - 1), None, "which is before"),
        (page(1, 3), None, "trades 2 to 2 are missing"),
        (page(6, 7), 4, "starts with trade 6, but the page before ended with 4"),
        ("", 4, "instead of a JSON object"),
    ],
)
def test_a_page_that_does_not_follow_is_asked_for_again(
    body: object, newest_id: int | None, said: str
) -> None:
    with pytest.raises(BadResponseError, match=said):
        next_page(body, PAIR, CURSOR, newest_id)


@pytest.mark.parametrize(
    ("body", "newest_id", "ids"),
    [
        (page(5, 6), 4, [5, 6]),
        (page(6, 5), 4, [5, 6]),
        (page(4, 5), 4, [4, 5]),  # the same trade twice does no harm
        (page(9), None, [9]),
        (page(last=int(CURSOR)), 4, []),
    ],
)
def test_a_page_that_follows_is_taken_by_rising_id(
    body: object, newest_id: int | None, ids: list[int]
) -> None:
    assert next_page(body, PAIR, CURSOR, newest_id).trades["id"].to_list() == ids


@pytest.mark.parametrize("unixtime", [None, "1740873600", 1_740_873_600.5, True, 0, 17_408_736_000])
def test_a_time_that_is_none_is_asked_for_again(unixtime: object) -> None:
    assert read_time({"unixtime": 1_740_873_600}) == 1_740_873_600_000
    with pytest.raises(BadResponseError, match="has unixtime"):
        read_time({"unixtime": unixtime})


def refused(kind: type[Exception], text: str, cause: Exception | None = None) -> Exception:
    error = kind(text)
    error.__cause__ = cause
    return error


class StatusError(OSError):
    """A refusal as the HTTP library under ccxt raises it."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ccxt.RequestTimeout("kraken GET"), True),
        (ccxt.DDoSProtection("kraken"), True),
        (ccxt.ExchangeNotAvailable("kraken"), True),
        (ccxt.ExchangeError('kraken {"error":["EService:Deadline elapsed"]}'), True),
        (ccxt.ExchangeError('kraken {"error":["EService:Throttled: 1637000000"]}'), True),
        (ccxt.ExchangeError('kraken {"error":["EAPI:Rate limit exceeded"]}'), True),
        (refused(ccxt.ExchangeError, "kraken GET", StatusError(524)), True),
        (refused(ccxt.ExchangeError, "kraken GET", OSError("the body was cut")), True),
        (refused(ccxt.ExchangeError, "kraken GET", StatusError(414)), False),
        (ccxt.ExchangeError('kraken {"error":["EQuery:Unknown asset pair"]}'), False),
        (ccxt.BadRequest('kraken {"error":["EGeneral:Invalid arguments"]}'), False),
        (ccxt.BadSymbol("kraken"), False),
        (ccxt.AuthenticationError("kraken EService:"), False),
        (ValueError("EService:"), False),
    ],
)
def test_which_errors_may_pass_by_themselves(error: Exception, again: bool) -> None:
    assert may_pass(error) is again
