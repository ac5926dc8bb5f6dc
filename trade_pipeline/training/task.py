"""Training as a task that any machine runs: a JSON specification in, a JSON result out.

Knows no Dagster: who starts a task hands it the clock and a place to send progress. Start at `run`;
`specification.specification` makes what it reads.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trade_pipeline.settings.base import closest, parse_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.callbacks import Progress
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.regimes import load_regimes, with_regimes
from trade_pipeline.training.rllib import require_ray
from trade_pipeline.training.trainer import train


class TaskError(ValueError):
    """A task's specification cannot be run; the message names the key."""


def run(
    task: Mapping[str, Any], report: Callable[[Progress | str], None], clock: Callable[[], float]
) -> dict[str, Any]:
    """Run one training.

    Args:
        task: see `specification.specification`.
        report: receives progress about once a second, and sentences; `str` of each is a line.
        clock: monotonic seconds.

    Returns:
        `staging` and `version` of the sealed bundle, and `metrics` (JSON-able numbers or null).

    Raises:
        TaskError: the specification names no such task or trial.
        SettingsError: the settings are not an experiment's.
        BundleError: the dataset or the regime model is not what its index says.
        StorageError: the regime model was fitted on another dataset.
        TrainingError: nothing usable was learned.
    """
    if task.get("task") != "train":
        raise TaskError(f"task {task.get('task')!r} is unknown here; this module runs 'train'.")
    origin = f"experiment {task['experiment']}"
    settings = parse_settings(task["settings"], ExperimentSettings, origin)
    trials = settings.trials()
    if task["trial"] not in trials:
        raise TaskError(
            f"{origin}: no trial {task['trial']!r}.{closest(task['trial'], list(trials))}"
        )
    store, trial = Path(task["store"]), trials[task["trial"]]
    environment, algorithm = settings.variant(trial.variant)
    if algorithm.kind == "rllib_ppo":
        require_ray(origin)
    dataset = load_dataset(ArtifactLocation(store, task["dataset"]))
    if task["regime_model"] is not None:
        location = ArtifactLocation(store, task["regime_model"])
        dataset = with_regimes(dataset, load_regimes(location, dataset, trial.fold))
    trained = train(
        dataset=dataset,
        environment=environment,
        algorithm=algorithm,
        trial=trial,
        staging=ArtifactLocation(store, task["staging"]),
        report=report,
        clock=clock,
        provenance={**task["provenance"], "experiment": task["experiment"], "trial": trial.key},
        checkpoints=layout.checkpoint(store, task["experiment"], trial.key),
        save_every_s=task["save_every_s"],
    )
    return {
        "staging": trained.reference.location.key,
        "version": trained.reference.version,
        "metrics": trained.metrics,
    }
