"""A trained policy as it is stored and run: network, feature scaling, specification.

The one inference path: validation, backtests and whatever trades later all ask a `PolicyRunner`.
It knows nothing of how a policy was trained. No pickle: the network is rebuilt from `spec.json`
and its weights are read with safetensors. Start at `PolicyRunner.load`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from trade_pipeline.settings.experiment import NetworkSettings
from trade_pipeline.storage.bundles import verify
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows

WEIGHTS, NORMALIZER, SPEC = "policy.safetensors", "normalizer.json", "spec.json"
DETERMINISTIC = (WEIGHTS, NORMALIZER, SPEC)
# One position input beside a long window of features is too quiet to be learned from.
POSITION_SCALE = 8.0

FloatArray = NDArray[np.float32]
Action = NDArray[Any]  # int64 or float32
Observation = Mapping[str, NDArray[Any]]


class PolicyError(ValueError):
    """A policy bundle cannot be used here; the message says why."""


@dataclass(frozen=True)
class Normalizer:
    """Scales features elementwise in float32: `(feature - mean) / std`.

    Attributes:
        mean, std: float32 [N, F]; 0 and 1 where nothing is scaled.
    """

    mean: FloatArray
    std: FloatArray

    @classmethod
    def fit(cls, features: FloatArray, segments: Rows, scaling: str) -> "Normalizer":
        """Statistics of the rows of `segments` alone, one pair per instrument and feature.

        A feature that does not vary there is only centred: its deviation is rounding error.

        Args:
            features: float32 [T, N, F].
            segments: int64 [K, 2], a fold's training part.
            scaling: `standard`, or `none` for mean 0 and deviation 1.
        """
        shape = features.shape[1:]
        mean, std = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        if scaling == "none":
            return cls(mean, std)
        for index in np.ndindex(*shape):
            column = np.concatenate([features[a:b, *index] for a, b in segments])
            average = column.mean(dtype=np.float64)
            deviation = column.std(dtype=np.float64)
            mean[index] = average
            if deviation > 1e-6 * abs(average):
                std[index] = deviation
        return cls(mean, std)

    def transform(self, features: FloatArray) -> FloatArray:
        """Scaled features, float32 [T, N * F], of float32 [T, N, F]."""
        scaled = (np.asarray(features) - self.mean) / self.std
        return np.ascontiguousarray(scaled.reshape(len(features), -1), np.float32)

    def document(self) -> dict[str, Any]:
        """As `normalizer.json` holds it; a float32 survives JSON exactly."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> "Normalizer":
        """The inverse of `document`."""
        return cls(np.array(document["mean"], np.float32), np.array(document["std"], np.float32))


class PolicyNetwork(nn.Module):
    """Multilayer perceptron from an observation to action logits (or means of weights)."""

    account_scale: torch.Tensor

    def __init__(self, specification: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = specification["hidden"]
        self.register_buffer(
            "account_scale", torch.tensor(specification["account_scale"]), persistent=False
        )
        self.trunk = trunk(specification["inputs"], hidden, specification["activation"])
        self.action = nn.Linear(hidden[-1], specification["outputs"])

    def forward(self, window: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        """Logits [B, L] of window [B, W, N * F] and account [B, 5 N + 1]."""
        logits: torch.Tensor = self.action(
            self.trunk(flatten_observation(window, account, self.account_scale))
        )
        return logits


def network_specification(
    network: NetworkSettings, window: int, columns: int, instruments: int, outputs: int
) -> dict[str, Any]:
    """What `PolicyNetwork` is built from: layer sizes, and the scale of each account input.

    Args:
        network: settings.
        window: rows of an observation, W.
        columns: features of all instruments, N * F.
        instruments: N.
        outputs: logits or weights, L.
    """
    account_scale = [POSITION_SCALE, POSITION_SCALE, 1.0, 1.0, 1.0] * instruments + [1.0]
    return {
        "kind": network.kind,
        "inputs": window * columns + len(account_scale),
        "hidden": list(network.hidden),
        "activation": network.activation,
        "account_scale": account_scale,
        "outputs": outputs,
    }


def trunk(inputs: int, hidden: Sequence[int], activation: str) -> nn.Sequential:
    """The layers below the action: a linear map and an activation for each hidden size."""
    kinds: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), kinds[activation]()]
        inputs = size
    return nn.Sequential(*layers)


def flatten_observation(
    window: torch.Tensor, account: torch.Tensor, account_scale: torch.Tensor
) -> torch.Tensor:
    """One vector an observation [B, W * N * F + 5 N + 1]: the window, then the scaled account."""
    return torch.cat([window.flatten(1), account * account_scale], dim=1)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads, then restore: thread counts change the last bits of sums."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)


class PolicyRunner:
    """Asks a policy for its deterministic action, one observation at a time.

    Batch size and thread count change the last bits of a matrix product, so both are fixed at 1:
    the same observation gives the same action wherever it is asked for.
    """

    def __init__(
        self, specification: Mapping[str, Any], normalizer: Normalizer, network: PolicyNetwork
    ) -> None:
        self.specification = specification
        self.normalizer = normalizer
        self._network = network.eval()
        action = specification["action"]
        self._parts = np.cumsum(action["nvec"])[:-1] if action["kind"] == "multi_discrete" else None

    @classmethod
    def load(cls, location: ArtifactLocation) -> "PolicyRunner":
        """Open a policy bundle after hashing every member.

        Raises:
            BundleError: a member is missing or changed.
            PolicyError: the weights do not fit the specification.
        """
        verify(location)
        specification = read_json(location.child(SPEC))
        network = PolicyNetwork(specification["network"])
        try:
            network.load_state_dict(safetensors.torch.load_file(location.path / WEIGHTS))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise PolicyError(
                f"{location}: {WEIGHTS} does not fit the network of {SPEC} ({error}); "
                "train the policy again."
            ) from error
        return cls(specification, Normalizer.parse(read_json(location.child(NORMALIZER))), network)

    def features(self, dataset: Dataset) -> FloatArray:
        """The dataset's features as this policy sees them: scaled, float32 [T, N * F].

        Raises:
            PolicyError: the dataset has other features or another number of instruments.
        """
        wanted = self.specification["observation"]
        names, instruments = list(dataset.feature_names), len(dataset.instruments)
        if names != wanted["feature_names"] or instruments != len(wanted["instruments"]):
            raise PolicyError(
                f"the policy sees {wanted['feature_names']} of {len(wanted['instruments'])} "
                f"instrument(s), but the dataset has {names} of {instruments}; use a dataset of "
                "the same feature set and number of series."
            )
        return self.normalizer.transform(dataset.features)

    def logits(self, observation: Observation) -> FloatArray:
        """Logits of each discrete choice, or the means of the weights: float32 [L].

        Args:
            observation: `window` float32 [W, N * F] of scaled features, `account` [5 N + 1].
        """
        window = torch.from_numpy(np.array(observation["window"], np.float32)[None])
        account = torch.from_numpy(np.array(observation["account"], np.float32)[None])
        with torch_threads(1), torch.inference_mode():
            logits: FloatArray = self._network(window, account)[0].numpy()
        return logits

    def act(self, observation: Observation) -> Action:
        """The most likely action, flat: int64 [parts] choices, or float32 [N] weights."""
        logits = self.logits(observation)
        if self._parts is not None:
            parts = np.split(logits, self._parts)
            return np.array([int(part.argmax()) for part in parts], np.int64)
        action = self.specification["action"]
        return np.clip(logits, np.float32(action["low"]), np.float32(action["high"]))


def write_policy(
    staging: ArtifactLocation,
    weights: Mapping[str, torch.Tensor],
    normalizer: Normalizer,
    specification: Mapping[str, Any],
) -> None:
    """Write the deterministic members of a policy bundle into a staging folder."""
    staging.path.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(dict(weights), staging.path / WEIGHTS)
    write_json(staging.child(NORMALIZER), normalizer.document())
    write_json(staging.child(SPEC), specification)
