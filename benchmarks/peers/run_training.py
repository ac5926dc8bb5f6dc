"""How fast Stable-Baselines3's PPO learns on one peer; runs in the peers' own environments.

`training.py` calls `python -m peers.run_training PEER frames prices.npz ENVIRONMENTS` for frames a
second, or with `target market.npz` for the seconds to 90 % of the best rule (`target-tuned` with
the hyperparameters that are best for us), and reads the JSON object on the last line. Every choice
here favours the peer: its cheapest settings that still pay a fee, rewards and observations scaled
as ours are, rollouts as short as ours, for frames one trunk for policy and value and the better of
one and two threads. Nothing of ours is imported but the market that all are judged on.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from peers import mean_reverting as market
from peers.run_peer import finrl_module
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

FEE = 0.0005
WINDOW, ROLLOUT, BATCH, EPOCHS = 64, 2048, 512, 4
FEW_ROWS = 2_500
REPEATS, REPEAT_S = 3, 5.0
SEEDS = range(5)
MOST_FRAMES = 600_000
REWARD_SCALE = 100.0
MINUTE_MS = 60_000

Make = Callable[[int], gymnasium.Env]  # environment of that number


class Target(NamedTuple):
    """How a peer learns the mean-reverting market.

    Attributes:
        make: environments on parts [n, rows] of the path.
        observe: what a policy sees of x in deviations and of what is held, both [S].
        positions: that its actions stand for.
        note: what is not as with ours.
    """

    make: Callable[[NDArray[np.float64]], Make]
    observe: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float32]]
    positions: tuple[float, ...]
    note: str


class Peer(NamedTuple):
    """One peer's package, and how its environments are made from prices.

    Attributes:
        frames: environments on given prices, with a window of features.
        note: what is not as with ours.
        target: how it learns the mean-reverting market, if it does.
    """

    package: str
    frames: Callable[[dict[str, NDArray[Any]]], Make]
    note: str
    target: Target | None = None


def anytrading_frames(prices: dict[str, NDArray[Any]]) -> Make:
    """ForexEnv with a window of six features."""
    import pandas as pd
    from gym_anytrading.envs import ForexEnv

    class Features(ForexEnv):
        def _process_data(self) -> tuple[NDArray[Any], NDArray[Any]]:
            closes = self.df["Close"].to_numpy().astype(np.float32)
            return closes, prices["features"]

    frame = pd.DataFrame({"Close": prices["close"][:, 0]})

    def make(number: int) -> gymnasium.Env:
        env = Features(frame, window_size=WINDOW, frame_bound=(WINDOW, len(frame)))
        env.trade_fee = FEE * float(prices["close"][0, 0])
        return env

    return make


def anytrading_target(paths: NDArray[np.float64]) -> Make:
    """TradingEnv with x and the position for features, and rewards that know the fee."""
    import pandas as pd
    from gym_anytrading.envs import ForexEnv

    class Market(ForexEnv):
        """Customised as its readme says. Its own reward knows no costs, so would never get far."""

        def _process_data(self) -> tuple[NDArray[Any], NDArray[Any]]:
            x = self.df["x"].to_numpy()
            self._x = x.tolist()
            return self.df["Close"].to_numpy(), (x / market.DEVIATION).astype(np.float32)[:, None]

        def _get_observation(self) -> NDArray[np.float32]:
            x = self.signal_features[self._current_tick, 0]
            return np.array([x, 2.0 * self._position.value - 1.0], np.float32)

        def _calculate_reward(self, action: int) -> float:
            side, held = 2.0 * action - 1.0, 2.0 * self._position.value - 1.0
            gained = side * (self._x[self._current_tick] - self._x[self._current_tick - 1])
            return REWARD_SCALE * (gained - market.COST * abs(side - held))

    def make(number: int) -> gymnasium.Env:
        x = paths[number]
        frame = pd.DataFrame({"Close": 100 * np.exp(x), "x": x})
        env = Market(frame, window_size=1, frame_bound=(1, len(frame)))
        env.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        return env

    return make


def anytrading_observe(x: NDArray[np.float64], held: NDArray[np.float64]) -> NDArray[np.float32]:
    """It begins short and knows no flat position."""
    return np.stack([x, np.where(held == 0, -1.0, held)], axis=1).astype(np.float32)


def trading_env_frames(prices: dict[str, NDArray[Any]]) -> Make:
    """TradingEnv with four features and its two of the position."""
    columns = {f"feature_{k}": values for k, values in enumerate(prices["features"].T[:4])}
    frame = _frame(prices["ts"], prices["close"][:, 0], columns)
    return _trading_env(frame, positions=[0, 1], trading_fees=FEE, windows=WINDOW)


def trading_env_target(paths: NDArray[np.float64]) -> Make:
    """TradingEnv with x for a feature, 1440-bar episodes at random starts."""

    def reward(history: Any) -> float:
        before, after = history["portfolio_valuation", -2], history["portfolio_valuation", -1]
        return REWARD_SCALE * float(np.log(after / before))

    ts = MINUTE_MS * np.arange(paths.shape[1])

    def make(number: int) -> gymnasium.Env:
        x = paths[number]
        frame = _frame(ts, 100 * np.exp(x), {"feature_x": x / market.DEVIATION})
        return _trading_env(
            frame,
            positions=[-1, 0, 1],
            trading_fees=market.COST,
            max_episode_duration=market.EPISODE_BARS,
            reward_function=reward,
        )(number)

    return make


def trading_env_observe(x: NDArray[np.float64], held: NDArray[np.float64]) -> NDArray[np.float32]:
    """The position taken last, and as it is now: the same but for the drift of prices."""
    return np.stack([x, held, held], axis=1).astype(np.float32)


def finrl_frames(prices: dict[str, NDArray[Any]]) -> Make:
    """The array version of StockTradingEnv, the faster one, on rows few enough to copy."""
    module = finrl_module("env_stocktrading_np")
    closes = prices["close"][:FEW_ROWS]
    config = {
        "price_array": closes,
        "tech_array": np.tile(prices["features"][:FEW_ROWS], closes.shape[1]),
        "turbulence_array": np.zeros(len(closes)),
        "if_train": True,
    }

    def make(number: int) -> gymnasium.Env:
        env: gymnasium.Env = module.StockTradingEnv(config, buy_cost_pct=FEE, sell_cost_pct=FEE)
        return env

    return make


def _frame(ts: NDArray[np.int64], closes: NDArray[Any], columns: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame({"close": closes, **columns}, index=pd.to_datetime(ts, unit="ms"))


def _trading_env(frame: Any, **settings: Any) -> Make:
    from gym_trading_env.environments import TradingEnv

    warnings.resetwarnings()  # it turns every warning into an error, of other packages too
    return lambda number: TradingEnv(frame, verbose=0, **settings)


PEERS = {
    "gym-anytrading": Peer(
        "gym-anytrading",
        anytrading_frames,
        "ForexEnv: short or long; no stops, sizes or slippage",
        Target(
            anytrading_target,
            anytrading_observe,
            (-1.0, 1.0),
            "ForexEnv: short or long, sees x and the position, log-return reward x 100 with costs "
            "in place of its own that knows none, one endless episode an environment",
        ),
    ),
    "gym-trading-env": Peer(
        "gym-trading-env",
        trading_env_frames,
        "TradingEnv: target positions; no stops or slippage",
        Target(
            trading_env_target,
            trading_env_observe,
            (-1.0, 0.0, 1.0),
            "TradingEnv: target positions -1, 0, 1, sees x and the position, its log-return "
            "reward x 100",
        ),
    ),
    "FinRL": Peer(
        "finrl",
        finrl_frames,
        "env_stocktrading_np: sees the last bar; no stops or slippage",
    ),
}


class SharedTrunk(BaseFeaturesExtractor):
    """The window, flattened, through two layers of 64; policy and value learn from the result."""

    def __init__(self, observation_space: gymnasium.spaces.Box) -> None:
        super().__init__(observation_space, 64)
        inputs = int(np.prod(observation_space.shape))
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(observations)
        return found


# What learns fastest in our environments, as SB3 calls it, with rollouts of 512 frames.
TUNED_ROLLOUT = 512
TUNED = {
    "batch_size": 128,
    "n_epochs": EPOCHS,
    "learning_rate": 3e-3,
    "gae_lambda": 0.9,
    "ent_coef": 0.01,
    "policy_kwargs": {"features_extractor_class": SharedTrunk, "net_arch": []},
}


def frames(peer: Peer, path: str, environments: int) -> dict[str, Any]:
    """Frames a second of whole trainings: steps, rollouts and updates."""
    with np.load(path) as file:
        prices = {name: file[name] for name in file.files}
    make = peer.frames(prices)
    found = []
    for threads in sorted({1, min(2, len(os.sched_getaffinity(0)))}):
        torch.set_num_threads(threads)
        model = PPO(
            "MlpPolicy",
            DummyVecEnv([lambda number=number: make(number) for number in range(environments)]),
            n_steps=ROLLOUT // environments,
            batch_size=BATCH,
            n_epochs=EPOCHS,
            learning_rate=1e-3,
            policy_kwargs={"features_extractor_class": SharedTrunk, "net_arch": []},
            device="cpu",
            seed=0,
        )
        model.learn(ROLLOUT)
        rates = [learned_for(model, REPEAT_S) for _ in range(REPEATS)]
        found.append((max(rates), f"{peer.note}; E={environments}, threads: {threads}"))
        print(found[-1], file=sys.stderr)
    value, note = max(found)
    return {"value": value, "note": note}


def learned_for(model: PPO, seconds: float) -> float:
    """Frames a second of learning for about so long, rollout by rollout."""
    learned, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        model.learn(ROLLOUT, reset_num_timesteps=False)
        learned += ROLLOUT
    return learned / passed


class Looks(BaseCallback):
    """Judges the greedy policy after every update, and ends the training at the target.

    Attributes:
        seconds: of learning until the target was reached, looks not counted; None until then.
        frames: likewise.
        shares: what each look found.
    """

    def __init__(self, judge: Callable[[], float]) -> None:
        super().__init__()
        self._judge = judge
        self._looking = 0.0
        self.seconds: float | None = None
        self.frames = 0
        self.shares: list[float] = []

    def _on_training_start(self) -> None:
        self._started = time.perf_counter()

    def _on_rollout_start(self) -> None:
        now = time.perf_counter()
        self.shares.append(self._judge())
        if self.seconds is None and self.shares[-1] >= market.TARGET:
            self.seconds = now - self._started - self._looking
            self.frames = self.num_timesteps
        self._looking += time.perf_counter() - now

    def _on_step(self) -> bool:
        return self.seconds is None


def seconds_to_target(peer: Peer, path: str, environments: int) -> dict[str, Any]:
    """Median seconds to the target with SB3's defaults, but for the length of rollouts.

    SB3's 2048 steps of each environment would be 16,384 frames an update at 8 environments, and
    three times as many frames to the target.
    """
    return _to_target(peer, path, environments, "SB3's defaults", ROLLOUT, {})


def tuned_seconds_to_target(peer: Peer, path: str, environments: int) -> dict[str, Any]:
    """Median seconds to the target with the hyperparameters that are best for us."""
    return _to_target(peer, path, environments, "settings as ours", TUNED_ROLLOUT, TUNED)


def _to_target(
    peer: Peer,
    path: str,
    environments: int,
    note: str,
    rollout: int,
    settings: dict[str, Any],
) -> dict[str, Any]:
    with np.load(path) as file:
        paths = file["x"].reshape(environments, -1)
    torch.set_num_threads(1)
    assert peer.target, f"{peer.package} does not learn this market"
    settings = {**settings, "n_steps": rollout // environments}
    looks = [target_look(peer.target, paths, seed, settings) for seed in SEEDS]
    told = f"{peer.target.note}; E={environments}, {note}, rollouts of {rollout} frames"
    return median(looks, told)


def target_look(
    target: Target, paths: NDArray[np.float64], seed: int, settings: dict[str, Any]
) -> Looks:
    """One training until the target."""
    np.random.seed(seed)  # gym-trading-env draws its starts there
    make, positions = target.make(paths), np.array(target.positions)
    environments = [lambda number=number: make(number) for number in range(len(paths))]
    model = PPO(
        "MlpPolicy",
        DummyVecEnv(environments),
        seed=seed,
        device="cpu",
        **settings,
    )

    def decide(x: NDArray[np.float64], held: NDArray[np.float64]) -> NDArray[np.float64]:
        seen = target.observe(x / market.DEVIATION, held)
        chosen: NDArray[np.float64] = positions[model.predict(seen, deterministic=True)[0]]
        return chosen

    look = Looks(lambda: market.share_of_best(market.followed(decide)))
    model.learn(MOST_FRAMES, look)
    print(seed, look.seconds, look.frames, np.round(look.shares, 2), file=sys.stderr)
    return look


def median(looks: list[Looks], note: str) -> dict[str, Any]:
    """Of the seconds; trainings that never got there count as the longest."""
    seconds = sorted(np.inf if look.seconds is None else look.seconds for look in looks)
    counts = sorted(look.frames for look in looks if look.seconds is not None)
    middle = seconds[len(seconds) // 2]
    each = ", ".join("never" if one == np.inf else f"{one:.2f}" for one in seconds)
    found = f"{note}; seconds of each seed: {each}; frames: {counts}"
    return {"value": None if middle == np.inf else middle, "note": found}


def main(name: str, what: str, path: str, environments: str) -> None:
    """Measure one peer and print what was found."""
    measure = {
        "frames": frames,
        "target": seconds_to_target,
        "target-tuned": tuned_seconds_to_target,
    }[what]
    peer = PEERS[name]
    found = measure(peer, path, int(environments))
    packages = (peer.package, "stable-baselines3", "torch")
    print(json.dumps({**found, "versions": {package: version(package) for package in packages}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
