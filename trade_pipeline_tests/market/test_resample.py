import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from trade_pipeline.market.bars import BAR_SCHEMA, SOURCES, TS, empty_bars, violations
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.coverage import coverage, joined
from trade_pipeline.market.resample import resample, resample_ms
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings

from .series import DAY, MINUTE, START, bars_at, crypto, minutes, ms, stock

Intervals = list[tuple[int, int]]
HOUR = 60 * MINUTE
LEAN_COLUMNS = ("ms", "open", "high", "low", "close", "volume")


def opens(bars: pl.DataFrame) -> list[int]:
    """Minutes after `START` at which these bars open."""
    return [(at - START) // MINUTE for at in bars["ts"].dt.epoch("ms").to_list()]


def within(start: int, end: int) -> tuple[int, int]:
    """These minutes after `START` as an interval."""
    return START + start * MINUTE, START + end * MINUTE


def at_timeframe(timeframe: str, **changes: object) -> SeriesSettings:
    return crypto(key=f"venue.BTC-USD.{timeframe}", timeframe=timeframe, **changes)


def sessions(timeframe: str = "1m", calendar: str = "XNYS") -> SeriesSettings:
    return at_timeframe(timeframe, calendar=calendar, volume_unit="shares")


def trading_minutes(calendar: str, first: tuple[int, ...], last: tuple[int, ...]) -> list[int]:
    bounds = (datetime(*day, tzinfo=UTC) for day in (first, last))
    return find_calendar(calendar).expected(*bounds, MINUTE, False).tolist()


@st.composite
def histories(draw: st.DrawFn) -> tuple[pl.DataFrame, Intervals]:
    """Up to eight hours of minutes with gaps, and some confirmed intervals."""
    gaps = draw(st.sets(st.integers(0, 479), max_size=12))
    first, last = sorted((draw(st.integers(0, 480)), draw(st.integers(0, 480))))
    at = [m for m in range(first, last) if m not in gaps]
    # Eighths of small numbers add up exactly, in whatever order.
    numbers = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 800, (4, len(at))) / 8
    bars = bars_at(minutes(*at)).with_columns(
        open=pl.Series(numbers[0]),
        close=pl.Series(numbers[1]),
        high=pl.Series(numbers[:2].max(axis=0) + 1),
        low=pl.Series(numbers[:2].min(axis=0) / 2),
        volume=pl.Series(numbers[2]),
        trades=pl.Series(numbers[3] * 8).cast(pl.Int32),
    )
    edges = st.tuples(st.integers(-20, 500), st.integers(0, 200))
    pairs = draw(st.lists(edges, max_size=4))
    return bars, [within(start, start + length) for start, length in pairs]


def oracle(
    bars: pl.DataFrame, confirmed: Intervals, minutes_each: int
) -> tuple[list[tuple[float, ...]], Intervals]:
    """The same rules of a 24/7 market, minute after minute."""
    of_minute = {int(row["ts"].timestamp() * 1000): row for row in bars.iter_rows(named=True)}
    step = minutes_each * MINUTE
    found, done = [], []
    for start in range(START - DAY, START + DAY, step):
        parts = []
        for minute in range(start, start + step, MINUTE):
            quiet = any(a <= minute and minute + MINUTE <= b for a, b in joined(confirmed))
            if minute in of_minute:
                parts.append(of_minute[minute])
            elif not quiet:
                break
        else:
            done.append((start, start + step))
            if parts:
                found.append(
                    (
                        start,
                        parts[0]["open"],
                        max(part["high"] for part in parts),
                        min(part["low"] for part in parts),
                        parts[-1]["close"],
                        sum(part["volume"] for part in parts),
                        sum(part["trades"] for part in parts),
                    )
                )
    return found, list(joined(done))


def test_a_whole_interval_gives_one_bar_worked_by_hand() -> None:
    bars = bars_at(minutes(*range(5))).with_columns(
        open=pl.Series([10.0, 11.0, 12.0, 13.0, 14.0]),
        high=pl.Series([15.0, 19.0, 15.0, 15.0, 16.0]),
        low=pl.Series([9.0, 9.5, 7.0, 8.0, 9.0]),
        close=pl.Series([11.0, 12.0, 13.0, 14.0, 15.5]),
        volume=pl.Series([1.0, 2.0, 3.0, 4.0, 5.0]),
        trades=pl.Series([1, 0, 2, 3, 4], dtype=pl.Int32),
    )
    found, confirmed = resample(bars, [], crypto(), "5m")
    assert found.schema == pl.Schema(BAR_SCHEMA)
    at = datetime(2018, 1, 1, tzinfo=UTC)
    assert found.rows() == [(at, 10.0, 19.0, 7.0, 15.5, 15.0, 10, None, "file")]
    assert confirmed == [within(0, 5)]


def test_an_interval_with_an_unknown_part_gives_no_bar() -> None:
    bars = bars_at(minutes(*(m for m in range(15) if m != 7)))
    found, confirmed = resample(bars, [], crypto(), "5m")
    assert opens(found) == [0, 10]
    assert confirmed == [within(0, 5), within(10, 15)]


def test_a_quiet_part_neither_hides_a_bar_nor_adds_to_it() -> None:
    bars = bars_at(minutes(1, 3))
    found, confirmed = resample(bars, [within(0, 5)], crypto(), "5m")
    assert opens(found) == [0]
    assert found["open"][0] == bars["open"][0] and found["close"][0] == bars["close"][1]
    assert found["volume"][0] == bars["volume"][0] + bars["volume"][1]
    assert confirmed == [within(0, 5)]


def test_an_interval_of_quiet_parts_is_confirmed_and_has_no_bar() -> None:
    found, confirmed = resample(bars_at(minutes(0)), [within(1, 17)], crypto(), "5m")
    assert opens(found) == [0]
    assert confirmed == [within(0, 15)]
    states = coverage(bars_at(minutes(0, 10)), confirmed, at_timeframe("5m")).days
    assert states["quiet"].to_list() == [1]


def test_a_half_confirmed_part_is_unknown() -> None:
    start, end = within(1, 5)
    assert resample(bars_at(minutes(0)), [(start, end - 1)], crypto(), "5m")[1] == []
    assert resample(bars_at(minutes(0)), [(start + 1, end)], crypto(), "5m")[1] == []


def test_an_interval_still_forming_is_not_written() -> None:
    found, confirmed = resample(bars_at(minutes(*range(9))), [], crypto(), "5m")
    assert opens(found) == [0] and confirmed == [within(0, 5)]


def test_a_part_without_trades_count_leaves_the_count_unknown() -> None:
    bars = bars_at(minutes(*range(10)), trades=[1, None, 1, 1, 1, 2, 2, 2, 2, 2])
    assert resample(bars, [], crypto(), "5m")[0]["trades"].to_list() == [None, 10]


def test_the_least_precise_source_is_carried() -> None:
    bars = bars_at(minutes(*range(5))).with_columns(
        source=pl.Series(SOURCES, dtype=pl.Enum(SOURCES))
    )
    assert resample(bars, [], crypto(), "5m")[0]["source"].to_list() == ["ws"]
    found, _ = resample(bars.head(4), [within(0, 5)], crypto(), "5m")
    assert found["source"].to_list() == ["rest"]


def test_the_factor_is_carried_and_must_not_change_within_a_bar() -> None:
    factors = [1.0] * 5 + [0.5] * 5
    found, _ = resample(bars_at(minutes(*range(10)), adj_factor=factors), [], crypto(), "5m")
    assert found["adj_factor"].to_list() == [1.0, 0.5]
    for wrong in (0.25, None):
        bars = bars_at(minutes(*range(5)), adj_factor=[1.0, 1.0, wrong, 1.0, 1.0])
        with pytest.raises(ValueError, match=r"adj_factor changes .* 2018-01-01 00:00:00 UTC"):
            resample(bars, [], crypto(), "5m")


def test_nothing_gives_nothing() -> None:
    found, confirmed = resample(empty_bars(), [], crypto(), "1h")
    assert_frame_equal(found, empty_bars())
    assert confirmed == []
    assert_frame_equal(resample(bars_at(minutes(3)), [], crypto(), "1h")[0], empty_bars())
    quiet, confirmed = resample(empty_bars(), [within(-30, 130)], crypto(), "1h")
    assert_frame_equal(quiet, empty_bars())
    assert confirmed == [within(0, 120)]


@pytest.mark.parametrize(
    ("series", "timeframe", "message"),
    [
        (crypto(), "2h", "no timeframe '2h'; choose from 1m, 5m"),
        (at_timeframe("1h"), "5m", "bars of 300000 ms cannot be made of bars of 3600000 ms"),
        (stock("AAPL"), "1h", "bars of 3600000 ms cannot be made of bars of 86400000 ms"),
    ],
)
def test_a_timeframe_that_is_no_multiple_is_refused(
    series: SeriesSettings, timeframe: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resample(bars_at([START]), [], series, timeframe)


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="bars of 90000 ms cannot be made of bars of 60000 ms"):
        resample_ms(bars_at([START]), [], "venue.BTC-USD.1m", "24/7", MINUTE, 90_000)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ([START + MINUTE, START], "sorted by ts"),
        ([START, START], "each once"),
        ([START, START + 1_000], "2018-01-01 00:00:01 UTC is not on the 60000 ms grid"),
    ],
)
def test_bars_that_cannot_be_stored_are_refused(at: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample(bars_at(at), [], crypto(), "5m")


def test_hours_of_an_exchange_start_at_its_opening() -> None:
    # 3 July 2023 closed early, at 13:00 New York; the 4th was a holiday.
    at = trading_minutes("XNYS", (2023, 7, 3), (2023, 7, 6))
    found, confirmed = resample(bars_at(at), [], sessions(), "1h")
    half = [ms(2023, 7, 3, 13, 30) + hour * HOUR for hour in range(4)]
    usual = [ms(2023, 7, 5, 13, 30) + hour * HOUR for hour in range(7)]
    assert found["ts"].dt.epoch("ms").to_list() == half + usual
    assert confirmed == [(day[0], day[-1] + HOUR) for day in (half, usual)]
    assert violations(found, sessions("1h"), 2023).is_empty()
    assert coverage(found, confirmed, sessions("1h")).days["unknown"].sum() == 0
    lacking, _ = resample(bars_at(at[:-1]), [], sessions(), "1h")
    assert_frame_equal(lacking, found.head(-1))


def test_a_lunch_break_is_no_gap() -> None:
    at = trading_minutes("XHKG", (2023, 7, 5), (2023, 7, 6))
    found, _ = resample(bars_at(at), [], sessions(calendar="XHKG"), "4h")
    # 09:30 to 12:00 and 13:00 to 16:00 in Hong Kong.
    assert found["ts"].dt.epoch("ms").to_list() == [ms(2023, 7, 5, 1, 30), ms(2023, 7, 5, 5)]
    assert found["volume"].sum() == pytest.approx(bars_at(at)["volume"].sum())


@pytest.mark.parametrize("calendar", ["XNYS", "XASX", "XHKG", "CMES"])
def test_a_day_of_an_exchange_is_a_session(calendar: str) -> None:
    # The summer of Sydney and the futures of Chicago open on the UTC day before.
    at = trading_minutes(calendar, (2023, 1, 10), (2023, 1, 13))
    found, confirmed = resample(bars_at(at), [], sessions(calendar=calendar), "1d")
    days = found["ts"].dt.epoch("ms").to_list()
    assert {ms(2023, 1, 11), ms(2023, 1, 12)} <= set(days)
    assert confirmed == [(days[0], days[-1] + DAY)]
    assert violations(found, sessions("1d", calendar), 2023).is_empty()
    closes = find_calendar(calendar).close_ts(np.array(days), DAY, True)
    bars = bars_at(at).with_columns(pl.col("ts").dt.epoch("ms").alias("ms"))
    last_of_11th = bars.filter(pl.col("ms") < closes[days.index(ms(2023, 1, 11))])[-1]
    assert found["close"][days.index(ms(2023, 1, 11))] == last_of_11th["close"][0]
    by_hours, confirmed_by_hours = resample(
        *resample(bars_at(at), [], sessions(calendar=calendar), "1h"),
        sessions("1h", calendar),
        "1d",
    )
    assert_frame_equal(by_hours, found)
    assert confirmed_by_hours == confirmed


@given(histories(), st.sampled_from(["5m", "15m", "1h", "4h", "1d"]))
def test_the_result_equals_the_slow_oracle(
    history: tuple[pl.DataFrame, Intervals], timeframe: str
) -> None:
    found, confirmed = resample(*history, crypto(), timeframe)
    rows, done = oracle(*history, TIMEFRAME_MS[timeframe] // MINUTE)
    columns = ("open", "high", "low", "close", "volume", "trades")
    assert found.select(pl.col("ts").dt.epoch("ms"), *columns).rows() == rows
    assert confirmed == done


@given(histories(), st.integers(0, 480), st.sampled_from(["5m", "1h", "4h"]))
def test_later_bars_never_change_an_earlier_derived_bar(
    history: tuple[pl.DataFrame, Intervals], cut: int, timeframe: str
) -> None:
    bars, confirmed = history
    until = START + cut * MINUTE
    known = [(start, min(end, until)) for start, end in confirmed]
    early = bars.filter(pl.col("ts").dt.epoch("ms") < until)
    prefix, done = resample(early, known, crypto(), timeframe)
    whole, whole_done = resample(bars, confirmed, crypto(), timeframe)
    last_open = pl.col("ts").dt.epoch("ms") + TIMEFRAME_MS[timeframe]
    assert_frame_equal(prefix, whole.filter(last_open <= until), check_exact=True)
    assert joined([*done, *whole_done]) == tuple(whole_done)


@given(histories(), st.sampled_from(["5m", "1h"]))
def test_deriving_again_changes_nothing(
    history: tuple[pl.DataFrame, Intervals], timeframe: str
) -> None:
    once, confirmed = resample(*history, crypto(), timeframe)
    assert_frame_equal(resample(*history, crypto(), timeframe)[0], once, check_exact=True)
    again, confirmed_again = resample(once, confirmed, at_timeframe(timeframe), timeframe)
    assert_frame_equal(again, once, check_exact=True)
    assert confirmed_again == confirmed


@given(histories(), st.sampled_from(["15m", "1h", "4h"]))
def test_a_step_in_between_changes_nothing(
    history: tuple[pl.DataFrame, Intervals], timeframe: str
) -> None:
    direct, confirmed = resample(*history, crypto(), timeframe)
    fives = resample(*history, crypto(), "5m")
    stepped, confirmed_stepped = resample(*fives, at_timeframe("5m"), timeframe)
    assert_frame_equal(stepped, direct, check_exact=True)
    assert confirmed_stepped == confirmed


def lean(path: Path) -> pl.DataFrame:
    """Bars of a LEAN file of 2016-10-07: milliseconds of the day, prices, volume; no header."""
    with zipfile.ZipFile(path) as archive:
        text = archive.read(archive.namelist()[0])
    raw = pl.read_csv(text, has_header=False, new_columns=LEAN_COLUMNS)
    at = (raw["ms"] + ms(2016, 10, 7)).to_list()
    prices = raw.select(pl.col(LEAN_COLUMNS[1:]).cast(pl.Float64))
    return bars_at(at).with_columns(prices.get_columns())


def test_real_seconds_give_the_real_minutes(shared_data: Path) -> None:
    seconds, expected = (
        lean(shared_data / "lean_crypto" / f"coinbase_{unit}_btcusd_20161007_trade.zip")
        for unit in ("second", "minute")
    )
    day = [(ms(2016, 10, 7), ms(2016, 10, 8))]
    found, confirmed = resample_ms(seconds, day, "coinbase.BTC-USD.1s", "24/7", 1_000, MINUTE)
    assert found.height > 1_000 and confirmed == day
    assert_frame_equal(found.drop("volume"), expected.drop("volume"), check_exact=True)
    assert_frame_equal(found, expected, abs_tol=1e-9, rel_tol=1e-12)


def test_real_minutes_give_the_same_hours_through_fives(shared_data: Path) -> None:
    path = shared_data / "lean_crypto" / "coinbase_minute_btcusd_20161007_trade.zip"
    day = [(ms(2016, 10, 7), ms(2016, 10, 8))]
    direct, _ = resample(lean(path), day, crypto(), "1h")
    stepped, _ = resample(*resample(lean(path), day, crypto(), "5m"), at_timeframe("5m"), "1h")
    assert direct.height == 24
    # Sums of sums round differently.
    assert_frame_equal(stepped, direct, check_exact=False, rel_tol=1e-12)
    assert_frame_equal(stepped.drop("volume"), direct.drop("volume"), check_exact=True)
    assert direct.schema["ts"] == TS
