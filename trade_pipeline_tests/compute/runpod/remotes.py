"""The small project with its experiment on RunPod's stand-in, and what may be asked of it."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from trade_pipeline.settings.project import Places
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.hosts import RemoteHost
from trade_pipeline_tests.compute.runpod.remote_project import (
    remote_settings,
    start_run,
    use_runpod,
)
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.small_project import materialize, write_yaml

TRIAL = "base.f0.s0"


class Remote(RemoteHost):
    """A copy of a prepared project whose experiment `alone` runs on the fake."""

    def __init__(self, prepared: Path, root: Path, fake: FakeRunPod) -> None:
        project = root / "project"
        shutil.copytree(prepared, project, dirs_exist_ok=True)
        self.places = Places(configs=project / "configs", store=project / "store")
        self.local_version = self.version
        shutil.rmtree(self.policy.path)
        super().__init__(fake, self.places.store, remote_settings(fake, root / "mount"))
        use_runpod(self.places, self.settings, "alone")

    def use(self, algorithm: dict[str, Any] | None = None, **compute: Any) -> None:
        """Change keys of the compute, and of the experiment's algorithm."""
        self.settings |= compute
        use_runpod(self.places, self.settings, "alone")
        path = self.places.configs / "experiments" / "alone.yaml"
        experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
        experiment["algorithm"] |= algorithm or {}
        write_yaml(path, experiment)

    @property
    def policy(self) -> ArtifactLocation:
        """Where the trial's policies are."""
        return layout.experiment_bundle(self.places.store, "alone", "policy", TRIAL)

    @property
    def version(self) -> str | None:
        """Of the policy that is current."""
        return bundles.current_version(self.policy)

    def run(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """Materialize the policy."""
        return materialize(self.places, instance, "alone/policy", first=TRIAL)

    def started(self, home: Path) -> "subprocess.Popen[str]":
        """Materialize the policy in a process of its own."""
        return start_run(self.places, home, self.fake, "alone/policy", TRIAL)

    def trains(self) -> bool:
        """Whether a pod learns and has saved a state to go on from."""
        return bool(self.on_volume("store/checkpoints/**/current.json"))

    @contextmanager
    def held_in_training(self) -> Iterator[None]:
        """Wait until a pod has saved a state; meanwhile it waits within that save."""
        key = layout.checkpoint(self.volume_folder / "trade_pipeline" / "store", "alone", TRIAL)
        with frame_lock(key):
            while not self.on_volume("store/staging/checkpoint-*/bundle.json"):
                time.sleep(0.02)
        while True:  # it takes the lock for what it has staged, and again before it goes on
            with frame_lock(key):
                if self.trains():
                    yield
                    return
