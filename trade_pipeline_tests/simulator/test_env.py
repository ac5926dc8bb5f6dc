"""The Gymnasium environments: both checkers, training episodes, evaluation of a slice."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from trade_pipeline.settings.experiment import (
    BracketActions,
    CostSettings,
    EnvironmentSettings,
    RewardTerm,
    WeightActions,
)
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, Fills, Rules, step
from trade_pipeline.simulator.rewards import reward
from trade_pipeline_tests.simulator.markets import random_market

ROWS = 400
SEGMENTS = np.array([[0, 150], [160, 400]])


def environment_settings(**changes: Any) -> EnvironmentSettings:
    return EnvironmentSettings(
        **{
            "window": 8,
            "episode_bars": 30,
            "costs": CostSettings(borrow_rate=0.05, interest_rate=0.05),
            "actions": BracketActions(
                kind="brackets", sizes=(0.5, 1.0), stops=(None, 0.01), takes=(None, 0.02)
            ),
            "reward": (RewardTerm(term="log_return"), RewardTerm(term="turnover", weight=0.01)),
            **changes,
        }
    )


def features(instruments: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 2 * instruments)).astype(np.float32)


def trading_env(seed: int = 0, **changes: Any) -> TradingEnv:
    return TradingEnv(
        random_market(ROWS, 1, 1), features(), SEGMENTS, environment_settings(**changes), seed
    )


def portfolio_env(seed: int = 0, **changes: Any) -> PortfolioEnv:
    actions = WeightActions(kind="weights", short=True)
    return PortfolioEnv(
        random_market(ROWS, 3, 1),
        features(3),
        SEGMENTS,
        environment_settings(actions=actions, **changes),
        seed,
    )


@pytest.mark.parametrize("make", [trading_env, portfolio_env])
def test_gymnasium_accepts_the_environment(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(spec|render|infinity).*")
        check_env(make(), skip_render_check=True)


@pytest.mark.parametrize("make", [trading_env, portfolio_env])
def test_stable_baselines3_accepts_the_environment(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(unconventional shape|Dict or Tuple space).*")
        sb3_check_env(make(), warn=True)


def play(env: SimulatedEnv, actions_seed: int, **reset: Any) -> list[Any]:
    env.action_space.seed(actions_seed)
    observation, info = env.reset(**reset)
    seen: list[Any] = [(observation["window"].tobytes(), observation["account"].tobytes(), info)]
    done = False
    while not done:
        observation, gained, terminated, truncated, info = env.step(env.action_space.sample())
        seen.append((observation["window"].tobytes(), observation["account"].tobytes(), info))
        seen.append((gained, terminated, truncated))
        done = terminated or truncated
    return seen


@pytest.mark.parametrize("make", [trading_env, portfolio_env])
def test_seeds_decide_the_episode(make: Any) -> None:
    assert play(make(seed=3), 0) == play(make(seed=3), 0)
    assert play(make(seed=3), 0) != play(make(seed=4), 0)
    assert play(make(), 0, seed=7) == play(make(seed=9), 0, seed=7)


def test_a_training_episode_takes_its_decisions_within_a_segment_and_truncates() -> None:
    env = trading_env()
    for _ in range(20):
        seen = play(env, 0)
        first, last = seen[0][2]["row"], seen[-2][2]["row"]
        assert last - first == 30
        assert seen[-1][1:] == (False, True)
        assert any(a + 7 <= first and last <= b - 1 for a, b in SEGMENTS)


def test_training_episodes_may_start_with_a_position_that_cost_nothing() -> None:
    env = trading_env()
    held = set()
    for _ in range(60):
        _, info = env.reset()
        assert info["equity"] == env.settings.initial_equity
        held.add(float(np.sign(env.account.quantity[0, 0])))
        worth = env.account.cash + env.account.quantity[:, 0] * env.market.close[env.row, 0]
        assert worth[0] == pytest.approx(env.settings.initial_equity)
        assert np.abs(env.account.quantity[0, 0]) * env.market.close[env.row[0], 0] <= 1e5 + 1e-6
    assert held == {-1.0, 0.0, 1.0}
    env = trading_env(random_start_position=False)
    for _ in range(20):
        env.reset()
        assert env.account.quantity[0, 0] == 0


def test_an_evaluation_runs_exactly_the_slice_and_carries_the_account() -> None:
    env = trading_env()
    seen = play(env, 1, options={"segment": (10, 140)})
    assert (seen[0][2]["row"], seen[-2][2]["row"]) == (17, 139)
    assert seen[0][2]["fills"] == []
    assert seen[-1][1:] == (False, True)
    carried = env.account
    closing = env.close_out()
    assert all(fill.reason == "slice_end" for fill in closing)
    assert carried.quantity[0, 0] == 0
    before = carried.balances.tobytes()
    _, info = env.reset(options={"segment": (160, 400), "account": carried})
    assert info["equity"] == carried.equity[0]
    env.step({"direction": 2, "size": 1, "stop_loss": 0, "take_profit": 0})
    assert carried.balances.tobytes() == before  # the caller's account is a copy


def test_an_evaluation_equals_the_kernel_bit_for_bit() -> None:
    env = trading_env()
    env.action_space.seed(5)
    env.reset(options={"segment": (160, 400)})
    account, fills = Account.start(1, 1, env.settings.initial_equity), Fills.empty(1, 1)
    row, rules = np.array([167]), Rules.of(env.settings)
    done = False
    while not done:
        action = env.action_space.sample()
        _, gained, terminated, truncated, info = env.step(action)
        before = account.equity.copy()
        wanted = env.mapping.to_orders(env.mapping.from_dict(action)[np.newaxis])
        step(account, env.market, row, wanted, rules, fills)
        row = row + 1
        assert info["fills"] == fills.of(0)
        assert info["equity"] == account.equity[0]
        assert gained == reward(env.settings.reward, account, before, env.market, row)[0]
        assert account.balances.tobytes() == env.account.balances.tobytes()
        done = terminated or truncated
    assert row[0] == 399


def test_ruin_terminates_and_the_episode_cannot_go_on() -> None:
    env = trading_env()
    env.reset(options={"segment": (160, 400)})
    env.account.positions["quantity"] = -1e9
    _, gained, terminated, truncated, info = env.step(
        {"direction": 0, "size": 0, "stop_loss": 0, "take_profit": 0}
    )
    assert (terminated, truncated, info["equity"]) == (True, False, 0.0)
    assert np.isfinite(gained)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step({"direction": 0, "size": 0, "stop_loss": 0, "take_profit": 0})
    with pytest.raises(ValueError, match="ruined"):
        env.reset(options={"segment": (0, 150), "account": env.account})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": (0, 8)}, "longest of 1 has 8 rows, a window of 8 needs 9"),
        ({"segment": (390, 401)}, "ends at row 401"),
        ({"account": None, "slice": (0, 50)}, "unknown options"),
        ({"account": Account.start(1, 1, 1.0)}, "give options"),
        ({"segment": (0, 50), "account": Account.start(1, 2, 1.0)}, "shape"),
    ],
)
def test_reset_refuses_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trading_env().reset(options=options)


def test_actions_outside_the_space_are_refused() -> None:
    env = trading_env()
    env.reset()
    good = {"direction": 0, "size": 0, "stop_loss": 0, "take_profit": 0}
    for bad in ({**good, "direction": 4}, {**good, "size": float("nan")}, {"direction": 1}):
        with pytest.raises(ValueError, match=r"direction|size|keys"):
            env.step(bad)
    portfolio = portfolio_env()
    portfolio.reset()
    with pytest.raises(ValueError, match="environment 0, instrument 2"):
        portfolio.step(np.array([0.0, 0.0, np.nan], np.float32))


def test_each_environment_wants_its_kind_of_action() -> None:
    with pytest.raises(ValueError, match="TradingEnv takes actions of kind brackets"):
        trading_env(actions=WeightActions(kind="weights"))


def test_a_window_longer_than_every_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="a window of 300 needs 301"):
        trading_env(window=300)


def test_a_time_limit_wrapper_works() -> None:
    env = gymnasium.wrappers.TimeLimit(trading_env(), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
