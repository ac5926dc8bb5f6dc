"""The first process of a pod: runs one task, once, and says how it ended.

    python -m trade_pipeline.compute.runpod.supervisor --root /workspace/trade_pipeline
        --job <16 hex digits> --attempt <name of the pod>

RunPod runs a pod's command again and again, whatever its exit code. So the first start makes a
file that only one can make, and this process does not end by itself: it sleeps until the pod is
terminated. A start that finds the file runs nothing. It waits until nothing of the first one lives
(both hold a lock that ends with its processes) and, where that one left no exit record, leaves one
with code 75: the container broke down in the middle, nothing is said against the task, and the
host may go on from the checkpoint with another pod. Without it the host would pay for a pod that
sleeps until its heartbeat counts as lost.

Exit codes in the record: the task's own; 128 + n for a signal n, 143 where the pod was told to
end; 124 for the time limit; 66 for inputs, 70 for a task without a result, 74 for a result that
could not be put into the bucket, 75 see above, 78 for a description that cannot be run. A command
line that makes no sense, a root that is not there or a bucket that cannot be reached leave no
record, since there is nowhere to leave one: then this process ends, RunPod starts it again, and
the host sees a container that starts again and again, with the reason in its log.

Knows the standard library alone, so that a pod works within a second; what needs more is a process
of its own, or loaded where pod and host meet in a bucket. Start at `main`.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trade_pipeline.compute.runpod.pod_heartbeat import Heartbeat
from trade_pipeline.compute.runpod.pod_life import Signals, Timing, claimed, linger, say
from trade_pipeline.compute.runpod.pod_process import Ended, Interruption, run
from trade_pipeline.compute.runpod.pod_task import (
    BY_SIGNAL,
    NO_RESULT,
    NOT_DELIVERED,
    POD_ROOT,
    RESTARTED,
    TOO_LATE,
    WRONG_TASK,
    Attempt,
    Outcome,
    Place,
    PodTask,
    TaskRefused,
    parse_arguments,
    read_task,
    write,
)
from trade_pipeline.storage.location import ArtifactLocation, StorageError, flush, make_folder

if TYPE_CHECKING:
    from trade_pipeline.compute.runpod.pod_bucket import PodBucket

STOP_GRACE_S = 3.0  # for the task when the pod ends; RunPod itself waits about ten seconds
NO_PLACE = 69
OF_THE_POD_ALONE = ("RUNPOD_API_KEY",)  # what no task gets
OF_THE_BUCKET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass
class Supervisor:
    """One attempt, from its start to its record."""

    place: Place
    attempt: Attempt
    timing: Timing
    signals: Signals
    bucket: "PodBucket | None"
    environment: Mapping[str, str]
    began: float = field(default_factory=time.monotonic)
    checkpoint: str | None = None

    def supervise(self) -> None:
        """Run the task, or nothing where it was begun before; leave the exit record."""
        with claimed(self.attempt, self.signals, self._begun_elsewhere) as (is_first, lock):
            if is_first:
                self._run(lock)
            elif not self.signals.came and not self.attempt.exit.path.exists():
                self._leave(Outcome(RESTARTED, "restarted by RunPod after a crash"))
            elif self.bucket is not None and self.attempt.exit.path.exists():
                self._deliver_record(self.bucket)

    def _begun_elsewhere(self) -> bool:
        """Whether the bucket knows of a first start; a container may lose its own files."""
        if self.bucket is None:
            return False
        if self.bucket.has(self.attempt.started):
            self.bucket.fetch(self.attempt.exit)
            return True
        self.bucket.fetch(self.attempt.task)
        self.bucket.put(self.attempt.started)
        return False

    def _run(self, lock: int) -> None:
        heartbeat = Heartbeat(self.attempt.heartbeat, self.timing.heartbeat_s)
        following = self.bucket.following(lambda: self.checkpoint) if self.bucket else nullcontext()
        with following:
            with heartbeat, _scratch() as scratch:
                try:
                    outcome = self._outcome(Path(scratch), heartbeat, lock)
                except TaskRefused as error:
                    outcome = Outcome(error.rc, str(error))
                except Exception as error:  # the host learns of it all the same, and at once
                    traceback.print_exc()
                    reason = f"The supervisor could not run the task: {error!r}"
                    outcome = Outcome(NO_RESULT, reason)
                heartbeat.phase = "uploading"
                outcome = self._kept(outcome)
            heartbeat.phase = "done"
        self._leave(outcome)

    def _outcome(self, scratch: Path, heartbeat: Heartbeat, lock: int) -> Outcome:
        """Prepare and run the task."""
        attempt = self.attempt
        task = read_task(attempt.task)
        ending = self._ending(task.max_runtime_s)
        folder = scratch / "work"
        folder.mkdir()
        if task.inputs or self.bucket is not None:
            module = "trade_pipeline.compute.runpod.pod_inputs"
            ended = run(
                [sys.executable, "-m", module, *self.place.arguments()],
                "The preparation of the inputs",
                environment=self.environment,
                folder=folder,
                interrupted=ending,
            )
            if ended.rc != 0:
                return Outcome(ended.rc, ended.reason)
        self._take_checkpoint(task)
        environment = self._environment(task, scratch, ending)
        if isinstance(environment, Ended):
            return Outcome(environment.rc, environment.reason)
        described, result_file = scratch / "task.json", scratch / "result.json"
        described.write_text(json.dumps(self._described(task)), encoding="utf-8")
        heartbeat.phase = "running"
        module = "trade_pipeline.compute.worker"
        ended = run(
            [sys.executable, "-m", module, str(described), "--result", str(result_file)],
            "The task",
            environment=environment,
            folder=folder,
            interrupted=ending,
            held=(lock,),
        )
        if ended.rc != 0:
            return Outcome(ended.rc, ended.reason, staging=task.staging)
        result = json.loads(result_file.read_bytes()) if result_file.exists() else None
        if not isinstance(result, dict):
            reason = "The task ended with code 0 and returned no object as its result."
            return Outcome(NO_RESULT, reason, staging=task.staging)
        named = result.get("staging")
        return Outcome(0, result=result, staging=named if isinstance(named, str) else task.staging)

    def _ending(self, limit_s: float) -> Callable[[], Interruption | None]:
        """Why a process of this pod has to be ended, if it has."""

        def ending() -> Interruption | None:
            if self.signals.came:
                number = self.signals.number
                reason = f"The pod was told to end (signal {number})."
                grace_s = min(STOP_GRACE_S, self.timing.grace_s)
                return Interruption(BY_SIGNAL + number, reason, grace_s)
            if time.monotonic() - self.began > limit_s:
                reason = (
                    f"The task was ended after its limit of {limit_s:g} s in this pod "
                    "(max_runtime_s); plan more hours, or let it do less."
                )
                return Interruption(TOO_LATE, reason, self.timing.grace_s)
            return None

        return ending

    def _take_checkpoint(self, task: PodTask) -> None:
        if self.bucket is not None and task.checkpoint is not None:
            self.bucket.came_with(task.checkpoint)
            self.checkpoint = task.checkpoint

    def _described(self, task: PodTask) -> dict[str, Any]:
        """The worker's task file, and an empty folder where it stages: an earlier pod's is gone."""
        spec = {**task.spec, "store": str(self.attempt.store)}
        if task.staging is not None:
            staging = ArtifactLocation(self.attempt.store, task.staging)
            if staging.path.exists():
                shutil.rmtree(staging.path)
            make_folder(staging.path)
        return {"module": task.module, "spec": spec}

    def _environment(
        self, task: PodTask, scratch: Path, ending: Callable[[], Interruption | None]
    ) -> dict[str, str] | Ended:
        """What the task's process gets; how pip ended, where it failed to install the wheel."""
        hidden = OF_THE_POD_ALONE + (OF_THE_BUCKET if self.bucket is not None else ())
        environment = {
            **{name: value for name, value in self.environment.items() if name not in hidden},
            POD_ROOT: str(self.attempt.root),
            "PYTHONUNBUFFERED": "1",
        }
        if task.wheel is None:
            return environment
        wheel = _checked_wheel(self.attempt.root, task.wheel, scratch)
        installed = scratch / "installed"
        pip = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install"]
        ended = run(
            [*pip, "--quiet", "--no-deps", "--no-index", "--target", str(installed), str(wheel)],
            "The installation of the wheel",
            environment=environment,
            folder=scratch,
            interrupted=ending,
        )
        if ended.rc != 0:
            return ended
        known = environment.get("PYTHONPATH")
        path = os.pathsep.join([str(installed), known] if known else [str(installed)])
        return {**environment, "PYTHONPATH": path}

    def _kept(self, outcome: Outcome) -> Outcome:
        """Have all that the task made where the host looks for it."""
        if outcome.staging is None:
            return outcome
        try:
            staging = ArtifactLocation(self.attempt.store, outcome.staging)
            for path in sorted(staging.path.rglob("*")):
                flush(path)
            if self.bucket is not None and staging.child("bundle.json").path.exists():
                self.bucket.deliver_bundle(staging)
        except (OSError, StorageError) as error:
            if outcome.rc != 0:
                return outcome
            return Outcome(NOT_DELIVERED, f"The task's result could not be kept: {error}")
        return outcome

    def _leave(self, outcome: Outcome) -> None:
        """Write the record, last of all; where it cannot be written, try for minutes."""
        # Said first: the host listens no more once it has seen the record.
        say(f"exit code {outcome.rc}. {outcome.reason.splitlines()[0] if outcome.reason else ''}")
        until = time.monotonic() + self.timing.deliver_s
        while True:
            record = outcome.record(self.attempt.store, int(time.time() * 1000))
            try:
                write(self.attempt.exit, record)
                break
            except (OSError, StorageError) as error:
                say(f"the exit record cannot be written: {error}")
                if self.signals.came or time.monotonic() + self.timing.again_s > until:
                    return
                self.signals.sleep(self.timing.again_s)
        if self.bucket is not None:
            self._deliver_record(self.bucket)

    def _deliver_record(self, bucket: "PodBucket") -> None:
        try:
            bucket.deliver(self.attempt.exit)
        except StorageError as error:
            say(f"the exit record cannot be put into the bucket: {error}")


def _scratch() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="task-", ignore_cleanup_errors=True)


def _checked_wheel(root: Path, wheel: tuple[str, str], scratch: Path) -> Path:
    """A private copy of the wheel, which nobody changes after it was compared."""
    key, sha256 = wheel
    source = ArtifactLocation(root, key)
    copy = scratch / source.path.name
    try:
        shutil.copyfile(source.path, copy)
    except OSError as error:
        raise TaskRefused(f"Wheel {source}: cannot be read ({error}).") from error
    with copy.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        copy.unlink()
        raise TaskRefused(
            f"Wheel {source}: has SHA-256 {found}, not {sha256} as the task was told, so nothing "
            "of it was run. Put it there again."
        )
    return copy


def _bucket(place: Place, attempt: Attempt, timing: Timing, signals: Signals) -> "PodBucket | None":
    if place.s3 is None:
        return None
    from trade_pipeline.compute.runpod.pod_bucket import PodBucket, connect

    objects = connect(place.s3, place.url, place.region)
    return PodBucket(objects, attempt, timing.again_s, timing.deliver_s, lambda: signals.came)


def main() -> int:
    """Run the attempt that the command line names."""
    place = parse_arguments()
    signals, environment = Signals(), dict(os.environ)
    try:
        timing = Timing.of(environment)
        attempt = Attempt(place.root, place.job, place.attempt)
        if place.s3 is None and not place.root.is_dir():
            say(f"{place.root} is not there; is the volume mounted where the host says it is?")
            return NO_PLACE
        bucket = _bucket(place, attempt, timing, signals)
        Supervisor(place, attempt, timing, signals, bucket, environment).supervise()
    except (TaskRefused, ValueError) as error:
        say(str(error))
        return WRONG_TASK
    except (OSError, StorageError) as error:
        say(f"what host and pod share cannot be used: {error}")
        return NO_PLACE
    linger(timing, signals, environment)
    return BY_SIGNAL + signals.number


if __name__ == "__main__":
    sys.exit(main())
