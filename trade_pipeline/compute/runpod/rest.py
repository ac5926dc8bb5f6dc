"""RunPod over its REST v2: what is sent, how often, and what comes back.

Creation is sent once and never again on its own, unless RunPod said that it did nothing (429);
everything else may be asked again and is, a few times. Each request has a connection of its own,
so that none is stale when a pod is asked for. Knows no settings, budget or clock. Start at
`RestApi`; what refusals mean is in `refusals`, the shape of answers in `wire`.
"""

import logging
import math
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx
import tenacity
from pydantic import SecretStr

from trade_pipeline.compute.runpod.api import Charge, GpuOffer, LogLine, Pod, PodRequest, Volume
from trade_pipeline.compute.runpod.errors import (
    PodMayStillBeBilling,
    RunPodError,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.log_stream import Connection, events_of, unseen
from trade_pipeline.compute.runpod.refusals import (
    HELD_BACK,
    NoAnswer,
    Outcome,
    Refusals,
    unclear,
    usable_key,
)
from trade_pipeline.compute.runpod.wire import (
    Wire,
    WireBills,
    WireGpus,
    WirePod,
    WirePods,
    WireVolumes,
    parse,
    read,
)

MOST_ATTEMPTS = 5
LONGEST_WAIT_S = 120.0  # between all attempts of one request together
LONGEST_BACKOFF_S = 30.0  # between two of them, where RunPod does not say
MOST_LINES_BACK = 5000  # as many as RunPod gives of a log that is opened anew

T = TypeVar("T", bound=Wire)

_log = logging.getLogger(__name__)


class RestApi:
    """See `RunPodApi`.

    Args:
        url: such as `https://api.runpod.io/v2`.
        api_key: of the account.
        sleep: waits between attempts, in seconds.
        timeout_s: for connecting, and for each silence while an answer is awaited.
        log_timeout_s: a log stream silent for longer counts as broken; RunPod sends heartbeats.

    Raises:
        AccessDenied: the key cannot be one.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        sleep: Callable[[float], object] = time.sleep,
        timeout_s: float = 30,
        log_timeout_s: float = 90,
    ) -> None:
        self._url = url.rstrip("/")
        self._key = SecretStr(usable_key(api_key))
        self._refusals = Refusals(self._url, self._key)
        self._sleep = sleep
        self._timeout_s, self._log_timeout_s = timeout_s, log_timeout_s
        self._tls = httpx.create_ssl_context()  # once: it takes longer than a request

    def __repr__(self) -> str:
        return f"RestApi({self._url!r})"

    def payload(self, request: PodRequest) -> dict[str, Any]:
        """See `RunPodApi.payload`. What the request leaves open is left out."""
        gpu = {"id": request.gpu, "count": 1, "allowedCudaVersions": list(request.cuda)}
        mounts = None
        if request.volume is not None:
            volume_id, path = request.volume
            mounts = {"network": [{"volumeId": volume_id, "path": path}]}
        body = {
            "name": request.name,
            "image": request.image,
            "cloud": request.cloud,
            "gpu": {key: value for key, value in gpu.items() if value},
            "dataCenterIds": list(request.data_centers),
            "disk": request.disk_gb,
            "args": shlex.join(request.args),
            "env": dict(request.env),
            "mounts": mounts,
        }
        return {**{key: value for key, value in body.items() if value}, "startSsh": False}

    def create_pod(self, request: PodRequest) -> Pod:
        """See `RunPodApi.create_pod`."""
        about = f"pod {request.name} on {request.gpu}"
        body = self.payload(request)
        outcome = self._repeated(lambda: self._sent("POST", "/pods", body=body), _is_held_back)
        if isinstance(outcome, NoAnswer) or not outcome.is_success:
            raise self._refusals.of_creation(about, outcome)
        made = self._read(outcome, WirePod)
        if isinstance(made, str):  # answered well, but not as it should be: it may bill
            raise unclear(about, made)
        return made.plain()

    def pods(self) -> list[Pod]:
        """See `RunPodApi.pods`."""
        found = self._get("list of pods", "/pods", WirePods).pods
        return [pod.plain() for pod in found if pod.status != "TERMINATED"]

    def pod(self, pod_id: str) -> Pod | None:
        """See `RunPodApi.pod`."""
        outcome = self._asked("GET", _path(pod_id))
        if _is_unknown(outcome):
            return None
        return self._understood(f"pod {pod_id}", outcome, WirePod).plain()

    def terminate(self, pod_id: str) -> None:
        """See `RunPodApi.terminate`.

        Raises:
            PodMayStillBeBilling: it was refused several times, and the pod is still there, or
                nobody could tell.
        """
        outcome = self._asked("DELETE", _path(pod_id))
        if isinstance(outcome, httpx.Response) and (
            outcome.is_success or _is_unknown(outcome) or self._has_ended(outcome)
        ):
            return
        try:
            pod = self.pod(pod_id)
            if pod is None or pod.status == "TERMINATED":
                return
            seen = f"RunPod still lists it as {pod.status}"
        except RunPodError as error:
            seen = f"whether it is still there could not be told: {error}"
        failure = self._refusals.of(f"termination of pod {pod_id}", outcome)
        raise PodMayStillBeBilling(
            f"Pod {pod_id} may still be billing; {seen} Its termination failed: {failure} "
            "Terminate it in RunPod's console (https://console.runpod.io/pods), or with "
            "`trade-pipeline pods reap` when RunPod answers again.",
            pod_id,
        )

    def logs(
        self,
        pod_id: str,
        source: str,
        after: str | None = None,
        stop: threading.Event | None = None,
        for_s: float = math.inf,
    ) -> Iterator[LogLine]:
        """See `RunPodApi.logs`. A pod that RunPod does not know has no lines.

        Pass the `id` of the last line on as it is: it knows more than its text.

        Args:
            pod_id: of the pod.
            source: "container" or "system".
            after: id of the last line that is known already.
            stop: set by another thread, ends the iterator within a second, also while it waits.
            for_s: ends it so long after the answer has begun.
        """
        about, connection = f"{source} log of pod {pod_id}", Connection()
        query = {"source": source} | ({} if after else {"tail": str(MOST_LINES_BACK)})
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(after)} if after else {})
        timeout = httpx.Timeout(self._timeout_s, read=self._log_timeout_s)
        with self._client(timeout) as client, connection.ended_by(stop or threading.Event()):
            request = client.build_request(
                "GET",
                f"{_path(pod_id)}/logs",
                params=query,
                headers=headers,
                extensions={"trace": connection.trace},
            )
            outcome = self._repeated(lambda: self._opened(client, request), _may_pass, stop)
            if _is_set(stop) or _is_unknown(outcome):
                return
            if isinstance(outcome, NoAnswer) or not _is_stream(outcome):
                raise self._refusals.of(about, outcome)
            connection.end_in(for_s)
            with closing(outcome), suppress(httpx.TransportError, httpx.StreamError):
                for line in unseen(events_of(outcome.iter_bytes()), after):
                    if _is_set(stop):
                        return
                    yield line

    def volumes(self) -> list[Volume]:
        """See `RunPodApi.volumes`."""
        found = self._get("list of network volumes", "/network-volumes", WireVolumes)
        return [volume.plain() for volume in found.volumes]

    def gpus(self) -> list[GpuOffer]:
        """See `RunPodApi.gpus`."""
        query = {"include": "AVAILABILITY", "product": "POD"}
        found = self._get("list of GPU types", "/catalog/gpus", WireGpus, query).gpus
        return [offer for offer in (gpu.plain() for gpu in found) if offer is not None]

    def charges(self, since: datetime) -> list[Charge]:
        """See `RunPodApi.charges`. RunPod bills by the hour: the first may begin before `since`."""
        start = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        query = {"startTime": start, "bucketSize": "hour"}
        found = self._get("bills of pods", "/billing/pods", WireBills, query)
        return [bill.plain() for bill in found.records]

    def _get(self, about: str, path: str, model: type[T], query: dict[str, str] | None = None) -> T:
        return self._understood(about, self._asked("GET", path, query), model)

    def _asked(self, method: str, path: str, query: dict[str, str] | None = None) -> Outcome:
        """The outcome of a request that may be repeated, after as many attempts as are fair."""
        return self._repeated(lambda: self._sent(method, path, query), _may_pass)

    def _repeated(
        self,
        send: Callable[[], Outcome],
        worth_it: Callable[[Outcome], bool],
        stop: threading.Event | None = None,
    ) -> Outcome:
        """Send until the outcome is not worth repeating; the last outcome if patience ends."""

        def is_enough(state: tenacity.RetryCallState) -> bool:
            waited_s = state.idle_for + state.upcoming_sleep
            return (
                state.attempt_number >= MOST_ATTEMPTS or waited_s > LONGEST_WAIT_S or _is_set(stop)
            )

        def pause(seconds: float) -> None:
            if stop is None:
                self._sleep(seconds)
            else:
                stop.wait(seconds)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(worth_it),
            wait=_wait_s,
            stop=is_enough,
            sleep=pause,
            before_sleep=self._tell,
            retry_error_callback=_last_outcome,
        )
        outcome: Outcome = retrying(send)
        return outcome

    def _tell(self, state: tenacity.RetryCallState) -> None:
        outcome, wait_s = _last_outcome(state), state.upcoming_sleep
        what = outcome.why if isinstance(outcome, NoAnswer) else f"status {outcome.status_code}"
        _log.info("RunPod: %s; asked again in %g s", what, wait_s)

    def _client(self, timeout: httpx.Timeout | float) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"}
        return httpx.Client(base_url=self._url, headers=headers, timeout=timeout, verify=self._tls)

    def _sent(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> Outcome:
        """One request and its whole answer."""
        try:
            with self._client(self._timeout_s) as client:
                return client.request(method, path, params=query, json=body)
        except httpx.RequestError as error:
            return self._refusals.no_answer(error)

    def _opened(self, client: httpx.Client, request: httpx.Request) -> Outcome:
        """One request whose answer, if it is a stream of events, is still to be read."""
        try:
            response = client.send(request, stream=True)
            if not _is_stream(response):
                with closing(response):
                    response.read()
            return response
        except httpx.RequestError as error:
            return self._refusals.no_answer(error)

    def _understood(self, about: str, outcome: Outcome, model: type[T]) -> T:
        if isinstance(outcome, NoAnswer) or not outcome.is_success:
            raise self._refusals.of(about, outcome)
        found = self._read(outcome, model)
        if isinstance(found, str):
            raise RunPodUnavailable(
                f"{about}: {found}. Either {self._url} is not RunPod's REST v2, or RunPod changed "
                "it: compare with RunPod's API reference."
            )
        return found

    def _read(self, response: httpx.Response, model: type[T]) -> T | str:
        """The answer, or what is wrong with it."""
        content = parse(response.content)
        if content is None:
            words = self._refusals.words(response)
            return f"RunPod answered {response.status_code} without JSON ({words})"
        return read(content, model)

    def _has_ended(self, response: httpx.Response) -> bool:
        words = self._refusals.words(response)
        return (
            response.status_code == 409 and re.search("terminated|already", words, re.I) is not None
        )


def _path(pod_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", pod_id):
        raise ValueError(f"{pod_id!r} is no id of a pod; ids have letters, digits, - and _ only.")
    return f"/pods/{pod_id}"


def _is_set(stop: threading.Event | None) -> bool:
    return stop is not None and stop.is_set()


def _is_stream(response: httpx.Response) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.is_success and kind.startswith("text/event-stream")


def _is_held_back(outcome: Outcome) -> bool:
    return isinstance(outcome, httpx.Response) and outcome.status_code == HELD_BACK


def _may_pass(outcome: Outcome) -> bool:
    """Whether asking the same again may help."""
    return isinstance(outcome, NoAnswer) or (
        outcome.status_code >= 500 or outcome.status_code in (408, HELD_BACK)
    )


def _is_unknown(outcome: Outcome) -> bool:
    """Whether RunPod itself says that there is no such thing; a proxy's 404 says nothing."""
    return (
        isinstance(outcome, httpx.Response)
        and outcome.status_code == 404
        and isinstance(parse(outcome.content), dict)
    )


def _last_outcome(state: tenacity.RetryCallState) -> Outcome:
    assert state.outcome is not None
    outcome: Outcome = state.outcome.result()
    return outcome


def _wait_s(state: tenacity.RetryCallState) -> float:
    """As long as RunPod asks for, otherwise 1, 2, 4, ... seconds."""
    outcome = _last_outcome(state)
    if isinstance(outcome, httpx.Response):
        wanted = outcome.headers.get("Retry-After", "")
        if re.fullmatch(r"\d+(\.\d+)?", wanted):
            return float(wanted)
    return min(2.0 ** (state.attempt_number - 1), LONGEST_BACKOFF_S)
