"""The fake RunPod's GraphQL, by the SDK and raw."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import runpod

from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.fakes.runpod.clients import make, running, until


@pytest.fixture
def sdk(fake: FakeRunPod, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", fake.graphql_url)
    monkeypatch.setattr(runpod, "api_key", fake.api_key)
    return runpod


def ask(fake: FakeRunPod, document: str, **values: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {fake.api_key}"}
    sent = {"query": document, "variables": values}
    found: dict[str, Any] = httpx.post(f"{fake.url}/graphql", json=sent, headers=headers).json()
    return found


def test_the_sdk_makes_sees_stops_and_ends_pods(fake: FakeRunPod, sdk: Any) -> None:
    volume = fake.add_volume()
    assert sdk.get_user()["networkVolumes"][0]["id"] == volume.id
    assert {gpu["id"] for gpu in sdk.get_gpus()} == fake.gpus.keys()
    made = sdk.create_pod(
        "sdk", "image", "NVIDIA L4", cloud_type="SECURE", docker_args="sleep 60", env={"A": "b"}
    )
    assert "costPerHr" not in made
    running(fake.pod("sdk"))
    assert sdk.get_pod(made["id"])["desiredStatus"] == "RUNNING"
    assert [pod["name"] for pod in sdk.get_pods()] == ["sdk"]
    assert sdk.stop_pod(made["id"])["desiredStatus"] == "EXITED"
    sdk.terminate_pod(made["id"])
    assert not fake.live


def test_what_the_sdk_does_not_escape_breaks_its_document(fake: FakeRunPod, sdk: Any) -> None:
    with pytest.raises(sdk.error.QueryError, match="Syntax Error"):
        sdk.create_pod("sdk", "image", "NVIDIA L4", env={"SPEC": '{"a": 1}'})
    with pytest.raises(sdk.error.QueryError, match="no longer any instances"):
        fake.faults.plan("no_capacity")
        sdk.create_pod("sdk", "image", "NVIDIA L4")
    assert not fake.pods


def test_the_sdk_stumbles_over_429_and_html_and_knows_401(fake: FakeRunPod, sdk: Any) -> None:
    fake.faults.plan("rate_limited", on="graphql")
    with pytest.raises(KeyError, match="data"):
        sdk.get_user()
    fake.faults.plan("html", on="graphql")
    with pytest.raises(ValueError, match="Expecting value"):
        sdk.get_user()
    fake.api_key = "another"
    with pytest.raises(sdk.error.AuthenticationError):
        sdk.get_user()


def test_graphql_tells_balance_and_limits_and_refuses_unknown_fields(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    make(api, fake)
    fake.account.balance_usd = 12.5
    document = "{ myself { clientBalance currentSpendPerHr spendLimit } }"
    found = ask(fake, document)["data"]["myself"]
    assert found == {"clientBalance": 12.5, "currentSpendPerHr": 0.39, "spendLimit": 80.0}
    assert "Cannot query field" in ask(fake, "{ myself { balance } }")["errors"][0]["message"]


def test_a_pod_may_be_given_a_last_moment(fake: FakeRunPod, api: httpx.Client) -> None:
    document = (
        "mutation($input: PodEditJobInput!) { podEditJob(input: $input) { id terminateAfter } }"
    )
    soon = (datetime.now(UTC) + timedelta(seconds=0.3)).isoformat()
    pod = make(api, fake)
    answer = ask(fake, document, input={"podId": pod.id, "terminateAfter": "1h"})
    assert "DateTime" in answer["errors"][0]["message"] and pod.terminate_after is None
    fake.timers_work = False
    ask(fake, document, input={"podId": pod.id, "terminateAfter": soon})
    time.sleep(0.4)
    assert fake.live == [pod]
    fake.timers_work = True
    answer = ask(fake, document, input={"podId": pod.id, "terminateAfter": soon})
    assert answer["data"]["podEditJob"]["terminateAfter"] == soon
    until(lambda: not fake.live)
