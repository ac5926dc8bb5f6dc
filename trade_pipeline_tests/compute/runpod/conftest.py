"""Fixtures of tests that run whole tasks on RunPod's stand-in."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

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
def remote(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """The project on RunPod; no pod may look into its store."""
    with FakeRunPod(forbidden=[tmp_path / "project"]) as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        yield Remote(prepared, tmp_path, fake)
        assert fake.leaks == []
        assert fake.unexpected == []
        assert fake.faults.unused == []


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance in a folder."""
    with dg.instance_for_test(temp_dir=str(tmp_path)) as found:
        yield found
