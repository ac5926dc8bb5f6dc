"""Our PPO beside a plain one: the same update from the same rollout, and the same learning.

The plain one is `single_file_ppo`; the market is `mean_reverting`. Whoever changes how PPO is set
up, collects or updates learns here whether it still is PPO.
"""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from trade_pipeline.settings.algorithm import PPOSettings
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.training.diagnostics import Diagnostics
from trade_pipeline.training.networks import network_specification
from trade_pipeline.training.sb3 import ObservationTrunk, make_model
from trade_pipeline_tests.training import mean_reverting
from trade_pipeline_tests.training import single_file_ppo as plain

SETTINGS = PPOSettings.model_validate(
    {
        "kind": "ppo",
        "total_frames": 28_672,
        "environments": 64,
        "rollout_steps": 16,
        "batch_size": 256,
        "epochs": 4,
        "learning_rate": 3e-3,
        "gamma": 0.95,
        "gae_lambda": 0.9,
        "entropy_coefficient": 0.005,
        "reward_scale": 100.0,
        "network": {"kind": "mlp", "hidden": [32, 32], "activation": "tanh", "shared": True},
    }
)
HYPERPARAMETERS = plain.Hyperparameters(
    hidden=SETTINGS.network.hidden,
    **{
        name: getattr(SETTINGS, name)
        for name in plain.Hyperparameters.__dataclass_fields__
        if name != "hidden"
    },
)
SEEDS = range(3)
FEATURES = mean_reverting.market_and_features()[1]
LOSSES = plain.Losses._fields


def network(environments: TradingVecEnv) -> dict[str, Any]:
    outputs = int(environments.mapping.nvec.sum())
    return network_specification(SETTINGS.network, 1, 1, 1, outputs)


def ours(environments: TradingVecEnv, seed: int) -> OnPolicyAlgorithm:
    model = make_model(environments, SETTINGS, network(environments), seed, FEATURES)
    assert isinstance(model, OnPolicyAlgorithm)
    return model


def stable_baselines(environments: TradingVecEnv) -> PPO:
    """As SB3 has it: its own policy, distribution, optimizer and update; only the trunk is ours."""
    return PPO(
        "MultiInputPolicy",
        environments,
        learning_rate=SETTINGS.learning_rate,
        n_steps=SETTINGS.rollout_steps,
        batch_size=SETTINGS.batch_size,
        n_epochs=SETTINGS.epochs,
        gamma=SETTINGS.gamma,
        gae_lambda=SETTINGS.gae_lambda,
        clip_range=SETTINGS.clip_range,
        ent_coef=SETTINGS.entropy_coefficient,
        vf_coef=SETTINGS.value_coefficient,
        max_grad_norm=SETTINGS.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": ObservationTrunk,
            "features_extractor_kwargs": {
                "specification": network(environments),
                "features": FEATURES,
            },
            "net_arch": [],
        },
        device="cpu",
    )


def agent_of(model: OnPolicyAlgorithm, scale: list[float]) -> plain.Agent:
    """The plain agent with a model's weights."""
    choices = model.action_space.nvec  # type: ignore[attr-defined]
    agent = plain.Agent(1 + len(scale), choices, HYPERPARAMETERS.hidden)
    agent.load_state_dict(weights_of(model))
    return agent


def weights_of(model: OnPolicyAlgorithm) -> dict[str, torch.Tensor]:
    """An SB3 policy's weights as the plain agent names them."""
    names = {"features_extractor.trunk.layers.": "trunk.", "action_net.": "action."}
    names["value_net."] = "value."
    return {
        here + name.removeprefix(there): weight.clone()
        for name, weight in model.policy.state_dict().items()
        for there, here in names.items()
        if name.startswith(there)
    }


def gather(model: OnPolicyAlgorithm) -> DictRolloutBuffer:
    """One rollout; nothing is learned from it yet."""
    _, callback = model._setup_learn(SETTINGS.total_frames, None)
    callback.on_training_start({}, {})
    buffer = model.rollout_buffer
    assert model.env is not None and isinstance(buffer, DictRolloutBuffer)
    model.collect_rollouts(model.env, callback, buffer, SETTINGS.rollout_steps)
    return buffer


def rollout_of(
    model: OnPolicyAlgorithm, buffer: DictRolloutBuffer, agent: plain.Agent, flatten: plain.Flatten
) -> plain.Rollout:
    """What SB3 gathered, as the plain update takes it."""
    steps = range(SETTINGS.rollout_steps)
    seen = buffer.observations
    ended = [*buffer.episode_starts[1:], model._last_episode_starts]
    with torch.no_grad():
        last_values = agent(flatten(model._last_obs))[1]  # type: ignore[arg-type]
    return plain.Rollout(
        observations=torch.stack(
            [flatten({name: values[t] for name, values in seen.items()}) for t in steps]
        ),
        actions=torch.from_numpy(buffer.actions).long(),
        log_probabilities=torch.from_numpy(buffer.log_probs),
        values=torch.from_numpy(buffer.values),
        rewards=torch.from_numpy(buffer.rewards),
        dones=torch.from_numpy(np.array(ended, np.float32)),
        last_values=last_values,
    )


def train_seeded(model: OnPolicyAlgorithm) -> dict[str, float]:
    """Update on the gathered rollout, batches drawn from one seed; the losses that were logged."""
    np.random.seed(7)
    diagnostics = Diagnostics()
    model.set_logger(Logger(folder=None, output_formats=[diagnostics]))
    model.train()
    model.dump_logs()
    (row,) = diagnostics.rows.values()
    return {name: row[name] for name in LOSSES}


def test_an_update_is_that_of_stable_baselines_and_of_a_plain_ppo() -> None:
    # Short episodes, so that the rollout holds many ends.
    environments = mean_reverting.environments(
        SETTINGS.environments, 0, SETTINGS.reward_scale, episode_bars=8
    )
    model, stock = ours(environments, 0), stable_baselines(environments)
    scale = network(environments)["account_scale"]
    flatten = plain.flatten_with(scale, FEATURES)
    buffer = gather(model)
    assert buffer.episode_starts[1:].any()
    before = weights_of(model)
    agent = agent_of(model, scale)
    rollout = rollout_of(model, deepcopy(buffer), agent, flatten)
    stock.policy.load_state_dict(model.policy.state_dict())
    stock._setup_learn(SETTINGS.total_frames, None)
    stock.rollout_buffer = deepcopy(buffer)

    found, of_stock = train_seeded(model), train_seeded(stock)
    optimizer = plain.adam(agent, HYPERPARAMETERS.learning_rate)
    np.random.seed(7)
    of_plain = plain.update(agent, optimizer, rollout, HYPERPARAMETERS, np.random.permutation)

    assert found == pytest.approx(of_stock, abs=1e-5)
    assert found == pytest.approx(of_plain._asdict(), abs=1e-5)
    after, of_stock_after, of_plain_after = weights_of(model), weights_of(stock), agent.state_dict()
    assert set(after) == set(of_plain_after)
    for name, weight in after.items():
        assert (weight - before[name]).abs().max() > 1e-3, f"{name} has not learned"
        torch.testing.assert_close(weight, of_stock_after[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(weight, of_plain_after[name], rtol=0, atol=1e-5)


def test_advantages_are_those_of_a_plain_ppo() -> None:
    environments = mean_reverting.environments(
        SETTINGS.environments, 1, SETTINGS.reward_scale, episode_bars=8
    )
    model = ours(environments, 1)
    scale = network(environments)["account_scale"]
    buffer = gather(model)
    rollout = rollout_of(model, buffer, agent_of(model, scale), plain.flatten_with(scale, FEATURES))
    found = plain.advantages_of(rollout, SETTINGS.gamma, SETTINGS.gae_lambda)
    np.testing.assert_allclose(buffer.advantages, found.numpy(), atol=1e-5)


class Curve(BaseCallback):
    """What the greedy policy earns in the second half of a training, a look every few updates."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if looks_at(self.num_timesteps):
            self.shares.append(mean_reverting.share_of_best(self._act))

    def _act(self, seen: dict[str, Any]) -> Any:
        return self.model.predict(seen, deterministic=True)[0]


LOOK_EVERY = 4_096


def looks_at(frames: int) -> bool:
    return frames > 0 and frames % LOOK_EVERY == 0


def curve_of_ours(seed: int) -> list[float]:
    environments = mean_reverting.environments(SETTINGS.environments, seed, SETTINGS.reward_scale)
    curve = Curve()
    model = ours(environments, seed)
    model.learn(SETTINGS.total_frames, curve)
    curve.shares.append(mean_reverting.share_of_best(curve._act))
    return curve.shares


def curve_of_plain(seed: int) -> list[float]:
    environments = mean_reverting.environments(SETTINGS.environments, seed, SETTINGS.reward_scale)
    scale = network(environments)["account_scale"]
    flatten, shares = plain.flatten_with(scale, FEATURES), []

    def look(agent: plain.Agent, frames: int) -> None:
        @torch.no_grad()
        def act(seen: dict[str, Any]) -> Any:
            return plain.greedy(agent(flatten(seen))[0]).numpy()

        if looks_at(frames):
            shares.append(mean_reverting.share_of_best(act))

    plain.learn(environments, flatten, HYPERPARAMETERS, seed, look)
    return shares


def test_ppo_learns_as_well_and_as_fast_as_a_plain_one() -> None:
    curves = np.array([curve_of_ours(seed) for seed in SEEDS])
    of_plain = np.array([curve_of_plain(seed) for seed in SEEDS])
    print("ours", curves.round(2), "plain", of_plain.round(2), sep="\n")
    assert np.median(curves[:, -1]) > 0.85
    assert np.median(of_plain[:, -1]) > 0.85
    # The area under the learning curve: how fast, not only how far.
    assert abs(np.median(curves.mean(axis=1)) - np.median(of_plain.mean(axis=1))) < 0.2
