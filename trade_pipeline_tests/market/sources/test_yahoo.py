"""Yahoo through the real yfinance, against a venue on loopback that speaks its wire format."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import BAR_SCHEMA, violations
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.coverage import coverage
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Leg,
    SourceBars,
    SourceError,
    Surroundings,
    Wanted,
)
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS
from trade_pipeline.market.sources.yahoo import Yahoo
from trade_pipeline.market.stored import read_bars, read_grids, read_partition
from trade_pipeline.notebook import load_bars
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.series import SeriesSettings, start_of_year
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import write_json
from trade_pipeline_tests.fakes.yahoo import NOT_FOUND, FakeYahoo, Listed
from trade_pipeline_tests.market import lean
from trade_pipeline_tests.market.series import DAY, ms

HOUR = 3_600_000
LATER = ms(2022, 1, 1)
FOUR_FOR_ONE = Action(ms(2019, 7, 1), "split", 4.0)
DIVIDEND = Action(ms(2019, 10, 1), "dividend", 0.23)
THREE_FOR_TWO = Action(ms(2020, 6, 1), "split", 1.5)


@pytest.fixture(scope="module", autouse=True)
def _no_cookie_in_the_home_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    from yfinance.cache import set_cache_location

    set_cache_location(str(tmp_path_factory.mktemp("yfinance")))


@pytest.fixture
def fake() -> Iterator[FakeYahoo]:
    with FakeYahoo() as one:
        yield one
    assert not one.unexpected, f"requests this venue does not know: {one.unexpected}"
    assert not one.unused, f"told but never met: {one.unused}"


def settings(fake: FakeYahoo, ticker: str = "ACME", **changes: Any) -> SeriesSettings:
    source = {"kind": "yahoo", "ticker": ticker, "base_url": fake.url}
    return SeriesSettings.model_validate(
        {
            "key": f"yahoo.{ticker}.1d",
            "source": source,
            "timeframe": "1d",
            "calendar": "XNYS",
            "first_year": 2019,
            "volume_unit": "shares",
        }
        | changes
    )


def listed(
    first: tuple[int, int, int] = (2019, 1, 1),
    end: tuple[int, int, int] = (2021, 1, 1),
    calendar: str = "XNYS",
    opens_at_ms: int = 14 * HOUR + HOUR // 2,
    **changes: Any,
) -> Listed:
    """A stock of whole cents on every session, from about 100 dollars before its splits."""
    bounds = (start_of_year(one[0]).replace(month=one[1], day=one[2]) for one in (first, end))
    dates = find_calendar(calendar).expected(*bounds, DAY, calendar != "24/7")
    random = np.random.default_rng(7)
    actions = changes.get("actions", ())
    ratio = np.ones(len(dates))
    for one in actions:
        if one.kind == "split":
            ratio[dates >= one.ts_ms] *= one.value
    cents = np.sort(random.integers(8_000, 12_000, (len(dates), 4)), axis=1)[:, [1, 3, 0, 2]]
    prices = np.round(cents / ratio[:, np.newaxis]) / 100
    volume = random.integers(1_000, 900_000, len(dates)).astype(float)
    opens = ((dates + opens_at_ms) // 1000).tolist()
    return Listed("ACME", opens, prices, volume, **changes)


def around(
    root: Path = Path("nowhere"), now_ms: int = LATER, told: list[str] | None = None
) -> Surroundings:
    return Surroundings(
        base=root,
        store=root / "store",
        environment={},
        now_ms=lambda: now_ms,
        sleep=lambda seconds: None,
        log=(told if told is not None else []).append,
    )


def read(series: SeriesSettings, now_ms: int = LATER, told: list[str] | None = None) -> SourceBars:
    surroundings = around(now_ms=now_ms, told=told)
    (leg,) = source_for(series).plan(series, Wanted(0, now_ms, ()), None, surroundings)
    (batch,) = source_for(series).fetch(series, leg, surroundings)
    return batch


def dates_of(batch: SourceBars) -> list[str]:
    return batch.bars["ts"].dt.strftime("%F").to_list()


def as_traded(batch: SourceBars) -> np.ndarray:
    return batch.bars.select("open", "high", "low", "close").to_numpy()


# What comes out.


def test_prices_volume_and_dividends_are_those_of_their_day(fake: FakeYahoo) -> None:
    actions = (FOUR_FOR_ONE, DIVIDEND, THREE_FOR_TWO)
    stock = fake.stocks["ACME"] = listed(actions=actions)
    series = settings(fake)
    batch = read(series)
    assert violations(batch.bars, series, None).is_empty()
    assert batch.stored.schema == pl.Schema(BAR_SCHEMA)
    assert as_traded(batch).tolist() == stock.prices.tolist()
    assert batch.bars["volume"].to_list() == stock.volume.tolist()
    assert batch.actions == actions
    assert set(batch.bars["source"]) == {"rest"}
    assert (batch.confirmed, batch.answers, batch.notes) == ((), 1, ())
    assert batch.origin == "Yahoo Finance, ACME"


def test_the_factor_starts_at_one_and_holds_splits_and_dividends(fake: FakeYahoo) -> None:
    stock = fake.stocks["ACME"] = listed(actions=(FOUR_FOR_ONE, DIVIDEND, THREE_FOR_TWO))
    batch = read(settings(fake))
    factor = dict(zip(dates_of(batch), batch.bars["adj_factor"], strict=True))
    assert {factor[day] for day in ("2019-01-02", "2019-06-28")} == {1.0}
    assert {factor[day] for day in ("2019-07-01", "2019-09-30")} == {4.0}
    before = stock.prices[dates_of(batch).index("2019-09-30"), 3]
    assert factor["2019-10-01"] == factor["2020-05-29"] == 4 * (before / (before - 0.23))
    assert factor["2020-06-01"] == factor["2020-12-31"] == factor["2019-10-01"] * 1.5


@pytest.mark.parametrize("ticker", ["aapl", "ibm"])
def test_real_prices_survive_what_yahoo_does_to_them(
    fake: FakeYahoo, shared_data: Path, ticker: str
) -> None:
    truth = lean.daily(shared_data, ticker)
    actions = lean.actions(shared_data, ticker, truth)
    fake.stocks["ACME"] = Listed(
        "ACME",
        (truth["ts"].dt.epoch("s") + 52_200).to_list(),
        truth.select("open", "high", "low", "close").to_numpy(),
        truth["volume"].to_numpy(),
        tuple(actions),
    )
    batch = read(settings(fake, first_year=1998))
    for name in ("ts", "open", "high", "low", "close", "volume"):
        assert batch.bars[name].to_list() == truth[name].to_list(), name
    assert list(batch.actions) == actions
    quotient = batch.bars["adj_factor"].to_numpy() / lean.factors(shared_data, ticker, truth["ts"])
    assert np.ptp(quotient) / quotient[0] < 5e-6


def test_the_history_starts_with_first_year_and_so_does_the_factor(fake: FakeYahoo) -> None:
    stock = fake.stocks["ACME"] = listed(actions=(FOUR_FOR_ONE, THREE_FOR_TWO))
    batch = read(settings(fake, first_year=2020))
    assert dates_of(batch)[0] == "2020-01-02"
    assert batch.bars["adj_factor"][0] == 1.0
    assert batch.bars["adj_factor"][-1] == 1.5
    assert batch.actions == (THREE_FOR_TWO,)
    assert as_traded(batch).tolist() == stock.prices[-batch.bars.height :].tolist()
    assert int(fake.charts[0]["period1"]) == ms(2019, 12, 31) // 1000


def test_all_of_it_is_asked_for_at_once(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed()
    series = settings(fake)
    wanted = Wanted(ms(2020, 3, 1), ms(2020, 3, 5), ())
    assert Yahoo().plan(series, wanted, None, around()) == [Leg("rest", *wanted[:2])]
    read(series)
    assert len(fake.charts) == 1
    assert fake.charts[0]["interval"] == "1d"
    (route,) = Yahoo().routes(series).values()
    assert (route.cursor, route.page_cap, route.calls_per_minute) == ("none", None, 30)


@pytest.mark.parametrize(
    ("zone", "calendar", "opens_at_ms"),
    [
        ("Asia/Tokyo", "XTKS", 0),
        ("Australia/Sydney", "XASX", -1 * HOUR),
        ("Europe/London", "XLON", 8 * HOUR),
        ("America/New_York", "XNYS", 13 * HOUR + HOUR // 2),
    ],
)
def test_bars_and_actions_are_stamped_with_the_exchanges_date(
    fake: FakeYahoo, zone: str, calendar: str, opens_at_ms: int
) -> None:
    actions = (FOUR_FOR_ONE, DIVIDEND)
    stock = listed(calendar=calendar, opens_at_ms=opens_at_ms, zone=zone, actions=actions)
    fake.stocks["ACME"] = stock
    series = settings(fake, calendar=calendar)
    batch = read(series)
    assert batch.actions == actions
    assert as_traded(batch).tolist() == stock.prices.tolist()
    bounds = (start_of_year(2019), start_of_year(2021))
    sessions = find_calendar(calendar).expected(*bounds, DAY, True)
    assert batch.bars["ts"].dt.epoch("ms").to_list() == sessions.tolist()
    assert violations(batch.bars, series, None).is_empty()


def test_a_midnight_that_summer_time_moved_is_mended(fake: FakeYahoo) -> None:
    stock = listed(end=(2019, 2, 1), opens_at_ms=5 * HOUR)  # 00:00 in New York
    fake.stocks["ACME"] = stock
    fake.changes.append(
        lambda chart: chart.update(timestamp=[one - 3600 for one in chart["timestamp"]])
    )
    assert dates_of(read(settings(fake)))[:2] == ["2019-01-02", "2019-01-03"]


@pytest.mark.parametrize(
    ("now_ms", "last"),
    [
        (ms(2019, 11, 27, 18), "2019-11-26"),  # the session runs
        (ms(2019, 11, 27, 21, 30), "2019-11-26"),  # closed, not settled
        (ms(2019, 11, 27, 22), "2019-11-27"),
        (ms(2019, 11, 29, 18, 59), "2019-11-27"),  # a half day, closed at 18:00
        (ms(2019, 11, 29, 19), "2019-11-29"),
    ],
)
def test_a_bar_is_given_an_hour_after_its_sessions_close(
    fake: FakeYahoo, now_ms: int, last: str
) -> None:
    fake.stocks["ACME"] = listed(end=(2019, 11, 30))
    assert dates_of(read(settings(fake), now_ms))[-1] == last


def test_a_split_of_a_day_still_running_is_undone_but_not_yet_in_force(fake: FakeYahoo) -> None:
    stock = fake.stocks["ACME"] = listed(end=(2019, 7, 2), actions=(FOUR_FOR_ONE,))
    batch = read(settings(fake), ms(2019, 7, 1, 18))
    assert dates_of(batch)[-1] == "2019-06-28"
    assert as_traded(batch).tolist() == stock.prices[:-1].tolist()
    assert batch.actions == ()
    assert set(batch.bars["adj_factor"]) == {1.0}


def test_crypto_trades_around_the_clock_and_has_no_factor(fake: FakeYahoo) -> None:
    coin = listed(calendar="24/7", opens_at_ms=0, zone="UTC", instrument="CRYPTOCURRENCY")
    coin = replace(coin, prices=coin.prices * 1e-7)
    fake.stocks["ACME"] = coin
    series = settings(fake, calendar="24/7")
    batch = read(series, ms(2020, 5, 6, 0, 30))
    assert dates_of(batch)[-1] == "2020-05-04"
    assert batch.bars["adj_factor"].null_count() == batch.bars.height
    assert violations(batch.bars, series, None).is_empty()
    assert as_traded(batch) == pytest.approx(coin.prices[: batch.bars.height], rel=1e-7)


def test_sessions_without_prices_are_left_out_and_not_confirmed(fake: FakeYahoo) -> None:
    stock = listed(actions=(FOUR_FOR_ONE,))
    stock.prices[[10, 11, 124]] = np.nan  # 124 is the split's session
    fake.stocks["ACME"] = stock
    batch = read(settings(fake))
    assert batch.bars.height == len(stock.opens) - 3
    assert "2019-07-01" not in dates_of(batch)
    assert batch.confirmed == ()
    assert batch.notes == ("3 dates without prices, or holidays with a repeated one, left out",)
    factor = dict(zip(dates_of(batch), batch.bars["adj_factor"], strict=True))
    assert (factor["2019-06-28"], factor["2019-07-02"]) == (1.0, 4.0)


def test_one_missing_price_is_refused_with_its_row(fake: FakeYahoo) -> None:
    stock = listed()
    stock.prices[10, 0] = np.nan
    fake.stocks["ACME"] = stock
    series = settings(fake)
    (found,) = violations(read(series).bars, series, None).to_dicts()
    assert (found["row"], found["column"], found["rule"]) == (10, "open", "must not be null or NaN")


def test_the_running_day_told_twice_is_one_bar(fake: FakeYahoo) -> None:
    stock = fake.stocks["ACME"] = listed(end=(2019, 12, 1))

    def tell_again(chart: dict[str, Any]) -> None:
        chart["timestamp"].append(chart["timestamp"][-1] + 12_345)
        for values in (*chart["indicators"]["quote"][0].values(), *_adjclose(chart)):
            values.append(values[-1])

    fake.changes.append(tell_again)
    batch = read(settings(fake))
    assert batch.bars["ts"].is_unique().all()
    assert as_traded(batch).tolist() == stock.prices.tolist()


def test_a_date_told_twice_is_one_bar(fake: FakeYahoo) -> None:
    stock = fake.stocks["ACME"] = listed(actions=(DIVIDEND,))

    def double(chart: dict[str, Any]) -> None:
        at = chart["timestamp"].index(next(iter(chart["events"]["dividends"].values()))["date"])
        chart["timestamp"].insert(at, chart["timestamp"][at])
        for values in (*chart["indicators"]["quote"][0].values(), *_adjclose(chart)):
            values.insert(at, values[at])

    fake.changes.append(double)
    batch = read(settings(fake))
    assert as_traded(batch).tolist() == stock.prices.tolist()
    assert batch.actions == (DIVIDEND,)


def _adjclose(chart: dict[str, Any]) -> Iterator[list[Any]]:
    for one in chart["indicators"]["adjclose"]:
        yield one["adjclose"]


def test_a_dividend_on_a_date_without_a_bar_counts_from_the_next_one(fake: FakeYahoo) -> None:
    weekend = Action(ms(2019, 10, 5), "dividend", 2.0)
    stock = fake.stocks["ACME"] = listed(actions=(weekend,))
    batch = read(settings(fake))
    factor = dict(zip(dates_of(batch), batch.bars["adj_factor"], strict=True))
    close = stock.prices[dates_of(batch).index("2019-10-04"), 3]
    assert (factor["2019-10-04"], factor["2019-10-07"]) == (1.0, close / (close - 2.0))
    assert batch.actions == (weekend,)


def test_a_price_repeated_on_a_holiday_is_no_bar_but_a_trade_there_is_refused(
    fake: FakeYahoo,
) -> None:
    stock = listed()
    holiday = ms(2019, 7, 4, 14, 30) // 1000
    at = sum(one < holiday for one in stock.opens)
    opens = [*stock.opens[:at], holiday, *stock.opens[at:]]
    series = settings(fake)
    for volume, found in ((0.0, 0), (5.0, 1)):
        prices = np.insert(stock.prices, at, np.full(4, 99.5), axis=0)
        fake.stocks["ACME"] = replace(
            stock, opens=opens, prices=prices, volume=np.insert(stock.volume, at, volume)
        )
        batch = read(series)
        rows = violations(batch.bars, series, None)
        assert rows.height == found
        assert len(batch.notes) == 1 - found
    assert rows["rule"][0] == "ts must lie on the 1d grid of calendar XNYS"


def test_notes_tell_currency_and_distributions_that_are_not_in_the_factor(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(currency="CAD", instrument="ETF")
    gains = {"1": {"date": ms(2019, 12, 20, 14, 30) // 1000, "amount": 0.5}}
    fake.changes.append(lambda chart: chart.update(events={"capitalGains": gains}))
    batch = read(settings(fake))
    assert batch.notes[0] == "prices and dividends are in CAD"
    assert batch.notes[1].startswith("1 capital gains distributions are not in adj_factor")


# What is refused, and what is asked again.


def test_without_the_extra_it_says_what_to_install(
    fake: FakeYahoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yfinance", None)
    with pytest.raises(SourceError, match=r"yahoo\.ACME\.1d: .*install trade_pipeline\[yahoo\]"):
        read(settings(fake))


def test_shorter_timeframes_and_other_routes_are_refused(fake: FakeYahoo) -> None:
    series = settings(fake, timeframe="1h")
    with pytest.raises(
        SourceError, match=r"route rest of source yahoo has no timeframe 1h; it has 1d"
    ):
        read(series)
    with pytest.raises(SourceError, match="no route 'zip'"):
        Yahoo().plan(settings(fake), Wanted(0, 1, ()), "zip", around())


@pytest.mark.parametrize("ticker", ["", "A/B", "A?range=1d", "A B", "A#", "..\\x"])
def test_a_ticker_that_would_change_the_request_is_no_ticker(fake: FakeYahoo, ticker: str) -> None:
    with pytest.raises(ValidationError):
        settings(fake, ticker, key="yahoo.X.1d")


def test_an_unknown_ticker_is_named_and_asked_for_once(fake: FakeYahoo) -> None:
    told: list[str] = []
    with pytest.raises(SourceError, match=r"refuses NOPE: 'No data found, symbol may be delisted'"):
        read(settings(fake, "NOPE"), told=told)
    assert not [line for line in told if "attempt" in line]


def test_a_ticker_without_a_bar_in_that_time_is_named(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed()
    with pytest.raises(SourceError, match="no daily bar of ACME in the time asked for"):
        read(settings(fake, first_year=2024))


def drop(*path: str) -> Any:
    """A change that removes a key of the chart."""

    def change(chart: dict[str, Any]) -> None:
        for name in path[:-1]:
            chart = chart[name]
        del chart[path[-1]]

    return change


def put(value: object, *path: Any) -> Any:
    """A change that sets a key of the chart."""

    def change(chart: dict[str, Any]) -> None:
        for name in path[:-1]:
            chart = chart[name]
        chart[path[-1]] = value

    return change


QUOTE = ("indicators", "quote", 0)
SPOILED = {
    "another symbol": (put("EVIL", "meta", "symbol"), "ACME was asked for and 'EVIL' came"),
    "weeks": (put("1wk", "meta", "dataGranularity"), "1d was asked for and 1wk came"),
    "short list": (put([1.0], *QUOTE, "close"), "1 values of close stand beside"),
    "short adjclose": (put([1.0], "indicators", "adjclose", 0, "adjclose"), "yfinance reads no"),
    "no highs": (drop(*QUOTE, "high"), "indicators.quote.0.high: Field required"),
    "no quote": (put([], "indicators", "quote"), "indicators.quote: List should have at least 1"),
    "words": (put(["a"], *QUOTE, "open"), "indicators.quote.0.open.0: Input should be"),
    "no zone": (drop("meta", "exchangeTimezoneName"), "exchangeTimezoneName: Field required"),
    "no such zone": (put("Mars/Base", "meta", "exchangeTimezoneName"), "no time zone 'Mars/Base'"),
    "no currency": (drop("meta", "currency"), "meta.currency: Field required"),
    "no meta": (drop("meta"), "meta: Field required"),
    "split by nothing": (
        put({"splits": {"1": {"date": 1, "numerator": 2, "denominator": 0}}}, "events"),
        "denominator: Input should be greater than 0",
    ),
}
GARBAGE = {
    "empty": b"",
    "html": b"<html><body>Will be right back...</body></html>",
    "truncated": b'{"chart":{"result":[{"meta":{"curr',
    "null": b"null",
    "list": b"[]",
    "null chart": b'{"chart":null}',
    "null result": b'{"chart":{"result":null,"error":null}}',
    "no result": b'{"chart":{"result":[],"error":null}}',
    "null in result": b'{"chart":{"result":[null],"error":null}}',
    "not text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_chart_that_is_not_what_was_asked_for_is_asked_again(fake: FakeYahoo, fault: str) -> None:
    change, sentence = SPOILED[fault]
    stock = fake.stocks["ACME"] = listed()
    fake.changes.append(change)
    told: list[str] = []
    assert as_traded(read(settings(fake), told=told)).tolist() == stock.prices.tolist()
    (line,) = told
    assert sentence in line
    assert "attempt 1 of" in line


@pytest.mark.parametrize("fault", GARBAGE)
def test_garbage_is_asked_again_and_in_the_end_named(fake: FakeYahoo, fault: str) -> None:
    stock = fake.stocks["ACME"] = listed()
    series = settings(fake)
    fake.fail(200, GARBAGE[fault])
    assert as_traded(read(series)).tolist() == stock.prices.tolist()
    fake.fail(200, GARBAGE[fault], times=MOST_ATTEMPTS)
    with pytest.raises(SourceError, match=r"history of ACME since .*given up after 8 attempts"):
        read(series)


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (429, b"Too Many Requests", "rate limited (HTTP 429)"),
        (500, b"<html>oops</html>", "HTTP 500 with no chart of ACME: '<html>oops</html>'"),
        (503, b"", "HTTP 503 with no chart of ACME"),
        (404, b"<html>proxy</html>", "HTTP 404 with no chart of ACME"),
    ],
)
def test_a_fault_of_the_venue_is_waited_out(
    fake: FakeYahoo, status: int, body: bytes, sentence: str
) -> None:
    stock = fake.stocks["ACME"] = listed()
    fake.fail(status, body, times=2)  # yfinance's own second try, with another cookie, included
    told: list[str] = []
    assert as_traded(read(settings(fake), told=told)).tolist() == stock.prices.tolist()
    (line,) = told
    assert sentence in line


def test_a_refusal_is_final_when_yahoo_gives_a_reason(fake: FakeYahoo) -> None:
    reason = json.dumps(
        {"chart": {"result": None, "error": {"code": "Bad Request", "description": "too old"}}}
    )
    fake.fail(400, reason.encode(), times=2)
    with pytest.raises(SourceError, match=r"refuses ACME: 'too old' \(HTTP 400\)"):
        read(settings(fake))


def test_a_venue_that_is_not_there_is_named_after_all_attempts() -> None:
    with FakeYahoo() as gone:
        series = settings(gone)
    told: list[str] = []
    with pytest.raises(SourceError, match=r"of ACME since .*ConnectionError.*given up after 8"):
        read(series, told=told)
    assert len(told) == MOST_ATTEMPTS - 1


def test_a_calendar_of_another_place_is_refused(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(calendar="XLON", zone="Europe/London", opens_at_ms=8 * HOUR)
    sentence = "ACME trades in the time of Europe/London, calendar XNYS is of America/New_York"
    with pytest.raises(SourceError, match=sentence):
        read(settings(fake))


def test_a_stock_does_not_trade_around_the_clock(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed()
    with pytest.raises(SourceError, match="of type EQUITY and does not trade around the clock"):
        read(settings(fake, calendar="24/7"))


def test_a_dividend_in_another_currency_is_refused(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(actions=(DIVIDEND,), currency="GBp")

    def in_pounds(chart: dict[str, Any]) -> None:
        for one in chart["events"]["dividends"].values():
            one["currency"] = "GBP"

    fake.changes.append(in_pounds)
    with pytest.raises(SourceError, match="dividend of 2019-10-01 is in GBP, prices are in GBp"):
        read(settings(fake))


def test_a_dividend_above_the_price_is_refused(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(actions=(Action(DIVIDEND.ts_ms, "dividend", 500.0),))
    with pytest.raises(SourceError, match=r"ACME: the dividend of 2019-10-01 is 500 a share"):
        read(settings(fake))


def test_an_answer_that_lacks_years_is_not_taken_for_the_history(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(first=(2014, 1, 1))
    series = settings(fake, first_year=2014)

    def newest(chart: dict[str, Any]) -> None:
        _cut(chart, slice(-300, None))

    def oldest(chart: dict[str, Any]) -> None:
        _cut(chart, slice(0, 300))

    fake.changes.append(newest)
    with pytest.raises(HistoryUnavailable, match=r"has traded since 2014-01-02, .* starts on 2019"):
        read(series)
    fake.changes.append(oldest)
    with pytest.raises(SourceError, match=r"traded on 2020-12-31, .* ends on 2015"):
        read(series)


def _cut(chart: dict[str, Any], part: slice) -> None:
    chart["timestamp"] = chart["timestamp"][part]
    for one in (chart["indicators"]["quote"][0], chart["indicators"]["adjclose"][0]):
        for name, values in one.items():
            one[name] = values[part]


def test_a_stock_with_no_finished_session_says_when_to_come_back(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(first=(2019, 5, 6), end=(2019, 5, 7))
    with pytest.raises(SourceError, match="no finished session with prices since 2019"):
        read(settings(fake), ms(2019, 5, 6, 18))


def test_two_threads_with_two_addresses_do_not_meet(fake: FakeYahoo) -> None:
    """yfinance keeps one session for the process; neither thread may touch or see it."""
    from yfinance.data import YfData

    ours = YfData()._session
    with FakeYahoo() as other:
        fake.stocks["ACME"] = listed()
        other.stocks["ACME"] = replace(fake.stocks["ACME"], prices=fake.stocks["ACME"].prices * 2)
        closes: dict[str, set[float]] = {fake.url: set(), other.url: set()}

        def several(venue: FakeYahoo) -> None:
            for _ in range(4):
                closes[venue.url].add(read(settings(venue)).bars["close"][0])

        threads = [threading.Thread(target=several, args=(one,)) for one in (fake, other)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert closes[fake.url] == {fake.stocks["ACME"].prices[0, 3]}
        assert closes[other.url] == {other.stocks["ACME"].prices[0, 3]}
        assert len(other.charts) == 4
    assert YfData()._session is ours


# From the source to partitions.


def run_import(series: SeriesSettings, root: Path, years: range, now_ms: int = LATER) -> Outcome:
    wanted = [SeriesYear(series.key, year) for year in years]
    return import_bars({series.key: series}, wanted, around(root, now_ms))


def files(series: SeriesSettings, root: Path) -> dict[str, bytes]:
    folder = layout.ohlcv(root / "store", series.key, 0).path.parent
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_a_later_split_changes_no_earlier_partition_and_a_rerun_no_byte(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    series, years = settings(fake), range(2019, 2021)
    whole = listed(actions=(FOUR_FOR_ONE, DIVIDEND, THREE_FOR_TWO))
    known = sum(one < ms(2020, 5, 1) // 1000 for one in whole.opens)
    # What Yahoo knew in May, before the second split, of which no price was adjusted yet.
    fake.stocks["ACME"] = replace(
        whole,
        opens=whole.opens[:known],
        prices=whole.prices[:known],
        volume=whole.volume[:known],
        actions=whole.actions[:2],
    )
    outcome = run_import(series, tmp_path, years, ms(2020, 5, 1))
    assert not outcome.refused
    early = files(series, tmp_path)
    may = read_bars(tmp_path / "store", series.key)
    assert may.actions == (FOUR_FOR_ONE, DIVIDEND)

    fake.stocks["ACME"] = whole
    outcome = run_import(series, tmp_path, years)
    assert not outcome.refused
    assert outcome.committed[SeriesYear(series.key, 2019)]["new_bars"] == 0
    late = files(series, tmp_path)
    assert late["2019.parquet"] == early["2019.parquet"]
    assert late["2020.parquet"] != early["2020.parquet"]
    now = read_bars(tmp_path / "store", series.key)
    assert now.bars.head(known).equals(may.bars)
    assert now.actions == whole.actions
    of_2020 = read_partition(layout.ohlcv(tmp_path / "store", series.key, 2020))
    assert of_2020.actions == (THREE_FOR_TWO,)

    run_import(series, tmp_path, years)
    assert files(series, tmp_path) == late


def test_readers_get_bars_that_are_comparable_across_splits(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    fake.stocks["ACME"] = listed(actions=(FOUR_FOR_ONE, THREE_FOR_TWO))
    series, store = settings(fake), tmp_path / "store"
    run_import(series, tmp_path, range(2019, 2021))
    stored = read_bars(store, series.key)
    found = coverage(stored.bars, stored.confirmed, series)
    document = found.to_document(series.key, series.coverage, stored.hashes)
    write_json(layout.manifest(store, series.key), document)
    (whole,) = read_grids(store, series)
    configs = tmp_path / "configs"
    configs.mkdir()
    entry = series.model_dump(mode="json", exclude_unset=True)
    (configs / "series.yaml").write_text(yaml_text({"series": [entry]}))
    loaded = load_bars(series.key, configs=configs, store=store)
    raw = load_bars(series.key, adjust=False, configs=configs, store=store)
    assert raw.equals(stored.bars)
    assert raw["close"].max() / raw["close"].min() > 6
    for bars in (whole, loaded):
        assert bars["close"].max() / bars["close"].min() < 1.6
        dollars, traded = bars["close"] * bars["volume"], raw["close"] * raw["volume"]
        assert dollars.to_list() == pytest.approx(traded.to_list(), rel=1e-12)


def test_a_dividend_that_yahoo_corrects_leaves_nothing_behind(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    series, years = settings(fake), range(2019, 2021)
    for dollars in (0.32, 0.23):
        fake.stocks["ACME"] = listed(actions=(DIVIDEND._replace(value=dollars),))
        run_import(series, tmp_path, years)
    stored = read_bars(tmp_path / "store", series.key)
    assert stored.actions == (DIVIDEND,)
    assert stored.bars.equals(read(series).stored)


def test_what_is_stored_stays_when_yahoo_fails(fake: FakeYahoo, tmp_path: Path) -> None:
    fake.stocks["ACME"] = listed()
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    before = files(series, tmp_path)
    fake.fail(404, json.dumps(NOT_FOUND).encode(), times=2)
    outcome = run_import(series, tmp_path, years)
    assert "refuses ACME" in outcome.refused[SeriesYear(series.key, 2019)].sentence
    assert files(series, tmp_path) == before


# What an answer may not do to what is stored.


def sentence_of(outcome: Outcome) -> str:
    """The one sentence that every year is refused with."""
    (sentence,) = {one.sentence for one in outcome.refused.values()}
    return sentence


def upto(stock: Listed, end: tuple[int, int, int], **changes: Any) -> Listed:
    """The same stock as Yahoo knew it before a date; actions as given, or those before it."""
    known = sum(one < ms(*end) // 1000 for one in stock.opens)
    actions = changes.pop("actions", tuple(a for a in stock.actions if a.ts_ms < ms(*end)))
    return replace(
        stock,
        opens=stock.opens[:known],
        prices=stock.prices[:known],
        volume=stock.volume[:known],
        actions=actions,
    )


def test_sessions_that_lost_their_prices_are_not_replaced(fake: FakeYahoo, tmp_path: Path) -> None:
    stock = fake.stocks["ACME"] = listed()
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    before = files(series, tmp_path)
    prices = stock.prices.copy()
    prices[[300, 305]] = np.nan
    fake.stocks["ACME"] = replace(stock, prices=prices)
    for asked in (years, range(2020, 2021)):
        outcome = run_import(series, tmp_path, asked)
        sentence = sentence_of(outcome)
        assert "2 stored sessions from 2020-03-12 to 2020-03-19 have no prices" in sentence
        assert "prune this series from 2020-03-12 to 2020-03-20" in sentence
        assert files(series, tmp_path) == before
    # Of a year that stays nothing is lost.
    assert not run_import(series, tmp_path, range(2019, 2020)).refused
    assert files(series, tmp_path) == before
    # The way out.
    prune(tmp_path / "store", series, 2020, (ms(2020, 3, 12), ms(2020, 3, 20)))
    assert not run_import(series, tmp_path, years).refused
    assert read_bars(tmp_path / "store", series.key).bars.equals(read(series).stored)


@pytest.mark.parametrize("tells", [True, False])
def test_an_answer_that_lacks_its_last_months_replaces_nothing(
    fake: FakeYahoo, tmp_path: Path, tells: bool
) -> None:
    fake.stocks["ACME"] = listed()
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    before = files(series, tmp_path)

    def shorten(chart: dict[str, Any]) -> None:
        _cut(chart, slice(0, -40))
        if not tells:
            del chart["meta"]["regularMarketTime"]

    fake.changes.append(shorten)
    sentence = sentence_of(run_import(series, tmp_path, years))
    assert ("answer ends on 2020-11-03" in sentence) is tells
    assert ("40 stored sessions from 2020-11-04 to 2020-12-31" in sentence) is not tells
    assert files(series, tmp_path) == before


def test_sessions_that_an_answer_is_late_with_stay(fake: FakeYahoo, tmp_path: Path) -> None:
    fake.stocks["ACME"] = listed(actions=(FOUR_FOR_ONE, Action(ms(2020, 12, 30), "dividend", 0.5)))
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    before = files(series, tmp_path)
    fake.changes.append(lambda chart: _cut(chart, slice(0, -5)))
    assert not run_import(series, tmp_path, years).refused
    assert files(series, tmp_path) == before


@pytest.mark.parametrize("value", [5.0, None])
def test_an_action_told_late_or_withdrawn_needs_all_years_in_one_run(
    fake: FakeYahoo, tmp_path: Path, value: float | None
) -> None:
    late = () if value is None else (Action(DIVIDEND.ts_ms, "dividend", value),)
    stock = listed(actions=() if late else (DIVIDEND,))
    fake.stocks["ACME"] = stock
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    before = files(series, tmp_path)
    fake.stocks["ACME"] = replace(stock, actions=late)
    sentence = sentence_of(run_import(series, tmp_path, range(2020, 2021)))
    assert "from 2019-10-01 on" in sentence and "all years of this series in one run" in sentence
    assert files(series, tmp_path) == before
    assert not run_import(series, tmp_path, years).refused
    assert read_bars(tmp_path / "store", series.key).bars.equals(read(series).stored)


def test_a_split_between_the_years_is_stored_before_the_new_year_is(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    weekend = Action(ms(2022, 12, 31), "split", 2.0)
    stock = listed(end=(2023, 2, 1), actions=(weekend,))
    fake.stocks["ACME"] = upto(stock, (2022, 12, 31))
    series, store = settings(fake), tmp_path / "store"
    run_import(series, tmp_path, range(2019, 2023), ms(2022, 12, 30, 23))
    fake.stocks["ACME"] = stock
    new_year = ms(2023, 1, 10)
    sentence = sentence_of(run_import(series, tmp_path, range(2023, 2024), new_year))
    assert "from 2022-12-31 on" in sentence
    # Last year's run takes it, with its last session; then the new year may follow alone.
    assert not run_import(series, tmp_path, range(2022, 2023), ms(2023, 1, 2, 12)).refused
    assert read_partition(layout.ohlcv(store, series.key, 2022)).actions == (weekend,)
    assert not run_import(series, tmp_path, range(2023, 2024), new_year).refused
    stored = read_bars(store, series.key)
    assert stored.actions == (weekend,)
    assert stored.bars["adj_factor"].unique().sort().to_list() == [1.0, 2.0]


def test_years_on_both_sides_of_one_that_stays_are_judged_beside_it(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    stock = fake.stocks["ACME"] = listed(end=(2022, 1, 1))
    series, now = settings(fake), ms(2022, 2, 1)
    run_import(series, tmp_path, range(2019, 2022), now)
    fake.stocks["ACME"] = replace(stock, actions=(THREE_FOR_TWO,))
    wanted = [SeriesYear(series.key, year) for year in (2019, 2021)]
    outcome = import_bars({series.key: series}, wanted, around(tmp_path, now))
    assert "from 2020-06-01 on" in sentence_of(outcome)


def test_a_reverse_split_changes_no_share_of_earlier_partitions(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    one_for_four = Action(ms(2020, 6, 1), "split", 0.25)
    two_for_one = Action(ms(2020, 9, 1), "split", 2.0)
    stock = listed(actions=(one_for_four, two_for_one))
    series, years = settings(fake), range(2019, 2021)
    fake.stocks["ACME"] = upto(stock, (2020, 5, 1))
    run_import(series, tmp_path, years, ms(2020, 5, 1))
    early = read_bars(tmp_path / "store", series.key).bars
    assert early["volume"].to_list() == stock.volume[: early.height].tolist()
    for end in ((2020, 8, 1), (2021, 1, 1)):
        fake.stocks["ACME"] = upto(stock, end)
        assert not run_import(series, tmp_path, years, ms(*end)).refused
        now = read_bars(tmp_path / "store", series.key).bars
        assert now.head(early.height).equals(early)
    # Without the store, shares are lost.
    assert read(series).bars["volume"].to_list() != stock.volume.tolist()


def test_prices_finer_than_cents_stay_after_a_great_split(fake: FakeYahoo, tmp_path: Path) -> None:
    hundred = Action(ms(2020, 6, 1), "split", 100.0)
    stock = listed(actions=(DIVIDEND._replace(value=0.23125), hundred))
    stock = replace(stock, prices=stock.prices + 0.0625)
    series, years = settings(fake), range(2019, 2021)
    fake.stocks["ACME"] = upto(stock, (2020, 5, 1))
    run_import(series, tmp_path, years, ms(2020, 5, 1))
    before = files(series, tmp_path)["2019.parquet"]
    fake.stocks["ACME"] = stock
    # This year alone first: no rounding may look like another dividend.
    for asked in (range(2020, 2021), years):
        assert not run_import(series, tmp_path, asked).refused
        assert files(series, tmp_path)["2019.parquet"] == before
    fresh = read(series).stored
    assert not fresh["close"].equals(read_bars(tmp_path / "store", series.key).bars["close"])


def test_what_yahoo_corrects_by_more_than_rounding_is_taken(
    fake: FakeYahoo, tmp_path: Path
) -> None:
    stock = fake.stocks["ACME"] = listed(actions=(FOUR_FOR_ONE,))
    series, years = settings(fake), range(2019, 2021)
    run_import(series, tmp_path, years)
    prices, volume = stock.prices.copy(), stock.volume.copy()
    prices[10] += 0.01
    volume[11] += 1
    fake.stocks["ACME"] = replace(stock, prices=prices, volume=volume)
    run_import(series, tmp_path, years)
    stored = read_bars(tmp_path / "store", series.key).bars
    assert stored["close"].to_list() == prices[:, 3].tolist()
    assert stored["volume"].to_list() == volume.tolist()


def test_a_damaged_partition_is_named_with_its_way_out(fake: FakeYahoo, tmp_path: Path) -> None:
    fake.stocks["ACME"] = listed()
    series = settings(fake)
    run_import(series, tmp_path, range(2019, 2021))
    layout.ohlcv(tmp_path / "store", series.key, 2019).path.write_bytes(b"torn")
    sentence = sentence_of(run_import(series, tmp_path, range(2020, 2021)))
    assert "prune the whole of 2019 of yahoo.ACME.1d" in sentence


def test_a_clock_that_runs_ahead_gives_no_unfinished_session(fake: FakeYahoo) -> None:
    fake.stocks["ACME"] = listed(end=(2019, 11, 28))
    fake.date = "Wed, 27 Nov 2019 18:00:00 GMT"
    assert dates_of(read(settings(fake), ms(2019, 11, 28)))[-1] == "2019-11-26"
    fake.date = "no date"
    assert dates_of(read(settings(fake), ms(2019, 11, 28)))[-1] == "2019-11-27"
