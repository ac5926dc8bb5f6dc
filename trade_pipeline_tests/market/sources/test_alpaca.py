"""Alpaca through the real alpaca-py, against a venue on loopback that speaks its wire format."""

import itertools
import logging
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import adjusted
from trade_pipeline.market.coverage import coverage
from trade_pipeline.market.importing import SeriesYear, import_bars
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources import alpaca_http, transport
from trade_pipeline.market.sources.alpaca import Alpaca
from trade_pipeline.market.sources.base import Leg, SourceError, Wanted, without
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS
from trade_pipeline.market.stored import read_bars
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline_tests.fakes.alpaca import KEY, SECRET, FakeAlpaca, MadeCoin
from trade_pipeline_tests.fakes.brokers import TRANSIENT, Answer, MadeStock, as_json
from trade_pipeline_tests.market.series import DAY, MINUTE, ms
from trade_pipeline_tests.market.sources.world import World, opens_at, sessions

HOUR = 60 * MINUTE
DELAY = 16 * MINUTE
NOW = ms(2024, 1, 21)  # a Sunday
OPENING = ms(2024, 1, 2, 14, 30)  # of the year
OPEN = ms(2024, 1, 10, 14, 30)
QUIET = frozenset({OPEN + 7 * MINUTE, OPEN + 8 * MINUTE})
BTC = MadeCoin("BTC/USD", ms(2024, 1, 10))


@pytest.fixture
def fake() -> Iterator[FakeAlpaca]:
    listed = [
        MadeStock("ACME", {date(2024, 1, 11): 4.0, date(2022, 6, 1): 2.0}, QUIET),
        MadeStock("YOUNG", listed=date(2024, 1, 16)),
        BTC,
    ]
    with FakeAlpaca(listed, NOW) as one:
        one.split("ACME", date(2022, 6, 1), 2)
        one.dividend("ACME", date(2022, 11, 4), 0.23)
        yield one
    assert not one.unexpected, f"requests that no sound client sends: {one.unexpected}"
    assert not one.unused, f"told but never met: {one.unused}"


def stock(fake: FakeAlpaca, timeframe: str = "1d", **changes: Any) -> SeriesSettings:
    symbol = changes.pop("symbol", "ACME")
    settings: dict[str, Any] = {
        "key": f"alpaca.{symbol}.{timeframe}",
        "source": {"kind": "alpaca", "symbol": symbol, "feed": "sip", "base_url": f"{fake.url}/"},
        "timeframe": timeframe,
        "calendar": "XNYS",
        "first_year": 2022,
        "volume_unit": "shares",
    }
    source = settings["source"] | changes.pop("source", {})
    return SeriesSettings.model_validate(settings | changes | {"source": source})


def coin(fake: FakeAlpaca, timeframe: str = "1m", **changes: Any) -> SeriesSettings:
    source = {"symbol": "BTC/USD", "asset_class": "crypto"} | changes.pop("source", {})
    about: dict[str, Any] = {"symbol": "BTC-USD", "calendar": "24/7", "volume_unit": "base"}
    return stock(fake, timeframe, **about | {"first_year": 2024} | changes, source=source)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(transport, "_paces", {})
    return new_world(tmp_path)


def new_world(root: Path, **changes: Any) -> World:
    environment = {"APCA_API_KEY_ID": KEY, "APCA_API_SECRET_KEY": SECRET}
    return World(root, NOW, environment, **changes)


# Daily bars of stocks.


def test_daily_bars_are_stamped_with_their_session_in_summer_and_winter(
    fake: FakeAlpaca, world: World
) -> None:
    bars = world.good(stock(fake))
    assert opens_at(bars) == sessions(ms(2022, 1, 1), NOW)
    assert bars["trades"].to_list() == [1000] * bars.height


def test_prices_are_as_traded_and_the_factor_joins_them_from_the_first_session_on(
    fake: FakeAlpaca, world: World
) -> None:
    bars = world.good(stock(fake), 2022)
    day = {one: at for at, one in enumerate(opens_at(bars))}
    close, factor = bars["close"], bars["adj_factor"]
    split, ex = day[ms(2022, 6, 1)], day[ms(2022, 11, 4)]
    assert close[split] / close[split - 1] == pytest.approx(0.5, rel=0.06)
    assert factor[0] == factor[split - 1] == 1.0
    assert factor[split] == factor[ex - 1] == 2.0
    assert factor[ex] == 2.0 * close[ex - 1] / (close[ex - 1] - 0.23)
    joined = adjusted(bars)["close"]
    assert joined[split] / joined[split - 1] == pytest.approx(1.0, rel=0.06)


def test_a_dividend_is_found_though_it_is_paid_after_today(fake: FakeAlpaca, world: World) -> None:
    fake.dividend("ACME", date(2024, 1, 17), 1.0, paid_after_days=90)
    factor = world.good(stock(fake))["adj_factor"]
    assert factor[-1] > factor[-4] * 1.01
    assert (
        Action(ms(2024, 1, 17), "dividend", 1.0)
        in read_bars(world.around.store, "alpaca.ACME.1d").actions
    )


def test_a_later_split_changes_no_byte_of_earlier_years(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake)
    world.now_ms = fake.now_ms = ms(2024, 1, 6)
    world.good(series)
    before = world.bytes_of(series)
    fake.split("ACME", date(2024, 1, 11), 4)
    world.now_ms = fake.now_ms = NOW
    bars = world.good(series)
    after = world.bytes_of(series)
    assert [after[f"{year}.parquet"] == before[f"{year}.parquet"] for year in (2022, 2023)] == [
        True,
        True,
    ]
    assert bars["adj_factor"][-1] == bars["adj_factor"][-10] * 4


def test_the_factor_of_one_year_is_anchored_at_the_first_year(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    alone = new_world(tmp_path / "alone").good(stock(fake), 2023)
    whole = world.good(stock(fake)).filter(pl.col("ts").dt.year() == 2023)
    assert alone.equals(whole)
    assert alone["adj_factor"][0] > 2.0


@pytest.mark.parametrize(
    ("now", "last"),
    [
        (ms(2024, 1, 18, 21, 30), ms(2024, 1, 17)),  # closed, but traded on in the evening
        (ms(2024, 1, 19, 5, 15), ms(2024, 1, 17)),  # midnight in New York, but for the delay
        (ms(2024, 1, 19, 5, 16), ms(2024, 1, 18)),
    ],
)
def test_a_session_is_stored_once_its_day_in_new_york_is_over(
    fake: FakeAlpaca, world: World, now: int, last: int
) -> None:
    world.now_ms = fake.now_ms = now
    series = stock(fake)
    assert opens_at(world.good(series))[-1] == last
    assert world.confirmed(series)[-1][1] == last + DAY


def test_a_year_whose_first_session_is_not_over_asks_nothing(
    fake: FakeAlpaca, world: World
) -> None:
    world.now_ms = fake.now_ms = ms(2024, 1, 2, 20)
    assert not world.take(stock(fake, first_year=2024)).refused
    assert not fake.requests


def test_a_stamp_whose_day_is_unclear_is_refused(fake: FakeAlpaca, world: World) -> None:
    def at_noon(body: Any) -> Any:
        body["bars"]["ACME"][3]["t"] = "2022-01-06T17:00:00Z"
        return body

    fake.fail("/stocks/bars", at_noon)
    assert "stamped 2022-01-06 17:00 UTC" in world.bad(stock(fake))


def test_a_symbol_listed_late_starts_there(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake, symbol="YOUNG")
    bars = world.good(series)
    assert bars.height == 4 and bars["adj_factor"].to_list() == [1.0] * 4
    assert world.confirmed(series, 2023) == ((ms(2023, 1, 1), ms(2024, 1, 1)),)


def test_nothing_is_confirmed_of_years_that_alpaca_does_not_have(
    fake: FakeAlpaca, world: World
) -> None:
    series = stock(fake, first_year=2015)
    world.good(series, 2015, 2016)
    assert world.confirmed(series, 2015) == ()
    assert world.confirmed(series, 2016) == ((ms(2016, 1, 1), ms(2017, 1, 1)),)


# What Alpaca changes afterwards.


def test_an_action_listed_late_is_refused_where_its_old_bars_would_stay(
    fake: FakeAlpaca, world: World
) -> None:
    series = stock(fake)
    world.good(series)
    fake.dividend("ACME", date(2023, 12, 28), 0.5)
    before = world.bytes_of(series)
    sentence = world.bad(series, 2024)
    assert "from 2023-12-28" in sentence and "all years" in sentence
    assert world.bytes_of(series) == before


def test_an_action_listed_late_is_taken_in_when_all_years_are_asked(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake)
    world.good(series)
    fake.dividend("ACME", date(2023, 12, 28), 0.5)
    assert world.good(series).equals(new_world(tmp_path / "new").good(series))


def test_bars_that_are_not_asked_again_need_pruning_after_a_late_action(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake, "15m", first_year=2024)
    world.now_ms = fake.now_ms = ms(2024, 1, 17)
    world.good(series)
    world.now_ms = fake.now_ms = NOW
    fake.dividend("ACME", date(2024, 1, 9), 0.5)
    assert "prune it from 2024-01-09" in world.bad(series)
    prune(world.around.store, series, 2024, (ms(2024, 1, 9), ms(2025, 1, 1)))
    assert world.good(series).equals(new_world(tmp_path / "new").good(series))


def test_an_action_that_alpaca_withdraws_is_refused(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake)
    world.good(series)
    del fake.actions["cash_dividends"]
    assert "from 2022-11-04" in world.bad(series)


def test_a_split_between_the_years_is_stored_before_the_new_year_is(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake, first_year=2023)
    world.now_ms = fake.now_ms = ms(2023, 12, 30)
    world.good(series)
    fake.split("ACME", date(2023, 12, 30), 2)  # a Saturday
    world.now_ms = fake.now_ms = NOW
    before = world.bytes_of(series)
    assert "from 2023-12-29" in world.bad(series, 2024)
    assert world.bytes_of(series) == before
    assert world.good(series).equals(new_world(tmp_path / "new").good(series))
    split = Action(ms(2023, 12, 30), "split", 2.0)
    assert split in read_bars(world.around.store, series.key).actions


def test_a_late_split_between_confirmed_years_is_stored_after_pruning(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake, "15m", first_year=2023)
    world.now_ms = fake.now_ms = ms(2024, 1, 2, 12)
    world.good(series)
    fake.split("ACME", date(2023, 12, 30), 2)
    world.now_ms = fake.now_ms = NOW
    assert "from 2023-12-29 00:00 UTC" in world.bad(series, 2024)
    assert "prune it from 2023-12-29" in world.bad(series)
    for year in (2023, 2024):
        prune(world.around.store, series, year, (ms(2023, 12, 29), ms(2025, 1, 1)))
    new = new_world(tmp_path / "new")
    assert world.good(series).equals(new.good(series))
    stored, once = (read_bars(one.around.store, series.key) for one in (world, new))
    assert stored.actions == once.actions


def test_two_pruned_ranges_are_filled_in_one_run_though_both_have_actions(
    fake: FakeAlpaca, world: World
) -> None:
    fake.dividend("ACME", date(2022, 3, 2), 0.2)
    fake.dividend("ACME", date(2023, 8, 2), 0.2)
    series = stock(fake, "15m")
    once = world.good(series)
    actions = read_bars(world.around.store, series.key).actions
    prune(world.around.store, series, 2022, (ms(2022, 3, 1), ms(2022, 3, 5)))
    prune(world.around.store, series, 2023, (ms(2023, 8, 1), ms(2023, 8, 5)))
    assert world.good(series).equals(once)
    assert read_bars(world.around.store, series.key).actions == actions


def test_a_run_that_asks_nothing_leaves_a_late_action_to_the_next_that_does(
    fake: FakeAlpaca, world: World
) -> None:
    series = stock(fake, "15m", first_year=2023)
    world.now_ms = fake.now_ms = ms(2024, 1, 2, 12)
    world.good(series)
    fake.dividend("ACME", date(2023, 12, 28), 0.5)
    fake.requests.clear()
    world.good(series, 2023)
    assert not fake.requests
    world.now_ms = fake.now_ms = NOW
    assert "from 2023-12-28" in world.bad(series, 2024)


def test_an_impossible_dividend_is_named(fake: FakeAlpaca, world: World) -> None:
    fake.dividend("ACME", date(2023, 5, 2), 500.0)
    assert "dividend of 2023-05-02 is 500 a share" in world.bad(stock(fake))


def test_what_adj_factor_has_no_rule_for_is_said(fake: FakeAlpaca, world: World) -> None:
    entry = {"symbol": "ACME", "ex_date": "2023-03-01", "process_date": "2023-03-01"}
    fake.actions["spin_offs"] = [entry, entry]
    series = stock(fake, first_year=2019)
    world.good(series)
    assert any("2 spin_offs" in line for line in world.said)
    assert any("may lack earlier" in line for line in world.said)


def test_actions_come_in_pages(fake: FakeAlpaca, world: World) -> None:
    whole = world.good(stock(fake))
    fake.actions_cap = 1
    paged = new_world(world.root / "paged")
    assert paged.good(stock(fake), 2022).equals(whole.filter(pl.col("ts").dt.year() == 2022))
    assert len(fake.asked("corporate-actions")) == 3


# Intraday bars of stocks.


def test_only_bars_within_the_session_are_stored_and_quiet_minutes_are_known(
    fake: FakeAlpaca, world: World
) -> None:
    series = stock(fake, "1m", first_year=2024)
    bars = world.good(series)
    expected = sessions(ms(2024, 1, 1), NOW, MINUTE)
    assert opens_at(bars) == [one for one in expected if one not in QUIET]
    assert world.confirmed(series) == ((OPENING, NOW - DELAY),)
    assert any("outside the hours of XNYS" in line for line in world.said)
    covered = coverage(bars, world.confirmed(series), series)
    assert covered.days["unknown"].sum() == 0 and covered.days["quiet"].sum() == len(QUIET)


@pytest.mark.parametrize("timeframe", ["1m", "5m", "15m"])
def test_an_intraday_bar_has_the_factor_of_its_session(
    fake: FakeAlpaca, world: World, timeframe: str
) -> None:
    fake.split("ACME", date(2024, 1, 11), 4)
    daily = world.good(stock(fake))
    bars = world.good(stock(fake, timeframe), 2024)
    by_day = dict(zip(opens_at(daily), daily["adj_factor"].to_list(), strict=True))
    assert bars["adj_factor"].to_list() == [by_day[ts // DAY * DAY] for ts in opens_at(bars)]
    assert bars["adj_factor"].n_unique() == 2


def test_a_half_day_ends_at_its_close(fake: FakeAlpaca, world: World) -> None:
    world.now_ms = fake.now_ms = ms(2023, 11, 25)
    series = stock(fake, "15m", first_year=2023)
    bars = world.good(series).filter(pl.col("ts") >= datetime(2023, 11, 24, tzinfo=UTC))
    assert opens_at(bars)[-1] == ms(2023, 11, 24, 17, 45)  # 13:00 in New York, less one bar


@pytest.mark.parametrize("now", [ms(2024, 1, 18, 15, 46), ms(2024, 1, 18, 15, 46, 59)])
def test_the_newest_bar_is_one_whose_minute_is_over_by_the_feed_s_delay(
    fake: FakeAlpaca, world: World, now: int
) -> None:
    world.now_ms = fake.now_ms = now
    series = stock(fake, "1m", first_year=2024)
    assert opens_at(world.good(series))[-1] == ms(2024, 1, 18, 15, 29)
    assert world.confirmed(series)[-1][1] == ms(2024, 1, 18, 15, 30)


def test_a_clock_that_runs_ahead_stores_no_unfinished_bar(fake: FakeAlpaca, world: World) -> None:
    fake.now_ms = ms(2024, 1, 18, 15, 46)
    world.now_ms = fake.now_ms + 10 * MINUTE
    series = stock(fake, "5m", first_year=2024, source={"feed": "iex"})
    assert opens_at(world.good(series))[-1] < ms(2024, 1, 18, 15, 30)
    crypto = coin(fake, "5m")
    assert opens_at(world.good(crypto))[-1] < ms(2024, 1, 18, 15, 30)


def test_a_second_run_changes_no_byte_and_asks_no_bar_again(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake, "1m", first_year=2024)
    world.good(series)
    before, asked = world.bytes_of(series), len(fake.requests)
    world.good(series)
    assert world.bytes_of(series) == before
    assert len(fake.requests) == asked


def test_a_later_run_asks_only_for_what_came_since(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake, "1m", first_year=2024)
    world.now_ms = fake.now_ms = ms(2024, 1, 18, 15, 0)
    world.good(series)
    world.now_ms = fake.now_ms = NOW
    fake.requests.clear()
    bars = world.good(series)
    (asked,) = [one for one in fake.asked("/stocks/bars") if one["timeframe"] == "1Min"]
    assert asked["start"] == "2024-01-18T14:44:00+00:00"
    assert bars.equals(new_world(tmp_path / "once").good(series))


def test_an_import_that_broke_off_goes_on_where_it_stopped(
    fake: FakeAlpaca, world: World, tmp_path: Path
) -> None:
    series = stock(fake, "1m", symbol="YOUNG", first_year=2024)
    fake.page_cap = 200
    world.batch_answers = 2
    fake.fail("/stocks/bars", "500", times=MOST_ATTEMPTS, after=1 + 5)  # daily bars, five pages
    outcome = world.take(series)
    assert "HTTP 500" in outcome.refused[SeriesYear(series.key, 2024)].sentence
    ((_, reached),) = world.confirmed(series)
    fake.requests.clear()
    bars = world.good(series)
    first = next(one for one in fake.asked("/stocks/bars") if one["timeframe"] == "1Min")
    assert first["start"] == f"{datetime.fromtimestamp(reached / 1000, UTC).isoformat()}"
    assert ms(2024, 1, 17) < reached < ms(2024, 1, 18)
    once = new_world(tmp_path / "once")
    assert bars.equals(once.good(series))
    assert world.bytes_of(series) == once.bytes_of(series)


def test_what_happened_during_a_long_crawl_is_left_for_the_next(
    fake: FakeAlpaca, world: World
) -> None:
    series = stock(fake, "1m", symbol="YOUNG", first_year=2024)
    fake.page_cap = 300
    clock = itertools.count(ms(2024, 1, 18, 16, 0), 10 * MINUTE)
    around = replace(world.around, now_ms=lambda: next(clock))
    assert not import_bars({series.key: series}, [SeriesYear(series.key, 2024)], around).refused
    ((_, end),) = world.confirmed(series)
    stored = opens_at(read_bars(around.store, series.key).bars)
    assert stored == sessions(ms(2024, 1, 16), end, MINUTE)
    assert next(clock) > end + HOUR


@pytest.mark.parametrize("pages_a_batch", [1, 3, 50])
def test_how_pages_are_cut_into_batches_changes_no_byte(
    fake: FakeAlpaca, world: World, tmp_path: Path, pages_a_batch: int
) -> None:
    series = stock(fake, "15m", first_year=2024)
    world.good(series)
    fake.page_cap = 97
    cut = new_world(tmp_path / "cut", batch_answers=pages_a_batch)
    cut.good(series)
    assert cut.bytes_of(series) == world.bytes_of(series)


def test_iex_confirms_nothing_and_reads_its_years_whole(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake, "5m", source={"feed": "iex"})
    bars = world.good(series, 2024)
    assert world.confirmed(series) == ()
    assert coverage(bars, (), series).days["unknown"].sum() > 0
    before = world.bytes_of(series)
    fake.requests.clear()
    world.good(series, 2024)
    assert world.bytes_of(series) == before
    (asked,) = [one for one in fake.asked("/stocks/bars") if one["timeframe"] == "5Min"]
    assert asked["start"].startswith("2024-01-02T14:30") and asked["feed"] == "iex"


def test_ranges_that_a_page_spans_are_asked_together(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake, "1m")
    start, end = ms(2023, 1, 1), ms(2024, 1, 1)
    known = [(ms(2023, 1, 5), ms(2023, 1, 6)), (ms(2023, 2, 1), ms(2023, 6, 1))]
    wanted = Wanted(start, end, without(start, end, known))
    assert Alpaca().plan(series, wanted, None, world.around) == [
        Leg("rest", ms(2023, 1, 3, 14, 30), ms(2023, 2, 1)),
        Leg("rest", ms(2023, 6, 1, 13, 30), end),
    ]


# Crypto.


def test_a_crypto_minute_without_a_trade_is_quiet_and_one_without_a_bar_unknown(
    fake: FakeAlpaca, world: World
) -> None:
    series = coin(fake)
    bars = world.good(series)
    nth = range(BTC.first_ms // MINUTE, (NOW - DELAY) // MINUTE)
    assert opens_at(bars) == [one * MINUTE for one in nth if one % 5 and one % 11]
    assert bars["adj_factor"].null_count() == bars.height
    known = without(BTC.first_ms, NOW - DELAY, world.confirmed(series))
    assert [start // MINUTE for start, _ in known] == [one for one in nth if one % 11 == 0]
    assert any("of quotes alone" in line for line in world.said)


@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h", "4h", "1d"])
def test_crypto_has_every_timeframe(fake: FakeAlpaca, world: World, timeframe: str) -> None:
    series = coin(fake, timeframe)
    assert world.good(series).height > 0


def test_crypto_days_that_start_elsewhere_are_refused(fake: FakeAlpaca, world: World) -> None:
    fake.listed["BTC/USD"] = replace(BTC, day_starts_ms=6 * HOUR)
    sentence = world.bad(coin(fake, "1d"))
    assert "2024-01-10 06:00 UTC" in sentence and "kind: derived" in sentence


def test_crypto_needs_no_credentials(fake: FakeAlpaca, world: World) -> None:
    world.environment.clear()
    assert world.good(coin(fake, "1h")).height > 0


def test_a_second_crypto_run_changes_no_byte(fake: FakeAlpaca, world: World) -> None:
    series = coin(fake)
    world.good(series)
    before = world.bytes_of(series)
    world.good(series)
    assert world.bytes_of(series) == before


@pytest.mark.parametrize("kind", ["stock", "crypto"])
def test_a_symbol_without_any_bar_is_named(fake: FakeAlpaca, world: World, kind: str) -> None:
    source = {"symbol": "NO/PE"}
    series = stock(fake, source=source) if kind == "stock" else coin(fake, source=source)
    assert "NO/PE" in world.bad(series)
    assert not world.bytes_of(series)


# What is asked.


def test_raw_prices_of_the_company_that_had_the_symbol_on_a_day(
    fake: FakeAlpaca, world: World
) -> None:
    world.good(stock(fake, source={"asof": "2023-01-04"}))
    (asked,) = fake.asked("/stocks/bars")
    wanted = {"symbols": "ACME", "timeframe": "1Day", "adjustment": "raw", "feed": "sip"}
    assert {**wanted, "asof": "2023-01-04", "limit": "10000"}.items() <= asked.items()


def test_requests_of_all_symbols_share_one_pace(fake: FakeAlpaca, world: World) -> None:
    world.good(stock(fake, source={"calls_per_minute": 60}))
    world.good(stock(fake, symbol="YOUNG", source={"calls_per_minute": 60}))
    assert world.slept == [1.0, 1.0, 1.0]  # before all of the four requests but the first


# What cannot be.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"timeframe": "1h"}, "kind: derived"),
        ({"timeframe": "4h"}, "kind: derived"),
        ({"calendar": "24/7"}, "its exchange, such as XNYS"),
        ({"source": {"asset_class": "crypto"}}, "set it to 24/7"),
    ],
)
def test_settings_that_alpaca_s_bars_do_not_fit_are_refused(
    fake: FakeAlpaca, world: World, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in world.bad(stock(fake, **changes), 2024)
    assert not fake.requests


def test_an_unknown_route_is_named(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake)
    with pytest.raises(SourceError, match="no route 'ws'"):
        source_for(series).plan(series, Wanted(0, NOW, ((0, NOW),)), "ws", world.around)


def test_a_missing_extra_is_named(
    fake: FakeAlpaca, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "alpaca.data.historical", None)
    assert "pip install trade_pipeline[alpaca]" in world.bad(stock(fake))


@pytest.mark.parametrize(
    ("environment", "absent"),
    [
        ({}, "APCA_API_KEY_ID and APCA_API_SECRET_KEY"),
        ({"APCA_API_KEY_ID": KEY}, "APCA_API_SECRET_KEY"),
        ({"APCA_API_KEY_ID": "", "APCA_API_SECRET_KEY": SECRET}, "APCA_API_KEY_ID"),
    ],
)
def test_missing_credentials_are_named(
    fake: FakeAlpaca, world: World, environment: dict[str, str], absent: str
) -> None:
    world.environment = environment
    assert f"{absent} of the environment" in world.bad(stock(fake))
    if environment:
        assert f"{absent} of the environment" in world.bad(coin(fake))
    assert not fake.requests


@pytest.mark.parametrize("kind", ["stock", "crypto"])
def test_refused_credentials_are_asked_once_and_never_told(
    fake: FakeAlpaca, world: World, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.echoes = True
    wrong = {"APCA_API_KEY_ID": "PKWRONGKEY", "APCA_API_SECRET_KEY": "WrongSecretWrongSecret"}
    world.environment = wrong
    series = stock(fake) if kind == "stock" else coin(fake)
    sentence = world.bad(series)
    assert "403" in sentence and "APCA_API_KEY_ID" in sentence
    assert len(fake.requests) == 1
    with pytest.raises(SourceError) as caught:
        list(source_for(series).fetch(series, Leg("rest", ms(2024, 1, 1), NOW), world.around))
    told = [sentence, *world.said, caplog.text, *traceback.format_exception(caught.value)]
    assert not [one for one in told for secret in wrong.values() if secret in one]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_permanent_and_told_in_alpaca_s_words(
    fake: FakeAlpaca, world: World, status: int
) -> None:
    refusal = as_json({"code": status * 100, "message": "invalid symbol: ACME"}, status)
    fake.fail("/stocks/bars", refusal)
    sentence = world.bad(stock(fake))
    assert f"HTTP {status}: 'invalid symbol: ACME'" in sentence
    assert len(fake.requests) == 1 and not world.slept


def test_a_refusal_that_is_no_json_is_told_in_part(fake: FakeAlpaca, world: World) -> None:
    fake.fail("/stocks/bars", Answer(b"<html>" + b"x" * 9000, 404, "text/html"))
    assert len(world.bad(stock(fake))) < 500


# What passes when asked again.


def without_key(key: str) -> Any:
    return lambda body: {name: value for name, value in body.items() if name != key}


def with_bars(change: Any) -> Any:
    """A good answer whose bars are changed in place."""

    def spoil(body: Any) -> Any:
        change(body["bars"]["ACME"])
        return body

    return spoil


SPOILED: dict[str, Any] = {
    "no bars": without_key("bars"),
    "no token": without_key("next_page_token"),
    "bars null": lambda body: {**body, "bars": None},
    "bars a list": lambda body: {**body, "bars": body["bars"]["ACME"]},
    "symbol null": lambda body: {**body, "bars": {"ACME": None}},
    "another symbol": lambda body: {**body, "bars": {"OTHER": body["bars"]["ACME"]}},
    "token a number": lambda body: {**body, "next_page_token": 7},
    "bar null": with_bars(lambda bars: bars.__setitem__(2, None)),
    "bar without close": with_bars(lambda bars: bars[2].pop("c")),
    "close null": with_bars(lambda bars: bars[2].update(c=None)),
    "close a word": with_bars(lambda bars: bars[2].update(c="much")),
    "time a word": with_bars(lambda bars: bars[2].update(t="noon")),
    "unsorted": with_bars(lambda bars: bars.reverse()),
    "repeated": with_bars(lambda bars: bars.insert(3, bars[3])),
    "another range": with_bars(lambda bars: bars[0].update(t="2019-03-04T05:00:00Z")),
}


@pytest.mark.parametrize("fault", [*TRANSIENT, *SPOILED])
def test_a_bad_answer_is_asked_again_once_by_us_alone(
    fake: FakeAlpaca, world: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = fault == "timeout"  # a good answer may be, too, on a busy machine
    if late:
        monkeypatch.setattr(alpaca_http, "TIMEOUT_S", 0.5)
        fake.hold_s = 60.0
    series = stock(fake, first_year=2024)
    fake.fail("/stocks/bars", SPOILED.get(fault, fault))
    bars = world.good(series)
    asked = len(fake.asked("/stocks/bars"))
    assert asked >= 2 if late else asked == 2
    assert opens_at(bars) == sessions(ms(2024, 1, 1), NOW)
    told = [line for line in world.said if "attempt 1 of" in line]
    assert "ReadTimeout" in told[0] if late else len(told) == 1


@pytest.mark.parametrize("fault", ["500", "html", "no actions", "no rate", "no date"])
def test_bad_corporate_actions_are_asked_again(fake: FakeAlpaca, world: World, fault: str) -> None:
    def spoil(body: Any) -> Any:
        entry = body["corporate_actions"]["cash_dividends"][0]
        entry.update({"no rate": {"rate": None}, "no date": {"ex_date": "soon"}}[fault])
        return body

    spoiled = without_key("corporate_actions") if fault == "no actions" else spoil
    fake.fail("/corporate-actions", fault if fault in TRANSIENT else spoiled)
    assert world.good(stock(fake), 2022)["adj_factor"][-1] > 2.0
    assert len(fake.asked("/corporate-actions")) == 2


@pytest.mark.parametrize("fault", ["429", "empty", "bars null"])
def test_what_stays_bad_ends_in_a_sentence(fake: FakeAlpaca, world: World, fault: str) -> None:
    fake.fail("/stocks/bars", SPOILED.get(fault, fault), times=MOST_ATTEMPTS)
    sentence = world.bad(stock(fake))
    assert f"given up after {MOST_ATTEMPTS} attempts" in sentence and "ACME" in sentence
    assert len(fake.requests) == MOST_ATTEMPTS
    assert not world.bytes_of(stock(fake))


@pytest.mark.parametrize("route", ["/stocks/bars", "/corporate-actions"])
def test_pages_that_never_end_are_noticed(fake: FakeAlpaca, world: World, route: str) -> None:
    again = {"bars": {}, "corporate_actions": {}, "next_page_token": "MQ=="}
    fake.fail(route, as_json(again), times=1 + MOST_ATTEMPTS)
    assert "pages would never end" in world.bad(stock(fake))


def test_a_page_that_comes_twice_is_noticed(fake: FakeAlpaca, world: World) -> None:
    fake.page_cap = 100

    def first_again(body: Any) -> Any:
        body["bars"]["ACME"][0]["t"] = "2022-01-03T05:00:00Z"
        return body

    fake.fail("/stocks/bars", first_again, after=1)
    assert opens_at(world.good(stock(fake))) == sessions(ms(2022, 1, 1), NOW)


def test_factors_follow_no_bar_that_is_not_over(fake: FakeAlpaca, world: World) -> None:
    series = stock(fake, "5m", first_year=2024)
    world.now_ms = fake.now_ms = ms(2024, 1, 18, 17, 0)
    fake.dividend("ACME", date(2024, 1, 18), 0.4)
    fake.dividend("ACME", date(2024, 1, 19), 0.4)
    early = world.good(series)["adj_factor"].to_numpy()
    world.now_ms = fake.now_ms = NOW
    late = world.good(series)["adj_factor"].to_numpy()
    assert np.array_equal(late[: len(early)], early)
    assert late[-1] > early[-1] > early[0]
