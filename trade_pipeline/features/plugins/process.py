"""Runs a plug-in's code in a process of its own, which may loop, print without end, or die.

The child reports JSON lines on a pipe that its prints do not reach. When the time is up, or the
child has ended, its whole process group is killed. Start at `run_child`.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

# -P: nothing of the working folder may stand in for a module before sys.path is the parent's. -u:
# what it printed is there also when it dies.
STARTER = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trade_pipeline.features.plugins.process import serve; serve(*sys.argv[2:])"
)
MOST_PRINTED = 4_000
MOST_REPORTED = 4_000_000
TURN_S = 0.1
MOST_READS = 128
START_S = 120.0  # for a busy machine to start Python and import numpy, polars and pydantic
READY = "ready"


@dataclass
class Ended:
    """How a child process went.

    Attributes:
        reports: what it reported, in order, after it was ready.
        printed: beginning of what it printed.
        printed_bytes: of all that it printed while it was watched.
        code: exit code, negative for a signal; None where it was ended since its time was up.
        ready: whether it came as far as its task.
        took_s: seconds from when it was ready.
    """

    reports: list[Any] = field(default_factory=list)
    printed: str = ""
    printed_bytes: int = 0
    code: int | None = None
    ready: bool = False
    took_s: float = 0.0

    @property
    def out_of_time(self) -> bool:
        """Whether its task began and did not end in time."""
        return self.ready and self.code is None

    def __str__(self) -> str:
        """How it ended, as a clause."""
        if self.code is None:
            return "did not end in time and was stopped"
        if self.code < 0:
            return f"was ended by signal {-self.code} ({signal.strsignal(-self.code)})"
        return f"ended the process with exit code {self.code}"


def run_child(
    task: str,
    job: Any,
    limit_s: float,
    between_s: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run `task` in a new process and wait for it.

    Args:
        task: `module:function`, called as `function(job, report)`; `report` takes JSON.
        job: JSON that the function gets.
        limit_s: most seconds from when it is ready.
        between_s: most seconds from one report to the next.
        environment: variables set for it beside those of this process.
    """
    read, write = os.pipe()
    given = (json.dumps([str(one) for one in sys.path]), task, json.dumps(job), str(write))
    try:
        child = subprocess.Popen(
            [sys.executable, "-Pu", "-c", STARTER, *given],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(write,),
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    assert child.stdout is not None
    watch = _Watch(child, read, child.stdout.fileno())
    try:
        in_time = watch.until_the_end(limit_s, between_s)
    finally:
        # Before its exit is collected: until then the group's number cannot be another's.
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        child.stdout.close()
        os.close(read)
    watch.ended.code = code if in_time else None
    return watch.ended


def serve(task: str, job: str, write: str) -> None:
    """The child's side: do the task, and leave without waiting for threads or exit handlers."""
    channel = int(write)
    os.set_inheritable(channel, False)

    def report(content: Any) -> None:
        line = (json.dumps(content) + "\n").encode()
        while line:
            line = line[os.write(channel, line) :]

    module, _, function = task.partition(":")
    do = getattr(import_module(module), function)
    report(READY)
    do(json.loads(job), report)
    os._exit(0)


class _Watch:
    """Collects what a child reports and prints until it ends or its time is up."""

    def __init__(self, child: subprocess.Popen[bytes], reports: int, output: int) -> None:
        self.ended = Ended()
        self._pid = child.pid
        self._line = b""
        self._reported = 0
        self._moved = time.monotonic()
        self._selector = selectors.DefaultSelector()
        for channel, take in ((reports, self._take_report), (output, self._take_output)):
            os.set_blocking(channel, False)
            self._selector.register(channel, selectors.EVENT_READ, take)

    def until_the_end(self, limit_s: float, between_s: float | None) -> bool:
        """Watch; returns whether the child ended by itself in its time."""
        began = time.monotonic()
        started = False
        with self._selector:
            while True:
                if self._exited():
                    for _ in range(MOST_READS):  # a child of its own may go on printing
                        if not self._read(0.0):
                            break
                    return True
                # What came before this moment is read before its silence is judged.
                now = time.monotonic()
                self._read(TURN_S)
                if not self.ended.ready:
                    if now - began > START_S:
                        return False
                    continue
                if not started:
                    began, started = now, True
                self.ended.took_s = now - began
                stopped = between_s is not None and now - self._moved > between_s
                if stopped or now - began > limit_s or self._reported > MOST_REPORTED:
                    return False

    def _exited(self) -> bool:
        """Whether it has ended; leaves its exit code to be collected."""
        found = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return found is not None

    def _read(self, wait_s: float) -> bool:
        """Take what lies in the pipes; returns whether there was anything."""
        ready = self._selector.select(wait_s) if self._selector.get_map() else []
        if not ready and wait_s:
            time.sleep(0.0 if self._selector.get_map() else wait_s)
        for key, _ in ready:
            content = os.read(key.fd, 1 << 16)
            if content:
                key.data(content)
            else:
                self._selector.unregister(key.fileobj)
        return bool(ready)

    def _take_report(self, content: bytes) -> None:
        self._reported += len(content)
        self._moved = time.monotonic()
        *lines, self._line = (self._line + content).split(b"\n")
        for line in lines:
            with suppress(ValueError):
                said = json.loads(line)
                if said == READY:
                    self.ended.ready = True
                else:
                    self.ended.reports.append(said)

    def _take_output(self, content: bytes) -> None:
        self.ended.printed_bytes += len(content)
        room = MOST_PRINTED - len(self.ended.printed)
        if room > 0:
            self.ended.printed += content.decode("utf-8", "replace")[:room]
