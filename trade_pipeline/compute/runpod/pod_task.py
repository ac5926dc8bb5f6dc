"""What a pod is told, and the files in which it says how it fares: see `exchange` for where.

Knows the standard library alone, so that a pod's first process starts at once. Start at
`parse_arguments`, `parse_task` and `Attempt`.
"""

import argparse
import hashlib
import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trade_pipeline.storage.location import ArtifactLocation, StorageError, replacing

# Exit codes of the supervisor's own beside those of the task; from sysexits.h where that has one.
NO_INPUT = 66
NO_RESULT = 70
NOT_DELIVERED = 74
RESTARTED = 75
WRONG_TASK = 78
TOO_LATE = 124
BY_SIGNAL = 128  # and the signal's number

POD_ROOT = "TRADE_PIPELINE_POD_ROOT"  # environment of a task: where jobs and store lie in its pod
STAGING = "staging/"
_JOB = re.compile(r"[0-9a-f]{16}")
_NAME = re.compile(r"tp-[a-z0-9]{1,12}-[0-9a-f]{8}-[0-9A-Za-z]{1,8}-[0-9]+")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_VERSION = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = {"module", "spec", "inputs", "wheel", "max_runtime_s", "checkpoint"}


class TaskRefused(Exception):  # noqa: N818 - named after what happened
    """What the pod was told cannot be run; the message says what is wrong.

    Attributes:
        rc: for the exit record.
    """

    def __init__(self, message: str, rc: int = WRONG_TASK) -> None:
        super().__init__(message)
        self.rc = rc


@dataclass(frozen=True)
class Place:
    """Where a pod meets its host, as its command says.

    Attributes:
        root: what both share, or this pod's own folder where they meet in a bucket.
        s3: bucket and prefix, or None.
        url: endpoint of an S3 that is not AWS's.
        region: of the bucket.
    """

    root: Path
    s3: str | None
    url: str | None
    region: str | None
    job: str
    attempt: str

    def arguments(self) -> list[str]:
        """The same, as a command line has it."""
        pairs = {
            "--root": str(self.root),
            "--s3": self.s3,
            "--s3-url": self.url,
            "--s3-region": self.region,
            "--job": self.job,
            "--attempt": self.attempt,
        }
        return [word for name, value in pairs.items() if value for word in (name, value)]


def parse_arguments(arguments: Sequence[str] | None = None) -> Place:
    """Read a command line; ends the process where it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m trade_pipeline.compute.runpod.supervisor",
        description="Runs one task of a host in this pod, once, and then waits for the pod's end.",
    )
    parser.add_argument("--root", type=Path, help="folder that host and pod share")
    parser.add_argument("--s3", metavar="s3://BUCKET/PREFIX", help="where they meet instead")
    parser.add_argument("--s3-url", help="endpoint of an S3 that is not AWS's")
    parser.add_argument("--s3-region", help="region of the bucket")
    parser.add_argument("--job", required=True, help="what the task is: 16 hex digits")
    parser.add_argument("--attempt", required=True, help="name of this pod")
    found = parser.parse_args(arguments)
    if found.root is None and found.s3 is None:
        parser.error("one of --root and --s3 is required")
    if found.s3 is not None and not re.fullmatch(r"s3://[^/]+(/.*)?", found.s3):
        parser.error(f"--s3 is {found.s3!r}, not s3://BUCKET/PREFIX")
    root = found.root or Path(tempfile.gettempdir(), "trade_pipeline")
    return Place(root.absolute(), found.s3, found.s3_url, found.s3_region, found.job, found.attempt)


@dataclass(frozen=True)
class PodTask:
    """The content of `task.json`.

    Attributes:
        module, spec: as `compute.base.Task` has them.
        inputs: keys of the bundles that the task reads, each with its version.
        wheel: key and SHA-256 of a wheel to run instead of the image's package, or None.
        max_runtime_s: of this attempt, preparation included.
        checkpoint: key of the task's state, or None.
    """

    module: str
    spec: Mapping[str, Any]
    inputs: Mapping[str, str]
    wheel: tuple[str, str] | None
    max_runtime_s: float
    checkpoint: str | None

    @property
    def staging(self) -> str | None:
        """Key of the folder that the task fills, where its specification has one."""
        staging = self.spec.get("staging")
        return staging if isinstance(staging, str) else None


@dataclass(frozen=True)
class Attempt:
    """The files of one pod of one job, below the root that host and pod share.

    Raises:
        TaskRefused: job or name are none that the host gives.
    """

    root: Path
    job: str
    name: str

    def __post_init__(self) -> None:
        if not _JOB.fullmatch(self.job):
            raise TaskRefused(f"Job {self.job!r} is not 16 hex digits.")
        if not _NAME.fullmatch(self.name):
            raise TaskRefused(
                f"Attempt {self.name!r} is no name of a pod such as tp-main-01234567-89abcdef-1."
            )

    @property
    def store(self) -> Path:
        """The store as this pod has it."""
        return self.root / "store"

    @property
    def task(self) -> ArtifactLocation:
        """What to run."""
        return ArtifactLocation(self.root, f"jobs/{self.job}/task.json")

    @property
    def folder(self) -> ArtifactLocation:
        """Of this attempt."""
        return ArtifactLocation(self.root, f"jobs/{self.job}/{self.name}")

    @property
    def started(self) -> ArtifactLocation:
        """There once the command has begun, so that it begins once."""
        return self.folder.child("started")

    @property
    def heartbeat(self) -> ArtifactLocation:
        """That it lives."""
        return self.folder.child("heartbeat.json")

    @property
    def messages(self) -> ArtifactLocation:
        """Folder of the messages to Dagster."""
        return self.folder.child("messages")

    @property
    def exit(self) -> ArtifactLocation:
        """How it ended."""
        return self.folder.child("exit.json")


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        rc: 0 for success; see the constants of this module.
        reason: a sentence and the end of the log, empty for success.
        result: of the task.
        staging: key of the folder that the task filled.
    """

    rc: int
    reason: str = ""
    result: dict[str, Any] | None = None
    staging: str | None = None

    def record(self, store: Path, finished_ms: int) -> dict[str, Any]:
        """The content of `exit.json`."""
        return {
            "rc": self.rc,
            "result": self.result,
            "bundle_sha256": _index_sha256(store, self.staging),
            "reason": self.reason,
            "finished_ms": finished_ms,
        }


def write(location: ArtifactLocation, value: Any) -> None:
    """Write JSON, atomically. Raises `StorageError` or `OSError`."""
    with replacing(location) as temporary:
        temporary.write_text(json.dumps(value) + "\n", encoding="utf-8")


def read_task(location: ArtifactLocation) -> PodTask:
    """Read `task.json`. Raises `TaskRefused`."""
    try:
        content = location.path.read_bytes()
    except OSError as error:
        raise TaskRefused(
            f"{location}: cannot be read ({error}); the host puts it there before it asks for a "
            "pod, so look whether both use the same volume or bucket."
        ) from error
    return parse_task(content, str(location))


def parse_task(content: bytes, where: str) -> PodTask:
    """Check a task's description, key by key.

    Args:
        content: of `task.json`.
        where: the file, for messages.

    Raises:
        TaskRefused: a key is missing, unknown, or has a value that it cannot have.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise TaskRefused(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(found, dict) or found.keys() != _KEYS:
        keys = sorted(found) if isinstance(found, dict) else type(found).__name__
        raise TaskRefused(
            f"{where}: holds {keys}, not exactly {sorted(_KEYS)}; host and image may be of "
            "different versions of trade_pipeline."
        )
    wheel, limit = found["wheel"], found["max_runtime_s"]
    wrong = {
        "module": not _is(found["module"], _MODULE),
        "spec": not isinstance(found["spec"], dict),
        "inputs": not isinstance(found["inputs"], dict)
        or not all(_is_key(key) and _is(one, _VERSION) for key, one in found["inputs"].items()),
        "wheel": wheel is not None and not _is_wheel(wheel),
        "max_runtime_s": isinstance(limit, bool)
        or not isinstance(limit, int | float)
        or not (math.isfinite(limit) and limit > 0),
        "checkpoint": found["checkpoint"] is not None and not _is_key(found["checkpoint"]),
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            raise TaskRefused(f"{where}: key {key!r} cannot be {json.dumps(found[key])[:200]}.")
    staging = found["spec"].get("staging")
    if staging is not None and not (_is_key(staging) and staging.startswith(STAGING)):
        raise TaskRefused(
            f"{where}: spec.staging is {staging!r}; it must be a key below {STAGING}, since the "
            "pod empties that folder first."
        )
    return PodTask(
        module=found["module"],
        spec=found["spec"],
        inputs=found["inputs"],
        wheel=None if wheel is None else (wheel["key"], wheel["sha256"]),
        max_runtime_s=float(limit),
        checkpoint=found["checkpoint"],
    )


def _index_sha256(store: Path, staging: str | None) -> str | None:
    if not _is_key(staging):
        return None
    try:
        content = (store / str(staging) / "bundle.json").read_bytes()
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest()


def _is(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_wheel(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"key", "sha256"}:
        return False
    return _is_key(value["key"]) and value["key"].endswith(".whl") and _is(value["sha256"], _SHA256)


def _is_key(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        ArtifactLocation(Path(), value)
    except StorageError:
        return False
    return True
