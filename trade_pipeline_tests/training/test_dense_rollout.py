"""Compiled rollouts hold what the policy's own modules would do and expect."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper

from trade_pipeline.settings.algorithm import PPOSettings
from trade_pipeline.training.acting import Looked
from trade_pipeline.training.dense_policy import DensePolicy, alone
from trade_pipeline.training.dense_rollout import DenseRollout
from trade_pipeline.training.networks import network_specification
from trade_pipeline.training.ppo import LeanPPO
from trade_pipeline.training.sb3 import make_model
from trade_pipeline_tests.training import mean_reverting
from trade_pipeline_tests.training.test_dense_update import (
    CHOICES,
    NUMBERS,
    ROWS,
    WINDOW,
    policy_of,
)

ENVIRONMENTS = 300  # a whole chunk of accounts and a part of one
STEPS = 40
ENDS = 5  # steps after which the episodes of every other account end and begin elsewhere


def seen_at(step: int) -> dict[str, NDArray[Any]]:
    """Accounts some bars on in their episodes, some of which end; others see all rows."""
    accounts = np.arange(ENVIRONMENTS)
    episodes, bars = np.divmod(step + accounts % ENDS, ENDS)
    begun = WINDOW - 1 + (accounts + 7 * episodes) % (ROWS - WINDOW - ENDS)
    lasting = accounts % 2 == 1
    begun[lasting] = (WINDOW - 1 + accounts % (ROWS - WINDOW + 1 - STEPS))[lasting]
    bars[lasting] = step
    account = np.random.default_rng(step).normal(size=(ENVIRONMENTS, 6))
    row = (begun + bars)[:, None].astype(np.int32)
    return {"row": row, "account": account.astype(np.float32)}


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in seen_at(step).items()}


def rollout_of(policy: Any, threads: int) -> DenseRollout:
    dense = DensePolicy(policy)
    dense.adopt()
    return DenseRollout(dense, policy.pi_features_extractor, STEPS, ENVIRONMENTS, threads)


def looks_of(actions: spaces.Space[Any], shared: bool, threads: int) -> tuple[Any, list[Looked]]:
    policy = policy_of(actions, shared, "tanh")
    rollout = rollout_of(policy, threads)
    rollout.begin(np.random.default_rng(11))
    with alone(rollout.threads):
        return policy, [rollout.look(seen_at(step), step) for step in range(STEPS)]


@pytest.mark.parametrize("actions", [CHOICES, NUMBERS], ids=["choices", "numbers"])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_looks_are_those_of_the_modules(actions: spaces.Space[Any], shared: bool) -> None:
    policy, looks = looks_of(actions, shared, 1)
    with torch.no_grad():
        for step, looked in enumerate(looks):
            taken = torch.from_numpy(looked.actions)
            values, log_probs, _ = policy.evaluate_actions(tensors_at(step), taken)
            np.testing.assert_allclose(looked.values, values.flatten(), atol=1e-5)
            np.testing.assert_allclose(looked.log_probs, log_probs, atol=1e-5)


def test_choices_are_drawn_as_often_as_they_are_likely() -> None:
    policy, looks = looks_of(CHOICES, True, 1)
    taken = np.stack([looked.actions for looked in looks])
    with torch.no_grad():
        logits = torch.cat(
            [policy.get_distribution(tensors_at(step))._logits for step in range(STEPS)]
        )
    start = 0
    for part, count in enumerate(CHOICES.nvec):
        likely = torch.softmax(logits[:, start : start + count], 1).numpy().mean(axis=0)
        found = np.bincount(taken[:, :, part].astype(int).ravel(), minlength=count) / taken[0].size
        found = found * len(CHOICES.nvec) / STEPS
        # Four deviations of a mean over all draws.
        np.testing.assert_allclose(found, likely, atol=4 * 0.5 / np.sqrt(STEPS * ENVIRONMENTS))
        start += int(count)


def test_numbers_are_drawn_around_what_the_policy_means() -> None:
    policy, looks = looks_of(NUMBERS, True, 1)
    taken = np.stack([looked.actions for looked in looks])
    with torch.no_grad():
        meant = [policy.get_distribution(tensors_at(step)).distribution for step in range(STEPS)]
    means, deviations = (
        np.stack([getattr(one, name).numpy() for one in meant]) for name in ("mean", "stddev")
    )
    scaled = (taken - means) / deviations
    assert abs(scaled.mean()) < 4 / np.sqrt(scaled.size)
    assert abs(scaled.std() - 1) < 4 / np.sqrt(2 * scaled.size)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_what_was_looked_at_ahead_changes_no_bit(shared: bool) -> None:
    policy = policy_of(CHOICES, shared, "tanh")
    rollout = rollout_of(policy, 1)
    rollout.begin(np.random.default_rng(11))

    def alone_at(step: int) -> NDArray[np.float32]:
        seen = seen_at(step)
        return rollout.values(
            [{name: values[e] for name, values in seen.items()} for e in range(ENVIRONMENTS)]
        )

    for step in range(STEPS):
        found = rollout.look(seen_at(step), step).values
        assert found.tobytes() == alone_at(step).tobytes()
    assert seen_at(STEPS)["row"].max() == ROWS - 1
    assert rollout.last_values(seen_at(STEPS)).tobytes() == alone_at(STEPS).tobytes()


def test_what_was_looked_at_ahead_is_forgotten_when_a_rollout_begins() -> None:
    policy = policy_of(CHOICES, True, "tanh")
    rollout = rollout_of(policy, 1)
    rollout.begin(np.random.default_rng(11))
    rollout.look(seen_at(0), 0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(0.5)
    rollout.begin(np.random.default_rng(11))
    found = rollout.look(seen_at(1), 1)
    with torch.no_grad():
        values = policy.evaluate_actions(tensors_at(1), torch.from_numpy(found.actions))[0]
    np.testing.assert_allclose(found.values, values.flatten(), atol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_threads_change_no_bit(shared: bool) -> None:
    (_, one), (_, two) = looks_of(CHOICES, shared, 1), looks_of(CHOICES, shared, 2)
    for first, second in zip(one, two, strict=True):
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


class Watched(VecEnvWrapper):
    """Remembers what environments gave, before anybody changes it."""

    def __init__(self, environments: Any) -> None:
        super().__init__(environments)
        self.given: list[tuple[NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]] = []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        seen, rewards, dones, infos = self.venv.step_wait()
        self.given.append((rewards.copy(), dones.copy(), infos))
        return seen, rewards, dones, infos


class Silent(BaseCallback):
    """Says nothing."""

    def _on_step(self) -> bool:
        return True


def test_a_gathered_rollout_holds_what_was_seen_done_and_given() -> None:
    settings = PPOSettings.model_validate(
        {"kind": "ppo", "total_frames": 512, "environments": 16, "rollout_steps": 32}
    )
    environments = Watched(mean_reverting.environments(16, 3, 1.0, episode_bars=9))
    network = network_specification(settings.network, 1, 1, 1, 10)
    outputs = int(environments.action_space.nvec.sum())
    network["outputs"] = outputs
    features = mean_reverting.market_and_features()[1]
    model = make_model(environments, settings, network, 5, features)
    assert isinstance(model, LeanPPO)
    _, callback = model._setup_learn(512, Silent())
    buffer: Any = model.rollout_buffer
    assert model.collect_rollouts(model.env, callback, buffer, 32)

    cut = 0
    for step, (rewards, dones, infos) in enumerate(environments.given):
        expected = rewards.copy()
        for e in np.flatnonzero(dones):
            if infos[e]["TimeLimit.truncated"]:
                last = model.policy.obs_to_tensor(infos[e]["terminal_observation"])[0]
                with torch.no_grad():
                    expected[e] += settings.gamma * float(model.policy.predict_values(last))
                cut += 1
        np.testing.assert_allclose(buffer.rewards[step], expected, atol=1e-6)
        if step:
            before = environments.given[step - 1][1]
            np.testing.assert_array_equal(buffer.episode_starts[step], before)
        seen = {
            name: torch.from_numpy(values[step]) for name, values in buffer.observations.items()
        }
        with torch.no_grad():
            values, log_probs, _ = model.policy.evaluate_actions(
                seen, torch.from_numpy(buffer.actions[step])
            )
        np.testing.assert_allclose(buffer.values[step], values.flatten(), atol=1e-5)
        np.testing.assert_allclose(buffer.log_probs[step], log_probs, atol=1e-5)
    assert cut > 10
