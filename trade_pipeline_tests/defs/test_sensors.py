"""What runs when nobody presses a button: the retrain sensor."""

import json

import dagster as dg
import polars as pl
import pytest

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.defs.sensors import (
    Facts,
    Outcome,
    Request,
    State,
    next_step,
    selected_rows_hash,
)
from trade_pipeline.settings.base import parse_settings
from trade_pipeline.settings.compute import LocalComputeSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, EXPERIMENT, materialize

TRIALS = [f"base.f{fold}.s{seed}" for fold in (0, 1) for seed in (0, 1)]
DATASET = [Request("dataset", None)]
REPORT = [Request("report", None)]
EVERY_TRIAL = [Request("trials", key) for key in TRIALS]


def experiment(retrain: str = "on_new_slice") -> ExperimentSettings:
    return parse_settings(EXPERIMENT | {"retrain": retrain}, ExperimentSettings, "alone.yaml")


def facts(
    rows: str | None = "new",
    outcome: Outcome = "absent",
    month: str = "2026-11",
    has_dataset: bool = True,
) -> Facts:
    return Facts(rows, month, has_dataset, lambda state: outcome)


def state(step: str, rows: str = "old", month: str = "2026-11", turn: int = 1) -> State:
    return State(rows, month, step, turn)  # type: ignore[arg-type]


STEPS = {
    "nothing known, no features": (None, facts(rows=None), None, []),
    "nothing known, trained by hand": (None, facts(), state("idle", "new", turn=0), []),
    "nothing known, never trained": (
        None,
        facts(has_dataset=False),
        state("dataset", "new"),
        DATASET,
    ),
    "same rows": (state("idle"), facts("old"), state("idle"), []),
    "features vanished": (state("idle"), facts(None), state("idle"), []),
    "new rows": (state("idle"), facts(), state("dataset", "new", turn=2), DATASET),
    "dataset requested": (state("dataset"), facts("old", "absent"), state("dataset"), []),
    "dataset runs": (state("dataset"), facts("old", "running"), state("dataset"), []),
    "dataset built": (state("dataset"), facts("old", "succeeded"), state("trials"), EVERY_TRIAL),
    "dataset failed": (state("dataset"), facts("old", "failed"), state("failed"), []),
    "trials run": (state("trials"), facts("old", "running"), state("trials"), []),
    "trials done": (state("trials"), facts("old", "succeeded"), state("report"), REPORT),
    "trials failed": (state("trials"), facts("old", "failed"), state("failed"), []),
    "report runs": (state("report"), facts("old", "running"), state("report"), []),
    "report done": (state("report"), facts("old", "succeeded"), state("idle"), []),
    "report failed": (state("report"), facts("old", "failed"), state("failed"), []),
    "new rows while it trains": (state("trials"), facts("new", "running"), state("trials"), []),
    "failed, same rows": (state("failed"), facts("old"), state("failed"), []),
    "failed, new rows": (state("failed"), facts(), state("dataset", "new", turn=2), DATASET),
}


@pytest.mark.parametrize("case", STEPS)
def test_each_step_follows_the_success_of_the_one_before(case: str) -> None:
    known, seen, kept, requests = STEPS[case]
    assert next_step(known, seen, experiment())[:2] == (kept, requests)


@pytest.mark.parametrize(("month", "starts"), [("2026-11", False), ("2026-12", True)])
def test_a_monthly_experiment_starts_at_most_once_a_month(month: str, starts: bool) -> None:
    kept, requests, note = next_step(state("idle"), facts(month=month), experiment("monthly"))
    assert requests == (DATASET if starts else [])
    assert kept == (state("dataset", "new", month, turn=2) if starts else state("idle"))
    assert starts or "2026-11" in note


class Sensor:
    """The real sensor of a deployment, ticked by hand; keeps its cursor."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.cursor: str | None = None

    def tick(self) -> list[dg.RunRequest]:
        definitions = build_definitions(self.deployment.places)
        with dg.build_sensor_context(
            instance=self.deployment.instance,
            cursor=self.cursor,
            definitions=definitions,
        ) as context:
            found = definitions.resolve_sensor_def("retrain").evaluate_tick(context)
        self.cursor, self.skip_message = found.cursor, found.skip_message
        return list(found.run_requests or [])

    @property
    def step(self) -> str:
        """Step that the cursor holds for `alone`."""
        assert self.cursor is not None
        return str(json.loads(self.cursor)["alone"][2])

    def run(self, request: dg.RunRequest) -> bool:
        """Execute a request as the daemon would: its job, partition and tags."""
        assert request.job_name is not None
        job = build_definitions(self.deployment.places).resolve_job_def(request.job_name)
        return job.execute_in_process(
            instance=self.deployment.instance,
            partition_key=request.partition_key,
            tags=request.tags,
            raise_on_error=False,
        ).success

    def record(self, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
        """A run of the request that came to this status, without executing it."""
        assert request.job_name is not None
        job = build_definitions(self.deployment.places).resolve_job_def(request.job_name)
        self.deployment.instance.create_run_for_job(job, tags=request.tags, status=status)


def retrain(deployment: Deployment, rule: str = "on_new_slice") -> Sensor:
    deployment.edit("configs/experiments/alone.yaml", "series:", f"retrain: {rule}\nseries:")
    return Sensor(deployment)


def change_rows(deployment: Deployment, price: float, day: str = "2021-06-01") -> None:
    """Another close on a day, imported up to the features."""
    path = deployment.root / "data" / "alpha.csv"
    frame = pl.read_csv(path)
    at = pl.col("ts") == f"{day}T00:00:00"
    prices = {
        "close": pl.when(at).then(price).otherwise("close"),
        "high": pl.when(at).then(pl.max_horizontal("open", pl.lit(price))).otherwise("high"),
        "low": pl.when(at).then(pl.min_horizontal("open", pl.lit(price))).otherwise("low"),
    }
    frame.with_columns(**prices).write_csv(path)
    places, instance = deployment.places, deployment.instance
    assert materialize(places, instance, "ohlcv", first=f"{ALPHA}|{day[:4]}").success
    assert materialize(places, instance, "manifest", "features/tiny", first=ALPHA).success


def test_an_experiment_retrained_by_hand_is_left_alone(imported: Deployment) -> None:
    sensor = Sensor(imported)
    assert sensor.tick() == []
    change_rows(imported, 50.0)
    assert sensor.tick() == []
    assert json.loads(sensor.cursor or "{}") == {}
    assert "manual" in (sensor.skip_message or "")


def test_the_first_tick_takes_what_was_trained_by_hand_as_known(imported: Deployment) -> None:
    sensor = retrain(imported)
    assert sensor.tick() == []
    assert sensor.step == "idle"
    cursor = sensor.cursor
    assert sensor.tick() == []
    assert sensor.cursor == cursor


def test_the_first_tick_starts_what_was_never_trained(empty: Deployment) -> None:
    sensor = retrain(empty)
    assert sensor.tick() == []
    assert "not materialized" in (sensor.skip_message or "")
    places, instance = empty.places, empty.instance
    assert materialize(
        places, instance, "ohlcv", first=f"{ALPHA}|2020", last=f"{ALPHA}|2022"
    ).success
    assert materialize(places, instance, "manifest", "features/tiny", first=ALPHA).success
    (request,) = sensor.tick()
    assert (request.job_name, request.partition_key) == ("alone_dataset", None)


def test_bars_outside_the_experiments_days_start_nothing(imported: Deployment) -> None:
    sensor = retrain(imported)
    sensor.tick()
    change_rows(imported, 50.0, day="2022-09-20")
    assert sensor.tick() == []
    assert sensor.step == "idle"


def test_changed_rows_are_trained_on_step_by_step(imported: Deployment) -> None:
    sensor = retrain(imported)
    sensor.tick()
    change_rows(imported, 50.0)
    store = imported.places.store
    home = layout.experiment_bundle(store, "alone", "dataset")
    before = bundles.current_version(home)

    (dataset,) = sensor.tick()
    assert (dataset.job_name, dataset.partition_key) == ("alone_dataset", None)
    assert sensor.tick() == [], "a request is made once"
    assert sensor.run(dataset)
    assert bundles.current_version(home) != before

    trials = sensor.tick()
    assert {one.job_name for one in trials} == {"alone_trials"}
    assert [one.partition_key for one in trials] == TRIALS
    assert len({one.run_key for one in trials}) == len(TRIALS)
    assert sensor.run(trials[0])
    backtest = layout.experiment_bundle(store, "alone", "backtest", TRIALS[0])
    assert bundles.current_version(backtest) is not None
    assert sensor.tick() == [], "the report waits for every trial"

    for one in trials[1:]:
        sensor.record(one, dg.DagsterRunStatus.SUCCESS)
    (report,) = sensor.tick()
    assert (report.job_name, report.partition_key) == ("alone_report", None)
    sensor.record(report, dg.DagsterRunStatus.SUCCESS)
    assert sensor.tick() == []
    assert sensor.step == "idle"


def test_after_a_failure_it_waits_for_new_rows(imported: Deployment) -> None:
    sensor = retrain(imported)
    sensor.tick()
    change_rows(imported, 50.0)
    (request,) = sensor.tick()
    imported.edit("configs/experiments/alone.yaml", "window: 4", "window: 400")
    assert not sensor.run(request)
    assert sensor.tick() == []
    assert sensor.step == "failed"
    assert "failed" in (sensor.skip_message or "")
    assert sensor.tick() == []
    change_rows(imported, 51.0)
    (again,) = sensor.tick()
    assert again.job_name == "alone_dataset"
    assert again.run_key != request.run_key


def test_a_failed_run_that_is_repeated_is_waited_for(imported: Deployment) -> None:
    sensor = retrain(imported)
    sensor.tick()
    change_rows(imported, 50.0)
    (request,) = sensor.tick()
    sensor.record(request, dg.DagsterRunStatus.FAILURE)
    sensor.record(request, dg.DagsterRunStatus.STARTED)
    assert sensor.tick() == []
    assert sensor.step == "dataset"


def test_rows_that_return_to_what_they_were_are_trained_on_again(imported: Deployment) -> None:
    sensor = retrain(imported)
    sensor.tick()
    requests = []
    for price in (50.0, 51.0, 50.0):
        change_rows(imported, price)
        (dataset,) = sensor.tick()
        requests.append(dataset)
        assert sensor.tick() == []
        assert sensor.step == "dataset", "an earlier turn's run does not count"
        sensor.record(dataset, dg.DagsterRunStatus.FAILURE)
        sensor.tick()
    # Dagster starts nothing for a run key that it has seen.
    assert len({one.run_key for one in requests}) == 3


def test_remote_compute_is_started_only_where_allowed(
    imported: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalComputeSettings, "remote", True)
    sensor = retrain(imported)
    bundles_of = layout.experiment_bundle(imported.places.store, "alone", "dataset")
    (bundles_of.path / "current.json").unlink()
    assert sensor.tick() == []
    assert "auto_remote" in (sensor.skip_message or "")
    imported.edit("configs/experiments/alone.yaml", "series:", "auto_remote: true\nseries:")
    (request,) = sensor.tick()
    assert request.job_name == "alone_dataset"


def test_the_hash_of_the_rows_sees_every_series(imported: Deployment) -> None:
    project = read_project(imported.places.configs)
    store = imported.places.store
    before = {
        name: selected_rows_hash(store, project.experiments[name]) for name in ("alone", "pair")
    }
    path = imported.root / "data" / "beta.csv"
    pl.read_csv(path).with_columns(close=pl.col("open")).write_csv(path)
    places, instance = imported.places, imported.instance
    assert materialize(places, instance, "ohlcv", first=f"{BETA}|2021", last=f"{BETA}|2022").success
    assert materialize(places, instance, "manifest", "features/tiny", first=BETA).success
    assert selected_rows_hash(store, project.experiments["alone"]) == before["alone"]
    assert selected_rows_hash(store, project.experiments["pair"]) != before["pair"]
