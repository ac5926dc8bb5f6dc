"""Watching one pod until its task has ended: logs, heartbeat, status, and what each means.

The exit record says how a task ended; everything else only says that no record will come. Knows no
Dagster. Start at `Watch.until_exit`.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, Queue

from trade_pipeline.compute.runpod.api import LogLine, Pod, RunPodApi
from trade_pipeline.compute.runpod.errors import (
    ExchangeError,
    PodCrashLoop,
    PodHung,
    PodLost,
    PodNeverStarted,
    RunPodError,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.exchange import Exchange, ExitRecord
from trade_pipeline.settings.compute import RunPodComputeSettings

LOOSE_ENDS_S = 120.0  # without an answer of RunPod or the exchange, until that is the failure
RECORD_LAG_S = 10.0  # a pod's record may come so long after its end, or after a new start
WITHOUT_UPTIME_S = 180.0  # a pod that runs without a container
LOG_TAIL = 20
QUIET_S = 1.0  # what a log holds at a time has come after so long
OPENS_S = 10.0  # most that is waited for a log which is not followed
CATCH_UP_S = 0.5  # for what a task said last, before its pod is terminated
# Exit codes of the supervisor that say nothing against the task: RunPod told the pod to end, or
# started a broken container again.
CUT_OFF = {143: "was told to end", 75: "was started anew in the middle of the task"}


@dataclass
class Watch:
    """One pod under watch.

    Args:
        api: RunPod.
        exchange: of the job.
        settings: of the compute.
        name: of the pod.
        pod_id: of the pod.
        say: receives each line of the container's log.
        sleep: waits, in seconds.
        clock: monotonic seconds.
    """

    api: RunPodApi
    exchange: Exchange
    settings: RunPodComputeSettings
    name: str
    pod_id: str
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _lines: "Queue[LogLine]" = field(default_factory=Queue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _tail: list[str] = field(default_factory=list)
    _last: str | None = None  # id of the line that was read last

    def until_exit(self) -> ExitRecord:
        """Wait for the exit record, passing on what the pod says.

        Raises:
            PodLost: it is gone, or its container was started anew in the middle.
            PodNeverStarted: it did not come up in time.
            PodCrashLoop: its container starts again and again.
            PodHung: nothing was heard of it for too long.
            RunPodError: RunPod or the exchange could not be asked for too long.
        """
        reader = threading.Thread(target=self._read_logs, daemon=True)
        reader.start()
        record = None
        try:
            record = self._wait()
            return record
        finally:
            self._stop.set()
            reader.join(timeout=2.0)
            if record is not None and not reader.is_alive():
                for line in _held(self.api, self.pod_id, "container", self._last, CATCH_UP_S):
                    self._lines.put(line)
            self._pass_on()

    def _wait(self) -> ExitRecord:
        began = heard = answered = self.clock()
        seq, uptime_s, up = -1, -1.0, False
        while True:
            if self._pass_on():
                heard = self.clock()
            try:
                record = self.exchange.exit_record(self.name)
                if record is not None:
                    return self._ended(record)
                beat = self.exchange.heartbeat(self.name)
                pod = self.api.pod(self.pod_id)
                answered = self.clock()
            except (RunPodUnavailable, ExchangeError):
                if self.clock() - answered > LOOSE_ENDS_S:
                    raise
                self.sleep(self.settings.poll_s)
                continue
            if pod is None or pod.status in ("EXITED", "ERROR", "TERMINATED"):
                return self._gone(pod)
            if beat is not None and beat.seq != seq:
                seq, heard, up = beat.seq, self.clock(), True
            if pod.uptime_s is not None:
                # Once it lives, RunPod's log of starts has nothing to add and costs a second.
                if pod.uptime_s + 1.0 < uptime_s or (not up and self._starts() > 1):
                    return self._crashed()
                uptime_s = max(uptime_s, pod.uptime_s)
            self._require_start(pod, began, up)
            quiet_s = self.clock() - heard
            if up and quiet_s > 60 * self.settings.idle_minutes:
                raise PodHung(
                    f"Pod {self.pod_id} ({self.name}): no heartbeat and no line of its log for "
                    f"{quiet_s / 60:.0f} minutes, so it was terminated. Run the task again: it "
                    f"goes on from its checkpoint. Its last lines:\n{self._last_lines()}"
                )
            self.sleep(self.settings.poll_s)

    def _late_record(self) -> ExitRecord | None:
        until = self.clock() + RECORD_LAG_S
        while True:
            record = self.exchange.exit_record(self.name)
            if record is not None or self.clock() > until:
                return record
            self.sleep(min(self.settings.poll_s, 1.0))

    def _ended(self, record: ExitRecord) -> ExitRecord:
        if record.rc in CUT_OFF:
            raise PodLost(
                f"Pod {self.pod_id} ({self.name}): its container {CUT_OFF[record.rc]}. "
                f"{record.reason}"
            )
        return record

    def _gone(self, pod: Pod | None) -> ExitRecord:
        """A pod that is no more: its record may be a moment behind."""
        record = self._late_record()
        if record is not None:
            return self._ended(record)
        became = "is gone" if pod is None else f"is {pod.status}"
        raise PodLost(
            f"Pod {self.pod_id} ({self.name}) {became} and left no exit record: it was preempted, "
            "stopped in RunPod's console, or its machine failed. The task goes on from its "
            f"checkpoint. Its last lines:\n{self._last_lines()}"
        )

    def _crashed(self) -> ExitRecord:
        record = self._late_record()  # of a supervisor that saw it
        if record is not None:
            return self._ended(record)
        raise PodCrashLoop(
            f"Pod {self.pod_id} ({self.name}): its container starts again and again, so it was "
            "terminated. Look whether the image holds trade_pipeline and fits the GPU's CUDA. "
            f"The end of its log:\n{self._last_lines()}\nRunPod says:\n{self._system_log()}"
        )

    def _require_start(self, pod: Pod, began: float, up: bool) -> None:
        waited_s, limit_s = self.clock() - began, 60 * self.settings.start_minutes
        starting = pod.status in ("PROVISIONING", "STARTING")
        without = not up and not starting and not pod.uptime_s
        if (starting and waited_s > limit_s) or (
            without and waited_s > min(limit_s, WITHOUT_UPTIME_S)
        ):
            raise PodNeverStarted(
                f"Pod {self.pod_id} ({self.name}) is {pod.status} after {waited_s / 60:.1f} "
                "minutes and its container does not run, so it was terminated. Try another GPU or "
                "a smaller image, or raise `start_minutes`. RunPod says:\n" + self._system_log()
            )

    def _read_logs(self) -> None:
        """Follow the container's log; what goes wrong here is not what decides."""
        while not self._stop.is_set():
            try:
                for line in self.api.logs(self.pod_id, "container", self._last, self._stop):
                    self._last = line.id
                    self._lines.put(line)
            except RunPodError:
                pass
            self._stop.wait(self.settings.poll_s)

    def _pass_on(self) -> bool:
        """Hand on the lines that came; whether there were any."""
        any_came = False
        while True:
            try:
                line = self._lines.get_nowait().line
            except Empty:
                return any_came
            any_came = True
            self._tail = [*self._tail[1 - LOG_TAIL :], line]
            self.say(line)

    def _starts(self) -> int:
        """How often the container was started, by RunPod's own log."""
        return sum("start container" in line.lower() for line in self._system_lines())

    def _system_lines(self) -> list[str]:
        return [line.line for line in _held(self.api, self.pod_id, "system", None, QUIET_S)]

    def _system_log(self) -> str:
        return "\n".join(self._system_lines()[-LOG_TAIL:]) or "(nothing)"

    def _last_lines(self) -> str:
        return "\n".join(self._tail) or "(nothing)"


def _held(
    api: RunPodApi, pod_id: str, source: str, after: str | None, for_s: float
) -> list[LogLine]:
    """What a log holds now, after a line."""
    stop = threading.Event()
    guard = threading.Timer(OPENS_S, stop.set)
    guard.start()
    found: list[LogLine] = []
    try:
        for line in api.logs(pod_id, source, after, stop, for_s):
            found.append(line)
    except RunPodError:
        pass
    finally:
        guard.cancel()
    return found
