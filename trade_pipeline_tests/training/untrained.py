"""Untrained policies and their specifications, made from torch's first weights."""

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from trade_pipeline.settings.algorithm import NetworkSettings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import BracketMapping, mapping_for
from trade_pipeline.storage.bundles import seal
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.networks import PolicyNetwork, network_specification
from trade_pipeline.training.policy import DETERMINISTIC, Normalizer, PolicyRunner, write_policy

NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "hidden": [8]},
    "cnn": {"kind": "cnn", "channels": [3, 5], "kernel": 2, "hidden": [8]},
    "lstm": {"kind": "lstm", "hidden": [8], "size": 6},
}
# An algorithm that each kind of action is made for.
ALGORITHMS = {
    "multi_discrete": "ppo",
    "discrete": "dqn",
    "binned": "sac",
    "box": "ppo",
    "squashed_box": "sac",
}
Weights = dict[str, np.ndarray]


def network_of(network: dict[str, Any]) -> NetworkSettings:
    made: NetworkSettings = TypeAdapter(NetworkSettings).validate_python(network)
    return made


def specification(
    action: dict[str, Any],
    outputs: int,
    network: dict[str, Any] = NETWORKS["mlp"],
    instruments: tuple[str, ...] = ("demo.A.1h",),
    features: tuple[str, ...] = ("move", "constant"),
    environment: EnvironmentSettings | None = None,
) -> dict[str, Any]:
    """All of `spec.json`, for an action of L outputs."""
    kind = "brackets" if "nvec" in action else "weights"
    if environment is None:
        environment = EnvironmentSettings.model_validate({"window": 4, "actions": {"kind": kind}})
    settings = network_of(network)
    algorithm = {"kind": ALGORITHMS[action["kind"]], "network": settings.model_dump(mode="json")}
    if network["kind"] == "lstm":
        algorithm["kind"] = "recurrent_ppo"
    columns = len(instruments) * len(features)
    return {
        "observation": {
            "window": environment.window,
            "instruments": list(instruments),
            "feature_names": list(features),
            "scaling": "standard",
            "lookback": 3,
        },
        "action": action,
        "network": network_specification(
            settings, environment.window, columns, len(instruments), outputs
        ),
        "dataset_version": "0" * 32,
        "configuration": {
            "environment": environment.model_dump(mode="json"),
            "algorithm": algorithm,
        },
        "fold": 0,
        "seed": 1,
        "threads": 1,
        "implementations": {"kernel": 2},
        "versions": {"numpy": np.__version__},
    }


NVEC = {"kind": "multi_discrete", "nvec": [4, 2, 2, 2]}
BOX = {"kind": "box", "low": [0.0], "high": [1.0]}
SPECIFICATIONS = {
    **{kind: specification(NVEC, 10, network) for kind, network in NETWORKS.items()},
    "discrete": specification({**NVEC, "kind": "discrete"}, 32),
    "binned": specification({**NVEC, "kind": "binned"}, 4),
    "box": specification(BOX, 1),
    "squashed_box": specification({**BOX, "kind": "squashed_box"}, 1),
}
PLAIN = Normalizer(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32))


def network(spec: dict[str, Any], seed: int = 0) -> PolicyNetwork:
    torch.manual_seed(seed)
    return PolicyNetwork(spec["network"])


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def write(folder: ArtifactLocation, spec: dict[str, Any]) -> None:
    """A sealed bundle that scales nothing."""
    weights = weights_of(network(spec))
    learner = {"value_net.weight": np.ones((1, 8), np.float32), **weights}
    write_policy(folder, weights, learner, PLAIN, spec)
    seal(folder, DETERMINISTIC)


def policy(
    dataset: Dataset, environment: EnvironmentSettings, seed: int = 0, kind: str = "mlp"
) -> PolicyRunner:
    """A policy that trades a lot: its last weights are large."""
    instruments = len(dataset.instruments)
    mapping = mapping_for(environment, instruments)
    if isinstance(mapping, BracketMapping):
        nvec = [int(choices) for choices in mapping.nvec]
        action, outputs = {"kind": "multi_discrete", "nvec": nvec}, sum(nvec)
    else:
        low, high = mapping.low.tolist(), mapping.high.tolist()
        action, outputs = {"kind": "box", "low": low, "high": high}, instruments
    spec = specification(
        action,
        outputs,
        NETWORKS[kind],
        tuple(dataset.instruments),
        tuple(dataset.feature_names),
        environment,
    )
    weights = weights_of(network(spec, seed))
    weights["action.weight"] *= np.float32(20)
    normalizer = Normalizer.fit(dataset.features, dataset.folds[0].train, "standard")
    return PolicyRunner(spec, normalizer, weights)
