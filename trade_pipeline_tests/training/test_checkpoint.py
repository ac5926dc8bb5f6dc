"""A training that is killed goes on from its checkpoint and ends as if nothing had happened."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.checkpoint import Checkpoints
from trade_pipeline.training.dataset import load_dataset, write_dataset
from trade_pipeline.training.specification import specification
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.algorithms import (
    ALGORITHMS,
    CASES,
    FRAMES,
    NAMES,
    ONE,
    experiment,
    train_one,
)

LONG = 640_000  # frames: seconds, also on a quick machine
ROOT = Path(__file__).resolve().parents[2]


class Killed(BaseException):
    """Ends a training where it stands, as a signal would."""


def killed_at(frames: int) -> Any:
    def report(said: Any) -> None:
        if getattr(said, "frames", 0) >= frames:
            raise Killed

    return report


def at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress at each step, so that a training can be ended at any of them."""
    monkeypatch.setattr("trade_pipeline.training.callbacks.REPORT_EVERY_SECONDS", 0.0)


@pytest.mark.parametrize(("name", "keys", "more"), CASES, ids=NAMES)
def test_a_training_killed_three_times_ends_with_the_same_bundle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    keys: tuple[str, ...],
    more: dict[str, Any],
) -> None:
    at_each_step(monkeypatch)
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    for number, frames in enumerate((200, 610, 1000)):
        with pytest.raises(Killed):
            train_one(
                ArtifactLocation(tmp_path, f"killed{number}"),
                name,
                keys,
                report=killed_at(frames),
                checkpoints=key,
                **more,
            )
    said: list[str] = []
    resumed = train_one(
        ArtifactLocation(tmp_path, "resumed"),
        name,
        keys,
        report=lambda line: said.append(str(line)),
        checkpoints=key,
        **more,
    )
    whole = train_one(ArtifactLocation(tmp_path, "whole"), name, keys, **more)
    assert any("goes on from its checkpoint" in line for line in said)
    assert resumed.reference.version == whole.reference.version
    first, second = (
        read_frame(one.reference.location.child("diagnostics.parquet")) for one in (resumed, whole)
    )
    assert first.equals(second)
    assert not key.path.exists()


def test_early_stopping_counts_looks_from_before_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_each_step(monkeypatch)
    more = {"evaluation": {"looks": 12, "patience": 2}, "total_frames": 4 * FRAMES}
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo", **more)
    assert whole.metrics["stopped_early"] == 1
    stopped_at = whole.metrics["frames"]
    assert stopped_at is not None
    with pytest.raises(Killed):
        train_one(
            ArtifactLocation(tmp_path, "killed"),
            "ppo",
            report=killed_at(int(stopped_at) - 300),
            checkpoints=key,
            **more,
        )
    resumed = train_one(ArtifactLocation(tmp_path, "resumed"), "ppo", checkpoints=key, **more)
    assert resumed.reference.version == whole.reference.version
    assert resumed.metrics["frames"] == stopped_at
    assert resumed.metrics["best_frames"] == whole.metrics["best_frames"]


def test_a_training_killed_as_it_stops_early_stops_again_at_the_same_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_each_step(monkeypatch)
    more = {"evaluation": {"looks": 12, "patience": 2, "keep": "last"}, "total_frames": 4 * FRAMES}
    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo", **more)
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    frames = int(whole.metrics["frames"] or 0)
    for number, moment in enumerate(("stops early", f"{frames} of {4 * FRAMES} frames")):

        def report(said: Any, moment: str = moment) -> None:
            if moment in str(said):
                raise Killed

        with pytest.raises(Killed):
            train_one(
                ArtifactLocation(tmp_path, f"killed{number}"),
                "ppo",
                report=report,
                checkpoints=key,
                **more,
            )
    resumed = train_one(ArtifactLocation(tmp_path, "resumed"), "ppo", checkpoints=key, **more)
    assert resumed.reference.version == whole.reference.version
    assert resumed.metrics["frames"] == frames


@pytest.mark.parametrize("name", ["ppo", "sac"])
def test_rows_of_diagnostics_over_several_rollouts_survive_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    at_each_step(monkeypatch)
    monkeypatch.setattr("trade_pipeline.training.callbacks.MOST_ROWS", 2)
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    with pytest.raises(Killed):
        train_one(
            ArtifactLocation(tmp_path, "killed"), name, report=killed_at(460), checkpoints=key
        )
    resumed = train_one(ArtifactLocation(tmp_path, "resumed"), name, checkpoints=key)
    whole = train_one(ArtifactLocation(tmp_path, "whole"), name)
    first, second = (
        read_frame(one.reference.location.child("diagnostics.parquet")) for one in (resumed, whole)
    )
    assert any(column.startswith("gradient_norm/") for column in first.columns)
    assert first.equals(second)


def test_a_second_training_of_a_trial_says_that_it_waits_and_clears_away_what_a_kill_left(
    tmp_path: Path,
) -> None:
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    said: list[str] = []
    first = Checkpoints(key, "a" * 64)
    with pytest.raises(Killed), first.alone(said.append):
        bundles.staging(tmp_path, first._staged)  # as a kill in the middle of `save` leaves it
        raise Killed
    has_it, freed = threading.Event(), threading.Event()

    def other() -> None:
        with first.alone(said.append):
            has_it.set()
            freed.wait()

    def report(line: Any) -> None:
        said.append(str(line))
        if "waits" in str(line):
            freed.set()

    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo")
    running = threading.Thread(target=other, daemon=True)
    running.start()
    has_it.wait()
    assert not list((tmp_path / "staging").iterdir())
    second = train_one(ArtifactLocation(tmp_path, "second"), "ppo", report=report, checkpoints=key)
    running.join()
    assert second.reference.version == whole.reference.version
    assert any("waits: another run trains this trial" in line for line in said)


def test_what_is_not_finite_survives_a_checkpoint(tmp_path: Path) -> None:
    kept = Checkpoints(ArtifactLocation(tmp_path, "checkpoints/demo"), "f" * 64)
    tree = {"a": np.float64("nan"), "b": [float("inf"), (1, None)], 3: np.arange(2.0)}
    kept.save(tree)
    found = kept.load()
    assert np.isnan(found["a"])
    assert found["b"] == [float("inf"), (1, None)]
    np.testing.assert_array_equal(found[3], [0.0, 1.0])


@pytest.mark.parametrize("file", ["arrays.npz", "state.json", "bundle.json"])
def test_a_training_whose_first_checkpoint_lost_a_file_begins_anew(
    tmp_path: Path, file: str
) -> None:
    """As a kill in the middle of removing it, or a disk, would leave it."""
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    with pytest.raises(Killed):
        train_one(ArtifactLocation(tmp_path, "killed"), "ppo", report=killed_at(1), checkpoints=key)
    (bundles.current(key).path / file).unlink()
    again = train_one(ArtifactLocation(tmp_path, "again"), "ppo", checkpoints=key)
    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo")
    assert again.reference.version == whole.reference.version
    assert not key.path.exists()


def test_a_kill_within_the_first_save_is_no_damage(tmp_path: Path) -> None:
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    with pytest.raises(Killed):
        train_one(ArtifactLocation(tmp_path, "killed"), "ppo", report=killed_at(1), checkpoints=key)
    (key.path / "current.json").unlink()  # the last that a save writes
    said: list[str] = []
    again = train_one(
        ArtifactLocation(tmp_path, "again"),
        "ppo",
        report=lambda line: said.append(str(line)),
        checkpoints=key,
    )
    assert not any("checkpoint" in line for line in said)
    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo")
    assert again.reference.version == whole.reference.version
    assert not key.path.exists()


@pytest.mark.parametrize("damage", ["byte", "other settings", "pointer"])
def test_a_checkpoint_that_is_damaged_or_anothers_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    at_each_step(monkeypatch)
    key = ArtifactLocation(tmp_path, "checkpoints/demo")
    with pytest.raises(Killed):
        train_one(
            ArtifactLocation(tmp_path, "killed"), "ppo", report=killed_at(600), checkpoints=key
        )
    more: dict[str, Any] = {}
    if damage == "byte":
        file = bundles.current(key).path / "arrays.npz"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "other settings":
        more = {"gamma": 0.9}
    else:
        (key.path / "current.json").write_text("{", encoding="utf-8")
    said: list[str] = []
    resumed = train_one(
        ArtifactLocation(tmp_path, "resumed"),
        "ppo",
        report=lambda line: said.append(str(line)),
        checkpoints=key,
        **more,
    )
    assert not any("goes on" in line for line in said)
    assert any("another training's or damaged" in line for line in said)
    whole = train_one(ArtifactLocation(tmp_path, "whole"), "ppo", **more)
    assert resumed.reference.version == whole.reference.version


def described(store: Path, staging: str, save_every_s: float) -> Path:
    """A task file of a training that takes some seconds."""
    content = experiment("ppo", total_frames=LONG)
    dataset = ArtifactLocation(store, "dataset")
    if not dataset.path.exists():
        write_dataset(synthetic.dataset(ONE), dataset)
    spec = specification(
        experiment="demo",
        settings=content,
        trial="base.f0.s1",
        dataset=dataset,
        staging=ArtifactLocation(store, staging),
        provenance={},
        save_every_s=save_every_s,
    )
    file = store / f"{staging}.task.json"
    file.write_text(
        json.dumps({"module": "trade_pipeline.training.task", "spec": spec}), encoding="utf-8"
    )
    return file


def worker(task: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "trade_pipeline.compute.worker", str(task)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_killed_at_random_points_is_gone_on_from(tmp_path: Path) -> None:
    """SIGKILL, three times, each some moments after the training has a checkpoint."""
    generator = random.Random(7)
    key = layout.checkpoint(tmp_path, "demo", "base.f0.s1")
    for number in range(3):
        process = worker(described(tmp_path, f"killed{number}", save_every_s=0.05))
        seen = {None, bundles.current_version(key)}
        while len(seen) < 4:  # its first says no more than the one that it found
            seen.add(bundles.current_version(key))
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(generator.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    resumed = worker(described(tmp_path, "resumed", save_every_s=60.0))
    _, said = resumed.communicate()
    assert resumed.returncode == 0, said
    log = (tmp_path / "resumed" / "job.log").read_text(encoding="utf-8")
    assert "goes on from its checkpoint at 0 frames" not in log
    assert "goes on from its checkpoint" in log
    dataset = load_dataset(ArtifactLocation(tmp_path, "dataset"))
    whole = train_one(
        ArtifactLocation(tmp_path, "whole"), "ppo", dataset=dataset, total_frames=LONG
    )
    version = bundles.verify(ArtifactLocation(tmp_path, "resumed"))["version"]
    assert version == whole.reference.version
    assert not key.path.exists()


def test_every_algorithm_kind_is_tried() -> None:
    kinds = {settings["kind"] for settings in ALGORITHMS.values()}
    assert kinds == {"ppo", "a2c", "recurrent_ppo", "dqn", "sac", "td3"}
