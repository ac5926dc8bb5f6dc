"""Where host and pod meet: what a job reads, says and leaves behind, below one root.

    store/<key>                             inputs, checkpoints, results, by the keys of the store
    jobs/<job>/task.json                    what to run
    jobs/<job>/<pod>/heartbeat.json         that it lives
    jobs/<job>/<pod>/messages/<n>.json      what it says through Dagster Pipes
    jobs/<job>/<pod>/exit.json              how it ended; written once, last

`supervisor` is the other side. Start at `Exchange`.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_pipes import PIPES_PROTOCOL_VERSION, PIPES_PROTOCOL_VERSION_FIELD
from pydantic import ValidationError

from trade_pipeline.compute.base import Task
from trade_pipeline.compute.runpod.errors import ExchangeError, ResultRefused, VolumeFull
from trade_pipeline.settings.base import Settings
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import json_hash
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.storage.objects import ObjectStore, ObjectStoreError, ObjectStoreFull
from trade_pipeline.storage.s3 import pull_bundle, push_bundle

DOCUMENT_BYTES = 2**22  # of a heartbeat, an exit record, a message: nothing larger is read


class Heartbeat(Settings):
    """That a pod lives: counts up; the time is by the pod's own clock, which may be wrong."""

    seq: int
    ts_ms: int
    phase: str


class ExitRecord(Settings):
    """How a task ended in its pod.

    Attributes:
        rc: of its process, 0 for success.
        result: what it returned, where it did.
        bundle_sha256: of the index of the bundle that it sealed.
        reason: what went wrong, with the end of its log.
    """

    rc: int
    result: dict[str, Any] | None
    bundle_sha256: str | None
    reason: str
    finished_ms: int


@dataclass(frozen=True)
class Exchange:
    """One job on the exchange.

    Attributes:
        objects: the bucket or volume, with the prefix of ours.
        job: what the task is, see `plan.identity`.
    """

    objects: ObjectStore
    job: str

    def send(self, task: Task, max_runtime_s: float, wheel: Path | None) -> None:
        """Put there what the pod reads; the description last.

        Raises:
            VolumeFull: there is no room.
            ExchangeError: it cannot be put there.
        """
        with _sentences():
            for location in task.inputs:
                push_bundle(self.objects.below("store"), location)
            sent = None
            if wheel is not None:
                content = wheel.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                # Pip reads version and platform from the name; the folder says which one it is.
                sent = {"key": f"wheels/{digest[:16]}/{wheel.name}", "sha256": digest}
                if self.objects.size(sent["key"]) != len(content):
                    self.objects.put_file(sent["key"], wheel)
            described = {
                "module": task.module,
                "spec": task.spec,
                "inputs": {one.key: one.path.name for one in task.inputs},
                "wheel": sent,
                "max_runtime_s": max_runtime_s,
                "checkpoint": None if task.checkpoint is None else task.checkpoint.key,
            }
            self.objects.put_bytes(f"jobs/{self.job}/task.json", json.dumps(described).encode())

    def heartbeat(self, pod_name: str) -> Heartbeat | None:
        """The last one of a pod, or None. Raises `ExchangeError`."""
        content = self._read(pod_name, "heartbeat.json")
        return None if content is None else _parsed(content, Heartbeat, pod_name)

    def exit_record(self, pod_name: str) -> ExitRecord | None:
        """How a pod's task ended; None while it has not. Raises `ExchangeError`."""
        content = self._read(pod_name, "exit.json")
        if content is None:
            return None
        try:
            found: ExitRecord = _parsed(content, ExitRecord, pod_name)
        except ExchangeError as error:  # it is written once: another look would not help
            raise ResultRefused(str(error)) from error
        return found

    def messages(self, pod_name: str, number: int) -> list[Any] | None:
        """What a file of Dagster Pipes messages holds; None where it is not there yet.

        Raises:
            ExchangeError: it cannot be fetched.
        """
        content = self._read(pod_name, f"messages/{number}.json")
        if content is None:
            return None
        try:
            found = json.loads(content)
        except ValueError as error:  # the next file may be read all the same
            found = _warning(f"Message file {number} of pod {pod_name} cannot be read: {error}")
        return found if isinstance(found, list) else [found]

    def collect(self, record: ExitRecord, target: ArtifactLocation, asked: str) -> dict[str, Any]:
        """Fetch the sealed bundle into an empty folder; the task's result with its new key.

        Args:
            record: of a pod.
            target: the folder to fill.
            asked: staging key that a run of this task names; all but its random end must agree.

        Raises:
            ResultRefused: it is not what the pod sealed; nothing of it is kept.
            ExchangeError: it cannot be fetched.
        """
        result = dict(record.result or {})
        if not {"staging", "version"} <= result.keys() or record.bundle_sha256 is None:
            raise ResultRefused(
                f"Job {self.job}: the pod ended well and named no bundle; look at its log above, "
                "and run the task again."
            )
        staging, expected = result["staging"], asked.rpartition("-")[0]
        if not isinstance(staging, str) or staging.rpartition("-")[0] != expected:
            raise ResultRefused(
                f"Job {self.job}: the pod names {staging!r} as its bundle, which is not one that "
                f"this task may make ({expected}-...). Run the task again."
            )
        with _sentences():
            try:
                version = pull_bundle(self.objects.below("store"), staging, target)
            except bundles.BundleError as error:
                raise ResultRefused(f"Job {self.job}: {error}") from error
        index = (target.path / bundles.INDEX).read_bytes()
        found = hashlib.sha256(index).hexdigest()
        if (found, version) != (record.bundle_sha256, result["version"]):
            shutil.rmtree(target.path)
            raise ResultRefused(
                f"Job {self.job}: the bundle fetched has version {version} and an index of SHA-256 "
                f"{found}, the pod sealed {result['version']} and {record.bundle_sha256}. "
                "Somebody changed it on the exchange; run the task again."
            )
        return {**result, "staging": target.key}

    def _read(self, pod_name: str, name: str) -> bytes | None:
        with _sentences():
            return self.objects.get_bytes(f"jobs/{self.job}/{pod_name}/{name}", DOCUMENT_BYTES)


def heartbeat_at(objects: ObjectStore, pod_name: str, job: str) -> datetime | None:
    """When a pod's last heartbeat came, for the reaper. Raises `ExchangeError`.

    By the exchange's clock: a pod's own may be wrong.
    """
    with _sentences():
        return objects.modified(f"jobs/{job}/{pod_name}/heartbeat.json")


def code_of(image: str, wheel: Path | None) -> str:
    """Hash of what computes: part of what a job is, so that other code is another job."""
    content = None if wheel is None else hashlib.sha256(wheel.read_bytes()).hexdigest()
    return json_hash({"image": image, "wheel": content})[:16]


@contextmanager
def _sentences() -> Iterator[None]:
    """Name the exchange in what went wrong with it."""
    try:
        yield
    except ObjectStoreFull as error:
        raise VolumeFull(
            f"The exchange has no room left: {error} Delete what is not needed there, or enlarge "
            "the volume in RunPod's console."
        ) from error
    except bundles.BundleError:
        raise
    except (ObjectStoreError, StorageError) as error:
        raise ExchangeError(f"The exchange does not work: {error}") from error


def _warning(text: str) -> dict[str, Any]:
    """A message of Dagster Pipes that puts a line into the run's log."""
    said = {"message": text, "level": "WARNING"}
    return {PIPES_PROTOCOL_VERSION_FIELD: PIPES_PROTOCOL_VERSION, "method": "log", "params": said}


def _parsed(content: bytes, model: Any, pod_name: str) -> Any:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise ExchangeError(
            f"Pod {pod_name} left a {model.__name__} that cannot be read ({error}); its image may "
            "hold another version of trade_pipeline than this machine."
        ) from error
