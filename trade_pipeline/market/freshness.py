"""How long the next bar of a series has been overdue, by the calendar of its market.

Pure functions of instants: no storage, no clock. Start at `freshness`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from trade_pipeline.market.calendars import DAY_MS, Instants, find_calendar
from trade_pipeline.settings.series import SeriesSettings, start_of_year

HOUR_MS = 3_600_000
STRETCH_MS = 30 * DAY_MS  # searched at once; exchanges close for some days


@dataclass(frozen=True)
class Freshness:
    """What is stored of a series and what should be; opens of bars in ms since 1970 UTC.

    Attributes:
        last_ms: the newest stored bar; None without any.
        expected_ms: the newest bar that has closed; None when there was none for a month.
        missing_ms: the first bar that has closed and is neither stored nor known to be quiet.
        overdue_hours: since that bar closed; 0 without one.
        allowed_hours: how long that may be.
    """

    last_ms: int | None
    expected_ms: int | None
    missing_ms: int | None
    overdue_hours: float
    allowed_hours: float

    @property
    def fresh(self) -> bool:
        """Whether nothing is overdue for longer than allowed."""
        return self.overdue_hours <= self.allowed_hours


def freshness(
    series: SeriesSettings, last_ms: int | None, confirmed_ms: int | None, now_ms: int
) -> Freshness:
    """Find the first bar that should be here and is not.

    Only what the calendar expects can be overdue, so no weekend or holiday makes a series stale.
    A hole before the newest stored bar is a gap and not looked at here.

    Args:
        series: calendar, timeframe and `stale_after_hours`, which must not be None.
        last_ms: open of the newest stored bar.
        confirmed_ms: end of the newest interval of which the source gave every traded bar.
        now_ms: the clock.

    Raises:
        ValueError: the series is history and never grows stale.
        CalendarError: the calendar does not reach to now.
    """
    if series.stale_after_hours is None:
        raise ValueError(f"series {series.key} has no stale_after_hours and never grows stale.")
    begins = int(start_of_year(series.first_year).timestamp()) * 1000
    known = max(
        begins - 1,
        -1 if last_ms is None else last_ms,
        # The whole bar must be confirmed, as in `coverage`.
        -1 if confirmed_ms is None else confirmed_ms - series.timeframe_ms,
    )
    newest, _ = _closed(series, max(begins, now_ms - STRETCH_MS), now_ms, now_ms)
    missing = _first_closed(series, known + 1, now_ms)
    overdue = 0 if missing is None else now_ms - missing[1]
    return Freshness(
        last_ms=last_ms,
        expected_ms=int(newest[-1]) if len(newest) else None,
        missing_ms=None if missing is None else missing[0],
        overdue_hours=overdue / HOUR_MS,
        allowed_hours=series.stale_after_hours,
    )


def _first_closed(series: SeriesSettings, start_ms: int, now_ms: int) -> tuple[int, int] | None:
    """Open and close of the first expected bar from `start_ms` on that has closed."""
    while start_ms < now_ms:
        stop_ms = min(start_ms + STRETCH_MS, now_ms)
        opens, closes = _closed(series, start_ms, stop_ms, now_ms)
        if len(opens):
            return int(opens[0]), int(closes[0])
        start_ms = stop_ms
    return None


def _closed(
    series: SeriesSettings, start_ms: int, stop_ms: int, now_ms: int
) -> tuple[Instants, Instants]:
    """Opens and closes of the bars that open in [start_ms, stop_ms) and have closed."""
    calendar = find_calendar(series.calendar)
    opens = calendar.expected(
        _instant(start_ms), _instant(stop_ms), series.timeframe_ms, series.is_daily_session
    )
    closes = calendar.close_ts(opens, series.timeframe_ms, series.is_daily_session)
    closed = closes <= now_ms
    return opens[closed], closes[closed]


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
