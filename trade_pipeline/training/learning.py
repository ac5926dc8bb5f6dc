"""One training as it runs: the model, what was seen of it, the policy that is kept so far.

Everything that the rest of a training depends on goes through `_state`, so that it can go on from
a checkpoint. Start at `Learning.run`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from trade_pipeline.settings.algorithm import AlgorithmSettings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.training.action_spaces import with_actions_of
from trade_pipeline.training.callbacks import Progress, TrainingCallback
from trade_pipeline.training.checkpoint import Checkpoints, restore, state_of
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.diagnostics import (
    Diagnostics,
    TensorBoardWriter,
    tensorboard_writer,
    warnings_of,
)
from trade_pipeline.training.policy import AccountStatistics, Normalizer, PolicyRunner
from trade_pipeline.training.sb3 import learner_weights, make_model, policy_weights
from trade_pipeline.training.splits import long_enough
from trade_pipeline.training.validation import evaluate


class TrainingError(Exception):
    """A training gave nothing usable; the message names the trial and what to change."""


class Log:
    """`job.log`: lines stamped with the seconds since the start; some are told to people, too."""

    def __init__(
        self, file: TextIO, clock: Callable[[], float], report: Callable[[Progress | str], None]
    ) -> None:
        self._file = file
        self._clock = clock
        self._started = clock()
        self._report = report

    def line(self, text: str) -> None:
        """Write one line."""
        self._file.write(f"{self._clock() - self._started:9.1f} s  {text}\n")
        self._file.flush()

    def say(self, said: Progress | str) -> None:
        """Write one line and pass it on."""
        self.line(str(said))
        self._report(said)


@dataclass(frozen=True)
class Look:
    """A policy as one look at validation found it.

    Attributes:
        frames: that it had learned from.
        validation_return: what it earned there, a fraction.
        weights: as `PolicyNetwork` names them.
        learner: all weights, as SB3 names them.
        account: running statistics of the account vector, where it is normalized.
    """

    frames: int
    validation_return: float
    weights: dict[str, NDArray[np.float32]]
    learner: dict[str, NDArray[Any]]
    account: AccountStatistics | None


class Learning:
    """One training from its first frame, or its checkpoint, to its last.

    Args:
        dataset: market, features and folds.
        environment: of the trial's variant.
        algorithm: of the trial's variant.
        trial: fold and seed; its key is for messages.
        specification: see `trainer.policy_specification`.
        normalizer: fitted on the fold's training part.
        labels: what starts are stratified by, [T], or None.
        log: where it says how it goes.
        clock: monotonic seconds.

    Attributes:
        model: SB3's algorithm.
        diagnostics: rows so far.
        kept: the look whose weights become the policy.
        stopped_early: whether looks at validation ended it.
        learned: frames of this process, fewer than the model's after a checkpoint.
    """

    def __init__(
        self,
        dataset: Dataset,
        environment: EnvironmentSettings,
        algorithm: AlgorithmSettings,
        trial: Trial,
        specification: Mapping[str, Any],
        normalizer: Normalizer,
        labels: NDArray[np.float32] | None,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._market = dataset.market
        self._environment, self._algorithm, self._trial = environment, algorithm, trial
        self._specification, self._normalizer = specification, normalizer
        self._log, self._clock = log, clock
        self._features = normalizer.transform(dataset.features)
        fold = dataset.folds[trial.fold]
        self._validation = long_enough(fold.validation, environment.window)
        environments: VecEnv = TradingVecEnv(
            self._market,
            self._features,
            long_enough(fold.train, environment.window),
            environment,
            environments=algorithm.environments,
            seed=trial.seed,
            reward_scale=algorithm.reward_scale,
            observe="index",
            labels=labels,
        )
        environments = with_actions_of(environments, specification["action"])
        normalize = algorithm.normalize
        if normalize.account or normalize.reward:
            environments = VecNormalize(
                environments,
                norm_obs=normalize.account,
                norm_reward=normalize.reward,
                clip_obs=normalize.clip,
                clip_reward=normalize.clip,
                gamma=algorithm.gamma,
                norm_obs_keys=["account"] if normalize.account else None,
            )
        self.model: BaseAlgorithm = make_model(
            environments, algorithm, specification["network"], trial.seed, self._features
        )
        self.diagnostics = Diagnostics()
        self.kept: Look | None = None
        self.stopped_early = False
        self.learned = 0
        self._best_return = -np.inf
        self._looks_without_improvement = 0
        self._warned: list[str] = []

    def run(
        self, checkpoints: Checkpoints | None, save_every_s: float, tensorboard: str | None
    ) -> None:
        """Learn to the end.

        Args:
            checkpoints: where the state is kept, and from where to go on.
            save_every_s: seconds between checkpoints.
            tensorboard: folder for its files, or None for none.

        Raises:
            TrainingError: the weights are not finite.
        """
        total, looks = self._algorithm.total_frames, self._algorithm.evaluation.looks
        saved = checkpoints.load() if checkpoints else None
        if saved is not None:
            self.diagnostics = Diagnostics.restored(saved["diagnostics"])
        elif checkpoints and checkpoints.was_saved:
            self._log.say(
                "the checkpoint of this trial is another training's or damaged; begins anew"
            )
        writer = tensorboard_writer(tensorboard, self.diagnostics) if tensorboard else None
        self._use_logger(writer)
        callback = TrainingCallback(
            total_frames=total,
            looks_at=[total * number // looks for number in range(1, looks)],
            action=self._specification["action"],
            diagnostics=self.diagnostics,
            tensorboard=writer,
            report=self._log.say,
            clock=self._clock,
            look=self._look,
            save=lambda: checkpoints.save(self._state(callback)) if checkpoints else None,
            save_every_s=save_every_s,
            policy=self.model.policy,
        )
        if saved is not None:
            self._restore(saved, callback)
            self._log.say(f"goes on from its checkpoint at {self.model.num_timesteps} frames")
        before = self.model.num_timesteps
        try:
            self.model.learn(
                total - before,
                callback,
                log_interval=None,  # type: ignore[arg-type]
                reset_num_timesteps=saved is None,
            )
        except ValueError:
            self._require_finite()  # says it better than torch's distributions
            raise
        self.learned = self.model.num_timesteps - before
        callback.write_row()
        if not self.stopped_early:
            self._look(self.model.num_timesteps)
        self.model.logger.close()

    def _use_logger(self, writer: TensorBoardWriter | None) -> None:
        writers: list[KVWriter] = [self.diagnostics]
        if writer is not None:
            writers.append(writer)
        self.model.set_logger(Logger(folder=None, output_formats=writers))

    def _look(self, frames: int) -> bool:
        """Run the policy on validation; False when there was no improvement for long enough."""
        self._require_finite()
        kind, settings = self._algorithm.kind, self._algorithm.evaluation
        weights = _arrays(policy_weights(self.model, kind))
        account = _account_statistics(self.model)
        normalizer = replace(self._normalizer, account=account)
        runner = PolicyRunner(self._specification, normalizer, weights)
        equity, fills = evaluate(
            runner, self._market, self._features, self._validation, self._environment
        )
        value = float(equity[-1] / equity[0] - 1)
        self.diagnostics.record(frames, "validation_return", value)
        self.diagnostics.record(frames, "validation_fills", fills)
        self._log.say(f"{frames} frames: validation return {value:.4%}, {fills} fills")
        self._warn()
        improved = value > self._best_return
        self._looks_without_improvement = 0 if improved else self._looks_without_improvement + 1
        self._best_return = max(value, self._best_return)
        if improved or settings.keep == "last":
            learner = _arrays(learner_weights(self.model))
            self.kept = Look(frames, value, weights, learner, account)
        if settings.patience is None or self._looks_without_improvement < settings.patience:
            return True
        self.stopped_early = True
        self._log.say(
            f"{frames} frames: stops early after {settings.patience} looks without improvement; "
            f"the best validation return was {self._best_return:.4%}"
        )
        return False

    def _warn(self) -> None:
        """Say what is wrong, once."""
        target = getattr(self._algorithm, "target_kl", None)
        for key, sentence in warnings_of(self.diagnostics, target).items():
            if key not in self._warned:
                self._warned.append(key)
                self._log.say(f"warning: {sentence}")

    def _state(self, callback: TrainingCallback) -> dict[str, Any]:
        return {
            "model": state_of(self.model),
            "callback": callback.state(),
            "diagnostics": self.diagnostics.state(),
            "kept": self.kept and _look_state(self.kept),
            "best_return": float(self._best_return),
            "looks_without_improvement": self._looks_without_improvement,
            "warned": self._warned,
        }

    def _restore(self, saved: Mapping[str, Any], callback: TrainingCallback) -> None:
        restore(self.model, saved["model"])
        callback.restore(saved["callback"])
        self.kept = saved["kept"] and _restored_look(saved["kept"])
        self._best_return = saved["best_return"]
        self._looks_without_improvement = saved["looks_without_improvement"]
        self._warned = saved["warned"]

    def _require_finite(self) -> None:
        for weight in self.model.policy.state_dict().values():
            if not bool(torch.isfinite(weight).all()):
                raise TrainingError(
                    f"trial {self._trial.key}: the weights are not finite after "
                    f"{self.model.num_timesteps} frames; lower learning_rate or reward_scale."
                )


def _arrays(weights: Mapping[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    return {name: weight.numpy() for name, weight in weights.items()}


def _account_statistics(model: BaseAlgorithm) -> AccountStatistics | None:
    normalize = unwrap_vec_normalize(model.env) if model.env is not None else None
    if normalize is None or not normalize.norm_obs:
        return None
    found = normalize.obs_rms["account"]
    return AccountStatistics(
        found.mean.copy(), found.var.copy(), normalize.epsilon, normalize.clip_obs
    )


def _look_state(look: Look) -> dict[str, Any]:
    account = look.account
    return {
        **{name: getattr(look, name) for name in ("frames", "validation_return")},
        **{name: getattr(look, name) for name in ("weights", "learner")},
        "account": account and (account.mean, account.var, account.epsilon, account.clip),
    }


def _restored_look(state: Mapping[str, Any]) -> Look:
    account = state["account"] and AccountStatistics(*state["account"])
    return Look(**{**state, "account": account})
