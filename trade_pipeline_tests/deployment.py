"""A small project, imported and trained once for all workers; tests that change it take a copy."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import pytest

from trade_pipeline.settings.project import Places
from trade_pipeline_tests.small_project import import_all, train_all, write_project


class Deployment:
    """A project's folders and the Dagster instance that knows its history."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = Places(configs=root / "configs", store=root / "store")
        home = root / "dagster"
        home.mkdir(exist_ok=True)
        self.instance = dg.DagsterInstance.local_temp(
            str(home), overrides={"telemetry": {"enabled": False}}
        )

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that must stand in a file of the project."""
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")


def built_once(root: Path, build: str) -> Path:
    """A template folder, built by the first worker that needs it."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{build}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = root / build
        if not finished.exists():
            started = root / f"{build}.started"
            shutil.rmtree(started, ignore_errors=True)
            if build == "imported":
                write_project(started)
            else:
                shutil.copytree(built_once(root, "imported"), started)
            deployment = Deployment(started)
            (import_all if build == "imported" else train_all)(
                deployment.places, deployment.instance
            )
            deployment.instance.dispose()
            started.rename(finished)
    return finished


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Folder of the templates, shared by all xdist workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return (base if worker_id == "master" else base.parent) / "templates"


@contextmanager
def copied(template: Path, root: Path) -> Iterator[Deployment]:
    """A copy of a template, for one test to change."""
    shutil.copytree(template, root)
    deployment = Deployment(root)
    yield deployment
    deployment.instance.dispose()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Deployment]:
    """The small project with nothing materialized."""
    write_project(tmp_path / "project")
    deployment = Deployment(tmp_path / "project")
    yield deployment
    deployment.instance.dispose()


@pytest.fixture
def imported(templates: Path, tmp_path: Path) -> Iterator[Deployment]:
    """A copy with bars, manifests, features and datasets."""
    with copied(built_once(templates, "imported"), tmp_path / "project") as deployment:
        yield deployment


@pytest.fixture
def trained(templates: Path, tmp_path: Path) -> Iterator[Deployment]:
    """A copy in which everything is materialized."""
    with copied(built_once(templates, "trained"), tmp_path / "project") as deployment:
        yield deployment
