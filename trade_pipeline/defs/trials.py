"""One trial inside a run: entered in the ledger, trained where the experiment says.

The policy asset, overrides and searches all train through `train_trial`.
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg

from trade_pipeline.compute.base import Task
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store, compute_key
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training import ledger, recipe

TRAINING_TASK = "trade_pipeline.training.task"
POOL = "training"


class TrainedTrial(NamedTuple):
    """A staged policy bundle and its figures, null where undefined."""

    reference: BundleReference
    metrics: dict[str, Any]


def train_trial(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    name: str,
    experiment: ExperimentSettings,
    trial: Trial,
) -> TrainedTrial:
    """Train a trial on the experiment's current dataset; the ledger knows of it before it begins.

    Args:
        context: of a step with the resources `store` and that of the experiment's compute.
        name: of the experiment.
        experiment: holds the trial's variant.
        trial: what to train.

    Raises:
        StorageError: there is no dataset, or the store cannot be written.
        TaskError: the training ended without a policy.
    """
    from trade_pipeline.training.specification import specification

    store: Store = context.resources.store
    compute: Any = getattr(context.resources, compute_key(experiment.compute))
    dataset = bundles.current(layout.experiment_bundle(store.path, name, "dataset"))
    regime_model = current_regime_model(store.path, name, experiment, trial)
    staging = bundles.staging(store.path, f"{name}-policy-{trial.key}")
    started = time.monotonic()
    with discarded_on_failure(staging):
        spec = specification(
            experiment=name,
            settings=experiment,
            trial=trial.key,
            dataset=dataset,
            staging=staging,
            provenance={
                **provenance(context.run.run_id),
                "recipe": recipe.recorded(dataset),
            },
            regime_model=regime_model,
        )
        entry = ledger.entry(
            name,
            trial,
            *experiment.variant(trial.variant),
            dataset_version=dataset.path.name,
            run=context.run.run_id,
            began=datetime.now(UTC),
            regimes=experiment.regimes,
        )
        with _entered(store.path, entry) as attempt:
            task = Task(
                TRAINING_TASK,
                spec,
                staging.path,
                inputs=(dataset,) if regime_model is None else (dataset, regime_model),
                checkpoint=layout.checkpoint(store.path, name, trial.key),
            )
            result = compute.run_task(context, task)
            _require_own(staging, trial, dataset)
            ledger.end(attempt, "finished", result["version"])
    seconds = round(time.monotonic() - started, 1)
    metrics = {**result["metrics"], **result.get("pod", {}), "seconds": seconds}
    return TrainedTrial(BundleReference(staging, result["version"]), metrics)


def current_regime_model(
    store: Path, name: str, experiment: ExperimentSettings, trial: Trial
) -> ArtifactLocation | None:
    """The regimes of a trial's fold; None for an experiment without. Raises `StorageError`."""
    if experiment.regimes is None:
        return None
    fold = experiment.fold_keys[trial.fold]
    return bundles.current(layout.experiment_bundle(store, name, "regime_model", fold))


def training_pictures(policy: ArtifactLocation, title: str) -> dict[str, dg.MetadataValue]:
    """Learning curve and action mix of a policy bundle, for the UI."""
    from trade_pipeline.training.pictures import action_mix_png, learning_curve_png

    diagnostics = read_frame(policy.child("diagnostics.parquet"))
    return {
        "learning curve": png("learning curve", learning_curve_png(diagnostics, title)),
        "action mix": png("action mix", action_mix_png(diagnostics, title)),
    }


def _require_own(policy: ArtifactLocation, trial: Trial, dataset: ArtifactLocation) -> None:
    """Refuse a policy of another trial, whatever machine it came from. Raises `StorageError`."""
    found = read_json(policy.child("spec.json"))
    expected = {"seed": trial.seed, "fold": trial.fold, "dataset_version": dataset.path.name}
    if (made := {key: found.get(key) for key in expected}) != expected:
        raise StorageError(
            f"The policy that came back for trial {trial.key} was made with {made}, and not with "
            f"{expected}; nothing of it is kept. Run the task again."
        )


@contextmanager
def _entered(store: Path, entry: ledger.Entry) -> Iterator[ledger.Attempt]:
    """Enter a training before it begins, and why it ended when it gives nothing."""
    attempt = ledger.begin(store, entry)
    try:
        yield attempt
    except Exception:
        ledger.end(attempt, "failed")
        raise
    except BaseException:  # a cancelled run raises no Exception
        ledger.end(attempt, "cancelled")
        raise


@contextmanager
def discarded_on_failure(staging: ArtifactLocation) -> Iterator[None]:
    """Remove a half-written bundle when its step fails or is cancelled."""
    try:
        yield
    except BaseException:  # a cancelled run raises no Exception
        shutil.rmtree(staging.path, ignore_errors=True)
        raise


def provenance(run_id: str) -> dict[str, str]:
    """What is known of this run; it goes into informational members only."""
    return {
        "run_id": run_id,
        "commit": _commit(),
        "host": platform.node(),
        "started": datetime.now(UTC).isoformat(),
    }


def defined(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that have a value; metadata knows no null."""
    return {name: value for name, value in figures.items() if value is not None}


def _commit() -> str:
    """Commit of the code that runs, or `unknown` outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
