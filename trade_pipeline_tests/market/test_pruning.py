"""Pruning removes a range of whole bars from a partition, and what is known of it."""

import threading
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trade_pipeline.market import verdicts
from trade_pipeline.market.actions import Action
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.importing import SeriesYear, import_bars, store_batch
from trade_pipeline.market.pruning import prune, whole_bars
from trade_pipeline.market.sources import kraken_http
from trade_pipeline.market.sources.base import (
    Interval,
    SourceBars,
    Surroundings,
    within,
    without,
    year_interval,
)
from trade_pipeline.market.stored import Partition, partition_metadata, read_partition
from trade_pipeline.settings.series import SeriesSettings, start_of_year
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, read_hash, write_frame
from trade_pipeline.storage.location import StorageError
from trade_pipeline_tests.fakes.kraken import Clock, FakeKraken, MadeMarket
from trade_pipeline_tests.market.series import DAY, MINUTE, START, bars_at, crypto, ms

SERIES = crypto()
YEAR = 2018
WHOLE = year_interval(YEAR)
BARS = bars_at([START + n * MINUTE for n in range(100)])
CONFIRMED = ((START, START + 40 * MINUTE), (START + 50 * MINUTE, START + 100 * MINUTE))
HOUR = 60 * MINUTE
KINDS = [
    ("1m", "24/7"),
    ("15m", "24/7"),
    ("4h", "24/7"),
    ("1d", "24/7"),
    ("15m", "XNYS"),
    ("1h", "XNYS"),
    ("4h", "XNYS"),
    ("1d", "XNYS"),
]
ACTIONS = (Action(START + 20 * MINUTE, "split", 2.0), Action(START + 70 * MINUTE, "dividend", 0.1))


def store_bars(store: Path) -> Path:
    location = layout.ohlcv(store, SERIES.key, YEAR)
    write_frame(location, BARS, partition_metadata(CONFIRMED, ACTIONS))
    return location.path


def stored(store: Path) -> Partition:
    return read_partition(layout.ohlcv(store, SERIES.key, YEAR))


def keep(store: Path, check: str, minutes: list[int]) -> None:
    rows = [{"ts": BARS["ts"][minute], "column": "close"} for minute in minutes]
    verdicts.keep(store, check, SERIES.key, YEAR, rows)


def verdict(store: Path, check: str) -> verdicts.Rows:
    return verdicts.read(store, check, SERIES.key, YEAR)


@given(bounds=st.lists(st.integers(-10, 110), min_size=2, max_size=2))
def test_exactly_the_range_goes(
    tmp_path_factory: pytest.TempPathFactory, bounds: list[int]
) -> None:
    store = tmp_path_factory.mktemp("store")
    path = store_bars(store)
    before = path.read_bytes()
    start, end = (START + minute * MINUTE for minute in sorted(bounds))
    done = prune(store, SERIES, YEAR, (start, end))
    left = stored(store)

    opened = BARS["ts"].dt.epoch("ms")
    expected = BARS.filter((opened < start) | (opened >= end))
    assert left.bars.equals(expected)
    assert left.actions == tuple(one for one in ACTIONS if not start <= one.ts_ms < end)
    # Of a time that was confirmed, all that was not pruned still is; of the range, nothing.
    assert within(left.confirmed, start, end) == ()
    kept = [part for one in CONFIRMED for part in without(*one, [(start, end)])]
    assert list(left.confirmed) == kept
    if done is None:
        assert path.read_bytes() == before
        assert expected.height == BARS.height
    else:
        assert done.rows == expected.height
        assert done.removed_bars == BARS.height - expected.height
        assert done.content_hash == read_hash(layout.ohlcv(store, SERIES.key, YEAR))


@pytest.mark.parametrize(
    ("timeframe", "calendar", "asked", "expected"),
    [
        ("1m", "24/7", (30_001, 90_001), (0, 2 * MINUTE)),
        ("1m", "24/7", (MINUTE, 2 * MINUTE), (MINUTE, 2 * MINUTE)),
        ("4h", "24/7", (5 * HOUR, 9 * HOUR), (4 * HOUR, 12 * HOUR)),
        ("1d", "24/7", (DAY, DAY + 1), (DAY, 2 * DAY)),
        ("15m", "XNYS", (20 * MINUTE, 31 * MINUTE), (15 * MINUTE, 45 * MINUTE)),
        # New York opens at 14:30 UTC, and so do its hours.
        ("1h", "XNYS", (DAY + 15 * HOUR, DAY + 16 * HOUR), (DAY, 2 * DAY)),
        ("1d", "XNYS", (DAY - 1, DAY + 1), (0, 2 * DAY)),
    ],
)
def test_a_range_is_widened_to_whole_bars(
    timeframe: str, calendar: str, asked: Interval, expected: Interval
) -> None:
    series = crypto(timeframe=timeframe, calendar=calendar)
    start, end = whole_bars(series, (START + asked[0], START + asked[1]))
    assert (start - START, end - START) == expected


@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize(("timeframe", "calendar"), KINDS)
@given(bounds=st.lists(st.integers(0, 4 * DAY), min_size=2, max_size=2, unique=True))
@example(bounds=[0, DAY + 12 * HOUR + 1])
@example(bounds=[DAY, DAY + 15 * HOUR + 10 * MINUTE])  # New York trades from 14:30 UTC
def test_whatever_is_pruned_comes_back_when_only_what_is_missing_is_given(
    tmp_path_factory: pytest.TempPathFactory, timeframe: str, calendar: str, bounds: list[int]
) -> None:
    series = crypto(timeframe=timeframe, calendar=calendar)
    store = tmp_path_factory.mktemp("store")
    opens = find_calendar(calendar).expected(
        start_of_year(YEAR),
        start_of_year(YEAR).replace(day=10),
        series.timeframe_ms,
        series.is_daily_session,
    )
    bars = bars_at([int(ts) for at, ts in enumerate(opens) if at % 5 != 3])
    confirmed = (START, START + 9 * DAY)
    store_batch(store, series.key, YEAR, SourceBars(bars, (confirmed,), "all"))
    path = layout.ohlcv(store, series.key, YEAR).path
    before = path.read_bytes()

    start, end = sorted(bounds)
    prune(store, series, YEAR, (START + start, START + end))
    missing = without(*confirmed, read_partition(layout.ohlcv(store, series.key, YEAR)).confirmed)
    # As planners do: of what is missing, the bars that lie wholly in it.
    opened = pl.col("ts").dt.epoch("ms")
    for first, stop in missing:
        given_bars = bars.filter((opened >= first) & (opened + series.timeframe_ms <= stop))
        store_batch(store, series.key, YEAR, SourceBars(given_bars, ((first, stop),), "missing"))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("timeframe", "bounds"),
    [("1h", (10 * HOUR + 1, 30 * HOUR + HOUR // 2)), ("1d", (DAY, 2 * DAY + 12 * HOUR))],
)
def test_kraken_is_asked_again_for_all_that_was_pruned(
    tmp_path: Path, timeframe: str, bounds: Interval, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The system may give this fake the port of an earlier one.
    monkeypatch.setattr(kraken_http, "_pair_ids", {})
    now = ms(2025, 1, 5) + 5000
    market = MadeMarket(1, ms(2025, 1, 1), now, trades_per_minute=0.05)
    with FakeKraken(market, Clock(now)) as fake:
        source = {
            "kind": "kraken",
            "symbol": "BTC/USD",
            "base_url": fake.url,
            "calls_per_minute": 1e9,
        }
        series = SeriesSettings.model_validate(
            {
                "key": f"kraken.BTC-USD.{timeframe}",
                "source": source,
                "timeframe": timeframe,
                "first_year": 2025,
                "volume_unit": "base",
            }
        )
        around = Surroundings(
            tmp_path, tmp_path, {}, lambda: now, lambda seconds: None, lambda line: None
        )

        def stored_after_an_import() -> bytes:
            partition = SeriesYear(series.key, 2025)
            assert not import_bars(
                {series.key: series}, [partition], around, None, "trades"
            ).refused
            return layout.ohlcv(tmp_path, series.key, 2025).path.read_bytes()

        before = stored_after_an_import()
        start, end = (ms(2025, 1, 1) + bound for bound in bounds)
        pruned = prune(tmp_path, series, 2025, (start, end))
        assert pruned is not None
        assert pruned.removed_bars
        assert stored_after_an_import() == before


def test_a_year_pruned_whole_stays_as_an_empty_frame_without_verdicts(tmp_path: Path) -> None:
    store_bars(tmp_path)
    for check in verdicts.CHECKS:
        keep(tmp_path, check, [1, 2])
    done = prune(tmp_path, SERIES, YEAR, WHOLE)
    assert done is not None
    assert (done.rows, done.removed_bars) == (0, 100)
    assert stored(tmp_path).bars.is_empty()
    assert stored(tmp_path)[1:] == ((), ())
    assert [verdict(tmp_path, check) for check in verdicts.CHECKS] == [[], [], [], []]
    assert prune(tmp_path, SERIES, YEAR, WHOLE) is None, "there is nothing left to remove"


def test_of_a_year_pruned_in_part_the_verdicts_tell_what_is_left(tmp_path: Path) -> None:
    store_bars(tmp_path)
    keep(tmp_path, verdicts.DIFFERENCES, [5, 30, 80])
    keep(tmp_path, verdicts.OUTLIERS, [5])
    keep(tmp_path, verdicts.VALID, [5])
    prune(tmp_path, SERIES, YEAR, (START, START + 30 * MINUTE))
    differing = [row["ts"] for row in verdict(tmp_path, verdicts.DIFFERENCES)]
    assert differing == [str(BARS["ts"][30]), str(BARS["ts"][80])]
    assert verdict(tmp_path, verdicts.OUTLIERS) == [], "bars that are gone are no outliers"
    assert len(verdict(tmp_path, verdicts.VALID)) == 1, "nothing better was offered since"


def test_what_is_not_stored_is_not_made(tmp_path: Path) -> None:
    assert prune(tmp_path, SERIES, YEAR, WHOLE) is None
    assert list(tmp_path.rglob("*")) == []


def test_a_damaged_year_is_repaired_by_pruning_all_of_it(tmp_path: Path) -> None:
    path = store_bars(tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    damaged = path.read_bytes()
    with pytest.raises(StorageError, match=r"2018\.parquet"):
        prune(tmp_path, SERIES, YEAR, (WHOLE[0] + MINUTE, WHOLE[1]))
    assert path.read_bytes() == damaged
    done = prune(tmp_path, SERIES, YEAR, WHOLE)
    assert done is not None
    assert (done.rows, done.removed_bars) == (0, None)
    assert stored(tmp_path).bars.is_empty()


def test_it_waits_for_whoever_holds_the_partition(tmp_path: Path) -> None:
    store_bars(tmp_path)
    location = layout.ohlcv(tmp_path, SERIES.key, YEAR)
    pruning = threading.Thread(target=prune, args=(tmp_path, SERIES, YEAR, WHOLE))
    with frame_lock(location):
        pruning.start()
        pruning.join(0.3)
        assert pruning.is_alive()
        more = pl.concat([BARS, bars_at([START + 200 * MINUTE])])
        write_frame(location, more, partition_metadata(CONFIRMED, ACTIONS))
    pruning.join()
    assert stored(tmp_path).bars.is_empty(), "what was written meanwhile goes too"
