"""Trains one trial: dataset, settings and seed in, policy bundle out.

Same dataset, settings, seed, threads and machine give the same bundle version, also when a
training is killed and goes on from its checkpoint. The clock and what is known of the run (host,
commit) are passed in and go into informational members only. Start at `train`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version as package_version
from platform import python_version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trade_pipeline.settings.algorithm import AlgorithmSettings, RLlibPPOSettings
from trade_pipeline.settings.environment import EnvironmentSettings, StratifiedStarts
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.simulator import kernel
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.compiled import is_compiled
from trade_pipeline.simulator.stepping import begin_all
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import json_hash, write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import dataset as dataset_module
from trade_pipeline.training.action_spaces import action_specification, outputs_of
from trade_pipeline.training.callbacks import Progress, mean_episode_reward
from trade_pipeline.training.checkpoint import Checkpoints
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.dense_policy import kernels
from trade_pipeline.training.learning import Learning, Log, TrainingError
from trade_pipeline.training.minibatches import learn
from trade_pipeline.training.networks import network_specification, torch_threads
from trade_pipeline.training.policy import DETERMINISTIC, Normalizer, write_policy
from trade_pipeline.training.regimes import LABEL
from trade_pipeline.training.specification import SAVE_EVERY_S

__all__ = ["TrainedPolicy", "TrainingError", "train"]

IMPLEMENTATION = 4
COMPILING = (
    "compiling the simulator and the training loop, once on each machine and version: this takes a "
    "minute or two"
)
PACKAGES = (
    "torch",
    "stable-baselines3",
    "sb3-contrib",
    "numpy",
    "numba",
    "gymnasium",
    "safetensors",
)


@dataclass(frozen=True)
class TrainedPolicy:
    """A sealed policy bundle and what to say of it: JSON-able numbers."""

    reference: BundleReference
    metrics: dict[str, float | None]


def train(
    dataset: Dataset,
    environment: EnvironmentSettings,
    algorithm: AlgorithmSettings,
    trial: Trial,
    staging: ArtifactLocation,
    report: Callable[[Progress | str], None],
    clock: Callable[[], float],
    provenance: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
    checkpoints: ArtifactLocation | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> TrainedPolicy:
    """Train a policy on its fold's training part and write its bundle.

    Args:
        dataset: as loaded from its bundle, with the fold's regimes where the experiment has them;
            its version and they go into the specification.
        environment: of the trial's variant.
        algorithm: of the trial's variant.
        trial: fold and seed; its key is for messages.
        staging: empty folder for the bundle.
        report: called about once a second and at the end with progress, and with sentences: looks
            at validation, warnings.
        clock: monotonic seconds.
        provenance: what the caller knows of the run, for `provenance.json`.
        tensorboard: whether to write `tb/`.
        checkpoints: key of the store under which the state is kept, and from which a training of
            the same specification goes on; None keeps none.
        save_every_s: seconds between checkpoints.

    Raises:
        TrainingError: the weights are not finite, or a feature is missing.
    """
    if isinstance(algorithm, RLlibPPOSettings):
        from trade_pipeline.training.rllib import train_rllib  # it builds on this module

        return train_rllib(
            dataset,
            environment,
            algorithm,
            trial,
            staging,
            report,
            clock,
            provenance,
            tensorboard,
        )
    specification = policy_specification(dataset, environment, algorithm, trial)
    train_part = dataset.folds[trial.fold].train
    normalizer = Normalizer.fit(dataset.features, train_part, dataset.scaling)
    staging.path.mkdir(parents=True, exist_ok=True)
    kept = None
    if checkpoints is not None:
        kept = Checkpoints(checkpoints, json_hash(specification))
    started = clock()
    with (staging.path / "job.log").open("w", encoding="utf-8") as file, _one_result(algorithm):
        log = Log(file, clock, report)
        log.line(f"trial {trial.key}: {algorithm.total_frames} frames, seed {trial.seed}")
        if not is_compiled(longest_to_compile(algorithm)):
            log.say(COMPILING)
        labels = start_labels(dataset, environment, trial)
        learning = Learning(
            dataset,
            environment,
            algorithm,
            trial,
            specification,
            normalizer,
            labels,
            log,
            clock,
        )
        folder = str(staging.path / "tb") if tensorboard else None
        with kept.alone(log.say) if kept else nullcontext():
            learning.run(kept, save_every_s, folder)
        seconds = clock() - started
        log.line(f"done: {learning.model.num_timesteps} frames in {seconds:.1f} s")
    best = learning.kept
    assert best is not None  # the last look, at the latest
    metrics = {
        "frames": float(learning.model.num_timesteps),
        "seconds": seconds,
        "frames_per_second": learning.learned / seconds if seconds > 0 else None,
        "mean_episode_reward": mean_episode_reward(learning.model),
        "validation_return": best.validation_return,
        "best_frames": float(best.frames),
        "stopped_early": float(learning.stopped_early),
    }
    scaling = replace(normalizer, account=best.account)
    write_policy(staging, best.weights, best.learner, scaling, specification)
    known = {**(provenance or {}), "inputs": dict(dataset.input_versions), "metrics": metrics}
    write_json(staging.child("provenance.json"), known)
    write_frame(staging.child("diagnostics.parquet"), learning.diagnostics.frame())
    reference = seal(staging, DETERMINISTIC)
    if kept is not None:
        kept.remove()
    return TrainedPolicy(reference, metrics)


def longest_to_compile(algorithm: AlgorithmSettings) -> Callable[..., Any]:
    """Of the compiled functions that a training calls."""
    dense = algorithm.kind == "ppo" and algorithm.network.kind == "mlp"
    return learn if dense else begin_all


def start_labels(
    dataset: Dataset, environment: EnvironmentSettings, trial: Trial
) -> NDArray[np.float32] | None:
    """The feature or regime that episode starts are stratified by, [T], or None.

    Raises:
        TrainingError: no feature has that name.
    """
    starts = environment.starts
    if not isinstance(starts, StratifiedStarts):
        return None
    if starts.label == LABEL and dataset.regime_labels is not None:
        return dataset.regime_labels.astype(np.float32)
    if starts.label not in dataset.feature_names:
        raise TrainingError(
            f"trial {trial.key}: starts.label {starts.label!r} is no feature; the dataset has "
            f"{', '.join(dataset.feature_names)}."
        )
    labels: NDArray[np.float32] = dataset.features[:, 0, dataset.feature_names.index(starts.label)]
    return labels


def implementations() -> dict[str, int]:
    """What makes a policy, by part, for its code version."""
    return {
        "trainer": IMPLEMENTATION,
        "kernel": kernel.IMPLEMENTATION,
        "dataset": dataset_module.IMPLEMENTATION,
    }


def policy_specification(
    dataset: Dataset, environment: EnvironmentSettings, algorithm: AlgorithmSettings, trial: Trial
) -> dict[str, Any]:
    """`spec.json`: all that a policy's bytes depend on, and all that loading it needs."""
    instruments = len(dataset.instruments)
    action = action_specification(algorithm.kind, mapping_for(environment, instruments))
    return {
        "observation": {
            "window": environment.window,
            "instruments": list(dataset.instruments),
            "feature_names": list(dataset.feature_names),
            "scaling": dataset.scaling,
            "lookback": dataset.lookback,
        },
        "action": action,
        "network": network_specification(
            algorithm.network,
            environment.window,
            instruments * len(dataset.feature_names),
            instruments,
            outputs_of(action),
            algorithm.normalize.account,
        ),
        "dataset_version": dataset.version,
        **({} if dataset.regimes is None else {"regimes": dataset.regimes.document()}),
        "configuration": {
            "environment": environment.model_dump(mode="json"),
            "algorithm": algorithm.model_dump(mode="json"),
        },
        "fold": trial.fold,
        "seed": trial.seed,
        "threads": algorithm.threads,
        "implementations": implementations(),
        "versions": {
            "python": python_version(),
            **{package: package_version(package) for package in PACKAGES},
            **kernels(),
        },
    }


@contextmanager
def _one_result(algorithm: AlgorithmSettings) -> Iterator[None]:
    """Fix what else would change a result's last bits: threads, and torch's choice of kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch_threads(algorithm.threads):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
