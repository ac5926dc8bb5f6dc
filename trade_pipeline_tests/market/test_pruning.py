"""Pruning removes exactly a range from a partition, and what is known of it."""

import threading
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.market import verdicts
from trade_pipeline.market.actions import Action
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources.base import within, without, year_interval
from trade_pipeline.market.stored import Partition, partition_metadata, read_partition
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, read_hash, write_frame
from trade_pipeline.storage.location import StorageError
from trade_pipeline_tests.market.series import MINUTE, START, bars_at, crypto

SERIES = crypto()
YEAR = 2018
WHOLE = year_interval(YEAR)
BARS = bars_at([START + n * MINUTE for n in range(100)])
CONFIRMED = ((START, START + 40 * MINUTE), (START + 50 * MINUTE, START + 100 * MINUTE))
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
        prune(tmp_path, SERIES, YEAR, (WHOLE[0] + 1, WHOLE[1]))
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
    pruning.join(10)
    assert stored(tmp_path).bars.is_empty(), "what was written meanwhile goes too"
