"""When a series is expected to have a bar, and when that bar can be seen.

Pure functions of instants that are passed in: no clock, no frames, no settings files.
Start at `find_calendar(name)`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trade_pipeline.settings.base import SettingsError, closest

Instants = npt.NDArray[np.int64]  # [n] milliseconds since 1970 UTC

ALWAYS = "24/7"
DAY_MS = 86_400_000
SESSIONS_PER_YEAR = 252


class CalendarError(SettingsError):
    """A calendar is unknown, or knows nothing of the time asked for."""


class Calendar(Protocol):
    """Expected bars of one market."""

    def expected(
        self, start: datetime, end: datetime, timeframe_ms: int, daily_session: bool
    ) -> Instants:
        """Open times [n] of all bars expected in [start, end), rising. Raises `CalendarError`."""
        ...

    def close_ts(self, ts_ms: Instants, timeframe_ms: int, daily_session: bool) -> Instants:
        """When each bar [n] is visible, in ms. Raises `CalendarError`."""
        ...

    def bars_per_year(self, timeframe_ms: int, daily_session: bool) -> float:
        """Bars of a usual year, for annualising."""
        ...


@lru_cache(maxsize=64)
def find_calendar(name: str) -> Calendar:
    """`24/7`, or an exchange_calendars name such as XNYS. Raises `CalendarError`."""
    if name == ALWAYS:
        return AlwaysOpen()
    import exchange_calendars  # brings pandas: half a second that a 24/7 market need not pay

    known = exchange_calendars.get_calendar_names(include_aliases=True)
    if name not in known:
        raise CalendarError(f"unknown calendar {name!r}.{closest(name, [ALWAYS, *known])}")
    return ExchangeCalendar(name)


@dataclass(frozen=True)
class AlwaysOpen:
    """A market that never closes; a day is a UTC day."""

    def expected(
        self, start: datetime, end: datetime, timeframe_ms: int, daily_session: bool
    ) -> Instants:
        """Every multiple of the timeframe in [start, end)."""
        first = -(-_ms(start) // timeframe_ms) * timeframe_ms
        return np.arange(first, _ms(end), timeframe_ms, dtype=np.int64)

    def close_ts(self, ts_ms: Instants, timeframe_ms: int, daily_session: bool) -> Instants:
        """One timeframe after the open."""
        return ts_ms + timeframe_ms

    def bars_per_year(self, timeframe_ms: int, daily_session: bool) -> float:
        """Of 365 days."""
        return 365.0 * DAY_MS / timeframe_ms


@dataclass(frozen=True)
class ExchangeCalendar:
    """Sessions of an exchange: holidays, half days and lunch breaks included.

    A daily bar is stamped with its session's date at 00:00Z. Intraday bars start at each
    opening (after a lunch break again), so the last one before a close may be shorter.
    """

    name: str

    def expected(
        self, start: datetime, end: datetime, timeframe_ms: int, daily_session: bool
    ) -> Instants:
        """Session dates, or bars within trading hours, that open in [start, end)."""
        if end <= start:
            return np.empty(0, dtype=np.int64)
        # A session may open on the UTC day before its own date (Sydney, Chicago futures).
        margin = timedelta(0) if daily_session else timedelta(days=1)
        last = end - timedelta(milliseconds=1)
        sessions = _sessions(self.name, (start - margin).year, (last + margin).year)
        opens = sessions.dates if daily_session else _bars_within(sessions, timeframe_ms)
        return opens[(opens >= _ms(start)) & (opens < _ms(end))]

    def close_ts(self, ts_ms: Instants, timeframe_ms: int, daily_session: bool) -> Instants:
        """The session's closing time for daily bars, else one timeframe after the open."""
        if not daily_session:
            return ts_ms + timeframe_ms
        if not len(ts_ms):
            return ts_ms.copy()
        sessions = _sessions(self.name, _instant(ts_ms.min()).year, _instant(ts_ms.max()).year)
        at = np.searchsorted(sessions.dates, ts_ms)
        at = np.minimum(at, len(sessions.dates) - 1)
        wrong = sessions.dates[at] != ts_ms
        if wrong.any():
            stray = _instant(ts_ms[wrong][0])
            raise CalendarError(
                f"{stray:%Y-%m-%d %H:%M} UTC is not a session date of calendar {self.name}; "
                "a daily bar is stamped with its session's date at 00:00Z."
            )
        return sessions.closes[at]

    def bars_per_year(self, timeframe_ms: int, daily_session: bool) -> float:
        """Of 252 sessions, each as long as the usual one of 2024 (XNYS: 390 minutes)."""
        if daily_session:
            return float(SESSIONS_PER_YEAR)
        sessions = _sessions(self.name, 2024, 2024)
        usual_ms = float(np.median(sum(stop - start for start, stop in sessions.hours)))
        return SESSIONS_PER_YEAR * usual_ms / timeframe_ms


@dataclass(frozen=True)
class _Sessions:
    """Sessions [n] of some years, all in ms: dates, closes, and hours as (starts, stops)."""

    dates: Instants
    closes: Instants
    hours: tuple[tuple[Instants, Instants], ...]


@lru_cache(maxsize=64)
def _sessions(name: str, first_year: int, last_year: int) -> _Sessions:
    import exchange_calendars

    try:
        # Both bounds are explicit: the defaults reckon from today's date.
        calendar = exchange_calendars.get_calendar(
            name, start=f"{first_year}-01-01", end=f"{last_year}-12-31"
        )
    except ValueError as error:
        raise CalendarError(
            f"calendar {name} does not know the sessions of {first_year} to {last_year}: {error}"
        ) from error
    dates = np.asarray(calendar.sessions.asi8, dtype=np.int64) // 1_000_000
    opens, closes = calendar.opens_nanos // 1_000_000, calendar.closes_nanos // 1_000_000
    has_break = calendar.schedule["break_start"].notna().to_numpy()
    lunch = np.where(has_break, calendar.break_starts_nanos // 1_000_000, closes)
    back = np.where(has_break, calendar.break_ends_nanos // 1_000_000, closes)
    return _Sessions(dates, closes, ((opens, lunch), (back, closes)))


def _bars_within(sessions: _Sessions, timeframe_ms: int) -> Instants:
    parts = []
    for starts, stops in sessions.hours:
        counts = -(-(stops - starts) // timeframe_ms)
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        parts.append(np.repeat(starts, counts) + nth * timeframe_ms)
    return np.unique(np.concatenate(parts)).astype(np.int64)


def _ms(instant: datetime) -> int:
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _instant(ms: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(ms))
