"""E accounts stepped, renewed and observed by compiled code, on one thread or several.

An account's course depends on its own orders and its own random stream alone. Start at
`advance_all`; `Simulation` owns the arrays.
"""

from typing import NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.accounting import clear
from trade_pipeline.simulator.actions import Choices, draw_orders
from trade_pipeline.simulator.compiled import compiled, compiled_parallel
from trade_pipeline.simulator.episodes import Starts, draw_episode, stagger
from trade_pipeline.simulator.kernel import begin_one, fetch_bars, step_one
from trade_pipeline.simulator.market import BoolArray, FloatArray, IntArray
from trade_pipeline.simulator.observation import Float32Array, account_vector_of, window_of
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.randomness import Streams, next_factor
from trade_pipeline.simulator.rewards import Weights, forget, reward_one
from trade_pipeline.simulator.rules import Rules


class World(NamedTuple):
    """What all accounts share, as compiled code reads it.

    Attributes:
        bars: BAR [T, N].
        features: float32 [T * N*F], flattened.
        columns: N*F.
        turbulent: bool [T], see `Reward`.
        scales: float64 [3, 2] lowest and highest fee, slippage and price scale.
        random_position: whether training episodes may begin with a position.
        initial_equity: quote currency.
    """

    bars: npt.NDArray[np.void]
    features: Float32Array
    columns: int
    turbulent: BoolArray
    scales: FloatArray
    random_position: bool
    initial_equity: float


# Numba takes no tuple within a tuple to a thread: `Rules`, `Weights`, `Choices`, `Starts` and
# `Orders` go beside these two.


class State(NamedTuple):
    """What each account has of its own, as compiled code changes it; all [E, ...].

    Attributes:
        balances: BALANCE, with positions, daily_volume the arrays of `Account`.
        positions: POSITION [E, N].
        daily_volume: float64 [E, 30].
        fill_counts: of `Fills`, with records.
        records: FILL [E, 4N].
        row: int64 the last closed row.
        episodes: EPISODE.
        memories: MEMORY of the reward.
        random: the random streams.
        ended_account: float32 [E, 5N+1] last account vector of the episode that ended last.
    """

    balances: npt.NDArray[np.void]
    positions: npt.NDArray[np.void]
    daily_volume: FloatArray
    fill_counts: IntArray
    records: npt.NDArray[np.void]
    row: IntArray
    episodes: npt.NDArray[np.void]
    memories: npt.NDArray[np.void]
    random: Streams
    ended_account: Float32Array


@compiled
def begin_account(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    e: int,
) -> None:
    """Account e begins its next training episode."""
    episode = state.episodes[e]
    balance = state.balances[e]
    draw_episode(starts, state.random, episode, e)
    balance.fee_scale = next_factor(state.random, e, world.scales[0, 0], world.scales[0, 1])
    balance.slippage_scale = next_factor(state.random, e, world.scales[1, 0], world.scales[1, 1])
    balance.price_scale = next_factor(state.random, e, world.scales[2, 0], world.scales[2, 1])
    draw_orders(choices, state.random, orders, e, world.random_position)
    begin_one(
        balance,
        state.positions[e],
        state.daily_volume,
        rules,
        orders,
        e,
        world.bars,
        episode.first,
        world.initial_equity,
    )
    forget(state.memories[e])
    state.row[e] = episode.first


@compiled
def act_account(
    world: World,
    rules: Rules,
    weights: Weights,
    state: State,
    orders: Orders,
    e: int,
    rewards: FloatArray,
    dones: BoolArray,
    prices: FloatArray,
    instruments: int,
) -> None:
    """Account e carries out its orders."""
    balance = state.balances[e]
    positions = state.positions[e]
    episode = state.episodes[e]
    before = balance.equity
    row = state.row[e]
    if balance.terminated:
        clear(balance)
        state.fill_counts[e] = 0
    else:
        state.fill_counts[e] = step_one(
            balance,
            positions,
            state.daily_volume,
            state.records[e],
            rules,
            orders,
            e,
            world.bars,
            row,
            prices,
            instruments,
        )
    row += 1
    state.row[e] = row
    rewards[e] = reward_one(
        weights,
        state.memories[e],
        balance,
        positions,
        before,
        world.bars,
        row,
        world.turbulent,
    )
    episode.reward += rewards[e]
    dones[e] = balance.terminated or row > episode.last


@compiled
def observe_account(
    world: World,
    state: State,
    e: int,
    account: Float32Array,
    window: Float32Array,
    instruments: int,
) -> None:
    """What account e sees."""
    row = state.row[e]
    account_vector_of(
        state.balances[e], state.positions[e], world.bars, row, account, e, instruments
    )
    if window.shape[1] > 0:
        window_of(world.features, row, world.columns, window, e)


@compiled
def renew_account(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    e: int,
    done: bool,
    account: Float32Array,
    window: Float32Array,
    instruments: int,
) -> None:
    """Account e begins anew if its episode has ended, and looks."""
    if done:
        episode = state.episodes[e]
        row = state.row[e]
        episode.ended_first = episode.first
        episode.ended_row = row
        episode.ended_reward = episode.reward
        episode.ended_terminated = state.balances[e].terminated
        account_vector_of(
            state.balances[e],
            state.positions[e],
            world.bars,
            row,
            state.ended_account,
            e,
            instruments,
        )
        begin_account(world, rules, choices, starts, state, orders, e)
    observe_account(world, state, e, account, window, instruments)


@compiled
def begin_all(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    staggered: bool,
) -> None:
    """Every account begins a training episode, cut to a random length if `staggered`."""
    for e in range(state.row.shape[0]):
        begin_account(world, rules, choices, starts, state, orders, e)
        if staggered:
            stagger(state.random, state.episodes[e], e)


@compiled
def act_all(
    world: World,
    rules: Rules,
    weights: Weights,
    state: State,
    orders: Orders,
    rewards: FloatArray,
    dones: BoolArray,
    prices: FloatArray,
    several: int | None,
) -> None:
    """Every account carries out its orders."""
    instruments = 1 if several is None else several
    fetch_bars(world.bars, state.row, 0, state.row.shape[0], prices[0])
    for e in range(state.row.shape[0]):
        act_account(world, rules, weights, state, orders, e, rewards, dones, prices[0], instruments)


@compiled
def renew_all(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    dones: BoolArray,
    account: Float32Array,
    window: Float32Array,
) -> None:
    """Accounts whose episode has ended begin anew; all look."""
    instruments = world.bars.shape[1]
    for e in range(state.row.shape[0]):
        renew_account(
            world, rules, choices, starts, state, orders, e, dones[e], account, window, instruments
        )


@compiled
def observe_all(world: World, state: State, account: Float32Array, window: Float32Array) -> None:
    """Every account looks."""
    instruments = world.bars.shape[1]
    for e in range(state.row.shape[0]):
        observe_account(world, state, e, account, window, instruments)


@compiled
def advance_accounts(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    weights: Weights,
    rewards: FloatArray,
    dones: BoolArray,
    account: Float32Array,
    window: Float32Array,
    room: FloatArray,
    instruments: int,
    first: int,
    last: int,
) -> None:
    """Accounts [first, last) carry out their orders, begin anew where they ended, and look."""
    fetch_bars(world.bars, state.row, first, last, room)
    for e in range(first, last):
        act_account(world, rules, weights, state, orders, e, rewards, dones, room, instruments)
        renew_account(
            world, rules, choices, starts, state, orders, e, dones[e], account, window, instruments
        )


@compiled
def advance_all(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    weights: Weights,
    rewards: FloatArray,
    dones: BoolArray,
    account: Float32Array,
    window: Float32Array,
    prices: FloatArray,
    several: int | None,
) -> None:
    """`advance_accounts` for everyone; `several` is N, or None for one instrument."""
    instruments = 1 if several is None else several
    advance_accounts(
        world,
        rules,
        choices,
        starts,
        state,
        orders,
        weights,
        rewards,
        dones,
        account,
        window,
        prices[0],
        instruments,
        0,
        state.row.shape[0],
    )


@compiled_parallel
def advance_all_on_threads(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    weights: Weights,
    rewards: FloatArray,
    dones: BoolArray,
    account: Float32Array,
    window: Float32Array,
    prices: FloatArray,
    several: int | None,
) -> None:
    """`advance_all` with as many threads as `prices` [threads, PRICE_ROWS, N] has room for."""
    threads = prices.shape[0]
    environments = state.row.shape[0]
    for thread in numba.prange(threads):
        instruments = 1 if several is None else several
        advance_accounts(
            world,
            rules,
            choices,
            starts,
            state,
            orders,
            weights,
            rewards,
            dones,
            account,
            window,
            prices[thread],
            instruments,
            environments * thread // threads,
            environments * (thread + 1) // threads,
        )
