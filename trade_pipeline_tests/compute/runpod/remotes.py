"""The small project with its experiment on RunPod's stand-in, and what may be asked of it."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from trade_pipeline.compute.runpod.connection import utc_now
from trade_pipeline.compute.runpod.lease import imbalances
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.settings.project import Places
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.remote_project import remote_settings, use_runpod
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.small_project import materialize, write_yaml

TRIAL = "base.f0.s0"


class Remote:
    """A copy of a prepared project whose experiment `alone` runs on the fake.

    Attributes:
        local_version: of the policy as this machine trained it.
        settings: of the compute `runpod`.
    """

    def __init__(self, prepared: Path, root: Path, fake: FakeRunPod) -> None:
        project = root / "project"
        shutil.copytree(prepared, project, dirs_exist_ok=True)
        self.fake = fake
        self.places = Places(configs=project / "configs", store=project / "store")
        self.local_version = self.version
        shutil.rmtree(self.policy.path)
        self.settings = remote_settings(fake, root / "mount")
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

    @property
    def ledger(self) -> Ledger:
        """Of this host."""
        return Ledger(layout.leases(self.places.store), utc_now)

    @property
    def volume_folder(self) -> Path:
        """Files of the volume."""
        (volume,) = self.fake.volumes.values()
        return volume.path

    def train(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """Materialize the policy."""
        return materialize(self.places, instance, "alone/policy", first=TRIAL)

    def failure_of(self, instance: dg.DagsterInstance) -> str:
        """The sentence that a materialization fails with."""
        outcome = self.train(instance)
        assert not outcome.success
        (failed,) = [event for event in outcome.all_events if event.is_step_failure]
        said = failed.step_failure_data.user_failure_data
        assert said is not None
        return str(said.description)

    def require_balance(self) -> None:
        """No pod is left, and the ledger says what RunPod would."""
        assert self.fake.live == []
        leases = self.ledger.leases()
        assert imbalances(leases, []) == []
        known = {lease.pod_id for lease in leases if lease.pod_id}
        assert known == {charge.pod_id for charge in self.fake.charges}
        assert not [lease for lease in leases if lease.is_open]

    def when(self, holds: Callable[[], bool], do: Callable[[], None]) -> None:
        """Do something, once, as soon as something holds; from a thread of its own."""

        def wait() -> None:
            until = time.monotonic() + 60
            while not holds() and time.monotonic() < until:
                time.sleep(0.02)
            do()

        threading.Thread(target=wait, daemon=True).start()
