"""Exchanges through the real ccxt, against venues on loopback, end to end into partitions."""

import ast
import inspect
import json
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import ccxt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.sources import ccxt_client
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Interval,
    SourceError,
    Surroundings,
    Wanted,
)
from trade_pipeline.market.sources.ccxt_exchange import WITHOUT_HISTORY
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS
from trade_pipeline.market.stored import Partition, read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.fakes import binance, coinbase
from trade_pipeline_tests.fakes.binance import FakeBinance
from trade_pipeline_tests.fakes.coinbase import FakeCoinbase
from trade_pipeline_tests.fakes.market import MadeMarket
from trade_pipeline_tests.fakes.other_exchanges import FakeBitstamp, FakeBybit, FakeOkx
from trade_pipeline_tests.fakes.venue import FAULTS, SPOILED, Answer, FakeVenue, refusal
from trade_pipeline_tests.market.series import MINUTE, ms

HOUR = 60 * MINUTE
LISTED = ms(2024, 12, 31)
NOW = ms(2025, 1, 1, 12, 0) + 30_000  # half of the newest minute has passed
CLOSED = NOW // MINUTE * MINUTE
MARKET = MadeMarket(seed=1, start_ms=LISTED, end_ms=NOW + HOUR, trades_per_minute=2.0)
BUSY = MadeMarket(seed=2, start_ms=LISTED, end_ms=NOW + 3 * HOUR, trades_per_minute=4.0)
YEARS = (2024, 2025)


@dataclass(frozen=True)
class Venue:
    """How a fake is asked, and what ccxt should send it."""

    fake: type[FakeVenue]
    exchange: str
    symbol: str
    market: str
    candles: str  # route
    page: int
    start: str  # parameter and its unit
    start_ms: int

    def series(self, url: str, **changes: Any) -> SeriesSettings:
        source = {"exchange": self.exchange, "symbol": self.symbol, "market": self.market}
        entry = {
            "key": f"{self.exchange}.BTC.1m",
            "source": {"kind": "ccxt", "base_url": url} | source | changes.pop("source", {}),
            "timeframe": "1m",
            "first_year": 2024,
            "volume_unit": "base",
        }
        return SeriesSettings.model_validate(entry | changes)

    def starts(self, fake: FakeVenue) -> list[int]:
        """The starts of the pages that were asked for, in ms."""
        return [int(one[self.start]) * self.start_ms for one in fake.asked(self.candles)]


BINANCE = Venue(FakeBinance, "binance", "BTC/USDT", "spot", "/api/v3/klines", 1000, "startTime", 1)
SWAP = replace(BINANCE, symbol="BTC/USDT:USDT", market="swap", candles="/fapi/v1/klines", page=500)
COINBASE = Venue(FakeCoinbase, "coinbase", "BTC/USD", "spot", "/candles", 300, "start", 1000)
BYBIT = Venue(FakeBybit, "bybit", "BTC/USDT", "spot", "/kline", 1000, "start", 1)
OKX = Venue(FakeOkx, "okx", "BTC/USDT", "spot", "candles", 300, "before", 1)
BITSTAMP = Venue(FakeBitstamp, "bitstamp", "BTC/USD", "spot", "/ohlc/", 1000, "start", 1000)
MAIN = pytest.mark.parametrize("venue", [BINANCE, SWAP, COINBASE], ids=["spot", "swap", "coinbase"])


@dataclass
class Here:
    """This machine: a store, and a clock that need not be the venue's."""

    root: Path
    now_ms: int = NOW
    batch_answers: int = 50
    slept: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(
        self, series: SeriesSettings, start_ms: int = LISTED, end_ms: int = NOW + HOUR
    ) -> Outcome:
        around = Surroundings(
            base=self.root,
            store=self.root,
            environment={},
            now_ms=lambda: self.now_ms,
            sleep=self.slept.append,
            log=self.told.append,
            batch_answers=self.batch_answers,
        )
        years = [SeriesYear(series.key, year) for year in YEARS]
        return import_bars({series.key: series}, years, around, (start_ms, end_ms))

    def partition(self, series: SeriesSettings, year: int) -> Partition:
        return read_partition(layout.ohlcv(self.root, series.key, year))

    def bars(self, series: SeriesSettings) -> pl.DataFrame:
        return pl.concat(self.partition(series, year).bars for year in YEARS)

    def confirmed(self, series: SeriesSettings) -> tuple[Interval, ...]:
        found = [one for year in YEARS for one in self.partition(series, year).confirmed]
        new_year = (found[0][1], found[1][0]) if len(found) == 2 else None
        if new_year == (ms(2025, 1, 1),) * 2:
            return ((found[0][0], found[1][1]),)
        return tuple(found)

    def files(self) -> dict[str, bytes]:
        return {one.name: one.read_bytes() for one in self.root.rglob("*.parquet")}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


@pytest.fixture(autouse=True)
def no_known_markets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ccxt_client, "_loaded", {})  # a port may come back


@lru_cache
def truth(
    start_ms: int, end_ms: int, market: MadeMarket = MARKET, bar: int = MINUTE
) -> pl.DataFrame:
    """The bars as they must be stored; volumes have eight decimals on the wire as in the market."""
    bars = market.bars(bar, start_ms, end_ms).with_columns(
        trades=None, adj_factor=None, source=pl.lit("rest")
    )
    return bars.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())


def sentence(outcome: Outcome) -> str:
    """The one refusal of a run."""
    (only,) = {one.sentence for one in outcome.refused.values()}
    return only


# What comes to be stored.


@pytest.mark.parametrize("venue", [BINANCE, SWAP, COINBASE, BYBIT, OKX, BITSTAMP], ids=str)
def test_the_partitions_are_what_the_venue_traded(here: Here, venue: Venue) -> None:
    with venue.fake(MARKET, NOW) as fake:
        series = venue.series(fake.url)
        outcome = here.run(series)
    assert not outcome.refused
    assert not fake.unexpected
    assert here.bars(series).equals(truth(LISTED, CLOSED))
    assert 0 < here.bars(series).height < (CLOSED - LISTED) / MINUTE  # some minutes were quiet
    ((start, end),) = here.confirmed(series)
    last_ms = here.bars(series)["ts"].dt.epoch("ms")[-1]
    assert (start, end) in [(LISTED, CLOSED), (LISTED, last_ms + MINUTE)]


@MAIN
def test_a_page_asks_for_as_many_bars_as_the_venue_gives_and_none_twice(
    here: Here, venue: Venue
) -> None:
    with venue.fake(MARKET, NOW) as fake:
        here.run(venue.series(fake.url))
    starts = venue.starts(fake)
    assert starts == sorted(set(starts))
    assert len(starts) <= -(-(CLOSED - LISTED) // (venue.page * MINUTE)) * 1.1 + 1
    for asked in fake.asked(venue.candles):
        if venue.exchange == "binance":
            assert asked["limit"] == str(venue.page)
        else:
            assert int(asked["end"]) - int(asked["start"]) == venue.page * 60


@pytest.mark.parametrize("batch_answers", [1, 2, 3])
@MAIN
def test_how_many_pages_make_a_batch_changes_no_byte(
    tmp_path: Path, venue: Venue, batch_answers: int
) -> None:
    one, other = Here(tmp_path / "one"), Here(tmp_path / "other", batch_answers=batch_answers)
    with venue.fake(MARKET, NOW) as fake:
        for here in (one, other):
            here.run(venue.series(fake.url))
    assert one.files() == other.files()
    assert len(one.files()) == 2


@pytest.mark.parametrize(("timeframe", "bar"), [("5m", 5 * MINUTE), ("1h", HOUR)])
@MAIN
def test_longer_bars_come_from_the_venue_too(
    here: Here, venue: Venue, timeframe: str, bar: int
) -> None:
    with venue.fake(MARKET, NOW) as fake:
        series = venue.series(fake.url, timeframe=timeframe)
        here.run(series)
    assert here.bars(series).equals(truth(LISTED, NOW // bar * bar, bar=bar))


@MAIN
def test_asking_again_fetches_nothing_and_later_only_the_newest_bars(
    here: Here, venue: Venue
) -> None:
    with venue.fake(MARKET, NOW) as fake:
        series = venue.series(fake.url)
        here.run(series)
        ((_, end),) = here.confirmed(series)
        fake.requests.clear()
        here.run(series)
        assert all(start >= end for start in venue.starts(fake))
        assert len(venue.starts(fake)) <= 2  # none, or what is quiet at the very end
        fake.requests.clear()
        fake.now_ms = here.now_ms = NOW + 10 * MINUTE
        here.run(series)
        assert venue.starts(fake)[0] == end
        assert len(venue.starts(fake)) <= 2
    assert here.bars(series).equals(truth(LISTED, CLOSED + 10 * MINUTE))


# Which bars have closed.


@pytest.mark.parametrize("minutes", [-600, -1, 1, 600])
@pytest.mark.parametrize("venue", [BINANCE, COINBASE, BITSTAMP], ids=str)
def test_the_venue_s_clock_says_which_bars_have_closed(
    here: Here, venue: Venue, minutes: int
) -> None:
    here.now_ms = NOW + minutes * MINUTE
    with venue.fake(MARKET, NOW) as fake:
        series = venue.series(fake.url)
        here.run(series)
    ((_, end),) = here.confirmed(series)
    # A page may reach further than this machine's clock, never further than the venue's.
    assert min(CLOSED, CLOSED + minutes * MINUTE) - 5 * MINUTE < end <= CLOSED
    assert here.bars(series).equals(truth(LISTED, end))


@settings(max_examples=12)
@given(
    tick_ms=st.integers(0, 3 * MINUTE),
    batch_answers=st.integers(1, 5),
    start=st.integers(0, 1000),
    venue=st.sampled_from([BINANCE, SWAP, COINBASE]),
)
def test_a_bar_that_closes_while_it_is_asked_for_is_stored_whole_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory,
    tick_ms: int,
    batch_answers: int,
    start: int,
    venue: Venue,
) -> None:
    here = Here(tmp_path_factory.mktemp("store"), NOW + HOUR, batch_answers)
    since = LISTED + start * MINUTE
    with venue.fake(BUSY, NOW) as fake:
        fake.tick_ms = tick_ms
        series = venue.series(fake.url)
        here.run(series, since)
        closed = fake.now_ms // MINUTE * MINUTE
    if since < ms(2025, 1, 1):
        ((first, end),) = here.confirmed(series)
        assert first == since
    else:
        ((_, end),) = here.partition(series, 2025).confirmed
    assert CLOSED - 5 * MINUTE < end <= closed
    assert here.bars(series).equals(truth(since, end, BUSY))


@pytest.mark.parametrize("venue", [COINBASE, SWAP, BITSTAMP], ids=str)
def test_bars_that_close_during_a_crawl_are_fetched_as_well(here: Here, venue: Venue) -> None:
    here.now_ms = NOW + HOUR
    with venue.fake(BUSY, NOW) as fake:
        fake.tick_ms = MINUTE
        series = venue.series(fake.url)
        here.run(series)
        ((_, end),) = here.confirmed(series)
        assert CLOSED + 3 * MINUTE < fake.now_ms - 5 * MINUTE < end
    assert here.bars(series).equals(truth(LISTED, end, BUSY))


def test_without_a_clock_of_the_venue_bars_count_as_closed_a_bar_late(here: Here) -> None:
    with FakeBitstamp(MARKET, NOW) as fake:
        fake.tells_date = False
        series = BITSTAMP.series(fake.url)
        here.run(series)
    assert here.bars(series).equals(truth(LISTED, CLOSED - MINUTE))
    assert any("bitstamp BTC/USD 1m: the venue tells no time" in line for line in here.told)


# What is known of time without bars.


def test_time_before_the_listing_is_confirmed_where_pages_count_bars(here: Here) -> None:
    long_before = LISTED - 100 * HOUR
    with FakeBinance(MARKET, NOW) as fake:
        series = BINANCE.series(fake.url)
        here.run(series, long_before)
        assert here.confirmed(series) == ((long_before, CLOSED),)
        assert len(fake.asked("klines")) == 4  # one of them to see that the start is heeded
    assert here.bars(series).equals(truth(LISTED, CLOSED))


def test_a_halt_longer_than_a_page_loses_no_bar_and_its_empty_pages_stay_unknown(
    here: Here,
) -> None:
    halt = (LISTED + 7 * HOUR, LISTED + 21 * HOUR)
    market = MadeMarket(seed=3, start_ms=LISTED, end_ms=NOW, trades_per_minute=20.0, halts=[halt])
    with FakeCoinbase(market, NOW) as fake:
        series = COINBASE.series(fake.url)
        here.run(series)
        (_, stops), (resumes, _) = here.partition(series, 2024).confirmed
        assert here.bars(series).equals(truth(LISTED, CLOSED, market))
        assert stops == halt[0]
        assert stops < resumes <= halt[1]
        assert halt[1] - resumes < 300 * MINUTE  # no more than a page of it is known
        fake.requests.clear()
        here.run(series)
        assert COINBASE.starts(fake)[0] == stops
        assert max(COINBASE.starts(fake)) < resumes


def test_time_in_which_binance_itself_was_away_is_stepped_over(here: Here) -> None:
    away = (LISTED + 3 * HOUR, LISTED + 23 * HOUR)
    with FakeBinance(MARKET, NOW, halts=(away,)) as fake:
        series = BINANCE.series(fake.url)
        here.run(series)
    there = pl.concat([truth(LISTED, away[0]), truth(away[1], CLOSED)])
    assert here.bars(series).equals(there)
    assert here.confirmed(series) == ((LISTED, CLOSED),)


# What a venue may lack.


@pytest.mark.parametrize(
    ("heeds_limit", "newest"),
    [(True, "1000 from 2024-12-31 19:2"), (False, "1440 from 2024-12-31 12:")],
)
@pytest.mark.parametrize("since", [LISTED, CLOSED - 1500 * MINUTE])
def test_a_venue_that_ignores_the_start_is_refused_and_nothing_is_stored(
    here: Here, heeds_limit: bool, newest: str, since: int
) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        fake.heeds_start, fake.heeds_limit = False, heeds_limit
        series = BINANCE.series(fake.url)
        outcome = here.run(series, since)
    assert "binance BTC/USDT 1m: asked for bars since 2024-12-31 " in sentence(outcome)
    assert f"gives its newest {newest}" in sentence(outcome)
    assert not here.files()


@pytest.mark.parametrize("age", [2, 3, 400, 999, 1000, 1001])
@pytest.mark.parametrize("heeds_start", [True, False])
def test_a_young_market_is_taken_for_no_venue_that_ignores_the_start(
    here: Here, age: int, heeds_start: bool
) -> None:
    listed = CLOSED - (age - 1) * MINUTE
    market = MadeMarket(seed=4, start_ms=listed, end_ms=NOW, trades_per_minute=30.0)
    with FakeBinance(market, NOW) as fake:
        fake.heeds_start = heeds_start
        series = BINANCE.series(fake.url)
        outcome = here.run(series)
    if not heeds_start and age >= 1000:
        assert "keeps no older ones" in sentence(outcome)
        return
    assert not outcome.refused
    assert here.bars(series).equals(truth(listed, CLOSED, market))
    assert here.confirmed(series) == ((LISTED if heeds_start else listed, CLOSED),)
    assert any("the time between is unknown" in line for line in here.told) is not heeds_start


def starts_used(method: Any) -> bool:
    """Whether a `fetch_ohlcv` uses its start for more than dropping rows from the answer."""
    tree = ast.parse(f"class Indented:\n{inspect.getsource(method)}")
    uses = {node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "since"}
    for node in ast.walk(tree):
        is_parsing = isinstance(node, ast.Call) and ast.unparse(node.func) == "self.parse_ohlcvs"
        if is_parsing:
            uses -= set(ast.walk(node))
    return bool(uses)


def test_the_venues_without_history_are_those_to_which_ccxt_sends_no_start() -> None:
    found = set()
    for name in ccxt.exchanges:
        known = getattr(ccxt, name)
        if known().has["fetchOHLCV"] is True and not starts_used(known.fetch_ohlcv):
            found.add(name)
    assert found == WITHOUT_HISTORY


def test_every_exchange_that_settings_accept_is_one_that_ccxt_describes() -> None:
    for name in ccxt.exchanges:
        if name == "kraken":
            continue
        series = replace(BINANCE, exchange=name).series("http://127.0.0.1:1")
        assert source_for(series).routes(series)["rest"].page_cap > 0


@pytest.mark.parametrize(
    ("exchange", "symbol", "market", "changes", "says"),
    [
        ("gemini", "BTC/USD", "spot", {}, "gemini gives its newest bars only"),
        ("coincheck", "BTC/JPY", "spot", {}, "coincheck gives no bars through ccxt"),
        ("coinbase", "BTC/USD", "spot", {"timeframe": "4h"},
         "coinbase has no bars of 4h; it has 1m, 5m, 15m, 1h, 1d."),
        ("coinbaseexchange", "BTC/USD:USD", "swap", {}, "coinbaseexchange has no swap markets"),
    ],
)  # fmt: skip
def test_what_a_venue_cannot_give_is_refused_before_any_request(
    here: Here, exchange: str, symbol: str, market: str, changes: dict[str, Any], says: str
) -> None:
    asked = replace(BINANCE, exchange=exchange, symbol=symbol, market=market)
    with FakeBinance(MARKET, NOW) as fake:
        outcome = here.run(asked.series(fake.url, **changes))
    assert sentence(outcome).startswith(f"series {exchange}.BTC.1m: {says}")
    assert not fake.requests
    if exchange == "gemini":
        with pytest.raises(HistoryUnavailable):
            plan(asked.series(fake.url), [(LISTED, CLOSED)])


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"symbol": "BTC/USD"}, "binance has no market 'BTC/USD'. Did you mean 'BTC/USDT'?"),
        ({"symbol": "BTC/USDT:USDT"},
         "binance: BTC/USDT:USDT is a swap market, and the source asks for market: spot."),
        ({"market": "swap"},
         "binance: BTC/USDT is a spot market, and the source asks for market: swap."),
        ({"symbol": "BTC/USDT:USDT-260925", "market": "swap"},
         "binance: BTC/USDT:USDT-260925 is a future market, and the source asks for market: swap."),
    ],
)  # fmt: skip
def test_a_wrong_symbol_or_market_is_a_sentence(
    here: Here, source: dict[str, str], says: str
) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        outcome = here.run(BINANCE.series(fake.url, source=source))
    assert sentence(outcome).startswith(f"series binance.BTC.1m: {says}")
    assert not fake.asked("klines")
    assert not here.files()


# Plans.


def plan(series: SeriesSettings, missing: list[Interval], route: str | None = None) -> Any:
    around = Surroundings(Path(), Path(), {}, lambda: NOW, lambda _: None, lambda _: None)
    return source_for(series).plan(series, Wanted(LISTED, NOW, tuple(missing)), route, around)


def test_a_plan_has_whole_closed_bars_and_joins_what_lies_within_a_page() -> None:
    series = BINANCE.series("http://127.0.0.1:1")
    page = 1000 * MINUTE
    assert plan(series, []) == []
    assert plan(series, [(CLOSED, NOW)]) == []
    assert plan(series, [(LISTED + 1, LISTED + 2)]) == [("rest", LISTED, LISTED + MINUTE)]
    near = [(LISTED, LISTED + HOUR), (LISTED + HOUR + page - MINUTE, NOW)]
    assert plan(series, near) == [("rest", LISTED, CLOSED)]
    far = [(LISTED, LISTED + HOUR), (LISTED + HOUR + page, NOW)]
    assert plan(series, far) == [("rest", *far[0]), ("rest", LISTED + HOUR + page, CLOSED)]
    with pytest.raises(SourceError, match="no route 'zip'"):
        plan(series, [(LISTED, NOW)], route="zip")


@pytest.mark.parametrize(
    ("venue", "cap", "a_minute"),
    [
        (BINANCE, 1000, 1200),
        (SWAP, 500, 1200),
        (COINBASE, 300, 60_000 / 34),
        (OKX, 300, 60_000 / 110),
        (BYBIT, 1000, 3000),
        (replace(BINANCE, exchange="kucoin", symbol="BTC/USDT:USDT", market="swap"), 500, 8000),
        (replace(BINANCE, exchange="gemini"), 300, 600),  # ccxt declares none
    ],
    ids=str,
)
def test_a_route_is_what_ccxt_declares_of_the_venue(
    venue: Venue, cap: int, a_minute: float
) -> None:
    series = venue.series("http://127.0.0.1:1")
    route = source_for(series).routes(series)["rest"]
    assert (route.page_cap, route.cursor) == (cap, "bar_time")
    assert route.calls_per_minute == pytest.approx(a_minute)
    assert route.has_history is (venue.exchange != "gemini")
    assert ("4h" in route.timeframes) is (venue.exchange not in ("coinbase", "gemini"))
    slow = venue.series("http://127.0.0.1:1", source={"calls_per_minute": 7})
    assert source_for(slow).routes(slow)["rest"].calls_per_minute == 7


# When something goes wrong.


OF_BINANCE = (binance.WEIGHT_USED, binance.BANNED, binance.OVERLOADED)
OF_COINBASE = (coinbase.RATE_LIMITED, coinbase.INTERNAL)
PASSING: list[tuple[Venue, str | Answer]] = [
    (venue, fault)
    for venue, own in ((BINANCE, OF_BINANCE), (COINBASE, OF_COINBASE))
    for fault in (*FAULTS, *SPOILED, *own)
]


@pytest.mark.parametrize(("venue", "fault"), PASSING, ids=str)
def test_what_passes_is_asked_again_until_the_result_is_right(
    here: Here, venue: Venue, fault: str | Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ccxt_client, "TIMEOUT_MS", 150)
    with venue.fake(MARKET, NOW) as fake:
        fake.fail({"binance": "exchangeInfo", "coinbase": "/products"}[venue.exchange], fault, 2)
        fake.fail("time", fault, 2)
        if (venue, fault) != (BINANCE, "[]"):  # so Binance says itself that there are no bars
            fake.fail(venue.candles, fault, 2)
        fake.fail(venue.candles, fault, 2, after=1)
        series = venue.series(fake.url)
        outcome = here.run(series)
        assert not fake.unused
    assert not outcome.refused
    assert here.bars(series).equals(truth(LISTED, CLOSED))
    assert here.confirmed(series)[0][0] == LISTED


def broken(change: Any) -> Answer:
    """A page of Binance's with some rows changed."""
    rows = [[LISTED + n * MINUTE, "2.0", "4.0", "1.0", "3.0", "10.0", 0, "", 1] for n in range(9)]
    return Answer(json.dumps(change(rows)).encode())


@pytest.mark.parametrize(
    "fault",
    [
        broken(lambda rows: [*rows, rows[3]]),
        broken(lambda rows: [[*rows[0][:4], "NaN", *rows[0][5:]], *rows[1:]]),
        broken(lambda rows: [rows[0][:3], *rows[1:]]),
        broken(lambda rows: [{"code": 1}, *rows]),
        broken(lambda rows: [None, *rows]),
        broken(lambda rows: ["abc", *rows]),
        broken(lambda rows: [[None, *rows[0][1:]], *rows[1:]]),
        broken(lambda rows: [[row[0] - 2000 * MINUTE, *row[1:]] for row in rows]),
        broken(lambda rows: {"rows": rows}),
        broken(lambda rows: [[]]),
        broken(lambda rows: 17),
    ],
    ids=range(11),
)
def test_rows_that_are_no_bars_are_asked_for_again(here: Here, fault: Answer) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        fake.fail("klines", fault, 3)
        series = BINANCE.series(fake.url)
        assert not here.run(series).refused
    assert here.bars(series).equals(truth(LISTED, CLOSED))


def test_rows_in_another_order_or_before_the_start_do_no_harm(here: Here) -> None:
    early = broken(lambda rows: [[row[0] - 5 * MINUTE, *row[1:]] for row in reversed(rows)])
    with FakeBinance(MARKET, NOW) as fake:
        fake.fail("klines", early)
        series = BINANCE.series(fake.url)
        assert not here.run(series).refused
        assert BINANCE.starts(fake)[:2] == [LISTED, LISTED + 3 * MINUTE]
    made_up = here.bars(series).head(3)
    assert made_up["volume"].to_list() == [10.0] * 3
    assert made_up["ts"].dt.epoch("ms").to_list() == [LISTED + n * MINUTE for n in range(3)]


@pytest.mark.parametrize(
    ("fault", "says", "requests"),
    [
        (broken(lambda rows: [[row[0] + 7, *row[1:]] for row in rows]),
         "the venue has a bar that opens at 2024-12-31 00:00:00 UTC", 1),
        (refusal(400, {"code": -1121, "msg": "Invalid symbol."}), "BadSymbol", 1),
        (refusal(400, {"code": -1102, "msg": "Mandatory parameter was not sent."}),
         "asking again would not help", 1),
        (binance.RESTRICTED, "restricted location", MOST_ATTEMPTS),
        (FAULTS["html"], "given up after 8 attempts", MOST_ATTEMPTS),
        (FAULTS["500"], "ExchangeNotAvailable: binance 500", MOST_ATTEMPTS),
    ],
    ids=range(6),
)  # fmt: skip
def test_what_does_not_pass_is_a_sentence_and_stored_bytes_stay(
    here: Here, fault: Answer, says: str, requests: int
) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        series = BINANCE.series(fake.url)
        here.run(series, end_ms=LISTED + HOUR)
        before = here.files()
        fake.requests.clear()
        fake.fail("klines", fault, 99)
        outcome = here.run(series)
    assert says in sentence(outcome)
    assert "binance BTC/USDT" in sentence(outcome)
    assert len(fake.asked("klines")) == requests
    assert here.files() == before


@MAIN
def test_after_a_failure_in_the_middle_only_what_is_missing_is_fetched(
    tmp_path: Path, venue: Venue
) -> None:
    here, smooth = Here(tmp_path / "here"), Here(tmp_path / "smooth")
    with venue.fake(MARKET, NOW) as fake:
        series = venue.series(fake.url)
        smooth.run(series)
        at_once = venue.starts(fake)
        fake.requests.clear()
        fake.fail(venue.candles, "502 html", MOST_ATTEMPTS, after=2)
        assert "What came before is stored" in sentence(here.run(series))
        assert venue.starts(fake)[:3] == at_once[:3]
        fake.requests.clear()
        assert not here.run(series).refused
        again = list(dict.fromkeys(venue.starts(fake)))  # one may be asked for twice, to be sure
        assert again == sorted({*again})
        assert again[0] == at_once[2] + MINUTE  # a page begins with the bar before
        assert len(again) <= len(at_once) - 2
    assert here.files() == smooth.files()


def test_an_empty_list_proves_nothing_and_is_asked_for_again_in_the_next_run(here: Here) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        series = BINANCE.series(fake.url)
        fake.fail("klines", "[]")  # on the first page, nothing says yet that it is wrong
        assert not here.run(series).refused
        second = LISTED + 1000 * MINUTE
        assert here.confirmed(series)[0][0] == second
        fake.requests.clear()
        here.run(series)
        assert BINANCE.starts(fake) == [LISTED]
    assert here.bars(series).equals(truth(LISTED, CLOSED))
    assert here.confirmed(series)[0][0] == LISTED


@pytest.mark.parametrize("most", [2, 7, 100, 299])
def test_a_venue_with_shorter_pages_than_ccxt_says_loses_no_bar(here: Here, most: int) -> None:
    start = CLOSED - most * 8 * MINUTE
    with FakeOkx(MARKET, NOW) as fake:
        fake.most = most
        series = OKX.series(fake.url)
        outcome = here.run(series, start)
    if most == 2:
        assert "gives only its newest 2 of the bars asked for" in sentence(outcome)
        return
    assert not outcome.refused
    assert here.bars(series).equals(truth(start, CLOSED))
    assert any(f"fewer bars at once than 300; taking {most - 1}" in line for line in here.told)


def test_a_venue_that_loses_the_front_of_one_page_is_noticed(here: Here) -> None:
    """Its first bar was given before, so the answer without it cannot be right."""
    with FakeBinance(MARKET, NOW) as fake:
        late = broken(lambda rows: [[row[0] + 1100 * MINUTE, *row[1:]] for row in rows])
        fake.fail("klines", late, after=1)
        series = BINANCE.series(fake.url)
        assert not here.run(series).refused
        assert fake.asked("klines")[-1]["limit"] == "1000"  # one mistake does not shorten pages
    assert here.bars(series).equals(truth(LISTED, CLOSED))


# How it asks.


def test_requests_are_paced_by_what_the_venue_charges_for_them(here: Here) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        here.run(SWAP.series(fake.url))
        pages = len(fake.asked("klines"))
        assert here.slept.count(0.05) >= pages  # the line's own pace
        assert here.slept.count(0.2) == pages  # four units more a page of 500
        here.slept.clear()
        here.run(SWAP.series(fake.url, key="slow.BTC.1m", source={"calls_per_minute": 6}))
        assert {*here.slept[1:]} == {10.0}


def test_markets_are_loaded_once_and_again_for_a_symbol_that_is_new(here: Here) -> None:
    with FakeBinance(MARKET, NOW) as fake:
        for key in ("one.BTC.1m", "two.BTC.1m"):
            assert not here.run(BINANCE.series(fake.url, key=key)).refused
        assert len(fake.asked("/api/v3/exchangeInfo")) == 1
        new = BINANCE.series(fake.url, key="new.BTC.1m", source={"symbol": "SOL/USDT"})
        assert "no market 'SOL/USDT'" in sentence(here.run(new))
        assert len(fake.asked("/api/v3/exchangeInfo")) == 2


@pytest.mark.parametrize(
    ("exchange", "market", "first"),
    [
        ("binance", "spot", "/api/v3/exchangeInfo"),
        ("coinbase", "spot", "/api/v3/brokerage/market/products"),
        ("coinbaseexchange", "spot", "/products"),
        ("bybit", "spot", "/v5/market/instruments-info"),
        ("okx", "swap", "/api/v5/public/instruments"),
        ("kucoin", "spot", "/api/v2/symbols"),
    ],
)
def test_another_address_is_used_with_the_venue_s_own_paths(
    here: Here, exchange: str, market: str, first: str
) -> None:
    class Nowhere(FakeVenue):
        routes = {}  # noqa: RUF012

    with Nowhere(MARKET, NOW) as fake:
        fake.fail("/", "500", 99)
        asked = replace(BINANCE, exchange=exchange, market=market)
        outcome = here.run(asked.series(f"{fake.url}/proxy/"))
        assert {one.path for one in fake.requests} == {f"/proxy{first}"}
    assert "given up after 8 attempts" in sentence(outcome)
