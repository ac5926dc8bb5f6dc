"""A child process of a pod's first process: its time, its signals, its last words.

Knows the standard library alone. Start at `run`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from trade_pipeline.compute.runpod.pod_task import BY_SIGNAL

POLL_S = 0.05
LAST_BYTES = 8_000  # of standard error, for the exit record
_READER_S = 2.0  # for what is still in the pipe when the process has ended


class Interruption(NamedTuple):
    """Why a process is ended from outside.

    Attributes:
        rc: for the exit record.
        reason: a sentence.
        grace_s: between SIGTERM and SIGKILL.
    """

    rc: int
    reason: str
    grace_s: float


class Ended(NamedTuple):
    """How a process ended: 0 and no reason, or the code and the end of its standard error."""

    rc: int
    reason: str


def run(
    command: Sequence[str],
    what: str,
    *,
    environment: Mapping[str, str],
    folder: Path,
    interrupted: Callable[[], Interruption | None],
    held: Sequence[int] = (),
) -> Ended:
    """Run a command to its end, or until it is interrupted; nothing of it is left afterwards.

    What it prints goes where this process prints.

    Args:
        command: the program and its arguments.
        what: the process, for messages.
        environment: all of its environment.
        folder: where it runs.
        interrupted: asked many times a second.
        held: file descriptors that it keeps open.
    """
    process = subprocess.Popen(
        list(command),
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=tuple(held),
    )
    assert process.stderr is not None
    said = _Said(process.stderr)
    why: Interruption | None = None
    try:
        while process.poll() is None:
            why = interrupted()
            if why is not None:
                _end(process, why.grace_s)
                break
            reap(process.pid)
            time.sleep(POLL_S)
    finally:
        _signal(process, signal.SIGKILL)  # what it started and left behind
        process.wait()
        last = said.last()
    if why is not None:
        return Ended(why.rc, f"{why.reason}{last}")
    if process.returncode == 0:
        return Ended(0, "")
    if process.returncode < 0:
        number = -process.returncode
        hint = "; the container's memory may not suffice" if number == signal.SIGKILL else ""
        name = signal.strsignal(number)
        return Ended(
            BY_SIGNAL + number, f"{what} was ended by signal {number} ({name}){hint}.{last}"
        )
    return Ended(process.returncode, f"{what} ended with code {process.returncode}.{last}")


def reap(own: int | None = None) -> None:
    """Collect what was left to this process, as a first process has to; but not that child."""
    with contextlib.suppress(ChildProcessError):
        while True:
            # Looked at first: a child that `subprocess` waits for must be left to it.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid == own:
                return
            os.waitpid(found.si_pid, os.WNOHANG)


def _end(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Ask it and all that it started to end; kill what has not after the grace."""
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class _Said:
    """Passes standard error on as it comes, and keeps its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._kept = stream, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def last(self) -> str:
        """A heading and the last lines, empty where there are none; the process has ended."""
        self._thread.join(_READER_S)
        kept = self._kept.decode("utf-8", "replace").strip()
        return f" The end of its standard error:\n{kept}" if kept else ""

    def _read(self) -> None:
        target = sys.stderr.fileno()
        with self._stream:
            while content := os.read(self._stream.fileno(), 65_536):
                self._kept = (self._kept + content)[-LAST_BYTES:]
                with contextlib.suppress(OSError):  # nobody reads the log any more
                    while content:
                        content = content[os.write(target, content) :]
