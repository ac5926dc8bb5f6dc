"""The trial ledger: every training ever begun counts once, whatever became of it."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.storage.location import StorageError
from trade_pipeline.training import ledger
from trade_pipeline_tests.small_project import EXPERIMENT

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SETTINGS = ExperimentSettings.model_validate(EXPERIMENT)


def entry(trial: str = "base.f0.s0", **changes: Any) -> ledger.Entry:
    """What a run enters; `gamma` changes the configuration."""
    _, fold, seed = trial.split(".")
    environment, algorithm = SETTINGS.variant("base")
    chosen = {
        "experiment": "alone",
        "trial": Trial(trial, "base", int(fold[1:]), int(seed[1:])),
        "environment": environment,
        "algorithm": algorithm.model_copy(update={"gamma": changes.pop("gamma", 0.99)}),
        "dataset_version": "d" * 32,
        "run": "some-run",
        "began": NOW,
        **changes,
    }
    return ledger.entry(**chosen)  # type: ignore[arg-type]


def _begin_many(store: Path) -> None:
    for _ in range(20):
        ledger.begin(store, entry())


def test_a_training_counts_from_its_beginning(tmp_path: Path) -> None:
    assert ledger.trials_tried(tmp_path, experiment="alone") == (0, 0)
    ledger.begin(tmp_path, entry())
    assert ledger.trials_tried(tmp_path, experiment="alone") == (1, 1)
    assert ledger.entries(tmp_path)["outcome"].to_list() == ["begun"]


@pytest.mark.parametrize("outcome", ["finished", "failed", "cancelled"])
def test_its_end_is_told_and_changes_no_count(tmp_path: Path, outcome: ledger.Outcome) -> None:
    version = "f" * 32 if outcome == "finished" else None
    ledger.end(ledger.begin(tmp_path, entry()), outcome, version)
    assert ledger.trials_tried(tmp_path) == (1, 1)
    (row,) = ledger.entries(tmp_path).to_dicts()
    assert row == {
        "experiment": "alone",
        "trial": "base.f0.s0",
        "dataset_version": "d" * 32,
        "configuration": ledger.configuration_hash(*SETTINGS.variant("base")),
        "seed": 0,
        "fold": 0,
        "run": "some-run",
        "began": NOW,
        "outcome": outcome,
        "version": version,
    }


def test_a_trial_trained_again_is_the_same_trial_under_any_name_and_time(tmp_path: Path) -> None:
    later = NOW.astimezone(timezone(timedelta(hours=9))) + timedelta(days=1)
    ledger.begin(tmp_path, entry())
    ledger.begin(tmp_path, entry(began=later, run="another"))
    ledger.begin(tmp_path, entry(trial="other.f0.s0"))
    ledger.begin(tmp_path, entry(experiment="pair"))
    assert ledger.entries(tmp_path).height == 4
    assert ledger.trials_tried(tmp_path) == (1, 1)
    assert ledger.trials_tried(tmp_path, experiment="pair") == (1, 1)


def test_trials_are_data_configuration_seed_and_fold_configurations_the_first_two(
    tmp_path: Path,
) -> None:
    for one in (
        entry(),
        entry("base.f0.s1"),
        entry("base.f1.s0"),
        entry(gamma=0.5),
        entry(dataset_version="e" * 32),
    ):
        ledger.end(ledger.begin(tmp_path, one), "finished", "f" * 32)
    assert ledger.trials_tried(tmp_path) == (5, 3)
    assert ledger.trials_tried(tmp_path, dataset_version="d" * 32) == (4, 2)
    assert ledger.trials_tried(tmp_path, dataset_version="e" * 32) == (1, 1)
    assert ledger.trials_tried(tmp_path, experiment="pair") == (0, 0)


def test_processes_that_begin_the_same_trial_at_once_lose_no_entry(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_begin_many, [tmp_path, tmp_path]))
    assert ledger.entries(tmp_path).height == 40
    assert ledger.trials_tried(tmp_path) == (1, 1)


def test_a_training_killed_at_once_stays_entered(tmp_path: Path) -> None:
    killed = (
        "import os, signal, sys; from pathlib import Path\n"
        "from trade_pipeline_tests.training.test_ledger import entry, ledger\n"
        "ledger.begin(Path(sys.argv[1]), entry())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert ledger.trials_tried(tmp_path) == (1, 1)
    assert ledger.entries(tmp_path)["outcome"].to_list() == ["begun"]


def test_what_stands_in_the_ledger_is_never_written_again(tmp_path: Path) -> None:
    first = ledger.begin(tmp_path, entry())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    ledger.end(first, "failed")
    ledger.end(ledger.begin(tmp_path, entry()), "finished", "f" * 32)
    assert {path: path.read_bytes() for path in before} == before
    assert len(list(tmp_path.rglob("*.json"))) == 4


@pytest.mark.parametrize(
    "content", ["", "[]", json.dumps({"experiment": "alone"}), "\x80\x04payload"], ids=repr
)
def test_a_damaged_entry_is_named_and_not_counted_around(tmp_path: Path, content: str) -> None:
    damaged = ledger.begin(tmp_path, entry()).began
    ledger.begin(tmp_path, entry("base.f0.s1"))
    damaged.path.write_text(content, encoding="latin-1")
    with pytest.raises(StorageError) as caught:
        ledger.trials_tried(tmp_path)
    assert str(damaged) in str(caught.value)
    assert "Restore the file" in str(caught.value)
