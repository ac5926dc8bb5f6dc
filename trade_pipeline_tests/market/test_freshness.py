import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.market.freshness import HOUR_MS, Freshness, freshness
from trade_pipeline.settings.series import SeriesSettings

from .series import DAY, MINUTE, START, crypto, ms, stock

MINUTES = crypto(stale_after_hours=2)
SESSIONS = stock("IBM", stale_after_hours=24)


def hours(*date: int) -> float:
    return ms(*date) / HOUR_MS


def test_a_bar_is_overdue_from_its_close() -> None:
    known = START + 10 * MINUTE
    missing = known + MINUTE
    nothing = freshness(MINUTES, known, None, missing + MINUTE - 1)
    assert nothing == Freshness(known, known, None, 0.0, 2.0)
    assert nothing.fresh
    found = freshness(MINUTES, known, None, missing + MINUTE + HOUR_MS)
    assert found == Freshness(known, missing + HOUR_MS, missing, 1.0, 2.0)
    assert found.fresh


@pytest.mark.parametrize(("late_ms", "fresh"), [(0, True), (1, False)])
def test_it_is_stale_when_overdue_for_longer_than_allowed(late_ms: int, fresh: bool) -> None:
    now = START + 2 * MINUTE + 2 * HOUR_MS + late_ms
    assert freshness(MINUTES, START, None, now).fresh is fresh


def test_a_quiet_market_is_not_stale() -> None:
    now = START + 10 * HOUR_MS
    assert not freshness(MINUTES, START, None, now).fresh
    confirmed = freshness(MINUTES, START, now - 5 * MINUTE, now)
    assert confirmed.missing_ms == now - 5 * MINUTE
    assert confirmed.fresh
    assert freshness(MINUTES, None, now, now).overdue_hours == 0


def test_a_bar_half_confirmed_is_still_expected() -> None:
    found = freshness(MINUTES, START, START + 5 * MINUTE - 1, START + HOUR_MS)
    assert found.missing_ms == START + 4 * MINUTE


def test_weekends_and_holidays_do_not_make_stale() -> None:
    friday = ms(2012, 10, 26)
    # Monday and Tuesday were closed by a hurricane, after an ordinary weekend.
    for day in (27, 28, 29, 30, 31):
        found = freshness(SESSIONS, friday, None, ms(2012, 10, day, 19, 59))
        assert (found.missing_ms, found.overdue_hours) == (None, 0.0), day
        assert found.expected_ms == friday
    wednesday = freshness(SESSIONS, friday, None, ms(2012, 10, 31, 23))
    assert (wednesday.missing_ms, wednesday.overdue_hours) == (ms(2012, 10, 31), 3.0)
    assert wednesday.fresh
    assert not freshness(SESSIONS, friday, None, ms(2012, 11, 1, 20, 1)).fresh


def test_a_half_day_is_due_when_it_closes() -> None:
    # The Friday after Thanksgiving 2012 closed at 13:00 in New York.
    found = freshness(SESSIONS, ms(2012, 11, 21), None, ms(2012, 11, 23, 19))
    assert (found.missing_ms, found.overdue_hours) == (ms(2012, 11, 23), 1.0)


def test_a_day_that_is_missing_stays_overdue_over_the_weekend() -> None:
    found = freshness(SESSIONS, ms(2012, 10, 18), None, ms(2012, 10, 21, 20))
    assert (found.missing_ms, found.overdue_hours) == (ms(2012, 10, 19), 48.0)
    assert not found.fresh


def test_a_series_dead_for_years_names_its_first_missing_bar() -> None:
    found = freshness(SESSIONS, ms(2004, 12, 31), None, ms(2012, 10, 26, 21))
    assert found.missing_ms == ms(2005, 1, 3)
    assert found.overdue_hours == hours(2012, 10, 26, 21) - hours(2005, 1, 3, 21)
    assert found.expected_ms == ms(2012, 10, 26)


def test_without_any_bar_the_first_year_is_where_it_should_begin() -> None:
    now = ms(2018, 1, 2)
    found = freshness(crypto(first_year=2018, stale_after_hours=1), None, None, now)
    assert (found.last_ms, found.missing_ms) == (None, START)
    assert not found.fresh
    later = freshness(crypto(first_year=2019, stale_after_hours=1), None, None, now)
    assert (later.missing_ms, later.fresh) == (None, True)


def test_history_never_grows_stale() -> None:
    with pytest.raises(ValueError, match=r"venue\.BTC-USD\.1m has no stale_after_hours"):
        freshness(crypto(), START, None, START + DAY)


@given(
    last=st.none() | st.integers(0, 200),
    confirmed=st.none() | st.integers(0, 200 * 5),
    now=st.integers(0, 250 * 5),
    allowed=st.integers(1, 10),
)
def test_the_first_missing_bar_is_what_looking_at_each_bar_finds(
    last: int | None, confirmed: int | None, now: int, allowed: int
) -> None:
    series: SeriesSettings = crypto(timeframe="5m", first_year=2018, stale_after_hours=allowed)
    bar = 5 * MINUTE
    last_ms = None if last is None else START + last * bar
    confirmed_ms = None if confirmed is None else START + confirmed * MINUTE
    now_ms = START + now * MINUTE
    closed = [START + n * bar for n in range(250) if START + (n + 1) * bar <= now_ms]
    missing = [
        one
        for one in closed
        if (last_ms is None or one > last_ms) and (confirmed_ms is None or one + bar > confirmed_ms)
    ]
    found = freshness(series, last_ms, confirmed_ms, now_ms)
    assert found.missing_ms == (missing[0] if missing else None)
    assert found.expected_ms == (closed[-1] if closed else None)
    assert found.overdue_hours == ((now_ms - missing[0] - bar) / HOUR_MS if missing else 0)
