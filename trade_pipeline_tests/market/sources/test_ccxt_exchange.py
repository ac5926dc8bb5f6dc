"""Exchanges through the real ccxt, against venues on loopback, end to end into partitions."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import ccxt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Interval,
    SourceError,
    Surroundings,
    Wanted,
)
from trade_pipeline.market.sources.ccxt_exchange import WITHOUT_HISTORY
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline_tests.fakes.binance import FakeBinance
from trade_pipeline_tests.fakes.coinbase import FakeCoinbase
from trade_pipeline_tests.fakes.market import MadeMarket
from trade_pipeline_tests.fakes.other_exchanges import FakeBitstamp
from trade_pipeline_tests.market.series import MINUTE, ms

from .ccxt_venues import (
    BINANCE,
    BITSTAMP,
    BUSY,
    BYBIT,
    CLOSED,
    COINBASE,
    HOUR,
    LISTED,
    MAIN,
    MARKET,
    NOW,
    OKX,
    SWAP,
    Here,
    Venue,
    sentence,
    truth,
)


@pytest.fixture
def here(tmp_path: Path) -> Here:
    return Here(tmp_path)


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
