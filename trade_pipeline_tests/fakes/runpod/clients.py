"""Requests to the fake RunPod and waits for its pods, for its own tests."""

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from trade_pipeline_tests.fakes.runpod import FakeRunPod, Timing
from trade_pipeline_tests.fakes.runpod.account import FakeVolume
from trade_pipeline_tests.fakes.runpod.pods import FakePod, processes_of

WAIT_S = 60.0


def quick() -> Timing:
    """Delays of almost nothing."""
    return Timing(
        provisioning_s=0.01, starting_s=0.01, restart_s=0.05, grace_s=0.3, keepalive_s=0.05
    )


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it holds."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline or condition(), "it did not happen"
        time.sleep(0.01)
    return found


def wait_until_gone(pod: FakePod) -> None:
    until(lambda: not processes_of(pod.id) and pod.mount is None)


def body(code: str = "", **changes: Any) -> dict[str, Any]:
    """A good request for a pod that runs this Python."""
    return {
        "name": "tp-test-1",
        "image": "image",
        "gpu": {"id": "NVIDIA L4", "count": 1, "allowedCudaVersions": ["12.8"]},
        "args": shlex.join(["python", "-c", code or "import time; time.sleep(60)"]),
        **changes,
    }


def make(api: httpx.Client, fake: FakeRunPod, code: str = "", **changes: Any) -> FakePod:
    answer = api.post("/pods", json=body(code, **changes))
    assert answer.status_code == 201, answer.text
    return fake.pod(answer.json()["id"])


def running(pod: FakePod) -> FakePod:
    until(lambda: pod.status == "RUNNING" and pod.pid)
    return pod


def on_volume(volume: FakeVolume, mount: Path) -> dict[str, Any]:
    return {"network": [{"volumeId": volume.id, "path": str(mount)}]}


def bucket(fake: FakeRunPod, **changes: Any) -> Any:
    """A client as RunPod's documentation wants it, that tries once."""
    config: dict[str, Any] = {
        "s3": {"addressing_style": "path"},
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **changes.pop("config", {}),
    }
    keys: dict[str, Any] = {
        "aws_access_key_id": fake.s3_keys[0],
        "aws_secret_access_key": fake.s3_keys[1],
        "region_name": "eu-ro-1",
        **changes,
    }
    return boto3.client("s3", endpoint_url=fake.s3_url, config=Config(**config), **keys)
