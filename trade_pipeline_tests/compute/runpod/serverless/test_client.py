"""The client: progress, ends, limits and failures on the way."""

import asyncio
import json
import math
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trade_pipeline.compute.runpod.endpoint import Endpoint, JobFailed, JobTimedOut
from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    RateLimited,
    RequestRefused,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.serverless import Worker, answer
from trade_pipeline_tests.compute.runpod.serverless.jobs import (
    BARS,
    INDICATORS,
    endpoint,
    infer,
    sweep,
)
from trade_pipeline_tests.compute.runpod.serverless.platform import KEY, Platform

START_S = 60.0


def test_progress_comes_in_order_though_updates_overtake_each_other(platform: Platform) -> None:
    platform.updates = len(INDICATORS) - 1
    told: list[dict[str, Any]] = []
    platform.arrange = lambda updates: sorted(updates, key=lambda one: one["seq"])
    endpoint(platform.url).run(sweep(BARS), told.append)
    assert [one["seq"] for one in told] == [1, 2, 3, 4, 5]
    assert [one["what"] for one in told] == [one["name"] for one in INDICATORS[:-1]]
    assert {one["of"] for one in told} == {6}
    told.clear()

    def swapped(updates: list[Any]) -> list[Any]:
        by_number = {one["seq"]: one for one in updates}
        return [by_number[number] for number in (2, 1, 3, 5, 4)]

    platform.arrange = swapped
    endpoint(platform.url).run(sweep(BARS), told.append)
    assert [one["seq"] for one in told] == [2, 3, 5]


def test_a_long_job_tells_its_progress_a_hundred_times_at_most(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows, accounts = rng.normal(size=(1_003, 2)).tolist(), rng.normal(size=(1_000, 6)).tolist()
    told: list[dict[str, Any]] = []
    given = answer(infer(root, "choices", rows=rows, accounts=accounts), "job", root, told.append)
    assert len(given["columns"]["choice_0"]) == 1_000
    assert [one["seq"] for one in told] == list(range(1, 100))
    assert told[-1] == {"seq": 99, "done": 990, "of": 1_000, "what": "observations"}


def test_a_job_that_takes_too_long_is_cancelled(idle: Platform) -> None:
    with pytest.raises(JobTimedOut, match=r"not done after 0.05 s and was cancelled"):
        endpoint(idle.url, timeout_s=0.05).run(sweep(BARS))
    assert idle.jobs["job-0"].status == "CANCELLED"


def test_a_job_that_nobody_waits_for_is_cancelled(idle: Platform) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endpoint(idle.url, sleep=interrupted).run(sweep(BARS))
    assert idle.jobs["job-0"].status == "CANCELLED"


def test_a_cancelled_job_is_an_error_for_who_waits(idle: Platform) -> None:
    asked = endpoint(idle.url)
    job_id = asked.submit(sweep(BARS))
    asked.cancel(job_id)
    with pytest.raises(JobFailed, match="it was cancelled"):
        asked.result(job_id)


def test_a_stopped_job_stops_working(root: Path) -> None:
    first, going_on = threading.Event(), threading.Event()
    told: list[Any] = []

    def update(job: dict[str, Any], progress: Any) -> None:
        told.append((job["id"], progress["seq"]))
        first.set()
        going_on.wait(START_S)

    async def stopped() -> None:
        job = {"id": "job", "input": sweep(BARS)}
        task = asyncio.create_task(Worker(root, update)(job))
        await asyncio.to_thread(first.wait, START_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        going_on.set()

    asyncio.run(stopped())  # ends when the thread has
    assert told == [("job", 1)]


@pytest.mark.parametrize(("method", "most"), [("run", 10_000_000), ("run_sync", 20_000_000)])
def test_an_input_over_its_limit_is_not_sent(idle: Platform, method: str, most: int) -> None:
    envelope = {"input": {"output_bytes": most, "kind": ""}}
    room = most - len(json.dumps(envelope).encode())
    asked = endpoint(idle.url, timeout_s=0.01)
    with pytest.raises(RequestRefused, match="Put bars into the store on the volume"):
        getattr(asked, method)({"kind": "é" * (room // 6 + 1)})  # six bytes each, encoded
    assert not idle.received
    if method == "run":
        asked.submit({"kind": "x" * room})
        assert idle.received == ["POST run"]


@pytest.mark.parametrize(("method", "most"), [("run", 10_000_000), ("run_sync", 20_000_000)])
def test_a_cap_that_runpod_does_not_keep_is_not_sent(
    idle: Platform, method: str, most: int
) -> None:
    with pytest.raises(RequestRefused, match="a larger result goes to the volume"):
        getattr(endpoint(idle.url), method)(sweep(BARS, output_bytes=most + 1))
    assert not idle.received
    endpoint(idle.url).submit(sweep(BARS))
    assert idle.jobs["job-0"].input["output_bytes"] == 10_000_000


def test_what_json_does_not_have_is_not_sent(idle: Platform) -> None:
    for value in (math.nan, np.zeros(2)):
        with pytest.raises(RequestRefused, match="cannot be written as JSON"):
            endpoint(idle.url).run({"kind": value})
    assert not idle.received


def test_a_passing_failure_while_waiting_does_no_harm(platform: Platform) -> None:
    slept: list[float] = []
    asked = endpoint(platform.url, sleep=lambda pause_s: (slept.append(pause_s), time.sleep(0.01)))
    job_id = asked.submit(sweep(BARS))
    platform.failures = [(502, {}), (429, {"Retry-After": "7"}), (500, {})]
    assert asked.result(job_id).columns[0] == "ts"
    assert 7.0 in slept


@pytest.mark.parametrize(
    ("failure", "raised", "said", "requests"),
    [
        (500, RunPodUnavailable, "may run all the same", 1),
        (403, AccessDenied, "give the API key access", 1),
        (404, RequestRefused, "correct the endpoint", 1),
        (400, RequestRefused, "answered 400", 1),
        (429, RateLimited, "send fewer jobs at once", 5),
    ],
)
def test_a_job_that_cannot_be_sent_is_sent_once(
    idle: Platform, failure: int, raised: type[Exception], said: str, requests: int
) -> None:
    """Again only after 429, which says that there is no job."""
    idle.failures = [(failure, {})] * requests
    with pytest.raises(raised, match=said) as caught:
        endpoint(idle.url).run(sweep(BARS))
    assert idle.received == ["POST run"] * requests
    assert KEY not in str(caught.value)


def test_a_key_that_is_not_accepted_is_not_shown(idle: Platform) -> None:
    with pytest.raises(AccessDenied, match="set RUNPOD_API_KEY") as caught:
        endpoint(idle.url, key="rpa_wrong").run(sweep(BARS))
    assert "rpa_wrong" not in str(caught.value)
    with pytest.raises(AccessDenied, match="no API key was given"):
        Endpoint(idle.url, "")


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and listens to nobody
        port = taken.getsockname()[1]
        expected = f"127.0.0.1:{port}/v2/demo/run: no usable answer"
        with pytest.raises(RunPodUnavailable, match=expected):
            endpoint(f"http://127.0.0.1:{port}/v2/demo").run(sweep(BARS))
