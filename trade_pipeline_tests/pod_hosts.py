"""A small project whose compute `runpod` is a RunPod on loopback, with pods that do nothing."""

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.api import Pod
from trade_pipeline.compute.runpod.lease import Lease
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.plan import is_ours
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.storage import layout
from trade_pipeline_tests.compute.runpod.leases import anything_goes, asked_for, intent
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.fakes.runpod.account import FakeVolume
from trade_pipeline_tests.small_project import write_project, write_yaml

BUDGET = {"run_usd": 5, "day_usd": 20, "hourly_usd": 5, "pods": 4}


@dg.job
def alone_trials() -> None:
    """Stands for the job of the experiment `alone`, by its name."""


@functools.cache
def _fresh_home() -> "tempfile.TemporaryDirectory[str]":
    """An instance without history, made once: its tables take longer than most tests."""
    home = tempfile.TemporaryDirectory(prefix="dagster-")
    options = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(home.name, overrides=options) as instance:
        instance.get_runs()
    return home


@dataclass
class PodHost:
    """A host with a project, and the RunPod that it talks to."""

    fake: FakeRunPod
    volume: FakeVolume
    deployment: Deployment
    jobs: int = field(default=0)

    @property
    def store(self) -> Path:
        return self.deployment.places.store

    @property
    def secrets(self) -> tuple[str, ...]:
        """What nobody may ever read."""
        return (self.fake.api_key, self.fake.s3_keys[1])

    def compute(self, name: str = "runpod", **changes: Any) -> None:
        """Write a file of configs/compute."""
        settings = {
            "kind": "runpod",
            "image": "registry.example.com/trade@sha256:" + "a" * 64,
            "gpus": ["NVIDIA L4", "NVIDIA A40"],
            "cuda": ["12.8"],
            "exchange": {
                "kind": "volume",
                "id": self.volume.id,
                "mount": str(self.deployment.root / "mount"),
            },
            "hours": 2,
            "budget": BUDGET,
            "poll_s": 0.1,
            "rest_url": self.fake.rest_url,
            "graphql_url": self.fake.graphql_url,
            "s3_url": self.fake.s3_url,
        }
        path = self.deployment.places.configs / "compute" / f"{name}.yaml"
        write_yaml(path, settings | changes)

    def ledger(self, ago: timedelta = timedelta()) -> Ledger:
        """The host's ledger, as it was so long ago."""
        return Ledger(layout.leases(self.store), lambda: datetime.now(UTC) - ago)

    def run(self, status: dg.DagsterRunStatus) -> str:
        """A run of the instance that came to this status."""
        return self.deployment.instance.create_run_for_job(alone_trials, status=status).run_id

    def ask(self, run: str, ago: timedelta = timedelta(), **changes: Any) -> Pod:
        """Make a pod for a run, as a task does, with a lease that is so old."""
        self.jobs += 1
        name = f"tp-main-01234567-{run[:8]}-{self.jobs}"
        wanted = intent(usd_h=1.0, run=run, name=name, **changes)
        self.ledger(ago).enter(wanted, anything_goes)
        pod = self.make(name)
        self.ledger(ago).live(name, pod)
        return pod

    def make(self, name: str) -> Pod:
        """A pod that the ledger is not told of."""
        api = RestApi(self.fake.rest_url, self.fake.api_key)
        return api.create_pod(asked_for(name))

    def beat(self, pod: Pod, ago: timedelta, volume: FakeVolume | None = None) -> None:
        """The heartbeat of a pod on its volume, so long ago."""
        lease = self.lease(pod)
        path = (volume or self.volume).path / "trade_pipeline/jobs" / lease.job / lease.name
        path.mkdir(parents=True)
        when = datetime.now(UTC) - ago
        content = {"seq": 1, "ts_ms": int(when.timestamp() * 1000), "phase": "run"}
        written = path / "heartbeat.json"
        written.write_text(json.dumps(content), encoding="utf-8")
        os.utime(written, (when.timestamp(), when.timestamp()))

    def lease(self, pod: Pod) -> Lease:
        found = self.ledger().of_pod(pod.id)
        assert found is not None
        return found

    @property
    def live(self) -> set[str]:
        """Ids of all pods that bill."""
        return {pod.id for pod in self.fake.live}

    @property
    def ours(self) -> set[str]:
        return {pod.id for pod in self.fake.live if is_ours(pod.name, "main")}

    def leaked(self) -> list[Path]:
        """Files of project, store and Dagster's instance that hold a secret."""
        files = [path for path in self.deployment.root.rglob("*") if path.is_file()]
        return [
            path for path in files if any(one.encode() in path.read_bytes() for one in self.secrets)
        ]


@contextmanager
def fresh_host(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodHost]:
    """A host of the small project with nothing materialized."""
    write_project(root)
    shutil.copytree(_fresh_home().name, root / "dagster")
    deployment = Deployment(root)
    with pod_host(deployment, monkeypatch) as host:
        yield host
    deployment.instance.dispose()


@contextmanager
def pod_host(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodHost]:
    """A host whose environment is as its owner set it."""
    with FakeRunPod() as fake:
        host = PodHost(fake, fake.add_volume("EU-RO-1"), deployment)
        host.compute()
        for name, value in {
            **fake.environment,
            "TRADE_PIPELINE_CONFIGS": str(deployment.places.configs),
            "TRADE_PIPELINE_STORE": str(deployment.places.store),
            "DAGSTER_HOME": str(deployment.root / "dagster"),
        }.items():
            monkeypatch.setenv(name, value)
        for name in [one for one in os.environ if one.startswith("AWS_")]:
            monkeypatch.delenv(name)
        yield host
        assert host.leaked() == []
        assert fake.unexpected == [] and fake.faults.unused == []
