"""Cancel in the web UI, as the UI itself does it: over GraphQL."""

import os
from pathlib import Path

import pytest

from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.web.graphql import UIRun
from trade_pipeline_tests.web.serving import serving

TRIAL = "base.f0.s0"


def workers(store: Path) -> list[int]:
    """Processes that run a task of this store."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "trade_pipeline.compute.worker" in command and str(store) in command:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_a_cancelled_training_ends_within_seconds_and_leaves_nothing(imported: Deployment) -> None:
    file = "configs/experiments/alone.yaml"
    imported.edit(file, "total_frames: 1024", "total_frames: 100000000")
    store = imported.places.store
    with serving(imported) as address:
        run = UIRun(address, TRIAL)
        key = layout.checkpoint(store, "alone", TRIAL)
        run.wait_for("a checkpoint", 400, lambda: bundles.current_version(key) is not None)
        (training,) = workers(store)
        run.terminate()
        run.wait_for("the end of the training", 15, lambda: not workers(store))
        run.wait_for("the end of the run", 60, lambda: run.status == "CANCELED")
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
    assert list((store / "staging").iterdir()) == []
    home = layout.experiment_bundle(store, "alone", "policy", TRIAL)
    assert bundles.current_version(home) is None
