"""The sensor `derived_bars`: a derived year is made again when what it is made from has changed."""

import json
from datetime import UTC, datetime

import dagster as dg
import numpy as np
import polars as pl
import pytest

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.stored import partition_metadata, read_partition
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import write_frame
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import series_entry, write_yaml

HOURS, SHARES = "made.BTC.1h", "made.STOCK.1h"
DERIVED, SESSIONS = "made.BTC.4h", "made.STOCK.1d"


def hourly(calendar: str) -> pl.DataFrame:
    """Hours of 2020 and 2021 as a CSV would have them."""
    first, end = datetime(2020, 12, 1, tzinfo=UTC), datetime(2021, 2, 1, tzinfo=UTC)
    opened = find_calendar(calendar).expected(first, end, 3_600_000, False)
    price = 100 + np.arange(len(opened)) % 7
    return pl.DataFrame(
        {
            "ts": opened,
            "open": price,
            "high": price + 2,
            "low": price - 2,
            "close": price + 1,
            "volume": 1.0,
        }
    )


def origin(key: str, file: str, calendar: str) -> dict[str, object]:
    entry = series_entry(key, file, 2020)
    source = {**entry["source"], "time_unit": "ms", "missing_bars": "quiet"}  # type: ignore[dict-item]
    return {**entry, "source": source, "timeframe": "1h", "calendar": calendar}


def derived(key: str, timeframe: str, entry: dict[str, object]) -> dict[str, object]:
    source = {"kind": "derived", "derived_from": entry["key"]}
    return {**entry, "key": key, "source": source, "timeframe": timeframe}


class Follower:
    """The real sensor of a project with hours and what is derived from them; ticked by hand."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.instance = dg.DagsterInstance.ephemeral()  # quicker: these tests are many runs
        data, configs = deployment.root / "data", deployment.places.configs
        hourly("24/7").write_csv(data / "hours.csv")
        hourly("XNYS").write_csv(data / "shares.csv")
        hours, shares = origin(HOURS, "hours.csv", "24/7"), origin(SHARES, "shares.csv", "XNYS")
        series = [hours, shares, derived(DERIVED, "4h", hours), derived(SESSIONS, "1d", shares)]
        write_yaml(configs / "series.yaml", {"series": series})
        for file in (configs / "experiments").glob("*.yaml"):
            file.unlink()
        self.definitions = build_definitions(deployment.places)
        self.cursor: str | None = None
        self.said = ""

    def tick(self) -> list[dg.RunRequest]:
        with dg.build_sensor_context(
            instance=self.instance, cursor=self.cursor, definitions=self.definitions
        ) as context:
            found = self.definitions.resolve_sensor_def("derived_bars").evaluate_tick(context)
        self.cursor, self.said = found.cursor, found.skip_message or ""
        return list(found.run_requests or [])

    def partitions(self) -> list[str | None]:
        """What one tick asks for."""
        return [request.partition_key for request in self.tick()]

    def run(self, request: dg.RunRequest) -> bool:
        """Execute a request as the daemon would."""
        assert request.partition_key is not None
        return self.refresh(request.partition_key)

    def refresh(self, partition: str) -> bool:
        """Import one partition."""
        job = self.definitions.resolve_job_def("refresh_bars")
        return job.execute_in_process(
            instance=self.instance, partition_key=partition, raise_on_error=False
        ).success

    def import_year(self, key: str, year: int) -> None:
        assert self.refresh(f"{key}|{year}")

    def change(self, key: str, year: int, volume: float) -> None:
        """Another volume in the second bar of a year, imported."""
        path = self.deployment.root / "data" / ("hours.csv" if key == HOURS else "shares.csv")
        frame = pl.read_csv(path)
        opened = pl.from_epoch("ts", time_unit="ms").dt.year()
        second = (opened == year) & (pl.int_range(pl.len()).over(opened) == 1)
        changed = pl.when(second).then(volume).otherwise("volume")
        frame.with_columns(volume=changed).write_csv(path)
        self.import_year(key, year)

    def bars(self, key: str, year: int) -> pl.DataFrame:
        return read_partition(layout.ohlcv(self.deployment.places.store, key, year)).bars


@pytest.fixture
def follower(empty: Deployment) -> Follower:
    return Follower(empty)


def test_each_stored_year_of_the_origin_is_derived_once(follower: Follower) -> None:
    assert follower.tick() == []
    follower.import_year(HOURS, 2020)
    follower.import_year(HOURS, 2021)
    requests = follower.tick()
    assert [one.partition_key for one in requests] == [f"{DERIVED}|2020", f"{DERIVED}|2021"]
    assert all(follower.run(one) for one in requests)
    assert follower.bars(DERIVED, 2020).height == 31 * 6
    assert follower.bars(DERIVED, 2021).height == 31 * 6
    assert follower.tick() == []
    assert "up with" in follower.said
    follower.import_year(HOURS, 2021)
    assert follower.tick() == [], "imported again, but the same bars"


def test_a_corrected_year_is_derived_again(follower: Follower) -> None:
    for year in (2020, 2021):
        follower.import_year(HOURS, year)
    for request in follower.tick():
        follower.run(request)
    follower.change(HOURS, 2020, 5.0)
    (request,) = follower.tick()
    assert request.partition_key == f"{DERIVED}|2020"
    assert follower.run(request)
    assert follower.bars(DERIVED, 2020)["volume"][0] == 8.0
    assert follower.tick() == []


def test_bars_that_return_to_what_they_were_are_derived_again(follower: Follower) -> None:
    keys = []
    for volume in (1.0, 2.0, 1.0):
        follower.change(HOURS, 2020, volume)
        (request,) = follower.tick()
        keys.append(request.run_key)
    # Dagster starts nothing for a run key that it has seen.
    assert len(set(keys)) == 3


def test_sessions_depend_on_the_years_beside(follower: Follower) -> None:
    follower.import_year(SHARES, 2020)
    assert follower.partitions() == [f"{SESSIONS}|2020"]
    follower.import_year(SHARES, 2021)
    assert follower.partitions() == [f"{SESSIONS}|2020", f"{SESSIONS}|2021"]
    follower.change(SHARES, 2021, 5.0)
    requests = follower.tick()
    assert [one.partition_key for one in requests] == [f"{SESSIONS}|2020", f"{SESSIONS}|2021"]
    assert all(follower.run(one) for one in requests)
    assert follower.bars(SESSIONS, 2021).height == 19  # sessions of XNYS in January 2021


def test_an_import_that_is_still_writing_is_waited_for(follower: Follower) -> None:
    follower.import_year(HOURS, 2020)
    follower.tick()
    # A batch is stored, and its run has not recorded the partition yet.
    stored = follower.bars(HOURS, 2020)
    location = layout.ohlcv(follower.deployment.places.store, HOURS, 2020)
    write_frame(location, stored.head(100), partition_metadata((), ()))
    assert follower.tick() == []
    assert f"{HOURS}|2020: its bars are not recorded yet" in follower.said
    follower.import_year(HOURS, 2020)
    assert follower.tick() == [], "the run ended with the bars of before"


def test_a_damaged_origin_leaves_the_others_alone(follower: Follower) -> None:
    follower.import_year(HOURS, 2020)
    follower.import_year(SHARES, 2020)
    location = layout.ohlcv(follower.deployment.places.store, HOURS, 2020)
    location.path.write_bytes(b"no parquet")
    assert follower.partitions() == [f"{SESSIONS}|2020"]
    assert follower.tick() == []
    assert "2020.parquet: cannot be read" in follower.said


def test_a_derived_year_follows_a_backfill_and_a_prune(follower: Follower) -> None:
    def start(job: str, op: str, **more: object) -> None:
        config = {"series": [HOURS], "from": "2020-01-01", "to": "2021-01-01", **more}
        done = follower.definitions.resolve_job_def(job).execute_in_process(
            instance=follower.instance, run_config={"ops": {op: {"config": config}}}
        )
        assert done.success

    start("backfill_bars", "backfill")
    (request,) = follower.tick()
    assert follower.run(request)
    start("prune_bars", "prune", confirm=True)
    (request,) = follower.tick()
    assert follower.run(request)
    assert follower.bars(DERIVED, 2020).is_empty()


def test_without_a_derived_series_it_says_so(empty: Deployment) -> None:
    definitions = build_definitions(empty.places)
    with dg.build_sensor_context(instance=empty.instance, definitions=definitions) as context:
        found = definitions.resolve_sensor_def("derived_bars").evaluate_tick(context)
    assert "no series of configs/series.yaml is derived" in (found.skip_message or "")


def test_the_cursor_forgets_series_that_are_gone(follower: Follower) -> None:
    follower.import_year(HOURS, 2020)
    follower.tick()
    kept = json.loads(follower.cursor or "")
    assert list(kept) == [f"{DERIVED}|2020"]
    follower.cursor = json.dumps({**kept, "made.GONE.1d|2020": ["abc", 1]})
    assert follower.tick() == []
    assert json.loads(follower.cursor or "") == kept
