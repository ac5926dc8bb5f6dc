"""Stable-Baselines3's algorithms, set up from our settings, and what we take out of them.

What leaves here is plain: named tensors for `networks.PolicyNetwork`. Start at `make_model`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import RecurrentPPO
from stable_baselines3 import A2C, DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv

from trade_pipeline.settings.algorithm import (
    A2CSettings,
    AlgorithmSettings,
    DQNSettings,
    LinearSchedule,
    LSTMSettings,
    OnPolicy,
    RecurrentPPOSettings,
    SACSettings,
    TD3Settings,
)
from trade_pipeline.training.choices import ChoicesPolicy
from trade_pipeline.training.networks import ACTIVATIONS, Trunk
from trade_pipeline.training.ppo import LeanPPO
from trade_pipeline.training.ppo_step import INPUTS

# Where SB3 keeps what `PolicyNetwork` is made of, by algorithm: prefix there to prefix here.
_ON_POLICY = {"pi_features_extractor.trunk.": "trunk.", "action_net.": "action."}
NAMES = {
    "ppo": _ON_POLICY,
    "a2c": _ON_POLICY,
    "recurrent_ppo": {**_ON_POLICY, "lstm_actor.": "lstm."},
    "sac": {"actor.features_extractor.trunk.": "trunk.", "actor.mu.": "action."},
    "td3": {"actor.features_extractor.trunk.": "trunk.", "actor.mu.0.": "action."},
    "dqn": {"q_net.features_extractor.trunk.": "trunk.", "q_net.q_net.0.": "action."},
}


class ObservationTrunk(BaseFeaturesExtractor):
    """The policy's `Trunk` as SB3's features extractor; finds the window of a row by itself.

    Args:
        observation_space: `window` or `row`, and `account`.
        specification: of the network.
        features: float32 [T, C], scaled, where observations hold the row alone.

    Attributes:
        features: all of them, flat, where observations hold the row alone.
        window: rows, W.
        columns: C.
        by_row: whether observations hold the row alone.
    """

    features: torch.Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        specification: Mapping[str, Any],
        features: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(observation_space, specification["hidden"][-1])
        self.trunk = Trunk(specification)
        self.window, self.columns = specification["window"], specification["columns"]
        self.by_row = features is not None
        if features is not None:
            # Copied: torch wants memory that may be written.
            flat = torch.from_numpy(np.array(features, np.float32).reshape(-1))
            self.register_buffer("features", flat, persistent=False)

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features [B, D] of a batch of observations, or of their `inputs`."""
        if INPUTS in observations:
            return self.trunk.of_inputs(observations[INPUTS])
        return self.trunk.of_inputs(self.inputs(observations))

    def inputs(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the trunk's weights are applied to, [B, W * C + A]."""
        if self.by_row:
            columns = self.columns
            windows = len(self.features) // columns - self.window + 1
            every = self.features.as_strided((windows, self.window * columns), (columns, 1))
            first = observations["row"][:, 0].long() - (self.window - 1)
            # RecurrentPPO fills sequences up with row 0, which it leaves out of its losses.
            window = every.index_select(0, first.clamp_min(0))
        else:
            window = observations["window"].flatten(1)
        return self.trunk.inputs(window, observations["account"])


def make_model(
    environments: VecEnv,
    algorithm: AlgorithmSettings,
    specification: Mapping[str, Any],
    seed: int,
    features: NDArray[np.float32] | None = None,
) -> BaseAlgorithm:
    """The algorithm on the processor; seeds python, numpy, torch and the environments.

    Args:
        environments: with the actions that the algorithm knows.
        algorithm: settings.
        specification: of the network, see `networks.network_specification`.
        seed: of everything random.
        features: float32 [T, C], for environments whose observations hold rows.
    """
    network = algorithm.network
    extractor = {
        "features_extractor_class": ObservationTrunk,
        "features_extractor_kwargs": {"specification": specification, "features": features},
        "share_features_extractor": network.shared,
        "net_arch": [],
    }
    common: dict[str, Any] = {
        "env": environments,
        "learning_rate": scheduled(algorithm.learning_rate),
        "gamma": algorithm.gamma,
        "seed": seed,
        "device": "cpu",
    }
    if isinstance(algorithm, OnPolicy):
        return _on_policy(algorithm, common, extractor)
    common |= {
        "policy": "MultiInputPolicy",
        "buffer_size": algorithm.buffer_size,
        "learning_starts": algorithm.learning_starts,
        "batch_size": algorithm.batch_size,
        "train_freq": (algorithm.train_every, "step"),
        "gradient_steps": algorithm.gradient_steps,
        "tau": algorithm.tau,
    }
    if isinstance(algorithm, DQNSettings):
        del extractor["share_features_extractor"]  # there is no value beside the policy
        return DQN(
            **common,
            target_update_interval=algorithm.target_update_frames,
            exploration_fraction=algorithm.exploration_fraction,
            exploration_final_eps=algorithm.exploration_final,
            max_grad_norm=algorithm.max_grad_norm,
            policy_kwargs=extractor,
        )
    # A value that is linear in the action would have its best action always at a bound.
    critic = {"pi": [], "qf": [network.hidden[-1]]}
    extractor |= {"net_arch": critic, "activation_fn": ACTIVATIONS[network.activation]}
    if isinstance(algorithm, SACSettings):
        weight = algorithm.entropy_coefficient
        return SAC(**common, ent_coef="auto" if weight is None else weight, policy_kwargs=extractor)
    assert isinstance(algorithm, TD3Settings)
    shape = environments.action_space.shape
    assert shape is not None
    noise = NormalActionNoise(np.zeros(shape), np.full(shape, algorithm.action_noise))
    return TD3(
        **common,
        action_noise=noise,
        policy_delay=algorithm.policy_delay,
        target_policy_noise=algorithm.target_noise,
        target_noise_clip=algorithm.target_noise_clip,
        policy_kwargs=extractor,
    )


def _on_policy(
    algorithm: OnPolicy, common: dict[str, Any], extractor: dict[str, Any]
) -> BaseAlgorithm:
    common |= {
        "n_steps": algorithm.rollout_steps,
        "gae_lambda": algorithm.gae_lambda,
        "ent_coef": algorithm.entropy_coefficient,
        "vf_coef": algorithm.value_coefficient,
        "max_grad_norm": algorithm.max_grad_norm,
    }
    if isinstance(algorithm, A2CSettings):
        return A2C(ChoicesPolicy, **common, policy_kwargs=extractor)
    common |= {
        "batch_size": algorithm.batch_size,
        "n_epochs": algorithm.epochs,
        "clip_range": scheduled(algorithm.clip_range),
        "target_kl": algorithm.target_kl,
    }
    extractor["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
    if not isinstance(algorithm, RecurrentPPOSettings):
        return LeanPPO(ChoicesPolicy, **common, policy_kwargs=extractor)
    network = algorithm.network
    assert isinstance(network, LSTMSettings)  # `check_algorithm` saw to it
    extractor |= {
        "lstm_hidden_size": network.size,
        "shared_lstm": network.shared,
        "enable_critic_lstm": not network.shared,
    }
    return RecurrentPPO("MultiInputLstmPolicy", **common, policy_kwargs=extractor)


def scheduled(value: float | LinearSchedule) -> float | Callable[[float], float]:
    """A constant, or a function of the part of the training that is left."""
    if isinstance(value, LinearSchedule):
        # The last rollout may end beyond the total: then less than nothing is left.
        return lambda left: value.end + (value.start - value.end) * max(left, 0.0)
    return value


def policy_weights(model: BaseAlgorithm, kind: str) -> dict[str, torch.Tensor]:
    """What acts, under the names of `PolicyNetwork`; what only learns stays behind."""
    named = {}
    for name, weight in model.policy.state_dict().items():
        for there, here in NAMES[kind].items():
            if name.startswith(there):
                named[here + name.removeprefix(there)] = _copied(weight)
    return named


def learner_weights(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    """All weights of SB3's policy, critics included, under SB3's names."""
    return {name: _copied(weight) for name, weight in model.policy.state_dict().items()}


def _copied(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().clone().contiguous()
