"""What every process of an RLlib training holds: an environment and the network. Needs Ray.

The network is `networks.PolicyNetwork` with a value function beside it, so that its policy part is
a bundle's weights as they are. Start at `TradingModule` and `make_environment`; `rllib` trains.
"""

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import psutil
import ray
import torch
from gymnasium.wrappers import TransformReward
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.env import PortfolioEnv, TradingEnv
from trade_pipeline.simulator.market import Market
from trade_pipeline.training.networks import PolicyNetwork, Trunk
from trade_pipeline.training.splits import Rows

# How SB3 draws first weights: the same algorithm should start from the same place.
HIDDEN_GAIN, ACTION_GAIN, VALUE_GAIN = 2.0**0.5, 0.01, 1.0
PARENT_CHECK_S = 1.0

Batch = dict[str, Any]


class TrainingPart(NamedTuple):
    """What environments of all processes read, kept once in Ray's shared memory.

    Attributes:
        market: T bars.
        features: float32 [T, N * F], scaled.
        segments: int64 [S, 2], rows to train on.
        settings: the environment's.
        labels: float32 [T] to stratify starts by, or None.
        reward_scale: rewards are multiplied by this.
    """

    market: Market
    features: NDArray[np.float32]
    segments: Rows
    settings: EnvironmentSettings
    labels: NDArray[np.float32] | None
    reward_scale: float


def make_environment(context: Any) -> gymnasium.Env[Any, Any]:
    """One environment of a worker.

    Args:
        context: RLlib's, with `part`, a reference to a `TrainingPart`.
    """
    _end_with_raylet()
    part: TrainingPart = ray.get(context["part"])
    kind = TradingEnv if part.settings.actions.kind == "brackets" else PortfolioEnv
    environment = kind(
        part.market,
        part.features,
        part.segments,
        part.settings,
        flat_actions=True,
        labels=part.labels,
    )
    scaled = TransformReward(environment, lambda reward: float(reward) * part.reward_scale)
    return _SeedOfWorker(scaled, context.worker_index)


@cache
def _end_with_raylet() -> None:
    """End this worker and Ray's agents when their parent was killed.

    By themselves they would wait a minute for a server that is gone, too.
    """
    raylet = psutil.Process(os.getppid())
    siblings = [one for one in raylet.children() if one.pid != os.getpid()]

    def watch() -> None:
        while os.getppid() == raylet.pid:
            time.sleep(PARENT_CHECK_S)
        for sibling in siblings:
            with suppress(psutil.NoSuchProcess):
                sibling.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _SeedOfWorker(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Seeds that differ between workers.

    RLlib gives environment i of worker w the seed + w + i: most would run the same episodes.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any], worker: int) -> None:
        super().__init__(environment)
        self._worker = worker

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            seed = int(np.random.SeedSequence([self._worker, seed]).generate_state(1)[0])
        return super().reset(seed=seed, options=options)


class TradingModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """Policy and value as an RLModule; `model_config` has `network`, `action` and `shared`.

    Attributes:
        policy: trunk and linear map to the numbers that the action is made of.
        value_trunk: the value's own trunk, or None if it shares the policy's.
        value: linear map to the value.
        log_std: float32 [N] log deviation of weights while exploring; None for choices.
    """

    def setup(self) -> None:
        """Called by RLlib: build the layers."""
        network, action = self.model_config["network"], self.model_config["action"]
        self.policy = PolicyNetwork(network)
        self.value_trunk = None if self.model_config["shared"] else Trunk(network)
        self.value = nn.Linear(network["hidden"][-1], 1)
        self.log_std: nn.Parameter | None = None
        if "nvec" in action:
            self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(
                space=self.action_space, input_lens=action["nvec"]
            )
        else:
            self.log_std = nn.Parameter(torch.zeros(len(action["low"])))
            self.action_dist_cls = TorchDiagGaussian
        for part, gain in (
            (self.policy.trunk, HIDDEN_GAIN),
            (self.value_trunk, HIDDEN_GAIN),
            (self.policy.action, ACTION_GAIN),
            (self.value, VALUE_GAIN),
        ):
            _initialize(part, gain)

    def _forward(self, batch: Batch, **_: Any) -> Batch:
        features = self.policy.trunk(*_observation(batch))
        return {Columns.ACTION_DIST_INPUTS: self._distribution_inputs(features)}

    def _forward_train(self, batch: Batch, **_: Any) -> Batch:
        features = self.policy.trunk(*_observation(batch))
        return {
            Columns.ACTION_DIST_INPUTS: self._distribution_inputs(features),
            Columns.EMBEDDINGS: features,
        }

    def compute_values(self, batch: Batch, embeddings: torch.Tensor | None = None) -> torch.Tensor:
        """Values [B] of a batch's observations; `embeddings` are the policy's features."""
        if self.value_trunk is not None:
            embeddings = self.value_trunk(*_observation(batch))
        elif embeddings is None:
            embeddings = self.policy.trunk(*_observation(batch))
        values: torch.Tensor = self.value(embeddings)
        return values.squeeze(-1)

    def _distribution_inputs(self, features: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.policy.action(features)
        if self.log_std is None:
            return outputs
        return torch.cat([outputs, self.log_std.expand_as(outputs)], dim=1)


def _observation(batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Window [B, W * C] and account [B, A]."""
    seen = batch[Columns.OBS]
    return seen["window"].flatten(1), seen["account"]


def _initialize(part: nn.Module | None, gain: float) -> None:
    for module in part.modules() if part is not None else ():
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.orthogonal_(module.weight, gain)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
