"""The Gymnasium environments: both checkers, training episodes, evaluation of a slice."""

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from trade_pipeline.settings.environment import BracketActions, WeightActions
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, Fills, Rules, step
from trade_pipeline.simulator.rewards import MEMORY, Reward, reward_one
from trade_pipeline_tests.simulator.environments import (
    BRACKETS,
    EVERYTHING,
    HOLD,
    LONG,
    ROWS,
    SEGMENTS,
    account_bits,
    action_of,
    bits,
    environment_settings,
    features,
    hourly_market,
    same,
    scalar_env,
    state_bits,
)
from trade_pipeline_tests.simulator.markets import flat_bar, market, random_market

INDEX = {"observe": "index"}
PICTURES = {"render_mode": "rgb_array"}


def trading_env(seed: int = 0, others: dict[str, Any] | None = None, **changes: Any) -> Any:
    return scalar_env(environment_settings(**changes), seed, **(others or {}))


def portfolio_env(seed: int = 0, others: dict[str, Any] | None = None, **changes: Any) -> Any:
    return scalar_env(environment_settings(3, **changes), seed, 3, **(others or {}))


MAKERS = pytest.mark.parametrize("make", [trading_env, portfolio_env])


@MAKERS
@pytest.mark.parametrize("others", [{}, INDEX], ids=["window", "index"])
def test_gymnasium_accepts_the_environment(make: Any, others: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(spec|infinity).*")
        check_env(make(0, others | PICTURES))


@MAKERS
@pytest.mark.parametrize("others", [{}, INDEX], ids=["window", "index"])
def test_stable_baselines3_accepts_the_environment(make: Any, others: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*(unconventional shape|Dict or Tuple space).*")
        sb3_check_env(make(0, others | PICTURES), warn=True, skip_render_check=False)


def play(env: SimulatedEnv, actions_seed: int, **reset: Any) -> list[Any]:
    env.action_space.seed(actions_seed)
    observation, info = env.reset(**reset)
    seen: list[Any] = [(bits(observation), info)]
    done = False
    while not done:
        observation, gained, terminated, truncated, info = env.step(env.action_space.sample())
        seen.append((bits(observation), info))
        seen.append((gained, terminated, truncated))
        done = terminated or truncated
    return seen


@MAKERS
def test_seeds_decide_the_episode(make: Any) -> None:
    assert play(make(seed=3), 0) == play(make(seed=3), 0)
    assert play(make(seed=3), 0) != play(make(seed=4), 0)
    assert play(make(), 0, seed=7) == play(make(seed=9), 0, seed=7)
    env = make(seed=7)
    played = [play(env, 0), play(env, 0), play(env, 0, seed=7), play(env, 0)]
    assert played[:2] == played[2:]
    assert played[0] != played[1]


def test_a_training_episode_takes_its_decisions_within_a_segment_and_truncates() -> None:
    env = trading_env()
    for _ in range(20):
        seen = play(env, 0)
        first, last = seen[0][1]["row"], seen[-2][1]["row"]
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


def test_a_first_position_fits_the_leverage_cap_and_the_lots_and_has_its_brackets() -> None:
    env = portfolio_env(
        max_leverage=1.25,
        costs={"lot_size": (0.5, 1, 2)},
        actions=WeightActions(kind="weights", short=True, stop=0.1, take=0.2),
    )
    held = 0
    for _ in range(40):
        env.reset()
        quantity, close = env.account.quantity[0], env.market.close[env.row[0]]
        assert (np.abs(quantity) * close).sum() <= 1.25e5 + 1e-6
        assert (quantity % [0.5, 1, 2] == 0).all()
        side = np.sign(quantity[quantity != 0])
        entry = env.account.entry_price[0, quantity != 0]
        np.testing.assert_array_equal(entry, close[quantity != 0])
        stop, take = env.account.stop_price, env.account.take_price
        np.testing.assert_allclose(stop[0, quantity != 0], entry * (1 - 0.1 * side))
        np.testing.assert_allclose(take[0, quantity != 0], entry * (1 + 0.2 * side))
        held += int(quantity.any())
    assert 5 < held < 35


def test_an_evaluation_runs_exactly_the_slice_and_carries_the_account() -> None:
    env = trading_env()
    seen = play(env, 1, options={"segment": (10, 140)})
    assert (seen[0][1]["row"], seen[-2][1]["row"]) == (17, 139)
    assert seen[0][1]["fills"] == []
    assert seen[-1][1:] == (False, True)
    carried = env.account
    closing = env.close_out()
    assert all(fill.reason == "slice_end" for fill in closing)
    assert carried.quantity[0, 0] == 0
    before = account_bits(carried)
    _, info = env.reset(options={"segment": (160, 400), "account": carried})
    assert info["equity"] == carried.equity[0]
    env.step(LONG)
    assert account_bits(carried) == before  # the caller's account is a copy


def test_an_evaluation_starts_flat_whatever_was_before() -> None:
    env = trading_env(**EVERYTHING)
    fresh = play(trading_env(**EVERYTHING), 1, options={"segment": (160, 400)})
    for _ in range(3):
        play(env, 2)
        assert play(env, 1, options={"segment": (160, 400)}) == fresh


def test_training_goes_on_after_an_evaluation_as_if_there_was_none() -> None:
    one, other = trading_env(**EVERYTHING), trading_env(**EVERYTHING)
    play(one, 0)
    play(other, 0)
    play(other, 1, options={"segment": (160, 400)})
    assert play(one, 2) == play(other, 2)


@MAKERS
def test_an_evaluation_equals_the_kernel_bit_for_bit(make: Any) -> None:
    changes: dict[str, Any] = {**EVERYTHING}
    env = make(**changes)
    env.action_space.seed(5)
    env.reset(options={"segment": (160, 400)})
    count = env.market.instruments
    account, fills = Account.start(1, count, env.settings.initial_equity), Fills.empty(1, count)
    row, rules = np.array([167]), Rules.of(env.settings, count)
    reward, memory = Reward(env.settings.reward, env.market, SEGMENTS), np.zeros(1, MEMORY)
    done, traded = False, 0
    while not done:
        action = env.action_space.sample()
        _, gained, terminated, truncated, info = env.step(action)
        before = float(account.equity[0])
        wanted = env.mapping.to_orders(env.flat_action(action)[np.newaxis])
        step(account, env.market, row, wanted, rules, fills)
        row = row + 1
        traded += len(info["fills"])
        assert info["fills"] == fills.of(0)
        assert info["equity"] == account.equity[0]
        assert gained == reward_one(
            reward.weights,
            memory[0],
            account.balances[0],
            account.positions[0],
            before,
            env.market.bars,
            int(row[0]),
            reward.turbulent,
        )
        assert account_bits(account) == account_bits(env.account)
        done = terminated or truncated
    assert row[0] == 399
    assert traded > 50


def test_ruin_terminates_and_the_episode_cannot_go_on() -> None:
    env = trading_env()
    env.reset(options={"segment": (160, 400)})
    env.account.positions["quantity"] = -1e9
    _, gained, terminated, truncated, info = env.step(HOLD)
    assert (terminated, truncated, info["equity"]) == (True, False, 0.0)
    assert np.isfinite(gained)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(HOLD)
    with pytest.raises(ValueError, match="ruined"):
        env.reset(options={"segment": (0, 150), "account": env.account})
    _, info = env.reset()
    assert info["equity"] == env.settings.initial_equity
    assert not env.account.terminated[0]


def test_no_step_before_a_reset() -> None:
    with pytest.raises(RuntimeError, match="none has begun; call reset"):
        trading_env().step(HOLD)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": (0, 8)}, "longest of 1 has 8 rows, a window of 8 needs 9"),
        ({"segment": (0, ROWS + 1)}, f"the market has {ROWS} rows"),
        ({"segment": (20, 10)}, r"segment 0 is \[20, 10\)"),
        ({"slice": (0, 100)}, "unknown options"),
        ({"account": Account.start(1, 1, 1.0)}, "give options"),
        ({"segment": (0, 100), "account": Account.start(1, 2, 1.0)}, "holds 2 instruments"),
        ({"segment": (0, 100), "account": Account.start(2, 1, 1.0)}, "2 accounts for 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trading_env().reset(options=options)


def test_an_account_without_daily_volumes_is_refused_where_fees_have_tiers() -> None:
    carried = Account.start(1, 1, 1e5, fee_tiers=False)
    env = trading_env(**EVERYTHING)
    env.reset()
    before = state_bits(env.simulation)
    with pytest.raises(ValueError, match="keeps no daily volumes"):
        env.reset(options={"segment": (0, 100), "account": carried})
    assert state_bits(env.simulation) == before
    _, info = trading_env().reset(options={"segment": (0, 100), "account": carried})
    assert info["equity"] == 1e5


def test_each_environment_wants_its_kind_of_action() -> None:
    with pytest.raises(ValueError, match="TradingEnv takes actions of kind brackets"):
        trading_env(actions=WeightActions(kind="weights"))
    with pytest.raises(ValueError, match="PortfolioEnv takes actions of kind weights"):
        portfolio_env(actions=BRACKETS)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({**HOLD, "direction": 4}, r"direction 4 must lie in \[0, 4\)"),
        ({**HOLD, "take_profit": -1}, r"take_profit -1 must lie in \[0, 2\)"),
        ({**HOLD, "size": float("nan")}, "size is nan"),
        ({**HOLD, "more": 1}, "keys"),
    ],
)
def test_a_refused_choice_changes_nothing(action: dict[str, Any], message: str) -> None:
    env = trading_env()
    env.reset()
    env.step(LONG)
    before = state_bits(env.simulation)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert state_bits(env.simulation) == before
    env.step(HOLD)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0, np.nan, 0], "instrument 1: weight nan must be a number in"),
        ([0, 0, 1.5], r"instrument 2: weight 1.5 must be a number in \[-1, 1\]"),
        ([0, 0], "shape"),
        (0.5, "shape"),
    ],
)
def test_a_refused_weight_changes_nothing(action: Any, message: str) -> None:
    env = portfolio_env()
    env.reset()
    env.step(np.array([0.5, -0.5, 0.1], np.float32))
    before = state_bits(env.simulation)
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert state_bits(env.simulation) == before


def test_a_window_longer_than_every_segment_is_refused() -> None:
    with pytest.raises(ValueError, match="a window of 300 needs 301"):
        trading_env(window=300)


def test_a_time_limit_wrapper_works() -> None:
    env = gymnasium.wrappers.TimeLimit(trading_env(), max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]


@MAKERS
def test_index_observations_name_the_row_where_the_window_ends(make: Any) -> None:
    windows, rows = make(5), make(5, INDEX)
    rng = np.random.default_rng(0)
    pairs = [(windows.reset()[0], rows.reset()[0])]
    for flat in windows.mapping.sample(rng, 20):
        steps = [env.step(action_of(env, flat)) for env in (windows, rows)]
        pairs.append((steps[0][0], steps[1][0]))
        assert steps[0][1:] == steps[1][1:]
    for window, index in pairs:
        assert rows.observation_space.contains(index)
        (row,) = index["row"]
        gathered = rows.simulation.features[row - 7 : row + 1]
        assert gathered.tobytes() == window["window"].tobytes()
        assert index["account"].tobytes() == window["account"].tobytes()


def test_an_observation_stays_as_it_is_when_the_next_is_made() -> None:
    env = trading_env()
    kept, _ = env.reset()
    copy = {name: values.copy() for name, values in kept.items()}
    env.step(LONG)
    assert same(kept, copy)
    kept["window"][:] = 0
    assert env.simulation.features.any()


@MAKERS
def test_a_picture_shows_the_episode_so_far(make: Any) -> None:
    env = make(0, PICTURES, **EVERYTHING)
    pictures = [env.render()]
    env.reset()
    pictures.append(env.render())
    env.action_space.seed(0)
    for _ in range(4):
        for _ in range(5):
            env.step(env.action_space.sample())
        pictures.append(env.render())
    env.reset()
    pictures.append(env.render())
    for picture in pictures:
        assert (picture.dtype, picture.shape) == (np.uint8, (600, 900, 3))
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert env.render().tobytes() == pictures[-1].tobytes()


def test_marks_of_fills_lie_on_the_prices_drawn_whatever_the_price_scale() -> None:
    drawn = []
    for scale in (1.0, 4.0):
        env = trading_env(
            3,
            PICTURES,
            random_start_position=False,
            costs={"slippage": {"kind": "fixed", "bps": 0}},
            randomisation={"price": (scale, scale)},
        )
        env.reset()
        for _ in range(5):
            env.step(LONG)
        drawn.append(env.render().tobytes())
    assert drawn[0] == drawn[1]


def test_without_a_render_mode_there_is_no_picture() -> None:
    env = trading_env()
    env.reset()
    assert env.render() is None
    with pytest.raises(ValueError, match="render_mode 'human' is unknown"):
        trading_env(0, {"render_mode": "human"})


def test_orders_trade_at_the_next_open_with_the_costs_of_the_settings() -> None:
    settings = environment_settings(
        window=1,
        random_start_position=False,
        actions=BracketActions(kind="brackets"),
        costs={"fee": {"kind": "flat", "bps": 5}, "slippage": {"kind": "fixed", "bps": 2}},
    )
    bars = market([flat_bar(100), (110, 115, 105, 112), flat_bar(120)])
    env = TradingEnv(bars, np.zeros((3, 1), np.float32), np.array([[0, 3]]), settings)
    env.reset(options={"segment": (0, 3)})
    _, _, _, _, info = env.step({**LONG, "size": 0})
    (fill,) = info["fills"]
    assert fill.price == pytest.approx(110 * 1.0002)
    assert fill.fee == pytest.approx(fill.quantity * fill.price * 5e-4)
    # 1000 at the close of 100, which 1.1 times the price no longer buys: the leverage cap
    assert fill.quantity == pytest.approx(1e5 / 110)


@pytest.mark.parametrize("name", ["features", "segments"])
def test_arrays_that_do_not_fit_the_market_are_refused(name: str) -> None:
    arrays = {"features": features(), "segments": SEGMENTS}
    arrays[name] = {"features": features()[:-1], "segments": np.array([[0, ROWS + 1]])}[name]
    with pytest.raises(ValueError, match=f"{ROWS}"):
        TradingEnv(hourly_market(1), settings=environment_settings(), **arrays)


def test_a_portfolio_of_one_instrument_is_possible() -> None:
    env = PortfolioEnv(
        random_market(ROWS, 1, 1),
        features(),
        SEGMENTS,
        environment_settings(actions=WeightActions(kind="weights")),
    )
    assert env.action_space.shape == (1,)
    assert len(play(env, 0)) == 1 + 2 * 30


def test_flat_actions_train_with_stable_baselines3_and_walk_as_dict_actions() -> None:
    chosen = environment_settings(1)
    flat, named = scalar_env(chosen, 3, flat_actions=True), scalar_env(chosen, 3)
    assert isinstance(flat.action_space, gymnasium.spaces.MultiDiscrete)
    sb3_check_env(flat)
    PPO("MultiInputPolicy", flat, n_steps=32, batch_size=32, n_epochs=1).learn(64)
    flat.reset(seed=5)
    named.reset(seed=5)
    for action in flat.mapping.sample(np.random.default_rng(0), 20):
        one, other = flat.step(action), named.step(named.mapping.to_dict(action))
        assert one[1:4] == other[1:4]
        assert one[4] == other[4]
