"""Schwab through the real schwab-py, against a broker on loopback that speaks its wire format."""

import json
import logging
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.market.importing import SeriesYear
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources import schwab_http, transport
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Leg,
    SourceError,
    Wanted,
    year_interval,
)
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.sources.transport import MOST_ATTEMPTS
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline_tests.fakes.brokers import TRANSIENT, Answer, MadeStock, as_json
from trade_pipeline_tests.fakes.schwab import KEY, REFRESH, SECRET, FakeSchwab
from trade_pipeline_tests.market.series import DAY, MINUTE, ms
from trade_pipeline_tests.market.sources.world import World, opens_at, sessions

NOW = ms(2024, 1, 21)  # a Sunday
SPLIT = date(2024, 1, 23)
TOKEN_FILE = "secrets/schwab.json"


@pytest.fixture
def fake() -> Iterator[FakeSchwab]:
    quiet = frozenset({ms(2024, 1, 10, 14, 37)})
    listed = [MadeStock("ACME", {SPLIT: 4.0}, quiet), MadeStock("$SPX")]
    with FakeSchwab(listed, NOW) as one:
        yield one
    assert not one.unexpected, f"requests that no sound client sends: {one.unexpected}"
    assert not one.unused, f"told but never met: {one.unused}"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(transport, "_paces", {})
    return new_world(tmp_path)


def new_world(root: Path) -> World:
    write_token(root)
    return World(root, NOW, {"SCHWAB_APP_KEY": KEY, "SCHWAB_APP_SECRET": SECRET})


def write_token(root: Path, expires_at: int | None = None, **changes: Any) -> Path:
    """The token file as schwab-py's login writes it."""
    path = root / TOKEN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    token = {
        "expires_in": 1800,
        "token_type": "Bearer",
        "scope": "api",
        "refresh_token": REFRESH,
        "access_token": "access-token-of-the-login",
        "id_token": "eyJ.id.token",
        "expires_at": int(time.time()) + 86_400 if expires_at is None else expires_at,
    }
    path.write_text(json.dumps({"creation_timestamp": 1_705_700_000, "token": token | changes}))
    path.chmod(0o600)
    return path


def stock(fake: FakeSchwab, timeframe: str = "1d", **changes: Any) -> SeriesSettings:
    source = {"kind": "schwab", "symbol": "ACME", "token_file": TOKEN_FILE, "base_url": fake.url}
    settings: dict[str, Any] = {
        "key": f"schwab.ACME.{timeframe}",
        "timeframe": timeframe,
        "calendar": "XNYS",
        "first_year": 2022,
        "volume_unit": "shares",
    }
    source |= changes.pop("source", {})
    return SeriesSettings.model_validate(settings | changes | {"source": source})


def at_later(fake: FakeSchwab, world: World, *day: int) -> None:
    world.now_ms = fake.now_ms = ms(*day)


# Bars.


@pytest.mark.parametrize("hour", [0, 1])
def test_daily_bars_are_stamped_with_their_session(
    fake: FakeSchwab, world: World, hour: int
) -> None:
    fake.day_starts = hour  # midnight in New York or in Chicago
    bars = world.good(stock(fake))
    assert opens_at(bars) == sessions(ms(2022, 1, 1), NOW)
    assert bars["adj_factor"].null_count() == bars["trades"].null_count() == bars.height
    assert any("adj_factor is null" in line for line in world.said)


def test_a_stamp_whose_day_is_unclear_is_refused(fake: FakeSchwab, world: World) -> None:
    fake.day_starts = 19
    assert "its session is unclear" in world.bad(stock(fake))


@pytest.mark.parametrize(("timeframe", "days"), [("1m", 48), ("5m", 270), ("15m", 270)])
def test_minutes_reach_as_far_back_as_schwab_has_them(
    fake: FakeSchwab, world: World, timeframe: str, days: int
) -> None:
    series = stock(fake, timeframe, first_year=2023)
    minutes = {"1m": 1, "5m": 5, "15m": 15}[timeframe]
    expected = sessions(NOW - days * DAY, NOW, minutes * MINUTE)
    quiet = fake.listed["ACME"].quiet
    assert opens_at(world.good(series)) == [one for one in expected if one not in quiet]


def test_nothing_is_confirmed(fake: FakeSchwab, world: World) -> None:
    series = stock(fake, "5m", first_year=2024)
    world.good(series)
    assert world.confirmed(series) == ()


@pytest.mark.parametrize(
    ("now", "last"),
    [
        (ms(2024, 1, 18, 21, 30), ms(2024, 1, 17)),  # closed, but traded on in the evening
        (ms(2024, 1, 19, 5, 16), ms(2024, 1, 18)),
    ],
)
def test_a_session_is_stored_once_its_day_in_new_york_is_over(
    fake: FakeSchwab, world: World, now: int, last: int
) -> None:
    world.now_ms = fake.now_ms = now
    assert opens_at(world.good(stock(fake)))[-1] == last


def test_a_clock_that_runs_ahead_stores_no_unfinished_bar(fake: FakeSchwab, world: World) -> None:
    fake.now_ms = ms(2024, 1, 18, 15, 46)
    world.now_ms = fake.now_ms + 20 * MINUTE
    bars = world.good(stock(fake, "5m", first_year=2024))
    assert opens_at(bars)[-1] == ms(2024, 1, 18, 15, 25)


def test_a_candle_without_volume_is_no_bar_unless_of_an_index(
    fake: FakeSchwab, world: World
) -> None:
    def no_volume(body: Any) -> Any:
        body["candles"][3]["volume"] = 0
        return body

    fake.fail("/pricehistory", no_volume)
    assert opens_at(world.good(stock(fake))) == [
        one for one in sessions(ms(2022, 1, 1), NOW) if one != ms(2022, 1, 6)
    ]
    index = stock(fake, key="schwab.SPX.1d", source={"symbol": "$SPX"})
    assert world.good(index).height == len(sessions(ms(2022, 1, 1), NOW))


def test_a_second_run_changes_no_byte(fake: FakeSchwab, world: World) -> None:
    series = stock(fake)
    world.good(series)
    before = world.bytes_of(series)
    world.good(series)
    assert world.bytes_of(series) == before


def test_a_later_run_adds_bars_and_keeps_those_that_schwab_has_no_more(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake, "1m", first_year=2023)
    first = world.good(series)
    fake.listed["ACME"] = replace(fake.listed["ACME"], splits={})
    at_later(fake, world, 2024, 2, 18)
    bars = world.good(series)
    assert bars.head(first.height).equals(first)
    assert opens_at(bars)[-1] == ms(2024, 2, 16, 20, 59)


def test_years_before_schwab_s_history_are_refused_with_its_reach(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake, "1m")
    assert "its first is of 2023-12-04" in world.bad(series, 2022)
    leg = Leg("rest", *year_interval(2022))
    with pytest.raises(HistoryUnavailable):
        list(source_for(series).fetch(series, leg, world.around))


# A split changes every bar before it.


def test_a_split_is_noticed_before_bars_of_two_bases_stand_together(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake)
    world.good(series)
    before = world.bytes_of(series)
    at_later(fake, world, 2024, 2, 1)
    sentence = world.bad(series, 2024)
    assert "up to 2024-01-19" in sentence and "about 0.25" in sentence
    assert "all years" in sentence
    assert world.bytes_of(series) == before


def test_all_years_in_one_run_take_the_new_basis(
    fake: FakeSchwab, world: World, tmp_path: Path
) -> None:
    series = stock(fake)
    world.good(series)
    at_later(fake, world, 2024, 2, 1)
    new = new_world(tmp_path / "new")
    new.now_ms = world.now_ms
    assert world.good(series).equals(new.good(series))
    at_later(fake, world, 2024, 2, 2)
    world.good(series, 2024)


def test_years_that_are_not_side_by_side_do_not_take_it(fake: FakeSchwab, world: World) -> None:
    series = stock(fake)
    world.good(series)
    at_later(fake, world, 2024, 2, 1)
    assert "all years" in world.bad(series, 2022, 2024)


def test_a_run_that_was_killed_between_two_years_is_noticed_later(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake)
    world.good(series)
    old = world.bytes_of(series)
    at_later(fake, world, 2024, 2, 1)
    world.good(series)
    (world.around.store / "ohlcv" / series.key / "2023.parquet").write_bytes(old["2023.parquet"])
    assert "all years" in world.bad(series, 2024)
    world.good(series)
    world.good(series, 2024)


def test_minutes_older_than_schwab_s_reach_need_pruning_after_a_split(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake, "1m", first_year=2023)
    world.good(series)
    at_later(fake, world, 2024, 2, 10)
    sentence = world.bad(series)
    assert "prune the series" in sentence and "about 0.25" in sentence
    for year in (2023, 2024):
        prune(world.around.store, series, year, year_interval(year))
    assert opens_at(world.good(series))[0] == ms(2023, 12, 26, 14, 30)


def test_a_pause_longer_than_schwab_s_reach_is_said(fake: FakeSchwab, world: World) -> None:
    series = stock(fake, "1m", first_year=2023)
    world.good(series)
    at_later(fake, world, 2024, 4, 1)
    world.good(series)
    assert any("cannot be noticed" in line for line in world.said)


def corrected(count: int) -> Any:
    """The newest candles with other closes."""

    def change(body: Any) -> Any:
        for candle in body["candles"][-count:]:
            candle["close"], candle["high"] = candle["close"] * 1.02, candle["high"] * 1.05
        return body

    return change


def test_single_corrections_are_no_split(fake: FakeSchwab, world: World) -> None:
    series = stock(fake)
    first = world.good(series)
    fake.fail("/pricehistory", corrected(4), times=2)
    assert world.good(series, 2023).equals(first)
    assert world.good(series, 2024)["close"][-1] == pytest.approx(first["close"][-1] * 1.02)


def test_many_corrections_of_new_bars_are_no_split_of_those_that_schwab_has_no_more(
    fake: FakeSchwab, world: World
) -> None:
    series = stock(fake, "1m", first_year=2023)
    fake.listed["ACME"] = replace(fake.listed["ACME"], splits={})
    world.good(series)
    at_later(fake, world, 2024, 1, 25)
    fake.fail("/pricehistory", corrected(3 * 390 + 10))
    assert world.good(series)["ts"].is_sorted()


# The token.


def test_a_token_that_has_run_out_is_renewed_and_kept_private(
    fake: FakeSchwab, world: World
) -> None:
    path = write_token(world.root, expires_at=1)
    before = path.read_text()
    with path.open() as reader:
        world.good(stock(fake))
        assert reader.read() == before  # whoever reads meanwhile has a whole token
    token = json.loads(path.read_text())
    assert token["creation_timestamp"] == 1_705_700_000
    assert token["token"]["access_token"] in fake.access - {"access-token-of-the-login"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    fake.requests.clear()
    world.good(stock(fake))
    assert [one.path for one in fake.requests] == ["/marketdata/v1/pricehistory"]


@pytest.mark.parametrize("fault", ["500", "429", "{}", "[]", "html", "empty", "connection reset"])
def test_an_answer_that_is_no_token_never_replaces_one(
    fake: FakeSchwab, world: World, fault: str
) -> None:
    path = write_token(world.root, expires_at=1)
    before = path.read_bytes()
    fake.fail("/oauth/token", fault, times=MOST_ATTEMPTS)
    assert "given up" in world.bad(stock(fake))
    assert path.read_bytes() == before
    world.good(stock(fake))


def test_a_login_that_has_run_out_says_how_to_log_in_again(
    fake: FakeSchwab, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    path = write_token(world.root, expires_at=1)
    before, fake.refresh, fake.echoes = path.read_bytes(), None, True
    sentence = world.bad(stock(fake))
    assert "schwab-generate-token.py --token_file secrets/schwab.json" in sentence
    assert "seven days" in sentence
    assert len(fake.requests) == 1 and path.read_bytes() == before
    assert_nothing_told(fake, world, sentence, caplog.text)


def test_an_app_secret_that_is_wrong_says_so(
    fake: FakeSchwab, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_token(world.root, expires_at=1)
    world.environment["SCHWAB_APP_SECRET"] = "WrongSecretWrongSecret"
    sentence = world.bad(stock(fake))
    assert "HTTP 401" in sentence and len(fake.requests) == 1
    assert_nothing_told(fake, world, sentence, caplog.text)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_asked_once_and_never_told(
    fake: FakeSchwab, world: World, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_token(world.root, access_token="access-token-of-nobody")
    fake.echoes = True
    if status == 403:
        fake.fail("/pricehistory", as_json({"errors": [{"title": "Forbidden"}]}, 403))
    sentence = world.bad(stock(fake))
    assert f"HTTP {status}" in sentence and "log in again" in sentence
    assert len(fake.requests) == 1
    assert_nothing_told(fake, world, sentence, caplog.text)


def assert_nothing_told(fake: FakeSchwab, world: World, *texts: str) -> None:
    """No secret is in these texts, nor in the log or the traceback of another try."""
    series = stock(fake)
    with pytest.raises(SourceError) as caught:
        list(source_for(series).fetch(series, Leg("rest", ms(2024, 1, 1), NOW), world.around))
    told = [*texts, *world.said, *traceback.format_exception(caught.value)]
    token = json.loads((world.root / TOKEN_FILE).read_text())["token"]
    secrets = [*world.environment.values(), token["access_token"], token["refresh_token"]]
    assert not [secret for one in told for secret in secrets if secret in one]


@pytest.mark.parametrize(
    "content", ["", "not json", "[]", "{}", '{"access_token": "x"}', '{"token": {}}']
)
def test_a_file_that_is_no_token_says_how_to_log_in(
    fake: FakeSchwab, world: World, content: str
) -> None:
    (world.root / TOKEN_FILE).write_text(content)
    sentence = world.bad(stock(fake))
    assert "no token file of schwab-py" in sentence and "schwab-generate-token.py" in sentence
    assert not fake.requests


def test_a_missing_token_file_says_how_to_log_in(fake: FakeSchwab, world: World) -> None:
    (world.root / TOKEN_FILE).unlink()
    assert "there is no such token file" in world.bad(stock(fake))


def test_a_renewed_token_that_cannot_be_written_is_named(
    fake: FakeSchwab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    path = write_token(world.root, expires_at=1)
    before = path.read_bytes()
    monkeypatch.setattr(schwab_http.os, "fsync", full)
    leg = Leg("rest", ms(2024, 1, 1), NOW)
    with pytest.raises(SourceError, match="renewed token cannot be written"):
        list(source_for(stock(fake)).fetch(stock(fake), leg, world.around))
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize("absent", ["SCHWAB_APP_KEY", "SCHWAB_APP_SECRET"])
def test_missing_credentials_are_named(fake: FakeSchwab, world: World, absent: str) -> None:
    del world.environment[absent]
    assert "SCHWAB_APP_KEY and SCHWAB_APP_SECRET of the environment" in world.bad(stock(fake))
    assert not fake.requests


def test_a_missing_extra_is_named(
    fake: FakeSchwab, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "schwab.auth", None)
    assert "pip install trade_pipeline[schwab]" in world.bad(stock(fake))


# What cannot be.


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"timeframe": "1h"}, "has no timeframe 1h"), ({"calendar": "24/7"}, "such as XNYS")],
)
def test_settings_that_schwab_s_bars_do_not_fit_are_refused(
    fake: FakeSchwab, world: World, changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in world.bad(stock(fake, **changes), 2024)
    assert not fake.requests


def test_an_unknown_route_is_named(fake: FakeSchwab, world: World) -> None:
    series = stock(fake)
    with pytest.raises(SourceError, match="no route 'ws'"):
        source_for(series).plan(series, Wanted(0, NOW, ((0, NOW),)), "ws", world.around)


def test_an_unknown_symbol_is_named(fake: FakeSchwab, world: World) -> None:
    sentence = world.bad(stock(fake, source={"symbol": "NOPE"}))
    assert "refuses NOPE with HTTP 404: 'Not Found'" in sentence
    assert len(fake.requests) == 1


def test_a_symbol_without_a_candle_is_named(fake: FakeSchwab, world: World) -> None:
    fake.listed["ACME"] = MadeStock("ACME", listed=date(2026, 1, 5))
    assert "has no 1d bar of ACME" in world.bad(stock(fake))


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_refusal_is_permanent_and_told_in_schwab_s_words(
    fake: FakeSchwab, world: World, status: int
) -> None:
    error = {"id": "1", "status": str(status), "title": "Bad Request", "detail": "Enter a symbol"}
    fake.fail("/pricehistory", as_json({"errors": [error]}, status))
    assert f"HTTP {status}: 'Bad Request: Enter a symbol'" in world.bad(stock(fake))
    assert len(fake.requests) == 1 and not world.slept


def test_a_refusal_that_is_no_json_is_told_in_part(fake: FakeSchwab, world: World) -> None:
    fake.fail("/pricehistory", Answer(b"<html>" + b"x" * 9000, 404, "text/html"))
    assert len(world.bad(stock(fake))) < 500


# What passes when asked again.


def with_candles(change: Any) -> Any:
    """A good answer whose candles are changed in place."""

    def spoil(body: Any) -> Any:
        change(body["candles"])
        return body

    return spoil


SPOILED: dict[str, Any] = {
    "no candles": lambda body: {key: body[key] for key in ("symbol", "empty")},
    "no symbol": lambda body: {key: body[key] for key in ("candles", "empty")},
    "candles null": lambda body: {**body, "candles": None},
    "another symbol": lambda body: {**body, "symbol": "OTHER"},
    "empty, but candles": lambda body: {**body, "empty": True},
    "no candle, not empty": lambda body: {**body, "candles": []},
    "candle null": with_candles(lambda candles: candles.__setitem__(2, None)),
    "no close": with_candles(lambda candles: candles[2].pop("close")),
    "close null": with_candles(lambda candles: candles[2].update(close=None)),
    "close a word": with_candles(lambda candles: candles[2].update(close="much")),
    "time a word": with_candles(lambda candles: candles[2].update(datetime="noon")),
    "unsorted": with_candles(lambda candles: candles.reverse()),
    "repeated": with_candles(lambda candles: candles.insert(3, candles[3])),
}


@pytest.mark.parametrize("fault", [*TRANSIENT, *SPOILED])
def test_a_bad_answer_is_asked_again_once(
    fake: FakeSchwab, world: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = fault == "timeout"  # a good answer may be, too, on a busy machine
    if late:
        monkeypatch.setattr(schwab_http, "TIMEOUT_S", 0.5)
        fake.hold_s = 60.0
    fake.fail("/pricehistory", SPOILED.get(fault, fault))
    bars = world.good(stock(fake, first_year=2024))
    asked = len(fake.asked("/pricehistory"))
    assert asked >= 2 if late else asked == 2
    assert opens_at(bars) == sessions(ms(2024, 1, 1), NOW)
    told = [line for line in world.said if "attempt 1 of" in line]
    assert "ReadTimeout" in told[0] if late else len(told) == 1


@pytest.mark.parametrize("fault", ["429", "empty", "candles null"])
def test_what_stays_bad_ends_in_a_sentence(fake: FakeSchwab, world: World, fault: str) -> None:
    series = stock(fake)
    fake.fail("/pricehistory", SPOILED.get(fault, fault), times=MOST_ATTEMPTS)
    outcome = world.take(series, 2024)
    sentence = outcome.refused[SeriesYear(series.key, 2024)].sentence
    assert f"given up after {MOST_ATTEMPTS} attempts" in sentence and "ACME" in sentence
    assert len(fake.requests) == MOST_ATTEMPTS
    assert not world.bytes_of(series)


def test_requests_of_all_symbols_share_one_pace(fake: FakeSchwab, world: World) -> None:
    world.good(stock(fake, source={"calls_per_minute": 60}))
    index = {"symbol": "$SPX", "calls_per_minute": 60}
    world.good(stock(fake, key="schwab.SPX.1d", source=index))
    assert world.slept == [1.0]


def test_volume_and_prices_are_schwab_s(fake: FakeSchwab, world: World) -> None:
    bars = world.good(stock(fake, "5m", first_year=2024))
    ts = ms(2024, 1, 10, 15, 0)
    prices = fake.listed["ACME"].bar(ts, ts + 5 * MINUTE)
    (row,) = bars.filter(pl.col("ts").dt.epoch("ms") == ts).rows(named=True)
    found = tuple(row[name] for name in ("open", "high", "low", "close", "volume"))
    assert found == pytest.approx(prices)
    assert row["source"] == "rest"
