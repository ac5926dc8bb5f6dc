"""What time it is when a bar closes. Depends on `close_ts` alone. Start at `INDICATORS`."""

import math
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from trade_pipeline.features.indicator import Array, Bars, Indicator
from trade_pipeline.settings.base import Settings

_MINUTE_MS = 60_000
_DAY_S = 86_400
_DAY_MS = 1000 * _DAY_S
# 1970-01-01 was a Thursday; weeks begin on Monday.
_MONDAY = 3

Integers = NDArray[np.int64]
TimeOfDay = Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")]


class NoParameters(Settings):
    """Parameters of `time_of_day` and `day_of_week`: none."""


class SessionParameters(Settings):
    """Parameters of `session`: when it opens and closes, by the clock of its place."""

    zone: str = Field(default="America/New_York", description="Name in the tz database.")
    open: TimeOfDay = Field(default="09:30", description="HH:MM, in quotes.")
    close: TimeOfDay = Field(
        default="16:00", description="HH:MM, in quotes; before `open`: on the next day."
    )

    @field_validator("open", "close", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        if isinstance(value, int):
            raise ValueError("write the time in quotes, such as '16:00'; YAML reads it as a number")
        return value

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"the tz database knows no zone {zone!r}; name one such as 'Europe/London'"
            ) from error
        return zone

    @model_validator(mode="after")
    def _opens_before_it_closes(self) -> "SessionParameters":
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open}; they must differ")
        return self


def _time_of_day(bars: Bars, _: NoParameters) -> dict[str, Array]:
    """Sine and cosine of the moment of close on a clock of one turn a UTC day, midnight on top."""
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    closes = bars["close_ts"]
    sine, cosine = np.empty(closes.size), np.empty(closes.size)
    kernels.turn(closes, sine, cosine)
    return {"time_of_day_sin": sine, "time_of_day_cos": cosine}


def _day_of_week(bars: Bars, _: NoParameters) -> dict[str, Array]:
    """Sine and cosine of the UTC day on a circle of seven, Monday on top.

    The day is that of the bar's last millisecond: a bar that closes at midnight belongs to the
    day that ends.
    """
    days = (bars["close_ts"].astype(np.int64) - 1) // _DAY_MS
    days += _MONDAY
    days %= 7
    angles = [2 * math.pi * day / 7 for day in range(7)]
    return {
        "day_of_week_sin": np.array([math.sin(one) for one in angles])[days],
        "day_of_week_cos": np.array([math.cos(one) for one in angles])[days],
    }


def _session(bars: Bars, parameters: SessionParameters) -> dict[str, Array]:
    """Whether a bar closes within the daily session (1 or 0), and the part of it that is over.

    By the wall clock of its place, daylight saving included: a bar that closes as the session
    opens is outside (it traded before), one that closes as it closes is inside, its last. The part
    that is over is 0 outside. Knows no weekends and no holidays.
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    closes = bars["close_ts"]
    opens_ms = _minutes(parameters.open) * _MINUTE_MS
    length_ms = (_minutes(parameters.close) * _MINUTE_MS - opens_ms) % _DAY_MS
    inside, elapsed = np.zeros(closes.size), np.zeros(closes.size)
    starts, offsets = _offsets(closes, parameters.zone)
    kernels.within_session(closes, starts, offsets, opens_ms, length_ms, inside, elapsed)
    return dict(zip(_session_names(parameters), (inside, elapsed), strict=True))


def _session_names(parameters: SessionParameters) -> tuple[str, ...]:
    suffix = f"{parameters.zone}_{parameters.open}_{parameters.close}"
    return (f"session_inside_{suffix}", f"session_elapsed_{suffix}")


def _minutes(time: str) -> int:
    """Minutes of the day.

    >>> _minutes("09:30")
    570
    """
    hours, minutes = time.split(":")
    return 60 * int(hours) + int(minutes)


def _offsets(moments: Array, zone: str) -> tuple[Integers, Integers]:
    """What to add to UTC to get local time, and from when on: both ms, both [changes + 1].

    The first holds from before the first moment on; there is one more for each change of the
    zone's clocks until the last.
    """
    if moments.size == 0:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    days = range(int(moments.min() // _DAY_MS), int(moments.max() // _DAY_MS) + 1)
    starts = [days.start * _DAY_MS]
    offsets = [_offset_s(zone, days.start * _DAY_S)]
    for day in days:
        for change_s, offset_s in _changes(zone, day):
            starts.append(1000 * change_s)
            offsets.append(offset_s)
    return np.array(starts, np.int64), 1000 * np.array(offsets, np.int64)


@lru_cache(maxsize=100_000)
def _changes(zone: str, day: int) -> tuple[tuple[int, int], ...]:
    """Seconds since 1970 UTC at which a zone's clocks change within a UTC day, and new offsets.

    Found by halving half days, within none of which any zone changes its clocks twice.
    """
    found = []
    for start in (day * _DAY_S, day * _DAY_S + _DAY_S // 2):
        same, other = start, start + _DAY_S // 2
        before, after = _offset_s(zone, same), _offset_s(zone, other)
        if before == after:
            continue
        while other - same > 1:
            middle = (same + other) // 2
            if _offset_s(zone, middle) == before:
                same = middle
            else:
                other = middle
        found.append((other, after))
    return tuple(found)


def _offset_s(zone: str, second: int) -> int:
    """Seconds that a zone's clocks are ahead of UTC at a second since 1970 UTC."""
    offset = datetime.fromtimestamp(second, UTC).astimezone(ZoneInfo(zone)).utcoffset()
    assert offset is not None, "a zone of the tz database always has an offset"
    return int(offset.total_seconds())


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "time_of_day",
        NoParameters,
        ("close_ts",),
        lambda _: ("time_of_day_sin", "time_of_day_cos"),
        lambda _: 0,
        _time_of_day,
    ),
    Indicator(
        "day_of_week",
        NoParameters,
        ("close_ts",),
        lambda _: ("day_of_week_sin", "day_of_week_cos"),
        lambda _: 0,
        _day_of_week,
    ),
    Indicator("session", SessionParameters, ("close_ts",), _session_names, lambda _: 0, _session),
)
