import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from trade_pipeline.storage.bundles import BundleError, seal
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import DETERMINISTIC, PolicyError, PolicyRunner
from trade_pipeline_tests.training import untrained
from trade_pipeline_tests.training.untrained import SPECIFICATIONS, write

DISCRETE, RECURRENT, CONTINUOUS = (SPECIFICATIONS[kind] for kind in ("mlp", "lstm", "box"))


def test_changed_weights_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    member = folder.path / "policy.safetensors"
    member.write_bytes(member.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BundleError, match=r"policy\.safetensors"):
        PolicyRunner.load(folder)


def resealed(tmp_path: Path, name: str, content: bytes) -> ArtifactLocation:
    """A bundle with one member replaced, and an index that says that is right."""
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    (folder.path / name).write_bytes(content)
    seal(folder, DETERMINISTIC)
    return folder


def tensors(**changes: np.ndarray | None) -> bytes:
    weights = untrained.weights_of(untrained.network(DISCRETE)) | changes
    present = {name: array for name, array in weights.items() if array is not None}
    return safetensors.numpy.save(present)


HIDDEN = "trunk.layers.0.bias"
WRONG_WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "missing": (lambda: tensors(**{HIDDEN: None}), f"weight {HIDDEN} .* is missing"),
    "unknown": (lambda: tensors(more=np.zeros(1, np.float32)), "weight more is none"),
    "shape": (
        lambda: tensors(**{HIDDEN: np.zeros(9, np.float32)}),
        rf"weight {HIDDEN} is F32 \[9\], but the network has F32 \[8\]",
    ),
    "dtype": (lambda: tensors(**{HIDDEN: np.zeros(8)}), rf"weight {HIDDEN} is F64 \[8\]"),
    "not finite": (
        lambda: tensors(**{HIDDEN: np.full(8, np.inf, np.float32)}),
        f"weight {HIDDEN} holds numbers that are not finite",
    ),
    "a pickle": (lambda: pickle.dumps({"weights": [1.0]}), "cannot be read as safetensors"),
    "nothing": (lambda: b"", "cannot be read as safetensors"),
}


@pytest.mark.parametrize("case", WRONG_WEIGHTS)
def test_weights_that_the_network_does_not_have_are_refused(tmp_path: Path, case: str) -> None:
    content, message = WRONG_WEIGHTS[case]
    with pytest.raises(PolicyError, match=message):
        PolicyRunner.load(resealed(tmp_path, "policy.safetensors", content()))


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(spec)
    *parents, last = path.split(".")
    part = made
    for parent in parents:
        part = part[parent]
    part[last] = value
    return made


WRONG_SPECIFICATIONS: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "an unknown key": (DISCRETE, "extra", 1, "extra: Extra inputs"),
    "an unknown key of the network": (DISCRETE, "network.extra", 1, "extra: Extra inputs"),
    "an unknown setting": (
        DISCRETE,
        "configuration.environment.leverage",
        2,
        "leverage: Extra inputs",
    ),
    "an unknown kind": (DISCRETE, "network.kind", "transformer", "network: .*transformer"),
    "a fraction": (DISCRETE, "network.outputs", 10.0, "outputs: .* integer"),
    "text for a number": (DISCRETE, "network.window", "4", "window: .* integer"),
    "a number beyond 64 bits": (DISCRETE, "network.columns", 2**80, "columns: .*less than"),
    "no layers": (DISCRETE, "network.hidden", [], "hidden: .* at least 1"),
    "too many weights": (DISCRETE, "network.hidden", [2**20, 2**20], "weights and up to"),
    "too long a window": (
        changed(changed(DISCRETE, "observation.window", 2**20), "network.window", 2**20),
        "network.hidden",
        [64],
        "weights and up to",
    ),
    "too many layers": (DISCRETE, "network.hidden", [1] * 65, "hidden: .* at most 64"),
    "too large a memory": (RECURRENT, "network.size", 2**13, "weights and up to"),
    "too wide a convolution": (
        SPECIFICATIONS["cnn"],
        "network.channels",
        [2**20, 64],
        "weights and up to",
    ),
    "convolutions longer than the window": (
        SPECIFICATIONS["cnn"],
        "network.kernel",
        4,
        "kernel 4 leave nothing of a window of 4",
    ),
    "another window": (DISCRETE, "network.window", 5, "network.window is 5, .* make 4"),
    "another number of features": (
        DISCRETE,
        "observation.feature_names",
        ["move"],
        "network.columns is 2, .* make 1",
    ),
    "another number of choices": (
        DISCRETE,
        "action.nvec",
        [4, 2, 2, 1],
        "network.outputs is 10, .* make 9",
    ),
    "too few account scales": (
        DISCRETE,
        "network.account_scale",
        [1.0] * 5,
        "account_scale is 5, .* make 6",
    ),
    "a box without upper bounds": (CONTINUOUS, "action.high", [], "1 lower and 0 upper"),
    "a box upside down": (CONTINUOUS, "action.high", [-1.0], "lower bound .* above"),
}


@pytest.mark.parametrize("case", WRONG_SPECIFICATIONS)
def test_a_specification_that_is_not_one_of_ours_is_refused(tmp_path: Path, case: str) -> None:
    spec, path, value, message = WRONG_SPECIFICATIONS[case]
    content = json.dumps(changed(spec, path, value)).encode()
    with pytest.raises(PolicyError, match=message):
        PolicyRunner.load(resealed(tmp_path, "spec.json", content))


@pytest.mark.parametrize("key", sorted(DISCRETE))
def test_a_specification_without_a_key_is_refused(tmp_path: Path, key: str) -> None:
    rest = {name: value for name, value in DISCRETE.items() if name != key}
    with pytest.raises(PolicyError, match=f"{key}: Field required"):
        PolicyRunner.load(resealed(tmp_path, "spec.json", json.dumps(rest).encode()))


WRONG_STATISTICS: dict[str, tuple[Any, str]] = {
    "no deviation": ({"mean": [[0, 0]], "std": [[1, 0]], "account": None}, "std.0.1: .*greater"),
    "a deviation of 0 in float32": (
        {"mean": [[0, 0]], "std": [[1, 1e-60]], "account": None},
        "std .* float32",
    ),
    "an unknown key": (
        {"mean": [[0, 0]], "std": [[1, 1]], "account": None, "more": 1},
        "more: Extra",
    ),
    "another shape": (
        {"mean": [[0.0]], "std": [[1.0]], "account": None},
        r"mean has shape \[1, 1\]; \[1, 2\] is needed",
    ),
    "ragged": ({"mean": [[0.0], []], "std": [[1.0]], "account": None}, "mean: .* same length"),
    "another account": (
        {
            "mean": [[0, 0]],
            "std": [[1, 1]],
            "account": {"mean": [0.0], "var": [1.0], "epsilon": 1e-8, "clip": 10.0},
        },
        r"account.mean has shape \[1\]; \[6\]",
    ),
    "a variance below 0": (
        {
            "mean": [[0, 0]],
            "std": [[1, 1]],
            "account": {"mean": [0.0], "var": [-1.0], "epsilon": 1e-8, "clip": 10.0},
        },
        "account.var.0: .*greater",
    ),
}


@pytest.mark.parametrize("case", WRONG_STATISTICS)
def test_statistics_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    document, message = WRONG_STATISTICS[case]
    content = json.dumps(document).encode()
    with pytest.raises(PolicyError, match=message):
        PolicyRunner.load(resealed(tmp_path, "normalizer.json", content))


@pytest.mark.parametrize("name", ["spec.json", "normalizer.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"mean": [[NaN, 0]], "std": [[1, 1]], "account": null}', "finite|Field required"),
        (pickle.dumps(1), "cannot be read as JSON"),
        (b" " * (2**24 + 1), "at most 16777216 are read"),
        (b"[]", "the document: "),
    ],
    ids=["nested", "nan", "pickle", "large", "list"],
)
def test_a_document_that_is_none_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        PolicyRunner.load(resealed(tmp_path, name, content))
