"""SB3's PPO with an update that spends its time in the network, not around it.

The same mathematics on the same minibatches as `stable_baselines3.PPO.train` (Schulman et al.
2017); the rollout is flattened once, and a minibatch is one call. Start at `LeanPPO`.
"""

from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import explained_variance

from trade_pipeline.training.dense_update import DenseUpdate, is_dense
from trade_pipeline.training.ppo_step import (
    INPUTS,
    AutogradUpdate,
    Step,
    StepSettings,
    divergence,
)


class LeanPPO(PPO):
    """PPO for `sb3.ObservationTrunk` and feed-forward networks."""

    _update: DenseUpdate | AutogradUpdate | None = None

    def train(self) -> None:
        """Update the policy on the rollout that was gathered."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        settings = StepSettings(
            clip_range=self.clip_range(self._current_progress_remaining),  # type: ignore[operator]
            entropy_coefficient=self.ent_coef,
            value_coefficient=self.vf_coef,
            max_grad_norm=self.max_grad_norm,
            most_divergence=np.inf if self.target_kl is None else 1.5 * self.target_kl,
            normalize_advantages=self.normalize_advantage,
        )
        if self._update is None:
            samples = self.n_steps * self.n_envs
            self._update = (
                DenseUpdate(self.policy, min(self.batch_size, samples), torch.get_num_threads())
                if is_dense(self.policy)
                else AutogradUpdate(self.policy)
            )
        self._update.begin(self._rollout())
        with self._update.alone():
            steps = self._steps(self._update, settings)
        self._update.end()
        last = np.concatenate([step.log_ratios for step in steps[-1]])
        self._log([step for epoch in steps for step in epoch], last, settings)

    def _steps(
        self, update: DenseUpdate | AutogradUpdate, settings: StepSettings
    ) -> list[list[Step]]:
        """What each epoch's minibatches gave; the last one is not taken where they went too far."""
        epochs: list[list[Step]] = []
        for _ in range(self.n_epochs):
            epochs.append([])
            self._n_updates += 1
            order = np.random.permutation(self.n_steps * self.n_envs)
            for start in range(0, len(order), self.batch_size):
                epochs[-1].append(update.step(order[start : start + self.batch_size], settings))
                if not epochs[-1][-1].taken:
                    return epochs
        return epochs

    def _rollout(self) -> dict[str, torch.Tensor]:
        """The rollout's arrays as tensors, steps and environments in one axis, as SB3 has them."""
        buffer = self.rollout_buffer

        def flat(array: Any) -> torch.Tensor:
            return torch.from_numpy(buffer.swap_and_flatten(array))

        observations: Any = buffer.observations
        seen = {name: flat(array) for name, array in observations.items()}
        # Windows are gathered once, not in each of the epochs.
        extractor: Any = self.policy.features_extractor
        rollout = {
            name: flat(getattr(buffer, name))
            for name in ("actions", "log_probs", "advantages", "returns")
        }
        return {**rollout, INPUTS: extractor.inputs(seen)}

    def _log(self, steps: list[Step], log_ratios: Any, settings: StepSettings) -> None:
        """What SB3 records of an update; divergence and clipping are those of the last epoch."""
        assert self._update is not None
        means = np.mean([step[:3] for step in steps], axis=0)
        last, record = steps[-1], self.logger.record
        record("train/policy_gradient_loss", float(means[0]))
        record("train/value_loss", float(means[1]))
        record("train/entropy_loss", -float(means[2]))
        record(
            "train/loss",
            last.policy_loss
            - settings.entropy_coefficient * last.entropy
            + settings.value_coefficient * last.value_loss,
        )
        outside = np.abs(np.exp(log_ratios) - 1.0) > settings.clip_range
        record("train/clip_fraction", float(np.mean(outside)))
        record("train/approx_kl", divergence(log_ratios))
        values, returns = self.rollout_buffer.values, self.rollout_buffer.returns
        explained = explained_variance(values.flatten(), returns.flatten())
        record("train/explained_variance", float(np.asarray(explained)))
        if hasattr(self.policy, "log_std"):
            record("train/std", self.policy.log_std.detach().exp().mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", settings.clip_range)
        for layer, norm in self._update.gradient_norms().items():
            record(f"gradient_norm/{layer}", norm)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        """Only an episode that ended has anything to say."""
        for e in np.flatnonzero(dones):
            self.ep_info_buffer.append(infos[e]["episode"])  # type: ignore[union-attr]
