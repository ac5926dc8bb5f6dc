"""The simulator: steps per second of its environments, beside other trading environments.

Prints one JSON object a line, one for each peer that does something like the case; a ratio above 1
means that ours is better. A step is one environment's bar, with observation, reward, info and the
resets of ended episodes; actions are random and made before the clock runs. Ours pays fees and
slippage and has sizes, stops and takes to choose from; what a peer lacks is in `note`. Peers run
in virtual environments of their own, which are made when they are missing. Run it with `make
bench`, or name cases: `python benchmarks/env_speed.py "vector index E=1024"`.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers.run_peer import (
    ACTIONS,
    EPISODE_BARS,
    Prices,
    Way,
    best,
    gymnasium_way,
    resident_bytes,
    stepping,
)

START_MS = 1_577_836_800_000  # 2020-01-01
MINUTE_MS = 60_000
ROWS, MANY_ROWS, FEW_ROWS = 100_000, 5_000_000, 2_500
STOCKS = 30
FEATURES, WINDOW = 6, 64
THREADS = min(2, os.cpu_count() or 1)
FEW, MANY = 1024, 65_536  # environments between which memory is measured
PEERS = Path(__file__).parent / "peers"
PEER_TIMEOUT_S = 900


class Found(NamedTuple):
    """A figure, or None and in `note` why there is none."""

    value: float | None
    note: str = ""
    versions: dict[str, str] | None = None


class Ours(NamedTuple):
    """Our figure, and with how many threads."""

    value: float
    threads: int = 1


class Peer(NamedTuple):
    """What to run beside a case; names as in `peers/run_peer.py`."""

    name: str
    environments: int = 1
    window: int = 1
    prices: str = "one"
    what: str = "speed"


class Case(NamedTuple):
    """How ours is measured, and beside whom."""

    ours: Callable[..., Ours]
    arguments: tuple[Any, ...]
    peers: tuple[Peer, ...]
    unit: str = "steps/s"
    note: str = ""


def walk(rows: int, instruments: int, seed: int = 0) -> Prices:
    """One-minute bars without a gap, a seeded random walk, with features that are noise."""
    rng = np.random.default_rng(seed)
    shape = (rows, instruments)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 5e-4, shape), axis=0))
    opened = np.vstack([np.full((1, instruments), 100.0), close[:-1]])
    spread = rng.exponential(2e-4, (2, *shape))
    return {
        "ts": START_MS + MINUTE_MS * np.arange(rows),
        "open": opened,
        "high": np.maximum(opened, close) * (1 + spread[0]),
        "low": np.minimum(opened, close) / (1 + spread[1]),
        "close": close,
        "volume": rng.exponential(1e4, shape),
        "features": rng.normal(size=(rows, FEATURES)).astype(np.float32),
    }


@cache
def prices_file(folder: Path, name: str) -> Path:
    """The series that everybody runs on; `short` ones are its first rows."""
    rows = FEW_ROWS if name.endswith("short") else ROWS
    prices = walk(ROWS, STOCKS if name.startswith("thirty") else 1)
    path = folder / f"{name}.npz"
    np.savez(path, **{key: values[:rows] for key, values in prices.items()})
    return path


def settings(kind: str) -> Any:
    """What one account may do and pays."""
    from trade_pipeline.settings.environment import EnvironmentSettings

    brackets = {
        "kind": "brackets",
        "sizes": [0.5, 1.0],
        "stops": [None, 0.005, 0.01],
        "takes": [None, 0.01, 0.02],
    }
    return EnvironmentSettings.model_validate(
        {
            "window": WINDOW,
            "episode_bars": EPISODE_BARS,
            "actions": brackets if kind == "brackets" else {"kind": "weights"},
            "costs": {
                "fee": {"kind": "flat", "bps": 5},
                "slippage": {"kind": "fixed", "bps": 2},
            },
        }
    )


def parts(prices: Prices, kind: str) -> tuple[Any, Any, Any, Any]:
    """Market, features, segments and settings, as the environments take them."""
    from trade_pipeline.simulator.kernel import Market

    bars = [prices[name] for name in ("open", "high", "low", "close", "volume")]
    rows, instruments = bars[0].shape
    market = Market(prices["ts"], prices["ts"] + MINUTE_MS, *bars, np.ones_like(bars[0], np.bool_))
    features = np.tile(prices["features"], instruments)
    return market, features, np.array([[0, rows]]), settings(kind)


def random_actions(env: Any) -> list[Any]:
    """Different ones for each step, so that nothing is learnt by heart."""
    rng = np.random.default_rng(1)
    space, environments = env.action_space, env.num_envs
    if hasattr(space, "nvec"):
        return list(rng.integers(0, space.nvec, (ACTIONS, environments, len(space.nvec))))
    # Weights that sum to about 1: sometimes the leverage cap cuts them.
    highest = 2 / space.shape[0]
    shape = (ACTIONS, environments, space.shape[0])
    return list(rng.uniform(0, highest, shape).astype(np.float32))


def vector_env(prices: Prices, kind: str, environments: int, observe: str, threads: int) -> Any:
    """Ours, begun."""
    from trade_pipeline.simulator.vec_env import TradingVecEnv

    given = parts(prices, kind)
    env = TradingVecEnv(*given, environments, 1, observe=observe, threads=threads)
    env.reset()
    return env


def check_it_works(env: Any, actions: list[Any]) -> None:
    """Episodes end and orders fill, or the figure would mean nothing."""
    ended = filled = 0
    for step in range(1 + 2 * EPISODE_BARS // env.num_envs):
        dones = env.step(actions[step % len(actions)])[2]
        ended += int(dones.sum())
        filled += sum(len(env.fills.of(e)) for e in range(min(8, env.num_envs)))
    assert ended and filled, f"{ended} episodes ended, {filled} orders filled"


def fastest(prices: Prices, kind: str, environments: int, observe: str, wrap: Any = None) -> Ours:
    """Through Stable-Baselines3's `step`, with one thread and with more, as peers are measured."""
    figures = []
    for threads in sorted({1, THREADS}):
        env = vector_env(prices, kind, environments, observe, threads)
        actions = random_actions(env)
        check_it_works(env, actions)
        if wrap:
            env = wrap(env)
            env.reset()
        figures.append(Ours(best(Way(stepping(env.step, actions, environments), "")), threads))
    return max(figures)


def vector(path: Path, kind: str, environments: int, observe: str) -> Ours:
    """The vector environment."""
    return fastest(load(path), kind, environments, observe)


def monitored(path: Path, environments: int) -> Ours:
    """The same inside VecMonitor, which adds up rewards and reads the infos of ended episodes."""
    from stable_baselines3.common.vec_env import VecMonitor

    return fastest(load(path), "brackets", environments, "index", VecMonitor)


def many_rows(path: Path, rows: int) -> Ours:
    """The vector environment on a series of that length."""
    return fastest(walk(rows, 1), "brackets", FEW, "index")


def scalar(path: Path) -> Ours:
    """The Gymnasium environment, with its Dict actions."""
    from trade_pipeline.simulator.env import TradingEnv

    env = TradingEnv(*parts(load(path), "brackets"), seed=1)
    env.action_space.seed(1)
    actions = [env.action_space.sample() for _ in range(ACTIONS)]
    return Ours(best(gymnasium_way(env, actions, "")))


def memory(path: Path, observe: str, environments: int) -> Ours:
    """Bytes that so many environments add, their last observation held."""
    prices = load(path)
    # What the first use loads and compiles is not theirs.
    warm = vector_env(prices, "brackets", 8, observe, THREADS)
    warm.step(random_actions(warm)[0])
    before = resident_bytes()
    env = vector_env(prices, "brackets", environments, observe, THREADS)
    action = np.random.default_rng(1).integers(0, env.action_space.nvec, (environments, 4))
    for _ in range(3):
        seen = env.step(action)
    del action
    held = resident_bytes() - before
    assert len(seen[1]) == environments
    return Ours(held, THREADS)


def load(path: Path) -> Prices:
    """The series as arrays."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


ALONE = "no batch: one environment in one process"


def beside(environments: int, window: int) -> tuple[Peer, ...]:
    """Peers of the vector cases; the last two have no batch."""
    return (
        Peer("torchtrade", environments, window),
        Peer("gym-anytrading", window=window),
        Peer("gym-trading-env", window=window),
    )


def finrl(prices: str) -> tuple[Peer, ...]:
    """FinRL's table environment slows down with the length of its data, so on a short one too."""
    return (
        Peer("FinRL", prices=prices),
        Peer("FinRL", prices=f"{prices} short"),
        Peer("FinRL numpy", prices=prices),
    )


CASES: dict[str, Case] = {
    "scalar": Case(
        scalar,
        (),
        (*beside(1, 1)[1:], Peer("torchtrade scalar"), *finrl("one")),
        note=f"ours observes {WINDOW} x {FEATURES}, peers the last bar",
    ),
    **{
        f"vector {observe} E={environments}": Case(
            vector,
            ("brackets", environments, observe),
            beside(environments, WINDOW if observe == "window" else 1),
        )
        for observe in ("index", "window")
        for environments in (1, 16, 1024)
    },
    f"portfolio index N={STOCKS}": Case(
        vector, ("weights", 256, "index"), finrl("thirty"), note="E=256"
    ),
    "vector index E=1024 with VecMonitor": Case(
        monitored, (1024,), beside(1024, 1), note="no peer is monitored"
    ),
    "length of the data": Case(many_rows, (MANY_ROWS,), (), note=f"index, E={FEW}"),
    **{
        f"memory {observe}": Case(
            memory,
            (observe,),
            (Peer("torchtrade", window=WINDOW if observe == "window" else 1, what="memory"),),
            unit="bytes/environment",
            note=f"growth of resident memory from E={FEW} to {MANY}, observation held",
        )
        for observe in ("window", "index")
    },
}


@cache
def python_of(requirements: str) -> tuple[Path, str]:
    """The interpreter with the peers of a requirements file, and why it cannot be used, if so."""
    file, place = PEERS / f"{requirements}.txt", PEERS / ".venv" / requirements
    python, mark = place / "bin" / "python", place / "installed.txt"
    wanted = file.read_text()
    if mark.exists() and mark.read_text() == wanted:
        return python, ""
    print(f"installing {file} into {place}", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # torch first: asked for through another package, pip may take a build of several gigabytes.
    torch = [line for line in wanted.splitlines() if line.startswith("torch==")]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        *([*pip, line] for line in torch),
        [*pip, "--requirement", str(file)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return python, f"not installed: {last_line(done.stderr)}"
    mark.write_text(wanted)
    return python, ""


def last_line(text: str) -> str:
    """What a program that failed said at last."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


@cache
def peer_figure(folder: Path, peer: Peer) -> Found:
    """Measure a peer in its own process."""
    requirements = "gym-trading-env" if peer.name == "gym-trading-env" else "env_speed"
    python, reason = python_of(requirements)
    if reason:
        return Found(None, reason)
    command = [str(python), "-I", str(PEERS / "run_peer.py"), peer.name]
    command += [str(prices_file(folder, peer.prices)), str(peer.environments), str(peer.window)]
    try:
        done = subprocess.run(
            [*command, peer.what],
            capture_output=True,
            text=True,
            check=False,
            timeout=PEER_TIMEOUT_S,
            cwd=folder,
        )
    except subprocess.TimeoutExpired:
        return Found(None, f"no figure within {PEER_TIMEOUT_S} s")
    if done.returncode:
        return Found(None, f"failed: {last_line(done.stderr)}")
    return Found(**json.loads(last_line(done.stdout)))


def peer_memory(folder: Path, peer: Peer) -> Found:
    """Bytes that one more environment of a peer takes."""
    few, many = (
        peer_figure(folder, peer._replace(environments=environments))
        for environments in (FEW, MANY)
    )
    if few.value is None or many.value is None:
        return few if few.value is None else many
    return many._replace(value=(many.value - few.value) / (MANY - FEW))


def in_own_process(function: Callable[..., Ours], *arguments: Any) -> Ours:
    """Call it in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def measure_ours(case: Case, folder: Path) -> Ours:
    """Our figure."""
    path = prices_file(folder, "thirty" if "weights" in case.arguments else "one")
    if case.ours is not memory:
        return in_own_process(case.ours, path, *case.arguments)
    few, many = (in_own_process(memory, path, *case.arguments, count) for count in (FEW, MANY))
    return many._replace(value=(many.value - few.value) / (MANY - FEW))


def measure_peers(case: Case, folder: Path) -> list[tuple[str, Found]]:
    """Each peer's name and figure."""
    if case.ours is many_rows:
        note = "a ratio near 1 means that a longer series costs nothing"
        ours = in_own_process(many_rows, prices_file(folder, "one"), ROWS)
        return [(f"ours on {ROWS} rows", Found(ours.value, note))]
    figures = []
    for peer in case.peers:
        figure = (peer_memory if peer.what == "memory" else peer_figure)(folder, peer)
        name = f"{peer.name}, {FEW_ROWS} rows" if peer.prices.endswith("short") else peer.name
        if case.ours in (vector, monitored) and not peer.name.startswith("torchtrade"):
            figure = figure._replace(note="; ".join(filter(None, (figure.note, ALONE))))
        figures.append((name, figure))
    return figures


def measure(name: str, folder: Path) -> None:
    """Run one case and print its lines."""
    case = CASES[name]
    ours = measure_ours(case, folder)
    peers = measure_peers(case, folder)
    smaller_is_better = case.unit != "steps/s"

    def ratio(peer_value: float) -> float:
        return round(peer_value / ours.value if smaller_is_better else ours.value / peer_value, 2)

    known = {peer: found.value for peer, found in peers if found.value is not None}
    hardest = min(known, key=lambda peer: ratio(known[peer]), default=None)
    for peer, found in peers:
        line = {
            "benchmark": "env_speed",
            "case": name,
            "value": round(ours.value),
            "unit": case.unit,
            "peer": peer,
            "peer_value": None if found.value is None else round(found.value, 1),
            "ratio": None if found.value is None else ratio(found.value),
            "best_peer": hardest,
            "ratio_to_best_peer": ratio(known[hardest]) if hardest else None,
            "threads": ours.threads,
            "versions": {package: version(package) for package in ("numba", "numpy")}
            | (found.versions or {}),
            "note": "; ".join(filter(None, (case.note, found.note))),
        }
        print(json.dumps(line), flush=True)


def main(named: list[str], cases: Mapping[str, Any], measure: Callable[[str, Path], None]) -> None:
    """Measure the named cases, or all, each in processes of its own."""
    if unknown := [case for case in named if case not in cases]:
        sys.exit(f"unknown case {unknown[0]!r}; known: {', '.join(cases)}")
    with tempfile.TemporaryDirectory() as folder:
        for case in named or list(cases):
            measure(case, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:], CASES, measure)
