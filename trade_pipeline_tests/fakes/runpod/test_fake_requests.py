"""What the fake RunPod refuses, and its volumes, catalogue and bills."""

import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.fakes.runpod.clients import body, make, on_volume


def test_a_wrong_key_gives_401_as_a_problem(fake: FakeRunPod) -> None:
    answer = httpx.get(f"{fake.rest_url}/pods", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "title": "Unauthorized",
        "status": 401,
        "detail": answer.json()["detail"],
    }


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"extra": 1}, 422),
        ({"gpuTypeId": "NVIDIA L4"}, 422),
        ({"gpu": {"id": "NVIDIA L4", "type": "x"}}, 422),
        ({"gpu": {"count": 1}}, 422),
        ({"gpu": {"id": "NVIDIA L4", "count": "1"}}, 422),
        ({"gpu": {"id": "NVIDIA L4", "count": True}}, 422),
        ({"gpu": {"id": "NVIDIA L4", "allowedCudaVersions": ["12"]}}, 422),
        ({"gpu": {"id": "NVIDIA L4", "allowedCudaVersions": ["9.9"]}}, 400),
        ({"gpu": {"id": "no such GPU"}}, 400),
        ({"cpu": {"id": "cpu5c", "vcpuCount": 2}}, 400),
        ({"mounts": {"network": [{"volumeId": "x"}]}}, 422),
        ({"mounts": {"network": [{"volumeId": "x", "path": "/w", "readOnly": True}]}}, 422),
        ({"mounts": {"network": [{"volumeId": "x", "path": "/w"}]}}, 404),
        ({"env": {"A": 1}}, 422),
        ({"env": [{"key": "A", "value": "1"}]}, 422),
        ({"args": ["python"]}, 422),
        ({"disk": "20"}, 422),
        ({"name": ""}, 422),
        ({"cloud": "ALL"}, 422),
        ({"dataCenterIds": "EU-RO-1"}, 422),
        ({"dataCenterIds": ["XX-1"]}, 400),
        ({"startSsh": None}, 422),
        ({"templateId": "tpl"}, 404),
    ],
)
def test_a_request_that_is_wrong_anywhere_makes_no_pod(
    fake: FakeRunPod, api: httpx.Client, changes: dict[str, Any], status: int
) -> None:
    answer = api.post("/pods", json=body(**changes))
    assert answer.status_code == answer.json()["status"] == status, answer.text
    assert ("errors" in answer.json()) == (status == 422)
    assert not fake.pods


@pytest.mark.parametrize("key", ["name", "image", "gpu"])
def test_what_is_required_is_missed(fake: FakeRunPod, api: httpx.Client, key: str) -> None:
    sent = body()
    del sent[key]
    assert api.post("/pods", json=sent).status_code in (400, 422)
    assert not fake.pods


def test_queries_actions_and_routes_that_do_not_exist_are_refused(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    pod = make(api, fake)
    assert api.get("/pods", params={"desiredStatus": "RUNNING"}).status_code == 422
    assert api.get(f"/pods/{pod.id}/logs", params={"tail": "5001"}).status_code == 422
    assert api.post(f"/pods/{pod.id}/action", json={"action": "reset"}).status_code == 422
    assert api.post(f"/pods/{pod.id}/action", json={"action": "start"}).status_code == 409
    assert api.get("/catalog/gpus", params={"include": "AVAILABILITY"}).status_code == 400
    assert api.get("/pods/none").status_code == 404
    assert api.delete("/pods/none").status_code == 404
    assert not fake.unexpected
    assert api.get("/endpoints").status_code == 404
    assert api.put("/pods").status_code == 405
    assert [one.path for one in fake.unexpected] == ["/v2/endpoints", "/v2/pods"]


@pytest.mark.parametrize(
    "changes", [{"cloud": "COMMUNITY"}, {"dataCenterIds": ["US-KS-2"]}], ids=["cloud", "place"]
)
def test_a_volume_on_the_wrong_cloud_or_place_gives_the_vague_answer(
    fake: FakeRunPod, api: httpx.Client, tmp_path: Path, changes: dict[str, Any]
) -> None:
    mounts = on_volume(fake.add_volume("EU-RO-1"), tmp_path / "mount")
    answer = api.post("/pods", json=body(mounts=mounts, **changes))
    assert answer.status_code == 500
    assert "Something went wrong" in answer.json()["detail"]
    assert not fake.pods


def test_a_mount_path_that_is_somebodys_is_left_alone(
    fake: FakeRunPod, api: httpx.Client, tmp_path: Path
) -> None:
    volume, theirs = fake.add_volume(), tmp_path / "theirs"
    theirs.mkdir()
    for path in (theirs, Path("/workspace"), Path("/tmp/../etc/x")):
        answer = api.post("/pods", json=body(mounts=on_volume(volume, path)))
        assert answer.status_code == 400
        assert "mount path" in answer.json()["detail"]
    assert theirs.is_dir() and not theirs.is_symlink()
    assert not Path("/workspace").is_symlink()


def test_no_money_no_pod(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.account.spend_limit_usd_h = 0.5
    make(api, fake)
    assert api.post("/pods", json=body()).status_code == 402
    fake.account.spend_limit_usd_h, fake.account.balance_usd = 80.0, 0.0
    assert api.post("/pods", json=body()).status_code == 402
    assert len(fake.charges) == 1


# Volumes, catalogue, bills.


def test_volumes_grow_only(fake: FakeRunPod, api: httpx.Client) -> None:
    sent = {"name": "v", "size": 50, "dataCenter": "EU-RO-1"}
    made = api.post("/network-volumes", json=sent).json()
    assert api.get("/network-volumes").json() == {"networkVolumes": [made]}
    assert made == {"id": made["id"], "type": "STANDARD", **sent}
    assert api.post("/network-volumes", json={**sent, "dataCenterId": "x"}).status_code == 422
    assert api.patch(f"/network-volumes/{made['id']}", json={"size": 100}).json()["size"] == 100
    assert api.patch(f"/network-volumes/{made['id']}", json={"size": 50}).status_code == 400


def test_the_catalogue_has_prices_and_availability(fake: FakeRunPod, api: httpx.Client) -> None:
    plain = api.get("/catalog/gpus").json()["gpus"][0]
    assert "availability" not in plain
    fake.faults.plan("unavailable", gpu="NVIDIA L4")
    query = {"include": "AVAILABILITY", "product": "POD"}
    gpus = {gpu["id"]: gpu for gpu in api.get("/catalog/gpus", params=query).json()["gpus"]}
    assert gpus["NVIDIA L4"]["availability"] == "NONE"
    assert "dataCenters" not in gpus["NVIDIA L4"]
    assert gpus["NVIDIA A40"]["availability"] == "HIGH"
    assert gpus["NVIDIA L4"]["price"] == {"secure": 0.39, "community": 0.0}


def test_bills_lag_and_add_up_to_the_charges(fake: FakeRunPod, api: httpx.Client) -> None:
    pod, other = make(api, fake), make(api, fake)
    time.sleep(0.1)
    pod.terminate()
    other.terminate()
    assert api.get("/billing/pods").json()["records"] == []
    fake.timing.billing_lag_s = 0.0
    answer = api.get("/billing/pods", params={"bucketSize": "hour", "podId": pod.id}).json()
    amounts = [record["totalAmount"] for record in answer["records"]]
    assert {record["podId"] for record in answer["records"]} == {pod.id}
    assert sum(amounts) == pytest.approx(pod.charge.usd)
    assert answer["metadata"]["totals"]["totalAmount"] == pytest.approx(pod.charge.usd)
