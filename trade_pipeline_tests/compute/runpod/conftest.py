"""Fixtures of tests that run whole tasks on RunPod's stand-in."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from trade_pipeline_tests.compute.runpod.errands import Errand
from trade_pipeline_tests.compute.runpod.hosts import served
from trade_pipeline_tests.compute.runpod.pods import Pod
from trade_pipeline_tests.compute.runpod.remotes import TRIAL, Remote
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.small_project import import_all, materialize, write_project


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its datasets and one policy trained here."""
    root = tmp_path_factory.mktemp("prepared")
    places = write_project(root / "project")
    with dg.instance_for_test(temp_dir=str(root)) as instance:
        import_all(places, instance)
        assert materialize(places, instance, "alone/policy", first=TRIAL).success
    return root / "project"


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeRunPod]:
    """RunPod, with its keys in this process's environment."""
    with served(tmp_path) as fake:
        yield fake


@pytest.fixture
def remote(prepared: Path, tmp_path: Path, fake: FakeRunPod) -> Remote:
    """The project on RunPod."""
    return Remote(prepared, tmp_path, fake)


@pytest.fixture
def errand(tmp_path: Path, fake: FakeRunPod) -> Errand:
    """A small task on RunPod."""
    return Errand(tmp_path, fake)


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in files: one in memory refuses a reader while it is written to."""
    (home := tmp_path / "dagster_instance").mkdir()
    overrides = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(home), overrides=overrides) as found:
        yield found


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """A pod without RunPod around it."""
    pod = Pod(tmp_path / "root")
    yield pod
    pod.close()
