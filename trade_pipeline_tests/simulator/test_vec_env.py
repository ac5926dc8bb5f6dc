"""The vector environment: the same trajectories as the scalar ones, and SB3's contract."""

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor

from trade_pipeline.settings.experiment import WeightActions
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline_tests.simulator.markets import random_market
from trade_pipeline_tests.simulator.test_env import (
    ROWS,
    SEGMENTS,
    environment_settings,
    features,
)

WEIGHTS = WeightActions(kind="weights", short=True)


def vec_env(environments: int = 4, seed: int = 0, instruments: int = 1, **kwargs: Any) -> Any:
    scale = kwargs.pop("reward_scale", 1.0)
    if instruments > 1:
        kwargs["actions"] = WEIGHTS
    return TradingVecEnv(
        random_market(ROWS, instruments, 1),
        features(instruments),
        SEGMENTS,
        environment_settings(**kwargs),
        environments,
        seed,
        scale,
    )


def scalar_env(env: TradingVecEnv) -> SimulatedEnv:
    kind = TradingEnv if env.settings.actions.kind == "brackets" else PortfolioEnv
    columns = env.market.instruments
    return kind(env.market, features(columns), SEGMENTS, env.settings)


@pytest.mark.parametrize("instruments", [1, 3])
def test_a_vector_environment_walks_as_scalar_ones_with_the_same_actions(instruments: int) -> None:
    env = vec_env(6, seed=2, instruments=instruments)
    rng = np.random.default_rng(0)
    observation = env.reset()
    twins = [scalar_env(env) for _ in range(6)]
    window = env.settings.window

    def start(e: int) -> None:
        """The twin begins in the state that the vector environment drew."""
        mine = Account(env.account.balances[e : e + 1], env.account.positions[e : e + 1])
        segment = (int(env.row[e]) - window + 1, int(env.last[e]) + 2)
        first, _ = twins[e].reset(options={"segment": segment, "account": mine})
        assert_same(first, {name: values[e] for name, values in observation.items()})

    for e in range(6):
        start(e)
    ended = 0
    for _ in range(80):
        actions = env.mapping.sample(rng, 6)
        observation, rewards, dones, infos = env.step(actions)
        for e, twin in enumerate(twins):
            action = actions[e] if instruments > 1 else twin.mapping.to_dict(actions[e])
            seen, gained, terminated, truncated, info = twin.step(action)
            assert np.float32(gained) == rewards[e]
            assert dones[e] == (terminated or truncated)
            if dones[e]:
                ended += 1
                assert_same(seen, infos[e]["terminal_observation"])
                assert infos[e]["TimeLimit.truncated"] == truncated
                start(e)
            else:
                assert infos[e] == {}
                assert info["fills"] == env.fills.of(e)
                assert_same(seen, {name: values[e] for name, values in observation.items()})
    assert ended > 6


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in ("window", "account"):
        assert one[name].tobytes() == other[name].tobytes()


def roll(env: Any, steps: int = 60) -> bytes:
    rng = np.random.default_rng(0)
    seen = [env.reset()["account"].tobytes()]
    for _ in range(steps):
        observation, rewards, dones, _ = env.step(env.mapping.sample(rng, env.num_envs))
        seen += [observation["account"].tobytes(), observation["window"].tobytes()]
        seen += [rewards.tobytes(), dones.tobytes()]
    return b"".join(seen)


def test_the_seed_decides_everything() -> None:
    assert roll(vec_env(seed=1)) == roll(vec_env(seed=1))
    assert roll(vec_env(seed=1)) != roll(vec_env(seed=2))
    env = vec_env(seed=9)
    env.seed(1)
    assert roll(env) == roll(vec_env(seed=1))


def test_environments_differ_from_each_other() -> None:
    env = vec_env(16)
    env.reset()
    assert len(np.unique(env.row)) > 8


def test_first_episodes_are_cut_at_random_so_that_ends_are_staggered() -> None:
    env = vec_env(64)
    env.reset()
    lengths = env.last - env.row + 1
    assert lengths.min() >= 1
    assert lengths.max() <= 30
    assert len(np.unique(lengths)) > 10


def test_infos_tell_return_and_length_of_an_episode_unscaled() -> None:
    env = vec_env(3, reward_scale=100.0)
    env.reset()
    total, length, told = np.zeros(3), np.zeros(3, int), 0
    rng = np.random.default_rng(0)
    for _ in range(70):
        _, rewards, dones, infos = env.step(env.mapping.sample(rng, 3))
        total += rewards / 100
        length += 1
        for e in np.flatnonzero(dones):
            assert infos[e]["episode"]["l"] == length[e]
            assert infos[e]["episode"]["r"] == pytest.approx(total[e], abs=1e-6)
            total[e] = length[e] = 0
            told += 1
    assert told > 3


def test_ruin_ends_an_episode_without_truncation_and_the_next_begins_whole() -> None:
    env = vec_env(2)
    env.reset()
    env.last[:] = env.row + 5
    env.account.positions["quantity"][0] = -1e9
    observation, rewards, dones, infos = env.step(np.zeros((2, 4), int))
    assert dones.tolist() == [True, False]
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["terminal_observation"]["account"].tolist() == [0, 0, 0, 0, 0, -10]
    assert np.isfinite(rewards).all()
    assert env.account.equity[0] == env.settings.initial_equity
    assert not env.account.terminated.any()
    assert observation["account"][0, -1] == 0.0


def test_observations_and_infos_of_a_step_stay_when_the_next_is_taken() -> None:
    env = vec_env(3)
    kept = env.reset()
    copy = {name: values.copy() for name, values in kept.items()}
    env.last[:] = env.row
    _, _, _, infos = env.step(np.zeros((3, 4), int))
    env.step(np.zeros((3, 4), int))
    assert_same(kept, copy)
    assert all("episode" in info for info in infos)


def test_bad_actions_are_refused_with_their_place() -> None:
    env = vec_env(3)
    env.reset()
    with pytest.raises(ValueError, match="environment 2: direction 9"):
        env.step(np.array([[0, 0, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]]))
    with pytest.raises(ValueError, match="2 actions for 3 environments"):
        env.step(np.zeros((2, 4), int))
    with pytest.raises(RuntimeError, match="without actions"):
        env.step_wait()
    portfolio = vec_env(2, instruments=3)
    portfolio.reset()
    with pytest.raises(ValueError, match="environment 1, instrument 0: weight nan"):
        portfolio.step(np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32))


def test_attributes_and_methods_are_those_of_the_shared_object() -> None:
    env = vec_env(3)
    assert env.get_attr("reward_scale") == [1.0] * 3
    assert env.get_attr("reward_scale", indices=[0, 2]) == [1.0] * 2
    env.set_attr("reward_scale", 5.0)
    assert env.reward_scale == 5.0
    assert env.env_method("env_is_wrapped", object, indices=1) == [[False] * 3]
    assert env.env_is_wrapped(object, indices=0) == [False]
    assert not env.has_attr("nothing")
    assert env.seed(4) == [4, 4, 4]
    env.close()


@pytest.mark.parametrize("instruments", [1, 2])
def test_ppo_trains_on_it_reproducibly(instruments: int) -> None:
    def weights() -> bytes:
        env = VecMonitor(vec_env(8, instruments=instruments, reward_scale=100.0))
        model = PPO(
            "MultiInputPolicy", env, n_steps=16, batch_size=64, n_epochs=1, seed=0, device="cpu"
        )
        model.learn(256)
        return b"".join(
            value.detach().numpy().tobytes() for value in model.policy.state_dict().values()
        )

    assert weights() == weights()
