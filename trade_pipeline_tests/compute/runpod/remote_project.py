"""The small project with a compute `runpod` that asks the fake, for tests of whole runs."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from trade_pipeline.settings.project import Places
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.small_project import write_yaml

DATA_CENTER = "EU-RO-1"
GPUS = ["NVIDIA L4", "NVIDIA RTX A4000"]


def remote_settings(fake: FakeRunPod, mount: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a compute whose pods the fake makes; `mount` is where they see the volume."""
    volume = fake.add_volume(DATA_CENTER)
    return {
        "kind": "runpod",
        "image": "registry/trade_pipeline@sha256:" + "0" * 64,
        "gpus": GPUS,
        "cuda": ["12.8"],
        "exchange": {"kind": "volume", "id": volume.id, "mount": str(mount)},
        "hours": 1,
        "poll_s": 0.2,
        "budget": {"run_usd": 50, "day_usd": 500, "hourly_usd": 50, "pods": 10},
        "pod_environment": {"TRADE_PIPELINE_HEARTBEAT_S": "0.2"},
        "rest_url": fake.rest_url,
        "graphql_url": fake.graphql_url,
        "s3_url": fake.s3_url,
        **changes,
    }


def use_runpod(places: Places, settings: Mapping[str, Any], *experiments: str) -> None:
    """Have experiments run on RunPod: the file of the compute, and one line in each experiment."""
    write_yaml(places.configs / "compute" / "runpod.yaml", dict(settings))
    for name in experiments:
        path = places.configs / "experiments" / f"{name}.yaml"
        experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
        write_yaml(path, {**experiment, "compute": "runpod"})


def start_run(
    places: Places, home: Path, fake: FakeRunPod, select: str, partition: str
) -> "subprocess.Popen[str]":
    """`dagster asset materialize` in a process of its own, which may be killed."""
    home.mkdir(exist_ok=True)
    environment = {
        "PATH": str(Path(sys.executable).parent),
        "HOME": str(home),
        "DAGSTER_HOME": str(home),
        "TRADE_PIPELINE_CONFIGS": str(places.configs),
        "TRADE_PIPELINE_STORE": str(places.store),
        **fake.environment,
    }
    command = [sys.executable, "-m", "dagster", "asset", "materialize"]
    command += ["-m", "trade_pipeline.definitions", "--select", select, "--partition", partition]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
