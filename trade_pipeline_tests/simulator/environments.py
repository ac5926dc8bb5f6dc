"""Small environments of both kinds for the tests of the simulator's faces."""

from typing import Any, NamedTuple

import numpy as np

from trade_pipeline.settings.environment import (
    BracketActions,
    CostSettings,
    EnvironmentSettings,
    WeightActions,
)
from trade_pipeline.simulator.env import PortfolioEnv, SimulatedEnv, TradingEnv
from trade_pipeline.simulator.kernel import Account, FloatArray, IntArray, Market
from trade_pipeline.simulator.simulation import Simulation
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline_tests.simulator.markets import random_market

ROWS = 400
SEGMENTS = np.array([[0, 150], [160, 400]])
HOUR_MS = 3_600_000
BRACKETS = BracketActions(kind="brackets", sizes=(0.5, 1.0), stops=(None, 0.01), takes=(None, 0.02))
WEIGHTS = WeightActions(kind="weights", short=True)
KINDS = {1: BRACKETS, 2: WEIGHTS, 3: WEIGHTS}
HOLD = {"direction": 0, "size": 0, "stop_loss": 0, "take_profit": 0}
LONG = {"direction": 2, "size": 1, "stop_loss": 0, "take_profit": 0}


def holding(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """A reward term of one's own; finite at ruin."""
    return -(account.quantity != 0).any(axis=1).astype(float) - 1e-7 * equity_before


def nothing(
    account: Account, equity_before: FloatArray, market: Market, row: IntArray
) -> FloatArray:
    """A reward term that is always 0."""
    return np.zeros(len(row))


def custom(name: str, weight: float = 0.01) -> dict[str, Any]:
    return {"term": "custom", "function": f"{__name__}:{name}", "weight": weight}


BUILT_IN = (
    {"term": "log_return"},
    {"term": "cost", "weight": 0.5},
    {"term": "drawdown", "weight": 0.1},
    {"term": "exposure", "weight": 0.1},
    {"term": "turnover", "weight": 0.01},
    {"term": "inventory", "weight": 0.1},
    {"term": "turbulence_gate", "weight": 0.1, "quantile": 0.8},
    {"term": "differential_sharpe", "weight": 0.01},
)
EVERYTHING: dict[str, Any] = {
    "costs": {
        "fee": {
            "kind": "maker_taker",
            "tiers": [
                {"volume": 0, "maker_bps": 4, "taker_bps": 10},
                {"volume": 2e5, "maker_bps": 2, "taker_bps": 6},
                {"volume": 1e6, "maker_bps": 0, "taker_bps": 3},
            ],
        },
        "slippage": {"kind": "impact", "bps": 1, "impact_bps": 30},
        "borrow_rate": 0.05,
        "interest_rate": 0.06,
        "cash_rate": 0.02,
        "funding_rate": 0.0002,
        "lot_size": 0.01,
        "tick_size": 0.01,
        "min_notional": 100,
        "participation": 0.8,
    },
    "max_leverage": 1.5,
    "max_turnover": 0.9,
    "no_trade_band": 0.02,
    "randomisation": {"fee": (0.5, 2), "slippage": (0.5, 2), "price": (0.25, 4)},
    "reward": BUILT_IN,
}


def environment_settings(instruments: int = 1, **changes: Any) -> EnvironmentSettings:
    content: dict[str, Any] = {
        "window": 8,
        "episode_bars": 30,
        "costs": CostSettings(borrow_rate=0.05, interest_rate=0.05),
        "actions": KINDS[instruments],
        "reward": ({"term": "log_return"}, {"term": "turnover", "weight": 0.01}),
        **changes,
    }
    return EnvironmentSettings.model_validate(content)


def features(instruments: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 2 * instruments)).astype(np.float32)


def hourly_market(instruments: int) -> Market:
    """Some weeks of hours, so that days, fundings and fee tiers change; funding of its own."""
    minutes = random_market(ROWS, instruments, 1)
    funding = np.random.default_rng(5).normal(0, 1e-4, (ROWS, instruments))
    ts = minutes.ts * 60
    return market_of(minutes, ts=ts, close_ts=ts + HOUR_MS, funding=funding)


def market_of(market: Market, rows: slice = slice(None), **arrays: Any) -> Market:
    """Some rows of a market, with other arrays."""
    names = ("ts", "close_ts", "open", "high", "low", "close", "volume", "traded", "funding")
    return Market(**{**{name: getattr(market, name)[rows] for name in names}, **arrays})


def simulation(
    settings: EnvironmentSettings, environments: int, seed: Any, instruments: int, **others: Any
) -> Simulation:
    return Simulation(
        hourly_market(instruments),
        features(instruments),
        SEGMENTS,
        settings,
        environments,
        seed,
        **others,
    )


def scalar_env(
    settings: EnvironmentSettings, seed: int = 0, instruments: int = 1, **others: Any
) -> SimulatedEnv:
    kind = TradingEnv if instruments == 1 else PortfolioEnv
    return kind(
        hourly_market(instruments), features(instruments), SEGMENTS, settings, seed, **others
    )


def vec_env(
    settings: EnvironmentSettings,
    environments: int = 4,
    seed: Any = 0,
    instruments: int = 1,
    **others: Any,
) -> TradingVecEnv:
    return TradingVecEnv(
        hourly_market(instruments),
        features(instruments),
        SEGMENTS,
        settings,
        environments,
        seed,
        **others,
    )


def action_of(env: SimulatedEnv, flat: np.ndarray) -> Any:
    """The scalar environment's form of one row of actions."""
    return env.mapping.to_dict(flat) if isinstance(env, TradingEnv) else flat


class Moment(NamedTuple):
    """What one environment showed in one step, bit for bit."""

    row: int
    equity: bytes
    reward: bytes
    done: bool
    seen: bytes
    next_seen: bytes
    fills: str


def course_of_env(env: SimulatedEnv, actions: np.ndarray) -> list[Moment]:
    """A scalar environment's steps; a new episode is drawn when one has ended."""
    env.reset()
    course = []
    for action in actions:
        seen, reward, terminated, truncated, info = env.step(action_of(env, action))
        done = terminated or truncated
        after = env.reset()[0] if done else seen
        course.append(
            Moment(
                row=info["row"],
                equity=np.float64(info["equity"]).tobytes(),
                reward=np.float64(reward).tobytes(),
                done=done,
                seen=bits(seen),
                next_seen=bits(after),
                fills=repr(info["fills"]),
            )
        )
    return course


def courses_of(run: Simulation, actions: np.ndarray) -> list[list[Moment]]:
    """The same of every account of a simulation whose episodes have begun."""
    courses: list[list[Moment]] = [[] for _ in range(run.environments)]
    for chosen in actions:
        run.mapping.to_orders(chosen, run.orders)
        before = run.row.copy()
        rewards, dones, seen = run.advance()
        for e, course in enumerate(courses):
            now = {name: values[e] for name, values in seen.items()}
            ended = run.ended(e)[1] if dones[e] else now
            # The account has already begun anew; its last equity is in the final observation
            equity = np.float64(run.account.equity[e]).tobytes() if not dones[e] else b""
            course.append(
                Moment(
                    row=int(before[e]) + 1,
                    equity=equity,
                    reward=np.float64(rewards[e]).tobytes(),
                    done=bool(dones[e]),
                    seen=bits(ended),
                    next_seen=bits(now),
                    fills=repr(run.fills.of(e)),
                )
            )
    return courses


def without_last_equities(course: list[Moment]) -> list[Moment]:
    """As `courses_of` can tell it."""
    return [moment._replace(equity=b"") if moment.done else moment for moment in course]


def bits(observation: dict[str, Any]) -> bytes:
    return b"".join(np.asarray(observation[name]).tobytes() for name in sorted(observation))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bits(one) == bits(other)


def state_bits(run: Simulation) -> bytes:
    """All that the past of a simulation has left, its random streams included."""
    account = run.account
    arrays = (
        account.balances,
        account.positions,
        account.daily_volume,
        run.row,
        run.episodes,
        run.fills.count,
        run.fills.records,
        run._memories,
        run._random,
        run._ended_account,
    )
    return b"".join(bits_of(array) for array in arrays)


def account_bits(account: Account) -> bytes:
    """All that an account is."""
    return b"".join(
        bits_of(array) for array in (account.balances, account.positions, account.daily_volume)
    )


def bits_of(array: np.ndarray) -> bytes:
    """The values' bytes; those between the fields of a record mean nothing."""
    if array.dtype.names is None:
        return array.tobytes()
    return b"".join(array[name].tobytes() for name in array.dtype.names)


def actions_for(run: Any, steps: int, environments: int, seed: int = 0) -> np.ndarray:
    """Random actions [steps, E, ...] of anything with a mapping."""
    rng = np.random.default_rng(seed)
    return np.stack([run.mapping.sample(rng, environments) for _ in range(steps)])
