"""Stable-Baselines3's PPO, set up from our settings, and what we take out of it afterwards.

What leaves it is plain: named tensors for
`policy.PolicyNetwork`, rows of diagnostics, progress. Start at `make_ppo`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.utils import safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from trade_pipeline.settings.experiment import PPOSettings
from trade_pipeline.training.policy import flatten_observation, trunk

REPORT_EVERY_SECONDS = 1.0


class Progress(NamedTuple):
    """How far a training is; `mean_episode_reward` is None until an episode has ended."""

    frames: int
    total_frames: int
    frames_per_second: float
    eta_seconds: float
    mean_episode_reward: float | None

    def __str__(self) -> str:
        """A line for people who watch."""
        reward = self.mean_episode_reward
        return (
            f"{self.frames} of {self.total_frames} frames, {self.frames_per_second:.0f} a second, "
            f"{self.eta_seconds:.0f} s left, mean episode reward "
            + ("not known yet" if reward is None else f"{reward:.4g}")
        )


class ObservationTrunk(BaseFeaturesExtractor):
    """Flattens and scales an observation as `PolicyNetwork` does; a shared trunk is in here.

    SB3 shares between policy and value only what its features extractor holds.
    """

    account_scale: torch.Tensor

    def __init__(
        self, observation_space: spaces.Dict, specification: Mapping[str, Any], shared: bool
    ) -> None:
        hidden = specification["hidden"]
        super().__init__(observation_space, hidden[-1] if shared else specification["inputs"])
        self.register_buffer("account_scale", torch.tensor(specification["account_scale"]))
        self.trunk: nn.Module = nn.Identity()
        if shared:
            self.trunk = trunk(specification["inputs"], hidden, specification["activation"])

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, D] of window [B, W, N * F] and account [B, 5 N + 1]."""
        flat = flatten_observation(
            observations["window"], observations["account"], self.account_scale
        )
        features: torch.Tensor = self.trunk(flat)
        return features


def make_ppo(
    environments: VecEnv, algorithm: PPOSettings, specification: Mapping[str, Any], seed: int
) -> PPO:
    """PPO on the processor; seeds python, numpy, torch and the environments."""
    network = algorithm.network
    hidden = list(network.hidden)
    return PPO(
        "MultiInputPolicy",
        environments,
        learning_rate=algorithm.learning_rate,
        n_steps=algorithm.rollout_steps,
        batch_size=algorithm.batch_size,
        n_epochs=algorithm.epochs,
        gamma=algorithm.gamma,
        gae_lambda=algorithm.gae_lambda,
        clip_range=algorithm.clip_range,
        ent_coef=algorithm.entropy_coefficient,
        vf_coef=algorithm.value_coefficient,
        max_grad_norm=algorithm.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": ObservationTrunk,
            "features_extractor_kwargs": {
                "specification": specification,
                "shared": network.shared,
            },
            "net_arch": [] if network.shared else {"pi": hidden, "vf": hidden},
            "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[network.activation],
        },
        seed=seed,
        device="cpu",
    )


def policy_weights(model: PPO) -> dict[str, torch.Tensor]:
    """The policy's weights under the names of `PolicyNetwork`; the value function stays behind."""
    state = model.policy.state_dict()
    shared = isinstance(model.policy.features_extractor.trunk, nn.Sequential)
    layers = "features_extractor.trunk." if shared else "mlp_extractor.policy_net."
    named = {
        "trunk." + name.removeprefix(layers): weight
        for name, weight in state.items()
        if name.startswith(layers)
    }
    named |= {f"action.{part}": state[f"action_net.{part}"] for part in ("weight", "bias")}
    return {name: weight.detach().clone().contiguous() for name, weight in named.items()}


class Diagnostics(KVWriter):
    """Keeps what SB3 logs of each update, one row a number of frames."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float | None]] = {}

    def record(self, frames: int, name: str, value: float | None) -> None:
        """Put one value into the row of `frames`."""
        self.rows.setdefault(frames, {})[name] = value

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        """Called by SB3's logger; its clock readings are left out."""
        for key, value in key_values.items():
            if not key.startswith("time/") and isinstance(value, int | float | np.number):
                self.record(step, key.partition("/")[2], float(value))

    def close(self) -> None:
        """Nothing to close."""


def use_logger(model: PPO, diagnostics: Diagnostics, tensorboard: str | None) -> None:
    """Send SB3's log to `diagnostics`, and to a TensorBoard folder where one is given."""
    writers: list[KVWriter] = [diagnostics]
    if tensorboard is not None:
        writers.append(TensorBoardOutputFormat(tensorboard))
    model.set_logger(Logger(folder=None, output_formats=writers))


class TrainingCallback(BaseCallback):
    """Reports progress about once a second and stops now and then to look at validation."""

    def __init__(
        self,
        total_frames: int,
        report: Callable[[Progress], None],
        clock: Callable[[], float],
        validate: Callable[[int], object],
        validate_at: tuple[int, ...],
    ) -> None:
        super().__init__()
        self._total = total_frames
        self._report = report
        self._clock = clock
        self._validate = validate
        self._pending = list(validate_at)
        self._started = self._reported = clock()

    def _on_step(self) -> bool:
        if self._clock() - self._reported >= REPORT_EVERY_SECONDS:
            self._send()
        return True

    def _on_rollout_start(self) -> None:
        if self._pending and self.num_timesteps >= self._pending[0]:
            self._pending = [frames for frames in self._pending if frames > self.num_timesteps]
            self._validate(self.num_timesteps)

    def _on_training_end(self) -> None:
        self._send()

    def _send(self) -> None:
        self._reported = self._clock()
        elapsed = self._reported - self._started
        speed = self.num_timesteps / elapsed if elapsed > 0 else 0.0
        left = max(self._total - self.num_timesteps, 0)
        self._report(
            Progress(
                frames=self.num_timesteps,
                total_frames=self._total,
                frames_per_second=speed,
                eta_seconds=left / speed if speed > 0 else 0.0,
                mean_episode_reward=mean_episode_reward(self.model),
            )
        )


def mean_episode_reward(model: Any) -> float | None:
    """Mean over the last hundred episodes that ended, before `reward_scale`, or None."""
    episodes = model.ep_info_buffer
    return float(safe_mean([episode["r"] for episode in episodes])) if episodes else None
