"""What the sensor `follow_new_bars` starts, tick by tick, over a real event log."""

from collections.abc import Callable
from datetime import UTC, datetime

import dagster as dg
import polars as pl
import pytest
from dagster._core.definitions.data_version import StaleStatus
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run_iterator

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.storage import layout
from trade_pipeline_tests.defs.staleness import stale, statuses, version
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import (
    ALPHA,
    BETA,
    import_bars,
    materialize,
    write_yaml,
)

SENSOR = "follow_new_bars"
FOLLOWERS = ("features/tiny", "manifest")
THIS_YEAR = str(datetime.now(UTC).year)

Wanted = dict[str, tuple[str, ...]]  # series to the assets of one run
NOTHING: Wanted = {}


class Follower:
    """The sensor with its cursor, as the daemon would keep it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.cursor: str | None = None

    def tick(self) -> Wanted:
        """What one tick asks for; nothing is started."""
        repository = build_definitions(self.deployment.places).get_repository_def()
        context = dg.build_sensor_context(
            self.deployment.instance, cursor=self.cursor, repository_def=repository
        )
        ticked = repository.get_sensor_def(SENSOR).evaluate_tick(context)
        self.cursor = ticked.cursor
        wanted: Wanted = {}
        for request in ticked.run_requests or []:
            assert request.partition_key not in wanted, "one run a series"
            assets = [key.to_user_string() for key in request.asset_selection or []]
            wanted[str(request.partition_key)] = tuple(sorted(assets))
        return wanted

    def run(self, wanted: Wanted) -> bool:
        """Start what was asked for; whether all of it succeeded."""
        places, instance = self.deployment.places, self.deployment.instance
        done = [materialize(places, instance, *what, first=who) for who, what in wanted.items()]
        return all(one.success for one in done)


@pytest.fixture
def follower(imported: Deployment) -> Follower:
    """On a project in which everything was made, before the first tick."""
    return Follower(imported)


def change_csv(
    deployment: Deployment, file: str, edit: Callable[[pl.DataFrame], pl.DataFrame]
) -> None:
    path = deployment.root / "data" / file
    edit(pl.read_csv(path)).write_csv(path)


def import_years(deployment: Deployment, series: str, first: str, last: str) -> None:
    keys = {"first": f"{series}|{first}", "last": f"{series}|{last}"}
    assert materialize(deployment.places, deployment.instance, "ohlcv", **keys).success


def import_year(deployment: Deployment, series: str, year: str) -> None:
    key = f"{series}|{year}"
    assert materialize(deployment.places, deployment.instance, "ohlcv", first=key).success


def cheaper_close(frame: pl.DataFrame) -> pl.DataFrame:
    """One close of 2021 corrected."""
    close = pl.when(pl.col("ts") == "2021-06-01T00:00:00").then(pl.col("low")).otherwise("close")
    return frame.with_columns(close=close)


def assert_all_fresh(deployment: Deployment) -> None:
    found = statuses(deployment)
    data = [name for name in found if name.startswith(("ohlcv", "manifest", "features"))]
    assert {found[name] for name in data} == {StaleStatus.FRESH}


def test_what_is_up_to_date_starts_nothing(follower: Follower) -> None:
    assert [follower.tick() for _ in range(3)] == [NOTHING] * 3


def test_a_late_series_is_the_only_one_that_is_made(empty: Deployment) -> None:
    follower = Follower(empty)
    assert follower.tick() == NOTHING, "nothing is imported"
    import_years(empty, ALPHA, "2020", THIS_YEAR)
    assert (wanted := follower.tick()) == {ALPHA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING

    import_years(empty, BETA, "2020", THIS_YEAR)
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(empty)


def test_a_corrected_old_year_makes_exactly_its_series_again(follower: Follower) -> None:
    deployment = follower.deployment
    assert follower.tick() == NOTHING
    change_csv(deployment, "beta.csv", cheaper_close)
    import_year(deployment, BETA, "2021")
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(deployment)


def test_a_correction_in_an_import_of_all_years_makes_only_its_series(follower: Follower) -> None:
    deployment = follower.deployment
    change_csv(deployment, "beta.csv", cheaper_close)
    assert import_bars(deployment.places, deployment.instance).success
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(deployment)


def test_the_same_bars_imported_again_start_nothing(follower: Follower) -> None:
    deployment = follower.deployment
    assert follower.tick() == NOTHING
    assert import_bars(deployment.places, deployment.instance).success
    import_year(deployment, BETA, "2021")
    assert [follower.tick() for _ in range(2)] == [NOTHING] * 2


def test_a_change_while_the_sensor_was_off_is_found_by_its_first_tick(follower: Follower) -> None:
    change_csv(follower.deployment, "beta.csv", cheaper_close)
    import_year(follower.deployment, BETA, "2021")
    assert follower.tick() == {BETA: FOLLOWERS}


def test_a_new_year_makes_exactly_its_series_again(follower: Follower) -> None:
    deployment = follower.deployment
    assert follower.tick() == NOTHING
    later = pl.lit("2023-01-02T00:00:00")
    change_csv(
        deployment,
        "beta.csv",
        lambda frame: pl.concat([frame, frame.tail(1).with_columns(ts=later)]),
    )
    import_year(deployment, BETA, "2023")  # an empty frame until now
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(deployment)


def test_years_that_were_never_imported_hold_nothing_up(empty: Deployment) -> None:
    follower = Follower(empty)
    done = materialize(
        empty.places, empty.instance, "ohlcv", first=f"{ALPHA}|2021", last=f"{ALPHA}|2022"
    )
    assert done.success
    assert (wanted := follower.tick()) == {ALPHA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert stale(empty) == set()

    import_year(empty, ALPHA, "2020")  # a year that did not exist
    assert (wanted := follower.tick()) == {ALPHA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert stale(empty) == set()


def test_a_series_without_bars_is_not_asked_for(empty: Deployment) -> None:
    follower = Follower(empty)
    import_year(empty, BETA, "2020")  # it begins in 2021
    assert [follower.tick() for _ in range(2)] == [NOTHING] * 2
    import_year(empty, BETA, "2021")
    assert follower.tick() == {BETA: FOLLOWERS}


def test_a_failed_manifest_is_tried_once_and_again_after_the_next_import(
    follower: Follower,
) -> None:
    deployment = follower.deployment
    assert follower.tick() == NOTHING
    change_csv(deployment, "beta.csv", cheaper_close)
    import_year(deployment, BETA, "2021")
    location = layout.ohlcv(deployment.places.store, BETA, 2021)
    location.path.write_bytes(b"damaged on the disk")
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert not follower.run(wanted)
    assert [follower.tick() for _ in range(3)] == [NOTHING] * 3

    location.path.unlink()
    import_year(deployment, BETA, "2021")
    assert (wanted := follower.tick()) == {BETA: FOLLOWERS}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(deployment)


def test_features_never_run_beside_a_manifest_of_other_bars(follower: Follower) -> None:
    deployment = follower.deployment
    change_csv(deployment, "beta.csv", cheaper_close)
    import_year(deployment, BETA, "2021")
    location = layout.ohlcv(deployment.places.store, BETA, 2021)
    whole = location.path.read_bytes()
    location.path.write_bytes(b"damaged on the disk")
    assert not follower.run({BETA: ("manifest",)})
    location.path.write_bytes(whole)
    assert follower.tick() == NOTHING, "features alone would refuse the old manifest"

    assert follower.run({BETA: ("manifest",)})
    assert (wanted := follower.tick()) == {BETA: ("features/tiny",)}
    assert follower.run(wanted)
    assert follower.tick() == NOTHING
    assert_all_fresh(deployment)


def test_a_new_feature_set_is_made_for_every_series(follower: Follower) -> None:
    deployment = follower.deployment
    assert follower.tick() == NOTHING
    indicators = [{"name": "returns", "params": {"horizons": [2]}}]
    write_yaml(deployment.places.configs / "features" / "other.yaml", {"indicators": indicators})
    assert follower.tick() == {ALPHA: ("features/other",), BETA: ("features/other",)}


def job_of(deployment: Deployment, *select: str) -> dg.JobDefinition:
    """These assets with their checks."""
    definitions = build_definitions(deployment.places)
    keys = {dg.AssetKey(one.split("/")) for one in select}
    return definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)


def begin(deployment: Deployment, *select: str, partition: str) -> dg.DagsterRun:
    """A run that has started and not yet done anything, as the daemon would leave it."""
    job = job_of(deployment, *select)
    return deployment.instance.create_run_for_job(
        job, tags={"dagster/partition": partition}, status=dg.DagsterRunStatus.STARTED
    )


def test_nothing_starts_while_bars_of_the_series_are_being_imported(follower: Follower) -> None:
    deployment = follower.deployment
    change_csv(deployment, "beta.csv", cheaper_close)
    import_year(deployment, BETA, "2021")
    run = begin(deployment, "ohlcv", partition=f"{BETA}|2022")
    assert follower.tick() == NOTHING
    deployment.instance.report_run_canceled(run)
    assert follower.tick() == {BETA: FOLLOWERS}


def test_nothing_starts_twice_while_it_runs(follower: Follower) -> None:
    deployment = follower.deployment
    change_csv(deployment, "beta.csv", cheaper_close)
    import_year(deployment, BETA, "2021")
    assert follower.tick() == {BETA: FOLLOWERS}
    run = begin(deployment, *FOLLOWERS, partition=BETA)
    assert follower.tick() == NOTHING
    import_year(deployment, BETA, "2022")
    assert follower.tick() == NOTHING, "a second run would write beside the first"
    deployment.instance.report_run_canceled(run)
    assert follower.tick() == {BETA: FOLLOWERS}


def test_the_version_that_a_range_shares_until_it_ends_is_no_change(follower: Follower) -> None:
    deployment, instance = follower.deployment, follower.deployment.instance
    change_csv(deployment, "beta.csv", cheaper_close)
    keys = [f"{ALPHA}|2021", f"{BETA}|2021"]
    job = job_of(deployment, "ohlcv")
    bounds = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
    run = instance.create_run_for_job(job, tags=dict(zip(bounds, keys, strict=True)))
    asked = {}
    for event in execute_run_iterator(InMemoryJob(job), run, instance):
        if event.is_step_success:
            # After the asset, and before the check that gives each partition its own version.
            versions = {version(deployment, "ohlcv", key) for key in keys}
            asked[event.step_key] = follower.tick(), versions
    shared, own = asked["ohlcv"], asked["ohlcv_stored"]
    assert (len(shared[1]), len(own[1])) == (1, 2)
    assert (shared[0], own[0]) == (NOTHING, NOTHING)
    assert instance.get_run_by_id(run.run_id).is_success
    assert follower.tick() == {BETA: FOLLOWERS}


def test_one_sensor_follows_and_is_off_until_somebody_turns_it_on(empty: Deployment) -> None:
    repository = build_definitions(empty.places).get_repository_def()
    followers = [
        sensor
        for sensor in repository.sensor_defs
        if isinstance(sensor, dg.AutomationConditionSensorDefinition)
    ]
    assert [sensor.name for sensor in followers] == [SENSOR]
    assert followers[0].default_status == dg.DefaultSensorStatus.STOPPED
    graph = repository.asset_graph
    conditioned = {
        key.to_user_string()
        for key in graph.materializable_asset_keys
        if graph.get(key).automation_condition
    }
    assert conditioned == set(FOLLOWERS)
