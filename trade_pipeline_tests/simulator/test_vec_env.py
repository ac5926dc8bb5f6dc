"""The vector environment: the same trajectories as the scalar ones, and SB3's contract."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.compiled import config
from trade_pipeline.simulator.env import SimulatedEnv
from trade_pipeline.simulator.kernel import Account
from trade_pipeline.simulator.state import Fill
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline_tests.simulator import environments as small
from trade_pipeline_tests.simulator.environments import (
    BUILT_IN,
    EVERYTHING,
    SEGMENTS,
    account_bits,
    action_of,
    actions_for,
    bits,
    custom,
    environment_settings,
    features,
    same,
    scalar_env,
    state_bits,
)

INSTRUMENTS = pytest.mark.parametrize("instruments", [1, 3], ids=["brackets", "weights"])
WITH_CUSTOM = {**EVERYTHING, "reward": (*BUILT_IN, custom("holding"))}
CHANGES = pytest.mark.parametrize(
    "changes", [{}, EVERYTHING, WITH_CUSTOM], ids=["plain", "everything", "custom"]
)
OTHERS = ("reward_scale", "observe", "threads", "render_mode", "labels", "training_rows")
TWO_THREADS = min(2, config.NUMBA_NUM_THREADS)


def vec_env(environments: int = 4, seed: Any = 0, instruments: int = 1, **kwargs: Any) -> Any:
    others = {name: kwargs.pop(name) for name in OTHERS if name in kwargs}
    chosen = environment_settings(instruments, **kwargs)
    return small.vec_env(chosen, environments, seed, instruments, **others)


def one(observation: dict[str, np.ndarray], e: int) -> dict[str, np.ndarray]:
    return {name: values[e] for name, values in observation.items()}


# Trajectories


@INSTRUMENTS
@CHANGES
@pytest.mark.parametrize(("environments", "threads"), [(1, 1), (3, 1), (17, 1), (17, TWO_THREADS)])
def test_a_vector_environment_walks_as_scalar_ones_with_the_same_actions(
    environments: int, threads: int, changes: dict[str, Any], instruments: int
) -> None:
    """At first drawn alike by seeds of their own, later put where the vector environment is."""
    seeds = [3 * e + 1 for e in range(environments)]
    env = vec_env(environments, seeds, instruments, threads=threads, **changes)
    actions = actions_for(env, 80, environments)
    observation = env.reset()
    window = env.settings.window
    twins = [scalar_env(env.settings, seed, instruments) for seed in seeds]
    for e, twin in enumerate(twins):
        first, _ = twin.reset()
        assert same(first, one(observation, e))
        assert account_bits(twin.account) == account_bits(env.account.chosen(np.array([e])))

    def put(e: int) -> None:
        """The twin begins in the state that the vector environment drew."""
        mine = env.account.chosen(np.array([e]))
        segment = (int(env.row[e]) - window + 1, int(env.last[e]) + 2)
        first, _ = twins[e].reset(options={"segment": segment, "account": mine})
        assert same(first, one(observation, e))

    ended = fills = 0
    first_episode = [True] * environments
    for chosen in actions:
        last_decision = env.row == env.last
        observation, rewards, dones, infos = env.step(chosen)
        for e, twin in enumerate(twins):
            seen, gained, terminated, truncated, info = twin.step(action_of(twin, chosen[e]))
            assert np.float32(gained) == rewards[e]
            assert info["fills"] == env.fills.of(e)
            fills += len(info["fills"])
            # The first episode was cut, which the twin does not know
            cut = first_episode[e] and bool(last_decision[e])
            assert dones[e] == (terminated or truncated or cut)
            if dones[e]:
                ended += 1
                first_episode[e] = False
                assert same(seen, infos[e]["terminal_observation"])
                assert infos[e]["TimeLimit.truncated"] == (not terminated)
                put(e)
            else:
                assert infos[e] == {}
                assert same(seen, one(observation, e))
                assert account_bits(twin.account) == account_bits(env.account.chosen(np.array([e])))
    assert ended >= 2 * environments
    assert fills > 20 * environments


def roll(env: Any, steps: int = 60) -> bytes:
    rng = np.random.default_rng(0)
    seen = [bits(env.reset())]
    for _ in range(steps):
        observation, rewards, dones, _ = env.step(env.mapping.sample(rng, env.num_envs))
        seen += [bits(observation), rewards.tobytes(), dones.tobytes()]
    return b"".join(seen)


def test_the_seed_decides_everything() -> None:
    assert roll(vec_env(seed=1)) == roll(vec_env(seed=1))
    assert roll(vec_env(seed=1)) != roll(vec_env(seed=2))
    env = vec_env(seed=9)
    env.seed(1)
    assert roll(env) == roll(vec_env(seed=1))
    env.seed(None)
    assert roll(env) != roll(vec_env(seed=1))


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


@pytest.mark.parametrize("observe", ["window", "index"])
def test_observations_and_infos_of_a_step_stay_when_the_next_is_taken(observe: str) -> None:
    env = vec_env(3, observe=observe)
    kept = [env.reset()]
    env.last[:] = env.row
    observation, _, _, infos = env.step(np.zeros((3, 4), int))
    kept += [observation, *(info["terminal_observation"] for info in infos)]
    copies = [bits(seen) for seen in kept]
    env.last[:] = env.row
    env.step(np.zeros((3, 4), int))
    assert [bits(seen) for seen in kept] == copies
    assert all("episode" in info for info in infos)


@INSTRUMENTS
def test_index_observations_name_the_rows_where_windows_end(instruments: int) -> None:
    windows, rows = (
        vec_env(5, 3, instruments, observe=view, **EVERYTHING) for view in ("window", "index")
    )
    table, back = rows.simulation.features, np.arange(-7, 1)
    assert rows.observation_space["row"] == spaces.Box(0, len(table) - 1, (1,), np.int32)
    pairs = [(windows.reset(), rows.reset())]
    for chosen in actions_for(windows, 60, 5):
        steps = [env.step(chosen) for env in (windows, rows)]
        pairs.append((steps[0][0], steps[1][0]))
        assert steps[0][1].tobytes() == steps[1][1].tobytes()
        for e in np.flatnonzero(steps[0][2]):
            last = [one_step[3][e]["terminal_observation"] for one_step in steps]
            assert rows.observation_space.contains(last[1])
            pairs.append((last[0], last[1]))
    for window, index in pairs:
        assert index["row"].dtype == np.int32
        gathered = table[index["row"] + back]
        assert gathered.tobytes() == window["window"].tobytes()
        assert gathered.shape == window["window"].shape
        assert index["account"].tobytes() == window["account"].tobytes()


# What is refused


def test_bad_actions_are_refused_with_their_place_and_change_nothing() -> None:
    env = vec_env(3)
    env.reset()
    before = state_bits(env.simulation)
    with pytest.raises(ValueError, match="environment 2: direction 9"):
        env.step(np.array([[2, 0, 0, 0], [0, 0, 0, 0], [9, 0, 0, 0]]))
    with pytest.raises(ValueError, match="2 actions for 3 environments"):
        env.step(np.zeros((2, 4), int))
    with pytest.raises(RuntimeError, match="without actions"):
        env.step_wait()
    assert state_bits(env.simulation) == before
    portfolio = vec_env(2, instruments=3)
    portfolio.reset()
    before = state_bits(portfolio.simulation)
    with pytest.raises(ValueError, match="environment 1, instrument 0: weight nan"):
        portfolio.step(np.array([[0, 0, 0], [np.nan, 0, 0]], np.float32))
    assert state_bits(portfolio.simulation) == before


def test_no_step_before_a_reset() -> None:
    with pytest.raises(RuntimeError, match="no episode has begun; call reset"):
        vec_env(2).step(np.zeros((2, 4), int))


def test_a_refused_action_takes_back_those_given_before() -> None:
    env = vec_env(2)
    env.reset()
    env.step_async(np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="direction 9"):
        env.step_async(np.array([[2, 0, 0, 0], [9, 0, 0, 0]]))
    with pytest.raises(RuntimeError, match="without actions"):
        env.step_wait()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"environments": 0}, "environments is 0; a whole number of at least 1"),
        ({"threads": 10_000}, "10000 threads; this machine has"),
        ({"seed": [1, 2, 3]}, "3 seeds for 4 environments"),
        ({"render_mode": "human"}, "render_mode 'human' is unknown"),
        ({"window": 400}, "a window of 400 needs 401"),
        ({"costs": {"min_notional": (1, 2)}}, "min_notional lists 2 numbers for 1 instruments"),
    ],
)
def test_what_cannot_be_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vec_env(**kwargs)


# Attributes


def test_attributes_and_methods_are_those_of_the_shared_object() -> None:
    env = vec_env(3)
    assert env.get_attr("reward_scale") == [1.0] * 3
    assert env.get_attr("reward_scale", indices=[0, 2]) == [1.0] * 2
    env.set_attr("reward_scale", 5.0)
    assert env.reward_scale == 5.0
    for name in ("reset", "seed", "env_is_wrapped"):  # of all environments, not of one
        with pytest.raises(AttributeError, match=f"no method {name}; it has `fills`"):
            env.env_method(name, indices=1)
    for name in ("settings", "typo"):
        with pytest.raises(AttributeError, match=f"{name} can only be read; reward_scale and"):
            env.set_attr(name, None)
    for value in (float("nan"), "x", None):
        with pytest.raises(ValueError, match=r"reward_scale is .*; a finite"):
            env.set_attr("reward_scale", value)
    assert env.env_is_wrapped(object, indices=0) == [False]
    assert not env.has_attr("nothing")
    assert env.seed(4) == [4, 4, 4]
    env.close()


def test_each_environment_tells_of_itself() -> None:
    env = vec_env(4)
    env.reset()
    env.step(actions_for(env, 1, 4)[0])
    assert env.get_attr("row") == env.row.tolist()
    assert env.get_attr("last", [2]) == [env.last[2]]
    assert env.get_attr("equity", [1, 3]) == env.account.equity[[1, 3]].tolist()
    assert env.get_attr("number", 2) == [2]
    assert env.env_method("fills") == [env.fills.of(e) for e in range(4)]
    (account,) = env.get_attr("account", 1)
    assert isinstance(account, Account)
    assert account_bits(account) == account_bits(env.account.chosen(np.array([1])))
    account.cash[:] = -1.0
    assert env.account.cash[1] != -1.0
    with pytest.raises(AttributeError, match="no attribute _private"):
        env.get_attr("_private")


@pytest.mark.parametrize(("name", "paid"), [("fee_scale", "fees"), ("slippage_scale", "slippage")])
def test_scales_of_some_environments_can_be_set(name: str, paid: str) -> None:
    env = vec_env(6, random_start_position=False)
    env.reset()
    env.row[:] = 200
    env.last[:] = 250
    env.set_attr(name, 3.0, indices=[1, 4])
    assert env.get_attr(name) == [1.0, 3.0, 1.0, 1.0, 3.0, 1.0]
    env.step(np.tile([2, 0, 0, 0], (6, 1)))
    cost = getattr(env.account, paid)
    assert cost[0] > 0
    np.testing.assert_allclose(cost / cost[0], [1, 3, 1, 1, 3, 1], rtol=1e-3)
    env.set_attr(name, 0.5)
    assert env.get_attr(name) == [0.5] * 6


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fee_scale", -1.0, "fee_scale is -1.0; a number of zero or more"),
        ("fee_scale", np.nan, "fee_scale is nan"),
        ("slippage_scale", np.inf, "slippage_scale"),
        ("slippage_scale", 1e4, "leaves a sale no price"),
    ],
)
def test_scales_that_cannot_be_are_refused(name: str, value: float, message: str) -> None:
    env = vec_env(2)
    with pytest.raises(ValueError, match=message):
        env.set_attr(name, value, indices=1)
    assert env.get_attr(name) == [1.0, 1.0]


def test_what_all_environments_share_cannot_be_set_for_some() -> None:
    env = vec_env(3)
    with pytest.raises(AttributeError, match="all environments share reward_scale"):
        env.set_attr("reward_scale", 5.0, indices=[0, 1])
    assert env.reward_scale == 1.0


@pytest.mark.parametrize("name", ["equity", "row", "account", "fills"])
def test_what_an_environment_tells_of_itself_cannot_be_set(name: str) -> None:
    env = vec_env(3)
    env.reset()
    for indices in (None, [1]):
        with pytest.raises(AttributeError, match=f"{name} can only be read"):
            env.set_attr(name, 5.0, indices)
    assert env.get_attr("equity") == env.account.equity.tolist()


# Wrappers, pictures and algorithms


def test_normalised_and_monitored_it_is_the_same_environment() -> None:
    plain, inner = vec_env(5, 2), vec_env(5, 2)
    wrapped = VecNormalize(
        VecMonitor(inner), norm_obs_keys=["account"], norm_reward=False, clip_obs=50.0
    )
    pairs = [(plain.reset(), wrapped.reset())]
    told = 0
    for chosen in actions_for(plain, 70, 5):
        raw, rewards, dones, infos = plain.step(chosen)
        seen, same_rewards, same_dones, more = wrapped.step(chosen)
        pairs.append((raw, seen))
        assert same_rewards.tobytes() == rewards.tobytes()
        assert same_dones.tobytes() == dones.tobytes()
        for e in range(5):
            if not dones[e]:
                assert more[e] == {}
                continue
            last, normalised = (each[e]["terminal_observation"] for each in (infos, more))
            expected = wrapped.normalize_obs(last)
            assert normalised["account"].tobytes() == expected["account"].tobytes()
            assert normalised["window"].tobytes() == last["window"].tobytes()
            episode = infos[e]["episode"]
            assert more[e]["episode"]["l"] == episode["l"]
            assert more[e]["episode"]["r"] == pytest.approx(episode["r"], abs=1e-5)
            told += 1
    assert told > 8
    for raw, seen in pairs:
        assert seen["window"].tobytes() == raw["window"].tobytes()
        assert np.isfinite(seen["account"]).all()
    assert not np.array_equal(pairs[-1][0]["account"], pairs[-1][1]["account"])
    assert state_bits(plain.simulation) == state_bits(inner.simulation)


def test_index_observations_can_be_normalised_too() -> None:
    plain, inner = (vec_env(3, 2, observe="index") for _ in range(2))
    wrapped = VecNormalize(inner, norm_obs_keys=["account"])
    assert plain.reset()["row"].tolist() == wrapped.reset()["row"].tolist()
    for chosen in actions_for(plain, 40, 3):
        raw, seen = plain.step(chosen)[0], wrapped.step(chosen)[0]
        assert seen["row"].dtype == np.int32
        assert seen["row"].tolist() == raw["row"].tolist()


def test_pictures_are_those_of_each_environment() -> None:
    env = vec_env(2, render_mode="rgb_array")
    scalar = scalar_env(env.settings, 0, render_mode="rgb_array")
    env.reset()
    env.last[:] = [env.row[0] + 20, env.row[1] + 5]
    segment = (int(env.row[0]) - 7, int(env.last[0]) + 2)
    carried = env.get_attr("account", 0)[0]
    scalar.reset(options={"segment": segment, "account": carried})
    pictures = []
    for chosen in actions_for(env, 6, 2):
        env.step(chosen)
        scalar.step(action_of(scalar, chosen[0]))
    pictures = list(env.get_images())
    assert [picture.shape for picture in pictures] == [(600, 900, 3)] * 2
    assert all(picture.dtype == np.uint8 for picture in pictures)
    assert pictures[0].tobytes() == scalar.render().tobytes()
    # The second has begun anew, and nothing has happened in it yet
    (fresh,) = env.env_method("render", indices=1)
    assert fresh.tobytes() == pictures[1].tobytes() != pictures[0].tobytes()
    tiled = env.render()
    assert tiled.shape[2] == 3
    assert tiled.size >= 2 * pictures[0].size


def test_without_a_render_mode_there_are_no_pictures() -> None:
    env = vec_env(2)
    env.reset()
    assert list(env.get_images()) == [None, None]
    assert env.env_method("render") == [None, None]


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Small networks on several threads wait for each other where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class GatheredWindows(BaseFeaturesExtractor):
    """What SB3's own extractor makes of a window, from the row where it ends."""

    def __init__(self, space: spaces.Dict, table: np.ndarray, window: int) -> None:
        super().__init__(space, window * table.shape[1] + space["account"].shape[0])
        self.register_buffer("table", torch.as_tensor(table), persistent=False)
        self.register_buffer("back", torch.arange(1 - window, 1), persistent=False)

    def forward(self, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        rows = seen["row"].long() + self.back
        return torch.cat([seen["account"], self.table[rows].flatten(1)], dim=1)


def trained(kind: Any, env: Any, frames: int, **choices: Any) -> bytes:
    model = kind("MultiInputPolicy", env, seed=0, device="cpu", **choices)
    model.learn(frames)
    weights = model.policy.state_dict().values()
    assert all(bool(torch.isfinite(value).all()) for value in weights)
    return b"".join(value.detach().numpy().tobytes() for value in weights)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("instruments", [1, 2])
def test_ppo_learns_the_same_from_rows_as_from_windows(instruments: int) -> None:
    choices = {"n_steps": 16, "batch_size": 64, "n_epochs": 1}
    extractor = {
        "features_extractor_class": GatheredWindows,
        "features_extractor_kwargs": {"table": features(instruments), "window": 8},
    }

    def env(view: str) -> Any:
        return VecMonitor(vec_env(8, 0, instruments, reward_scale=100.0, observe=view))

    windows = trained(PPO, env("window"), 256, **choices)
    assert trained(PPO, env("window"), 256, **choices) == windows
    assert trained(PPO, env("index"), 256, policy_kwargs=extractor, **choices) == windows


@pytest.mark.usefixtures("one_torch_thread")
def test_a2c_learns_weights_of_a_portfolio() -> None:
    env = VecNormalize(vec_env(8, 0, 3, **EVERYTHING), norm_obs_keys=["account"])
    assert isinstance(env.action_space, spaces.Box)
    trained(A2C, env, 320, n_steps=5)


@pytest.mark.usefixtures("one_torch_thread")
def test_sac_learns_weights_of_a_portfolio() -> None:
    env = vec_env(4, 0, 3, **EVERYTHING)
    trained(SAC, env, 120, learning_starts=40, batch_size=16, buffer_size=500, train_freq=4)


def test_shapes_and_types_are_those_of_the_spaces() -> None:
    for instruments in (1, 3):
        env: TradingVecEnv = vec_env(3, 0, instruments)
        observation = env.reset()
        actions = np.stack([env.action_space.sample() for _ in range(3)])
        observation, rewards, dones, infos = env.step(actions)
        for e in range(3):
            assert env.observation_space.contains(one(observation, e))
        assert (rewards.dtype, rewards.shape) == (np.float32, (3,))
        assert (dones.dtype, dones.shape) == (np.bool_, (3,))
        assert len(infos) == 3
        assert all(isinstance(fill, Fill) for fill in env.fills.of(0))


def test_the_training_rows_of_the_gate_may_be_others_than_the_segments() -> None:
    terms = ({"term": "turbulence_gate", "quantile": 0.5},)
    gates = []
    for rows in (None, SEGMENTS, np.array([[0, 60]])):
        others: dict[str, Any] = {} if rows is None else {"training_rows": rows}
        gates.append(vec_env(1, reward=terms, **others).simulation.reward.turbulent)
    assert gates[0].tolist() == gates[1].tolist()
    assert gates[0].tolist() != gates[2].tolist()


def test_scalar_and_vector_environments_share_their_settings() -> None:
    env = vec_env()
    assert isinstance(env.settings, EnvironmentSettings)
    assert isinstance(scalar_env(env.settings), SimulatedEnv)


def test_the_example_of_the_documentation_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## From Python")
    code = section.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["seen"]["window"].shape == (128, 64, 1)
    assert names["rewards"].shape == (128,)


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_a_step_that_breaks_off_ends_the_episode(kind: str, monkeypatch: Any) -> None:
    chosen = environment_settings(1, reward=(small.custom("holding"),))
    env: Any = small.vec_env(chosen, 3) if kind == "vector" else small.scalar_env(chosen)
    env.reset()
    action = np.zeros((3, 4), int) if kind == "vector" else env.action_space.sample()
    simulation = env.simulation
    rows = simulation.row.copy()

    def broken(*given: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulation.reward, "custom", ((1.0, broken),))
    with pytest.raises(KeyboardInterrupt):
        env.step(action)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="call reset"):
            env.step(action)
    assert (simulation.row <= rows + 1).all()


def test_an_environment_that_has_stepped_can_be_pickled_and_goes_on_alike() -> None:
    env = vec_env(5)
    env.reset()
    actions = actions_for(env, 40, 5)
    for action in actions[:20]:
        env.step(action)
    for twin in (pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert not twin.market.bars.flags.writeable
        one, other = copy.deepcopy(env), twin
        for action in actions[20:]:
            mine, theirs = one.step(action), other.step(action)
            assert mine[0]["account"].tobytes() == theirs[0]["account"].tobytes()
            assert mine[1].tobytes() == theirs[1].tobytes()


def test_a_refused_action_names_the_row_and_options_are_refused() -> None:
    env = vec_env(2)
    env.reset()
    with pytest.raises(ValueError, match=rf"direction 9 .*\(market row {env.row[1]}\)"):
        env.step(np.array([[0, 0, 0, 0], [9, 0, 0, 0]]))
    env.set_options({"segment": (0, 50)})
    with pytest.raises(ValueError, match="knows no options"):
        env.reset()
    env.reset()


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "seed -1 is negative"),
        (None, "seed is None"),
        ("12", "seed is '12'"),
        ([1, 2.5], "seed 2.5 is no whole number"),
        ([1], "1 seeds for 2 environments"),
    ],
)
def test_seeds_that_are_none_are_refused(seed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vec_env(2, seed=seed)
