"""Proximal policy optimization in one file, to be read from top to bottom: the regression baseline.

Written from Schulman et al. (2017), "Proximal Policy Optimization Algorithms", and (2016),
"High-Dimensional Continuous Control Using Generalized Advantage Estimation", in the manner of
CleanRL: plain torch, nothing of Stable-Baselines3 and nothing of our trainer. It steps a
`TradingVecEnv` with bracket actions and window observations. Start at `learn`; the update is
`update`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trade_pipeline.simulator.vec_env import TradingVecEnv


@dataclass(frozen=True)
class Hyperparameters:
    """As in the paper; the names are those of our settings."""

    total_frames: int
    rollout_steps: int
    batch_size: int
    epochs: int
    hidden: tuple[int, ...]
    learning_rate: float
    gamma: float
    gae_lambda: float
    clip_range: float
    entropy_coefficient: float
    value_coefficient: float
    max_grad_norm: float


class Agent(nn.Module):
    """One trunk of hyperbolic tangents; on top of it logits of each choice, and the value."""

    def __init__(self, inputs: int, choices: NDArray[np.int64], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.choices = [int(count) for count in choices]
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [orthogonal(nn.Linear(inputs, size), 2**0.5), nn.Tanh()]
            inputs = size
        self.trunk = nn.Sequential(*layers)
        # Nearly equal probabilities at first, so that everything is tried.
        self.action = orthogonal(nn.Linear(inputs, sum(self.choices)), 0.01)
        self.value = orthogonal(nn.Linear(inputs, 1), 1.0)

    def forward(self, observations: Tensor) -> tuple[list[Tensor], Tensor]:
        """Log probabilities [B, options] of each choice, and values [B]."""
        features = self.trunk(observations)
        logits = self.action(features).split(self.choices, dim=1)
        return [part.log_softmax(dim=1) for part in logits], self.value(features)[:, 0]


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def log_probability(parts: list[Tensor], actions: Tensor) -> Tensor:
    """Of actions [B, parts]: choices are independent, so their log probabilities add up, [B]."""
    chosen = [part.gather(1, actions[:, k : k + 1]) for k, part in enumerate(parts)]
    return torch.cat(chosen, dim=1).sum(dim=1)


def entropy(parts: list[Tensor]) -> Tensor:
    """Of all choices together, [B]."""
    return -torch.stack([(part.exp() * part).sum(dim=1) for part in parts]).sum(dim=0)


def sample(parts: list[Tensor]) -> Tensor:
    """One choice of each part at random, [B, parts]."""
    drawn = [torch.multinomial(part.exp(), 1) for part in parts]
    return torch.cat(drawn, dim=1)


def greedy(parts: list[Tensor]) -> Tensor:
    """The likeliest choice of each part, [B, parts]."""
    return torch.stack([part.argmax(dim=1) for part in parts], dim=1)


Flatten = Callable[[Mapping[str, NDArray[Any]]], Tensor]


def flatten_with(account_scale: list[float], features: NDArray[np.float32]) -> Flatten:
    """A function from observations to the network's inputs [B, inputs]: a row, then account."""
    scale = np.array(account_scale, np.float32)

    def flatten(seen: Mapping[str, NDArray[Any]]) -> Tensor:
        rows = features[np.asarray(seen["row"]).reshape(-1)]
        account = np.asarray(seen["account"]).reshape(len(rows), -1)
        return torch.from_numpy(np.hstack([rows, account * scale]))

    return flatten


class Rollout(NamedTuple):
    """T steps of E environments.

    Attributes:
        observations: [T, E, inputs].
        actions: int64 [T, E, parts].
        log_probabilities, values: [T, E], of the agent that acted.
        rewards: [T, E]; of an episode cut by time with what it would still have been worth.
        dones: [T, E], 1 where the step ended an episode.
        last_values: [E], of the observations after the last step.
    """

    observations: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor
    dones: Tensor
    last_values: Tensor


@torch.no_grad()
def collect(
    agent: Agent,
    environments: TradingVecEnv,
    seen: Tensor,
    flatten: Flatten,
    given: Hyperparameters,
) -> tuple[Rollout, Tensor]:
    """Act for T steps; the rollout, and what is seen after it."""
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(given.rollout_steps):
        parts, values = agent(seen)
        actions = sample(parts)
        observed, rewards, dones, infos = environments.step(actions.numpy())
        rewards = torch.from_numpy(rewards)
        for e in np.flatnonzero(dones):
            # Time ran out, not the account: what would have followed still counts.
            if infos[e]["TimeLimit.truncated"]:
                terminal = flatten(infos[e]["terminal_observation"])
                rewards[e] += given.gamma * agent(terminal)[1][0]
        done = torch.from_numpy(dones.astype(np.float32))
        steps.append((seen, actions, log_probability(parts, actions), values, rewards, done))
        seen = flatten(observed)
    stacked = (torch.stack(parts) for parts in zip(*steps, strict=True))
    return Rollout(*stacked, last_values=agent(seen)[1]), seen


def advantages_of(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """Generalized advantage estimates [T, E], from the last step back."""
    advantages = torch.zeros_like(rollout.rewards)
    following, next_values = torch.zeros_like(rollout.last_values), rollout.last_values
    for t in reversed(range(len(advantages))):
        goes_on = 1 - rollout.dones[t]
        surprise = rollout.rewards[t] + gamma * next_values * goes_on - rollout.values[t]
        following = surprise + gamma * gae_lambda * goes_on * following
        advantages[t], next_values = following, rollout.values[t]
    return advantages


class Losses(NamedTuple):
    """Means over all batches of an update, by the names that SB3 logs them under."""

    policy_gradient_loss: float
    value_loss: float
    entropy_loss: float


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    given: Hyperparameters,
    shuffled: Callable[[int], NDArray[np.int64]],
) -> Losses:
    """Several epochs over one rollout, in batches.

    Args:
        agent: changed in place.
        optimizer: of its parameters.
        rollout: T steps of E environments.
        given: hyperparameters.
        shuffled: a random order of so many frames; they count environment by environment.
    """

    def flat(values: Tensor) -> Tensor:
        return values.transpose(0, 1).flatten(0, 1)

    advantages = advantages_of(rollout, given.gamma, given.gae_lambda)
    returns = flat(advantages + rollout.values)
    observations, actions = flat(rollout.observations), flat(rollout.actions)
    advantages, before = flat(advantages), flat(rollout.log_probabilities)
    found: list[list[float]] = []
    for _ in range(given.epochs):
        order = torch.from_numpy(shuffled(len(returns)))
        for batch in order.split(given.batch_size):
            parts, values = agent(observations[batch])
            advantage = advantages[batch]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            ratio = (log_probability(parts, actions[batch]) - before[batch]).exp()
            clipped = ratio.clamp(1 - given.clip_range, 1 + given.clip_range)
            # The smaller of both: nothing is gained by going further than the clip range.
            policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
            value_loss = ((returns[batch] - values) ** 2).mean()
            entropy_loss = -entropy(parts).mean()
            loss = (
                policy_loss
                + given.entropy_coefficient * entropy_loss
                + given.value_coefficient * value_loss
            )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), given.max_grad_norm)
            optimizer.step()
            found.append([term.item() for term in (policy_loss, value_loss, entropy_loss)])
    return Losses(*np.mean(found, axis=0).tolist())


def adam(agent: Agent, learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)


def learn(
    environments: TradingVecEnv,
    flatten: Flatten,
    given: Hyperparameters,
    seed: int,
    look: Callable[[Agent, int], None],
) -> Agent:
    """Train an agent from nothing.

    Args:
        environments: E accounts with bracket actions.
        flatten: what makes the network's inputs of observations.
        given: hyperparameters.
        seed: of the agent; the environments have their own.
        look: called after each rollout's update with the agent and the frames so far.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    seen = flatten(environments.reset())
    agent = Agent(seen.shape[1], environments.mapping.nvec, given.hidden)
    optimizer = adam(agent, given.learning_rate)
    frames = 0
    while frames < given.total_frames:
        rollout, seen = collect(agent, environments, seen, flatten, given)
        update(agent, optimizer, rollout, given, rng.permutation)
        frames += given.rollout_steps * environments.num_envs
        look(agent, frames)
    return agent
