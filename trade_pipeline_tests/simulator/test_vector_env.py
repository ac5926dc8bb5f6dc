"""Gymnasium's vector environment: its interface, and the trajectories of the others."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import vector as wrappers

from trade_pipeline.simulator.vector_env import TradingVectorEnv
from trade_pipeline_tests.simulator import environments as small
from trade_pipeline_tests.simulator.environments import (
    BUILT_IN,
    EVERYTHING,
    SEGMENTS,
    action_of,
    actions_for,
    bits,
    custom,
    environment_settings,
    features,
    hourly_market,
    same,
    scalar_env,
    state_bits,
)

INSTRUMENTS = pytest.mark.parametrize("instruments", [1, 3], ids=["brackets", "weights"])
WITH_CUSTOM = {**EVERYTHING, "reward": (*BUILT_IN, custom("holding"))}


def vector_env(
    environments: int = 4, seed: Any = 0, instruments: int = 1, others: Any = None, **changes: Any
) -> TradingVectorEnv:
    return TradingVectorEnv(
        hourly_market(instruments),
        features(instruments),
        SEGMENTS,
        environment_settings(instruments, **changes),
        environments,
        seed,
        **(others or {}),
    )


def one(observation: dict[str, np.ndarray], e: int) -> dict[str, np.ndarray]:
    return {name: values[e] for name, values in observation.items()}


def sampled(env: TradingVectorEnv, steps: int) -> np.ndarray:
    return actions_for(env.simulation, steps, env.num_envs)


@INSTRUMENTS
@pytest.mark.parametrize("observe", ["window", "index"])
def test_spaces_are_those_of_one_environment_in_a_batch(instruments: int, observe: str) -> None:
    env = vector_env(5, 0, instruments, {"observe": observe})
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert env.num_envs == 5
    kind = spaces.MultiDiscrete if instruments == 1 else spaces.Box
    assert isinstance(env.single_action_space, kind)
    observation, info = env.reset(seed=1)
    assert info == {}
    assert env.observation_space.contains(observation)
    assert env.single_observation_space.contains(one(observation, 3))
    for _ in range(3):
        observation, rewards, terminations, truncations, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert (rewards.dtype, rewards.shape) == (np.float64, (5,))
        for flags in (terminations, truncations):
            assert (flags.dtype, flags.shape) == (np.bool_, (5,))
    env.close()


@INSTRUMENTS
@pytest.mark.parametrize("changes", [EVERYTHING, WITH_CUSTOM], ids=["everything", "custom"])
@pytest.mark.parametrize("seed", [5, [3, 1, 4, 1, 5]], ids=["one_seed", "seeds"])
def test_it_walks_as_the_environment_for_stable_baselines3(
    seed: Any, changes: dict[str, Any], instruments: int
) -> None:
    chosen = environment_settings(instruments, **changes)
    other = small.vec_env(chosen, 5, seed, instruments)
    env = vector_env(5, 99, instruments, **changes)
    observation, _ = env.reset(seed=seed)
    assert same(observation, other.reset())
    ended = 0
    for actions in sampled(env, 80):
        observation, rewards, terminations, truncations, infos = env.step(actions)
        others, their_rewards, dones, their_infos = other.step(actions)
        assert same(observation, others)
        assert rewards.astype(np.float32).tobytes() == their_rewards.tobytes()
        assert (terminations | truncations).tolist() == dones.tolist()
        assert not (terminations & truncations).any()
        for e in np.flatnonzero(dones):
            assert same(infos["final_obs"][e], their_infos[e]["terminal_observation"])
            assert truncations[e] == their_infos[e]["TimeLimit.truncated"]
            episode = infos["final_info"]["episode"]
            assert episode["r"][e] == their_infos[e]["episode"]["r"]
            assert episode["l"][e] == their_infos[e]["episode"]["l"]
            ended += 1
        assert [env.simulation.fills.of(e) for e in range(5)] == [
            other.fills.of(e) for e in range(5)
        ]
    assert ended > 10
    assert state_bits(env.simulation) == state_bits(other.simulation)


def test_each_environment_walks_as_a_scalar_one_up_to_its_first_end() -> None:
    seeds = [8, 9, 10]
    env = vector_env(3, seeds, **EVERYTHING)
    observation, _ = env.reset()
    twins = [scalar_env(env.simulation.settings, seed) for seed in seeds]
    for e, twin in enumerate(twins):
        assert same(twin.reset()[0], one(observation, e))
    walking = np.ones(3, np.bool_)
    for actions in sampled(env, 30):
        observation, rewards, terminations, truncations, infos = env.step(actions)
        dones = terminations | truncations
        for e in np.flatnonzero(walking):
            seen, reward, terminated, _, _ = twins[e].step(action_of(twins[e], actions[e]))
            assert reward == rewards[e]
            assert same(seen, infos["final_obs"][e] if dones[e] else one(observation, e))
            assert terminated == terminations[e]
        walking &= ~dones
    assert not walking.any()


def test_the_seed_decides_everything() -> None:
    def roll(env: TradingVectorEnv, **reset: Any) -> list[bytes]:
        seen = [bits(env.reset(**reset)[0])]
        for actions in sampled(env, 40):
            observation, rewards, terminations, truncations, _ = env.step(actions)
            seen += [bits(observation), rewards.tobytes(), terminations.tobytes()]
            seen.append(truncations.tobytes())
        return seen

    expected = roll(vector_env(seed=3))
    assert roll(vector_env(seed=9), seed=3) == expected
    assert roll(vector_env(seed=9), seed=np.int64(3)) == expected
    assert roll(vector_env(seed=9)) != expected
    assert roll(vector_env(4, [1, 2, 3, 4])) == roll(vector_env(), seed=[1, 2, 3, 4])
    env = vector_env(seed=3)
    assert roll(env) == expected
    assert roll(env) != expected  # without a seed the streams go on
    assert roll(env, seed=3) == expected


def test_infos_of_a_step_hold_what_ended_in_it_and_no_more() -> None:
    env = vector_env(3)
    env.reset()
    env.simulation.episodes["last"] = env.simulation.row + np.array([0, 1, 0])
    _, _, terminations, truncations, infos = env.step(np.zeros((3, 4), int))
    assert not terminations.any()
    assert truncations.tolist() == [True, False, True]
    assert set(infos) == {"final_obs", "_final_obs", "final_info", "_final_info"}
    for mask in (infos["_final_obs"], infos["_final_info"], infos["final_info"]["_episode"]):
        assert mask.tolist() == [True, False, True]
    assert infos["final_obs"][1] is None
    assert env.single_observation_space.contains(infos["final_obs"][2])
    assert infos["final_info"]["episode"]["l"].tolist() == [1, 0, 1]
    env.simulation.episodes["last"] = env.simulation.row + 5
    assert env.step(np.zeros((3, 4), int))[4] == {}
    assert env.single_observation_space.contains(infos["final_obs"][0])


def test_ruin_is_a_termination_and_no_truncation() -> None:
    env = vector_env(2)
    env.reset()
    env.simulation.episodes["last"] = env.simulation.row  # the last decision, too
    env.simulation.account.positions["quantity"][0] = -1e9
    observation, rewards, terminations, truncations, infos = env.step(np.zeros((2, 4), int))
    assert (terminations.tolist(), truncations.tolist()) == ([True, False], [False, True])
    assert np.isfinite(rewards).all()
    assert infos["final_obs"][0]["account"].tolist() == [0, 0, 0, 0, 0, -10]
    assert observation["account"][0, -1] == 0.0


def test_no_step_before_a_reset() -> None:
    with pytest.raises(RuntimeError, match="no episode has begun; call reset"):
        vector_env(2).step(np.zeros((2, 4), int))


def test_what_is_wrong_is_refused_and_changes_nothing() -> None:
    env = vector_env(3)
    env.reset()
    before = state_bits(env.simulation)
    with pytest.raises(ValueError, match="environment 1: size 5"):
        env.step(np.array([[2, 0, 0, 0], [2, 5, 0, 0], [0, 0, 0, 0]]))
    with pytest.raises(ValueError, match="1 actions for 3 environments"):
        env.step(np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="unknown options"):
        env.reset(options={"segment": (0, 100)})
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        env.reset(seed=[1, 2])
    assert state_bits(env.simulation) == before


@INSTRUMENTS
def test_episode_statistics_are_those_of_the_infos(instruments: int) -> None:
    env = wrappers.RecordEpisodeStatistics(vector_env(4, 2, instruments))
    env.reset(seed=7)
    told = 0
    for actions in sampled(env.unwrapped, 80):
        _, _, terminations, truncations, infos = env.step(actions)
        for e in np.flatnonzero(terminations | truncations):
            assert infos["_episode"][e]
            final = infos["final_info"]["episode"]
            assert infos["episode"]["l"][e] == final["l"][e]
            assert infos["episode"]["r"][e] == pytest.approx(final["r"][e], abs=1e-9)
            told += 1
    assert told == env.episode_count > 8


def test_other_wrappers_of_gymnasium_work_on_it() -> None:
    inner = vector_env(3, 0, 3)
    env = wrappers.DictInfoToList(
        wrappers.NormalizeReward(
            wrappers.ClipReward(wrappers.RescaleAction(inner, -2.0, 2.0), -0.01, 0.01)
        )
    )
    env.reset(seed=1)
    told = 0
    for actions in sampled(inner, 40):
        _, rewards, terminations, truncations, infos = env.step(2 * actions)
        assert np.isfinite(rewards).all()
        for e in np.flatnonzero(terminations | truncations):
            assert set(infos[e]) == {"final_obs", "final_info"}
            assert inner.single_observation_space.contains(infos[e]["final_obs"])
            assert infos[e]["final_info"]["episode"]["l"] > 0
            told += 1
    assert told > 2


def test_observations_stay_when_the_next_step_is_taken() -> None:
    env = vector_env(3)
    kept, _ = env.reset()
    env.simulation.episodes["last"] = env.simulation.row
    _, _, _, _, infos = env.step(np.zeros((3, 4), int))
    copies = [bits(kept), *(bits(seen) for seen in infos["final_obs"])]
    env.simulation.episodes["last"] = env.simulation.row
    env.step(np.ones((3, 4), int))
    assert [bits(kept), *(bits(seen) for seen in infos["final_obs"])] == copies
