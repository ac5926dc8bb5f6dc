"""E accounts stepped, renewed and observed by compiled code, on one thread or several.

An account's course depends on its own orders and its own random stream alone. Start at
`advance_all`; `Simulation` owns the arrays.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.actions import Choices, draw_orders
from trade_pipeline.simulator.compiled import compiled, compiled_parallel, prefetch
from trade_pipeline.simulator.episodes import Starts, draw_episode, stagger
from trade_pipeline.simulator.kernel import begin_one, step_block
from trade_pipeline.simulator.lanes import LANES
from trade_pipeline.simulator.market import BoolArray, FloatArray, IntArray
from trade_pipeline.simulator.observation import (
    Float32Array,
    account_vector_of,
    account_vectors_of,
    window_of,
)
from trade_pipeline.simulator.orders import Orders, orders_between
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


class Seen(NamedTuple):
    """Observations as compiled code writes them; of window and row one has no columns.

    Attributes:
        account: float32 [E, 5N+1].
        window: float32 [E, W * N*F].
        row: int32 [E, 1].
    """

    account: Float32Array
    window: Float32Array
    row: npt.NDArray[np.int32]


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
def accounts_between(state: State, a: int, b: int) -> State:
    """The accounts [a, b), as if there were no others."""
    return State(
        state.balances[a:b],
        state.positions[a:b],
        state.daily_volume[a:b],
        state.fill_counts[a:b],
        state.records[a:b],
        state.row[a:b],
        state.episodes[a:b],
        state.memories[a:b],
        state.random[a:b],
        state.ended_account[a:b],
    )


@compiled
def act_block(
    world: World,
    rules: Rules,
    weights: Weights,
    state: State,
    orders: Orders,
    rewards: FloatArray,
    dones: BoolArray,
    block: Any,
    holdings: Any,
) -> None:
    """A block of accounts carries out its orders."""
    step_block(
        block,
        holdings,
        state.balances,
        state.positions,
        state.daily_volume,
        state.fill_counts,
        state.records,
        rules,
        orders,
        world.bars,
        state.row,
    )
    for e in range(state.row.shape[0]):
        balance = state.balances[e]
        episode = state.episodes[e]
        row = state.row[e] + 1
        state.row[e] = row
        for n in range(holdings.shape[0]):
            prefetch(world.bars[row + 1, n])  # it takes longer to come than the next step to begin
        rewards[e] = reward_one(
            weights,
            state.memories[e],
            balance,
            state.positions[e],
            block.before[e],
            world.bars,
            row,
            world.turbulent,
        )
        episode.reward += rewards[e]
        dones[e] = balance.terminated or row > episode.last


@compiled
def see_account(world: World, state: State, e: int, seen: Float32Array) -> None:
    """The account vector of account e into `seen[e]`."""
    account_vector_of(state.balances[e], state.positions[e], world.bars, state.row[e], seen, e)


@compiled
def see_market(world: World, state: State, seen: Seen) -> None:
    """Every account's window of features, or the row where it ends."""
    for e in range(seen.window.shape[0]):
        if seen.window.shape[1] > 0:
            window_of(world.features, state.row[e], world.columns, seen.window, e)
        if seen.row.shape[1] > 0:
            seen.row[e, 0] = state.row[e]


@compiled
def renew_account(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    e: int,
    seen: Float32Array,
) -> None:
    """Account e, which has ended with `seen[e]` as its account vector, begins anew and looks."""
    episode = state.episodes[e]
    episode.ended_first = episode.first
    episode.ended_row = state.row[e]
    episode.ended_reward = episode.reward
    episode.ended_terminated = state.balances[e].terminated
    for column in range(seen.shape[1]):
        state.ended_account[e, column] = seen[e, column]
    begin_account(world, rules, choices, starts, state, orders, e)
    see_account(world, state, e, seen)


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
    blocks: Any,
    holdings: Any,
) -> None:
    """Every account carries out its orders."""
    for a in range(0, state.row.shape[0], LANES):
        b = min(a + LANES, state.row.shape[0])
        act_block(
            world,
            rules,
            weights,
            accounts_between(state, a, b),
            orders_between(orders, a, b),
            rewards[a:b],
            dones[a:b],
            blocks[0],
            holdings[0],
        )


@compiled
def renew_all(
    world: World,
    rules: Rules,
    choices: Choices,
    starts: Starts,
    state: State,
    orders: Orders,
    dones: BoolArray,
    seen: Seen,
) -> None:
    """Accounts whose episode has ended begin anew; all look."""
    for e in range(state.row.shape[0]):
        see_account(world, state, e, seen.account)
        if dones[e]:
            renew_account(world, rules, choices, starts, state, orders, e, seen.account)
    see_market(world, state, seen)


@compiled
def observe_all(world: World, state: State, seen: Seen) -> None:
    """Every account looks."""
    for e in range(state.row.shape[0]):
        see_account(world, state, e, seen.account)
    see_market(world, state, seen)


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
    scaled: Float32Array,
    scale: float,
    dones: BoolArray,
    seen: Seen,
    block: Any,
    holdings: Any,
    first: int,
    last: int,
) -> None:
    """Accounts [first, last) carry out their orders, begin anew where they ended, and look.

    Their rewards are written twice, the second time as float32 times `scale` if there is room.
    """
    for a in range(first, last, LANES):
        b = min(a + LANES, last)
        mine = accounts_between(state, a, b)
        wanted = orders_between(orders, a, b)
        done = dones[a:b]
        act_block(world, rules, weights, mine, wanted, rewards[a:b], done, block, holdings)
        for e in range(a, min(b, scaled.shape[0])):
            scaled[e] = rewards[e] * scale
        my_account = seen.account[a:b]
        account_vectors_of(block, holdings, my_account)
        for e in range(b - a):
            if done[e]:
                renew_account(world, rules, choices, starts, mine, wanted, e, my_account)
        see_market(world, mine, Seen(my_account, seen.window[a:b], seen.row[a:b]))


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
    scaled: Float32Array,
    scale: float,
    dones: BoolArray,
    seen: Seen,
    blocks: Any,
    holdings: Any,
) -> None:
    """`advance_accounts` for everyone."""
    advance_accounts(
        world,
        rules,
        choices,
        starts,
        state,
        orders,
        weights,
        rewards,
        scaled,
        scale,
        dones,
        seen,
        blocks[0],
        holdings[0],
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
    scaled: Float32Array,
    scale: float,
    dones: BoolArray,
    seen: Seen,
    blocks: Any,
    holdings: Any,
) -> None:
    """`advance_all` with as many threads as there are `blocks` and `holdings` to work in."""
    threads = blocks.shape[0]
    environments = state.row.shape[0]
    for thread in numba.prange(threads):
        advance_accounts(
            world,
            rules,
            choices,
            starts,
            state,
            orders,
            weights,
            rewards,
            scaled,
            scale,
            dones,
            seen,
            blocks[thread],
            holdings[thread],
            environments * thread // threads,
            environments * (thread + 1) // threads,
        )
