"""The reaper: no pod of ours outlives the run that waits for it, whatever became of that run.

Compares RunPod's pods with the ledger's leases and sets both right: a pod that nobody needs is
terminated, a lease whose pod is gone is closed with its cost. Only pods that carry this
deployment's names are touched, so two hosts with ledgers of their own need two deployments. May
run in several processes at once.

Knows no Dagster: what became of a run is asked of the caller. Start at `reap`; `end_pod` ends one
pod, `reconcile` compares the ledger with RunPod's bill.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple, TypeVar

from trade_pipeline.compute.runpod.api import Pod, RunPodApi
from trade_pipeline.compute.runpod.budget import costs_too_much
from trade_pipeline.compute.runpod.errors import (
    ExchangeError,
    PodMayStillBeBilling,
    RunPodError,
)
from trade_pipeline.compute.runpod.lease import Lease
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.plan import is_ours

RunState = Literal["running", "ended", "unknown"]
Outcome = Literal["terminated", "gone", "void", "adopted", "young", "failed"]

Subject = TypeVar("Subject")
Found = TypeVar("Found")

ENDED_AT_ONCE = 8
WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between attempts to end a pod


class Patience(NamedTuple):
    """How long the reaper waits before it acts.

    Attributes:
        grace: until what is not known counts as wrong; longer than the longest creation and than
            RunPod's listings lag.
        slack: beyond the planned hours, for start and upload.
        start: until the first heartbeat.
        idle: between heartbeats.
    """

    grace: timedelta = timedelta(minutes=10)
    slack: timedelta = timedelta(minutes=30)
    start: timedelta = timedelta(minutes=30)
    idle: timedelta = timedelta(minutes=30)


PATIENCE = Patience()


@dataclass(frozen=True)
class Reaped:
    """What was set right, or could not be.

    Attributes:
        name: of the lease.
        outcome: terminated; gone, without us; void, never a pod; adopted, the pod of an intent
            whose answer was lost; young, a pod that nobody is known to wait for and that was left
            until its grace is over; failed, to be tried again.
        error: where it failed. `PodMayStillBeBilling` wants somebody to look.
        grace_until: of a young one.
    """

    name: str
    pod_id: str | None
    run: str
    outcome: Outcome
    reason: str
    cost_usd: float | None = None
    error: RunPodError | None = None
    grace_until: datetime | None = None


class Reconciled(NamedTuple):
    """A pod in ledger and bill.

    Attributes:
        billed_usd: None until RunPod has billed anything for it.
        difference_usd: billed less ledger; None with it.
    """

    name: str
    pod_id: str
    run: str
    ledger_usd: float
    billed_usd: float | None
    difference_usd: float | None


def reap(
    api: RunPodApi,
    ledger: Ledger,
    deployment: str,
    run_state: Callable[[str], RunState],
    clock: Callable[[], datetime],
    *,
    patience: Patience = PATIENCE,
    heartbeat: Callable[[str, str], datetime | None] | None = None,
    waited_for: Callable[[str], bool] = lambda job: True,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Reaped]:
    """Terminate the pods that nobody needs and close the leases whose pods are gone.

    Args:
        api: RunPod.
        ledger: of this host.
        deployment: whose pods may be touched.
        run_state: what became of a run; `unknown` where its record is not to be had.
        clock: the time, aware.
        patience: how long to wait before acting.
        heartbeat: last one of a pod by its name and job; None where there was none yet. Where it
            cannot be told (an `ExchangeError`, or no function) only the other rules hold.
        waited_for: whether a process of this host waits for a job: a run that was killed may stand
            in Dagster as running for ever.
        sleep: waits, in seconds.

    Returns:
        What was set right, what was left for now, and what failed: one pod that cannot be ended
        keeps no other alive.

    Raises:
        RunPodError: RunPod's pods cannot be listed.
    """
    # Pods before leases: an intent is written before its pod is made, so a listed pod without a
    # lease has none, rather than one that came in between.
    pods = [pod for pod in api.pods() if is_ours(pod.name, deployment)]
    leases = ledger.open(deployment)
    work = _Work(api, ledger, deployment, run_state, clock, patience, heartbeat, waited_for, sleep)
    listed = {pod.id for pod in pods}
    found = [_tried(work.pod, pod, pod.name, pod.id) for pod in pods]
    for lease in leases:
        if lease.pod_id not in listed:
            found.append(_tried(work.missing, lease, lease.name, lease.pod_id))
    with ThreadPoolExecutor(ENDED_AT_ONCE) as threads:  # one that resists delays no other
        done = threads.map(work.done, found)
    return [one for one in done if one is not None]


def end_pod(
    api: RunPodApi,
    ledger: Ledger,
    lease: Lease,
    reason: str,
    sleep: Callable[[float], None],
    clock: Callable[[], datetime],
    *,
    run: str | None = None,
    waits_s: Sequence[float] | None = None,
) -> Lease:
    """Terminate a lease's pod, make sure that it is gone, and enter what it cost.

    Repeatable, and harmless where another process does the same. An intent has no pod id: the pod
    is looked for by its name; where none is found the intent stays open, for the reaper.

    Args:
        api: RunPod.
        ledger: that the lease is from.
        lease: as it was read last.
        reason: why, for the ledger.
        sleep: waits, in seconds.
        clock: the time, aware.
        run: only if this run still waits for it; else the lease comes back live.
        waits_s: pauses between the attempts; `WAITS_S` where none are named.

    Raises:
        PodMayStillBeBilling: it was not shown to be gone; its lease stays open.
        RunPodError: an intent's pod was to be looked for, and pods cannot be listed.
    """
    waits = (0.0, *(WAITS_S if waits_s is None else waits_s))
    if lease.pod_id is None:
        found = _find(api, ledger, lease, sleep, waits)
        if found is None:
            return ledger.lease(lease.name) or lease
        lease = found
    lease = ledger.ending(lease.name, reason, run)
    if lease.state != "ending" or lease.pod_id is None:
        return lease
    last: RunPodError | None = None
    for wait in waits:
        sleep(wait)
        try:
            api.terminate(lease.pod_id)
        except RunPodError as error:
            last = error
        try:
            if _gone(api.pod(lease.pod_id)):
                return ledger.ended(lease.name, reason, clock())
        except RunPodError as error:
            last = error
    raise PodMayStillBeBilling(
        f"Pod {lease.pod_id} ({lease.name}, {lease.burn_usd_h:g} USD/h) was asked to terminate "
        f"{len(waits)} times and was not seen to be gone"
        f"{f' ({last})' if last else ''}. Terminate it in RunPod's console, or run "
        "`trade-pipeline pods reap` again.",
        lease.pod_id,
    ) from last


def reconcile(api: RunPodApi, ledger: Ledger, since: datetime, now: datetime) -> list[Reconciled]:
    """Ledger and bill of each pod made since then; RunPod's bill lags by hours."""
    billed: dict[str, list[float]] = defaultdict(list)
    for charge in api.charges(since):
        billed[charge.pod_id].append(charge.amount_usd)
    rows = []
    for lease in ledger.leases():
        if lease.pod_id is None or lease.began_at is None or lease.began_at < since:
            continue
        expected = lease.accrued_usd(now)
        amount = math.fsum(billed[lease.pod_id]) if lease.pod_id in billed else None
        difference = None if amount is None else amount - expected
        rows.append(Reconciled(lease.name, lease.pod_id, lease.run, expected, amount, difference))
    return rows


class _Doomed(NamedTuple):
    """A lease whose pod has to go, and why."""

    lease: Lease
    reason: str


@dataclass(frozen=True)
class _Work:
    """One round of the reaper: what is wrong is found one by one, and ended together."""

    api: RunPodApi
    ledger: Ledger
    deployment: str
    run_state: Callable[[str], RunState]
    clock: Callable[[], datetime]
    patience: Patience
    heartbeat: Callable[[str, str], datetime | None] | None
    waited_for: Callable[[str], bool]
    sleep: Callable[[float], None]

    def pod(self, pod: Pod) -> Reaped | _Doomed | None:
        """A pod that RunPod lists."""
        lease = self.ledger.of_pod(pod.id) or self.ledger.lease(pod.name)
        if lease is None or lease.pod_id not in (None, pod.id):
            if self._young(pod.created_at):
                until = pod.created_at + self.patience.grace
                reason = "no lease knows it"
                return Reaped(pod.name, pod.id, "", "young", reason, grace_until=until)
            stray = self.ledger.stray(pod, self.deployment)
            return _Doomed(stray, "no lease knew it, or its name had another pod")
        if lease.state == "ended":
            if _gone(self.api.pod(pod.id)):  # the list lags, or somebody ended it just now
                return None
            self.ledger.again(lease.name, "")
            return _Doomed(lease, "it was there after it had been taken for gone")
        if lease.state == "void":
            lease = self.ledger.live(lease.name, pod)
            return _Doomed(lease, "it was made after it had been given up")
        if lease.state == "intent":
            lease = self.ledger.live(lease.name, pod)
            adopted = _reaped(lease, "adopted", "the answer that told of the pod was lost")
            judged = self._judge(lease)
            return judged if isinstance(judged, _Doomed) else adopted
        return self._judge(lease)

    def missing(self, lease: Lease) -> Reaped | _Doomed | None:
        """An open lease whose pod RunPod does not list."""
        if lease.pod_id is None:
            if self._young(lease.asked_at):
                return None
            reason = f"no pod came of it within {self.patience.grace}"
            lease = self.ledger.void(lease.name, reason)
            return _reaped(lease, "void", reason) if lease.state == "void" else None
        if not _gone(self.api.pod(lease.pod_id)):
            return self._judge(lease)
        if lease.state == "live" and self._young(lease.asked_at):
            return None
        # When it went is not known, only that it was now at the latest: the cost is the most that
        # it can have been.
        lease = self.ledger.ended(lease.name, "it was gone without us", self.clock())
        return _reaped(lease, "gone", lease.reason)

    def done(self, found: Reaped | _Doomed | None) -> Reaped | None:
        """The outcome; terminates what has to go, unless another run took it over meanwhile."""
        if not isinstance(found, _Doomed):
            return found
        lease, reason = found
        return _tried(lambda lease: self._end(lease, reason), lease, lease.name, lease.pod_id)

    def _end(self, lease: Lease, reason: str) -> Reaped | None:
        lease = end_pod(self.api, self.ledger, lease, reason, self.sleep, self.clock, run=lease.run)
        return _reaped(lease, "terminated", reason) if lease.state == "ended" else None

    def _judge(self, lease: Lease) -> Reaped | _Doomed | None:
        reason = self._against(lease)
        if reason is not None:
            return _Doomed(lease, reason)
        nobody = self._nobody_waits(lease)
        if nobody is None:
            return None
        until = lease.asked_at + self.patience.grace
        return Reaped(lease.name, lease.pod_id, lease.run, "young", nobody, grace_until=until)

    def _against(self, lease: Lease) -> str | None:
        """Why the pod of an open lease has to go; None where it may stay."""
        now, began = self.clock(), lease.began_at or lease.asked_at
        if lease.state == "ending":
            return lease.reason
        if costs_too_much(lease):
            return f"it costs {lease.burn_usd_h:g} USD/h, {lease.approved_usd_h:g} were approved"
        if not lease.run:
            return "no run waits for it"
        if self.run_state(lease.run) == "ended":
            return f"run {lease.run} has ended"
        if not self._young(lease.asked_at) and (nobody := self._nobody_waits(lease)):
            return nobody
        if now > began + timedelta(hours=lease.hours) + self.patience.slack:
            return f"its {lease.hours:g} planned hours are over"
        if self.heartbeat is None:
            return None
        try:
            beat = self.heartbeat(lease.name, lease.job)
        except ExchangeError:
            return None
        if beat is None and now > began + self.patience.start:
            return f"no heartbeat came within {self.patience.start}"
        if beat is not None and now > beat + self.patience.idle:
            return f"its last heartbeat came at {beat.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        return None

    def _nobody_waits(self, lease: Lease) -> str | None:
        """What is wrong with the run of a lease that has not ended, which may be its youth."""
        if self.run_state(lease.run) == "unknown":
            return f"run {lease.run} is not known"
        if not self.waited_for(lease.job):
            return f"no process of run {lease.run} waits for it any more"
        return None

    def _young(self, since: datetime) -> bool:
        return self.clock() <= since + self.patience.grace


def _tried(
    step: Callable[[Subject], Found], subject: Subject, name: str, pod_id: str | None
) -> Found | Reaped:
    """What a step gives; its failure as an outcome, so that the next step comes all the same."""
    try:
        return step(subject)
    except RunPodError as error:
        return Reaped(name, pod_id, "", "failed", str(error), error=error)


def _find(
    api: RunPodApi,
    ledger: Ledger,
    lease: Lease,
    sleep: Callable[[float], None],
    waits_s: Sequence[float],
) -> Lease | None:
    """The lease of an intent with its pod, looked for by name, or None."""
    for wait in waits_s:
        sleep(wait)
        for pod in api.pods():
            if pod.name == lease.name:
                return ledger.live(lease.name, pod)
    return None


def _gone(pod: Pod | None) -> bool:
    return pod is None or pod.status == "TERMINATED"


def _reaped(lease: Lease, outcome: Outcome, reason: str) -> Reaped:
    return Reaped(lease.name, lease.pod_id, lease.run, outcome, reason, lease.cost_usd)
