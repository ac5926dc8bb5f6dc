"""The life of a pod's first process: begun once, told to end by signals, done when terminated.

Knows the standard library alone. Start at `claimed` and `linger`.
"""

import fcntl
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from trade_pipeline.compute.runpod.pod_process import POLL_S, reap
from trade_pipeline.compute.runpod.pod_task import Attempt
from trade_pipeline.storage.location import flush, make_folder


@dataclass(frozen=True)
class Timing:
    """Seconds, each settable as `TRADE_PIPELINE_<NAME>`.

    Attributes:
        heartbeat_s: between heartbeats.
        grace_s: between SIGTERM and SIGKILL of a task that is out of time.
        linger_s: before a pod that is done asks for its own end.
        again_s: before what could not be written or sent is tried again.
        deliver_s: for so long what could not be written at the end is tried again.
    """

    heartbeat_s: float = 30.0
    grace_s: float = 10.0
    linger_s: float = 600.0
    again_s: float = 5.0
    deliver_s: float = 300.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Timing":
        """Those of an environment."""
        given = {
            name: float(environment[variable])
            for name in cls.__dataclass_fields__
            if (variable := f"TRADE_PIPELINE_{name.upper()}") in environment
        }
        return cls(**given)


class Signals:
    """Remembers that this process was told to end: as a first one it is not ended by default."""

    def __init__(self) -> None:
        self.number = 0
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self._remember)

    @property
    def came(self) -> bool:
        """Whether one came."""
        return self.number != 0

    def sleep(self, seconds: float) -> None:
        """Sleep, until a signal at the latest."""
        until = time.monotonic() + seconds
        while not self.came and (left := until - time.monotonic()) > 0:
            reap()
            time.sleep(min(POLL_S, left))

    def _remember(self, number: int, frame: object) -> None:
        # No lock, event or exception: this runs between any two steps of the main thread.
        self.number = number


@contextmanager
def claimed(
    attempt: Attempt, signals: Signals, begun_elsewhere: Callable[[], bool]
) -> Iterator[tuple[bool, int]]:
    """Whether this is the first start, and a lock that nothing of another start holds any more."""
    make_folder(attempt.folder.path)
    started = attempt.started.path
    try:
        lock = os.open(started, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        is_first = True
    except FileExistsError:
        lock = os.open(started, os.O_RDWR)
        is_first = False
    try:
        if is_first:
            os.write(lock, f"{int(time.time() * 1000)}\n".encode())
            flush(started.parent)
            try:
                is_first = not begun_elsewhere()
            except BaseException:
                started.unlink()  # nothing has begun: the next start may try again
                raise
        if not is_first:
            say("this pod's task was begun before, so nothing is run")
        while not _locked(lock) and not signals.came:
            signals.sleep(POLL_S)
        yield is_first, lock
    finally:
        os.close(lock)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks. In a container that was started again nothing else lives.
        return True
    return True


def linger(timing: Timing, signals: Signals, environment: Mapping[str, str]) -> None:
    """Sleep until the pod is terminated; after a while ask for that, should the host be gone."""
    while not signals.came:
        signals.sleep(timing.linger_s)
        if not signals.came:
            _ask_for_the_end(environment)


def _ask_for_the_end(environment: Mapping[str, str]) -> None:
    """Terminate this pod with its own key, where it has one; it is often refused."""
    key, pod_id = environment.get("RUNPOD_API_KEY"), environment.get("RUNPOD_POD_ID", "")
    url = environment.get("TRADE_PIPELINE_RUNPOD_URL", "")
    if not key or not re.fullmatch(r"\w+", pod_id) or not re.match(r"https?://", url):
        return
    request = urllib.request.Request(
        f"{url.rstrip('/')}/pods/{pod_id}",
        method="DELETE",
        headers={"Authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10):
            say("asked RunPod to terminate this pod")
    except (OSError, ValueError) as error:
        say(f"RunPod does not let this pod terminate itself ({error})")


def say(text: str) -> None:
    """A line for the container's log."""
    print(f"supervisor: {text}", file=sys.stderr, flush=True)
