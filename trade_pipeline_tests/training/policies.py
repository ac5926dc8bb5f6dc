"""Policy bundles of every algorithm and network, made in a moment: nothing is learned."""

from pathlib import Path
from typing import Any

import numpy as np

from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.vec_env import TradingVecEnv
from trade_pipeline.storage.bundles import seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import sb3
from trade_pipeline.training.action_spaces import (
    action_specification,
    outputs_of,
    with_actions_of,
)
from trade_pipeline.training.networks import network_specification
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    AccountStatistics,
    Normalizer,
    write_policy,
)
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")
MLP: dict[str, Any] = {"kind": "mlp", "hidden": [8, 6]}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": MLP,
    "mlp relu, apart": {**MLP, "activation": "relu", "shared": False},
    "cnn": {"kind": "cnn", "channels": [4, 5], "kernel": 2, "hidden": [8]},
    "lstm": {"kind": "lstm", "hidden": [8], "size": 7},
    "lstm, apart": {"kind": "lstm", "hidden": [8], "size": 7, "shared": False},
}


def experiment(kind: str, network: str, keys: tuple[str, ...] = ONE) -> ExperimentSettings:
    """The small experiment with another algorithm and network."""
    content = synthetic.experiment(keys).model_dump(mode="json", by_alias=True)
    algorithm = {"kind": kind, "total_frames": 2_000, "network": NETWORKS[network]}
    if "ppo" in kind:
        algorithm |= {"environments": 2, "rollout_steps": 16, "batch_size": 16}
    content["algorithm"] = algorithm
    return ExperimentSettings.model_validate(content)


def write_bundle(
    store: Path,
    key: str = "staging/policy",
    kind: str = "ppo",
    network: str = "mlp",
    keys: tuple[str, ...] = ONE,
    normalized: bool = False,
    seed: int = 0,
) -> ArtifactLocation:
    """A sealed bundle at `key`, with the weights that SB3 begins with."""
    environment, algorithm = experiment(kind, network, keys).variant("base")
    dataset = synthetic.dataset(keys)
    action = action_specification(kind, mapping_for(environment, len(keys)))
    sizes = network_specification(
        algorithm.network,
        environment.window,
        len(keys) * len(dataset.feature_names),
        len(keys),
        outputs_of(action),
        normalized,
    )
    normalizer = Normalizer.fit(dataset.features, dataset.folds[0].train, "standard")
    environments = TradingVecEnv(
        dataset.market,
        normalizer.transform(dataset.features),
        dataset.folds[0].train,
        environment,
        environments=2,
        seed=seed,
    )
    model = sb3.make_model(with_actions_of(environments, action), algorithm, sizes, seed)
    # PPO's first outputs are close to zero, which would compare little.
    scale = np.float32(3 if algorithm.kind in ("ppo", "a2c", "recurrent_ppo") else 1)
    acting = {name: scale * w.numpy() for name, w in sb3.policy_weights(model, kind).items()}
    learner = {name: scale * w.numpy() for name, w in sb3.learner_weights(model).items()}
    if normalized:
        rng = np.random.default_rng(3)
        count = 5 * len(keys) + 1
        account = AccountStatistics(rng.normal(size=count), rng.uniform(0.1, 2, count), 1e-8, 1.5)
        normalizer = Normalizer(normalizer.mean, normalizer.std, account)
    staging = ArtifactLocation(store, key)
    specification = {
        "observation": {
            "window": environment.window,
            "instruments": list(keys),
            "feature_names": list(dataset.feature_names),
            "scaling": "standard",
            "lookback": dataset.lookback,
        },
        "action": action,
        "network": sizes,
        "dataset_version": "0" * 32,
        "configuration": {
            "environment": environment.model_dump(mode="json"),
            "algorithm": algorithm.model_dump(mode="json"),
        },
        "fold": 0,
        "seed": seed,
        "threads": 1,
        "implementations": {"trainer": 1},
        "versions": {"python": "3.11"},
    }
    write_policy(staging, acting, learner, normalizer, specification)
    write_json(staging.child("provenance.json"), {"commit": "unknown"})
    (staging.path / "job.log").write_text("      0.0 s  it went well\n", encoding="utf-8")
    seal(staging, DETERMINISTIC)
    return staging


def observations(keys: tuple[str, ...] = ONE, count: int = 20) -> list[dict[str, np.ndarray]]:
    """What a policy of such a bundle might see, one after the other."""
    rng = np.random.default_rng(5)
    return [
        {
            "window": rng.normal(size=(4, 2 * len(keys))).astype(np.float32),
            "account": rng.normal(size=5 * len(keys) + 1).astype(np.float32),
        }
        for _ in range(count)
    ]
