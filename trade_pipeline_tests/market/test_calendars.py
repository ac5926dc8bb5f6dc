from datetime import UTC, datetime

import numpy as np
import pytest

from trade_pipeline.market.calendars import CalendarError, find_calendar
from trade_pipeline.settings.base import SettingsError

from .series import DAY, MINUTE, ms


def day(*date: int) -> datetime:
    return datetime(*date, tzinfo=UTC)


def dates(ts: np.ndarray) -> list[str]:
    return [str(np.datetime64(int(one), "ms").astype("datetime64[D]")) for one in ts]


def test_the_september_2001_closure_is_not_expected() -> None:
    found = find_calendar("XNYS").expected(day(2001, 9, 7), day(2001, 9, 19), DAY, True)
    assert dates(found) == ["2001-09-07", "2001-09-10", "2001-09-17", "2001-09-18"]


def test_weekends_and_holidays_are_not_expected() -> None:
    found = find_calendar("XNYS").expected(day(2003, 7, 3), day(2003, 7, 8), DAY, True)
    assert dates(found) == ["2003-07-03", "2003-07-07"]


def test_a_daily_bar_is_visible_from_its_sessions_close_half_days_included() -> None:
    sessions = np.array([ms(2012, 11, 21), ms(2012, 11, 23), ms(2012, 7, 2)])  # winter, half, DST
    closes = find_calendar("XNYS").close_ts(sessions, DAY, True)
    assert closes.tolist() == [ms(2012, 11, 21, 21), ms(2012, 11, 23, 18), ms(2012, 7, 2, 20)]


def test_a_date_without_a_session_has_no_close() -> None:
    with pytest.raises(CalendarError, match=r"2012-11-22 00:00 UTC is not a session date .* XNYS"):
        find_calendar("XNYS").close_ts(np.array([ms(2012, 11, 22)]), DAY, True)
    assert not len(find_calendar("XNYS").close_ts(np.empty(0, dtype=np.int64), DAY, True))


def test_minutes_of_a_half_day_end_at_its_close() -> None:
    found = find_calendar("XNYS").expected(day(2012, 11, 23), day(2012, 11, 24), MINUTE, False)
    assert (found[0], found[-1], len(found)) == (
        ms(2012, 11, 23, 14, 30),
        ms(2012, 11, 23, 17, 59),
        210,
    )


def test_a_lunch_break_expects_nothing_and_bars_start_again_after_it() -> None:
    hour = 60 * MINUTE
    found = find_calendar("XHKG").expected(day(2019, 3, 1), day(2019, 3, 2), hour, False)
    assert [f"{np.datetime64(int(one), 'ms').item():%H:%M}" for one in found] == [
        "01:30",
        "02:30",
        "03:30",
        "05:00",
        "06:00",
        "07:00",
    ]


def test_a_session_that_opens_on_the_utc_day_before_is_not_lost() -> None:
    # Chicago futures of Monday open on Sunday evening; the year's first session on New Year's Day.
    found = find_calendar("CMES").expected(day(2019, 1, 1), day(2019, 1, 2), MINUTE, False)
    assert found[0] == ms(2019, 1, 1, 23)


def test_a_market_that_never_closes_expects_every_bar_from_the_first_whole_one() -> None:
    always = find_calendar("24/7")
    found = always.expected(day(2018, 1, 1, 0, 0, 30), day(2018, 1, 1, 0, 3), MINUTE, False)
    assert found.tolist() == [ms(2018, 1, 1, 0, 1), ms(2018, 1, 1, 0, 2)]
    assert always.close_ts(found, MINUTE, False).tolist() == (found + MINUTE).tolist()


@pytest.mark.parametrize(
    ("name", "timeframe_ms", "daily", "bars"),
    [
        ("24/7", MINUTE, False, 525_600.0),
        ("24/7", DAY, False, 365.0),
        ("XNYS", DAY, True, 252.0),
        ("XNYS", MINUTE, False, 98_280.0),
        ("XNYS", 60 * MINUTE, False, 1_638.0),
    ],
)
def test_bars_of_a_year(name: str, timeframe_ms: int, daily: bool, bars: float) -> None:
    assert find_calendar(name).bars_per_year(timeframe_ms, daily) == bars


def test_an_unknown_calendar_names_the_closest() -> None:
    with pytest.raises(CalendarError, match=r"unknown calendar 'XNYSE'\. Did you mean 'XNYS'\?"):
        find_calendar("XNYSE")
    assert issubclass(CalendarError, SettingsError)


def test_years_that_a_calendar_does_not_reach_are_named() -> None:
    with pytest.raises(CalendarError, match=r"calendar XTKS .* 1980 to 1980"):
        find_calendar("XTKS").expected(day(1980, 1, 1), day(1980, 2, 1), DAY, True)
