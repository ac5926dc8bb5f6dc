"""Exported graphs, run by onnxruntime."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.networks import PolicyNetwork
from trade_pipeline.training.onnx_export import OnnxExportError, write_onnx
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline_tests.training.policies import ONE, TWO, observations, write_bundle

CASES = [
    ("ppo", "mlp", ONE, False),
    ("ppo", "mlp relu, apart", TWO, True),
    ("ppo", "cnn", ONE, False),
    ("a2c", "cnn", TWO, True),
    ("recurrent_ppo", "lstm", ONE, False),
    ("recurrent_ppo", "lstm, apart", TWO, True),
    ("dqn", "mlp relu, apart", ONE, False),
    ("sac", "mlp relu, apart", TWO, False),
]


@pytest.mark.parametrize(("kind", "network", "keys", "normalized"), CASES)
def test_the_graph_gives_what_runner_and_torch_give(
    tmp_path: Path, kind: str, network: str, keys: tuple[str, ...], normalized: bool
) -> None:
    location = write_bundle(tmp_path, "policy", kind, network, keys, normalized)
    write_onnx(location, "0" * 32, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    runner = PolicyRunner.load(location)
    sizes = runner.specification["network"]
    module = PolicyNetwork(sizes)
    module.load_state_dict(load_file(location.path / "policy.safetensors"))
    memory: dict[str, np.ndarray] = {}
    if sizes["kind"] == "lstm":
        memory = {name: np.zeros((1, 1, sizes["size"]), np.float32) for name in ("hidden", "cell")}
    hidden = None
    for seen in observations(keys):
        inputs = {"window": seen["window"].reshape(1, -1), "account": seen["account"][None]}
        outputs, *kept = session.run(None, inputs | memory)
        memory = dict(zip(memory, kept, strict=True))
        np.testing.assert_allclose(outputs[0], runner.outputs(seen), rtol=0, atol=1e-6)
        account = torch.from_numpy(inputs["account"])
        statistics = runner.normalizer.account
        if statistics is not None:
            scaled = (seen["account"] - statistics.mean) / np.sqrt(
                statistics.var + statistics.epsilon
            )
            clipped = np.clip(scaled, -statistics.clip, statistics.clip)
            account = torch.from_numpy(clipped.astype(np.float32)[None])
        with torch.no_grad():
            theirs, hidden = module(torch.from_numpy(inputs["window"]), account, hidden)
        np.testing.assert_allclose(outputs, theirs.numpy(), rtol=0, atol=1e-6)


def test_names_and_metadata_say_how_to_use_the_graph(tmp_path: Path) -> None:
    location = write_bundle(tmp_path, "policy", "recurrent_ppo", "lstm")
    write_onnx(location, "a" * 32, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert {one.name: one.shape for one in session.get_inputs()} == {
        "window": [1, 8],
        "account": [1, 6],
        "hidden": [1, 1, 7],
        "cell": [1, 1, 7],
    }
    assert [one.name for one in session.get_outputs()] == ["outputs", "new_hidden", "new_cell"]
    said = session.get_modelmeta().custom_metadata_map
    runner = PolicyRunner.load(location)
    assert said["version"] == "a" * 32
    assert json.loads(said["action"]) == runner.specification["action"]
    assert json.loads(said["observation"]) == runner.specification["observation"]
    np.testing.assert_array_equal(
        np.array(json.loads(said["scaling"])["mean"], np.float32), runner.normalizer.mean
    )


def test_the_same_policy_gives_the_same_file_without_torch(tmp_path: Path) -> None:
    location = write_bundle(tmp_path, "policy", "ppo", "cnn")
    write_onnx(location, "0" * 32, tmp_path / "one.onnx")
    code = (
        "import sys; from pathlib import Path\n"
        "from trade_pipeline.storage.location import ArtifactLocation\n"
        "from trade_pipeline.training.onnx_export import write_onnx\n"
        "store = Path(sys.argv[1])\n"
        "write_onnx(ArtifactLocation(store, 'policy'), '0' * 32, store / 'two.onnx')\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    onnx.checker.check_model(onnx.load(tmp_path / "one.onnx"), full_check=True)


def test_without_the_package_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(OnnxExportError, match=r"pip install 'trade_pipeline\[onnx\]'"):
        write_onnx(ArtifactLocation(tmp_path, "policy"), "0" * 32, tmp_path / "policy.onnx")
