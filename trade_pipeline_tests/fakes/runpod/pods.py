"""A pod: a life in a thread, a container that is a local process, its log and its charges.

Knows no HTTP. Status goes PROVISIONING, STARTING, RUNNING; the command runs again and again after
it ends, as RunPod's does; nobody learns its exit code. Start at `FakePod`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trade_pipeline_tests.fakes.runpod.barrier import Barrier
from trade_pipeline_tests.fakes.runpod.faults import Fault
from trade_pipeline_tests.loopback_site import only_loopback

PROJECT = Path(__file__).resolve().parents[3]
NS_PER_S = 1_000_000_000
ACTIONS = {
    "PROVISIONING": ("stop", "terminate"),
    "STARTING": ("stop", "terminate"),
    "RUNNING": ("stop", "restart", "terminate"),
    "EXITED": ("start", "terminate"),
    "ERROR": ("terminate",),
    "TERMINATED": (),
}


@dataclass
class Timing:
    """Delays in seconds; short ones, so that tests are.

    Attributes:
        provisioning_s, starting_s: until the container runs.
        restart_s: between an end of the command and its next start.
        grace_s: between SIGTERM and SIGKILL when a container is ended.
        keepalive_s: between the comments of an idle log stream.
        terminated_visible_s: for so long a terminated pod is shown as TERMINATED, then it is 404.
        billing_lag_s: younger usage is in no bill.
    """

    provisioning_s: float = 0.02
    starting_s: float = 0.02
    restart_s: float = 0.2
    grace_s: float = 0.5
    keepalive_s: float = 0.2
    terminated_visible_s: float = 0.0
    billing_lag_s: float = 3600.0


@dataclass(frozen=True)
class Line:
    """One line of a log."""

    ts_ns: int
    source: str
    text: str


@dataclass(frozen=True)
class Charge:
    """What one pod cost; `ended` where it bills no more, as a stopped or terminated one."""

    pod_id: str
    name: str
    usd_h: float
    seconds: float
    ended: bool

    @property
    def usd(self) -> float:
        """Seconds times rate."""
        return self.seconds / 3600 * self.usd_h


@dataclass
class Mount:
    """A volume's folder, seen by a pod below `path`."""

    path: Path
    volume_id: str
    folder: Path


@dataclass
class FakePod:
    """One pod.

    Attributes:
        spec: the request that made it.
        status: as RunPod shows it.
        spans: when it billed, Unix seconds; the last may have no end yet.
        starts: how often its container was started.
        gone: RunPod knows it no more (404), though it was not terminated by anybody.
    """

    id: str
    name: str
    spec: dict[str, Any]
    data_center: str
    cost_usd_h: float
    timing: Timing
    barrier: Barrier
    env: Mapping[str, str]
    mount: Mount | None
    faults: Mapping[str, Fault]
    status: str = "PROVISIONING"
    created_s: float = field(default_factory=time.time)
    started_s: float | None = None
    spans: list[tuple[float, float | None]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    starts: int = 0
    gone: bool = False
    terminated_s: float | None = None
    terminate_after: datetime | None = None
    lists: int = 0
    tries: int = 0

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._folder = Path(tempfile.mkdtemp(prefix=f"pod-{self.id}-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._container_s: float | None = None
        self._run = threading.Event()  # its container should run
        self._over = threading.Event()  # there will be no container any more
        self._timers: list[threading.Timer] = []
        self.spans.append((self.created_s, None))
        self._run.set()
        self._thread = threading.Thread(target=self._live, name=f"pod {self.id}", daemon=True)

    # What is to be seen of it.

    @property
    def is_live(self) -> bool:
        """Whether it has still to be terminated by somebody."""
        return self.terminated_s is None and not self.gone

    @property
    def is_known(self) -> bool:
        """Whether RunPod answers for it."""
        if self.gone:
            return False
        visible = self.timing.terminated_visible_s
        return self.terminated_s is None or time.time() - self.terminated_s < visible

    @property
    def actions(self) -> tuple[str, ...]:
        """What may be done with it now."""
        return ACTIONS[self.status]

    @property
    def cost_now_usd_h(self) -> float:
        """What it costs now: nothing when it is stopped or terminated."""
        return self.cost_usd_h if self.spans[-1][1] is None else 0.0

    @property
    def uptime_s(self) -> int | None:
        """Of the container; 0 between two runs of the command, None where the pod does not run."""
        if self.status != "RUNNING":
            return None
        started = self._container_s
        return 0 if started is None else int(time.time() - started)

    @property
    def charge(self) -> Charge:
        """What it has cost so far."""
        now = time.time()
        seconds = sum((now if end is None else end) - start for start, end in self.spans)
        ended = self.spans[-1][1] is not None
        return Charge(self.id, self.name, self.cost_usd_h, seconds, ended)

    @property
    def log(self) -> list[str]:
        """What its container wrote."""
        with self.changed:
            return [line.text for line in self.lines if line.source == "container"]

    @property
    def system_log(self) -> list[str]:
        """What its machine said of it."""
        with self.changed:
            return [line.text for line in self.lines if line.source == "system"]

    @property
    def pid(self) -> int | None:
        """Of the container's outermost process, or None where none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    # What can be done with it.

    def begin(self) -> None:
        """Begin its life."""
        self._thread.start()

    def act(self, action: str) -> None:
        """Do what `actions` allows, terminate excepted."""
        if action == "restart":
            self._end_container()
        elif action == "stop":
            self._stop("stop container")
        else:
            with self.changed:
                self._set_status("STARTING")
                self.spans.append((time.time(), None))
                self._run.set()

    def terminate(self) -> None:
        """It bills no more and its processes end; the call does not wait for them."""
        with self.changed:
            if self.terminated_s is not None:
                return
            self.terminated_s = time.time()
            self._finish_span()
            self._set_status("TERMINATED")
            self._finish()
        threading.Thread(target=self._end_container, daemon=True).start()

    def preempt(self, *, gone: bool = False) -> None:
        """Its machine takes it away: killed, EXITED, or not known any more."""
        with self.changed:
            if not self.is_live:
                return
            self._run.clear()
            self._finish_span()
            self.gone = gone
            if gone:
                self._finish()
            self._set_status("EXITED")
        self._signal(signal.SIGKILL)

    def hang(self) -> None:
        """Its processes stop and stay: no heartbeat, no line."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """The contrary of `hang`."""
        self._signal(signal.SIGCONT)

    def kill_container(self) -> None:
        """Kill what runs in it; the command is run again."""
        self._signal(signal.SIGKILL)

    def set_terminate_after(self, when: datetime, *, enforced: bool) -> None:
        """Note RunPod's own timer; it may be one that nothing acts on."""
        self.terminate_after = when
        if enforced:
            self._later((when - datetime.now(UTC)).total_seconds(), self.terminate)

    def close(self) -> None:
        """End what it started, wait for that, and leave no file."""
        with self.changed:
            self._finish()
        self._signal(signal.SIGKILL)
        if self._thread.is_alive():
            self._thread.join(10)
        shutil.rmtree(self._folder, ignore_errors=True)

    # Its life.

    def _live(self) -> None:
        self._say("system", [f"create container {self.spec.get('image', '')}"])
        if "stuck_provisioning" in self.faults:
            return
        self._over.wait(self.timing.provisioning_s)
        while not self._over.is_set():
            if not self._run.wait(0.02):
                continue
            self._change_running("STARTING")
            if "stuck_starting" in self.faults or self._over.wait(self.timing.starting_s):
                return
            with self.changed:
                self.started_s = time.time()
                self._change_running("RUNNING")
            while self._run.is_set() and not self._over.is_set():
                self._change_running("RUNNING")
                if "uptime_zero" in self.faults:
                    return
                self._run_container()
                self._over.wait(self.timing.restart_s)

    def _run_container(self) -> None:
        self._say("system", [f"start container for {self.spec.get('image', '')}: begin"])
        work = Path(tempfile.mkdtemp(prefix="container-", dir=self._folder))
        try:
            with self.changed:
                if not self._run.is_set() or self._over.is_set():
                    return
                process = self._process = subprocess.Popen(
                    self.barrier.wrap(self._command()),
                    cwd=work,
                    env=self._environment(work),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self.starts += 1
                self._container_s = time.time()
        except (OSError, ValueError) as error:
            self._say("system", [f"error starting container: {error}"])
            return
        self._plan_misfortune()
        assert process.stdout is not None
        reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
        reader.start()
        process.wait()
        self._signal(signal.SIGKILL)  # a container's first process takes all others along
        reader.join(5)
        self._container_s = None
        shutil.rmtree(work, ignore_errors=True)

    def _read(self, output: Iterable[bytes]) -> None:
        for line in output:
            self._say("container", [line.decode(errors="replace").rstrip("\r\n")])

    def _command(self) -> list[str]:
        words = shlex.split(self.spec.get("args", ""))
        if not words:
            return ["sleep", "infinity"]
        return [sys.executable if words[0] == "python" else words[0], *words[1:]]

    def _environment(self, work: Path) -> dict[str, str]:
        hook = self._folder / "hook"
        self.barrier.install(self.id, hook)
        paths = [only_loopback.FOLDER, str(hook), str(PROJECT), self.env.get("PYTHONPATH", "")]
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(work),
            **self.env,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "RUNPOD_POD_ID": self.id,
        }

    def _plan_misfortune(self) -> None:
        if "crash_loop" in self.faults:
            after_s = self.faults["crash_loop"]["after_s"]
            if after_s > 0:
                self._later(after_s, self.kill_container)
            else:  # no timer that might be late
                self.kill_container()
        if self.starts == 1 and "hung" in self.faults:
            self._later(self.faults["hung"]["after_s"], self.hang)
        if self.starts == 1 and "preempted" in self.faults:
            fault = self.faults["preempted"]
            self._later(fault["after_s"], lambda: self.preempt(gone=fault["gone"]))

    def _later(self, seconds: float, action: Any) -> None:
        timer = threading.Timer(max(0.0, seconds), action)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def _stop(self, word: str) -> None:
        with self.changed:
            self._run.clear()
            self._finish_span()
            self._set_status("EXITED")
        self._say("system", [word])
        self._end_container()

    def _change_running(self, status: str) -> None:
        with self.changed:
            if self._run.is_set() and not self._over.is_set():
                self._set_status(status)

    def _set_status(self, status: str) -> None:
        self.status = status
        self.changed.notify_all()

    def _finish_span(self) -> None:
        start, end = self.spans[-1]
        if end is None:
            self.spans[-1] = (start, time.time())

    def _finish(self) -> None:
        self._over.set()
        self._run.clear()
        for timer in self._timers:
            timer.cancel()
        self.changed.notify_all()

    def _end_container(self) -> None:
        """SIGTERM, a grace, SIGKILL."""
        process = self._process
        if process is None:
            return
        for pid in children_of(process.pid) if self.barrier.isolated else [process.pid]:
            with contextlib.suppress(ProcessLookupError):  # only the first process is asked
                os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.timing.grace_s)
        if self._process is process:
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Reach every process of the container, those in sessions of their own too."""
        for pid in processes_of(self.id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _say(self, source: str, texts: list[str]) -> None:
        with self.changed:
            for text in texts:
                last = self.lines[-1].ts_ns if self.lines else 0
                self.lines.append(Line(max(time.time_ns(), last + 1), source, text))
            self.changed.notify_all()


def children_of(pid: int) -> list[int]:
    """Processes that this one started."""
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:  # it has ended
        return []
    return [int(child) for child in listed.split()]


def processes_of(pod_id: str) -> list[int]:
    """Processes that carry a pod's id in the environment that they were started with."""
    marker = f"RUNPOD_POD_ID={pod_id}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it may have ended, or be somebody else's
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
