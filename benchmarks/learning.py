"""Learning: which of PPO's knobs matter, each turned alone, from the shipped defaults.

Everything learns the market of `peers/mean_reverting.py`, whose best rule is known, in frames: they
do not depend on how fast the machine is. Prints one JSON object a line, one for each variation:
frames until the greedy policy first earns 90 % of the best rule, of each seed (null: not within the
training), their median and bounds, and the median learning curve. `python benchmarks/learning.py`
runs all, `python benchmarks/learning.py "relu"` some; `SEEDS=20` before it runs so many seeds, not
five. `python benchmarks/learning.py --docs FILE` draws the curves that were printed into FILE as
`docs/pictures/learning.svg`, for docs/tuning.md.
"""

import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peers import mean_reverting
from peers.run_training import Looks
from training import TARGET_ENVIRONMENT, judged, market_of, training_path

SEEDS = range(int(os.environ.get("SEEDS", "5")))
FRAMES = 100_000
WINDOW, WINDOW_FRAMES = 64, 160_000
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "learning.svg"

Seen = dict[str, NDArray[Any]]


class Variation(NamedTuple):
    """What is changed, as in an experiment, and how long it learns.

    Those that are drawn learn on after the target.
    """

    algorithm: Mapping[str, Any]
    environment: Mapping[str, Any]
    frames: int
    drawn: bool


def varied(drawn: bool = False, starts: bool = True, **algorithm: Any) -> Variation:
    """One knob of the algorithm turned, or episodes that all begin flat."""
    environment = {} if starts else {"random_start_position": False}
    return Variation(algorithm, environment, FRAMES, drawn)


def wide(**algorithm: Any) -> Variation:
    """With 64 bars to look at, of which the last says everything."""
    return Variation(algorithm, {"window": WINDOW}, WINDOW_FRAMES, drawn=False)


VARIATIONS = {
    "defaults": varied(drawn=True),
    "learning_rate 0.001": varied(drawn=True, learning_rate=1e-3),
    "reward_scale 1": varied(drawn=True, reward_scale=1.0),
    "64 x 16, batch_size 256": varied(environments=64, batch_size=256),
    "128 x 16, batch_size 512": varied(drawn=True, environments=128, batch_size=512),
    "512 x 16, batch_size 2048": varied(drawn=True, environments=512, batch_size=2048),
    "window 64": wide(),
    "window 64, preset minutes": wide(
        environments=64, batch_size=128, learning_rate=2e-3, gae_lambda=0.95
    ),
    "gae_lambda 0.95": varied(gae_lambda=0.95),
    "gae_lambda 0.8": varied(gae_lambda=0.8),
    "entropy_coefficient 0": varied(entropy_coefficient=0.0),
    "two trunks": varied(network={"shared": False}),
    "relu": varied(network={"activation": "relu"}),
    "hidden [32, 32]": varied(network={"hidden": [32, 32]}),
    "epochs 10": varied(epochs=10),
    "gamma 0.95": varied(gamma=0.95),
    "gamma 0.999": varied(gamma=0.999),
    "learning_rate 0.01": varied(learning_rate=1e-2),
    "reward_scale 1000": varied(reward_scale=1000.0),
    "max_grad_norm 2": varied(max_grad_norm=2.0),
    "no random_start_position": varied(starts=False),
}


class Learned(NamedTuple):
    """One training.

    Attributes:
        frames: until the target was reached first, or None.
        shares: of what the best rule earns, a look before every update.
    """

    frames: int | None
    shares: list[float]


class Curve(Looks):
    """Looks that may go on after the target."""

    def __init__(self, judge: Callable[[], float], goes_on: bool) -> None:
        super().__init__(judge)
        self._goes_on = goes_on

    def _on_step(self) -> bool:
        return self._goes_on or super()._on_step()


class Greedy:
    """A model's greedy choices by compiled code, which takes a tenth of SB3's time."""

    def __init__(
        self, model: Any, network: Mapping[str, Any], features: NDArray[np.float32]
    ) -> None:
        from trade_pipeline.training.compiled_network import CompiledNetwork
        from trade_pipeline.training.sb3 import policy_weights

        weights = {name: one.numpy() for name, one in policy_weights(model, "ppo").items()}
        self._network = CompiledNetwork(network, weights)
        # Every window of the only feature, [rows - W + 1, W], not copied.
        self._windows = np.lib.stride_tricks.sliding_window_view(features[:, 0], network["window"])
        self._directions = int(model.action_space.nvec[0])

    def predict(self, seen: Seen, deterministic: bool) -> tuple[NDArray[np.int64], None]:
        """As SB3's models do; sizes, stops and takes have one choice each."""
        assert deterministic
        rows, memory = seen["row"][:, 0], self._network.memory(len(seen["row"]))
        windows = self._windows[rows - self._windows.shape[1] + 1]
        outputs = self._network.forward(windows, seen["account"], memory)
        actions = np.zeros((len(outputs), 4), np.int64)
        actions[:, 0] = outputs[:, : self._directions].argmax(axis=1)
        return actions, None


@cache
def held() -> tuple[Any, NDArray[np.float32]]:
    """Market and feature [rows, 1]: the training path, then the held-out one."""
    x = np.concatenate([training_path(), mean_reverting.held_out()])
    return market_of(x), (x / mean_reverting.DEVIATION).astype(np.float32)[:, None]


def learned(variation: Variation, seed: int) -> Learned:
    """Train one policy, looking at it before every update."""
    import torch

    from trade_pipeline.settings.algorithm import PPOSettings
    from trade_pipeline.settings.environment import EnvironmentSettings
    from trade_pipeline.settings.overrides import merge
    from trade_pipeline.simulator.vec_env import TradingVecEnv
    from trade_pipeline.training.action_spaces import action_specification, outputs_of
    from trade_pipeline.training.networks import network_specification
    from trade_pipeline.training.sb3 import make_model

    torch.set_num_threads(1)
    market, features = held()
    defaults = PPOSettings(kind="ppo", total_frames=variation.frames)
    algorithm = PPOSettings.model_validate(
        merge(defaults.model_dump(mode="json"), variation.algorithm)
    )
    environment = EnvironmentSettings.model_validate(
        merge(TARGET_ENVIRONMENT, variation.environment)
    )
    environments = TradingVecEnv(
        market,
        features,
        np.array([[0, mean_reverting.TRAINING_ROWS]]),
        environment,
        algorithm.environments,
        seed,
        reward_scale=algorithm.reward_scale,
        observe="index",
    )
    outputs = outputs_of(action_specification("ppo", environments.mapping))
    network = network_specification(algorithm.network, environment.window, 1, 1, outputs)
    model = make_model(environments, algorithm, network, seed, features)
    # It is judged in the benchmark's environment: rows and accounts are the same in any window.
    curve = Curve(
        lambda: judged(Greedy(model, network, features), market, features), variation.drawn
    )
    model.learn(variation.frames, curve, log_interval=None)
    return Learned(curve.frames if curve.seconds is not None else None, curve.shares)


def line_of(name: str, found: Sequence[Learned]) -> dict[str, Any]:
    """What is printed of one variation; a seed that never got there counts as the longest."""
    variation = VARIATIONS[name]
    frames = sorted(variation.frames if one.frames is None else one.frames for one in found)
    shares = np.median([one.shares for one in found], axis=0) if variation.drawn else []
    return {
        "benchmark": "learning",
        "variation": name,
        "algorithm": variation.algorithm,
        "environment": variation.environment,
        "frames": [one.frames for one in found],
        "median": statistics.median(frames),
        "lowest": frames[0],
        "highest": frames[-1],
        "reached": sum(one.frames is not None for one in found),
        "within": variation.frames,
        "curve": np.round(shares, 2).tolist(),
    }


def lines(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Run variations, all seeds of one side by side."""
    workers = int(os.environ.get("WORKERS", len(os.sched_getaffinity(0))))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        waiting = {
            name: [pool.submit(learned, VARIATIONS[name], seed) for seed in SEEDS] for name in names
        }
        try:
            for name, futures in waiting.items():
                yield line_of(name, [future.result() for future in futures])
        finally:
            pool.shutdown(cancel_futures=True)  # what failed, or is read no more, keeps none busy


COLOURS = ("#1b1b1b", "#d1495b", "#00798c", "#8d6a9f", "#c98a00", "#66a182")
WIDTH, HEIGHT, LEFT, TOP = 560, 280, 48, 40
LEGEND_LINE = 18


def picture(found: Sequence[Mapping[str, Any]]) -> str:
    """Median curves of the variations that are drawn, as SVG."""
    drawn = [line for line in found if line["curve"]]
    width, height = LEFT + WIDTH + 24, TOP + HEIGHT + 36 + LEGEND_LINE * len(drawn)
    title = f"Share of what the best rule earns, by frames; median of {len(SEEDS)} seeds"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-weight="bold">{title}</text>',
        f'<g transform="translate({LEFT} {TOP})">',
        *axes(),
        *curves(drawn),
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def axes() -> Iterator[str]:
    """Grid, numbers and the target as a broken line."""
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = down(share)
        yield f'<path d="M0 {y:.1f}H{WIDTH}" stroke="#ddd"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{share:.2f}</text>'
    target = down(mean_reverting.TARGET)
    yield f'<path d="M0 {target:.1f}H{WIDTH}" stroke="#888" stroke-dasharray="4 3"/>'
    for frames in range(0, FRAMES + 1, FRAMES // 5):
        place = f'x="{across(frames):.1f}" y="{HEIGHT + 16}"'
        yield f'<text {place} text-anchor="middle">{frames // 1000}k</text>'


def curves(drawn: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line and its legend for each variation, the defaults thick."""
    for number, (line, colour) in enumerate(zip(drawn, COLOURS, strict=False)):
        frames = line["within"] / len(line["curve"])  # from look to look
        points = " ".join(
            f"{across(look * frames):.1f},{down(share):.1f}"
            for look, share in enumerate(line["curve"])
        )
        stroke = f'stroke="{colour}" stroke-width="{2.5 if number == 0 else 1.4}"'
        yield f'<polyline points="{points}" fill="none" {stroke}/>'
        y = HEIGHT + 40 + LEGEND_LINE * number
        yield f'<path d="M0 {y - 4}h22" {stroke}/>'
        yield f'<text x="28" y="{y}">{line["variation"]}: {told(line)}</text>'


def across(frames: float) -> float:
    """Where frames lie from left to right."""
    return WIDTH * frames / FRAMES


def down(share: float) -> float:
    """Where a share lies from top to bottom; losses lie at zero."""
    return HEIGHT * (1 - min(max(share, 0.0), 1.0))


def told(line: Mapping[str, Any]) -> str:
    """Frames to the target in words."""
    low, middle, high = (f"{line[key] / 1000:.0f}k" for key in ("lowest", "median", "highest"))
    seeds, reached = len(line["frames"]), line["reached"]
    if reached == seeds:
        return f"{middle} frames to the target ({low} to {high})"
    return f"{reached} of {seeds} seeds reach the target"


def main(arguments: Sequence[str]) -> None:
    """Run the named variations, or all; or draw what was printed before."""
    if arguments[:1] == ["--docs"]:
        printed = Path(arguments[1]).read_text(encoding="utf-8").splitlines()
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(picture([json.loads(line) for line in printed]), encoding="utf-8")
        return
    if unknown := [name for name in arguments if name not in VARIATIONS]:
        sys.exit(f"unknown variation {unknown[0]!r}; known: {', '.join(VARIATIONS)}")
    for line in lines(arguments or list(VARIATIONS)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
