"""Clocks: cases worked by hand, and Python's own zoned times as oracle."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline_tests.features.test_indicators import columns, use


def closing_at(*moments: str) -> pl.DataFrame:
    """Bars that close at these moments, UTC."""
    times = [datetime.fromisoformat(one).replace(tzinfo=UTC) for one in moments]
    return pl.DataFrame({"close_ts": times}, schema={"close_ts": pl.Datetime("ms", "UTC")})


def test_the_clock_turns_once_a_day() -> None:
    bars = closing_at(
        "2024-05-05T00:00", "2024-05-05T06:00", "2024-05-05T12:00", "2024-05-05T21:00"
    )
    got = columns(bars, use("time_of_day"))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(got["time_of_day_sin"], [0, 1, 0, -half], atol=1e-15)
    np.testing.assert_allclose(got["time_of_day_cos"], [1, 0, -1, half], atol=1e-15)


def test_any_moment_has_its_own_place_on_the_clock() -> None:
    generator = np.random.default_rng(0)
    moments = np.concatenate(
        [generator.integers(0, 2_000_000_000_000, 500), 60_000 * np.arange(0, 30_000_000, 51_111)]
    )
    generator.shuffle(moments)
    bars = pl.DataFrame({"close_ts": pl.Series(moments).cast(pl.Datetime("ms", "UTC"))})
    got = columns(bars, use("time_of_day"))
    angles = 2 * np.pi * ((moments % 86_400_000) / 86_400_000)
    np.testing.assert_allclose(got["time_of_day_sin"], np.sin(angles), rtol=0, atol=1e-15)
    np.testing.assert_allclose(got["time_of_day_cos"], np.cos(angles), rtol=0, atol=1e-15)


def test_the_week_begins_on_monday_and_midnight_belongs_to_the_day_that_ends() -> None:
    moments = ["2024-01-01T00:01", "2024-01-02T00:00", "2024-01-02T00:01", "2024-01-07T23:59"]
    got = columns(closing_at(*moments, "2024-01-08T00:00"), use("day_of_week"))
    day = 2 * np.pi * np.array([0, 0, 1, 6, 6]) / 7
    np.testing.assert_allclose(got["day_of_week_sin"], np.sin(day), atol=1e-15)
    np.testing.assert_allclose(got["day_of_week_cos"], np.cos(day), atol=1e-15)


def session(bars: pl.DataFrame, zone: str, opens: str, closes: str) -> list[tuple[float, float]]:
    """Inside and elapsed of each bar."""
    got = columns(bars, use("session", zone=zone, open=opens, close=closes))
    return list(zip(*(values.tolist() for values in got.values()), strict=True))


# 2024: clocks in New York go forward on 10 March at 07:00Z and back on 3 November at 06:00Z.
@pytest.mark.parametrize(
    ("day", "opens", "closes"),
    [
        ("2024-03-08", "14:30", "21:00"),
        ("2024-03-10", "13:30", "20:00"),
        ("2024-03-11", "13:30", "20:00"),
        ("2024-11-01", "13:30", "20:00"),
        ("2024-11-03", "14:30", "21:00"),
        ("2024-11-04", "14:30", "21:00"),
    ],
)
def test_the_session_follows_the_clocks_of_its_place(day: str, opens: str, closes: str) -> None:
    start, end = (datetime.fromisoformat(f"{day}T{time}") for time in (opens, closes))
    minute = timedelta(minutes=1)
    moments = [start, start + minute, start + 195 * minute, end, end + minute]
    got = session(
        closing_at(*(one.isoformat() for one in moments)), "America/New_York", "09:30", "16:00"
    )
    # A bar that closes as the session opens traded before it; the last one closes with it.
    assert got == [(0, 0), (1, 1 / 390), (1, 0.5), (1, 1), (0, 0)]


def test_a_session_may_run_past_midnight_and_through_a_change_of_clocks() -> None:
    bars = closing_at(
        "2024-03-09T23:00",  # 18:00 in New York: as it opens
        "2024-03-10T05:00",  # 00:00
        "2024-03-10T06:59",  # 01:59
        "2024-03-10T07:00",  # 03:00, for there is no 02:00
        "2024-03-10T12:00",  # 08:00: as it closes
        "2024-03-10T12:01",
    )
    got = session(bars, "America/New_York", "18:00", "08:00")
    hours = [0, 6, 7 + 59 / 60, 9, 14, 0]
    assert [inside for inside, _ in got] == [0, 1, 1, 1, 1, 0]
    assert [elapsed * 14 for _, elapsed in got] == pytest.approx(hours)


ZONES = ("America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC")


@settings(max_examples=150, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    first=st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1)),
    step_s=st.sampled_from([60, 1_740, 3_600, 86_400, 400_000]),
    opens=st.integers(0, 1_439),
    length=st.integers(1, 1_439),
)
def test_sessions_agree_with_pythons_zoned_times(
    zone: str, first: datetime, step_s: int, opens: int, length: int
) -> None:
    start = first.replace(second=0, microsecond=0, tzinfo=UTC)
    moments = [start + timedelta(seconds=step_s * row) for row in range(300)]
    bars = pl.DataFrame({"close_ts": moments}, schema={"close_ts": pl.Datetime("ms", "UTC")})
    closes = (opens + length) % 1_440
    times = [f"{one // 60:02}:{one % 60:02}" for one in (opens, closes)]
    for moment, (inside, elapsed) in zip(moments, session(bars, zone, *times), strict=True):
        local = moment.astimezone(ZoneInfo(zone))
        passed = (local.hour * 60 + local.minute + local.second / 60 - opens) % 1_440
        assert inside == (0 < passed <= length), local
        assert elapsed == pytest.approx(passed / length if inside else 0.0)


def test_the_minute_at_which_clocks_change_is_found_anywhere_within_the_hour() -> None:
    # On Lord Howe they go forward by half an hour, at 15:30Z.
    bars = closing_at("2024-10-05T15:29", "2024-10-05T15:30")
    assert session(bars, "Australia/Lord_Howe", "01:00", "03:00") == [
        (1, pytest.approx(59 / 120)),
        (1, pytest.approx(90 / 120)),
    ]
