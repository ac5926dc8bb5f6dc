"""Exported zips, opened by Stable-Baselines3 in a process that cannot import this package.

Loading such a zip unpickles it. That is SB3's way and the test's own risk: nothing of the package
does it.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from trade_pipeline.storage.bundles import seal
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.action_spaces import environment_actions
from trade_pipeline.training.policy import DETERMINISTIC, LEARNER, PolicyRunner
from trade_pipeline.training.sb3_export import ALGORITHMS, Sb3ExportError, write_sb3
from trade_pipeline_tests.training.policies import ONE, TWO, observations, write_bundle

CASES = [
    ("ppo", "mlp", ONE, False),
    ("ppo", "mlp relu, apart", TWO, True),
    ("ppo", "cnn", ONE, True),
    ("a2c", "cnn", TWO, False),
    ("recurrent_ppo", "lstm", ONE, False),
    ("recurrent_ppo", "lstm, apart", TWO, True),
    ("dqn", "mlp relu, apart", ONE, False),
    ("sac", "mlp relu, apart", TWO, True),
    ("sac", "mlp relu, apart", ONE, False),
    ("td3", "mlp relu, apart", TWO, False),
]
CLASSES = {"ppo": "PPO", "a2c": "A2C", "recurrent_ppo": "RecurrentPPO"}
# Another project: no file of this one, and an import of it fails.
ELSEWHERE = """
import json, sys
sys.modules["trade_pipeline"] = None
import numpy as np
import sb3_contrib, stable_baselines3, torch
torch.set_num_threads(1)
for number, name in enumerate(sys.argv[1:]):
    kind = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    model = kind.load(f"{number}/policy.zip", device="cpu")
    memory, starts, actions = None, np.ones((1,), bool), []
    for one in json.load(open(f"{number}/seen.json")):
        one = {key: np.array(value, np.float32) for key, value in one.items()}
        action, memory = model.predict(one, memory, starts, deterministic=True)
        starts = np.zeros((1,), bool)
        actions.append(np.asarray(action).tolist())
    json.dump(actions, open(f"{number}/actions.json", "w"))
    state = {key: value.numpy() for key, value in model.policy.state_dict().items()}
    np.savez(f"{number}/weights.npz", gamma=model.gamma, **state)
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a case: bundle `policy`, its zip, what it was shown, what SB3 made of it."""
    store = tmp_path_factory.mktemp("elsewhere")
    for number, (kind, network, keys, normalized) in enumerate(CASES):
        location = write_bundle(store, f"{number}/policy", kind, network, keys, normalized)
        write_sb3(location, store / f"{number}/policy.zip")
        seen = [{key: one[key].tolist() for key in one} for one in observations(keys)]
        (store / f"{number}/seen.json").write_text(json.dumps(seen))
    names = [CLASSES.get(kind, kind.upper()) for kind, *_ in CASES]
    command = [sys.executable, "-I", "-c", ELSEWHERE, *names]
    done = subprocess.run(command, cwd=store, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return store


@pytest.mark.parametrize("number", range(len(CASES)), ids=[" ".join(map(str, c)) for c in CASES])
def test_sb3_loads_the_zip_without_this_package_and_acts_as_the_runner_does(
    loaded: Path, number: int
) -> None:
    location = ArtifactLocation(loaded, f"{number}/policy")
    actions = json.loads((loaded / f"{number}/actions.json").read_text())
    runner = PolicyRunner.load(location)
    ours = [runner.act(one) for one in observations(CASES[number][2])]
    assert len({one.tobytes() for one in ours}) > 1
    for own, theirs in zip(ours, actions, strict=True):
        taken = environment_actions(np.array(theirs)[None], runner.specification["action"])[0]
        np.testing.assert_allclose(taken, own, rtol=0, atol=2e-6)
    learner = safetensors.numpy.load_file(location.path / LEARNER)
    with np.load(loaded / f"{number}/weights.npz", allow_pickle=False) as weights:
        assert weights["gamma"] == 0.99
        assert set(weights.files) - {"gamma"} == set(learner)
        for name, array in learner.items():
            np.testing.assert_array_equal(weights[name], array)


def test_a_learner_of_another_shape_is_refused(tmp_path: Path) -> None:
    location = write_bundle(tmp_path, "policy")
    path = location.path / LEARNER
    learner = safetensors.numpy.load_file(path)
    del learner["value_net.bias"]
    safetensors.numpy.save_file(learner, path)
    seal(location, DETERMINISTIC)
    with pytest.raises(Sb3ExportError, match=r"learner\.safetensors does not fit SB3's policy"):
        write_sb3(location, tmp_path / "policy.zip")


def test_a_policy_of_another_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = write_bundle(tmp_path, "policy", "a2c")
    monkeypatch.delitem(ALGORITHMS, "a2c")
    with pytest.raises(Sb3ExportError, match="trained by a2c, which is none of SB3's"):
        write_sb3(location, tmp_path / "policy.zip")
