"""Every algorithm on the made-up market, each with a network that it works with; seconds each."""

import time
from collections.abc import Callable
from typing import Any

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.trainer import TrainedPolicy, train
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")
FRAMES = 1024
_PPO = {"kind": "ppo", "environments": 16, "rollout_steps": 16, "batch_size": 128, "epochs": 2}
_BUFFER = {"learning_starts": 100, "buffer_size": 600, "batch_size": 32}
_MLP = {"kind": "mlp", "hidden": [8, 8]}
_CNN = {"kind": "cnn", "channels": [4], "kernel": 2, "hidden": [8]}
_LSTM = {"kind": "lstm", "hidden": [8], "size": 6}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {**_PPO, "network": _MLP},
    "ppo, separate trunks": {**_PPO, "network": {**_MLP, "shared": False}},
    "ppo, cnn": {**_PPO, "network": _CNN},
    "ppo, schedules": {
        **_PPO,
        "network": _MLP,
        "learning_rate": {"start": 1e-3, "end": 1e-5},
        "clip_range": {"start": 0.2, "end": 0.05},
        "target_kl": 0.001,
    },
    "a2c": {"kind": "a2c", "environments": 16, "network": _MLP},
    "recurrent_ppo": {**_PPO, "kind": "recurrent_ppo", "network": _LSTM},
    "recurrent_ppo, separate memories": {
        **_PPO,
        "kind": "recurrent_ppo",
        "network": {**_LSTM, "shared": False},
    },
    "dqn": {"kind": "dqn", **_BUFFER, "network": {**_MLP, "shared": False}},
    "sac": {"kind": "sac", **_BUFFER, "network": {**_MLP, "shared": False}},
    "td3": {"kind": "td3", **_BUFFER, "network": {**_CNN, "shared": False}},
}
NORMALIZED = {"normalize": {"account": True, "reward": True}}
# Algorithm, series, and what else: all algorithms on both kinds of action, where they can.
CASES = [
    *((name, ONE, NORMALIZED if name in ("dqn", "recurrent_ppo") else {}) for name in ALGORITHMS),
    *((name, TWO, NORMALIZED) for name in ("ppo", "sac")),
    *((name, TWO, {}) for name in ("ppo, cnn", "a2c", "recurrent_ppo", "td3")),
]
NAMES = [
    f"{name}; {'brackets' if keys == ONE else 'weights'}{'; normalized' if more else ''}"
    for name, keys, more in CASES
]


def experiment(name: str, keys: tuple[str, ...] = ONE, **changes: Any) -> ExperimentSettings:
    """The small experiment with that algorithm."""
    content = synthetic.experiment(keys).model_dump(mode="json", by_alias=True)
    content["algorithm"] = {**ALGORITHMS[name], "total_frames": FRAMES, **changes}
    return ExperimentSettings.model_validate(content)


def train_one(
    staging: ArtifactLocation,
    name: str,
    keys: tuple[str, ...] = ONE,
    seed: int = 1,
    report: Callable[[Any], None] = lambda said: None,
    dataset: Dataset | None = None,
    checkpoints: ArtifactLocation | None = None,
    **changes: Any,
) -> TrainedPolicy:
    """Train it; where there are checkpoints, one is kept at each rollout."""
    settings = experiment(name, keys, **changes)
    environment, algorithm = settings.variant("base")
    return train(
        dataset=dataset or synthetic.dataset(keys),
        environment=environment,
        algorithm=algorithm,
        trial=settings.trials()[f"base.f0.s{seed}"],
        staging=staging,
        report=report,
        clock=time.monotonic,
        tensorboard=False,
        checkpoints=checkpoints,
        save_every_s=0.0,
    )
