"""Whole trainings with workers; each starts Ray, which takes some fifteen seconds."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.strategies import PolicyStrategy
from trade_pipeline.simulator.env import PortfolioEnv, TradingEnv
from trade_pipeline.storage.bundles import verify
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.trainer import TrainedPolicy, TrainingError
from trade_pipeline.training.validation import evaluate
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.rllib import runs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed here; `make test-rllib` runs this in an environment with it",
)

END_WITHIN_S = 10.0
LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


class Done(NamedTuple):
    dataset: Dataset
    settings: Any
    trained: TrainedPolicy
    said: list[str]


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; pytest's own folders are too long for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """Two workers, one trunk, brackets, and a feature that shows the return ahead."""
    said: list[str] = []
    dataset = runs.foreseeing()
    settings = runs.experiment(total_frames=8192, environments=32, gamma=0.5, epochs=4, workers=2)
    store = tmp_path_factory.mktemp("choices")
    return Done(dataset, settings, runs.train(store, dataset, settings, said.append), said)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One worker, two trunks with convolutions, weights of two instruments."""
    dataset = synthetic.dataset(runs.TWO)
    settings = runs.experiment(
        runs.TWO,
        total_frames=512,
        workers=1,
        learning_rate={"kind": "linear", "start": 0.01, "end": 0.001},
        network={"kind": "cnn", "channels": [4], "kernel": 2, "hidden": [8], "shared": False},
        evaluation={"looks": 2, "keep": "last"},
    )
    store = tmp_path_factory.mktemp("weights")
    said: list[str] = []
    return Done(dataset, settings, runs.train(store, dataset, settings, said.append), said)


@pytest.mark.parametrize("which", ["choices", "weights"])
def test_the_loaded_policy_says_what_rllib_s_module_says(
    which: str, request: pytest.FixtureRequest
) -> None:
    done: Done = request.getfixturevalue(which)  # first: training says where Ray may listen
    from ray.rllib.core.columns import Columns

    from trade_pipeline.training.rllib_network import TradingModule

    folder = done.trained.reference.location
    runner = PolicyRunner.load(folder)
    spec = runner.specification
    environment, algorithm = done.settings.variant("base")
    kind = TradingEnv if which == "choices" else PortfolioEnv
    segments = done.dataset.folds[0].test[1:]
    features = runner.features(done.dataset)
    episodes = kind(done.dataset.market, features, segments, environment, flat_actions=True)
    module = TradingModule(
        observation_space=episodes.observation_space,
        action_space=episodes.action_space,
        model_config={
            "network": spec["network"],
            "action": spec["action"],
            "shared": algorithm.network.shared,
        },
    )
    learned = load_file(folder.path / "learner.safetensors")
    module.load_state_dict({name: torch.from_numpy(array) for name, array in learned.items()})
    seen, _ = episodes.reset(seed=0)
    actions = set()
    for _ in range(30):
        batch = {Columns.OBS: {name: torch.from_numpy(part[None]) for name, part in seen.items()}}
        with torch.no_grad():
            inputs = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
        ours, action = runner.outputs(seen), runner.act(seen)
        np.testing.assert_allclose(ours, inputs[0, : len(ours)].numpy(), atol=1e-6)
        distribution = module.get_inference_action_dist_cls().from_logits(inputs)
        greedy = distribution.to_deterministic().sample()[0].numpy()
        if which == "choices":
            np.testing.assert_array_equal(action, greedy)
        else:
            bounds = np.float32(spec["action"]["low"]), np.float32(spec["action"]["high"])
            np.testing.assert_allclose(action, np.clip(greedy, *bounds), atol=1e-6)
        actions.add(action.tobytes())
        seen, _, ruined, ended, _ = episodes.step(action)
        if ruined or ended:
            seen, _ = episodes.reset()
    assert len(actions) > 1


@pytest.mark.parametrize("which", ["choices", "weights"])
def test_the_validation_return_is_that_of_the_bundle(
    which: str, request: pytest.FixtureRequest
) -> None:
    done: Done = request.getfixturevalue(which)
    folder, metrics = done.trained.reference.location, done.trained.metrics
    runner = PolicyRunner.load(folder)
    equity = evaluate(
        runner,
        done.dataset.market,
        runner.features(done.dataset),
        done.dataset.folds[0].validation,
        done.settings.environment,
    ).equity
    curve = read_frame(folder.child("diagnostics.parquet"))
    looks = curve.drop_nulls("validation_return")
    kept = dict(zip(looks["frames"], looks["validation_return"], strict=True))
    assert metrics["validation_return"] == equity[-1] / equity[0] - 1
    assert metrics["validation_return"] == kept[metrics["best_frames"]]
    assert len(kept) == done.settings.algorithm.evaluation.looks
    assert metrics["frames"] == done.settings.algorithm.total_frames
    assert sum("validation return" in str(one) for one in done.said) == len(kept)
    assert {"value_loss", "entropy_loss", "explained_variance"} <= set(curve.columns)


@pytest.mark.parametrize("which", ["choices", "weights"])
def test_the_policy_is_backtested_like_any_other(
    which: str, request: pytest.FixtureRequest
) -> None:
    done: Done = request.getfixturevalue(which)
    runner = PolicyRunner.load(done.trained.reference.location)
    test = done.dataset.folds[0].test
    result = backtest(done.dataset, test, done.settings.environment, PolicyStrategy(runner))
    assert result.fills.height > 0
    assert len(result.equity) > 100


def test_an_agent_learns_when_the_features_show_the_next_return(choices: Done) -> None:
    assert choices.trained.metrics["validation_return"] > 0.5


def test_the_bundle_says_what_made_it_and_that_it_may_not_repeat(choices: Done) -> None:
    folder = choices.trained.reference.location
    members = {one["name"]: one["deterministic"] for one in verify(folder)["members"]}
    assert {name for name, deterministic in members.items() if deterministic} == {
        "policy.safetensors",
        "learner.safetensors",
        "normalizer.json",
        "spec.json",
    }
    spec = json.loads((folder.path / "spec.json").read_text())
    assert spec["versions"]["ray"]
    assert spec["configuration"]["algorithm"]["kind"] == "rllib_ppo"
    assert spec["configuration"]["algorithm"]["deterministic"] is False
    assert json.loads((folder.path / "provenance.json").read_text())["deterministic"] is False
    learned = load_file(folder.path / "learner.safetensors")
    assert {"value.weight", "value.bias", "policy.action.weight"} <= set(learned)


def test_a_training_leaves_no_ray_and_no_files_behind(short_folder: Path, home: Path) -> None:
    import psutil

    before = {child.pid for child in psutil.Process().children(recursive=True)}
    handler = signal.getsignal(signal.SIGTERM)
    settings = runs.experiment(total_frames=256, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(TrainingError, match=r"base\.f0\.s0: the weights are not finite"):
        runs.train(home.parent, synthetic.dataset(), settings)
    after = {child.pid for child in psutil.Process().children(recursive=True)}
    assert after <= before
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not list(short_folder.iterdir())
    assert not [path for path in home.iterdir() if path.name in (".ray", "ray_results")]
    assert not {"RAY_TMPDIR", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_ended_training_takes_its_processes_along(
    number: signal.Signals, short_folder: Path, tmp_path: Path
) -> None:
    import psutil

    training = subprocess.Popen(
        [sys.executable, "-m", "trade_pipeline_tests.training.rllib.runs", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert training.stdout is not None
    assert any(line.partition(" ")[0].isdigit() for line in training.stdout)  # it learns
    started = psutil.Process(training.pid).children(recursive=True)
    sockets = [one for child in started for one in child.net_connections(kind="inet")]
    listening = {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN}
    assert listening and listening <= LOOPBACK
    assert len(started) >= 4  # Ray's own and two workers
    training.send_signal(number)
    begun = time.monotonic()
    training.communicate(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=END_WITHIN_S)
    assert not alive
    assert time.monotonic() - begun < 2 * END_WITHIN_S
    assert training.returncode != 0
    assert not list(tmp_path.rglob("bundle.json"))
    if number != signal.SIGKILL:
        assert not list(short_folder.iterdir())


def test_workers_do_not_run_the_same_episodes() -> None:
    from trade_pipeline.training.rllib_network import _SeedOfWorker

    dataset = synthetic.dataset()

    def first_row(worker: int, seed: int) -> int:
        environment = TradingEnv(
            dataset.market,
            dataset.features.reshape(len(dataset.ts), -1),
            dataset.folds[0].train,
            synthetic.experiment().environment,
        )
        _, info = _SeedOfWorker(environment, worker).reset(seed=seed)
        return int(info["row"])

    # As RLlib seeds them: environment i of worker w gets w + i.
    one = [first_row(1, 1 + number) for number in range(20)]
    two = [first_row(2, 2 + number) for number in range(20)]
    assert one[1:] != two[:-1]
    assert one == [first_row(1, 1 + number) for number in range(20)]
