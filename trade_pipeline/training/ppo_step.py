"""What an update of PPO is asked for and gives; one by autograd.

Start at `AutogradUpdate`; `dense_update.DenseUpdate` does the same faster for dense layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

INPUTS = "inputs"  # in place of an observation's parts: what the network is applied to


class StepSettings(NamedTuple):
    """Settings of PPO's loss (Schulman et al. 2017), and when a step is not taken.

    Attributes:
        most_divergence: approximate Kullback-Leibler divergence above which nothing is changed.
    """

    clip_range: float
    entropy_coefficient: float
    value_coefficient: float
    max_grad_norm: float
    most_divergence: float
    normalize_advantages: bool


class Update(NamedTuple):
    """What an update gave.

    Attributes:
        losses: float64 [minibatches, 3], means over each one's samples, in their order: the
            policy's loss, the value's, entropy. The last minibatch may not have been learned from.
        log_ratios: float32, log probabilities now less those of the rollout, of the last epoch's
            samples in its order.
        epochs: how many were begun.
        steps: how many minibatches were learned from.
    """

    losses: NDArray[np.float64]
    log_ratios: NDArray[np.float32]
    epochs: int
    steps: int


class AutogradUpdate:
    """Steps of any feed-forward policy of SB3, differentiated by torch."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self._parameters = list(policy.parameters())
        self._rollout: Mapping[str, torch.Tensor] = {}

    def begin(self, rollout: Mapping[str, torch.Tensor]) -> None:
        """Take a rollout.

        Args:
            rollout: `inputs` [n, I], `actions` [n, parts]; `log_probs`, `advantages`, `returns` of
                n numbers each.
        """
        self._rollout = rollout

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around `learn`: nothing to see to."""
        yield

    def learn(self, orders: NDArray[np.int64], batch: int, settings: StepSettings) -> Update:
        """Learn from the rollout, minibatch after minibatch, until the policy has moved too far.

        Args:
            orders: int64 [epochs, n], rows of the rollout.
            batch: samples of each minibatch of an epoch but perhaps the last.
            settings: of the loss.
        """
        losses: list[list[float]] = []
        moved: list[NDArray[np.float32]] = []
        for epochs, order in enumerate(orders, 1):
            moved = []
            for start in range(0, len(order), batch):
                found, log_ratios, taken = self._step(order[start : start + batch], settings)
                losses.append(found)
                moved.append(log_ratios)
                if not taken:
                    return Update(np.array(losses), np.concatenate(moved), epochs, len(losses) - 1)
        return Update(np.array(losses), np.concatenate(moved), len(orders), len(losses))

    def _step(
        self, chosen: NDArray[np.int64], settings: StepSettings
    ) -> tuple[list[float], NDArray[np.float32], bool]:
        """Losses and log ratios of a minibatch, and whether it was learned from."""
        rows = torch.from_numpy(chosen)
        # Indexing copies number by number.
        batch = {name: values.index_select(0, rows) for name, values in self._rollout.items()}
        advantages = batch["advantages"].flatten()
        if settings.normalize_advantages and len(advantages) > 1:
            deviation, mean = torch.std_mean(advantages)
            advantages = (advantages - mean) / (deviation + 1e-8)
        values, log_prob, entropies = self._policy.evaluate_actions(
            {INPUTS: batch[INPUTS]}, batch["actions"]
        )
        log_ratios = log_prob - batch["log_probs"].flatten()
        ratio, by = log_ratios.exp(), settings.clip_range
        policy_loss = -torch.min(
            advantages * ratio, advantages * ratio.clamp(1 - by, 1 + by)
        ).mean()
        value_loss = functional.mse_loss(batch["returns"].flatten(), values.flatten())
        entropy = entropies.mean()
        moved = log_ratios.detach()
        taken = divergence(moved.numpy()) <= settings.most_divergence
        if taken:
            for parameter in self._parameters:
                parameter.grad = None
            loss = (
                policy_loss
                - settings.entropy_coefficient * entropy
                + settings.value_coefficient * value_loss
            )
            loss.backward()
            clip_grad_norm_(self._parameters, settings.max_grad_norm)
            self._policy.optimizer.step()
        losses = [float(one.detach()) for one in (policy_loss, value_loss, entropy)]
        return losses, moved.numpy(), taken

    def gradient_norms(self) -> dict[str, float]:
        """Nothing: hooks see these gradients."""
        return {}

    def end(self) -> None:
        """Nothing is left to do."""


def divergence(log_ratios: NDArray[np.float32]) -> float:
    """Approximate Kullback-Leibler divergence (Schulman, "Approximating KL divergence", 2020)."""
    return float(np.mean(np.exp(log_ratios) - 1.0 - log_ratios))
