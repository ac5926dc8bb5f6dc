"""Files that come one by one and overlap: each time once, and a bad file keeps its year out."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.market.bars import violations
from trade_pipeline.market.importing import Outcome, SeriesYear, import_bars
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources.base import Leg, SourceBars, SourceError, Surroundings
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.market.series import (
    COLUMNS,
    DAY,
    MINUTE,
    START,
    crypto,
    minutes,
    ms,
)

ADJUSTED = COLUMNS | {"adj_close": "adj"}
HEADER = "ts,open,high,low,close,volume\n"


def read(series: SeriesSettings, base: Path) -> SourceBars:
    return source_for(series).read(series, base)


def volumes(times: Sequence[int], volume: float) -> str:
    return HEADER + "".join(f"{time},2,4,1,3,{volume}\n" for time in times)


def run(base: Path, *years: int, path: str = "inbox/*.csv", **source: Any) -> Outcome:
    series = crypto(path, source=source)
    around = Surroundings(
        base, base / "store", {}, lambda: ms(2030, 1, 1), lambda seconds: None, lambda line: None
    )
    wanted = [SeriesYear(series.key, year) for year in years or (2018,)]
    return import_bars({series.key: series}, wanted, around)


def quoted(*bars: tuple[int, float, float | str]) -> str:
    """Minutes from `START` on with a close and an adjusted close."""
    rows = (
        f"{START + at * MINUTE},{close},{close},{close},{close},1,{adj}\n"
        for at, close, adj in bars
    )
    return "ts,open,high,low,close,volume,adj\n" + "".join(rows)


def factors(base: Path, *years: int) -> list[float]:
    """Imports the inbox, which nothing refuses, and gives what is stored of the factor."""
    assert not run(base, *years, columns=ADJUSTED).refused
    kept = [stored(base, year) for year in years or (2018,)]
    return [one for path in kept for one in pl.read_parquet(path)["adj_factor"]]


def stored(base: Path, year: int = 2018) -> Path:
    return layout.ohlcv(base / "store", "venue.BTC-USD.1m", year).path


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


def test_overlapping_files_are_stored_once_and_the_last_one_by_name_counts(
    tmp_path: Path, inbox: Path
) -> None:
    (inbox / "2.csv").write_text(volumes(minutes(3, 4, 8), 2))
    (inbox / "1.csv").write_text(volumes(minutes(0, 1, 2, 3, 9), 1))
    (inbox / "3.csv").write_text(volumes(minutes(4, 5), 3))
    assert not run(tmp_path, missing_bars="quiet").refused
    partition = read_partition(layout.ohlcv(tmp_path / "store", "venue.BTC-USD.1m", 2018))
    assert partition.bars["ts"].dt.epoch("ms").to_list() == minutes(0, 1, 2, 3, 4, 5, 8, 9)
    assert partition.bars["volume"].to_list() == [1, 1, 1, 2, 3, 3, 2, 1]
    assert partition.confirmed == ((START, START + 10 * MINUTE),)


def test_files_are_stored_the_same_whether_they_come_at_once_or_one_by_one(
    tmp_path: Path, inbox: Path
) -> None:
    once = tmp_path / "once"
    (once / "inbox").mkdir(parents=True)
    for name, first in (("1", 0), ("2", 3), ("3", 5)):
        for folder in (inbox, once / "inbox"):
            (folder / f"{name}.csv").write_text(volumes(minutes(first, first + 2), int(name)))
        assert not run(tmp_path).refused
    assert not run(once).refused
    assert stored(tmp_path).read_bytes() == stored(once).read_bytes()
    written = stored(once).stat().st_mtime_ns
    assert not run(once).refused
    assert stored(once).stat().st_mtime_ns == written, "what is known already is not written again"


@settings(max_examples=60)
@given(files=st.lists(st.sets(st.integers(0, 30), min_size=1), min_size=1, max_size=5))
def test_however_files_overlap_each_time_has_the_last_files_bar(
    tmp_path_factory: pytest.TempPathFactory, files: list[set[int]]
) -> None:
    base = tmp_path_factory.mktemp("files")
    new_year = ms(2019, 1, 1) - 15 * MINUTE
    expected = {}
    for number, indexes in enumerate(files):
        times = [new_year + index * MINUTE for index in sorted(indexes)]
        (base / f"{number}.csv").write_text(volumes(times, number))
        expected |= dict.fromkeys(times, float(number))
    batch = read(crypto("*.csv"), base)
    ts = batch.bars["ts"].dt.epoch("ms")
    assert dict(zip(ts, batch.bars["volume"], strict=True)) == expected
    assert ts.to_list() == sorted(expected)
    assert violations(batch.bars, crypto("*.csv"), None).is_empty()


@pytest.mark.parametrize(
    ("times", "rule"),
    [
        (minutes(5, 7, 6), "ts must not be before the row above"),
        (minutes(5, 6, 6), "ts must be unique"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_and_stored_bytes_stay(
    tmp_path: Path, inbox: Path, times: list[int], rule: str
) -> None:
    (inbox / "1.csv").write_text(volumes(minutes(0, 5, 6), 1))
    assert not run(tmp_path).refused
    before = stored(tmp_path).read_bytes()
    (inbox / "0.csv").write_text(volumes(minutes(2, 3), 0))
    (inbox / "2.csv").write_text(volumes(times, 2))
    (inbox / "3.csv").write_text(volumes(minutes(5, 6, 7), 3))
    (refusal,) = run(tmp_path).refused.values()
    assert f"inbox/2.csv, row 4 (2018-01-01 00:0{times[-1] // MINUTE % 10}:00 UTC): {rule}" in (
        refusal.sentence
    )
    assert refusal.rows[0]["file"] == "inbox/2.csv"
    assert stored(tmp_path).read_bytes() == before
    (inbox / "2.csv").unlink()
    assert not run(tmp_path).refused


def test_a_bad_row_keeps_its_year_out_and_only_its_year(tmp_path: Path, inbox: Path) -> None:
    new_year = ms(2019, 1, 1)
    (inbox / "1.csv").write_text(volumes([START, new_year], 1))
    text = volumes([START + MINUTE, new_year + MINUTE], 2)
    (inbox / "2.csv").write_text(text.replace(f"{START + MINUTE},2", f"{START + MINUTE},9"))
    outcome = run(tmp_path, 2018, 2019)
    ((partition, refusal),) = outcome.refused.items()
    assert partition.year == 2018
    assert "inbox/2.csv, row 2 (2018-01-01 00:01:00 UTC): open must not be above high" in (
        refusal.sentence
    )
    assert not stored(tmp_path).exists(), "not even the rows of the good file"
    year = read_partition(layout.ohlcv(tmp_path / "store", "venue.BTC-USD.1m", 2019))
    assert year.bars["volume"].to_list() == [1, 2]


def test_a_later_file_may_correct_the_bad_row_of_an_earlier_one(
    tmp_path: Path, inbox: Path
) -> None:
    (inbox / "1.csv").write_text(
        volumes(minutes(0, 1), 1).replace(",2,4,1,3,1\n", ",9,4,1,3,1\n", 1)
    )
    (refusal,) = run(tmp_path).refused.values()
    assert "inbox/1.csv, row 2" in refusal.sentence
    (inbox / "2.csv").write_text(volumes(minutes(0), 2))
    assert not run(tmp_path).refused
    bars = read_partition(layout.ohlcv(tmp_path / "store", "venue.BTC-USD.1m", 2018)).bars
    assert bars["volume"].to_list() == [2, 1]


def test_a_half_written_file_is_refused_and_stored_bytes_stay(tmp_path: Path, inbox: Path) -> None:
    (inbox / "1.csv").write_text(volumes(minutes(0, 1), 1))
    assert not run(tmp_path).refused
    before = stored(tmp_path).read_bytes()
    (inbox / "2.csv").write_text(volumes(minutes(1, 2, 3), 2)[:-6])
    (refusal,) = run(tmp_path).refused.values()
    assert refusal.sentence.startswith("inbox/2.csv: series venue.BTC-USD.1m: row 4, the last one")
    assert "may still be being written" in refusal.sentence
    assert stored(tmp_path).read_bytes() == before


def test_members_of_one_zip_must_not_overlap(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bars.zip", "w") as archive:
        archive.writestr("a.csv", volumes(minutes(0, 1), 1))
        archive.writestr("b.csv", volumes(minutes(1, 2), 2))
    bad = violations(read(crypto("bars.zip"), tmp_path).bars, crypto(), 2018)
    assert bad.select("file", "row", "rule").rows() == [("bars.zip/b.csv", 2, "ts must be unique")]


@pytest.mark.parametrize(
    "name", [".1.csv", "1.csv.part", "1.csv.TMP", "1.csv.crdownload", "1.csv.download"]
)
def test_a_glob_matches_no_hidden_and_no_unfinished_file(
    tmp_path: Path, inbox: Path, name: str
) -> None:
    (inbox / name).write_text("half a fi")
    for pattern in ("inbox/*", "inbox/.*", "inbox/*.*", "in*/*1.csv*"):
        with pytest.raises(SourceError, match="no file matches"):
            read(crypto(pattern), tmp_path)
    (inbox / "2.csv").write_text(volumes(minutes(0), 1))
    assert read(crypto("inbox/*"), tmp_path).bars.height == 1


def test_a_path_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in (".bars.csv", "bars[1].csv", "bars.part"):
        (tmp_path / name).write_text(volumes(minutes(0), 1))
        assert read(crypto(name), tmp_path).bars.height == 1


def test_a_year_of_daily_files_is_one_batch(tmp_path: Path) -> None:
    for day in range(365):
        (tmp_path / f"{day:03}.csv").write_text(volumes([START + day * DAY], day))
    series = crypto("*.csv")
    around = Surroundings(tmp_path, tmp_path, {}, lambda: 0, lambda s: None, lambda line: None)
    (batch,) = source_for(series).fetch(series, Leg("file", 0, 0), around)
    assert batch.bars.height == 365
    assert batch.origin == "000.csv to 364.csv (365 files)"
    assert batch.notes == ()


def test_rows_that_a_later_file_replaces_are_counted_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(volumes(minutes(0, 1, 2), 1))
    (tmp_path / "b.csv").write_text(volumes(minutes(1, 2, 3), 2))
    notes = read(crypto("*.csv"), tmp_path).notes
    assert notes == ("2 rows of 2018 stand in a later file too, which counts",)


def test_a_bar_that_a_corrected_file_drops_stays_until_it_is_pruned(
    tmp_path: Path, inbox: Path
) -> None:
    (inbox / "1.csv").write_text(volumes(minutes(0, 1, 2, 3), 1))
    assert not run(tmp_path, missing_bars="quiet").refused
    (inbox / "1.csv").write_text(volumes(minutes(0, 1, 3), 1))
    assert not run(tmp_path, missing_bars="quiet").refused
    location = layout.ohlcv(tmp_path / "store", "venue.BTC-USD.1m", 2018)
    assert read_partition(location).bars.height == 4, "merging never deletes"
    assert prune(tmp_path / "store", crypto(), 2018, (START, START + DAY)) is not None
    assert not run(tmp_path, missing_bars="quiet").refused
    again = read_partition(location)
    assert again.bars["ts"].dt.epoch("ms").to_list() == minutes(0, 1, 3)
    assert again.confirmed == ((START, START + 4 * MINUTE),)


def test_the_factor_goes_on_after_an_imported_file_was_moved_away(
    tmp_path: Path, inbox: Path
) -> None:
    (inbox / "1.csv").write_text(quoted((0, 10, 5), (1, 10, 5), (2, 10, 10)))
    assert factors(tmp_path) == [1, 1, 2]
    (inbox / "1.csv").unlink()
    # The provider has halved all adjusted closes since, for a split within the new bars.
    (inbox / "2.csv").write_text(quoted((1, 10, 2.5), (2, 10, 5), (3, 10, 5), (4, 5, 5)))
    assert factors(tmp_path) == [1, 1, 2, 2, 4]


def test_one_bar_in_common_is_enough_and_one_of_another_close_is_none(
    tmp_path: Path, inbox: Path
) -> None:
    (inbox / "1.csv").write_text(quoted((0, 10, 5), (1, 12, 6), (2, 10, 10)))
    assert factors(tmp_path) == [1, 1, 2]
    (inbox / "1.csv").unlink()
    (inbox / "2.csv").write_text(quoted((1, 11, 11), (2, 10, 5), (3, 10, 5)))
    assert factors(tmp_path) == [1, 4, 2, 2]


@pytest.mark.parametrize(
    ("second", "fault"),
    [
        (quoted((3, 10, 10), (4, 10, 10)), "no file has one of the stored bars with its close"),
        (quoted((2, 9, 9), (3, 10, 10)), "no file has one of the stored bars with its close"),
        (quoted((2, 10, "nan"), (3, 10, 10)), "no positive close and adjusted close"),
        (
            quoted((1, 10, 5), (2, 10, 5), (3, 10, 10)),
            "contradict them: at 2018-01-01 00:02 UTC it is stored as 2 and would become 1",
        ),
        # A file of bars before the stored ones, which start at 1 themselves.
        (
            quoted((-1, 10, 2.5), (0, 10, 5)),
            "contradict them: at 2018-01-01 00:00 UTC it is stored as 1 and would become 2",
        ),
        (quoted((-2, 10, 5), (-1, 10, 5)), "no file has one of the stored bars with its close"),
    ],
    ids=["apart", "another close", "no number", "disagree", "older", "older and apart"],
)
def test_a_factor_that_cannot_go_on_is_refused_and_stored_bytes_stay(
    tmp_path: Path, inbox: Path, second: str, fault: str
) -> None:
    (inbox / "1.csv").write_text(quoted((0, 10, 5), (1, 10, 5), (2, 10, 10)))
    assert factors(tmp_path) == [1, 1, 2]
    before = stored(tmp_path).read_bytes()
    (inbox / "1.csv").rename(tmp_path / "1.csv")
    (inbox / "2.csv").write_text(second)
    refused = run(tmp_path, 2017, 2018, columns=ADJUSTED).refused
    for refusal in refused.values():
        assert fault in refusal.sentence
        if "positive" not in fault:
            assert (
                "3 stored bars" in refusal.sentence or "stored bars from 2018" in refusal.sentence
            )
            assert "Put the files back that were imported, or prune" in refusal.sentence
    assert {one.year for one in refused} == {2017, 2018}
    assert stored(tmp_path).read_bytes() == before
    assert not stored(tmp_path, 2017).exists()


def test_a_refused_factor_is_mended_by_putting_the_file_back_or_by_pruning(
    tmp_path: Path, inbox: Path
) -> None:
    first, second = quoted((0, 10, 5), (1, 10, 10)), quoted((2, 10, 10), (3, 10, 10))
    (inbox / "1.csv").write_text(first)
    assert factors(tmp_path) == [1, 2]
    (inbox / "1.csv").unlink()
    (inbox / "2.csv").write_text(second)
    assert run(tmp_path, columns=ADJUSTED).refused
    (inbox / "1.csv").write_text(first)
    assert factors(tmp_path) == [1, 2, 2, 2]
    (inbox / "1.csv").unlink()
    assert factors(tmp_path) == [1, 2, 2, 2], "the second file's bars are stored by now"
    assert prune(tmp_path / "store", crypto(), 2018, (START, START + DAY)) is not None
    assert factors(tmp_path) == [1, 1]


def test_a_rounded_adjusted_close_contradicts_nothing(tmp_path: Path, inbox: Path) -> None:
    (inbox / "1.csv").write_text(quoted((0, 10, 5), (1, 10, 8.33), (2, 11, 9.17)))
    before = factors(tmp_path)
    (inbox / "1.csv").unlink()
    (inbox / "2.csv").write_text(quoted((1, 10, 5.55), (2, 11, 6.11), (3, 11, 6.11)))
    after = factors(tmp_path)
    assert after[:2] == before[:2]
    assert after[2:] == [pytest.approx(before[2], rel=2e-3)] * 2


@settings(max_examples=40)
@given(
    dividends=st.sets(st.integers(1, 19)),
    cuts=st.lists(st.integers(1, 19), min_size=1, max_size=4, unique=True),
    overlap=st.integers(1, 5),
)
def test_however_a_history_comes_in_pieces_that_overlap_its_factor_is_the_wholes(
    tmp_path_factory: pytest.TempPathFactory, dividends: set[int], cuts: list[int], overlap: int
) -> None:
    base = tmp_path_factory.mktemp("pieces")
    (base / "inbox").mkdir()
    # Each dividend is half the price; the provider adjusts all closes before it.
    growth = [2.0 ** sum(one <= at for one in dividends) for at in range(20)]
    start = 0
    for stop in (*sorted(cuts), 20):
        bars = [(at, 8, 8 * growth[at] / growth[stop - 1]) for at in range(start, stop)]
        (base / "inbox" / "latest.csv").write_text(quoted(*bars))
        assert factors(base) == growth[:stop]
        start = max(0, stop - overlap)
