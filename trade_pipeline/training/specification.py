"""What a training task is told, as JSON. Apart from `task`, because torch takes seconds to load.

Start at `specification`; `task.run` reads it, here or on another machine.
"""

from collections.abc import Mapping
from typing import Any

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage.location import ArtifactLocation

SAVE_EVERY_S = 60.0


def specification(
    experiment: str,
    settings: ExperimentSettings,
    trial: str,
    dataset: ArtifactLocation,
    staging: ArtifactLocation,
    provenance: Mapping[str, Any],
    regime_model: ArtifactLocation | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> dict[str, Any]:
    """The JSON-able specification of one training.

    Args:
        experiment: its name, for messages.
        settings: the experiment.
        trial: key of the trial.
        dataset: folder of one version of the dataset bundle.
        staging: empty folder of the same store, for the policy bundle.
        provenance: JSON-able facts of the run, for `provenance.json`.
        regime_model: folder of one version of the fold's model, for an experiment with regimes.
        save_every_s: seconds between checkpoints.
    """
    return {
        "task": "train",
        "experiment": experiment,
        "settings": settings.model_dump(mode="json", by_alias=True),
        "trial": trial,
        "store": str(dataset.store),
        "dataset": dataset.key,
        "regime_model": None if regime_model is None else regime_model.key,
        "staging": staging.key,
        "provenance": dict(provenance),
        "save_every_s": save_every_s,
    }
