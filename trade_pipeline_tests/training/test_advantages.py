"""Compiled advantages have the bits of Stable-Baselines3's."""

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from trade_pipeline.training.advantages import estimate


@given(
    steps=st.integers(1, 20),
    environments=st.integers(1, 9),
    gamma=st.floats(0.5, 1.0),
    gae_lambda=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_advantages_and_returns_are_those_of_stable_baselines3(
    steps: int, environments: int, gamma: float, gae_lambda: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    one = spaces.Box(-1.0, 1.0, (1,))
    expected = RolloutBuffer(steps, one, one, "cpu", gae_lambda, gamma, environments)
    for array in (expected.rewards, expected.values):
        array[:] = random.normal(size=array.shape)
    expected.episode_starts[:] = random.random((steps, environments)) < 0.3
    last_values = random.normal(size=environments).astype(np.float32)
    ended = random.random(environments) < 0.3
    found = np.empty((2, steps, environments), np.float32)
    estimate(
        expected.rewards,
        expected.values,
        expected.episode_starts,
        last_values,
        ended.astype(np.float32),
        np.float32(gamma),
        np.float32(gamma * gae_lambda),
        *found,
    )
    expected.compute_returns_and_advantage(torch.from_numpy(last_values), ended)
    np.testing.assert_array_equal(found[0], expected.advantages)
    np.testing.assert_array_equal(found[1], expected.returns)
