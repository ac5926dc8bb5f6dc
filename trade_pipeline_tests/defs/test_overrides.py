"""Overrides from the launchpad: trials of their own, entered in the ledger before they begin."""

import os
import signal
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from trade_pipeline.compute.local import LocalCompute
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.storage import bundles, layout
from trade_pipeline.training import ledger
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import materialize

TRIAL = "base.f0.s0"


def start(deployment: Deployment, **config: Any) -> dg.ExecuteInProcessResult:
    """The job as the launchpad starts it."""
    job = build_definitions(deployment.places).resolve_job_def("alone_override")
    return job.execute_in_process(
        run_config={"ops": {"override_alone": {"config": {"variant": "base", **config}}}},
        instance=deployment.instance,
        raise_on_error=False,
    )


def said(deployment: Deployment, outcome: dg.ExecuteInProcessResult) -> str:
    """What the run's failure says."""
    events = [event for event in outcome.all_events if event.is_step_failure]
    assert len(events) == 1
    return events[0].step_failure_data.error_display_string


def records(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """Metadata of `alone/tried` by trial."""
    found = deployment.instance.fetch_materializations(dg.AssetKey(["alone", "tried"]), limit=100)
    return {
        str(event.partition): {name: value.value for name, value in event.metadata.items()}
        for record in found.records
        if (event := record.asset_materialization) is not None
    }


def pointers(store: Path) -> dict[str, str]:
    """What is current of every bundle of the experiment."""
    found = (store / "alone").rglob("current.json")
    return {str(path.relative_to(store)): path.read_text(encoding="utf-8") for path in found}


def test_an_override_is_a_trial_of_its_own_and_leaves_configured_ones_alone(
    trained: Deployment,
) -> None:
    store = trained.places.store
    before = pointers(store)
    counted = ledger.trials_tried(store, experiment="alone")
    overrides = {"algorithm": {"gamma": 0.5}, "environment": {"no_trade_band": 0.1}}
    assert start(trained, seed=7, **overrides).success

    new = {key: value for key, value in pointers(store).items() if key not in before}
    assert {key: value for key, value in pointers(store).items() if key in before} == before
    ((trial, record),) = records(trained).items()
    assert trial.startswith("base_x")
    assert trial.endswith(".f0.s7")
    assert set(new) == {f"alone/{kind}/{trial}/current.json" for kind in ("policy", "backtest")}

    policy = bundles.current(layout.experiment_bundle(store, "alone", "policy", trial))
    assert record["policy"] == policy.path.name
    assert record["overrides"] == overrides
    assert record["dagster/row_count"] > 100
    assert {"validation_return", "total_return", "seconds"} <= set(record)
    assert "data:image/png" in record["equity"]
    after = ledger.trials_tried(store, experiment="alone")
    assert after == (counted.trials + 1, counted.configurations + 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"algorithm": {"gama": 0.5}}, ["gama'", "Did you mean 'gamma'?"]),
        ({"environment": {"costs": {"fees": 1}}}, ["fees'", "fee"]),
        ({"algorithm": {"network": {"kind": "lstm"}}}, ["network lstm", "recurrent_ppo"]),
        ({"algorithm": {"gamma": 2}}, ["gamma", "less than or equal to 1"]),
        ({}, ["change nothing", "'base'"]),
        ({"algorithm": {"gamma": 0.99}}, ["change nothing", "'base'"]),
        ({"variant": "bass", "algorithm": {"gamma": 0.5}}, ["'bass'", "Did you mean 'base'?"]),
        ({"fold": 2, "algorithm": {"gamma": 0.5}}, ["no fold 2", "give 2"]),
        ({"seed": -1, "algorithm": {"gamma": 0.5}}, ["seeds", "-1"]),
    ],
    ids=str,
)
def test_wrong_overrides_are_refused_by_file_and_key_before_anything_runs(
    imported: Deployment, config: dict[str, Any], words: list[str]
) -> None:
    before = sorted(imported.places.store.rglob("*"))
    outcome = start(imported, **config)
    assert not outcome.success
    text = said(imported, outcome)
    file = imported.places.configs / "experiments" / "alone.yaml"
    assert all(word in text for word in [str(file), *words]), text
    assert "Traceback" not in text
    assert sorted(imported.places.store.rglob("*")) == before


def test_an_override_before_the_dataset_says_what_to_materialize(empty: Deployment) -> None:
    outcome = start(empty, algorithm={"gamma": 0.5})
    assert not outcome.success
    assert "materialize the asset first" in said(empty, outcome)
    assert ledger.trials_tried(empty.places.store) == (0, 0)


def test_a_configured_trial_trained_again_is_not_counted_again(imported: Deployment) -> None:
    store = imported.places.store
    for _ in range(2):
        assert materialize(imported.places, imported.instance, "alone/policy", first=TRIAL).success
    found = ledger.entries(store, "alone")
    current = bundles.current(layout.experiment_bundle(store, "alone", "policy", TRIAL))
    assert found["trial"].to_list() == [TRIAL, TRIAL]
    assert found["outcome"].to_list() == ["finished", "finished"]
    assert set(found["version"]) == {current.path.name}
    assert ledger.trials_tried(store, experiment="alone") == (1, 1)
    runs = [run.run_id for run in imported.instance.get_runs()]
    assert set(found["run"]) <= set(runs)


class Dying(LocalCompute):
    """The machine on which the training is at the moment that something happens to it."""

    happens: str

    def run_task(self, context: Any, task: Any) -> dict[str, Any]:
        entered = ledger.entries(Path(task.spec["store"]))["outcome"].to_list()
        assert entered == ["begun"], "the ledger must know of it before it begins"
        if self.happens == "cancelled":
            os.kill(os.getpid(), signal.SIGINT)  # what Dagster's own process does when cancelled
        raise RuntimeError("the machine is gone")


@pytest.mark.parametrize("happens", ["failed", "cancelled"])
def test_a_training_that_gives_nothing_counts(imported: Deployment, happens: str) -> None:
    definitions = build_definitions(imported.places)
    dying = Dying(timeout_s=60, happens=happens)
    resources = {**(definitions.resources or {}), "compute_local": dying}
    try:
        outcome = dg.materialize(
            [*(definitions.assets or [])],  # type: ignore[list-item]
            selection=dg.AssetSelection.assets(dg.AssetKey(["alone", "policy"])),
            instance=imported.instance,
            resources=resources,
            partition_key=TRIAL,
            raise_on_error=False,
        )
        assert not outcome.success
    except BaseException as error:  # a cancelled run ends with none of Dagster's errors
        assert happens == "cancelled", error
    found = ledger.entries(imported.places.store)
    assert found["outcome"].to_list() == [happens]
    assert ledger.trials_tried(imported.places.store) == (1, 1)
    assert not list((imported.places.store / "staging").glob("alone-policy-*"))


def test_the_report_says_how_many_trials_there_ever_were(trained: Deployment) -> None:
    start(trained, seed=7, algorithm={"gamma": 0.5})
    assert materialize(trained.places, trained.instance, "alone/report").success
    found = trained.instance.fetch_materializations(dg.AssetKey(["alone", "report"]), limit=1)
    event = found.records[0].asset_materialization
    assert event is not None
    assert event.metadata["trials ever tried"].value == 5
    assert event.metadata["configurations ever tried"].value == 2
