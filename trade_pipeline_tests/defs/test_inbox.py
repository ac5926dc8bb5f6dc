"""The inbox: what is dropped there is imported once, whole, and by content; a failure is not."""

import json
import os
import shutil
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import RUN_KEY_TAG

from trade_pipeline.defs import inbox
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline_tests.defs.test_bad_input import failure_text, spoil, stored_bytes
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA

LONG_AGO_S = 3600


class Inbox:
    """The real sensor of a deployment, ticked by hand; keeps its cursor."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.folder = deployment.root / "inbox"
        self.folder.mkdir()
        self.definitions = build_definitions(deployment.places)
        self.cursor: str | None = None
        self.said = ""

    def drop(self, name: str, content: bytes, age_s: float = LONG_AGO_S) -> Path:
        """A file whose last write was so long ago."""
        path = self.folder / name
        path.write_bytes(content)
        written = time.time() - age_s
        os.utime(path, (written, written))
        return path

    def tick(self) -> list[dg.RunRequest]:
        with dg.build_sensor_context(
            instance=self.deployment.instance, cursor=self.cursor, definitions=self.definitions
        ) as context:
            found = self.definitions.resolve_sensor_def("inbox").evaluate_tick(context)
        self.cursor, self.said = found.cursor, found.skip_message or ""
        return list(found.run_requests or [])

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """Execute a request as the daemon would, which tags the run with its key."""
        assert request.run_key is not None
        return self.definitions.resolve_job_def("backfill_bars").execute_in_process(
            instance=self.deployment.instance,
            run_config=request.run_config,
            tags={**request.tags, RUN_KEY_TAG: request.run_key},
            raise_on_error=False,
        )

    def stored(self, year: int) -> int:
        """Bars of ALPHA that are stored of a year."""
        location = layout.ohlcv(self.deployment.places.store, ALPHA, year)
        return read_partition(location).bars.height if location.path.exists() else 0


@pytest.fixture
def box(empty: Deployment) -> Inbox:
    """ALPHA reads `inbox/alpha*.csv`; BETA stays outside."""
    empty.edit("configs/series.yaml", "data/alpha.csv", "inbox/alpha*.csv")
    return Inbox(empty)


@pytest.fixture
def whole(empty: Deployment) -> bytes:
    """All bars of ALPHA, as a CSV."""
    return (empty.root / "data" / "alpha.csv").read_bytes()


def lines(content: bytes, first: int, last: int) -> bytes:
    """The header and some of the rows of a CSV."""
    header, *rows = content.splitlines(keepends=True)
    return b"".join([header, *rows[first:last]])


def test_a_file_is_imported_once_it_is_quiet(box: Inbox, whole: bytes) -> None:
    assert box.tick() == []
    assert "nothing new" in box.said
    path = box.drop("alpha.csv", whole)
    assert box.tick() == [], "the first tick cannot know whether it grows"
    assert "alpha.csv is new" in box.said
    (request,) = box.tick()
    assert request.run_config["ops"]["backfill"]["config"] == {
        "series": [ALPHA],
        "from": "2020-01-01",
        "to": "",
        "route": "file",
    }
    result = box.run(request)
    assert result.success, failure_text(result)
    assert [box.stored(year) for year in (2020, 2021, 2022)] == [366, 365, 269]
    assert box.tick() == []
    path.touch()
    assert [box.tick() for _ in range(3)] == [[], [], []], "touched, but the same"


def test_a_file_just_written_is_waited_for(box: Inbox, whole: bytes) -> None:
    path = box.drop("alpha.csv", whole, age_s=0)
    assert box.tick() == []
    assert box.tick() == []
    assert "within the last 30 s" in box.said
    os.utime(path, (time.time() - 31, time.time() - 31))
    assert box.tick() == [], "its time changed: somebody is at it"
    assert len(box.tick()) == 1


def test_a_clock_that_runs_ahead_does_not_hold_a_file_back(box: Inbox, whole: bytes) -> None:
    box.drop("alpha.csv", whole, age_s=-7200)
    assert box.tick() == []
    assert len(box.tick()) == 1


def test_a_file_that_grows_is_not_taken(box: Inbox, whole: bytes) -> None:
    for size in (1000, 5000, 20_000):
        box.drop("alpha.csv", whole[:size])
        assert box.tick() == []
        assert "growing" in box.said
    box.drop("alpha.csv", whole)
    assert box.tick() == []
    (request,) = box.tick()
    assert box.run(request).success


def test_a_half_file_fails_and_its_whole_successor_is_imported(box: Inbox, whole: bytes) -> None:
    good = box.drop("alpha.csv", lines(whole, 0, 100))
    box.tick()
    (first,) = box.tick()
    assert box.run(first).success
    assert box.stored(2020) == 100
    before = stored_bytes(box.deployment)

    good.unlink()
    in_a_row = whole.index(b",", whole.index(b"2021-06-01"))
    box.drop("alpha_2.csv", whole[: in_a_row + 3])
    assert box.tick() == []
    (half,) = box.tick()
    assert half.run_key != first.run_key
    result = box.run(half)
    assert not result.success
    assert "alpha_2.csv" in failure_text(result)
    assert stored_bytes(box.deployment) == before
    assert box.tick() == [], "a file that was refused is not tried again"
    assert f"{ALPHA}: the import of the 1 files that lie there now failed" in box.said

    box.drop("alpha_2.csv", whole)
    assert box.tick() == []
    (mended,) = box.tick()
    assert box.run(mended).success
    assert [box.stored(year) for year in (2020, 2021, 2022)] == [366, 365, 269]


def test_a_bad_row_is_named_and_nothing_is_stored(box: Inbox, whole: bytes) -> None:
    path = box.drop("alpha.csv", whole)
    spoil(path, 100, close=0.01)
    os.utime(path, (0, 0))
    box.tick()
    (request,) = box.tick()
    result = box.run(request)
    assert not result.success
    assert all(word in failure_text(result) for word in ("alpha.csv", "102", "close"))
    assert box.stored(2020) == 0


def test_a_renamed_copy_imports_nothing(box: Inbox, whole: bytes) -> None:
    path = box.drop("alpha.csv", whole)
    box.tick()
    (request,) = box.tick()
    assert box.run(request).success
    path.rename(box.folder / "alpha_copy.csv")
    assert [box.tick() for _ in range(3)] == [[], [], []]
    shutil.copy(box.folder / "alpha_copy.csv", box.folder / "alpha_again.csv")
    os.utime(box.folder / "alpha_again.csv", (0, 0))
    assert [box.tick() for _ in range(3)] == [[], [], []]
    # Should the cursor be lost, the run is found by its key.
    box.cursor = None
    assert [box.tick() for _ in range(3)] == [[], [], []]
    assert len(json.loads(box.cursor or "")["imported"]) == 1


def test_what_was_imported_is_known_after_it_is_gone(box: Inbox, whole: bytes) -> None:
    path = box.drop("alpha.csv", whole)
    box.tick()
    (request,) = box.tick()
    assert box.run(request).success
    path.unlink()
    assert box.tick() == []
    assert json.loads(box.cursor or "")["files"] == {}
    box.drop("alpha.csv", whole)
    assert [box.tick() for _ in range(3)] == [[], [], []]


def test_several_new_files_are_one_run_and_wait_for_each_other(box: Inbox, whole: bytes) -> None:
    box.drop("alpha_1.csv", lines(whole, 0, 400))
    box.drop("alpha_2.csv", lines(whole, 400, 500), age_s=0)
    assert box.tick() == []
    assert box.tick() == [], "the source would read the file that is still written to"
    box.drop("alpha_2.csv", lines(whole, 400, 1000))
    assert box.tick() == []
    (request,) = box.tick()
    assert box.run(request).success
    assert [box.stored(year) for year in (2020, 2021, 2022)] == [366, 365, 269]
    assert box.tick() == []


@pytest.mark.parametrize("name", [".alpha.csv", "alpha.csv.part", "alpha.tmp", "alpha.crdownload"])
def test_names_of_unfinished_files_are_passed_over(box: Inbox, whole: bytes, name: str) -> None:
    box.drop(name, whole)
    assert [box.tick() for _ in range(2)] == [[], []]
    assert "nothing new" in box.said


def test_a_file_that_no_series_reads_is_named(box: Inbox, whole: bytes) -> None:
    box.drop("gamma.csv", whole)
    (box.folder / "deep").mkdir()
    box.drop("deep/alpha.csv", whole)
    assert box.tick() == []
    assert "no series reads inbox/deep/alpha.csv, inbox/gamma.csv" in box.said
    assert "configs/series.yaml" in box.said


def test_a_file_of_two_series_is_imported_for_both(empty: Deployment, whole: bytes) -> None:
    empty.edit("configs/series.yaml", "data/alpha.csv", "inbox/*.csv")
    empty.edit("configs/series.yaml", "data/beta.csv", "inbox/all.csv")
    box = Inbox(empty)
    box.drop("all.csv", whole)
    box.tick()
    requests = box.tick()
    chosen = [one.run_config["ops"]["backfill"]["config"] for one in requests]
    assert [(one["series"], one["from"]) for one in chosen] == [
        ([ALPHA], "2020-01-01"),
        ([BETA], "2021-01-01"),
    ]
    # BETA begins in 2021 and refuses the bars before, which is nothing to ALPHA.
    assert [box.run(request).success for request in requests] == [True, False]
    assert box.tick() == []
    assert f"{BETA}: the import" in box.said
    assert ALPHA not in box.said


def test_without_a_series_that_reads_it_the_inbox_says_so(empty: Deployment) -> None:
    box = Inbox(empty)
    assert box.tick() == []
    assert "no series of configs/series.yaml reads files of inbox/" in box.said


def test_a_large_file_is_read_over_several_ticks(
    box: Inbox, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BLOCK", 10_000)
    monkeypatch.setattr(inbox, "TICK_S", 0.0)
    box.drop("alpha.csv", whole)
    ticks = 0
    requests: list[dg.RunRequest] = []
    while not requests:
        requests = box.tick()
        ticks += 1
        assert ticks < 50
    assert ticks == 1 + -(-len(whole) // 10_000)

    # Read at once it is the same content.
    monkeypatch.setattr(inbox, "TICK_S", 20.0)
    box.cursor = None
    box.tick()
    (again,) = box.tick()
    assert again.run_key == requests[0].run_key
    # And another byte in its last block is another content.
    box.drop("alpha.csv", whole[:-2] + b"7\n")
    box.tick()
    (other,) = box.tick()
    assert other.run_key != again.run_key


def test_too_many_files_are_said_to_be_too_many(
    box: Inbox, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "MOST_FILES", 3)
    for n in range(4):
        box.drop(f"alpha_{n}.csv", lines(whole, n, n + 1))
    assert [box.tick() for _ in range(3)] == [[], [], []]
    assert "more than 3 files" in box.said
    (box.folder / "alpha_0.csv").unlink()
    box.tick()
    assert len(box.tick()) == 1


def test_the_cursor_stays_small(box: Inbox, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "MOST_GONE", 2)
    for n in range(6):
        box.drop("alpha.csv", lines(whole, 0, n + 1))
        box.tick()
        (request,) = box.tick()
        assert box.run(request).success
    box.tick()
    kept = json.loads(box.cursor or "")
    assert len(kept["imported"]) == 3, "the one that lies there, and two that are gone"
    assert list(kept["files"]) == ["inbox/alpha.csv"]
    assert kept["asked"] == {}, "no run goes on"


def test_good_files_are_imported_once_the_broken_one_among_them_is_removed(
    box: Inbox, whole: bytes
) -> None:
    box.drop("alpha_1.csv", whole)
    broken = box.drop("alpha_2.csv", whole[:-9] + b"x\n")
    box.tick()
    (both,) = box.tick()
    assert not box.run(both).success
    assert box.stored(2020) == 0
    for _ in range(3):
        assert box.tick() == [], "the same files would be refused again"
        assert f"{ALPHA}: the import of the 2 files that lie there now failed" in box.said
        assert all(word in box.said for word in ("Executing the run again", "backfill"))

    broken.unlink()
    (good,) = box.tick()
    assert box.run(good).success
    assert [box.stored(year) for year in (2020, 2021, 2022)] == [366, 365, 269]
    assert box.tick() == []
    assert box.said == "nothing new in inbox/"

    # The broken one again: these files did fail together, and nothing has changed about that.
    box.drop("alpha_2.csv", whole[:-9] + b"x\n")
    assert [box.tick() for _ in range(3)] == [[], [], []]
    assert "failed" in box.said


def test_what_failed_counts_as_imported_once_its_run_was_executed_again(
    box: Inbox, whole: bytes
) -> None:
    box.drop("alpha.csv", whole)
    box.tick()
    (request,) = box.tick()
    box.deployment.places.store.mkdir()
    (box.deployment.places.store / "verdicts").write_text("")  # the store cannot be written
    assert not box.run(request).success
    assert box.tick() == []
    assert "failed" in box.said
    (box.deployment.places.store / "verdicts").unlink()
    assert box.run(request).success
    assert box.tick() == []
    assert box.said == "nothing new in inbox/"


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_nothing_is_asked_of_a_series_while_its_run_goes_on(
    box: Inbox, whole: bytes, status: dg.DagsterRunStatus
) -> None:
    first = box.drop("alpha_1.csv", lines(whole, 0, 400))
    box.tick()
    (request,) = box.tick()
    run = box.deployment.instance.create_run_for_job(
        box.definitions.resolve_job_def("backfill_bars"),
        run_config=request.run_config,
        tags={RUN_KEY_TAG: request.run_key or ""},
        status=status,
    )
    box.drop("alpha_2.csv", lines(whole, 400, 1000))
    assert [box.tick() for _ in range(3)] == [[], [], []]
    assert f"{ALPHA}: run {run.run_id[:8]} is importing" in box.said

    box.deployment.instance.delete_run(run.run_id)
    assert box.run(request).success
    (both,) = box.tick()
    assert both.run_key != request.run_key
    # What the first run read is imported by now, wherever the second one is.
    (box.folder / "alpha_2.csv").unlink()
    assert box.tick() == []
    assert box.said == "nothing new in inbox/"
    assert first.exists()


def test_a_request_that_never_became_a_run_is_made_again(box: Inbox, whole: bytes) -> None:
    box.drop("alpha.csv", whole)
    box.tick()
    (lost,) = box.tick()
    (again,) = box.tick()
    assert again.run_key == lost.run_key


def test_a_cursor_of_an_older_release_is_read_and_what_failed_then_is_asked_for(
    box: Inbox, whole: bytes
) -> None:
    path = box.drop("alpha.csv", whole)
    box.tick()
    files = json.loads(box.cursor or "")["files"]
    taken = [inbox._named(ALPHA, inbox._digest(whole.decode()))]
    box.cursor = json.dumps({"files": files, "taken": taken})
    assert len(box.tick()) == 1
    assert "taken" not in json.loads(box.cursor or "")
    path.unlink()
    box.cursor = "{}"
    assert box.tick() == []


def test_the_routes_it_asks_for_exist() -> None:
    sources = (
        {"kind": "file", "path": "inbox/a.csv", "columns": dict.fromkeys(inbox_columns(), 0)},
        {"kind": "kraken", "symbol": "BTC/USD", "ohlcvt_zip": "inbox/K*.zip"},
        {"kind": "kraken", "symbol": "BTC/USD", "trades_zip": "inbox/T*.zip"},
    )
    for source in sources:
        series = SeriesSettings.model_validate(
            {
                "key": "venue.BTC-USD.1m",
                "source": source,
                "timeframe": "1m",
                "first_year": 2020,
                "volume_unit": "base",
            }
        )
        watched = inbox._watched(series, Path("/project"))
        assert len(watched.paths) == 1
        assert watched.route in source_for(series).routes(series)
    outside = series.model_copy(
        update={"source": series.source.model_copy(update={"trades_zip": "data/T*.zip"})}
    )
    assert inbox._watched(outside, Path("/project")).paths == ()


def inbox_columns() -> tuple[str, ...]:
    return ("ts", "open", "high", "low", "close", "volume")
