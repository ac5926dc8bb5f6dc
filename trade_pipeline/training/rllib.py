"""PPO by Ray's RLlib: environments in worker processes, the same dataset in, the same bundle out.

Needs the extra `rllib`, which pins another gymnasium, hence an environment of its own; Ray is
imported only once a training begins. It runs for one training, on the loopback device, and is gone
when that ends, however it ends. No checkpoints: a training that was killed begins anew. Start at
`train_rllib`.
"""

import importlib.util
from collections.abc import Callable, Mapping
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.algorithm import RLlibPPOSettings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.storage.bundles import seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.callbacks import MOST_ROWS, REPORT_EVERY_SECONDS, Progress
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.diagnostics import Diagnostics, tensorboard_writer, warnings_of
from trade_pipeline.training.learning import Log, Look, TrainingError
from trade_pipeline.training.networks import torch_threads
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    Normalizer,
    PolicyRunner,
    Traded,
    write_policy,
)
from trade_pipeline.training.splits import long_enough
from trade_pipeline.training.trainer import TrainedPolicy, policy_specification, start_labels
from trade_pipeline.training.validation import evaluate

if TYPE_CHECKING:
    from trade_pipeline.training.rllib_learner import Learner, Update


def require_ray(origin: str) -> None:
    """Refuse to train with RLlib where it is not installed.

    Args:
        origin: what wants to be trained, for the message.

    Raises:
        TrainingError: names what to install.
    """
    if importlib.util.find_spec("ray") is None:
        raise TrainingError(
            f"{origin}: algorithm rllib_ppo needs Ray, which is not installed here; "
            "pip install trade_pipeline[rllib] into an environment of its own, as docs/rllib.md "
            "says, or use algorithm ppo."
        )


def train_rllib(
    dataset: Dataset,
    environment: EnvironmentSettings,
    algorithm: RLlibPPOSettings,
    trial: Trial,
    staging: ArtifactLocation,
    report: Callable[[Progress | str], None],
    clock: Callable[[], float],
    provenance: Mapping[str, Any] | None = None,
    tensorboard: bool = True,
) -> TrainedPolicy:
    """Train a policy with RLlib and write its bundle; everything is as for `trainer.train`.

    Raises:
        TrainingError: Ray is not installed, the weights are not finite, or a feature is missing.
    """
    require_ray(f"trial {trial.key}")
    from trade_pipeline.training.rllib_learner import Learner, running_ray
    from trade_pipeline.training.rllib_network import TrainingPart

    specification = policy_specification(dataset, environment, algorithm, trial)
    specification["versions"]["ray"] = package_version("ray")
    train_part = dataset.folds[trial.fold].train
    normalizer = Normalizer.fit(dataset.features, train_part, dataset.scaling)
    part = TrainingPart(
        market=dataset.market,
        features=normalizer.transform(dataset.features),
        segments=long_enough(train_part, environment.window),
        settings=environment,
        labels=start_labels(dataset, environment, trial),
        reward_scale=algorithm.reward_scale,
    )
    staging.path.mkdir(parents=True, exist_ok=True)
    started = clock()
    with (
        (staging.path / "job.log").open("w", encoding="utf-8") as file,
        torch_threads(algorithm.threads),
        running_ray(algorithm.workers, part.features.nbytes + dataset.market.bars.nbytes),
    ):
        log = Log(file, clock, report)
        log.say(
            f"trial {trial.key}: {algorithm.total_frames} frames, seed {trial.seed}, "
            f"{algorithm.workers} workers of RLlib"
        )
        learner = Learner(part, algorithm, specification, trial.seed)

        def validate(weights: Mapping[str, NDArray[np.float32]]) -> Traded:
            runner = PolicyRunner(specification, normalizer, weights)
            segments = dataset.folds[trial.fold].validation
            return evaluate(runner, part.market, part.features, segments, environment)

        run = _Run(learner, algorithm, trial, validate, log, clock)
        try:
            run.to_the_end(str(staging.path / "tb") if tensorboard else None)
        finally:
            learner.close()
        seconds = clock() - started
        log.line(f"done: {run.frames} frames in {seconds:.1f} s")
    best = run.kept
    assert best is not None  # the last look, at the latest
    metrics = {
        "frames": float(run.frames),
        "seconds": seconds,
        "frames_per_second": run.frames / seconds if seconds > 0 else None,
        "mean_episode_reward": run.episode_reward,
        "validation_return": best.validation_return,
        "best_frames": float(best.frames),
        "stopped_early": float(run.stopped_early),
    }
    write_policy(staging, best.weights, best.learner, normalizer, specification)
    known = {**(provenance or {}), "inputs": dict(dataset.input_versions), "metrics": metrics}
    write_json(staging.child("provenance.json"), known | {"deterministic": False})
    write_frame(staging.child("diagnostics.parquet"), run.diagnostics.frame())
    return TrainedPolicy(seal(staging, DETERMINISTIC), metrics)


class _Run:
    """Updates until all frames are learned from, with looks at validation on the way.

    Attributes:
        frames: learned from so far.
        episode_reward: mean of the latest episodes, before `reward_scale`.
        diagnostics: rows so far.
        kept: the look whose weights become the policy.
        stopped_early: whether looks at validation ended it.
    """

    def __init__(
        self,
        learner: "Learner",
        algorithm: RLlibPPOSettings,
        trial: Trial,
        validate: Callable[[Mapping[str, NDArray[np.float32]]], Traded],
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._learner, self._algorithm, self._trial = learner, algorithm, trial
        self._validate = validate
        self._log, self._clock = log, clock
        self.frames = 0
        self.episode_reward: float | None = None
        self.diagnostics = Diagnostics()
        self.kept: Look | None = None
        self.stopped_early = False
        self._best_return = -np.inf
        self._looks_without_improvement = 0
        self._warned: set[str] = set()

    def to_the_end(self, tensorboard: str | None) -> None:
        """Learn; `tensorboard` is a folder for its files, or None for none.

        Raises:
            TrainingError: the weights are not finite.
        """
        total, looks = self._algorithm.total_frames, self._algorithm.evaluation.looks
        looks_at = [total * number // looks for number in range(1, looks + 1)]
        writer = tensorboard_writer(tensorboard, self.diagnostics) if tensorboard else None
        started = reported = self._clock()
        next_row = 0
        while self.frames < total and not self.stopped_early:
            update = self._update()
            if self.frames >= next_row or self.frames >= total:
                next_row = self.frames + total // MOST_ROWS
                self._write_row(update)
            if self.frames >= looks_at[0]:
                looks_at = [at for at in looks_at if at > self.frames]
                self._look()
            if self._clock() - reported >= REPORT_EVERY_SECONDS:
                reported = self._clock()
                self._send(reported - started)
        self._send(self._clock() - started)
        if writer is not None:
            writer.close()

    def _update(self) -> "Update":
        try:
            update = self._learner.update()
        except ValueError:
            self._require_finite()  # says it better than torch's distributions
            raise
        self.frames = update.frames
        self._require_finite()
        if update.episode_reward is not None:
            self.episode_reward = update.episode_reward / self._algorithm.reward_scale
        return update

    def _write_row(self, update: "Update") -> None:
        self.diagnostics.record(self.frames, "ep_rew_mean", self.episode_reward)
        for name, value in update.figures.items():
            self.diagnostics.record(self.frames, name, value)

    def _look(self) -> None:
        """Run the policy on validation; keep it, and stop, as the settings say."""
        settings, weights = self._algorithm.evaluation, self._learner.policy_weights()
        equity, fills = self._validate(weights)
        value = float(equity[-1] / equity[0] - 1)
        self.diagnostics.record(self.frames, "validation_return", value)
        self.diagnostics.record(self.frames, "validation_fills", fills)
        self._log.say(f"{self.frames} frames: validation return {value:.4%}, {fills} fills")
        for key, sentence in warnings_of(self.diagnostics).items():
            if key not in self._warned:
                self._warned.add(key)
                self._log.say(f"warning: {sentence}")
        improved = value > self._best_return
        self._looks_without_improvement = 0 if improved else self._looks_without_improvement + 1
        self._best_return = max(value, self._best_return)
        if improved or settings.keep == "last":
            learner = self._learner.learner_weights()
            self.kept = Look(self.frames, value, weights, learner, account=None)
        if settings.patience is not None and self._looks_without_improvement >= settings.patience:
            self.stopped_early = True
            self._log.say(
                f"{self.frames} frames: stops early after {settings.patience} looks without "
                f"improvement; the best validation return was {self._best_return:.4%}"
            )

    def _send(self, elapsed_s: float) -> None:
        total = self._algorithm.total_frames
        speed = self.frames / elapsed_s if elapsed_s > 0 else 0.0
        left = max(total - self.frames, 0)
        eta_s = left / speed if speed > 0 else 0.0
        self._log.say(Progress(self.frames, total, speed, eta_s, self.episode_reward))

    def _require_finite(self) -> None:
        weights = self._learner.learner_weights()
        if not all(np.isfinite(weight).all() for weight in weights.values()):
            raise TrainingError(
                f"trial {self._trial.key}: the weights are not finite after {self.frames} frames; "
                "lower learning_rate or reward_scale."
            )
