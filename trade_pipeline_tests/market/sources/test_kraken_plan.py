"""Which route Kraken's source takes for what: decided by the clock, without a request."""

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.market.coverage import joined
from trade_pipeline.market.sources.base import (
    HistoryUnavailable,
    Interval,
    Leg,
    SourceError,
    Surroundings,
    Wanted,
    within,
)
from trade_pipeline.market.sources.kraken import Kraken
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings

from ..series import DAY, MINUTE, ms

HOUR = 60 * MINUTE
NOW = ms(2025, 6, 1, 12) + 34_567  # 12:00:34.567
CLOSED = ms(2025, 6, 1, 12)  # up to here every minute has ended
LONG_AGO = ms(2025, 1, 1)
SAFE = CLOSED - 630 * MINUTE  # from here on OHLC is sure to reach


def kraken(timeframe: str = "1m", calendar: str = "24/7", **source: Any) -> SeriesSettings:
    return SeriesSettings.model_validate(
        {
            "key": "kraken.BTC-USD.1m",
            "source": {"kind": "kraken", "symbol": "BTC/USD", **source},
            "timeframe": timeframe,
            "calendar": calendar,
            "first_year": 2013,
            "volume_unit": "base",
        }
    )


def surroundings(base: Path = Path("/nowhere"), now_ms: int = NOW) -> Surroundings:
    return Surroundings(
        base=base,
        store=base / "store",
        environment={},
        now_ms=lambda: now_ms,
        sleep=lambda seconds: pytest.fail("a plan waits for nothing"),
        log=lambda line: None,
    )


def plan(
    *missing: Interval,
    route: str | None = None,
    series: SeriesSettings | None = None,
    base: Path = Path("/nowhere"),
) -> list[Leg]:
    wanted = Wanted(LONG_AGO, NOW, missing)
    return Kraken().plan(series or kraken(), wanted, route, surroundings(base))


def archive(folder: Path, start_ms: int, end_ms: int) -> None:
    """An OHLCVT archive with a bar at each of the two ends."""
    lines = [f"{at // 1000},1,1,1,1,1,1" for at in (start_ms, end_ms - MINUTE)]
    with zipfile.ZipFile(folder / "Kraken_OHLCVT.zip", "w") as file:
        file.writestr("XBTUSD_1.csv", "\n".join(lines))


def test_the_last_hours_come_by_rest_and_first_the_others_by_trades() -> None:
    assert plan((LONG_AGO, NOW)) == [Leg("rest", SAFE, CLOSED), Leg("trades", LONG_AGO, SAFE)]


def test_cold_history_comes_from_the_archives_as_far_as_they_go(tmp_path: Path) -> None:
    first, last = LONG_AGO + 10 * DAY, LONG_AGO + 90 * DAY
    archive(tmp_path, first, last)
    assert plan(
        (LONG_AGO, LONG_AGO + 30 * DAY),
        (LONG_AGO + 40 * DAY, NOW),
        series=kraken(ohlcvt_zip="*.zip"),
        base=tmp_path,
    ) == [
        Leg("rest", SAFE, CLOSED),
        Leg("zip", first, LONG_AGO + 30 * DAY),
        Leg("zip", LONG_AGO + 40 * DAY, last),
        Leg("trades", LONG_AGO, first),
        Leg("trades", last, SAFE),
    ]


def test_an_archive_that_is_not_there_yet_is_no_error_when_the_source_chooses() -> None:
    assert plan((LONG_AGO, NOW), series=kraken(ohlcvt_zip="inbox/*.zip")) == plan((LONG_AGO, NOW))


def test_nothing_missing_needs_no_leg() -> None:
    assert plan() == []
    assert plan((CLOSED, NOW)) == []  # the minute that has not ended
    assert plan(route="trades") == []
    assert plan(route="rest") == []


def test_a_small_stretch_that_reaches_into_the_window_is_not_worth_pages_of_trades() -> None:
    start = SAFE - 30 * MINUTE
    assert plan((start, NOW)) == [Leg("rest", start, CLOSED)]
    assert plan((start - MINUTE, NOW)) == [
        Leg("rest", SAFE, CLOSED),
        Leg("trades", start - MINUTE, SAFE),
    ]


def test_what_a_killed_crawl_of_trades_left_before_the_window_stays_with_trades() -> None:
    assert plan((SAFE - 5 * MINUTE, SAFE)) == [Leg("trades", SAFE - 5 * MINUTE, SAFE)]


def test_an_hour_of_clock_skew_leaves_the_window_within_what_kraken_keeps() -> None:
    (leg,) = plan((SAFE - 30 * MINUTE, NOW))
    assert leg.start_ms >= CLOSED + HOUR - 720 * MINUTE


@pytest.mark.parametrize("timeframe", TIMEFRAME_MS)
def test_the_window_is_720_bars_of_any_timeframe(timeframe: str) -> None:
    length = TIMEFRAME_MS[timeframe]
    safe = (NOW // length - 630) * length
    long_ago = (NOW // length - 2_000) * length
    assert plan((long_ago, NOW), series=kraken(timeframe)) == [
        Leg("rest", safe, NOW // length * length),
        Leg("trades", long_ago, safe),
    ]


@pytest.mark.parametrize("route", ["rest", "trades"])
def test_a_route_asked_for_takes_only_what_is_missing(route: str) -> None:
    missing = (CLOSED - 300 * MINUTE, CLOSED - 200 * MINUTE), (CLOSED - 90 * MINUTE, NOW)
    assert plan(*missing, route=route) == [
        Leg(route, CLOSED - 300 * MINUTE, CLOSED - 200 * MINUTE),
        Leg(route, CLOSED - 90 * MINUTE, CLOSED),
    ]


def test_the_archives_when_asked_for_give_the_whole_range_again() -> None:
    series = kraken(ohlcvt_zip="inbox/*.zip")
    assert plan(route="zip", series=series) == [Leg("zip", LONG_AGO, CLOSED)]


def test_legs_begin_and_end_on_whole_bars() -> None:
    start = CLOSED - 40 * HOUR
    series = kraken("1h")
    assert plan((start + 1, start + 5 * HOUR - 1), series=series, route="trades") == [
        Leg("trades", start, start + 4 * HOUR)
    ]
    assert plan((start + 1, start + HOUR - 1), series=series, route="trades") == []


def test_rest_reaches_exactly_720_bars_and_says_what_serves_older_ones() -> None:
    oldest = CLOSED - 720 * MINUTE
    assert plan((oldest, NOW), route="rest") == [Leg("rest", oldest, CLOSED)]
    with pytest.raises(HistoryUnavailable) as raised:
        plan((oldest - MINUTE, NOW), route="rest")
    assert str(raised.value) == (
        "series kraken.BTC-USD.1m: route rest reaches back 720 bars, to 2025-06-01 00:00 UTC, but "
        "bars are missing from 2025-05-31 23:59 UTC on. Ask for a later start, or take route "
        "trades (slow) or zip (Kraken's archives) for what is older."
    )


def test_the_archives_need_a_path() -> None:
    with pytest.raises(SourceError, match=r"source\.ohlcvt_zip .* or source\.trades_zip"):
        plan((LONG_AGO, NOW), route="zip")


def test_an_unknown_route_is_named() -> None:
    with pytest.raises(SourceError, match=r"no route 'trade'\. Did you mean 'trades'\?"):
        plan((LONG_AGO, NOW), route="trade")


def test_only_a_calendar_round_the_clock_fits() -> None:
    with pytest.raises(SourceError, match="calendar is XNYS, but Kraken trades round the clock"):
        plan((LONG_AGO, NOW), series=kraken("1d", "XNYS"))


def test_routes_declare_what_they_can() -> None:
    routes = Kraken().routes(kraken(calls_per_minute=20))
    assert list(routes) == ["zip", "trades", "rest"]
    trades, rest = routes["trades"], routes["rest"]
    assert (trades.page_cap, trades.has_history, trades.cursor) == (1000, True, "trade_time_ns")
    assert (rest.page_cap, rest.has_history, rest.cursor) == (720, False, "bar_time")
    assert (routes["zip"].cursor, routes["zip"].calls_per_minute) == ("none", None)
    assert [one.fills_quiet for one in routes.values()] == [False, False, True]
    assert trades.calls_per_minute == rest.calls_per_minute == 20


times = st.integers(NOW - 3_000 * MINUTE, NOW)


@given(st.lists(st.tuples(times, times), max_size=6))
def test_every_missing_bar_is_in_one_leg_and_no_other_bar(ends: list[tuple[int, int]]) -> None:
    missing = joined((min(one), max(one)) for one in ends)
    legs = plan(*missing)
    bars = [at for leg in legs for at in range(leg.start_ms, leg.end_ms, MINUTE)]
    assert len(bars) == len(set(bars))
    wanted = [
        at
        for at in range(NOW // MINUTE * MINUTE - 3_001 * MINUTE, CLOSED, MINUTE)
        if any(start // MINUTE * MINUTE <= at and at + MINUTE <= end for start, end in missing)
    ]
    assert sorted(bars) == wanted
    order = ["rest", "trades"]
    assert [leg.route for leg in legs] == sorted((leg.route for leg in legs), key=order.index)
    for route in order:
        starts = [leg.start_ms for leg in legs if leg.route == route]
        assert starts == sorted(starts)


@given(times, st.integers(0, 3_000))
def test_a_crawl_killed_anywhere_takes_the_same_routes_when_run_again(start: int, at: int) -> None:
    whole = plan((start, NOW))
    by_route = {
        route: joined((one.start_ms, one.end_ms) for one in whole if one.route == route)
        for route in ("rest", "trades")
    }
    # Killed after rest came, in the middle of the trades.
    done = NOW - at * MINUTE
    left = [(max(a, done), b) for a, b in by_route["trades"] if max(a, done) < b]
    for leg in plan(*left):
        assert within(by_route[leg.route], leg.start_ms, leg.end_ms) == (leg[1:],)


def test_planning_loads_neither_ccxt_nor_numba() -> None:
    lines = (
        "import sys",
        "from trade_pipeline_tests.market.sources.test_kraken_plan import LONG_AGO, NOW, plan",
        "assert len(plan((LONG_AGO, NOW))) == 2",
        "sys.exit(' '.join({'ccxt', 'numba'} & set(sys.modules)) or None)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
