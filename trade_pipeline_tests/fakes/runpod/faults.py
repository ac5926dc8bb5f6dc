"""What can go wrong, by name: `fake.faults.plan(name, ...)`. Knows no HTTP and no pods.

`plan` takes, for every fault: `times` (how often; None is for ever), `after` (so many matching
requests or pods go well first), `on` (which operation, with wildcards), `gpu` and `pod` (id of a
GPU type; id or name of a pod, with wildcards). Operations: `create`, `list`, `get`, `delete`,
`action`, `logs`, `volumes`, `volume`, `gpus`, `gpu`, `billing`, `graphql`, and on the S3
`s3:PutObject`, `s3:GetObject`, `s3:HeadObject`, `s3:DeleteObject`, `s3:ListObjectsV2`,
`s3:HeadBucket`, `s3:CreateMultipartUpload`, `s3:UploadPart`, `s3:CompleteMultipartUpload`,
`s3:AbortMultipartUpload`.

Instead of the answer of any operation, nothing is done:

| fault | details | what happens |
|---|---|---|
| `unauthorized` | | 401 |
| `forbidden` | | 403; `on="create"` or elsewhere |
| `rate_limited` | `retry_after=None` | 429, with Retry-After where it is given (seconds) |
| `server_error` | `status=500` | 5xx, a problem (XML on the S3); on `create` no pod is made |
| `html` | `status=502` | a proxy's HTML page, with any status, 200 included |
| `timeout` | `seconds=None` | silence for so long (`fake.hold_s`), then the connection is closed |
| `reset` | | the connection is reset |

Before the good answer of any operation:

| fault | details | what happens |
|---|---|---|
| `slow` | `seconds=1.0`, `until=None` | late by so much, or until an event is set before that |
| `drift` | | every object of the answer has a key that nobody knows; plan it with `times=None` |

Creation of a pod:

| fault | details | what happens |
|---|---|---|
| `no_capacity` | `wording=0`, `status=400` | one of `NO_CAPACITY`, with any status |
| `balance` | `wording=0`, `status=402` | one of `NO_MONEY`, with any status |
| `created_but_500` | `status=500` | the pod is made and bills; the answer says 500 |
| `created_but_timeout` | `seconds=None` | the pod is made and bills; no answer comes |
| `created_but_reset` | | the pod is made and bills; the connection is reset |
| `created_but_html` | `status=502` | the pod is made and bills; a proxy's page comes |

What becomes of a pod, decided when it is made (`times` counts pods):

| fault | details | what happens |
|---|---|---|
| `price` | `factor=2.0` | it costs so many times what the catalogue says |
| `late_listing` | `seconds=0.0`, `lists=0` | lists leave it out for so long, or so many times |
| `stuck_provisioning` | | never leaves PROVISIONING; it bills |
| `stuck_starting` | | never leaves STARTING; it bills |
| `uptime_zero` | | RUNNING with uptime 0 for ever, no container; it bills |
| `crash_loop` | `after_s=0.1` | its container is killed so long after each start; 0: at once |
| `preempted` | `after_s=1.0`, `gone=False` | killed so long after its first start: EXITED, or 404 |
| `hung` | `after_s=1.0` | its processes are stopped (SIGSTOP): no heartbeat, no lines |
| `terminate_fails` | `status=500`, `tries=None` | DELETE and terminate fail so often, or always |
| `terminate_ignored` | `tries=None` | DELETE and terminate answer well and do nothing |

Logs, catalogue and S3:

| fault | details | what happens |
|---|---|---|
| `logs_cut` | `lines=1` | the stream breaks after so many lines |
| `unavailable` | `level="NONE"` | the catalogue gives this availability for the GPU type |
| `volume_full` | | 507 for a write, whatever is free |
| `complete_fails` | `status=502`, `done=True` | CompleteMultipartUpload fails, done or not done |
| `upload_cut` | `bytes=1` | the connection is reset within a PUT's body; nothing is stored |
| `download_cut` | `bytes=1` | the connection is reset after so many bytes of a GET |

Start at `Faults.plan`.
"""

import threading
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. "
    "Please refresh and try again.",
    "This machine does not have the resources to deploy your pod. Please try a different machine.",
    "create pod: insufficient capacity for the requested GPU type in the selected data center",
)
NO_MONEY = (
    "Your account balance is too low to deploy this pod. Please add funds.",
    "Deploying this pod would exceed your account's spend rate of $80 per hour.",
    "You have reached your hourly spending limit; contact support to raise it.",
    "Not enough credits to rent this pod.",
)

INSTEAD = frozenset(
    {"unauthorized", "forbidden", "rate_limited", "server_error", "html", "timeout", "reset"}
)
OF_CREATION = frozenset(
    {
        "no_capacity",
        "balance",
        "created_but_500",
        "created_but_timeout",
        "created_but_reset",
        "created_but_html",
    }
)
OF_POD = frozenset(
    {
        "price",
        "late_listing",
        "stuck_provisioning",
        "stuck_starting",
        "uptime_zero",
        "crash_loop",
        "preempted",
        "hung",
        "terminate_fails",
        "terminate_ignored",
    }
)

# Details that each fault knows, with what they are where the plan does not say.
DETAILS: dict[str, dict[str, Any]] = {
    "unauthorized": {},
    "forbidden": {},
    "rate_limited": {"retry_after": None},
    "server_error": {"status": 500},
    "html": {"status": 502},
    "timeout": {"seconds": None},
    "reset": {},
    "slow": {"seconds": 1.0, "until": None},
    "drift": {},
    "no_capacity": {"wording": 0, "status": 400},
    "balance": {"wording": 0, "status": 402},
    "created_but_500": {"status": 500},
    "created_but_timeout": {"seconds": None},
    "created_but_reset": {},
    "created_but_html": {"status": 502},
    "price": {"factor": 2.0},
    "late_listing": {"seconds": 0.0, "lists": 0},
    "stuck_provisioning": {},
    "stuck_starting": {},
    "uptime_zero": {},
    "crash_loop": {"after_s": 0.1},
    "preempted": {"after_s": 1.0, "gone": False},
    "hung": {"after_s": 1.0},
    "terminate_fails": {"status": 500, "tries": None},
    "terminate_ignored": {"tries": None},
    "logs_cut": {"lines": 1},
    "unavailable": {"level": "NONE"},
    "volume_full": {},
    "complete_fails": {"status": 502, "done": True},
    "upload_cut": {"bytes": 1},
    "download_cut": {"bytes": 1},
}


@dataclass
class Fault:
    """One plan; `used` counts how often it happened."""

    name: str
    on: str
    gpu: str
    pod: str
    times: int | None
    after: int
    details: dict[str, Any]
    used: int = 0

    def __getitem__(self, detail: str) -> Any:
        return self.details[detail]

    def fits(self, operation: str, gpu: str, pod: tuple[str, ...]) -> bool:
        """Whether it is meant for this; a plan for some pod fits no request without one."""
        return (
            (self.times is None or self.used < self.times)
            and fnmatchcase(operation, self.on)
            and fnmatchcase(gpu, self.gpu)
            and (self.pod == "*" or any(fnmatchcase(name, self.pod) for name in pod))
        )


class Faults:
    """Faults in the order in which they were planned; may be used by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plans: list[Fault] = []

    def plan(
        self,
        name: str,
        *,
        on: str = "*",
        gpu: str = "*",
        pod: str = "*",
        times: int | None = 1,
        after: int = 0,
        **details: Any,
    ) -> Fault:
        """Have something go wrong; see the table at the top of the module.

        Raises:
            ValueError: there is no such fault, or it does not know such a detail.
        """
        if name not in DETAILS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(DETAILS)}")
        unknown = details.keys() - DETAILS[name].keys()
        if unknown:
            raise ValueError(f"fault {name!r} has no detail {sorted(unknown)}")
        fault = Fault(name, on, gpu, pod, times, after, {**DETAILS[name], **details})
        with self._lock:
            self._plans.append(fault)
        return fault

    def clear(self) -> None:
        """Nothing goes wrong any more; what was decided for pods that exist stays."""
        with self._lock:
            self._plans.clear()

    def take(
        self,
        names: str | frozenset[str],
        operation: str,
        *,
        gpu: str = "",
        pod: tuple[str, ...] = (),
    ) -> Fault | None:
        """The first planned fault of these names that is due for this; it counts as happened."""
        wanted = {names} if isinstance(names, str) else names
        with self._lock:
            for fault in self._plans:
                if fault.name in wanted and fault.fits(operation, gpu, pod):
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.used += 1
                    return fault
        return None

    def take_all(
        self, names: frozenset[str], operation: str, *, gpu: str, pod: tuple[str, ...]
    ) -> dict[str, Fault]:
        """The due fault of each of these names."""
        found = {name: self.take(name, operation, gpu=gpu, pod=pod) for name in names}
        return {name: fault for name, fault in found.items() if fault is not None}

    @property
    def unused(self) -> list[Fault]:
        """What was planned and never happened, or not as often."""
        with self._lock:
            return [
                fault
                for fault in self._plans
                if not fault.used or (fault.times is not None and fault.used < fault.times)
            ]
