"""Steps per second of one peer's environment; runs in the peers' own virtual environment.

`env_speed.py` calls `python run_peer.py PEER prices.npz ENVIRONMENTS WINDOW speed` and reads the
JSON object on the last line; with `memory` for `speed` it tells bytes of resident memory. Every
choice here favours the peer: the cheapest settings that still pay a fee, the fewest columns, and of
several ways to step it the fastest. Nothing of ours is imported.
"""

import gc
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ACTIONS = 499  # different ones, used in turn; a prime, so that no other cycle locks to it
EPISODE_BARS = 1440
FEE = 0.0005
STOPS, TAKES = [-0.005, -0.01], [0.01, 0.02]
REPEATS, REPEAT_S, WARM_UP_S = 5, 1.0, 1.0

Prices = dict[str, np.ndarray]
Run = Callable[[float], tuple[int, float]]  # for so many seconds: steps taken, seconds they took


class Way(NamedTuple):
    """One way to use a peer, and what to say about it."""

    run: Run
    note: str


def stepping(step: Callable[[Any], object], actions: list[Any], environments: int = 1) -> Run:
    """Call `step` with one action after another, and look at the clock now and then."""
    following: Iterator[Any] = cycle(actions)

    def run(seconds: float) -> tuple[int, float]:
        calls, batch = 0, 1
        started = now = time.perf_counter()
        while now - started < seconds:
            for _ in range(batch):
                step(next(following))
            calls += batch
            now = time.perf_counter()
            # Looking at the clock must cost nothing, and a slow peer must still end in time.
            batch = max(1, min(1000, int(calls / (now - started) * seconds / 20)))
        return calls * environments, now - started

    return run


def best(way: Way) -> float:
    """Most steps per second of several repeats, after a warm-up."""
    way.run(WARM_UP_S)
    rates = []
    for _ in range(REPEATS):
        steps, seconds = way.run(REPEAT_S)
        rates.append(steps / seconds)
    return max(rates)


def gymnasium_way(env: Any, actions: list[Any], note: str) -> Way:
    """One Gymnasium environment, reset where an episode ends."""
    env.reset()
    step, reset = env.step, env.reset

    def one(action: Any) -> None:
        found = step(action)
        if found[2] or found[3]:
            reset()

    return Way(stepping(one, actions), note)


def gym_anytrading(prices: Prices, environments: int, window: int) -> list[Way]:
    """Two actions, short and long; its fee is an absolute spread."""
    import pandas as pd
    from gym_anytrading.envs import ForexEnv

    frame = pd.DataFrame({"Close": prices["close"][:, 0]})
    env = ForexEnv(frame, window_size=window, frame_bound=(window, len(frame)))
    env.trade_fee = FEE * float(prices["close"][0, 0])
    actions = np.random.default_rng(1).integers(0, 2, ACTIONS).tolist()
    return [gymnasium_way(env, actions, "ForexEnv: short or long; no stops, sizes or slippage")]


def gym_trading_env(prices: Prices, environments: int, window: int) -> list[Way]:
    """Target positions with a fee."""
    import pandas as pd
    from gym_trading_env.environments import TradingEnv

    columns = {f"feature_{k}": values for k, values in enumerate(prices["features"].T[:4])}
    index = pd.to_datetime(prices["ts"], unit="ms")
    frame = pd.DataFrame({"close": prices["close"][:, 0], **columns}, index=index)
    positions = [0, 1]  # its default, and the faster for fewer trades
    env = TradingEnv(
        frame,
        positions=positions,
        windows=window if window > 1 else None,
        trading_fees=FEE,
        verbose=0,
    )
    actions = np.random.default_rng(1).integers(0, len(positions), ACTIONS).tolist()
    return [gymnasium_way(env, actions, "TradingEnv: target positions; no stops or slippage")]


def finrl_module(name: str) -> Any:
    """A module of FinRL by its file: `import finrl` itself needs brokers' clients and keys."""
    folder = distribution("finrl").locate_file("finrl/meta/env_stock_trading")
    path = Path(str(folder)) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stock_actions(stocks: int) -> list[Any]:
    """Random trades, float32 [stocks] in [-1, 1]."""
    return list(np.random.default_rng(1).uniform(-1, 1, (ACTIONS, stocks)).astype(np.float32))


def finrl(prices: Prices, environments: int, window: int) -> list[Way]:
    """StockTradingEnv on a table of as many stocks as the prices have, with one indicator."""
    import pandas as pd

    module = finrl_module("env_stocktrading")
    rows, stocks = prices["close"].shape
    frame = pd.DataFrame(
        {
            "date": np.repeat(prices["ts"], stocks),
            # It looks for the distinct names on every step, which is quicker in categories.
            "tic": pd.Categorical(np.tile([f"S{stock:02d}" for stock in range(stocks)], rows)),
            "close": prices["close"].reshape(-1),
            "indicator": np.repeat(prices["features"][:, 0].astype(float), stocks),
        },
        index=np.repeat(np.arange(rows), stocks),
    )
    env = module.StockTradingEnv(
        df=frame,
        stock_dim=stocks,
        hmax=100,
        initial_amount=1_000_000,
        num_stock_shares=[0] * stocks,
        buy_cost_pct=[FEE] * stocks,
        sell_cost_pct=[FEE] * stocks,
        reward_scaling=1e-4,
        state_space=1 + 3 * stocks,
        action_space=stocks,
        tech_indicator_list=["indicator"],
        print_verbosity=1_000_000,
    )
    note = f"StockTradingEnv, stocks: {stocks}, rows: {rows}; no stops or slippage"
    return [gymnasium_way(env, stock_actions(stocks), note)]


def finrl_numpy(prices: Prices, environments: int, window: int) -> list[Way]:
    """The array version of StockTradingEnv, made for ElegantRL and RLlib."""
    module = finrl_module("env_stocktrading_np")
    rows, stocks = prices["close"].shape
    config = {
        "price_array": prices["close"],
        "tech_array": np.repeat(prices["features"][:, :1], stocks, axis=1),
        "turbulence_array": np.zeros(rows),
        "if_train": True,
    }
    env = module.StockTradingEnv(config, buy_cost_pct=FEE, sell_cost_pct=FEE)
    note = f"env_stocktrading_np, stocks: {stocks}, rows: {rows}; no stops or slippage"
    return [gymnasium_way(env, stock_actions(stocks), note)]


def torchtrade_settings(
    prices: Prices, window: int
) -> tuple[Any, Callable[[Any], Any], dict[str, Any]]:
    """The bars, a function that gives them six features, and settings for all its environments."""
    import pandas as pd

    frame = pd.DataFrame({"timestamp": pd.to_datetime(prices["ts"], unit="ms")})
    for name in ("open", "high", "low", "close", "volume"):
        frame[name] = prices[name][:, 0]
    columns = {f"features_{k}": values for k, values in enumerate(prices["features"].T)}

    def with_features(bars: Any) -> Any:
        return bars.reset_index().assign(**columns)

    settings = {
        "time_frames": "1Min",
        "execute_on": "1Min",
        "window_sizes": window,
        "transaction_fee": FEE,
        "max_traj_length": EPISODE_BARS,
        "stoploss_levels": STOPS,
        "takeprofit_levels": TAKES,
        "include_close_action": True,
        "seed": 1,
    }
    return frame, with_features, settings


def torchtrade_env(prices: Prices, environments: int, window: int) -> Any:
    """The stop-loss and take-profit environment of a batch; long only, which is faster."""
    import torch
    from torchtrade.envs.offline import vectorized_sequential_sltp as module

    torch.set_grad_enabled(False)
    frame, with_features, settings = torchtrade_settings(prices, window)
    config = module.VectorizedSequentialTradingEnvSLTPConfig(num_envs=environments, **settings)
    return module.VectorizedSequentialTradingEnvSLTP(frame, config, with_features)


def torchtrade_ways(env: Any, environments: int, window: int) -> list[Way]:
    """Through TorchRL's step with resets, as ours is timed."""
    import torch

    torch.manual_seed(1)
    count = int(env.action_spec.space.n)
    shape = (ACTIONS, environments) if env.batch_size else (ACTIONS,)
    actions = list(torch.randint(0, count, shape))
    state = env.reset()

    def with_resets(action: Any) -> None:
        nonlocal state
        state["action"] = action
        _, state = env.step_and_maybe_reset(state)

    note = f"{type(env).__name__}, N={environments}, window {window}, long only"
    return [
        Way(stepping(with_resets, actions, environments), f"{note}, step_and_maybe_reset"),
    ]


def torchtrade(prices: Prices, environments: int, window: int) -> list[Way]:
    """A batch, with one thread and with two."""
    import torch

    def with_threads(way: Way, threads: int) -> Way:
        def run(seconds: float) -> tuple[int, float]:
            torch.set_num_threads(threads)
            return way.run(seconds)

        return Way(run, f"{way.note}, threads: {threads}")

    ways = torchtrade_ways(torchtrade_env(prices, environments, window), environments, window)
    counts = sorted({1, min(2, os.cpu_count() or 1)})
    return [with_threads(way, threads) for threads in counts for way in ways]


def torchtrade_scalar(prices: Prices, environments: int, window: int) -> list[Way]:
    """The stop-loss and take-profit environment of one account; long only."""
    import torch
    from torchtrade.envs.offline import sequential_sltp as module

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    frame, with_features, settings = torchtrade_settings(prices, window)
    config = module.SequentialTradingEnvSLTPConfig(**settings)
    env = module.SequentialTradingEnvSLTP(frame, config, with_features)
    return torchtrade_ways(env, 1, window)


PEERS: dict[str, tuple[str, Callable[[Prices, int, int], list[Way]]]] = {
    "gym-anytrading": ("gym-anytrading", gym_anytrading),
    "gym-trading-env": ("gym-trading-env", gym_trading_env),
    "FinRL": ("finrl", finrl),
    "FinRL numpy": ("finrl", finrl_numpy),
    "torchtrade": ("torchtrade", torchtrade),
    "torchtrade scalar": ("torchtrade", torchtrade_scalar),
}


def resident_bytes() -> int:
    """Memory that this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_speed(ways: list[Way]) -> tuple[float, str]:
    """Steps per second of the fastest way, and its note."""
    rates = [(best(way), way.note) for way in ways]
    for rate, note in rates:
        print(f"{rate:.0f} steps/s: {note}", file=sys.stderr)
    return max(rates)


def measure_memory(prices: Prices, environments: int, window: int) -> tuple[float, str]:
    """Bytes that so many TorchTrade environments add, their last observation held."""
    # What the first use loads and compiles is not theirs.
    torchtrade_ways(torchtrade_env(prices, 8, window), 8, window)[0].run(0.1)
    before = resident_bytes()
    env = torchtrade_env(prices, environments, window)
    state = env.reset()
    for _ in range(3):
        state["action"] = env.action_spec.rand()
        _, state = env.step_and_maybe_reset(state)
    return resident_bytes() - before, f"{type(env).__name__}, window {window}"


def main(peer: str, path: str, environments: str, window: str, what: str) -> None:
    """Measure one peer and print what was found."""
    package, ways_of = PEERS[peer]
    with np.load(path) as file:
        prices = {name: file[name] for name in file.files}
    if what == "memory":
        value, note = measure_memory(prices, int(environments), int(window))
    else:
        value, note = measure_speed(ways_of(prices, int(environments), int(window)))
    versions = {package: distribution(package).version}
    print(json.dumps({"value": value, "note": note, "versions": versions}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
