"""SB3's PPO that spends its time in the network, not around it.

The same mathematics on the same minibatches as `stable_baselines3.PPO` (Schulman et al. 2017); a
step of a rollout and a minibatch are one call each. Start at `LeanPPO`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv

from trade_pipeline.simulator.compiled import SameTypes
from trade_pipeline.training.advantages import estimate
from trade_pipeline.training.dense_policy import DensePolicy, alone, is_dense
from trade_pipeline.training.dense_rollout import DenseRollout
from trade_pipeline.training.dense_update import DenseUpdate
from trade_pipeline.training.ppo_step import (
    INPUTS,
    AutogradUpdate,
    StepSettings,
    Update,
    divergence,
)


class LastUpdate(NamedTuple):
    """What there is to say of an update: what it gave, and what it learned from."""

    update: Update
    settings: StepSettings
    values: NDArray[np.float32]
    returns: NDArray[np.float32]


class LeanPPO(PPO):
    """PPO for `sb3.ObservationTrunk` and feed-forward networks."""

    _estimate = SameTypes(estimate)
    _places: NDArray[np.int64] | None = None
    _dense: DensePolicy | None = None
    _gathered: DenseRollout | None = None
    _update: DenseUpdate | AutogradUpdate | None = None
    _unsaid: LastUpdate | None = None

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
    ) -> bool:
        """Gather a rollout; False where the callback ends the training.

        As SB3's; in compiled code for policies of dense layers that observe rows, whose weights
        stay as they are until the rollout ends.
        """
        if self._dense is None and not is_dense(self.policy):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        rollout_buffer.reset()
        callback.on_rollout_start()
        if self._dense is None or self._gathered is None:
            self._dense = DensePolicy(self.policy)
            self._gathered = DenseRollout(
                self._dense,
                self.policy.pi_features_extractor,
                n_rollout_steps,
                env.num_envs,
                torch.get_num_threads(),
            )
        self._dense.adopt()
        self._gathered.begin(self.action_space.np_random)
        with alone(self._gathered.threads):
            for step in range(n_rollout_steps):
                if not self._take(step, env, callback, rollout_buffer, self._gathered):
                    return False
            last_values = self._gathered.last_values(self._last_obs)  # type: ignore[arg-type]
        self._gathered.keep(rollout_buffer)
        self._estimate(
            rollout_buffer.rewards,
            rollout_buffer.values,
            rollout_buffer.episode_starts,
            last_values,
            self._last_episode_starts.astype(np.float32),  # type: ignore[union-attr]
            np.float32(self.gamma),
            np.float32(self.gamma * self.gae_lambda),
            rollout_buffer.advantages,
            rollout_buffer.returns,
        )
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _take(
        self,
        step: int,
        env: VecEnv,
        callback: BaseCallback,
        buffer: RolloutBuffer,
        gathered: DenseRollout,
    ) -> bool:
        """One step of each environment into the buffer; False where the callback says so."""
        seen: Any = self._last_obs
        actions = gathered.look(seen, step).actions
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        else:
            actions = actions.astype(np.int64)
        after: Any
        after, rewards, dones, infos = env.step(actions)
        self.num_timesteps += env.num_envs
        callback.update_locals({"actions": actions, "infos": infos, "dones": dones})
        if not callback.on_step():
            return False
        ended = dones.nonzero()[0].tolist()
        if ended:
            self._end_episodes(ended, infos, rewards, gathered)
        observations: Any = buffer.observations
        for name, values in seen.items():
            observations[name][step] = values
        buffer.rewards[step] = rewards
        buffer.episode_starts[step] = self._last_episode_starts
        self._last_obs, self._last_episode_starts = after, dones
        return True

    def _end_episodes(
        self,
        ended: list[int],
        infos: list[dict[str, Any]],
        rewards: NDArray[np.float32],
        gathered: DenseRollout,
    ) -> None:
        """Remember episodes that ended; one that was cut off would have gone on."""
        assert self.ep_info_buffer is not None
        self.ep_info_buffer.extend(infos[e]["episode"] for e in ended)
        cut = [e for e in ended if infos[e].get("TimeLimit.truncated", False)]
        if cut:
            lasts = gathered.values([infos[e]["terminal_observation"] for e in cut])
            rewards[cut] += self.gamma * lasts

    def train(self) -> None:
        """Update the policy on the rollout that was gathered."""
        if self._dense is None:
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
        if self._dense is not None and self._gathered is not None:
            if not isinstance(self._update, DenseUpdate):
                batch = min(self.batch_size, self.n_steps * self.n_envs)
                self._update = DenseUpdate(self._dense, batch, torch.get_num_threads())
            self._update.begin(self._gathered.samples(self.rollout_buffer))
        else:
            if not isinstance(self._update, AutogradUpdate):
                self._update = AutogradUpdate(self.policy)
            self._update.begin(self._rollout())
        orders = np.stack([self._order() for _ in range(self.n_epochs)])
        with self._update.alone():
            found = self._update.learn(orders, self.batch_size, settings)
        self._update.end()
        self._n_updates += found.epochs
        buffer = self.rollout_buffer
        self._unsaid = LastUpdate(found, settings, buffer.values, buffer.returns)

    def dump_logs(self, iteration: int = 0) -> None:
        """Say what the last update gave, and what SB3 says."""
        if self._unsaid is not None:
            self._record(self._unsaid)
            self._unsaid = None
        super().dump_logs(iteration)

    def _order(self) -> NDArray[np.int64]:
        """The rollout's samples as SB3 shuffles them, which counts an environment's one by one."""
        if self._places is None:
            places = np.arange(self.n_steps * self.n_envs).reshape(self.n_steps, self.n_envs)
            self._places = places.T.reshape(-1)
        return np.random.permutation(self._places)

    def _rollout(self) -> dict[str, torch.Tensor]:
        """The rollout's arrays as tensors [S * E, ...], one step after the other."""

        def flat(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).flatten(0, 1)

        buffer: Any = self.rollout_buffer
        # Windows are gathered once, not in each of the epochs.
        extractor: Any = self.policy.features_extractor
        inputs = extractor.inputs(
            {name: flat(array) for name, array in buffer.observations.items()}
        )
        rollout = {
            name: flat(getattr(buffer, name))
            for name in ("actions", "log_probs", "advantages", "returns")
        }
        return {**rollout, INPUTS: inputs}

    def _record(self, last: LastUpdate) -> None:
        """What SB3 records of an update; divergence and clipping are those of the last epoch."""
        assert self._update is not None
        found, settings, values, returns = last
        record = self.logger.record
        policy_loss, value_loss, entropy = found.losses.mean(axis=0).tolist()
        record("train/policy_gradient_loss", policy_loss)
        record("train/value_loss", value_loss)
        record("train/entropy_loss", -entropy)
        policy_loss, value_loss, entropy = found.losses[-1].tolist()
        by_entropy, by_value = settings.entropy_coefficient, settings.value_coefficient
        record("train/loss", policy_loss - by_entropy * entropy + by_value * value_loss)
        outside = np.abs(np.exp(found.log_ratios) - 1.0) > settings.clip_range
        record("train/clip_fraction", float(np.mean(outside)))
        record("train/approx_kl", divergence(found.log_ratios))
        explained = explained_variance(values.flatten(), returns.flatten())
        record("train/explained_variance", float(np.asarray(explained)))
        if hasattr(self.policy, "log_std"):
            record("train/std", self.policy.log_std.detach().exp().mean().item())
        record("train/n_updates", self._n_updates, exclude="tensorboard")
        record("train/clip_range", settings.clip_range)
        for layer, norm in self._update.gradient_norms().items():
            record(f"gradient_norm/{layer}", norm)
