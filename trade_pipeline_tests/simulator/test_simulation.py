"""One simulation behind all faces: same actions, same trajectory; nothing but numbers, whatever
the settings; what cannot be simulated is refused before anything has changed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator import simulation as simulation_module
from trade_pipeline.simulator.actions import ActionMapping, mapping_for
from trade_pipeline.simulator.compiled import config
from trade_pipeline.simulator.env import PortfolioEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, Fills, MarketError, Orders, Rules, step
from trade_pipeline.simulator.observation import windows
from trade_pipeline.simulator.simulation import Simulation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.simulator.environments import (
    BUILT_IN,
    EVERYTHING,
    KINDS,
    ROWS,
    SEGMENTS,
    account_bits,
    action_of,
    actions_for,
    bits_of,
    course_of_env,
    courses_of,
    custom,
    environment_settings,
    features,
    hourly_market,
    market_of,
    scalar_env,
    simulation,
    state_bits,
    without_last_equities,
)
from trade_pipeline_tests.simulator.markets import random_market
from trade_pipeline_tests.training import synthetic

INSTRUMENTS = pytest.mark.parametrize("instruments", [1, 3], ids=["brackets", "weights"])
WITH_CUSTOM = {**EVERYTHING, "reward": (*BUILT_IN, custom("holding"))}
PER_SHARE = {
    **EVERYTHING,
    "costs": {
        **EVERYTHING["costs"],
        "fee": {"kind": "per_share", "per_share": 0.01, "minimum": 1, "maximum_fraction": 0.005},
        "slippage": {"kind": "fixed", "bps": 3},
        "lot_size": 1.0,
    },
}
CHANGES = pytest.mark.parametrize(
    "changes",
    [{}, EVERYTHING, WITH_CUSTOM, PER_SHARE],
    ids=["plain", "everything", "custom", "per_share"],
)
SMALL = {"episode_bars": 25}


def ruinous(instruments: int, rows: int = 120, seed: int = 3, volatility: float = 0.15) -> Any:
    return random_market(rows, instruments, seed, volatility)


# Same actions, same trajectory


@INSTRUMENTS
@CHANGES
@pytest.mark.parametrize("environments", [1, 3, 17])
def test_each_account_walks_as_the_scalar_environment_of_its_seed(
    environments: int, changes: dict[str, Any], instruments: int
) -> None:
    chosen = environment_settings(instruments, **{**changes, **SMALL})
    seeds = [100 + 7 * e for e in range(environments)]
    run = simulation(chosen, environments, seeds, instruments)
    actions = actions_for(run, 80, environments)
    run.begin()
    courses = courses_of(run, actions)
    fills = 0
    for e, seed in enumerate(seeds):
        twin = course_of_env(scalar_env(chosen, seed, instruments), actions[:, e])
        assert courses[e] == without_last_equities(twin)
        fills += sum(moment.fills.count("Fill(") for moment in twin)
    assert sum(moment.done for moment in courses[0]) >= 3
    assert fills > 20 * environments


@INSTRUMENTS
def test_accounts_walk_the_same_to_ruin_and_after(instruments: int) -> None:
    """Twenty times leverage in a wild market: episodes that end early and begin anew."""
    chosen = environment_settings(
        instruments,
        **SMALL,
        max_leverage=20,
        maintenance_margin=0.0,
        max_position=20,
        **({"actions": {"kind": "brackets", "sizes": (5, 20)}} if instruments == 1 else {}),
    )
    bars, table = ruinous(instruments), features(instruments)[:120]
    segments = np.array([[0, 120]])
    run = Simulation(bars, table, segments, chosen, 5, [1, 2, 3, 4, 5])
    actions = actions_for(run, 60, 5)
    run.begin()
    courses = courses_of(run, actions)
    kind = TradingEnv if instruments == 1 else PortfolioEnv
    ruined = 0
    for e in range(5):
        twin = kind(bars, table, segments, chosen, e + 1)
        assert courses[e] == without_last_equities(course_of_env(twin, actions[:, e]))
        ends = [0, *(t + 1 for t, moment in enumerate(courses[e]) if moment.done)]
        ruined += int((np.diff(ends) < 25).sum())
    assert ruined > 5


@INSTRUMENTS
@pytest.mark.parametrize("changes", [EVERYTHING, WITH_CUSTOM], ids=["built_in", "custom"])
def test_an_environment_does_the_same_beside_any_number_of_others(
    instruments: int, changes: dict[str, Any]
) -> None:
    chosen = environment_settings(instruments, **{**changes, **SMALL})
    actions = actions_for(simulation(chosen, 1, 0, instruments), 70, 34)
    courses = {}
    for environments in (1, 4, 34):
        run = simulation(chosen, environments, 11, instruments)
        run.begin(staggered=True)
        courses[environments] = courses_of(run, actions[:, :environments])
    assert courses[1] == courses[34][:1]
    assert courses[4] == courses[34][:4]
    assert courses[34][0] != courses[34][1]


@INSTRUMENTS
@pytest.mark.parametrize("environments", [1, 2, 17])
@pytest.mark.skipif(config.NUMBA_NUM_THREADS < 2, reason="this machine has one core")
def test_the_number_of_threads_changes_nothing(environments: int, instruments: int) -> None:
    chosen = environment_settings(instruments, **{**EVERYTHING, **SMALL})
    actions = actions_for(simulation(chosen, 1, 0, instruments), 70, environments)
    courses, states = [], []
    for threads in (1, 2):
        run = simulation(chosen, environments, 3, instruments, threads=threads)
        run.begin(staggered=True)
        courses.append(courses_of(run, actions))
        states.append(state_bits(run))
    assert courses[0] == courses[1]
    assert states[0] == states[1]


@INSTRUMENTS
def test_a_term_of_ones_own_that_is_zero_changes_nothing(instruments: int) -> None:
    """With such a term the step and what follows it are separate calls."""
    runs = []
    for terms in (BUILT_IN, (*BUILT_IN, custom("nothing"))):
        changes = {**EVERYTHING, **SMALL, "reward": terms}
        run = simulation(environment_settings(instruments, **changes), 7, 5, instruments)
        run.begin(staggered=True)
        runs.append(run)
    actions = actions_for(runs[0], 70, 7)
    assert courses_of(runs[0], actions) == courses_of(runs[1], actions)
    assert state_bits(runs[0]) == state_bits(runs[1])


def test_a_term_of_ones_own_sees_the_step_of_an_episode_that_ends() -> None:
    chosen = environment_settings(
        episode_bars=1, random_start_position=False, reward=(custom("holding", 2.0),)
    )
    run = simulation(chosen, 2, 0, 1)
    run.begin()
    run.mapping.to_orders(np.array([[2, 1, 0, 0], [0, 0, 0, 0]]), run.orders)
    rewards, dones, _ = run.advance()
    assert dones.all()
    assert rewards.tolist() == [2 * (-1 - 1e-7 * 1e5), 2 * (-1e-7 * 1e5)]
    assert run.episodes["ended_reward"].tolist() == rewards.tolist()


@INSTRUMENTS
def test_two_rows_alone_are_all_that_a_step_needs(instruments: int) -> None:
    """Bar by bar on `market.pair(t)`, as live trading would, against the whole market at once."""
    bars, environments = hourly_market(instruments), 5
    chosen = environment_settings(instruments, **EVERYTHING)
    rules, mapping = Rules.of(chosen, instruments), mapping_for(chosen, instruments)
    rows = np.array([0, 30, 100, 170, 299])
    together = Account.start(environments, instruments, 1e5)
    alone = [Account.start(1, instruments, 1e5) for _ in range(environments)]
    fills, fills_alone = Fills.empty(environments, instruments), Fills.empty(1, instruments)
    rng, count = np.random.default_rng(0), 0
    for _ in range(100):
        orders = mapping.to_orders(mapping.sample(rng, environments))
        step(together, bars, rows, orders, rules, fills)
        for e in range(environments):
            own = Orders(*(array[e : e + 1] for array in orders))
            pair = bars.pair(int(rows[e]))
            step(alone[e], pair, np.zeros(1, np.int64), own, rules, fills_alone)
            assert fills_alone.of(0) == fills.of(e)
            count += len(fills.of(e))
            mine = together.chosen(np.array([e]))
            assert account_bits(mine) == account_bits(alone[e])
        rows = rows + 1
    assert count > 300


class Replay:
    """Gives the actions that were given to it, row by row."""

    name = "replay"

    def __init__(self, mapping: ActionMapping, actions: np.ndarray) -> None:
        self._mapping = mapping
        self._actions = actions

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        pass

    def orders(self, row: int, account: Account) -> Orders:
        return self._mapping.to_orders(self._actions[row][np.newaxis])


@INSTRUMENTS
@pytest.mark.parametrize("changes", [EVERYTHING, PER_SHARE], ids=["everything", "per_share"])
def test_a_backtest_walks_as_the_environment_with_the_same_actions(
    instruments: int, changes: dict[str, Any]
) -> None:
    keys = tuple(f"demo.{letter}.1h" for letter in "ABC"[:instruments])
    plain = {"costs": {}, "window": 8, "actions": KINDS[instruments].model_dump()}
    dataset = synthetic.dataset(keys, environment=plain)
    chosen = environment_settings(instruments, **changes)
    mapping = mapping_for(chosen, instruments)
    rows = len(dataset.ts)
    actions = mapping.sample(np.random.default_rng(0), rows)
    slices = [(0, 150), (160, 300), (310, 312), (320, 380)]
    result = backtest(dataset, np.array(slices), chosen, Replay(mapping, actions))
    table = np.zeros((rows, 1), np.float32)
    kind = TradingEnv if instruments == 1 else PortfolioEnv
    env = kind(dataset.market, table, np.array(slices), chosen)
    env.reset(seed=3)  # a randomised training episode, of which nothing may be left
    env.step(action_of(env, actions[0]))
    equity, fills, account = [chosen.initial_equity], [], None
    for number in (0, 1, 3):  # the third holds no decision
        _, info = env.reset(options={"segment": slices[number], "account": account})
        done = False
        while not done:
            action = action_of(env, actions[info["row"]])
            _, _, terminated, truncated, info = env.step(action)
            fills += info["fills"]
            equity.append(info["equity"])
            done = terminated or truncated
        assert not terminated
        if number != 3:
            fills += env.close_out()
            equity[-1] = float(env.account.equity[0])
        account = env.account
    assert np.array(equity).tobytes() == result.equity.tobytes()
    found = result.fills.select("quantity", "price", "fee", "slippage", "reason").rows()
    assert found == [(f.quantity, f.price, f.fee, f.slippage, f.reason) for f in fills]
    assert len(fills) > 150
    assert {fill.reason for fill in fills} >= {"order", "slice_end"}


# Starts


def test_sequential_environments_begin_at_equal_distances_and_go_on_in_order() -> None:
    chosen = environment_settings(
        **{**EVERYTHING, **SMALL}, starts={"kind": "sequential"}, random_start_position=False
    )
    run = simulation(chosen, 4, 0, 1)
    # Decisions 7..148 and 167..398: 6 episodes of at most 25, then 10
    first = [*range(7, 149, 25), *range(167, 399, 25)]
    last = [*(min(row + 24, 148) for row in first[:6]), *(min(row + 24, 398) for row in first[6:])]
    assert len(first) == 16
    run.begin()
    for number in range(20):
        expected = [(e * 16 // 4 + number) % 16 for e in range(4)]
        assert run.episodes["first"].tolist() == [first[k] for k in expected]
        assert run.episodes["last"].tolist() == [last[k] for k in expected]
        assert run.row.tolist() == run.episodes["first"].tolist()
        run.begin()
    run.seed(1)
    run.begin()
    assert run.episodes["first"].tolist() == [first[k] for k in (0, 4, 8, 12)]


def test_sequential_environments_may_be_more_than_the_episodes() -> None:
    chosen = environment_settings(episode_bars=200, starts={"kind": "sequential"})
    run = simulation(chosen, 7, 0, 1)  # 142 decisions, then 200 and 32: 3 episodes
    run.begin()
    assert run.episodes["first"].tolist() == [7, 7, 7, 167, 167, 367, 367]


def test_sequential_episodes_follow_each_other_as_they_are_stepped() -> None:
    chosen = environment_settings(starts={"kind": "sequential"})
    run = simulation(chosen, 1, 0, 1)
    run.begin()
    decided = []
    for _ in range(142 + 232 + 1):
        decided.append(int(run.row[0]))
        run.mapping.to_orders(np.zeros((1, 4), int), run.orders)
        run.advance()
    assert decided == [*range(7, 149), *range(167, 399), 7]


def test_stratified_starts_follow_the_labels_given() -> None:
    labels = np.zeros(ROWS)
    labels[200:203] = 1.0
    chosen = environment_settings(starts={"kind": "stratified", "label": "regime"})
    run = simulation(chosen, 400, 0, 1, labels=labels)
    run.begin()
    assert 0.4 < (labels[run.row] == 1).mean() < 0.6
    with pytest.raises(ValueError, match="stratified by regime, but no labels were given"):
        simulation(chosen, 1, 0, 1)
    labels[5] = 0.25
    with pytest.raises(ValueError, match=r"label regime: row 5 is 0\.25; labels are whole"):
        simulation(chosen, 1, 0, 1, labels=labels)


def test_first_episodes_are_cut_only_where_that_is_asked() -> None:
    run = simulation(environment_settings(), 64, 0, 1)
    run.begin()
    assert (run.episodes["last"] - run.episodes["first"] + 1 == 30).all()
    run.begin(staggered=True)
    lengths = run.episodes["last"] - run.episodes["first"] + 1
    assert (lengths.min(), lengths.max()) >= (1, 15)
    assert lengths.max() <= 30
    assert len(np.unique(lengths)) > 15


@INSTRUMENTS
def test_an_episode_begins_with_an_account_like_new(instruments: int) -> None:
    changes = {**EVERYTHING, "random_start_position": False, "episode_bars": 60}
    run = simulation(environment_settings(instruments, **changes), 6, 0, instruments)
    new = Account.start(6, instruments, 1e5)
    # Rates are those of the last step and chosen anew in each; scales are drawn
    drawn = {*SCALES, "maker_rate", "taker_rate"}
    equities(run)
    assert run.account.daily_volume.any()
    run.account.ambiguous[:] = 3
    run.begin()
    for name in set(new.balances.dtype.names) - drawn:
        assert run.account.balances[name].tolist() == new.balances[name].tolist(), name
    assert bits_of(run.account.positions) == bits_of(new.positions)
    assert not run.account.daily_volume.any()
    assert not run.fills.count.any()


# Randomisation

SCALES = ("fee_scale", "slippage_scale", "price_scale")
NO_COSTS = {
    "fee": {"kind": "flat", "bps": 0},
    "slippage": {"kind": "fixed", "bps": 0},
}


def scales_of(run: Simulation) -> np.ndarray:
    return np.stack([getattr(run.account, name) for name in SCALES])


def test_scales_are_drawn_log_uniformly_for_each_episode_and_environment() -> None:
    bounds = {"fee": (0.25, 4.0), "slippage": (0.5, 2.0), "price": (0.1, 10.0)}
    run = simulation(environment_settings(randomisation=bounds), 500, 0, 1)
    drawn = []
    for _ in range(2):
        run.begin()
        drawn.append(scales_of(run).copy())
    both = np.concatenate(drawn, axis=1)
    for scales, (lowest, highest) in zip(both, bounds.values(), strict=True):
        assert ((scales >= lowest) & (scales <= highest)).all()
        assert len(np.unique(scales)) == len(scales)
        part = np.log(scales / lowest) / np.log(highest / lowest)
        assert part.mean() == pytest.approx(0.5, abs=0.05)
        assert part.std() == pytest.approx(12**-0.5, abs=0.03)
    assert np.abs(np.corrcoef(np.log(both)) - np.eye(3)).max() < 0.15


def test_scales_are_exactly_one_unless_asked_for() -> None:
    run = simulation(environment_settings(), 9, 0, 1)
    for _ in range(3):
        run.begin()
        assert (scales_of(run) == 1.0).all()
    fee_only = environment_settings(randomisation={"fee": (0.5, 2)})
    run = simulation(fee_only, 9, 0, 1)
    run.begin()
    assert (run.account.fee_scale != 1).all()
    assert (scales_of(run)[1:] == 1.0).all()


@pytest.mark.parametrize(("name", "paid"), [("fee", "fees"), ("slippage", "slippage")])
def test_a_scale_of_two_doubles_what_a_fill_pays(name: str, paid: str) -> None:
    first = []
    for scale in (1.0, 2.0):
        bounds = {name: (scale, scale)}
        chosen = environment_settings(random_start_position=False, randomisation=bounds)
        run = simulation(chosen, 8, 4, 1)
        run.begin()
        run.mapping.to_orders(np.tile([2, 0, 0, 0], (8, 1)), run.orders)
        run.act()
        first.append(getattr(run.account, paid).copy())
    assert (first[0] > 0).sum() > 4
    np.testing.assert_allclose(first[1], 2 * first[0], rtol=1e-12)


def equities(run: Simulation, steps: int = 60) -> np.ndarray:
    rng = np.random.default_rng(1)
    run.begin()
    path = []
    for _ in range(steps):
        run.mapping.to_orders(run.mapping.sample(rng, run.environments), run.orders)
        run.act()
        path.append(run.account.equity.copy())
    return np.array(path)


@INSTRUMENTS
@pytest.mark.parametrize("slippage", ["fixed", "impact"])
def test_the_price_scale_alone_moves_no_equity_without_lots(
    instruments: int, slippage: str
) -> None:
    kinds = {
        "fixed": {"kind": "fixed", "bps": 2},
        "impact": {"kind": "impact", "bps": 1, "impact_bps": 30},
    }
    costs = {
        **EVERYTHING["costs"],
        "slippage": kinds[slippage],
        "lot_size": 0,
        "tick_size": 0,
    }
    paths = []
    for scale in (1.0, 3.0):
        changes = {**EVERYTHING, "randomisation": {"price": (scale, scale)}, "costs": costs}
        chosen = environment_settings(instruments, **changes, episode_bars=60)
        run = simulation(chosen, 6, 4, instruments)
        paths.append(equities(run))
        assert (run.account.price_scale == scale).all()
    np.testing.assert_allclose(paths[1], paths[0], rtol=1e-9)
    assert (paths[0][-1] != 1e5).all()


def test_the_price_scale_moves_what_a_lot_can_hold() -> None:
    held = []
    for scale in (1.0, 3.0):
        chosen = environment_settings(
            randomisation={"price": (scale, scale)},
            random_start_position=False,
            costs={**NO_COSTS, "lot_size": 100},
            initial_equity=55_000,
        )
        run = simulation(chosen, 8, 4, 1)
        run.begin()
        run.mapping.to_orders(np.tile([2, 1, 0, 0], (8, 1)), run.orders)
        rows = run.row.copy()
        run.act()
        traded = run.market.traded[rows + 1, 0]
        quantity = run.account.quantity[traded, 0]
        assert (quantity % 100 == 0).all()
        held.append(quantity * run.market.close[rows, 0][traded] * scale)
    assert (held[0] != held[1]).any()
    assert (np.concatenate(held) <= 55_000).all()


@INSTRUMENTS
def test_a_randomised_environment_evaluates_as_one_that_is_not(instruments: int) -> None:
    wild = environment_settings(instruments, **EVERYTHING)
    calm = environment_settings(instruments, **{**EVERYTHING, "randomisation": {}})
    envs = [scalar_env(chosen, 0, instruments) for chosen in (wild, calm)]
    actions = actions_for(envs[0], 30, 1)[:, 0]
    envs[0].reset()
    assert all(scale != 1 for scale in scales_of(envs[0].simulation)[:, 0])
    for env in envs:
        env.step(action_of(env, actions[0])) if env is envs[0] else env.reset()
        env.reset(options={"segment": (160, 220)})
        assert (scales_of(env.simulation) == 1.0).all()
    for action in actions:
        steps = [env.step(action_of(env, action)) for env in envs]
        assert steps[0][1:] == steps[1][1:]


# Observations


@INSTRUMENTS
def test_windows_gathered_at_the_row_are_the_windows_observed(instruments: int) -> None:
    chosen = environment_settings(instruments, **{**EVERYTHING, **SMALL})
    given_windows, given_rows = (
        simulation(chosen, 6, 2, instruments, observe=view) for view in ("window", "index")
    )
    actions = actions_for(given_windows, 60, 6)
    seen = []
    for run in (given_windows, given_rows):
        run.begin(staggered=True)
        seen.append([run.observe()])
        for chosen_actions in actions:
            run.mapping.to_orders(chosen_actions, run.orders)
            _, dones, now = run.advance()
            seen[-1] += [now, *(run.ended(e)[1] for e in np.flatnonzero(dones))]
    ended = 0
    for window, row in zip(*seen, strict=True):
        assert row["row"].dtype == np.int32
        assert row["account"].tobytes() == window["account"].tobytes()
        at = row["row"].astype(np.int64).reshape(-1)
        gathered = windows(given_rows.features, at, 8)
        assert gathered.tobytes() == window["window"].tobytes()
        ended += row["row"].ndim == 1
    assert ended > 10


def test_more_rows_than_a_float_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulation_module.MOST_ROWS == 2**24
    assert int(np.float32(2**24 - 1)) == 2**24 - 1
    monkeypatch.setattr(simulation_module, "MOST_ROWS", ROWS - 1)
    with pytest.raises(ValueError, match=f"has {ROWS} rows; index observations hold at most 399"):
        simulation(environment_settings(), 1, 0, 1, observe="index")
    simulation(environment_settings(), 1, 0, 1)
    monkeypatch.setattr(simulation_module, "MOST_ROWS", ROWS)
    simulation(environment_settings(), 1, 0, 1, observe="index")


# What is refused


def spoiled(name: str, row: int, instrument: int, value: float) -> Any:
    array = getattr(hourly_market(3), name).copy()
    array[row, instrument] = value
    return lambda: market_of(hourly_market(3), **{name: array})


def backwards() -> Any:
    return market_of(hourly_market(3), slice(None, None, -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (spoiled("close", 30, 2, np.nan), r"row 30 \(ts \d+\), instrument 2: close nan"),
        (spoiled("open", 0, 1, 0.0), r"row 0 .*instrument 1: open 0\.0 is not a positive price"),
        (spoiled("low", 399, 0, -3.0), r"row 399 .*instrument 0: low -3\.0"),
        (backwards, "row 1: ts .* does not come after row 0"),
    ],
)
def test_bars_that_cannot_be_are_refused_with_their_place(make: Any, message: str) -> None:
    with pytest.raises(MarketError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "others", "message"),
    [
        ({"window": 240}, {}, "longest of 2 has 240 rows, a window of 240 needs 241"),
        ({"costs": {"lot_size": (1, 2)}}, {}, "lot_size lists 2 numbers for 3 instruments"),
        ({"costs": {"tick_size": (1,)}}, {}, "tick_size lists 1 numbers for 3 instruments"),
        ({}, {"threads": 0}, "threads is 0; a whole number of at least 1"),
        ({}, {"threads": 10_000}, "10000 threads; this machine has 1 to"),
        ({"reward": (custom("absent"),)}, {}, "has no 'absent'"),
        ({}, {"seed": [1, 2]}, "2 seeds for 3 environments"),
        ({}, {"environments": 0}, "environments is 0; a whole number of at least 1"),
        ({"actions": KINDS[1]}, {}, "brackets trade one instrument, the market has 3"),
    ],
)
def test_what_cannot_be_simulated_is_refused(
    changes: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    chosen = environment_settings(3, **changes)
    arguments: dict[str, Any] = {"environments": 3, "seed": 0, **others}
    with pytest.raises(ValueError, match=message):
        simulation(chosen, instruments=3, **arguments)


def test_features_that_are_no_numbers_are_refused_with_their_place() -> None:
    table = features(1)
    table[17, 1] = np.nan
    with pytest.raises(ValueError, match=r"features row 17 \(ts \d+\), column 1 is nan"):
        Simulation(hourly_market(1), table, SEGMENTS, environment_settings())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stop_fraction": -0.1}, r"environment 1: .*the stop -0\.1 .*zero or more"),
        ({"take_fraction": -1e-9}, r"environment 1: .*the take -1e-09"),
        ({"target_weight": np.nan}, "instrument 2 the target weight nan must be a finite"),
        ({"target_weight": np.inf}, "instrument 2 the target weight inf must be a finite"),
    ],
)
def test_orders_that_cannot_be_carried_out_change_nothing(
    wrong: dict[str, float], message: str
) -> None:
    bars = hourly_market(3)
    rules, account, fills = Rules.plain(3), Account.start(2, 3, 1e5), Fills.empty(2, 3)
    orders = Orders.room(2, 3)
    orders.target_weight[:] = 0.3
    orders.stop_fraction[:] = np.nan
    orders.take_fraction[:] = np.nan
    rows = np.array([5, 6])
    step(account, bars, rows, orders, rules, fills)
    kept = account_bits(account) + bits_of(fills.records) + fills.count.tobytes()
    for name, value in wrong.items():
        getattr(orders, name)[1, 2] = value
    with pytest.raises(ValueError, match=message):
        step(account, bars, rows + 1, orders, rules, fills)
    assert account_bits(account) + bits_of(fills.records) + fills.count.tobytes() == kept


# Numbers, whatever the settings


@st.composite
def wild_settings(draw: st.DrawFn) -> tuple[EnvironmentSettings, int]:
    """Settings that agree with each other, and a number of instruments."""
    instruments = draw(st.integers(1, 3))

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    leverage = one_of(0.5, 1.0, 3.0, 15.0)
    brackets = {
        "kind": "brackets",
        "sizes": one_of((leverage,), (leverage / 4, leverage / 2)),
        "stops": one_of((None,), (0.005, 0.9), (None, 0.03)),
        "takes": one_of((None,), (0.005, 5.0)),
        "short": draw(st.booleans()),
    }
    weights = {
        "kind": "weights",
        "stop": one_of(None, 0.01, 0.9),
        "take": one_of(None, 0.01),
        "short": draw(st.booleans()),
    }
    tiers = [{"volume": 0, "maker_bps": 2, "taker_bps": 10}]
    tiers += [{"volume": 1e5, "maker_bps": 0, "taker_bps": 1}]
    costs = {
        "fee": one_of(
            {"kind": "flat", "bps": 0},
            {"kind": "flat", "bps": 300},
            {"kind": "maker_taker", "tiers": tiers},
            {"kind": "per_share", "per_share": 0.5, "minimum": 20},
            {"kind": "per_share", "per_share": 1, "minimum": 20, "maximum_fraction": 0.01},
        ),
        "slippage": one_of(
            {"kind": "fixed", "bps": 0},
            {"kind": "fixed", "bps": 400},
            {"kind": "impact", "bps": 1, "impact_bps": 900},
        ),
        "borrow_rate": one_of(0, 0.2),
        "interest_rate": one_of(0, 0.2),
        "cash_rate": one_of(0, 0.2),
        "funding_rate": one_of(0, 0.02, -0.02),
        "funding_hours": one_of(1, 8),
        "lot_size": one_of(0, 0.1, 7, tuple((0.0, 1.0, 50.0)[:instruments])),
        "tick_size": one_of(0, 0.01, 5),
        "min_notional": one_of(0, 2000),
        "participation": one_of(0, 0.05, 1),
    }
    scale = one_of((1, 1), (0.1, 10))
    content = {
        "window": one_of(1, 5),
        "episode_bars": one_of(1, 17, 1000),
        "actions": brackets if instruments == 1 and draw(st.booleans()) else weights,
        "costs": costs,
        "starts": one_of(
            {"kind": "uniform"},
            {"kind": "sequential", "start_offset_bars": 4},
            {"kind": "stratified", "label": "regime"},
        ),
        "random_start_position": draw(st.booleans()),
        "randomisation": {"fee": scale, "slippage": scale, "price": scale},
        "initial_equity": one_of(1.0, 1e5),
        "max_leverage": leverage,
        "max_position": leverage,
        "maintenance_margin": one_of(0.0, 0.05),
        "max_turnover": one_of(None, 0.3),
        "no_trade_band": one_of(0.0, 0.1),
        "reward": (*BUILT_IN, custom("holding")) if draw(st.booleans()) else BUILT_IN,
    }
    return EnvironmentSettings.model_validate(content), instruments


@given(wild_settings(), st.integers(0, 2**31), st.sampled_from([0.002, 0.05, 0.4]))
@settings(max_examples=200)
def test_nothing_but_numbers_is_seen_or_earned_up_to_ruin(
    made: tuple[EnvironmentSettings, int], seed: int, volatility: float
) -> None:
    chosen, instruments = made
    rows = 70
    bars = random_market(rows, instruments, seed % 1000, volatility)
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(rows, 2)).astype(np.float32)
    segments = np.array([[0, 25], [25, 32], [35, rows]])
    labels = rng.integers(0, 3, rows)
    run = Simulation(bars, table, segments, chosen, 4, seed, labels=labels)
    run.begin(staggered=True)
    for _ in range(60):
        first = run.episodes["first"].copy()
        assert ((run.row >= first) & (run.row <= run.episodes["last"])).all()
        run.mapping.to_orders(run.mapping.sample(rng, 4), run.orders)
        rewards, dones, seen = run.advance()
        assert np.isfinite(rewards).all()
        assert all(np.isfinite(values).all() for values in seen.values())
        assert (np.isfinite(run.account.equity) & (run.account.equity > 0)).all()
        assert np.isfinite(run.account.cash).all()
        assert not run.account.terminated.any()
        assert (run.account.equity[dones] == chosen.initial_equity).all()
        for e in np.flatnonzero(dones):
            last = run.ended(e)[1]
            assert all(np.isfinite(values).all() for values in last.values())
            assert np.isfinite(run.episodes["ended_reward"][e])
        for e in range(4):
            for fill in run.fills.of(e):
                assert np.isfinite(fill[1:5]).all()
                assert fill.price > 0
                assert fill.quantity != 0


@given(st.integers(0, 2**31), st.integers(1, 3))
@settings(max_examples=15)
def test_any_seed_gives_the_same_course_twice(seed: int, instruments: int) -> None:
    chosen = environment_settings(instruments, **{**EVERYTHING, **SMALL})
    states = []
    for _ in range(2):
        run = simulation(chosen, 3, seed, instruments)
        actions = actions_for(run, 30, 3, seed)
        run.begin(staggered=True)
        states.append((courses_of(run, actions), state_bits(run)))
    assert states[0] == states[1]
