"""A small market whose best policy is known: a mean-reverting price that PPO learns in seconds.

The log price x is x' = RHO x + SIGMA eps, half-life 10 bars; bars open where the last one closed.
The feature is x in deviations. A policy is judged by what it is expected to earn, given x, as a
share of the best rule of the form: flip to the other side beyond a threshold, otherwise hold.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.market import Market
from trade_pipeline.simulator.simulation import Simulation
from trade_pipeline.simulator.vec_env import TradingVecEnv

RHO, SIGMA, COST = 0.5 ** (1 / 10), 20e-4, 4e-4
DEVIATION = SIGMA / (1 - RHO**2) ** 0.5
ROWS = 50_000
STARTS, BARS = 64, 200  # held-out episodes, begun flat
EPISODE_ROWS = BARS + 2  # the last decision needs a row to trade on
MINUTE_MS = 60_000

ENVIRONMENT = EnvironmentSettings.model_validate(
    {
        "window": 1,
        "episode_bars": 100,
        "costs": {
            "fee": {"kind": "flat", "bps": 3},
            "slippage": {"kind": "fixed", "bps": 1},
        },
        "no_trade_band": 0.2,  # the drift of a held position is not traded
        "actions": {"kind": "brackets"},
    }
)

Act = Callable[[dict[str, NDArray[Any]]], NDArray[np.int64]]


@cache
def path(rows: int, seed: int) -> NDArray[np.float64]:
    """x, begun at a draw from where it is in the long run."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, SIGMA, rows).tolist()
    x[0] = rng.normal(0, DEVIATION)
    for row in range(1, rows):
        x[row] += RHO * x[row - 1]
    return np.array(x)


@cache
def market_and_features() -> tuple[Market, NDArray[np.float32]]:
    """The training path, and the held-out one behind it."""
    x = np.concatenate([path(ROWS, 0), path(STARTS * EPISODE_ROWS, 1)])
    close = 100 * np.exp(x)[:, None]
    opened = np.vstack([close[:1], close[:-1]])
    ts = MINUTE_MS * np.arange(len(x))
    high, low = np.maximum(opened, close), np.minimum(opened, close)
    traded = np.ones(close.shape, np.bool_)
    volume = np.full_like(close, 1e6)
    market = Market(ts, ts + MINUTE_MS, opened, high, low, close, volume, traded)
    return market, (x / DEVIATION).astype(np.float32)[:, None]


def environments(count: int, seed: int, reward_scale: float, **changes: Any) -> TradingVecEnv:
    """On the training path; observations hold the row."""
    return TradingVecEnv(
        *market_and_features(),
        np.array([[0, ROWS]]),
        ENVIRONMENT.model_copy(update=changes),
        count,
        seed,
        reward_scale=reward_scale,
        observe="index",
    )


def share_of_best(act: Act) -> float:
    """What a policy is expected to earn on the held-out path, by what the best rule is."""
    first = ROWS + EPISODE_ROWS * np.arange(STARTS)
    settings = EnvironmentSettings.model_validate(
        {
            **ENVIRONMENT.model_dump(),
            "episode_bars": BARS + 1,
            "starts": {"kind": "sequential"},
            "random_start_position": False,
        }
    )
    episodes = np.stack([first, first + EPISODE_ROWS], axis=1)
    simulation = Simulation(*market_and_features(), episodes, settings, STARTS, observe="index")
    simulation.begin()
    seen, positions = simulation.observe(), np.empty((BARS, STARTS))
    for bar in range(BARS):
        simulation.order(act(seen))
        seen = simulation.advance()[2]
        positions[bar] = np.sign(simulation.account.positions["quantity"][:, 0])
    return earned(positions) / best()


def earned(positions: NDArray[np.float64]) -> float:
    """Expected return a bar of positions [BARS, STARTS], costs taken off."""
    x = path(STARTS * EPISODE_ROWS, 1)[EPISODE_ROWS * np.arange(STARTS) + np.arange(BARS)[:, None]]
    changes = abs(np.diff(positions, axis=0, prepend=0.0))
    return float((positions * (RHO - 1) * x - COST * changes).mean())


@cache
def best() -> float:
    """What the best of the threshold rules earns."""
    return max(earned(held_beyond(threshold)) for threshold in np.arange(0, 1.5, 0.05))


def held_beyond(threshold: float) -> NDArray[np.float64]:
    """Positions [BARS, STARTS] of the rule that flips beyond so many deviations."""
    x = path(STARTS * EPISODE_ROWS, 1)[EPISODE_ROWS * np.arange(STARTS) + np.arange(BARS)[:, None]]
    positions, held = np.empty(x.shape), np.zeros(STARTS)
    for bar in range(BARS):
        beyond = abs(x[bar]) > threshold * DEVIATION
        positions[bar] = held = np.where(beyond, -np.sign(x[bar]), held)
    return positions
