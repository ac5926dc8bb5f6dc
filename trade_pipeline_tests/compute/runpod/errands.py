"""A task on RunPod's stand-in that takes a moment: for all that happens around a task.

The real way from `RunPodCompute` through pod and exchange and back, without a project and without
training. Start at `Errand`; run as a module it is the process of a run that is to be killed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.compute.base import Task
from trade_pipeline.compute.runpod.resource import RunPodCompute
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.hosts import RemoteHost
from trade_pipeline_tests.compute.runpod.pod_tasks import sealed
from trade_pipeline_tests.compute.runpod.pods import MODULE, PROJECT
from trade_pipeline_tests.compute.runpod.remote_project import remote_settings
from trade_pipeline_tests.fakes.runpod import FakeRunPod

VARIABLE = "TRADE_PIPELINE_TESTS_ERRAND"
KEY, CONTENT = "errand/bundle", "weights"


class Errand(RemoteHost):
    """A host that has one small task.

    Attributes:
        spec: of the task, see `pod_tasks`.
    """

    def __init__(self, root: Path, fake: FakeRunPod) -> None:
        super().__init__(fake, root / "host" / "store", remote_settings(fake, root / "mount"))
        self.store.mkdir(parents=True)
        self.spec: dict[str, Any] = {"act": "seal", "content": CONTENT}
        made_here = sealed(bundles.staging(root, "here"), CONTENT)
        self.local_version = made_here["version"]

    def use(self, act: str | None = None, **compute: Any) -> None:
        """Change the task's act and keys of the compute."""
        self.spec |= {} if act is None else {"act": act, "word": "no"}
        self.settings |= compute

    @property
    def version(self) -> str | None:
        """Of the bundle that is current."""
        return bundles.current_version(ArtifactLocation(self.store, KEY))

    def run(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """Run it in this process."""
        asset = errand(self.store, self.settings, self.spec)
        return dg.materialize([asset], instance=instance, raise_on_error=False)

    def started(self, home: Path) -> "subprocess.Popen[str]":
        """A run of it in a process of its own, which may be killed."""
        home.mkdir(exist_ok=True)
        described = {"store": str(self.store), "settings": self.settings, "spec": self.spec}
        environment = {
            "PATH": str(Path(sys.executable).parent),
            "HOME": str(home),
            VARIABLE: json.dumps(described),
            **self.fake.environment,
        }
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=PROJECT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def errand(store: Path, settings: dict[str, Any], spec: dict[str, Any]) -> dg.AssetsDefinition:
    """The asset that has the task run."""

    @dg.asset(name="errand")
    def materialized(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        staging = bundles.staging(store, "errand")
        told = {**spec, "staging": staging.key, "store": str(store)}
        compute = RunPodCompute(
            settings=RunPodComputeSettings.model_validate(settings).model_dump_json(),
            store=str(store),
            base=str(store.parent),
        )
        result = compute.run_task(context, Task(MODULE, told, staging.path))
        reference = bundles.BundleReference(staging, result["version"])
        bundles.commit(reference, ArtifactLocation(store, KEY))
        return dg.MaterializeResult(metadata=result["pod"])

    return materialized


if __name__ == "__main__":
    told = json.loads(os.environ[VARIABLE])
    dg.materialize([errand(Path(told["store"]), told["settings"], told["spec"])])
