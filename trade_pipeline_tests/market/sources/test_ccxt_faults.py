"""What an exchange through ccxt does when answers are wrong, late or refused, and how it asks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trade_pipeline.market.sources import ccxt_client
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS
from trade_pipeline_tests.fakes import binance, coinbase
from trade_pipeline_tests.fakes.binance import FakeBinance
from trade_pipeline_tests.fakes.other_exchanges import FakeOkx
from trade_pipeline_tests.fakes.venue import FAULTS, SPOILED, Answer, FakeVenue, refusal
from trade_pipeline_tests.market.series import MINUTE

from .ccxt_venues import (
    BINANCE,
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


# When something goes wrong.


OF_BINANCE = (binance.WEIGHT_USED, binance.BANNED, binance.OVERLOADED)
OF_COINBASE = (coinbase.RATE_LIMITED, coinbase.UNKNOWN_429, coinbase.INTERNAL)
PASSING: list[tuple[Venue, str | Answer]] = [
    (venue, fault)
    for venue, own in ((BINANCE, OF_BINANCE), (COINBASE, OF_COINBASE))
    for fault in (*FAULTS, *SPOILED, *own)
]


def _name(fault: str | Answer) -> str:
    return fault if isinstance(fault, str) else f"{fault.status}-{fault.body[:24].decode()}"


# What holds no error code is no refusal, though ccxt takes it for one.
PASSING += [(venue, fault) for venue in (BYBIT, OKX) for fault in ("[]", "{}")]
MARKETS = {"binance": "exchangeInfo", "coinbase": "/products"} | dict.fromkeys(
    ("bybit", "okx"), "/instruments"
)


@pytest.mark.parametrize(
    ("venue", "fault"), PASSING, ids=[f"{venue}-{_name(fault)}" for venue, fault in PASSING]
)
def test_what_passes_is_asked_again_until_the_result_is_right(
    here: Here, venue: Venue, fault: str | Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "timeout":
        monkeypatch.setattr(ccxt_client, "TIMEOUT_MS", 150)
    with venue.fake(MARKET, NOW) as fake:
        fake.fail(MARKETS[venue.exchange], fault, 2)
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


class Nowhere(FakeVenue):
    """Has none of the routes that are asked for."""

    routes: ClassVar = {}


def test_an_answer_that_ccxt_stumbles_over_is_asked_for_again(here: Here) -> None:
    with Nowhere(MARKET, NOW) as fake:
        outcome = here.run(replace(BINANCE, exchange="coinbaseexchange").series(fake.url))
        assert len(fake.asked("/products")) == MOST_ATTEMPTS
    assert "ccxt cannot read the answer" in sentence(outcome)


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
    with Nowhere(MARKET, NOW) as fake:
        fake.fail("/", "500", 99)
        asked = replace(BINANCE, exchange=exchange, market=market)
        outcome = here.run(asked.series(f"{fake.url}/proxy/"))
        assert {one.path for one in fake.requests} == {f"/proxy{first}"}
    assert "given up after 8 attempts" in sentence(outcome)
