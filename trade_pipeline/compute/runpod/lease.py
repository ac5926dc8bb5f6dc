"""What a lease is: a pod that somebody asked for, its state, and what it costs.

    intent -> live -> ending -> ended        the pod was asked for, is there, goes, is gone
    intent -> void                           it never became a pod
    void -> live, ended -> live              it is there after all: listings and answers lag
    void -> intent                           the same name is asked for with another GPU

Plain data and arithmetic; `ledger` keeps it.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

State = Literal["intent", "live", "ending", "ended", "void"]


@dataclass(frozen=True)
class Intent:
    """A pod that is about to be asked for.

    Attributes:
        name: of the pod; nobody else's.
        job: what the task is, 16 hex digits.
        run: Dagster run that waits for it.
        approved_usd_h: most that it may cost in an hour.
        hours: planned.
        root_run: run whose budget pays, the first of a chain of retries; `run` where empty.
    """

    name: str
    job: str
    run: str
    deployment: str
    gpu: str
    approved_usd_h: float
    hours: float
    root_run: str = ""

    @property
    def estimate_usd(self) -> float:
        """Dollars that the planned hours cost."""
        return self.approved_usd_h * self.hours


@dataclass(frozen=True, kw_only=True)
class Lease(Intent):
    """What the ledger knows of a pod.

    Attributes:
        reason: for the state it is in, in words.
        asked_at: when the intent was written.
        rate_usd_h: what RunPod says that it costs.
        began_at: from when on it is paid: RunPod's time of creation.
        ended_at: when it was seen to be gone.
        cost_usd: hours between the two times the rate; None until it has ended.
    """

    state: State
    reason: str
    asked_at: datetime
    pod_id: str | None
    rate_usd_h: float | None
    began_at: datetime | None
    ended_at: datetime | None
    cost_usd: float | None

    @property
    def is_open(self) -> bool:
        """Whether it may cost money still."""
        return self.state in ("intent", "live", "ending")

    @property
    def burn_usd_h(self) -> float:
        """Dollars an hour, the approved ones while RunPod named none."""
        return self.approved_usd_h if self.rate_usd_h is None else self.rate_usd_h

    def accrued_usd(self, now: datetime) -> float:
        """Dollars that it cost until now, or until it ended."""
        if self.began_at is None:
            return 0.0
        return cost_usd(self.burn_usd_h, self.began_at, self.ended_at or now)

    def counted_usd(self, now: datetime) -> float:
        """Dollars that a budget counts: the cost, or the estimate while open and not passed."""
        if self.is_open:
            return max(self.estimate_usd, self.accrued_usd(now))
        return self.cost_usd or 0.0


class Transition(NamedTuple):
    """A line of the history."""

    name: str
    state: State
    entered_at: datetime
    run: str
    pod_id: str | None
    reason: str


class Figures(NamedTuple):
    """What a budget looks at.

    Attributes:
        pods: open leases.
        burn_usd_h: of all of them together.
        run_usd: counted for the run and its retries.
        day_usd: counted for the UTC day.
    """

    pods: int
    burn_usd_h: float
    run_usd: float
    day_usd: float


def cost_usd(rate_usd_h: float, began: datetime, ended: datetime) -> float:
    """Dollars for the time between; none where it ends before it began, as clocks differ."""
    return rate_usd_h * max((ended - began).total_seconds(), 0.0) / 3600


def imbalances(leases: Iterable[Lease], living: Collection[str]) -> list[str]:
    """What is wrong between leases and reality, in sentences; an audit expects none.

    Args:
        leases: all of one deployment.
        living: ids of the deployment's pods that RunPod has.
    """
    leases = list(leases)
    known = {lease.pod_id for lease in leases if lease.is_open}
    found = [f"Pod {pod} lives and has no open lease." for pod in sorted(set(living) - known)]
    for lease in leases:
        if lease.is_open and lease.pod_id not in living:
            found.append(f"Lease {lease.name} is {lease.state}, and its pod is not there.")
        if lease.cost_usd is None or lease.began_at is None or lease.ended_at is None:
            continue
        expected = cost_usd(lease.burn_usd_h, lease.began_at, lease.ended_at)
        if not math.isclose(lease.cost_usd, expected, abs_tol=1e-9):
            found.append(
                f"Lease {lease.name} cost {lease.cost_usd:.6f} USD, but its hours times its rate "
                f"are {expected:.6f} USD."
            )
    return found
