"""Training: frames a second of PPO and seconds until it has learned, beside SB3 on other markets.

Prints one JSON object a line, one for each peer; a ratio above 1 means that ours is better. A frame
is one environment's bar; frames a second are those of a whole training (steps, rollouts, updates,
diagnostics), the best of a few, on one and two threads. Peers are Stable-Baselines3's PPO on their
environments, at the best of several numbers of them; they run in virtual environments of their own,
which are made when they are missing. Frames of all are measured in turns, so that a moment in which
the machine is slow decides nothing. Run it with `make bench`, or name cases: `python
benchmarks/training.py "time to target"`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from env_speed import Found, in_own_process, last_line, main, python_of, settings, walk
from numpy.typing import NDArray
from peers import mean_reverting
from peers.mean_reverting import COST, DEVIATION, EPISODE_BARS, EPISODE_ROWS, STARTS

HERE = Path(__file__).parent
ROWS, STOCKS, FEATURES = 100_000, 30, 6
WINDOW, PORTFOLIO_WINDOW = 64, 8
FRAMES, PORTFOLIO_FRAMES, WARM_UP_FRAMES = 400 * 2048, 100 * 2048, 2 * 2048
REPEATS = 3
ROUNDS = 2  # ours and peers in turns
PEER_ENVIRONMENTS = (16, 64, 256)
PEER_TIMEOUT_S = 1800
MINUTE_MS = 60_000
SEEDS = range(5)
PACKAGES = ("torch", "stable-baselines3", "numba")
MOST_FRAMES = 300_000

PPO = {
    "kind": "ppo",
    "environments": 128,
    "rollout_steps": 16,
    "batch_size": 512,
    "epochs": 4,
    "network": {"kind": "mlp", "hidden": [64, 64], "activation": "tanh", "shared": True},
}
TARGET_PPO = {"kind": "ppo", "total_frames": MOST_FRAMES}  # the shipped defaults
TARGET_ENVIRONMENT = {
    "window": 1,
    "episode_bars": EPISODE_BARS,
    # Together the market's cost; a band, so that the drift of a held position is not traded.
    "costs": {
        "fee": {"kind": "flat", "bps": 1e4 * COST - 1},
        "slippage": {"kind": "fixed", "bps": 1},
    },
    "no_trade_band": 0.2,
    "actions": {"kind": "brackets"},
}


class Ours(NamedTuple):
    """Our figure, with how many threads, and what there is to say about it."""

    value: float | None
    threads: int = 1
    note: str = ""


class Case(NamedTuple):
    """How ours is measured, and beside whom, with how many environments, and how many times."""

    ours: Callable[..., Ours]
    arguments: tuple[Any, ...]
    what: str
    peers: tuple[str, ...]
    environments: tuple[int, ...]
    unit: str
    note: str
    rounds: int = 1


def frames(kind: str, instruments: int, window: int, total_frames: int) -> Ours:
    """Frames a second of `training.trainer.train`, from its first frame to the sealed bundle."""
    from trade_pipeline.settings.algorithm import PPOSettings
    from trade_pipeline.settings.experiment import Trial
    from trade_pipeline.storage.location import ArtifactLocation
    from trade_pipeline.training.trainer import train

    data = dataset(instruments, window)
    environment = settings(kind).model_copy(update={"window": window})
    found = []

    def measure(store: Path, threads: int, total: int) -> Ours:
        # One look at a short validation part, after the last frame.
        chosen = {"total_frames": total, "threads": threads, "evaluation": {"looks": 1}}
        trained = train(
            data,
            environment,
            PPOSettings.model_validate({**PPO, **chosen}),
            Trial("base.f0.s0", "base", 0, 0),
            ArtifactLocation(store, f"policy-{len(found)}-{total}"),
            report=lambda progress: None,
            clock=time.perf_counter,
        )
        return Ours(trained.metrics["frames_per_second"], threads)

    with tempfile.TemporaryDirectory() as folder:
        for threads in thread_counts():
            measure(Path(folder), threads, WARM_UP_FRAMES)
            for _ in range(REPEATS):
                found.append(measure(Path(folder), threads, total_frames))
                print(found[-1], file=sys.stderr)
    return max(found)


def thread_counts() -> list[int]:
    """One, and two where the machine has them."""
    return sorted({1, min(2, len(os.sched_getaffinity(0)))})


def dataset(instruments: int, window: int) -> Any:
    """Random walks with features that are noise, as a training takes them."""
    from trade_pipeline.training.dataset import Dataset
    from trade_pipeline.training.splits import Fold

    prices = walk(ROWS, instruments)
    ts, bars = prices["ts"], ("open", "high", "low", "close", "volume")
    rng = np.random.default_rng(2)
    ends = [0, ROWS - 2 * window - 100, ROWS - window - 50, ROWS]
    parts = [np.array([[a, b]]) for a, b in pairwise(ends)]
    return Dataset(
        ts=ts,
        close_ts=ts + MINUTE_MS,
        **{name: prices[name] for name in bars},
        traded=np.ones((ROWS, instruments), np.bool_),
        features=rng.normal(size=(ROWS, instruments, FEATURES)).astype(np.float32),
        segments=np.array([[0, ROWS]]),
        instruments=tuple(f"walk.{number}" for number in range(instruments)),
        feature_names=tuple(f"noise_{number}" for number in range(FEATURES)),
        folds=(Fold(*parts),),
        final=np.empty((0, 2), np.int64),
        lookback=1,
        scaling="standard",
        timeframe="1m",
        bars_per_year=525_960.0,
        days_per_year=365.25,
        input_versions={},
    )


def time_to_target() -> Ours:
    """Median seconds of learning until the greedy policy earns 90 % of the best rule."""
    import torch
    from peers.run_training import Looks, median

    torch.set_num_threads(1)
    x = np.concatenate([training_path(), mean_reverting.held_out()])
    market, features = market_of(x), (x / DEVIATION).astype(np.float32)[:, None]
    looks = []
    for seed in (0, *SEEDS):  # the first one compiles and loads; it does not count
        model = target_model(market, features, seed)
        look = Looks(lambda model=model: judged(model, market, features))
        model.learn(TARGET_PPO["total_frames"], look, log_interval=None)
        print(seed, look.seconds, look.frames, np.round(look.shares, 2), file=sys.stderr)
        looks.append(look)
    found = median(looks[1:], "ours")
    return Ours(found["value"], 1, found["note"])


def training_path() -> NDArray[np.float64]:
    """x of the path that everybody trains on."""
    return mean_reverting.log_prices(mean_reverting.TRAINING_ROWS, seed=0)


def market_of(x: NDArray[np.float64]) -> Any:
    """One-minute bars that open where the last one closed."""
    from trade_pipeline.simulator.market import Market

    close = 100 * np.exp(x)[:, None]
    opened = np.vstack([close[:1], close[:-1]])
    ts = MINUTE_MS * np.arange(len(x))
    return Market(
        ts,
        ts + MINUTE_MS,
        opened,
        np.maximum(opened, close),
        np.minimum(opened, close),
        close,
        np.full_like(close, 1e6),
        np.ones(close.shape, np.bool_),
    )


def target_model(market: Any, features: NDArray[np.float32], seed: int) -> Any:
    """PPO as `training.learning` sets it up, on the training rows."""
    from trade_pipeline.settings.algorithm import PPOSettings
    from trade_pipeline.settings.environment import EnvironmentSettings
    from trade_pipeline.simulator.vec_env import TradingVecEnv
    from trade_pipeline.training.action_spaces import action_specification, outputs_of
    from trade_pipeline.training.networks import network_specification
    from trade_pipeline.training.sb3 import make_model

    algorithm = PPOSettings.model_validate(TARGET_PPO)
    environments = TradingVecEnv(
        market,
        features,
        np.array([[0, mean_reverting.TRAINING_ROWS]]),
        EnvironmentSettings.model_validate(TARGET_ENVIRONMENT),
        algorithm.environments,
        seed,
        reward_scale=algorithm.reward_scale,
        observe="index",
    )
    outputs = outputs_of(action_specification("ppo", environments.mapping))
    network = network_specification(algorithm.network, 1, 1, 1, outputs)
    return make_model(environments, algorithm, network, seed, features)


def judged(model: Any, market: Any, features: NDArray[np.float32]) -> float:
    """Share of what the best rule earns on the held-out episodes, in our simulator."""
    from trade_pipeline.settings.environment import EnvironmentSettings
    from trade_pipeline.simulator.simulation import Simulation

    changes = {
        "episode_bars": EPISODE_BARS + 1,
        "starts": {"kind": "sequential"},
        "random_start_position": False,
    }
    environment = EnvironmentSettings.model_validate({**TARGET_ENVIRONMENT, **changes})
    first = mean_reverting.TRAINING_ROWS + EPISODE_ROWS * np.arange(STARTS)
    episodes = np.stack([first, first + EPISODE_ROWS], axis=1)
    simulation = Simulation(market, features, episodes, environment, STARTS, observe="index")
    simulation.begin()
    seen, positions = simulation.observe(), np.empty((EPISODE_BARS, STARTS))
    for bar in range(EPISODE_BARS):
        assert (simulation.row == first + bar).all()
        simulation.order(model.predict(seen, deterministic=True)[0])
        seen = simulation.advance()[2]
        positions[bar] = np.sign(simulation.account.positions["quantity"][:, 0])
    return mean_reverting.share_of_best(positions)


BESIDE = ("gym-anytrading", "gym-trading-env")
SIZES = "128 environments x 16 steps, batch 512, 4 epochs, shared MLP [64, 64]"
TARGET = (
    "to 90 % of the best rule on the mean-reverting market, median of 5 seeds, looks not counted"
)
CASES = {
    "ppo frames": Case(
        frames,
        ("brackets", 1, WINDOW, FRAMES),
        "frames",
        BESIDE,
        PEER_ENVIRONMENTS,
        "frames/s",
        f"{SIZES}, window {WINDOW} x {FEATURES}; peers: rollouts of as many frames, same network",
        ROUNDS,
    ),
    **{
        f"ppo frames portfolio N={STOCKS}{named}": Case(
            frames,
            ("weights", STOCKS, window, PORTFOLIO_FRAMES),
            "frames",
            ("FinRL",),
            PEER_ENVIRONMENTS,
            "frames/s",
            f"{SIZES}, window {window} x {STOCKS * FEATURES}; the other peers trade one "
            "instrument only",
            ROUNDS,
        )
        # The peer sees one bar whatever ours sees.
        for named, window in (("", PORTFOLIO_WINDOW), (", last bar", 1))
    },
    "time to target": Case(
        time_to_target,
        (),
        "target",
        BESIDE,
        (8,),
        "s",
        f"{TARGET}; peers: SB3's defaults, rollouts of as many frames in all",
    ),
    "time to target, peers tuned": Case(
        time_to_target,
        (),
        "target-tuned",
        BESIDE,
        (16,),
        "s",
        f"{TARGET}; peers: short rollouts, rate, lambda and trunk as our defaults have them",
    ),
}


@cache
def data_file(folder: Path, what: str, instruments: int) -> Path:
    """What peers learn on."""
    path = folder / f"{what}-{instruments}.npz"
    if what.startswith("target"):
        np.savez(path, x=training_path())
    else:
        np.savez(path, **walk(ROWS, instruments))
    return path


def peer_figure(folder: Path, peer: str, what: str, environments: int) -> Found:
    """Measure a peer in its own process."""
    python, reason = python_of("gym-trading-env" if peer == "gym-trading-env" else "env_speed")
    if reason:
        return Found(None, reason)
    data = data_file(folder, what, STOCKS if peer == "FinRL" else 1)
    command = [str(python), "-m", "peers.run_training", peer, what, str(data), str(environments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PEER_TIMEOUT_S, cwd=HERE
        )
    except subprocess.TimeoutExpired:
        return Found(None, f"no figure within {PEER_TIMEOUT_S} s")
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        return Found(None, f"failed: {last_line(done.stderr)}")
    return Found(**json.loads(last_line(done.stdout)))


def measure(name: str, folder: Path) -> None:
    """Run one case and print its lines."""
    case = CASES[name]
    smaller_is_better = case.unit == "s"
    own: list[Ours] = []
    figures: dict[str, list[Found]] = {peer: [] for peer in case.peers}
    for _ in range(case.rounds):
        own.append(in_own_process(case.ours, *case.arguments))
        for peer, of_peer in figures.items():
            of_peer += [peer_figure(folder, peer, case.what, count) for count in case.environments]

    def best(several: list[Any]) -> Any:
        known = [one for one in several if one.value is not None]
        choose = min if smaller_is_better else max
        return choose(known, key=lambda one: one.value, default=several[0])

    def ratio(peer_value: float | None) -> float | None:
        if ours.value is None or peer_value is None:
            return None
        better, worse = (peer_value, ours.value) if smaller_is_better else (ours.value, peer_value)
        return round(better / worse, 2)

    ours, peers = best(own), {peer: best(of_peer) for peer, of_peer in figures.items()}
    ratios = {peer: ratio(found.value) for peer, found in peers.items()}
    hardest = min((peer for peer in ratios if ratios[peer]), key=ratios.get, default=None)
    for peer, found in peers.items():
        line = {
            "benchmark": "training",
            "case": name,
            "value": None if ours.value is None else round(ours.value, 3),
            "unit": case.unit,
            "peer": peer,
            "peer_value": None if found.value is None else round(found.value, 3),
            "ratio": ratios[peer],
            "best_peer": hardest,
            "ratio_to_best_peer": ratios.get(hardest),
            "threads": ours.threads,
            "versions": {package: version(package) for package in PACKAGES}
            | (found.versions or {}),
            "note": "; ".join(filter(None, (case.note, ours.note, found.note))),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:], CASES, measure)
