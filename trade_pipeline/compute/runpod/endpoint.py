"""A RunPod serverless endpoint, asked from here: send a job, follow it, fetch its table.

Goes through the client of RunPod's SDK, a request at a time. The SDK's own `Endpoint.run_sync`
and `Job` are not used: of a failed job they give None and lose the error, a job that was cancelled
is waited for, and the local test server answers status to POST alone. What a job may ask for is in
`serverless`. Start at `Endpoint.run`.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import polars as pl

from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    ExchangeError,
    RateLimited,
    RequestRefused,
    ResultRefused,
    RunPodError,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.serverless import RUN_BYTES, RUNSYNC_BYTES, table_of

LIMITS = {"run": RUN_BYTES, "runsync": RUNSYNC_BYTES}
ATTEMPTS = 5  # of a request that may be made again
LONGEST_PAUSE_S = 30.0
SEND_S, ASK_S = 120.0, 30.0  # limits of one request: with a job's input, and without
SAID_CHARACTERS = 1_000  # kept of an answer that is not understood

Progress = Callable[[dict[str, Any]], None]


class JobFailed(RunPodError):  # noqa: N818 - these are named after what happened
    """A serverless job ended without a result; the message is what its handler said."""


class JobTimedOut(RunPodError):  # noqa: N818
    """A serverless job took longer than its limit; it was cancelled."""

    allow_retries = True


class _Busy(RateLimited):
    """One answer 429; `pause_s` is what its Retry-After asks for."""

    def __init__(self, message: str, pause_s: float) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class Endpoint:
    """One endpoint.

    Args:
        url: of the endpoint, such as `https://api.runpod.ai/v2/<endpoint id>`.
        api_key: of the account; from the environment, never from a file of settings.
        fetch: gives the content of a key below the volume's `trade_pipeline`, None where there is
            none, such as `ObjectStore.get_bytes`; needed for results too large for an answer.
        timeout_s: of a whole job, its time in the queue included.
        poll_s: between looks at a job.
        sleep: waits seconds.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        fetch: Callable[[str], bytes | None] | None = None,
        *,
        timeout_s: float = 3_600.0,
        poll_s: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from runpod.endpoint.runner import HTTPAdapter, RunPodClient  # takes a second

        if not api_key:  # the SDK would take any that it finds in a file
            raise AccessDenied("no API key was given; set RUNPOD_API_KEY.", 401)
        self.url = url.rstrip("/")
        self._base, _, self._name = self.url.rpartition("/")
        self._key = api_key
        self._fetch = fetch
        self._timeout_s, self._poll_s = timeout_s, poll_s
        self._sleep, self._clock = sleep, clock
        self._client = RunPodClient(api_key)
        self._client.endpoint_url_base = self._base
        # The SDK repeats requests over http only, for half a minute; here all are alike.
        for scheme in ("http://", "https://"):
            self._client.rp_session.mount(scheme, HTTPAdapter(max_retries=0))
        self._status_by_post = False

    def run(self, content: Mapping[str, Any], progress: Progress | None = None) -> pl.DataFrame:
        """Queue a job, follow it to its end and give its table.

        A job that nobody waits for any more, after an error or Ctrl-C, is cancelled.

        Args:
            content: see `serverless.JobInput`; at most 10 MB encoded.
            progress: called with updates of the handler, in order; one that was overtaken by a
                later one is left out.

        Raises:
            JobFailed: the handler refused the job or failed; the message is its own.
            JobTimedOut: it took too long.
            RequestRefused, AccessDenied, RateLimited, RunPodUnavailable: see `errors`.
            ExchangeError, ResultRefused: the result on the volume cannot be had, or was changed.
        """
        return self.result(self.submit(content), progress)

    def run_sync(
        self, content: Mapping[str, Any], progress: Progress | None = None
    ) -> pl.DataFrame:
        """Like `run`, in one request where the job is short; at most 20 MB encoded."""
        state = self._send("runsync", content, self._timeout_s)
        return self._follow(state, progress)

    def submit(self, content: Mapping[str, Any]) -> str:
        """Queue a job and give its id. Raises as `run`."""
        return _id_of(self._send("run", content, SEND_S), self.url)

    def result(self, job_id: str, progress: Progress | None = None) -> pl.DataFrame:
        """Follow a job to its end and give its table; like `run`, from an id."""
        return self._follow({"id": job_id, "status": "IN_QUEUE"}, progress)

    def cancel(self, job_id: str) -> None:
        """Have RunPod drop a job; one that ended already is fine, where RunPod says so."""
        self._patiently("post", f"cancel/{job_id}")

    def _send(self, route: str, content: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        limit = LIMITS[route]
        data = {"input": {"output_bytes": limit, **content}}
        most = data["input"]["output_bytes"]
        if isinstance(most, int) and most > limit:
            raise RequestRefused(
                f"output_bytes is {most} for a job for {self.url}, and RunPod drops results of "
                f"/{route} over {limit}; leave the key out: a larger result goes to the volume."
            )
        try:
            size = len(json.dumps(data, allow_nan=False).encode())
        except (TypeError, ValueError) as error:
            raise RequestRefused(
                f"the input of a job for {self.url} cannot be written as JSON ({error}); give "
                "finite numbers, text, lists and dicts."
            ) from None
        if size > limit:
            raise RequestRefused(
                f"the input of a job for {self.url} has {size} bytes encoded, and RunPod takes "
                f"{limit} on /{route}. Put bars into the store on the volume and name their key "
                '({"bars": {"key": ...}}), or send fewer observations in a job'
                + (f"; run_sync takes {RUNSYNC_BYTES}." if route == "run" else ".")
            )
        for attempt in range(ATTEMPTS):
            try:
                return self._ask("post", route, data, limit_s)
            except _Busy as error:  # the one answer after which no job can be there
                if attempt == ATTEMPTS - 1:
                    raise
                self._sleep(error.pause_s)
        raise AssertionError("every attempt returned or raised")

    def _follow(self, state: dict[str, Any], progress: Progress | None) -> pl.DataFrame:
        job_id = _id_of(state, self.url)
        end = self._clock() + self._timeout_s
        newest = 0
        try:
            while state.get("status") not in ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"):
                update = state.get("output")
                # Each update travels in a thread of its own and may come after a later one.
                if progress is not None and isinstance(update, dict):
                    number = update.get("seq")
                    if isinstance(number, int) and number > newest:
                        newest = number
                        progress(update)
                if self._clock() >= end:
                    raise JobTimedOut(
                        f"job {job_id} of {self.url} was not done after {self._timeout_s:g} s and "
                        "was cancelled; ask for less in a job, give the endpoint more workers, or "
                        "raise the limit."
                    )
                self._sleep(self._poll_s)
                state = self._status(job_id)
        except BaseException:
            with suppress(RunPodError):  # what went wrong before is what to tell
                self.cancel(job_id)
            raise
        return self._table(job_id, state)

    def _status(self, job_id: str) -> dict[str, Any]:
        path = f"status/{job_id}"
        if not self._status_by_post:
            try:
                return self._patiently("get", path)
            except _MethodRefused:
                self._status_by_post = True
        # The local test server does the whole job before it answers this.
        return self._patiently("post", path, self._timeout_s)

    def _patiently(self, method: str, path: str, limit_s: float = ASK_S) -> dict[str, Any]:
        """A request that changes nothing when it is made twice."""
        for attempt in range(ATTEMPTS):
            try:
                return self._ask(method, path, {}, limit_s)
            except (_Busy, RunPodUnavailable) as error:
                if attempt == ATTEMPTS - 1:
                    raise
                pause_s = self._poll_s * 2**attempt
                if isinstance(error, _Busy):
                    pause_s = max(pause_s, error.pause_s)
                self._sleep(min(pause_s, LONGEST_PAUSE_S))
        raise AssertionError("every attempt returned or raised")

    def _ask(
        self, method: str, path: str, data: Mapping[str, Any], limit_s: float
    ) -> dict[str, Any]:
        place = f"{self._name}/{path}"
        try:
            if method == "post":
                answer = self._client.post(place, dict(data), timeout=limit_s)
            else:
                answer = self._client.get(place, timeout=limit_s)
        except RuntimeError:  # so the SDK says 401
            raise AccessDenied(
                f"{self.url}: RunPod does not accept the API key; set RUNPOD_API_KEY to a valid "
                "one of this account.",
                401,
            ) from None
        except OSError as error:  # as which every error of `requests` counts
            raise self._failure(error, f"{self._base}/{place}") from None
        if not isinstance(answer, dict):
            raise RunPodUnavailable(f"{self._base}/{place}: the answer is no JSON object.")
        return answer

    def _failure(self, error: OSError, asked: str) -> RunPodError:
        response = getattr(error, "response", None)
        if response is None or response.status_code < 400:
            return RunPodUnavailable(
                f"{asked}: no usable answer ({self._redacted(str(error))}); a job that was being "
                "sent may run all the same."
            )
        status = int(response.status_code)
        said = f"{asked}: answered {status}: {self._redacted(response.text)[:SAID_CHARACTERS]}"
        if status == 405:
            return _MethodRefused(said)
        if status == 403:
            return AccessDenied(f"{said}; give the API key access to this endpoint.", status)
        if status == 404:
            return RequestRefused(
                f"{said}; correct the endpoint, or ask sooner: RunPod forgets a job half an hour "
                "after its end."
            )
        if status == 429:
            asked_for = response.headers.get("Retry-After", "")
            pause_s = float(asked_for) if asked_for.isdigit() else self._poll_s
            return _Busy(f"{said}; send fewer jobs at once.", min(pause_s, LONGEST_PAUSE_S))
        if status >= 500:
            return RunPodUnavailable(f"{said}; a job that was being sent may run all the same.")
        return RequestRefused(said)

    def _table(self, job_id: str, state: Mapping[str, Any]) -> pl.DataFrame:
        name, status, output = f"job {job_id} of {self.url}", state["status"], state.get("output")
        if status == "TIMED_OUT":
            raise JobTimedOut(f"{name} ran into the endpoint's execution limit; raise it there.")
        if status != "COMPLETED":
            said = self._redacted(_error_of(state)) if status == "FAILED" else "it was cancelled."
            raise JobFailed(f"{name}: {said}")
        match output:
            case {"columns": dict(columns)}:
                try:
                    return table_of(columns)
                except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
                    raise ResultRefused(f"{name}: its columns are no table ({error}).") from None
            case {"key": str(key), "sha256": str(sha256)}:
                return pl.read_parquet(io.BytesIO(self._content(name, key, sha256)))
        raise ResultRefused(
            f"{name}: gave neither columns nor a key; run the endpoint with the image of this "
            "version."
        )

    def _content(self, name: str, key: str, sha256: str) -> bytes:
        if self._fetch is None:
            raise ExchangeError(
                f"{name}: its result was too large for an answer and lies on the volume at {key}; "
                "give `fetch`, such as the get_bytes of the volume's ObjectStore."
            )
        content = self._fetch(key)
        if content is None:
            raise ExchangeError(
                f"{name}: its result is not on the volume at {key}; fetch from the volume that is "
                "attached to the endpoint."
            )
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ResultRefused(
                f"{name}: what lies on the volume at {key} is not what the job wrote (its SHA-256 "
                "differs); run the job again."
            )
        return content

    def _redacted(self, text: str) -> str:
        return text.replace(self._key, "<API key>")


class _MethodRefused(RequestRefused):
    """The server wants another HTTP method."""


def _id_of(state: Mapping[str, Any], url: str) -> str:
    job_id = state.get("id")
    if not isinstance(job_id, str) or not job_id:
        raise RunPodUnavailable(f"{url}: the answer names no job; look at the endpoint's page.")
    return job_id


def _error_of(state: Mapping[str, Any]) -> str:
    """What a handler said; of one that raised, the SDK makes JSON with a traceback."""
    said = state.get("error") or state.get("output") or "it failed and said nothing."
    try:
        parsed = json.loads(said) if isinstance(said, str) else said
    except ValueError:
        return str(said)
    if isinstance(parsed, dict) and "error_message" in parsed:
        return f"{parsed.get('error_type', 'error')}: {parsed['error_message']}"
    return str(said)
