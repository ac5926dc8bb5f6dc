"""Pods over REST v2: what is asked for, how often, and what each refusal means."""

import json
import logging
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from trade_pipeline.compute.runpod.api import GpuOffer, Volume
from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    CandidateRefused,
    CreationUnclear,
    PodMayStillBeBilling,
    RateLimited,
    RequestRefused,
    RunPodError,
    RunPodUnavailable,
    SpendLimitReached,
)
from trade_pipeline.compute.runpod.rest import LONGEST_WAIT_S, MOST_ATTEMPTS, RestApi
from trade_pipeline_tests.compute.runpod.conversations import answering, pod_request, told
from trade_pipeline_tests.fakes.runpod import NO_CAPACITY, NO_MONEY, FakeRunPod, Timing

KEY = "rpa_SECRETSECRETSECRET"


@pytest.fixture
def fake() -> Iterator[FakeRunPod]:
    with FakeRunPod(timing=Timing(billing_lag_s=-3600)) as fake:
        yield fake
    assert not fake.unexpected
    assert not fake.faults.unused


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def api(fake: FakeRunPod, waits: list[float]) -> RestApi:
    return RestApi(fake.rest_url, fake.api_key, sleep=waits.append, timeout_s=5)


def elsewhere(url: str, waits: list[float] | None = None) -> RestApi:
    return RestApi(url, KEY, sleep=([] if waits is None else waits).append, timeout_s=5)


def problem(detail: str, status: int, errors: list[str] | None = None) -> str:
    return json.dumps({"title": "?", "status": status, "detail": detail, "errors": errors or []})


ASKING: dict[str, Callable[[RestApi], object]] = {
    "pods": lambda api: api.pods(),
    "pod": lambda api: api.pod("abc"),
    "volumes": lambda api: api.volumes(),
    "gpus": lambda api: api.gpus(),
    "charges": lambda api: api.charges(datetime(2026, 11, 1, tzinfo=UTC)),
    "logs": lambda api: list(api.logs("abc", "container")),
}


# What is asked for.


def test_a_pod_is_asked_for_as_the_reference_says(api: RestApi) -> None:
    request = pod_request(
        "tp-x",
        args=("python", "-m", "supervisor", "--root", "/a b"),
        env={"DOCUMENT": '{"quoted": "\\n"}'},
        volume=("vol1", "/workspace"),
    )
    assert api.payload(request) == {
        "name": "tp-x",
        "image": request.image,
        "cloud": "SECURE",
        "gpu": {"id": "NVIDIA L4", "count": 1, "allowedCudaVersions": ["12.8"]},
        "dataCenterIds": ["EU-RO-1"],
        "disk": 20,
        "args": "python -m supervisor --root '/a b'",
        "env": {"DOCUMENT": '{"quoted": "\\n"}'},
        "mounts": {"network": [{"volumeId": "vol1", "path": "/workspace"}]},
        "startSsh": False,
    }


def test_what_a_request_leaves_open_is_not_sent(api: RestApi, fake: FakeRunPod) -> None:
    request = pod_request(cuda=(), data_centers=())
    assert not {"mounts", "env", "dataCenterIds"} & api.payload(request).keys()
    assert "allowedCudaVersions" not in api.payload(request)["gpu"]
    api.create_pod(request)
    assert fake.pods[0].spec == api.payload(request)


def test_a_pod_is_made_listed_found_and_terminated(api: RestApi, fake: FakeRunPod) -> None:
    made = api.create_pod(pod_request())
    assert (made.name, made.cost_usd_h) == (pod_request().name, 0.39)
    assert made.created_at.tzinfo is UTC
    deadline = time.monotonic() + 10
    found = api.pod(made.id)
    while found is not None and found.uptime_s is None and time.monotonic() < deadline:
        time.sleep(0.02)
        found = api.pod(made.id)
    assert found is not None and found.status == "RUNNING" and found.data_center == "EU-RO-1"
    assert [pod.id for pod in api.pods()] == [made.id]
    api.terminate(made.id)
    assert (api.pods(), api.pod(made.id), fake.live) == ([], None, [])
    api.terminate(made.id)  # gone already


def test_a_terminated_pod_is_not_listed_while_runpod_still_shows_it(fake: FakeRunPod) -> None:
    fake.timing.terminated_visible_s = 60
    api = RestApi(fake.rest_url, fake.api_key)
    made = api.create_pod(pod_request())
    api.terminate(made.id)
    seen = api.pod(made.id)
    assert seen is not None and seen.status == "TERMINATED"
    assert api.pods() == []
    api.terminate(made.id)


def test_volumes_prices_and_bills_come_in_the_projects_words(
    api: RestApi, fake: FakeRunPod
) -> None:
    volume = fake.add_volume("EU-CZ-1", size_gb=70)
    fake.faults.plan("unavailable", gpu="NVIDIA A40", level="LOW")
    made = api.create_pod(pod_request())
    since = datetime.now(UTC) - timedelta(minutes=1)

    assert api.volumes() == [Volume(volume.id, "exchange", 70, "EU-CZ-1")]
    assert GpuOffer("NVIDIA A40", 0.40, "LOW") in api.gpus()
    charges = [charge for charge in api.charges(since) if charge.pod_id == made.id]
    assert charges and charges[0].amount_usd > 0
    assert charges[0].start.tzinfo is UTC and charges[0].end > charges[0].start
    assert api.charges(since + timedelta(days=2)) == []


def test_an_id_that_is_no_id_is_not_sent(api: RestApi, fake: FakeRunPod) -> None:
    for name in ("", "..", "a/b", "a?b"):
        with pytest.raises(ValueError, match="is no id of a pod"):
            api.terminate(name)
    assert not fake.seen


# One test for each row of the failure table that is about an answer.


@pytest.mark.parametrize("wording", range(len(NO_CAPACITY)))
@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_no_capacity(api: RestApi, fake: FakeRunPod, wording: int, status: int) -> None:
    fake.faults.plan("no_capacity", wording=wording, status=status)
    with pytest.raises(CandidateRefused, match="NVIDIA L4") as raised:
        api.create_pod(pod_request())
    assert NO_CAPACITY[wording].rstrip(".") in str(raised.value)
    assert len(fake.operations("create")) == 1 and not fake.pods


@pytest.mark.parametrize("wording", range(len(NO_MONEY)))
@pytest.mark.parametrize("status", [400, 402, 403, 409])
def test_balance_or_spend_limit(api: RestApi, fake: FakeRunPod, wording: int, status: int) -> None:
    fake.faults.plan("balance", wording=wording, status=status)
    with pytest.raises(SpendLimitReached, match="Add funds") as raised:
        api.create_pod(pod_request())
    assert NO_MONEY[wording].rstrip(".") in str(raised.value)
    assert not raised.value.allow_retries
    assert len(fake.operations("create")) == 1 and not fake.pods


def test_a_request_that_is_wrong_is_no_spend_limit(api: RestApi, fake: FakeRunPod) -> None:
    wrong = problem("Request validation failed.", 422, ["$: unknown keys 'spendLimit', 'balance'"])
    with (
        answering(wrong, 422) as (url, _),
        pytest.raises(RequestRefused, match="unknown keys 'spendLimit', 'balance'"),
    ):
        elsewhere(url).create_pod(pod_request())
    with (
        answering(problem("no access to this credentials store", 400), 400) as (url, _),
        pytest.raises(RequestRefused, match="credentials store"),
    ):
        elsewhere(url).create_pod(pod_request())
    with pytest.raises(RequestRefused, match="unknown GPU type 'NVIDIA X'"):
        api.create_pod(pod_request(gpu="NVIDIA X"))
    with pytest.raises(RequestRefused, match=r"Request validation failed; .*disk"):
        api.create_pod(pod_request(disk_gb=-1))
    assert len(fake.operations("create")) == 2 and not fake.pods


@pytest.mark.parametrize("ask", ASKING)
def test_401(fake: FakeRunPod, ask: str) -> None:
    api = RestApi(fake.rest_url, KEY)
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY") as raised:
        ASKING[ask](api)
    assert raised.value.status == 401
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY"):
        api.create_pod(pod_request())
    assert len(fake.seen) == 2  # a wrong key stays wrong


def test_403_on_create_is_for_the_next_candidate(api: RestApi, fake: FakeRunPod) -> None:
    fake.faults.plan("forbidden", on="create")
    with pytest.raises(CandidateRefused, match=r"403.*try another GPU type"):
        api.create_pod(pod_request())


@pytest.mark.parametrize("ask", ASKING)
def test_403_elsewhere_is_about_the_key(api: RestApi, fake: FakeRunPod, ask: str) -> None:
    fake.faults.plan("forbidden")
    with pytest.raises(AccessDenied, match="may not do this") as raised:
        ASKING[ask](api)
    assert raised.value.status == 403 and len(fake.seen) == 1


def test_429_is_waited_for_as_long_as_runpod_asks(
    api: RestApi, fake: FakeRunPod, waits: list[float]
) -> None:
    fake.faults.plan("rate_limited", on="create", retry_after=7)
    fake.faults.plan("rate_limited", on="create", times=2)
    made = api.create_pod(pod_request())
    assert waits == [7, 2, 4]
    assert [pod.id for pod in fake.pods] == [made.id]
    fake.faults.plan("rate_limited", on="list", retry_after=3)
    assert len(api.pods()) == 1
    assert waits[3:] == [3]


def test_429_is_not_waited_for_without_end(
    api: RestApi, fake: FakeRunPod, waits: list[float]
) -> None:
    fake.faults.plan("rate_limited", times=None)
    for ask in (api.pods, lambda: api.create_pod(pod_request())):
        fake.seen.clear()
        with pytest.raises(RateLimited, match="429") as raised:
            ask()
        assert raised.value.allow_retries
        assert len(fake.seen) == MOST_ATTEMPTS
    waits.clear()
    fake.faults.clear()
    fake.faults.plan("rate_limited", times=2, retry_after=LONGEST_WAIT_S - 1)
    with pytest.raises(RateLimited):
        api.pods()
    assert waits == [LONGEST_WAIT_S - 1]  # a second such wait would be too much


UNCLEAR = {
    "created_but_500": {"status": 500},
    "created_but_timeout": {"seconds": 3},
    "created_but_reset": {},
    "created_but_html": {"status": 502},
    "created_but_200_page": {"status": 200},
}


@pytest.mark.parametrize("fault", UNCLEAR)
def test_5xx_or_timeout_on_create(fake: FakeRunPod, waits: list[float], fault: str) -> None:
    api = RestApi(fake.rest_url, fake.api_key, sleep=waits.append, timeout_s=0.5)
    fake.faults.plan("created_but_html" if "page" in fault else fault, **UNCLEAR[fault])
    with pytest.raises(CreationUnclear, match=pod_request().name) as raised:
        api.create_pod(pod_request())
    assert not raised.value.allow_retries
    assert len(fake.operations("create")) == 1 and not waits  # never again blindly
    found = [pod for pod in api.pods() if pod.name == pod_request().name]
    assert len(found) == 1  # which the caller looks for
    api.terminate(found[0].id)


@pytest.mark.parametrize("status", [500, 502, 503, 504, 524])
def test_5xx_on_create_is_unclear_whatever_it_says(
    api: RestApi, fake: FakeRunPod, status: int
) -> None:
    fake.faults.plan("no_capacity", status=status)
    with pytest.raises(CreationUnclear, match="no longer any instances available"):
        api.create_pod(pod_request())
    assert len(fake.operations("create")) == 1


@pytest.mark.parametrize("key", ["id", "cost", "status", "createdAt"])
def test_a_created_pod_that_cannot_be_read_is_unclear(key: str) -> None:
    pod = {"id": "a", "name": "n", "status": "RUNNING", "cost": 1, "createdAt": "2026-11-21T00:00Z"}
    del pod[key]
    with (
        answering(json.dumps(pod), 201) as (url, got),
        pytest.raises(CreationUnclear, match=f"key '{key}'"),
    ):
        elsewhere(url).create_pod(pod_request())
    assert len(got) == 1


def test_a_connection_that_is_refused_made_no_pod(waits: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RunPodUnavailable, match="no answer from") as raised:
            elsewhere(url, waits).create_pod(pod_request())
        assert not isinstance(raised.value, CreationUnclear)
        assert not waits
        with pytest.raises(RunPodUnavailable, match="no answer from"):
            elsewhere(url, waits).pods()
        assert len(waits) == MOST_ATTEMPTS - 1


@pytest.mark.parametrize("fault", ["server_error", "html", "reset", "timeout"])
def test_5xx_elsewhere_passes_after_some_attempts(
    api: RestApi, fake: FakeRunPod, waits: list[float], fault: str
) -> None:
    fake.hold_s = 0.05
    fake.faults.plan(fault, on="list", times=3)
    assert api.pods() == []
    assert waits == [1, 2, 4]
    fake.faults.plan(fault, on="list", times=MOST_ATTEMPTS)
    with pytest.raises(RunPodUnavailable) as raised:
        api.pods()
    assert raised.value.allow_retries


def test_vanished(api: RestApi, fake: FakeRunPod) -> None:
    fake.faults.plan("preempted", after_s=0.05, gone=True)
    made = api.create_pod(pod_request())
    deadline = time.monotonic() + 10
    while api.pod(made.id) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert api.pod(made.id) is None
    assert list(api.logs(made.id, "container")) == []


def test_a_404_that_is_not_runpods_says_nothing_of_a_pod() -> None:
    with (
        answering("<html><title>Not here</title></html>", 404) as (url, _),
        pytest.raises(RequestRefused, match="a page titled 'Not here'"),
    ):
        elsewhere(url).pod("abc")
        with pytest.raises(PodMayStillBeBilling, match="abc"):
            elsewhere(url).terminate("abc")


def test_delete_fails_for_a_while(api: RestApi, fake: FakeRunPod, waits: list[float]) -> None:
    fake.faults.plan("terminate_fails", tries=2)
    made = api.create_pod(pod_request())
    api.terminate(made.id)
    assert not fake.live and waits == [1, 2]


def test_delete_fails(api: RestApi, fake: FakeRunPod) -> None:
    fake.faults.plan("terminate_fails")
    made = api.create_pod(pod_request())
    with pytest.raises(PodMayStillBeBilling, match="failed to terminate pod") as raised:
        api.terminate(made.id)
    assert raised.value.pod_id == made.id
    assert made.id in str(raised.value) and "https://console.runpod.io" in str(raised.value)
    assert len(fake.operations("delete")) == MOST_ATTEMPTS
    assert len(fake.operations("get")) == 1


def test_delete_fails_but_the_pod_is_gone(api: RestApi, fake: FakeRunPod) -> None:
    made = api.create_pod(pod_request())
    api.terminate(made.id)
    fake.faults.plan("html", on="delete", times=MOST_ATTEMPTS)
    api.terminate(made.id)


@pytest.mark.parametrize("fault", ["forbidden", "unauthorized"])
def test_delete_fails_for_the_key(api: RestApi, fake: FakeRunPod, fault: str) -> None:
    made = api.create_pod(pod_request())
    fake.faults.plan(fault, times=2)  # the look at the pod too
    with pytest.raises(PodMayStillBeBilling, match="RUNPOD_API_KEY") as raised:
        api.terminate(made.id)
    assert raised.value.pod_id == made.id


def test_delete_of_a_pod_that_is_ended_already(waits: list[float]) -> None:
    with answering(problem("pod is already terminated", 409), 409) as (url, got):
        elsewhere(url, waits).terminate("abc")
    assert got == ["DELETE /pods/abc"]
    with (
        answering(problem("pod is locked", 409), 409) as (url, got),
        pytest.raises(PodMayStillBeBilling, match="pod is locked"),
    ):
        elsewhere(url, waits).terminate("abc")


# Answers that are not as they should be.


@pytest.mark.parametrize("ask", [name for name in ASKING if name != "logs"])
@pytest.mark.parametrize("body", ["<html>hello</html>", '{"pods": [', "[]", "{}", "null", ""])
def test_what_is_no_answer_is_never_an_error_of_a_parser(ask: str, body: str) -> None:
    with (
        answering(body) as (url, _),
        pytest.raises(RunPodUnavailable),
    ):
        ASKING[ask](elsewhere(url))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"cost": None}, "pods.0.cost"),
        ({"cost": float("nan")}, "pods.0.cost"),
        ({"cost": -1}, "pods.0.cost"),
        ({"id": ""}, "pods.0.id"),
        ({"status": "BORED"}, "pods.0.status"),
        ({"createdAt": "yesterday"}, "pods.0.createdAt"),
        ({"createdAt": "2026-11-21T00:00:00"}, "pods.0.createdAt"),
    ],
)
def test_a_key_that_is_not_as_expected_is_named_without_the_rest(
    wrong: dict[str, object], named: str
) -> None:
    pod = {"id": "a", "name": "n", "status": "RUNNING", "cost": 1, "createdAt": "2026-11-21T00:00Z"}
    answer = {"pods": [{**pod, "env": {"TOKEN": "hush"}, **wrong}]}
    with (
        answering(json.dumps(answer)) as (url, _),
        pytest.raises(RunPodUnavailable, match=f"key '{named}'") as raised,
    ):
        elsewhere(url).pods()
    assert "hush" not in told(raised.value)


def test_keys_that_nobody_knows_are_left_out(api: RestApi, fake: FakeRunPod) -> None:
    fake.add_volume()
    fake.faults.plan("drift", times=None)
    made = api.create_pod(pod_request())
    assert [pod.id for pod in api.pods()] == [made.id]
    found = api.pod(made.id)
    assert found is not None and found.name == made.name
    assert api.volumes() and api.gpus() and api.charges(datetime.now(UTC))


@pytest.mark.parametrize("status", [301, 307, 400, 404, 405, 409, 418, 422])
def test_a_refusal_is_told_in_runpods_own_words(status: int) -> None:
    body = problem("the detail", status, ["first", "second"])
    for ask in (lambda api: api.pods(), lambda api: api.create_pod(pod_request())):
        with (
            answering(body, status) as (url, got),
            pytest.raises(RequestRefused, match=f"{status}: the detail; first; second"),
        ):
            ask(elsewhere(url))
        assert len(got) == 1


# The API key.


def test_the_key_is_shown_to_nobody(
    fake: FakeRunPod, caplog: pytest.LogCaptureFixture, waits: list[float]
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.hold_s = 0.05
    api = RestApi(fake.rest_url, fake.api_key, sleep=waits.append)
    shown = [repr(api), str(vars(api))]
    faults = ["unauthorized", "forbidden", "rate_limited", "server_error", "html", "reset"]
    for fault in [*faults, "timeout"]:
        for ask in (*ASKING.values(), lambda api: api.create_pod(pod_request())):
            fake.faults.plan(fault, times=None)
            with pytest.raises(RunPodError) as raised:
                ask(api)
            fake.faults.clear()
            shown += [told(raised.value), repr(pickle.dumps(raised.value.args))]
    shown += [record.getMessage() for record in caplog.records]
    assert any("/v2/pods" in line for line in shown)
    assert not [line for line in shown if fake.api_key in line]


def test_a_key_that_comes_back_in_an_answer_is_blotted_out() -> None:
    with (
        answering(problem(f"no key {KEY} here", 400), 400) as (url, _),
        pytest.raises(RequestRefused, match="no key <API key> here"),
    ):
        elsewhere(url).pods()


@pytest.mark.parametrize("key", ["", "  ", "rpa_half rpa_other", "rpa_line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY") as raised:
        RestApi("http://127.0.0.1:9", key)
    assert not key.strip() or key not in told(raised.value)


def test_blanks_around_a_key_do_not_matter(fake: FakeRunPod) -> None:
    assert RestApi(fake.rest_url, f" {fake.api_key}\n").pods() == []
