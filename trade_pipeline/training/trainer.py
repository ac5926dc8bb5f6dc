"""Trains one trial: dataset, settings and seed in, policy bundle out.

Same dataset, settings, seed, threads and machine give the same bundle version. The clock and what
is known of the run (host, commit) are passed in and go into informational members only. Start at
`train`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version as package_version
from platform import python_version
from typing import Any, TextIO

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO

from trade_pipeline.settings.environment import EnvironmentSettings, StratifiedStarts
from trade_pipeline.settings.experiment import PPOSettings, Trial
from trade_pipeline.simulator import kernel
from trade_pipeline.simulator.actions import BracketMapping, mapping_for
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import dataset as dataset_module
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    Normalizer,
    PolicyNetwork,
    PolicyRunner,
    network_specification,
    torch_threads,
    write_policy,
)
from trade_pipeline.training.sb3 import (
    Diagnostics,
    Progress,
    TrainingCallback,
    make_ppo,
    mean_episode_reward,
    policy_weights,
    use_logger,
)
from trade_pipeline.training.splits import long_enough
from trade_pipeline.training.validation import evaluation_equity

IMPLEMENTATION = 1
PACKAGES = ("torch", "stable-baselines3", "numpy", "numba", "gymnasium", "safetensors")
# Validation is looked at this often on the way; parts longer than the limit only at the end.
LOOKS_ON_THE_WAY = 3
LONGEST_LOOK_ON_THE_WAY = 5_000


class TrainingError(Exception):
    """A training gave nothing usable; the message names the trial and what to change."""


@dataclass(frozen=True)
class TrainedPolicy:
    """A sealed policy bundle and what to say of it: JSON-able numbers."""

    reference: BundleReference
    metrics: dict[str, float | None]


def train(
    dataset: Dataset,
    environment: EnvironmentSettings,
    algorithm: PPOSettings,
    trial: Trial,
    staging: ArtifactLocation,
    report: Callable[[Progress], None],
    clock: Callable[[], float],
    provenance: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
) -> TrainedPolicy:
    """Train a policy on its fold's training part and write its bundle.

    Args:
        dataset: as loaded from its bundle; its version goes into the specification.
        environment: of the trial's variant.
        algorithm: of the trial's variant.
        trial: fold and seed; its key is for messages.
        staging: empty folder for the bundle.
        report: called about once a second, and at the end.
        clock: monotonic seconds.
        provenance: what the caller knows of the run, for `provenance.json`.
        tensorboard: whether to write `tb/`.

    Raises:
        TrainingError: the weights are not finite, or nothing was learned from.
    """
    fold = dataset.folds[trial.fold]
    normalizer = Normalizer.fit(dataset.features, fold.train, dataset.scaling)
    specification = policy_specification(dataset, environment, algorithm, trial)
    features, market = normalizer.transform(dataset.features), dataset.market
    validation = long_enough(fold.validation, environment.window)
    staging.path.mkdir(parents=True, exist_ok=True)
    started, diagnostics = clock(), Diagnostics()

    with (staging.path / "job.log").open("w", encoding="utf-8") as file, _one_result(algorithm):
        log = _Log(file, clock, report)
        environments = TradingVecEnv(
            market,
            features,
            long_enough(fold.train, environment.window),
            environment,
            environments=algorithm.environments,
            seed=trial.seed,
            reward_scale=algorithm.reward_scale,
            labels=start_labels(dataset, environment, trial),
        )
        model = make_ppo(environments, algorithm, specification["network"], trial.seed)
        use_logger(model, diagnostics, str(staging.path / "tb") if tensorboard else None)

        def validate(frames: int) -> float:
            network = PolicyNetwork(specification["network"])
            network.load_state_dict(policy_weights(model))
            runner = PolicyRunner(specification, normalizer, network)
            equity = evaluation_equity(runner, market, features, validation, environment)
            value = float(equity[-1] / equity[0] - 1)
            diagnostics.record(frames, "validation_return", value)
            log.line(f"{frames} frames: validation return {value:.4%}")
            return value

        log.line(f"trial {trial.key}: {algorithm.total_frames} frames, seed {trial.seed}")
        looks = _looks(algorithm.total_frames, validation, environment.window)
        callback = TrainingCallback(algorithm.total_frames, log.progress, clock, validate, looks)
        try:
            model.learn(algorithm.total_frames, callback)
        except ValueError:
            _require_finite(model, trial)  # says it better than torch's distributions
            raise
        model.logger.dump(model.num_timesteps)
        model.logger.close()
        _require_finite(model, trial)
        validation_return = validate(model.num_timesteps)
        seconds = clock() - started
        log.line(f"done: {model.num_timesteps} frames in {seconds:.1f} s")

    metrics = {
        "frames": float(model.num_timesteps),
        "seconds": seconds,
        "frames_per_second": model.num_timesteps / seconds if seconds > 0 else None,
        "mean_episode_reward": mean_episode_reward(model),
        "validation_return": validation_return,
    }
    write_policy(staging, policy_weights(model), normalizer, specification)
    known = {**(provenance or {}), "inputs": dict(dataset.input_versions), "metrics": metrics}
    write_json(staging.child("provenance.json"), known)
    write_frame(staging.child("diagnostics.parquet"), _diagnostics_frame(diagnostics))
    return TrainedPolicy(seal(staging, DETERMINISTIC), metrics)


def start_labels(
    dataset: Dataset, environment: EnvironmentSettings, trial: Trial
) -> NDArray[np.float32] | None:
    """The feature that episode starts are stratified by, [T], or None where they are not.

    Raises:
        TrainingError: no feature has that name.
    """
    starts = environment.starts
    if not isinstance(starts, StratifiedStarts):
        return None
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
    dataset: Dataset, environment: EnvironmentSettings, algorithm: PPOSettings, trial: Trial
) -> dict[str, Any]:
    """`spec.json`: all that a policy's bytes depend on, and all that loading it needs."""
    mapping = mapping_for(environment, len(dataset.instruments))
    if isinstance(mapping, BracketMapping):
        nvec = [int(choices) for choices in mapping.nvec]
        action: dict[str, Any] = {"kind": "multi_discrete", "nvec": nvec}
        outputs = sum(nvec)
    else:
        outputs = len(dataset.instruments)
        action = {
            "kind": "box",
            "low": np.asarray(mapping.low).tolist(),
            "high": np.asarray(mapping.high).tolist(),
        }
    columns = len(dataset.instruments) * len(dataset.feature_names)
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
            algorithm.network, environment.window, columns, len(dataset.instruments), outputs
        ),
        "dataset_version": dataset.version,
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
        },
    }


def _require_finite(model: PPO, trial: Trial) -> None:
    weights = policy_weights(model)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise TrainingError(
            f"trial {trial.key}: the weights are not finite after {model.num_timesteps} frames; "
            "lower learning_rate or reward_scale."
        )


@contextmanager
def _one_result(algorithm: PPOSettings) -> Iterator[None]:
    """Fix what else would change a result's last bits: threads, and torch's choice of kernels."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch_threads(algorithm.threads):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def _looks(total_frames: int, validation: Any, window: int) -> tuple[int, ...]:
    """After how many frames to look at validation on the way."""
    decisions = int((validation[:, 1] - validation[:, 0] - window).sum())
    if decisions > LONGEST_LOOK_ON_THE_WAY:
        return ()
    parts = LOOKS_ON_THE_WAY + 1
    return tuple(total_frames * part // parts for part in range(1, parts))


def _diagnostics_frame(diagnostics: Diagnostics) -> pl.DataFrame:
    """The learning curve: one row a number of frames, null where a value was not taken."""
    names = sorted({name for row in diagnostics.rows.values() for name in row})
    frames = sorted(diagnostics.rows)
    columns = {
        name: pl.Series(name, [diagnostics.rows[at].get(name) for at in frames], pl.Float64)
        for name in names
    }
    return pl.DataFrame({"frames": pl.Series(frames, dtype=pl.Int64), **columns})


class _Log:
    """`job.log`: lines stamped with the seconds since the start."""

    def __init__(
        self, file: TextIO, clock: Callable[[], float], report: Callable[[Progress], None]
    ) -> None:
        self._file = file
        self._clock = clock
        self._started = clock()
        self._report = report

    def line(self, text: str) -> None:
        self._file.write(f"{self._clock() - self._started:9.1f} s  {text}\n")
        self._file.flush()

    def progress(self, progress: Progress) -> None:
        """Write one line and pass the progress on."""
        self.line(str(progress))
        self._report(progress)
