"""What the project asks of RunPod, in the project's words; backends are `rest` and `sdk`.

Each method raises the `RunPodError` of its cause (see `errors`). Times are UTC and aware, prices
are US dollars an hour. Knows no HTTP.
"""

import math
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

Status = Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
Action = Literal["start", "stop", "restart", "terminate"]


@dataclass(frozen=True)
class PodRequest:
    """A pod to be made: one GPU type, one command.

    Attributes:
        args: the command as a list; it goes over the wire as one quoted string.
        volume: network volume and where it is mounted, or None.
    """

    name: str
    image: str
    gpu: str
    cuda: tuple[str, ...]
    cloud: str
    data_centers: tuple[str, ...]
    disk_gb: int
    args: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    volume: tuple[str, str] | None = None


@dataclass(frozen=True)
class Pod:
    """A pod as RunPod describes it.

    Attributes:
        cost_usd_h: dollars an hour.
        uptime_s: of the container; None while there is none.
    """

    id: str
    name: str
    status: Status
    cost_usd_h: float
    data_center: str | None
    created_at: datetime
    started_at: datetime | None
    uptime_s: float | None


@dataclass(frozen=True)
class LogLine:
    """One line of a pod's log; `id` resumes a stream after it."""

    id: str
    source: Literal["container", "system"]
    ts: datetime
    line: str


@dataclass(frozen=True)
class GpuOffer:
    """A GPU type of the catalogue."""

    id: str
    price_usd_h: float
    availability: Literal["NONE", "LOW", "MEDIUM", "HIGH"]


@dataclass(frozen=True)
class Volume:
    """A network volume."""

    id: str
    name: str
    size_gb: int
    data_center: str


@dataclass(frozen=True)
class Charge:
    """What RunPod billed for one pod in one period."""

    pod_id: str
    amount_usd: float
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Account:
    """Balance and limit of the account.

    Attributes:
        spend_limit_usd_h: RunPod's own limit on dollars an hour; None where it gives none.
        current_spend_usd_h: what runs now, by RunPod's reckoning.
    """

    balance_usd: float
    spend_limit_usd_h: float | None
    current_spend_usd_h: float


class RunPodApi(Protocol):
    """Pods, logs, volumes, prices and bills."""

    def payload(self, request: PodRequest) -> dict[str, Any]:
        """What `create_pod` sends, environment included."""
        ...

    def create_pod(self, request: PodRequest) -> Pod:
        """Ask for a pod, once.

        Raises:
            CandidateRefused: this GPU type is not to be had (no capacity, or 403 on create).
            CreationUnclear: 5xx, a timeout or a broken connection: a pod may exist.
            SpendLimitReached, AccessDenied, RateLimited, RequestRefused: see `errors`.
        """
        ...

    def pods(self) -> list[Pod]:
        """Every pod of the account that is not terminated."""
        ...

    def pod(self, pod_id: str) -> Pod | None:
        """One pod; None where RunPod knows none (404)."""
        ...

    def terminate(self, pod_id: str) -> None:
        """End a pod; one that is gone already is fine. Does not wait for it to be gone.

        Raises:
            PodMayStillBeBilling: refused several times, and the pod was not seen to be gone.
        """
        ...

    def logs(
        self,
        pod_id: str,
        source: str,
        after: str | None = None,
        stop: threading.Event | None = None,
        for_s: float = math.inf,
    ) -> Iterator[LogLine]:
        """One stream of log lines until RunPod ends it, from the beginning or after an id.

        Ends without an error where the connection breaks: ask again with the last id, passed on as
        it is. Lines that come again after a resume are left out. `stop`, set by another thread,
        ends it within a second, also while it waits for a line; so does the time `for_s` after
        RunPod's answer has begun.
        """
        ...

    def volumes(self) -> list[Volume]:
        """Network volumes of the account."""
        ...

    def gpus(self) -> list[GpuOffer]:
        """GPU types with price and availability."""
        ...

    def charges(self, since: datetime) -> list[Charge]:
        """What was billed for pods since then; lags behind by hours."""
        ...


class AccountApi(Protocol):
    """What only RunPod's GraphQL has."""

    def account(self) -> Account:
        """Balance and spend limit."""
        ...

    def terminate_after(self, pod_id: str, when: datetime) -> None:
        """Have RunPod itself terminate a pod at that time, whatever becomes of this machine."""
        ...
