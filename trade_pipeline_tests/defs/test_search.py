"""The search of an experiment: trained on compute, judged on validation, entered in the ledger."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from trade_pipeline.compute.base import TaskError
from trade_pipeline.compute.local import LocalCompute
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.base import read_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import ledger
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import EXPERIMENT, write_yaml

SEARCH = {
    "space": {
        "algorithm.gamma": {"kind": "float", "low": 0.9, "high": 0.99},
        "algorithm.network.hidden": {"kind": "choice", "values": [[8], [16]]},
    },
    "trials": 2,
    "fold": 1,
}


class Scoring(LocalCompute):
    """A machine whose trainings earn gamma + seed / 10 on validation, at once; may break down.

    `spared` trainings end well; after that each breaks as `breaks` says.
    """

    spared: int = 100
    breaks: str = ""

    def run_task(self, context: Any, task: Any) -> dict[str, Any]:
        settings = ExperimentSettings.model_validate(task.spec["settings"])
        trial = settings.trials()[task.spec["trial"]]
        if ledger.entries(Path(task.spec["store"])).height > self.spared:
            if self.breaks == "cancelled":
                raise KeyboardInterrupt
            raise TaskError("The task said: the weights are not finite.")
        staging = ArtifactLocation(Path(task.spec["store"]), task.spec["staging"])
        dataset = Path(task.spec["dataset"]).name
        own = {"seed": trial.seed, "fold": trial.fold, "dataset_version": dataset}
        write_json(staging.child("spec.json"), own)
        gamma = settings.variant(trial.variant)[1].gamma
        return {
            "staging": staging.key,
            "version": bundles.seal(staging, ["spec.json"]).version,
            "metrics": {"validation_return": gamma + trial.seed / 10},
        }


def configure(deployment: Deployment, **changes: Any) -> None:
    path = deployment.places.configs / "experiments" / "alone.yaml"
    write_yaml(path, {**EXPERIMENT, "search": {**SEARCH, **changes}})


def start(deployment: Deployment, compute: Any = None) -> dg.ExecuteInProcessResult | None:
    """The job as the launchpad starts it; None when it was cancelled."""
    definitions = build_definitions(deployment.places)
    resources = {**(definitions.resources or {})}
    if compute is not None:
        resources["compute_local"] = compute
    job = dg.Definitions(
        assets=definitions.assets, jobs=definitions.jobs, resources=resources
    ).resolve_job_def("alone_search")
    try:
        return job.execute_in_process(instance=deployment.instance, raise_on_error=False)
    except KeyboardInterrupt:
        return None


def outcome(deployment: Deployment) -> dict[str, Any]:
    """Metadata of the last `alone/search`."""
    found = deployment.instance.fetch_materializations(dg.AssetKey(["alone", "search"]), limit=1)
    event = found.records[0].asset_materialization
    assert event is not None
    return {name: value.value for name, value in event.metadata.items()}


def tried(deployment: Deployment) -> list[str]:
    """Partitions of `alone/tried`."""
    return list(deployment.instance.get_dynamic_partitions("alone_tried"))


def said(found: dg.ExecuteInProcessResult | None) -> str:
    assert found is not None
    events = [event for event in found.all_events if event.is_step_failure]
    return events[0].step_failure_data.error_display_string


def test_a_search_trains_on_its_fold_and_leaves_policies_and_tests_alone(
    imported: Deployment,
) -> None:
    configure(imported)
    found = start(imported)
    assert found is not None
    assert found.success
    store = imported.places.store
    entries = ledger.entries(store, "alone")
    assert set(entries["fold"]) == {1}
    assert sorted(entries["seed"]) == [0, 0, 1, 1]
    assert set(entries["outcome"]) == {"finished"}
    assert ledger.trials_tried(store) == (4, 2)
    assert sorted(tried(imported)) == sorted(entries["trial"])

    assert not (store / "alone" / "policy").exists()
    assert not (store / "alone" / "backtest").exists()
    assert not list((store / "staging").iterdir())
    assert (store / "alone" / "search" / "study.db").exists()
    assert outcome(imported)["suggestions scored"] == 2
    assert "data:image/png" in outcome(imported)["history"]


def test_the_mean_over_the_seeds_decides_and_the_best_can_be_pasted(imported: Deployment) -> None:
    configure(imported, trials=4, seeds=[2, 4], variant="base")
    assert start(imported, Scoring(timeout_s=60)) is not None
    found = outcome(imported)
    best = yaml.safe_load(found["best"].removeprefix("```yaml\n").removesuffix("```"))
    path = imported.places.configs / "experiments" / "alone.yaml"
    write_yaml(path, {**EXPERIMENT, **best})
    environment, algorithm = read_settings(path, ExperimentSettings).variant("base_found")
    assert found["validation_return"] == pytest.approx(algorithm.gamma + 0.3)
    gammas = []
    for key in tried(imported):
        record = imported.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(["alone", "tried"]), asset_partitions=[key]), limit=1
        ).records[0]
        assert record.asset_materialization is not None
        metadata = record.asset_materialization.metadata
        gammas.append(metadata["overrides"].value["algorithm"]["gamma"])  # type: ignore[call-overload, index]
    assert len(gammas) == 8
    assert algorithm.gamma == max(gammas)
    assert environment == read_settings(path, ExperimentSettings).environment


def test_a_cancelled_search_goes_on_and_finds_what_it_would_have(imported: Deployment) -> None:
    configure(imported, trials=3)
    start(imported, Scoring(timeout_s=60, spared=3, breaks="cancelled"))
    store = imported.places.store
    assert ledger.entries(store)["outcome"].to_list() == ["finished"] * 3 + ["cancelled"]
    assert start(imported, Scoring(timeout_s=60)) is not None
    went_on = outcome(imported)
    assert sorted(ledger.entries(store)["outcome"]) == ["cancelled"] + ["finished"] * 7
    assert ledger.trials_tried(store) == (6, 3)

    (store / "alone" / "search" / "study.db").unlink()
    assert start(imported, Scoring(timeout_s=60)) is not None
    assert outcome(imported) == went_on
    assert ledger.trials_tried(store) == (6, 3)


def test_trainings_that_fail_are_counted_and_said(imported: Deployment) -> None:
    configure(imported, trials=3)
    found = start(imported, Scoring(timeout_s=60, spared=4))
    assert found is not None
    assert found.success
    assert outcome(imported)["suggestions scored"] == 2
    assert outcome(imported)["suggestions failed"] == 1
    assert ledger.entries(imported.places.store)["outcome"].to_list()[-1] == "failed"
    configure(imported, trials=3, seed=1)
    text = said(start(imported, Scoring(timeout_s=60, spared=0)))
    assert "none of 3 suggestions" in text
    assert "the weights are not finite" in text


def test_a_search_before_the_dataset_says_what_to_materialize(empty: Deployment) -> None:
    configure(empty)
    assert "materialize the asset first" in said(start(empty))
    assert ledger.trials_tried(empty.places.store) == (0, 0)


def test_without_search_in_the_file_there_is_no_job(empty: Deployment) -> None:
    definitions = build_definitions(empty.places)
    assert not [job.name for job in definitions.resolve_all_job_defs() if "search" in job.name]


def test_only_a_search_that_runs_imports_optuna_and_its_absence_is_one_sentence(
    imported: Deployment,
) -> None:
    configure(imported)
    lines = [
        "import sys, json; from pathlib import Path",
        "class Absent:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name == 'optuna': raise ModuleNotFoundError('No module', name='optuna')",
        "sys.meta_path.insert(0, Absent())",
        "import dagster as dg",
        "from trade_pipeline.defs.build import build_definitions",
        "from trade_pipeline.settings.project import Places",
        "definitions = build_definitions(Places(Path(sys.argv[1]), Path(sys.argv[2])))",
        "job = definitions.resolve_job_def('alone_search')",
        "found = job.execute_in_process(raise_on_error=False)",
        "failure = [one for one in found.all_events if one.is_step_failure][0]",
        "print(json.dumps(failure.step_failure_data.error_display_string))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), imported.places.configs, imported.places.store],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    text = json.loads(done.stdout.splitlines()[-1])
    assert "pip install 'trade_pipeline[search]'" in text
    assert "Traceback" not in text
    assert layout.experiment_bundle(imported.places.store, "alone", "dataset").path.exists()
