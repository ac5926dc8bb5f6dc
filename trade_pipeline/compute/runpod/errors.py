"""What can go wrong with a pod: one exception a cause, each says what to do.

    TaskError
      RunPodError
        BudgetExceeded        the plan would cost more than the budget allows; nothing was asked for
        NoCapacity            no GPU candidate is to be had; lists what each was told
        SpendLimitReached     RunPod refuses for the account's balance or spend limit
        AccessDenied          RunPod does not accept the API key, or not for this
        RateLimited           RunPod kept answering 429
        RequestRefused        RunPod found the request wrong (422 and other 4xx)
        RunPodUnavailable     no usable answer (5xx, timeout, connection) after several attempts
        CreationUnclear       a pod may or may not have been made; nobody could tell
        PodNeverStarted       still not running after its limit
        PodCrashLoop          the container starts again and again
        RemoteTaskFailed      the task ended with an error in the pod
        PodLost               gone without an exit record: preempted or failed
        PodHung               neither heartbeat nor log for too long
        PodMayStillBeBilling  it could not be shown that the pod is gone; holds the id
        ExchangeError         the exchange (S3 or volume) does not work; `VolumeFull` where full
        ResultRefused         the bundle that came back is not the one that the pod sealed

Knows no HTTP. Who maps answers to these: `rest`, `sdk`, `follow`.
"""

from trade_pipeline.compute.base import TaskError


class RunPodError(TaskError):
    """Something about a pod went wrong; the message names the pod or request and what to do."""

    allow_retries = False  # whether Dagster may run the step again by itself


class BudgetExceeded(RunPodError):
    """The plan would cost more than the budget allows; no pod was asked for."""


class NoCapacity(RunPodError):
    """No GPU candidate is to be had; the message lists every attempt with RunPod's own words."""

    allow_retries = True


class SpendLimitReached(RunPodError):
    """RunPod refuses a pod for the account's balance or spend limit."""


class AccessDenied(RunPodError):
    """RunPod does not accept the API key (401), or not for this request (403)."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class RateLimited(RunPodError):
    """RunPod kept answering 429 for longer than is worth waiting."""

    allow_retries = True


class RequestRefused(RunPodError):
    """RunPod found the request wrong; a retry would be refused again."""


class RunPodUnavailable(RunPodError):
    """No usable answer: 5xx, a timeout or no connection."""

    allow_retries = True


class CreationUnclear(RunPodUnavailable):
    """Whether a pod was made is not known; never ask again blindly."""

    allow_retries = False


class CandidateRefused(RunPodError):
    """This GPU type is not to be had now; the next candidate may be."""


class PodNeverStarted(RunPodError):
    """The pod was still not running after its limit; it was terminated."""

    allow_retries = True


class PodCrashLoop(RunPodError):
    """The container starts again and again; the pod was terminated."""


class RemoteTaskFailed(RunPodError):
    """The task ended with an error in the pod; the message holds the end of its log."""


class PodLost(RunPodError):
    """The pod is gone without an exit record: preempted, or its machine failed."""

    allow_retries = True


class PodHung(RunPodError):
    """Neither heartbeat nor log for too long; the pod was terminated."""


class PodMayStillBeBilling(RunPodError):
    """It could not be shown that the pod is gone: look at it in RunPod's console.

    Attributes:
        pod_id: of the pod.
    """

    def __init__(self, message: str, pod_id: str) -> None:
        super().__init__(message)
        self.pod_id = pod_id


class ExchangeError(RunPodError):
    """The place where host and pod meet does not work."""


class VolumeFull(ExchangeError):
    """The exchange has no room left (507)."""


class ResultRefused(RunPodError):
    """What came back is not what the pod sealed; nothing of it was kept."""
