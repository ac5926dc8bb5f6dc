"""Trainings by RLlib for the tests beside; also a program that trains until it is ended."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.rllib import train_rllib
from trade_pipeline.training.trainer import TrainedPolicy
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")


def experiment(keys: tuple[str, ...] = ONE, **algorithm: Any) -> ExperimentSettings:
    return synthetic.experiment(keys, algorithm={"kind": "rllib_ppo", **algorithm})


def foreseeing() -> Dataset:
    """One instrument whose feature is the return ahead."""
    dataset = synthetic.dataset(ONE)
    opened = dataset.open[:, 0]
    ahead = np.zeros(len(opened), np.float32)
    ahead[:-2] = np.log(opened[2:] / opened[1:-1])
    return replace(dataset, features=np.stack([ahead, 0 * ahead], axis=1)[:, None, :])


def train(
    store: Path,
    dataset: Dataset,
    settings: ExperimentSettings,
    report: Callable[[Any], None] = lambda said: None,
) -> TrainedPolicy:
    environment, algorithm = settings.variant("base")
    return train_rllib(
        dataset=dataset,
        environment=environment,
        algorithm=algorithm,  # type: ignore[arg-type]
        trial=settings.trials()["base.f0.s0"],
        staging=ArtifactLocation(store, "one"),
        report=report,
        clock=time.monotonic,
    )


if __name__ == "__main__":
    train(
        Path(sys.argv[1]),
        synthetic.dataset(),
        experiment(total_frames=10**9),
        lambda said: print(said, flush=True),
    )
