import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trade_pipeline.settings.experiment import NetworkSettings
from trade_pipeline.storage.bundles import BundleError, seal
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    Normalizer,
    PolicyError,
    PolicyNetwork,
    PolicyRunner,
    network_specification,
    torch_threads,
    write_policy,
)
from trade_pipeline_tests.training import synthetic

WINDOW = 4


def specification(action: dict[str, Any], outputs: int) -> dict[str, Any]:
    return {
        "observation": {
            "window": WINDOW,
            "instruments": ["demo.A.1h"],
            "feature_names": ["move", "constant"],
        },
        "action": action,
        "network": network_specification(
            NetworkSettings(hidden=(8,)), WINDOW, columns=2, instruments=1, outputs=outputs
        ),
    }


DISCRETE = specification({"kind": "multi_discrete", "nvec": [4, 2, 2, 2]}, 10)
CONTINUOUS = specification({"kind": "box", "low": [0.0], "high": [1.0]}, 1)


def write(folder: ArtifactLocation, spec: dict[str, Any]) -> PolicyNetwork:
    torch.manual_seed(7)
    network = PolicyNetwork(spec["network"])
    normalizer = Normalizer(np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32))
    write_policy(folder, network.state_dict(), normalizer, spec)
    seal(folder, DETERMINISTIC)
    return network


def observation(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "window": rng.normal(size=(WINDOW, 2)).astype(np.float32),
        "account": rng.normal(size=6).astype(np.float32),
    }


def test_statistics_come_from_training_rows_alone() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (100, 2, 3)).astype(np.float32)
    train = np.array([[10, 30], [50, 60]])
    fitted = Normalizer.fit(features, train, "standard")
    changed = features.copy()
    changed[:10] = changed[30:50] = changed[60:] = 1e6
    again = Normalizer.fit(changed, train, "standard")
    np.testing.assert_array_equal(again.mean, fitted.mean)
    np.testing.assert_array_equal(again.std, fitted.std)
    rows = np.r_[10:30, 50:60]
    scaled = fitted.transform(features).reshape(100, 2, 3)[rows].astype(np.float64)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


def test_a_constant_feature_is_centred_and_not_blown_up() -> None:
    features = np.full((50, 1, 1), 0.3, np.float32)
    fitted = Normalizer.fit(features, np.array([[0, 50]]), "standard")
    assert fitted.std.item() == 1.0
    assert np.abs(fitted.transform(features)).max() < 1e-6


def test_scaling_none_changes_nothing_and_statistics_survive_json() -> None:
    features = np.random.default_rng(1).normal(size=(20, 1, 2)).astype(np.float32)
    plain = Normalizer.fit(features, np.array([[0, 20]]), "none")
    np.testing.assert_array_equal(plain.transform(features), features.reshape(20, 2))
    fitted = Normalizer.fit(features, np.array([[0, 20]]), "standard")
    read = Normalizer.parse(json.loads(json.dumps(fitted.document())))
    np.testing.assert_array_equal(read.transform(features), fitted.transform(features))


def test_the_scaled_past_does_not_depend_on_later_rows() -> None:
    features = np.random.default_rng(2).normal(size=(40, 1, 2)).astype(np.float32)
    fitted = Normalizer.fit(features, np.array([[0, 20]]), "standard")
    np.testing.assert_array_equal(fitted.transform(features)[:25], fitted.transform(features[:25]))


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "box"])
def test_a_runner_rebuilds_the_network_from_the_bundle(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    network = write(folder, spec)
    runner = PolicyRunner.load(folder)
    for seed in range(5):
        seen = observation(seed)
        with torch.no_grad():
            wanted = network(
                torch.from_numpy(seen["window"][None]), torch.from_numpy(seen["account"][None])
            )[0].numpy()
        np.testing.assert_allclose(runner.logits(seen), wanted, atol=1e-6)


def test_the_action_is_the_most_likely_choice_of_each_part(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    runner = PolicyRunner.load(folder)
    logits = runner.logits(observation(0))
    action = runner.act(observation(0))
    assert action.dtype == np.int64
    assert action.tolist() == [
        int(logits[a:b].argmax()) for a, b in ((0, 4), (4, 6), (6, 8), (8, 10))
    ]


def test_weights_are_clipped_to_the_box(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, CONTINUOUS)
    runner = PolicyRunner.load(folder)
    means = [runner.logits(observation(seed)).item() for seed in range(20)]
    actions = [runner.act(observation(seed)) for seed in range(20)]
    assert min(means) < 0
    assert all(action.dtype == np.float32 for action in actions)
    assert [a.item() for a in actions] == [min(max(mean, 0.0), 1.0) for mean in means]


def test_the_action_does_not_depend_on_the_callers_threads_and_leaves_them_alone(
    tmp_path: Path,
) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    runner = PolicyRunner.load(folder)
    seen = []
    for threads in (1, 2):
        with torch_threads(threads):
            seen.append(runner.logits(observation(3)))
            assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(*seen)


def test_a_position_input_weighs_eight_times_a_feature() -> None:
    assert DISCRETE["network"]["account_scale"] == [8.0, 8.0, 1.0, 1.0, 1.0, 1.0]
    assert DISCRETE["network"]["inputs"] == WINDOW * 2 + 6


def test_changed_weights_are_refused_before_they_are_read(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    member = folder.path / "policy.safetensors"
    member.write_bytes(member.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(BundleError, match=r"policy\.safetensors"):
        PolicyRunner.load(folder)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    spec = json.loads((folder.path / "spec.json").read_text())
    spec["network"]["hidden"] = [9]
    (folder.path / "spec.json").write_text(json.dumps(spec))
    seal(folder, DETERMINISTIC)
    with pytest.raises(PolicyError, match="does not fit the network"):
        PolicyRunner.load(folder)


def test_a_dataset_with_other_features_is_refused(tmp_path: Path) -> None:
    folder = ArtifactLocation(tmp_path, "policy")
    write(folder, DISCRETE)
    with pytest.raises(PolicyError, match="of 2; use a dataset"):
        PolicyRunner.load(folder).features(synthetic.dataset(("demo.A.1h", "demo.B.1h")))
