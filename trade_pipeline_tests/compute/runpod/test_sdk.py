"""Balance, spend limit and timers through the SDK, whose failures are put into our words."""

import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from trade_pipeline.compute.runpod.api import Account
from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    RateLimited,
    RequestRefused,
    RunPodError,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.compute.runpod.sdk import URL_VARIABLE, SdkAccount
from trade_pipeline_tests.compute.runpod.conversations import answering, pod_request, told
from trade_pipeline_tests.fakes.runpod import FakeRunPod

KEY = "rpa_SECRETSECRETSECRET"


@pytest.fixture(autouse=True)
def untouched_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    # pytest's name of the test under way, and the suite's guard, which comes with a first process.
    own = {"PYTEST_CURRENT_TEST", "PYTHONPATH"}
    assert {name: os.environ.get(name) for name in {*before, *os.environ} - own} == {
        name: before.get(name) for name in {*before, *os.environ} - own
    }


@pytest.fixture
def fake() -> Iterator[FakeRunPod]:
    with FakeRunPod() as fake:
        yield fake
    assert not fake.unexpected
    assert not fake.faults.unused


@pytest.fixture
def account(fake: FakeRunPod) -> SdkAccount:
    return SdkAccount(fake.graphql_url, fake.api_key)


def made_pod(fake: FakeRunPod) -> str:
    return RestApi(fake.rest_url, fake.api_key).create_pod(pod_request()).id


def test_the_account_has_balance_limit_and_spend(fake: FakeRunPod, account: SdkAccount) -> None:
    fake.account.balance_usd = 12.5
    made_pod(fake)
    assert account.account() == Account(12.5, 80.0, 0.39)


def test_an_account_may_have_no_spend_limit() -> None:
    myself = {"clientBalance": 3, "spendLimit": None, "currentSpendPerHr": 0}
    with answering(json.dumps({"data": {"myself": myself}})) as (url, got):
        assert SdkAccount(url, KEY).account() == Account(3.0, None, 0.0)
    assert got == ["POST /graphql"]


def test_a_timer_ends_a_pod_whatever_zone_it_is_given_in(
    fake: FakeRunPod, account: SdkAccount
) -> None:
    pod_id = made_pod(fake)
    far = timezone(timedelta(hours=-7))
    when = datetime.now(UTC) + timedelta(seconds=2)
    account.terminate_after(pod_id, when.astimezone(far))
    assert fake.pods[0].terminate_after == when.replace(microsecond=0)
    deadline = time.monotonic() + 10
    while fake.live and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not fake.live


def test_a_timer_without_a_zone_is_refused(fake: FakeRunPod, account: SdkAccount) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        account.terminate_after("abc", datetime(2026, 11, 21))
    assert not fake.seen


def test_an_id_is_quoted(fake: FakeRunPod, account: SdkAccount) -> None:
    when = datetime.now(UTC)
    for name in ('a"b', "a\\", 'x"}) { id } podTerminate(input: {podId: "y'):
        with pytest.raises(RequestRefused, match="pod not found"):
            account.terminate_after(name, when)


def test_a_timer_for_a_pod_that_is_not_there_is_refused(account: SdkAccount) -> None:
    with pytest.raises(RequestRefused, match="pod not found"):
        account.terminate_after("abc", datetime.now(UTC))
    with (
        answering('{"data": {"podEditJob": null}}') as (url, _),
        pytest.raises(RequestRefused, match="timer of pod abc"),
    ):
        SdkAccount(url, KEY).terminate_after("abc", datetime.now(UTC))


# What goes wrong, and what the SDK makes of it.


def test_401(fake: FakeRunPod) -> None:
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY") as raised:
        SdkAccount(fake.graphql_url, KEY).account()
    assert raised.value.status == 401


def test_403(fake: FakeRunPod, account: SdkAccount) -> None:
    fake.faults.plan("forbidden", on="graphql")
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY") as raised:
        account.account()
    assert raised.value.status == 403


def test_429(fake: FakeRunPod, account: SdkAccount) -> None:
    fake.faults.plan("rate_limited", on="graphql")  # the SDK's own calls give KeyError('data')
    with pytest.raises(RateLimited, match="rate limit exceeded") as raised:
        account.account()
    assert raised.value.allow_retries


@pytest.mark.parametrize("status", [200, 404, 429, 502])
def test_a_page_is_never_an_error_of_a_parser(
    fake: FakeRunPod, account: SdkAccount, status: int
) -> None:
    fake.faults.plan("html", on="graphql", status=status)
    with pytest.raises(RunPodUnavailable, match="no JSON"):
        account.account()


@pytest.mark.parametrize("fault", ["server_error", "reset", "timeout"])
def test_5xx_and_broken_connections(fake: FakeRunPod, account: SdkAccount, fault: str) -> None:
    fake.hold_s = 0.05
    fake.faults.plan(fault, on="graphql")
    with pytest.raises(RunPodUnavailable, match="balance of the account"):
        account.account()


def test_a_refusal_is_told_in_runpods_own_words() -> None:
    for said, kind in {
        "Something about limits": RequestRefused,
        "You are not authorized to see this": AccessDenied,
        "Too Many Requests": RateLimited,
    }.items():
        with (
            answering(json.dumps({"errors": [{"message": said}]})) as (url, _),
            pytest.raises(kind, match=said),
        ):
            SdkAccount(url, KEY).account()


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "7",
        "null",
        "{}",
        '{"data": null}',
        '{"data": {"myself": null}}',
        '{"data": {"myself": {"clientBalance": "much", "currentSpendPerHr": 0}}}',
        '{"data": {"myself": {"clientBalance": 1}}}',
        '{"errors": []}',
        '{"errors": null}',
        '{"errors": ["a text"]}',
        '{"errors": [{}]}',
    ],
)
def test_an_answer_of_another_shape_is_never_an_error_of_ours(body: str) -> None:
    with answering(body) as (url, _), pytest.raises(RunPodUnavailable):
        SdkAccount(url, KEY).account()


# The environment and the key.


def test_the_environment_keeps_its_own_address(
    fake: FakeRunPod, account: SdkAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://127.0.0.1:9")
    assert account.account().balance_usd == 100.0
    assert os.environ[URL_VARIABLE] == "http://127.0.0.1:9"
    monkeypatch.undo()
    fake.faults.plan("html", on="graphql")
    with pytest.raises(RunPodUnavailable):
        account.account()
    assert URL_VARIABLE not in os.environ


def test_two_accounts_at_once_each_reach_their_own(fake: FakeRunPod) -> None:
    with FakeRunPod(api_key=KEY) as other:
        fake.account.balance_usd, other.account.balance_usd = 1.0, 2.0
        ours, theirs = SdkAccount(fake.url, fake.api_key), SdkAccount(other.url, KEY)
        got: list[float] = []

        def ask(one: SdkAccount) -> None:
            got.extend(one.account().balance_usd for _ in range(10))

        threads = [threading.Thread(target=ask, args=(one,)) for one in (ours, theirs) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == [1.0] * 20 + [2.0] * 20


def test_the_key_is_shown_to_nobody(
    fake: FakeRunPod, account: SdkAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    fake.hold_s = 0.05
    shown = [repr(account), str(vars(account))]
    faults = ["unauthorized", "forbidden", "rate_limited", "server_error", "html", "reset"]
    for fault in [*faults, "timeout"]:
        fake.faults.plan(fault, on="graphql")
        with pytest.raises(RunPodError) as raised:
            account.account()
        shown += [told(raised.value), repr(pickle.dumps(raised.value.args))]
    account.account()
    shown += [record.getMessage() for record in caplog.records]
    assert any("graphql" in line for line in shown)
    assert not [line for line in shown if fake.api_key in line]


def test_a_key_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(AccessDenied, match="RUNPOD_API_KEY"):
        SdkAccount("http://127.0.0.1:9", "")
