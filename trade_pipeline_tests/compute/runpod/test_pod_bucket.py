"""A pod that meets its host in a bucket: all that a volume does, without one."""

import hashlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.storage.objects import ObjectStore
from trade_pipeline.storage.s3 import pull_bundle, push_bundle
from trade_pipeline_tests.buckets import KINDS, Bucket
from trade_pipeline_tests.compute.runpod.pods import (
    JOB,
    LIMIT_S,
    NAME,
    STAGING,
    Pod,
    a_wheel,
    described,
    pipes_environment,
)
from trade_pipeline_tests.processes import is_running

SEAL = {"staging": STAGING, "content": "weights"}
CHECKPOINT = "checkpoints/demo/base.f0.s1"
TASK = f"jobs/{JOB}/task.json"
EXIT = f"jobs/{JOB}/{NAME}/exit.json"


@pytest.fixture(params=["aws"])
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with KINDS[request.param]() as bucket:
        yield bucket


@pytest.fixture
def objects(bucket: Bucket) -> ObjectStore:
    """As the host has them."""
    return bucket.objects()


@pytest.fixture
def pods(bucket: Bucket, tmp_path: Path) -> Iterator["Pods"]:
    made = Pods(bucket, tmp_path)
    yield made
    for pod in made.made:
        pod.close()


class Pods:
    """Pods with a disk of their own each."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.bucket, self.folder = bucket, folder
        self.made: list[Pod] = []

    def new(self, number: int = 1) -> Pod:
        root = self.folder / f"disk{len(self.made)}" / "root"
        (root / "store").mkdir(parents=True)
        place = ("--root", str(root), "--s3", self.bucket.uri, "--s3-url", self.bucket.front.url)
        pod = Pod(
            root,
            environment=self.bucket.environment(),
            place=(*place, "--s3-region", self.bucket.region),
            name=f"{NAME[:-1]}{number}",
        )
        self.made.append(pod)
        return pod


def tell(objects: ObjectStore, act: str, spec: dict[str, Any] | None = None, **more: Any) -> None:
    objects.put_bytes(TASK, json.dumps(described(act, spec, **more)).encode())


def record(objects: ObjectStore, pod: Pod) -> dict[str, Any]:
    """The exit record, once the host can read it."""
    key = f"jobs/{JOB}/{pod.name}/exit.json"
    pod.wait(lambda: objects.size(key) is not None, f"{key} does not appear")
    found: dict[str, Any] = json.loads(objects.get_bytes(key) or b"")
    return found


def an_input(store: Path, objects: ObjectStore) -> tuple[str, str]:
    """Key and version of a bundle that the host has put into the bucket."""
    staging = bundles.staging(store, "dataset")
    (staging.path / "rows").write_text("1, 2, 3", encoding="utf-8")
    reference = bundles.seal(staging, ("rows",))
    location = bundles.commit(reference, ArtifactLocation(store, "demo/dataset"))
    push_bundle(objects.below("store"), location)
    return location.key, reference.version


@pytest.mark.parametrize("bucket", list(KINDS), indirect=True)
def test_inputs_come_and_the_result_goes_and_the_record_goes_last(
    objects: ObjectStore, pods: Pods, bucket: Bucket, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    key, version = an_input(host, objects)
    tell(objects, "seal", SEAL, inputs={key: version})
    pod = pods.new()
    pod.start()
    found = record(objects, pod)
    assert found["rc"] == 0, found["reason"]
    assert (pod.store / key / "rows").read_text("utf-8") == "1, 2, 3"
    fetched = ArtifactLocation(host, "staging/fetched")
    assert pull_bundle(objects.below("store"), STAGING, fetched) == found["result"]["version"]
    index = (fetched.path / "bundle.json").read_bytes()
    assert found["bundle_sha256"] == hashlib.sha256(index).hexdigest()
    assert bucket.front.targets("PUT")[-1].partition("?")[0].endswith(EXIT)
    beat = json.loads(objects.get_bytes(f"jobs/{JOB}/{NAME}/heartbeat.json") or b"")
    assert beat["phase"] == "done"


def test_messages_and_heartbeats_are_there_while_the_task_runs(
    objects: ObjectStore, pods: Pods
) -> None:
    tell(objects, "report, then wait for a file")
    pod = pods.new()
    pod.environment |= pipes_environment()
    pod.start()
    below = f"jobs/{JOB}/{NAME}"

    def said() -> str:
        return "".join(
            (objects.get_bytes(key) or b"").decode() for key in objects.keys(f"{below}/messages")
        )

    def beat() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(objects.get_bytes(f"{below}/heartbeat.json") or b"{}")
        return found

    pod.wait(lambda: "halfway there" in said(), "no message while the task runs")
    seq = beat()["seq"]
    pod.wait(lambda: beat()["seq"] > seq, "the heart does not beat")
    assert objects.size(EXIT) is None
    (pod.store / "go").touch()
    assert record(objects, pod)["rc"] == 0
    assert '"method": "closed"' in said()


def test_a_checkpoint_goes_there_as_it_changes_and_another_pod_goes_on_from_it(
    objects: ObjectStore, pods: Pods, tmp_path: Path
) -> None:
    tell(objects, "checkpoints", {"checkpoint": CHECKPOINT}, checkpoint=CHECKPOINT)
    there = objects.below("store")

    def states(pod: Pod) -> list[str]:
        """What the bucket holds of the checkpoint: members, not their versions."""
        return [
            (there.get_bytes(key) or b"").decode()
            for key in there.keys(CHECKPOINT)
            if key.endswith("state.txt")
        ]

    first = pods.new(1)
    first.start()
    first.wait(lambda: states(first) == ["first"], "the checkpoint is not put there")
    (first.store / "after first").touch()
    first.wait(lambda: states(first) == ["second"], "the next one does not take its place")
    pointer = json.loads(there.get_bytes(f"{CHECKPOINT}/current.json") or b"")
    fetched = ArtifactLocation(tmp_path, "fetched")
    assert pull_bundle(there, f"{CHECKPOINT}/{pointer['version']}", fetched) == pointer["version"]
    first.end(signal.SIGKILL)

    second = pods.new(2)
    second.start()
    for name in ("after first", "after second"):
        (second.store / name).touch()
    second.appears(second.store / "done with")
    second.wait(lambda: there.keys(CHECKPOINT) == [], "what the task forgot stays in the bucket")
    (second.store / "go").touch()
    assert record(objects, second)["result"] == {"found": "second"}


def test_a_damaged_checkpoint_is_left_out(objects: ObjectStore, pods: Pods) -> None:
    there = objects.below("store")
    there.put_bytes(f"{CHECKPOINT}/current.json", json.dumps({"version": "0" * 32}).encode())
    tell(objects, "checkpoints", {"checkpoint": CHECKPOINT}, checkpoint=CHECKPOINT)
    pod = pods.new()
    for name in ("after first", "after second", "go"):
        (pod.store / name).touch()
    pod.start()
    assert record(objects, pod)["result"] == {"found": None}


def test_a_container_that_lost_its_disk_runs_nothing_a_second_time(
    objects: ObjectStore, pods: Pods
) -> None:
    tell(objects, "sleep")
    first = pods.new()
    first.start()
    first.wait(lambda: bool(first.runs()), "the task does not start")
    first.end(signal.SIGKILL)
    again = pods.new()
    again.start()
    assert record(objects, again)["rc"] == 75
    assert again.runs() == []


def test_a_record_stays_the_first_starts_whatever_is_started_again(
    objects: ObjectStore, pods: Pods
) -> None:
    tell(objects, "seal", SEAL)
    first = pods.new()
    first.start()
    found = record(objects, first)
    first.end(signal.SIGKILL)
    objects.delete(EXIT)  # as if it had not got there
    first.start()
    assert record(objects, first) == found
    assert len(first.runs()) == 1
    first.end(signal.SIGKILL)
    without_disk = pods.new()
    without_disk.start()
    time.sleep(3)
    assert without_disk.processes[0].poll() is None
    assert record(objects, without_disk) == found


def test_a_full_bucket_is_the_reason(objects: ObjectStore, pods: Pods, bucket: Bucket) -> None:
    tell(objects, "seal", SEAL)
    bucket.front.break_next("refuse", "PUT", STAGING, status=507)
    pod = pods.new()
    pod.start()
    found = record(objects, pod)
    assert found["rc"] == 74
    assert "is full" in found["reason"]
    assert found["result"] is None
    assert found["bundle_sha256"] is None


def test_what_is_refused_at_the_end_is_tried_again(
    objects: ObjectStore, pods: Pods, bucket: Bucket
) -> None:
    tell(objects, "seal", SEAL)
    for part in (STAGING, EXIT):
        bucket.front.break_next("refuse", "PUT", part, status=403)
    pod = pods.new()
    pod.start()
    assert record(objects, pod)["rc"] == 0


def test_a_bucket_that_lags_behind_ends_no_task(
    objects: ObjectStore, pods: Pods, bucket: Bucket
) -> None:
    tell(objects, "report, then wait for a file")
    bucket.front.break_next("refuse", "PUT", "heartbeat.json", status=403, times=2)
    pod = pods.new()
    pod.start()
    below = f"jobs/{JOB}/{NAME}"
    pod.wait(lambda: objects.size(f"{below}/heartbeat.json") is not None, "no heartbeat comes")
    (pod.store / "go").touch()
    assert record(objects, pod)["rc"] == 0


def test_a_damaged_input_starts_no_task(objects: ObjectStore, pods: Pods, tmp_path: Path) -> None:
    key, version = an_input(tmp_path / "host", objects)
    objects.put_bytes(f"store/{key}/rows", b"1, 2, 4")
    tell(objects, "seal", SEAL, inputs={key: version})
    pod = pods.new()
    pod.start()
    found = record(objects, pod)
    assert found["rc"] == 66
    assert "rows" in found["reason"]
    assert pod.runs() == []


def test_a_bucket_that_is_not_there_ends_the_process_and_nothing_counts_as_begun(
    pods: Pods,
) -> None:
    pod = pods.new()
    pod.place = ("--s3", "s3://no-such-bucket/x", *pod.place[:2], *pod.place[4:])
    process = pod.start()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 69
    assert "no-such-bucket" in errors
    assert not (pod.folder / "started").exists()


def test_a_wheel_comes_through_the_bucket(objects: ObjectStore, pods: Pods, tmp_path: Path) -> None:
    wheel = a_wheel(tmp_path / "host")
    objects.put_file(wheel["key"], tmp_path / "host" / wheel["key"])
    tell(objects, "", module="brought_task", wheel=wheel)
    pod = pods.new()
    pod.start()
    found = record(objects, pod)
    assert found["rc"] == 0, found["reason"]
    assert "brought" in found["result"]


def test_the_task_gets_no_key_of_the_bucket(objects: ObjectStore, pods: Pods) -> None:
    tell(objects, "environment")
    pod = pods.new()
    pod.start()
    found = record(objects, pod)["result"]
    assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & found.keys()


def test_a_pod_that_is_told_to_end_leaves_its_record_in_the_bucket(
    objects: ObjectStore, pods: Pods
) -> None:
    tell(objects, "sleep")
    pod = pods.new()
    pod.start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    assert pod.end()[0] == 143
    assert record(objects, pod)["rc"] == 143
    assert not is_running(pod.runs()[0])
