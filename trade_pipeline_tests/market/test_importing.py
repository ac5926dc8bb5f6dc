"""What an import promises of partitions: nothing lost, nothing twice, whatever the order."""

import errno
import itertools
import multiprocessing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market import verdicts
from trade_pipeline.market.bars import BAR_SCHEMA, SOURCES
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars, store_batch
from trade_pipeline.market.sources.base import SourceBars, Surroundings, without
from trade_pipeline.market.stored import (
    read_bars,
    read_confirmed,
    read_partition,
    read_window,
)
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout

from .series import MINUTE, START, bars_at, crypto, minutes, ms

KEY = "venue.BTC-USD.1m"
SPAN = 40
LATER = ms(2030, 1, 1)
# What each source would answer about each minute; no two agree, and some minutes had no trade.
TRUTH = {
    source: bars_at([m for m in minutes(*range(SPAN)) if m % 7], source=source, volume=float(rank))
    for rank, source in enumerate(SOURCES)
}


def surroundings(root: Path, now_ms: int = LATER) -> Surroundings:
    return Surroundings(
        base=root,
        store=root / "store",
        environment={},
        now_ms=lambda: now_ms,
        sleep=lambda seconds: None,
        log=lambda line: None,
    )


def answer(source: str, first: int, stop: int) -> SourceBars:
    """What a source says of the minutes [first, stop)."""
    start, end = START + first * MINUTE, START + stop * MINUTE
    epoch = pl.col("ts").dt.epoch("ms")
    bars = TRUTH[source].filter(epoch >= start, epoch < end)
    return SourceBars(bars, ((start, end),), origin=source)


window = st.tuples(st.sampled_from(SOURCES), st.integers(0, SPAN - 1), st.integers(1, SPAN)).map(
    lambda one: (one[0], one[1], min(one[1] + one[2], SPAN))
)


@settings(max_examples=60)
@given(windows=st.lists(window, min_size=1, max_size=6), data=st.data())
def test_any_interleaving_of_overlapping_windows_gives_the_same_partition(
    tmp_path_factory: pytest.TempPathFactory,
    windows: list[tuple[str, int, int]],
    data: st.DataObject,
) -> None:
    files = []
    for order in (windows, data.draw(st.permutations(windows))):
        store = tmp_path_factory.mktemp("store")
        for one in order:
            store_batch(store, KEY, 2018, answer(*one))
        files.append(layout.ohlcv(store, KEY, 2018).path.read_bytes())
    assert files[0] == files[1]


@settings(max_examples=30)
@given(cuts=st.sets(st.integers(1, SPAN - 1), max_size=8))
def test_how_a_crawl_is_cut_into_batches_changes_no_byte(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int]
) -> None:
    whole, parts = (tmp_path_factory.mktemp(name) for name in ("whole", "parts"))
    store_batch(whole, KEY, 2018, answer("rest", 0, SPAN))
    edges = [0, *sorted(cuts), SPAN]
    for first, stop in itertools.pairwise(edges):
        store_batch(parts, KEY, 2018, answer("rest", first, stop))
    one, other = (layout.ohlcv(store, KEY, 2018).path.read_bytes() for store in (whole, parts))
    assert one == other


def test_storing_the_same_answer_again_does_not_touch_the_file(tmp_path: Path) -> None:
    assert store_batch(tmp_path, KEY, 2018, answer("rest", 0, 20)) == 17
    path = layout.ohlcv(tmp_path, KEY, 2018).path
    before = path.stat().st_mtime_ns
    assert store_batch(tmp_path, KEY, 2018, answer("rest", 5, 15)) == 0
    assert path.stat().st_mtime_ns == before


def write_half(store: Path, first: int, stop: int, rounds: int) -> None:
    """Store the minutes [first, stop), a few in each of so many writes."""
    for turn in range(rounds):
        at = first + turn * (stop - first) // rounds
        end = first + (turn + 1) * (stop - first) // rounds
        store_batch(store, KEY, 2018, answer_long(at, end))


def answer_long(first: int, stop: int) -> SourceBars:
    times = minutes(*range(first, stop))
    confirmed = ((START + first * MINUTE, START + stop * MINUTE),)
    return SourceBars(bars_at(times, source="rest"), confirmed, origin="rest")


def test_two_processes_writing_overlapping_halves_200_times_lose_no_bar(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=write_half, args=(tmp_path, first, stop, 200))
        for first, stop in ((0, 1200), (800, 2000))
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join(timeout=300)
    assert [one.exitcode for one in writers] == [0, 0]
    stored = read_partition(layout.ohlcv(tmp_path, KEY, 2018))
    assert stored.bars["ts"].dt.epoch("ms").to_list() == minutes(*range(2000))
    assert stored.confirmed == ((START, START + 2000 * MINUTE),)


def test_sources_that_disagree_are_reported_bar_by_bar_until_they_agree(tmp_path: Path) -> None:
    store_batch(tmp_path, KEY, 2018, answer("trades", 0, 6))
    store_batch(tmp_path, KEY, 2018, answer("rest", 3, 10))
    rows = verdicts.read(tmp_path, verdicts.DIFFERENCES, KEY, 2018)
    assert [(row["ts"][11:16], row["column"]) for row in rows] == [
        ("00:03", "volume"),
        ("00:04", "volume"),
        ("00:05", "volume"),
    ]
    assert (rows[0]["stored_source"], rows[0]["stored"]) == ("trades", "2.0")
    assert (rows[0]["incoming_source"], rows[0]["incoming"]) == ("rest", "3.0")
    store_batch(tmp_path, KEY, 2018, answer("trades", 0, 6))
    rows = verdicts.read(tmp_path, verdicts.DIFFERENCES, KEY, 2018)
    assert len(rows) == 3, "the better source again says nothing of the other"

    agreed = answer("trades", 3, 4).bars.with_columns(
        source=pl.lit("rest").cast(BAR_SCHEMA["source"])
    )
    store_batch(tmp_path, KEY, 2018, replace(answer("rest", 3, 4), bars=agreed))
    rows = verdicts.read(tmp_path, verdicts.DIFFERENCES, KEY, 2018)
    assert [row["ts"][11:16] for row in rows] == ["00:04", "00:05"]


@given(data=st.data())
def test_what_is_missing_and_what_is_confirmed_make_the_whole(data: st.DataObject) -> None:
    bound = st.integers(0, 30)
    intervals = data.draw(st.lists(st.tuples(bound, bound), max_size=5))
    start, end = sorted((data.draw(bound), data.draw(bound)))
    missing = without(start, end, intervals)
    inside = {t for a, b in missing for t in range(a, b)}
    assert inside == set(range(start, end)) - {t for a, b in intervals for t in range(a, b)}
    assert len(inside) == sum(b - a for a, b in missing)


HOUR = {"key": "venue.BTC-USD.1h", "timeframe": "1h", "first_year": 2010, "volume_unit": "base"}


def hourly(**changes: object) -> SeriesSettings:
    source = {"kind": "derived", "derived_from": KEY}
    return SeriesSettings.model_validate({**HOUR, "source": source, **changes})


def run_import(root: Path, *partitions: SeriesYear, now_ms: int = LATER) -> Outcome:
    series = {KEY: crypto("bars.csv"), HOUR["key"]: hourly()}
    return import_bars(series, partitions, surroundings(root, now_ms))


def test_a_derived_series_holds_the_complete_bars_of_its_origin_and_follows_it(
    tmp_path: Path,
) -> None:
    derived = SeriesYear(str(HOUR["key"]), 2018)
    (sentence,) = [one.sentence for one in run_import(tmp_path, derived).refused.values()]
    assert f"nothing of {KEY}" in sentence

    origin = answer_long(0, 150)  # two hours and a half
    store_batch(tmp_path / "store", KEY, 2018, origin)
    outcome = run_import(tmp_path, derived)
    assert not outcome.refused
    bars = read_bars(tmp_path / "store", derived.series).bars
    assert bars["ts"].dt.epoch("ms").to_list() == [START, START + 60 * MINUTE]
    assert bars["open"][0] == origin.bars["open"][0]
    assert bars["close"][1] == origin.bars["close"][119]
    assert read_confirmed(layout.ohlcv(tmp_path / "store", derived.series, 2018)) == (
        (START, START + 120 * MINUTE),
    )

    layout.ohlcv(tmp_path / "store", KEY, 2018).path.unlink()
    store_batch(tmp_path / "store", KEY, 2018, answer_long(60, 180))
    assert not run_import(tmp_path, derived).refused
    bars = read_bars(tmp_path / "store", derived.series).bars
    assert bars["ts"].dt.epoch("ms").to_list() == [START + 60 * MINUTE, START + 120 * MINUTE], (
        "an hour that its origin lost must not stay"
    )


def test_derived_years_of_one_run_stay_beside_each_other(tmp_path: Path) -> None:
    for year in (2018, 2019):
        times = [ms(year, 6, 1) + n * MINUTE for n in range(120)]
        batch = SourceBars(bars_at(times, source="rest"), (), origin="rest")
        store_batch(tmp_path / "store", KEY, year, batch)
    years = [SeriesYear(str(HOUR["key"]), year) for year in (2018, 2019)]
    for _ in range(2):
        outcome = run_import(tmp_path, *years)
        rows = [found["dagster/row_count"] for found in outcome.committed.values()]
        assert rows == [2, 2]


def test_the_bar_that_is_still_open_is_left_out_and_one_of_the_future_refused(
    tmp_path: Path,
) -> None:
    def offer(*at: int) -> Outcome:
        lines = "".join(f"{t},2,4,1,3,10\n" for t in minutes(*at))
        (tmp_path / "bars.csv").write_text("ts,open,high,low,close,volume\n" + lines)
        return run_import(tmp_path, SeriesYear(KEY, 2018), now_ms=START + 90_000)

    assert not offer(0, 1).refused
    assert read_bars(tmp_path / "store", KEY).bars["ts"].dt.epoch("ms").to_list() == minutes(0)
    (refusal,) = offer(0, 1, 2).refused.values()
    assert "row 4" in refusal.sentence
    assert "ts must not lie in the future" in refusal.sentence


def test_a_refusal_stands_until_its_rows_are_offered_again(tmp_path: Path) -> None:
    good = "ts,open,high,low,close,volume\n" + f"{START},2,4,1,3,10\n"
    (tmp_path / "bars.csv").write_text(good.replace(",4,", ",0.5,"))
    assert run_import(tmp_path, SeriesYear(KEY, 2018)).refused
    store = tmp_path / "store"
    assert verdicts.read(store, verdicts.VALID, KEY, 2018)
    (tmp_path / "bars.csv").unlink()
    assert run_import(tmp_path, SeriesYear(KEY, 2018)).refused
    (tmp_path / "bars.csv").write_text(good)
    assert not run_import(tmp_path, SeriesYear(KEY, 2018)).refused
    assert not verdicts.read(store, verdicts.VALID, KEY, 2018)


def read_while_written(store: Path, reads: Any, written: Any) -> None:
    """Fails when bars and confirmed intervals of two writes are mixed, or a read is refused."""
    while not written.is_set():
        stored = read_partition(layout.ohlcv(store, KEY, 2018))
        ((start, end),) = stored.confirmed
        assert stored.bars.height == (end - start) // MINUTE
        assert read_window(store, KEY, START, START + 3 * MINUTE).height == 3
        reads.value += 1


def test_readers_beside_a_writer_see_one_version_or_the_other(tmp_path: Path) -> None:
    store_batch(tmp_path, KEY, 2018, answer_long(0, 5))
    context = multiprocessing.get_context("spawn")
    reads, written = context.Value("i", 0), context.Event()
    reader = context.Process(target=read_while_written, args=(tmp_path, reads, written))
    reader.start()
    at = 5
    while reader.is_alive() and (reads.value < 20 or at < 100):
        store_batch(tmp_path, KEY, 2018, answer_long(at, at + 1))
        at += 1
    written.set()
    reader.join()
    assert reader.exitcode == 0


def test_a_year_that_its_series_has_no_bar_of_is_an_empty_partition(tmp_path: Path) -> None:
    lines = "".join(f"{t},2,4,1,3,10\n" for t in minutes(0, 1, 2))
    (tmp_path / "bars.csv").write_text("ts,open,high,low,close,volume\n" + lines)
    outcome = run_import(tmp_path, SeriesYear(KEY, 2017), SeriesYear(KEY, 2018))
    rows = {one.year: found["dagster/row_count"] for one, found in outcome.committed.items()}
    assert rows == {2017: 0, 2018: 3}
    assert "file 2017-01-01 00:00" in outcome.committed[SeriesYear(KEY, 2018)]["plan"]


def test_a_disk_that_fills_up_is_named_and_changes_nothing_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "ts,open,high,low,close,volume\n"
    (tmp_path / "bars.csv").write_text(head + f"{START},2,4,1,3,10\n")
    assert not run_import(tmp_path, SeriesYear(KEY, 2018)).refused
    path = layout.ohlcv(tmp_path / "store", KEY, 2018).path
    before = path.read_bytes()
    (tmp_path / "bars.csv").write_text(head + f"{START},2,4,1,3,99\n")

    def full(file: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = run_import(tmp_path, SeriesYear(KEY, 2018))
    (refusal,) = outcome.refused.values()
    assert "2018.parquet: cannot be written, the disk is full" in refusal.sentence
    assert "make room" in refusal.sentence
    assert not outcome.committed
    assert path.read_bytes() == before
    assert sorted(one.name for one in path.parent.iterdir()) == [".2018.parquet.lock", path.name]


def test_a_bar_of_a_time_that_another_source_calls_quiet_is_a_difference(tmp_path: Path) -> None:
    known = answer("trades", 0, 7)
    (quiet,) = set(minutes(*range(7))) - set(known.bars["ts"].dt.epoch("ms"))
    traded = int(known.bars["ts"].dt.epoch("ms")[0])
    store_batch(tmp_path, KEY, 2018, known)
    other = SourceBars(
        bars_at([t for t in minutes(*range(7)) if t != traded], source="rest"),
        ((START, START + 7 * MINUTE),),
        origin="rest",
    )
    store_batch(tmp_path, KEY, 2018, other)
    rows = verdicts.read(tmp_path, verdicts.DIFFERENCES, KEY, 2018)
    told = {
        row["ts"]: (row["stored_source"], row["incoming_source"])
        for row in rows
        if row["column"] == "bar"
    }
    at = {t: str(datetime.fromtimestamp(t / 1000, UTC)) for t in (quiet, traded)}
    assert told == {at[quiet]: ("quiet", "rest"), at[traded]: ("trades", "quiet")}


def test_years_before_the_first_one_are_empty_and_nobody_is_asked(tmp_path: Path) -> None:
    series = SeriesSettings.model_validate(
        {
            "key": "kraken.BTC-USD.1m",
            "source": {"kind": "kraken", "symbol": "BTC/USD", "base_url": "http://127.0.0.1:9"},
            "timeframe": "1m",
            "first_year": 2025,
            "volume_unit": "base",
        }
    )
    early = SeriesYear(series.key, 2024)
    outcome = import_bars({series.key: series}, [early], surroundings(tmp_path))
    assert outcome.committed[early]["dagster/row_count"] == 0
    assert outcome.committed[early]["plan"] == "nothing to fetch"
