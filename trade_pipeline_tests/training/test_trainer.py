import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from trade_pipeline.settings.environment import StratifiedStarts
from trade_pipeline.storage.bundles import verify
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training import task
from trade_pipeline.training.callbacks import Progress
from trade_pipeline.training.dataset import Dataset, write_dataset
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.specification import specification
from trade_pipeline.training.trainer import (
    COMPILING,
    TrainedPolicy,
    TrainingError,
    start_labels,
    train,
)
from trade_pipeline.training.validation import evaluate
from trade_pipeline_tests.training import synthetic

ONE, TWO = ("demo.A.1h",), ("demo.A.1h", "demo.B.1h")


def ticking(step: float) -> Callable[[], float]:
    """A clock that moves by `step` seconds each time it is read."""
    ticks: Iterator[int] = count()
    return lambda: next(ticks) * step


def train_one(
    store: Path,
    folder: str,
    keys: tuple[str, ...] = ONE,
    seed: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
    dataset: Dataset | None = None,
    tensorboard: bool = False,
    **algorithm: Any,
) -> TrainedPolicy:
    experiment = synthetic.experiment(keys, algorithm=algorithm)
    environment, settings = experiment.variant("base")
    return train(
        dataset=dataset or synthetic.dataset(keys),
        environment=environment,
        algorithm=settings,
        trial=experiment.trials()[f"base.f0.s{seed}"],
        staging=ArtifactLocation(store, folder),
        report=report,
        clock=ticking(0.01),
        provenance={"run_id": folder},
        tensorboard=tensorboard,
    )


def weights(trained: TrainedPolicy) -> dict[str, np.ndarray]:
    return load_file(trained.reference.location.path / "policy.safetensors")


@pytest.mark.parametrize("keys", [ONE, TWO], ids=["brackets", "weights"])
def test_the_same_seed_gives_the_same_version_and_another_seed_other_weights(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    first = train_one(tmp_path, "first", keys)
    np.random.default_rng().random()
    torch.rand(3)  # what ran before must not matter
    again = train_one(tmp_path, "again", keys)
    other = train_one(tmp_path, "other", keys, seed=1)
    assert first.reference.version == again.reference.version != other.reference.version
    assert not np.array_equal(weights(first)["action.weight"], weights(other)["action.weight"])


def test_bars_after_the_validation_part_change_nothing_that_is_learned(tmp_path: Path) -> None:
    honest = synthetic.dataset(ONE)
    first = int(honest.folds[0].test[0, 0])
    arrays = {}
    for name in ("open", "high", "low", "close", "volume", "features"):
        arrays[name] = getattr(honest, name).copy()
        arrays[name][first:] *= 3
    other = replace(honest, **arrays)
    assert other.features.tobytes() != honest.features.tobytes()
    found = [
        train_one(tmp_path, name, dataset=dataset)
        for name, dataset in (("honest", honest), ("other", other))
    ]
    assert found[0].reference.version == found[1].reference.version


def test_training_moves_the_weights_away_from_their_start(tmp_path: Path) -> None:
    last: dict[str, Any] = {"evaluation": {"looks": 1}}
    longer = weights(train_one(tmp_path, "longer", **last))
    shorter = weights(train_one(tmp_path, "shorter", total_frames=256, **last))
    untouched = weights(
        train_one(tmp_path, "untouched", total_frames=256, learning_rate=1e-30, **last)
    )
    for name in longer:
        assert not np.array_equal(shorter[name], untouched[name])
        assert not np.array_equal(longer[name], shorter[name])


def test_the_bundle_holds_its_members_and_only_four_make_the_version(tmp_path: Path) -> None:
    trained = train_one(tmp_path, "one", tensorboard=True)
    folder = trained.reference.location
    members = {one["name"]: one["deterministic"] for one in verify(folder)["members"]}
    assert {name for name, deterministic in members.items() if deterministic} == {
        "policy.safetensors",
        "learner.safetensors",
        "normalizer.json",
        "spec.json",
    }
    assert {"provenance.json", "diagnostics.parquet", "job.log"} <= set(members)
    assert any(name.startswith("tb/") for name in members)
    assert not [name for name in members if name.endswith((".pkl", ".pt", ".zip"))]
    provenance = json.loads((folder.path / "provenance.json").read_text())
    assert provenance["run_id"] == "one"
    assert "validation return" in (folder.path / "job.log").read_text()
    spec = json.loads((folder.path / "spec.json").read_text())
    assert {"torch", "stable-baselines3", "numpy", "numba", "gymnasium", "python"} <= set(
        spec["versions"]
    )
    assert spec["seed"] == 0
    assert spec["threads"] == 1
    assert spec["observation"]["feature_names"] == ["move", "constant"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_learning_curve_is_kept_and_the_validation_return_is_that_of_the_bundle(
    tmp_path: Path, keep: str
) -> None:
    dataset = synthetic.dataset()
    trained = train_one(
        tmp_path,
        "one",
        seed=1,
        dataset=dataset,
        evaluation={"keep": keep},
        learning_rate=3e-3,  # too high: the best look is not the last
    )
    curve = read_frame(trained.reference.location.child("diagnostics.parquet"))
    assert curve["frames"].to_list() == [256, 512, 768, 1024]
    assert curve["validation_return"].null_count() == 0
    assert {"value_loss", "entropy_loss", "ep_rew_mean", "approx_kl"} <= set(curve.columns)
    runner = PolicyRunner.load(trained.reference.location)
    environment = synthetic.experiment().environment
    equity = evaluate(
        runner,
        dataset.market,
        runner.features(dataset),
        dataset.folds[0].validation,
        environment,
    ).equity
    earned = equity[-1] / equity[0] - 1
    returns = curve["validation_return"]
    chosen = int(returns.arg_max() or 0) if keep == "best" else 3
    assert (keep == "best") == (chosen != 3)  # else both would be the same
    assert trained.metrics["validation_return"] == returns[chosen] == earned
    assert trained.metrics["best_frames"] == curve["frames"][chosen]


def test_a_training_without_improvement_stops_early_and_keeps_its_best(tmp_path: Path) -> None:
    said: list[str] = []
    stopped = train_one(
        tmp_path,
        "stopped",
        report=lambda one: said.append(str(one)),
        total_frames=8192,
        evaluation={"looks": 32, "patience": 2},
    )
    curve = read_frame(stopped.reference.location.child("diagnostics.parquet"))
    returns = curve["validation_return"].drop_nulls().to_list()
    assert stopped.metrics["stopped_early"] == 1
    assert stopped.metrics["frames"] is not None and stopped.metrics["frames"] < 8192
    assert max(returns) == returns[-3] == stopped.metrics["validation_return"]
    assert any("stops early after 2 looks" in line for line in said)
    log = (stopped.reference.location.path / "job.log").read_text(encoding="utf-8")
    assert "stops early after 2 looks" in log


def test_progress_comes_about_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    said: list[Progress | str] = []
    train_one(tmp_path, "one", report=said.append, total_frames=4096)
    seen = [one for one in said if isinstance(one, Progress)]
    assert sum("validation return" in str(one) for one in said) == 4
    # 256 vector steps, the clock read once or twice in each: 0.01 s a reading.
    assert 2 <= len(seen) <= 8
    assert [one.frames for one in seen] == sorted(one.frames for one in seen)
    assert seen[-1].frames == seen[-1].total_frames == 4096
    assert seen[-1].eta_seconds == 0
    assert seen[0].eta_seconds > 0
    assert seen[0].frames_per_second > 0
    assert seen[-1].mean_episode_reward is not None
    assert str(seen[-1]).startswith("4096 of 4096 frames, ")
    again: list[Progress | str] = []
    train_one(tmp_path, "two", report=again.append, total_frames=256)
    assert COMPILING not in again


@pytest.mark.parametrize("keep", ["best", "last"])
def test_later_rows_do_not_change_what_is_learned(tmp_path: Path, keep: str) -> None:
    """Validation may choose among policies; nothing else sees rows after the training part."""
    dataset = synthetic.dataset()
    fold = dataset.folds[0]
    first = int((fold.test if keep == "best" else fold.validation)[0, 0])
    features, close = dataset.features.copy(), dataset.close.copy()
    features[first:] += 1
    close[first:] = dataset.open[first:]
    changed = replace(dataset, features=features, close=close)
    one = train_one(tmp_path, "one", dataset=dataset, evaluation={"keep": keep})
    two = train_one(tmp_path, "two", dataset=changed, evaluation={"keep": keep})
    assert one.reference.version == two.reference.version


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"base\.f0\.s0: the weights are not finite"):
        train_one(tmp_path, "one", learning_rate=1e30, max_grad_norm=1e30)


def test_stratified_starts_take_their_labels_from_a_feature() -> None:
    dataset, trial = synthetic.dataset(), synthetic.experiment().trials()["base.f0.s0"]
    environment = synthetic.experiment().environment
    assert start_labels(dataset, environment, trial) is None
    name = dataset.feature_names[1]
    labelled = environment.model_copy(
        update={"starts": StratifiedStarts(kind="stratified", label=name)}
    )
    labels = start_labels(dataset, labelled, trial)
    assert labels is not None
    assert labels.tolist() == dataset.features[:, 0, 1].tolist()
    unknown = environment.model_copy(
        update={"starts": StratifiedStarts(kind="stratified", label="regime")}
    )
    with pytest.raises(TrainingError, match=rf"starts\.label 'regime' is no feature.*{name}"):
        start_labels(dataset, unknown, trial)


def test_an_experiment_with_stratified_starts_trains_and_is_validated(tmp_path: Path) -> None:
    original = synthetic.dataset()
    labels = np.arange(len(original.ts)) % 3
    features = np.concatenate([original.features[:, :, :1], labels[:, None, None]], axis=2)
    dataset = replace(original, features=features.astype(np.float32))
    starts = {"kind": "stratified", "label": dataset.feature_names[1]}
    experiment = synthetic.experiment(environment={"starts": starts})
    environment, algorithm = experiment.variant("base")
    trained = train(
        dataset=dataset,
        environment=environment,
        algorithm=algorithm,
        trial=experiment.trials()["base.f0.s0"],
        staging=ArtifactLocation(tmp_path, "one"),
        report=lambda progress: None,
        clock=ticking(0.01),
        tensorboard=False,
    )
    assert trained.metrics["validation_return"] is not None


def test_an_agent_learns_when_the_features_show_the_next_return(tmp_path: Path) -> None:
    dataset = synthetic.dataset()
    opened = dataset.open[:, 0]
    ahead = np.zeros(len(opened), np.float32)
    ahead[:-2] = np.log(opened[2:] / opened[1:-1])
    leaked = replace(dataset, features=np.stack([ahead, 0 * ahead], axis=1)[:, None, :])
    trained = train_one(tmp_path, "one", dataset=leaked, total_frames=16_384, gamma=0.5, epochs=4)
    assert trained.metrics["validation_return"] is not None
    assert trained.metrics["validation_return"] > 0.5


def described(store: Path, trial: str = "base.f0.s1") -> dict[str, Any]:
    reference = write_dataset(synthetic.dataset(), ArtifactLocation(store, "staging/dataset"))
    staging = ArtifactLocation(store, "staging/policy")
    return json.loads(
        json.dumps(
            specification(
                "demo",
                synthetic.experiment(),
                trial,
                reference.location,
                staging,
                {"commit": "unknown"},
            )
        )
    )


def test_a_task_runs_from_json_and_answers_in_json(tmp_path: Path) -> None:
    seen: list[str] = []
    result = task.run(described(tmp_path), lambda one: seen.append(str(one)), ticking(0.01))
    assert json.loads(json.dumps(result)) == result
    bundle = ArtifactLocation(tmp_path, result["staging"])
    assert verify(bundle)["version"] == result["version"]
    assert result["metrics"]["frames"] == 1024
    assert any(line.startswith("1024 of 1024 frames") for line in seen)
    trained = PolicyRunner.load(bundle).specification
    dataset = verify(ArtifactLocation(tmp_path, "staging/dataset"))
    assert trained["dataset_version"] == dataset["version"]
    assert trained["seed"] == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trial", "base.f0.s7", r"experiment demo: no trial 'base\.f0\.s7'"),
        ("task", "dance", "'dance' is unknown"),
    ],
)
def test_a_task_names_what_it_does_not_know(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    with pytest.raises(task.TaskError, match=message):
        task.run(described(tmp_path) | {key: value}, print, ticking(0.01))


def test_describing_a_task_does_not_load_torch() -> None:
    code = (
        "import sys, trade_pipeline.training.specification; "
        "sys.exit('torch' in sys.modules or 'stable_baselines3' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
