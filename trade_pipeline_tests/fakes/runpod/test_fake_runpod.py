"""What the fake RunPod promises: it refuses what the service refuses, and its pods are real."""

import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import runpod
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, ResponseStreamingError

from trade_pipeline_tests.fakes.runpod import NO_CAPACITY, NO_MONEY, FakeRunPod, Timing
from trade_pipeline_tests.fakes.runpod.account import FakeVolume
from trade_pipeline_tests.fakes.runpod.barrier import has_namespaces
from trade_pipeline_tests.fakes.runpod.pods import FakePod, processes_of
from trade_pipeline_tests.loopback_site import only_loopback

WAIT_S = 10.0


def quick() -> Timing:
    """Delays of almost nothing."""
    return Timing(
        provisioning_s=0.01, starting_s=0.01, restart_s=0.05, grace_s=0.3, keepalive_s=0.05
    )


@pytest.fixture
def fake() -> Iterator[FakeRunPod]:
    with FakeRunPod(timing=quick()) as running:
        yield running


@pytest.fixture
def api(fake: FakeRunPod) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {fake.api_key}"}
    with httpx.Client(base_url=fake.rest_url, headers=headers, timeout=10, verify=False) as client:
        yield client


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it holds."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return found


def wait_until_gone(pod: FakePod) -> None:
    until(lambda: not processes_of(pod.id) and pod.mount is None)


def body(code: str = "", **changes: Any) -> dict[str, Any]:
    """A good request for a pod that runs this Python."""
    return {
        "name": "tp-test-1",
        "image": "image",
        "gpu": {"id": "NVIDIA L4", "count": 1, "allowedCudaVersions": ["12.8"]},
        "args": shlex.join(["python", "-c", code or "import time; time.sleep(60)"]),
        **changes,
    }


def make(api: httpx.Client, fake: FakeRunPod, code: str = "", **changes: Any) -> FakePod:
    answer = api.post("/pods", json=body(code, **changes))
    assert answer.status_code == 201, answer.text
    return fake.pod(answer.json()["id"])


def running(pod: FakePod) -> FakePod:
    until(lambda: pod.status == "RUNNING" and pod.pid)
    return pod


def on_volume(volume: FakeVolume, mount: Path) -> dict[str, Any]:
    return {"network": [{"volumeId": volume.id, "path": str(mount)}]}


# REST: what is refused.


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


# Pods.


def test_a_pod_runs_its_command_with_its_environment_and_nothing_of_the_hosts(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "of the host")
    secrets = {"hidden": "revealed"}
    with FakeRunPod(timing=quick(), secrets=secrets) as fake:
        api.base_url = httpx.URL(fake.rest_url)
        env = {"GREETING": 'quo"te', "TOKEN": "{{ RUNPOD_SECRET_hidden }}"}
        code = (
            "import os, json, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(60)"
        )
        pod = running(make(api, fake, code, env=env))
        found = json.loads(until(lambda: pod.log)[0])
        shown = api.get(f"/pods/{pod.id}").json()
    assert found["GREETING"] == 'quo"te' and found["TOKEN"] == "revealed"
    assert found["RUNPOD_POD_ID"] == pod.id
    assert Path(found["HOME"]).name.startswith("container-")
    assert "RUNPOD_API_KEY" not in found
    known = {"PATH", "HOME", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "RUNPOD_POD_ID"}
    of_shell_and_suite = {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE", only_loopback.RECORD}
    assert found.keys() - of_shell_and_suite == known | env.keys()
    assert shown["env"] == env  # never what a secret stands for


def test_the_command_runs_again_for_ever_and_no_exit_code_is_told(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    pod = make(api, fake, "print('once more'); raise SystemExit(3)")
    until(lambda: pod.starts >= 3)
    shown = api.get(f"/pods/{pod.id}").json()
    assert shown["status"] == "RUNNING"
    assert not [key for key in re.findall(r'"(\w+)":', json.dumps(shown)) if "xit" in key]
    assert len([line for line in pod.system_log if "start container" in line]) >= 3


def test_the_status_goes_through_its_stages(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.timing = Timing(provisioning_s=0.15, starting_s=0.15)
    pod = make(api, fake)
    seen: list[tuple[str, bool, bool]] = []
    while not seen or seen[-1][0] != "RUNNING":
        shown = api.get(f"/pods/{pod.id}").json()
        stage = (shown["status"], shown["runtime"] is None, shown["startedAt"] is None)
        if stage not in seen:
            seen.append(stage)
    stages = [("PROVISIONING", True, True), ("STARTING", True, True), ("RUNNING", False, False)]
    assert seen == stages


def test_what_a_pod_writes_below_its_mount_is_a_key_and_the_other_way_round(
    fake: FakeRunPod, api: httpx.Client, tmp_path: Path
) -> None:
    volume, mount = fake.add_volume(), tmp_path / "mount"
    s3 = bucket(fake)
    s3.put_object(Bucket=volume.id, Key="in/x.txt", Body=b"from the host")
    code = (
        f"import pathlib, time; m = pathlib.Path({str(mount)!r}); (m / 'out').mkdir(exist_ok=True);"
        "(m / 'out/y.txt').write_text((m / 'in/x.txt').read_text()[::-1]); time.sleep(60)"
    )
    first = make(api, fake, code, mounts=on_volume(volume, mount))
    second = make(api, fake, mounts=on_volume(volume, mount))
    until(lambda: (volume.path / "out/y.txt").exists() and (volume.path / "out/y.txt").read_text())
    answer = s3.get_object(Bucket=volume.id, Key="out/y.txt")
    assert answer["Body"].read() == b"tsoh eht morf"
    for pod, remains in ((first, True), (second, False)):
        assert api.delete(f"/pods/{pod.id}").status_code == 204
        wait_until_gone(pod)
        assert mount.is_symlink() is remains


def test_termination_ends_every_process_and_the_bill(fake: FakeRunPod, api: httpx.Client) -> None:
    code = (
        "import subprocess, sys, time;"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True); print('both', flush=True); time.sleep(60)"
    )
    pod = running(make(api, fake, code))
    until(lambda: pod.log)
    assert len(processes_of(pod.id)) >= 2
    assert fake.live == [pod] and not fake.charges[0].ended
    assert api.delete(f"/pods/{pod.id}").status_code == 204
    assert not fake.live and fake.charges[0].ended
    assert api.get(f"/pods/{pod.id}").status_code == 404
    assert api.get("/pods").json() == {"pods": []}
    assert api.delete(f"/pods/{pod.id}").status_code == 404
    until(lambda: not processes_of(pod.id))
    billed = fake.charges[0].seconds
    assert 0 < billed < WAIT_S and fake.charges[0].usd == pytest.approx(billed / 3600 * 0.39)
    time.sleep(0.05)
    assert fake.charges[0].seconds == billed


def test_the_first_process_is_asked_to_end_before_it_is_killed(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    fake.timing.grace_s = WAIT_S
    code = (
        "import signal, sys, time;"
        "signal.signal(signal.SIGTERM, lambda *_: (print('asked', flush=True), sys.exit()));"
        "print('ready', flush=True); time.sleep(60)"
    )
    pod = running(make(api, fake, code))
    until(lambda: pod.log)
    api.delete(f"/pods/{pod.id}")
    until(lambda: pod.log == ["ready", "asked"])


def test_a_pod_may_be_stopped_started_and_restarted(fake: FakeRunPod, api: httpx.Client) -> None:
    pod = running(make(api, fake))
    stopped = api.post(f"/pods/{pod.id}/action", json={"action": "stop"}).json()
    assert (stopped["status"], stopped["cost"], stopped["actions"]) == (
        *("EXITED", 0.0),
        ["start", "terminate"],
    )
    assert fake.charges[0].ended and fake.live == [pod]
    until(lambda: not processes_of(pod.id))
    api.post(f"/pods/{pod.id}/action", json={"action": "start"})
    running(pod)
    assert pod.starts == 2 and not fake.charges[0].ended
    api.post(f"/pods/{pod.id}/action", json={"action": "restart"})
    until(lambda: pod.starts == 3)
    assert api.post(f"/pods/{pod.id}/action", json={"action": "terminate"}).status_code == 200
    assert not fake.live


def test_a_terminated_pod_may_be_shown_for_a_while(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.timing = Timing(terminated_visible_s=0.2)
    pod = make(api, fake)
    api.delete(f"/pods/{pod.id}")
    shown = api.get("/pods").json()["pods"][0]
    assert (shown["status"], shown["cost"], shown["actions"]) == ("TERMINATED", 0.0, [])
    until(lambda: api.get(f"/pods/{pod.id}").status_code == 404)


def test_leaving_the_fake_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    with FakeRunPod(timing=quick()) as fake:
        headers = {"Authorization": f"Bearer {fake.api_key}"}
        volume = fake.add_volume()
        with httpx.Client(base_url=fake.rest_url, headers=headers) as api:
            pod = running(make(api, fake, mounts=on_volume(volume, tmp_path / "mount")))
        assert (tmp_path / "mount").is_dir()
    assert not processes_of(pod.id)
    assert not (tmp_path / "mount").is_symlink()
    assert not volume.path.exists()


# The barrier.


def test_a_pod_reaches_no_file_of_the_host_that_is_off_limits(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "secret.txt").write_text("host")
    code = f"""
import os, subprocess, time
def tried(what):
    try:
        print(what(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
tried(lambda: open({str(store / "secret.txt")!r}).read())
tried(lambda: os.listdir({str(store)!r}))
tried(lambda: open({str(store / "new.txt")!r}, "w"))
tried(lambda: subprocess.run(["cat", {str(store / "secret.txt")!r}], capture_output=True).stdout)
time.sleep(60)
"""
    with FakeRunPod(timing=quick(), forbidden=[store]) as fake:
        headers = {"Authorization": f"Bearer {fake.api_key}"}
        with httpx.Client(base_url=fake.rest_url, headers=headers) as api:
            pod = make(api, fake, code)
        log = until(lambda: pod.log if len(pod.log) == 4 else None)
        leaks = fake.leaks
        assert fake.barrier == ("namespaces and audit hook" if has_namespaces() else "audit hook")
    assert log[:3] == ["PermissionError"] * 3
    if has_namespaces():
        assert log[3] == "b''"  # no Python, so only the namespace stops it
    assert [leak["what"] for leak in leaks] == [
        str(store / "secret.txt"),
        str(store),
        str(store / "new.txt"),
    ]
    assert {leak["pod"] for leak in leaks} == {pod.id}
    assert [file.name for file in store.iterdir()] == ["secret.txt"]


def test_a_pod_may_reach_this_machine_and_its_volume_unnoticed(tmp_path: Path) -> None:
    with FakeRunPod(timing=quick(), forbidden=[tmp_path / "store"]) as fake:
        volume = fake.add_volume()
        code = (
            f"import httpx, pathlib; print(httpx.get({fake.url!r}).status_code, flush=True);"
            f"pathlib.Path({str(tmp_path / 'mount/x')!r}).write_text('x')"
        )
        headers = {"Authorization": f"Bearer {fake.api_key}"}
        with httpx.Client(base_url=fake.rest_url, headers=headers) as api:
            make(api, fake, code, mounts=on_volume(volume, tmp_path / "mount"))
        until(lambda: (volume.path / "x").exists())
        assert fake.leaks == []


def test_what_pods_need_cannot_be_forbidden(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be forbidden"):
        FakeRunPod(forbidden=[Path("/")])


# Logs.


def events(answer: httpx.Response, most: int) -> list[tuple[str, str]]:
    """Ids and lines of the first events."""
    found: list[tuple[str, str]] = []
    event_id = ""
    for line in answer.iter_lines():
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            data = json.loads(line[6:])
            assert data.keys() == {"ts", "source", "line"}
            found.append((event_id, data["line"]))
            if len(found) == most:
                break
    return found


COUNT = "import time; [print(n, flush=True) for n in range(120)]; time.sleep(60)"


def test_logs_stream_resume_and_repeat(fake: FakeRunPod, api: httpx.Client) -> None:
    pod = make(api, fake, COUNT)
    until(lambda: len(pod.log) == 120)
    container = {"source": "container"}
    with api.stream("GET", f"/pods/{pod.id}/logs", params=container) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        first = events(answer, 1)
    assert first[0][1] in ("20", "21", "22")  # the last hundred lines of both sources
    whole = {**container, "tail": "5000"}
    with api.stream("GET", f"/pods/{pod.id}/logs", params=whole) as answer:
        lines = events(answer, 120)
    assert [line for _, line in lines] == [str(n) for n in range(120)]
    headers = {"Last-Event-ID": lines[99][0]}
    with api.stream("GET", f"/pods/{pod.id}/logs", params=container, headers=headers) as answer:
        again = events(answer, 22)
    assert [line for _, line in again[:4]] == ["97", "98", "99", "100"]
    assert again[3] == lines[100]
    since = {**container, "since": lines[110][0]}
    with api.stream("GET", f"/pods/{pod.id}/logs", params=since) as answer:
        assert events(answer, 1)[0] == lines[110]
    headers = {"Last-Event-ID": "17"}
    assert api.get(f"/pods/{pod.id}/logs", headers=headers).status_code == 422


def test_lines_of_one_moment_may_share_an_id(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.log_decimals = 0
    pod = make(api, fake, COUNT)
    until(lambda: len(pod.log) == 120)
    with api.stream("GET", f"/pods/{pod.id}/logs", params={"source": "container"}) as answer:
        assert len({event_id for event_id, _ in events(answer, 90)}) <= 3


def test_an_idle_stream_has_comments_and_ends_with_the_pod(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    pod = running(make(api, fake))
    got: list[str] = []
    with api.stream("GET", f"/pods/{pod.id}/logs", params={"source": "container"}) as answer:
        for line in answer.iter_lines():
            got.append(line)
            if got.count(": heartbeat") == 2:
                pod.terminate()
    assert set(got) <= {": connected", ": heartbeat", ""}


def test_a_log_stream_may_break(fake: FakeRunPod, api: httpx.Client) -> None:
    pod = make(api, fake, COUNT)
    until(lambda: len(pod.log) == 120)
    fake.faults.plan("logs_cut", lines=5)
    with (
        pytest.raises(httpx.TransportError),
        api.stream("GET", f"/pods/{pod.id}/logs") as answer,
    ):
        assert len(events(answer, 6)) == 5
    fake.faults.plan("html", on="logs", status=502)
    assert "<html>" in api.get(f"/pods/{pod.id}/logs").text


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


# Faults of requests and pods.


@pytest.mark.parametrize("status", [400, 409, 500, 503])
@pytest.mark.parametrize("wording", range(3))
def test_no_capacity_in_every_wording(
    fake: FakeRunPod, api: httpx.Client, wording: int, status: int
) -> None:
    fake.faults.plan("no_capacity", gpu="NVIDIA L4", wording=wording, status=status)
    answer = api.post("/pods", json=body())
    assert (answer.status_code, answer.json()["detail"]) == (status, NO_CAPACITY[wording])
    assert not fake.pods and not fake.faults.unused
    make(api, fake)


def test_a_fault_waits_for_its_gpu_and_says_when_it_never_came(
    fake: FakeRunPod, api: httpx.Client
) -> None:
    planned = fake.faults.plan("no_capacity", gpu="NVIDIA A40", times=None)
    make(api, fake)
    assert fake.faults.unused == [planned]
    for _ in range(2):
        assert api.post("/pods", json=body(gpu={"id": "NVIDIA A40"})).status_code == 400
    assert planned.used == 2 and not fake.faults.unused
    with pytest.raises(ValueError, match="no fault 'no capacity'"):
        fake.faults.plan("no capacity")
    with pytest.raises(ValueError, match="no detail"):
        fake.faults.plan("no_capacity", words=1)


def test_answers_instead_of_the_answer(fake: FakeRunPod, api: httpx.Client) -> None:
    for wording, detail in enumerate(NO_MONEY):
        fake.faults.plan("balance", wording=wording)
        answer = api.post("/pods", json=body())
        assert (answer.status_code, answer.json()["detail"]) == (402, detail)
    fake.faults.plan("forbidden", on="create")
    assert api.get("/pods").status_code == 200
    assert api.post("/pods", json=body()).status_code == 403
    fake.faults.plan("unauthorized", on="list")
    assert api.get("/pods").status_code == 401
    fake.faults.plan("rate_limited", on="list", retry_after=3)
    fake.faults.plan("rate_limited", on="list")
    assert api.get("/pods").headers["Retry-After"] == "3"
    second = api.get("/pods")
    assert second.status_code == 429 and "Retry-After" not in second.headers
    fake.faults.plan("server_error", on="create", status=503, after=1)
    pod = make(api, fake)
    assert api.post("/pods", json=body()).status_code == 503
    fake.faults.plan("html", on="get", pod="tp-test-*", status=200)
    assert api.get(f"/pods/{pod.id}").text.startswith("<!DOCTYPE html>")
    fake.faults.plan("reset", on="delete")
    with pytest.raises(httpx.TransportError):
        api.delete(f"/pods/{pod.id}")
    fake.hold_s = 0.05
    fake.faults.plan("timeout", on="volumes")
    with pytest.raises(httpx.RemoteProtocolError):
        api.get("/network-volumes")
    assert fake.pods == [pod] == fake.live and not fake.faults.unused


@pytest.mark.parametrize("name", ["500", "html", "reset", "timeout"])
def test_a_pod_may_be_made_although_the_answer_says_otherwise(
    fake: FakeRunPod, api: httpx.Client, name: str
) -> None:
    fake.hold_s = 0.05
    fake.faults.plan(f"created_but_{name}")
    fake.faults.plan("late_listing", lists=2)
    try:
        assert api.post("/pods", json=body()).status_code >= 500
    except httpx.TransportError:
        assert name in ("reset", "timeout")
    assert [len(api.get("/pods").json()["pods"]) for _ in range(3)] == [0, 0, 1]
    running(fake.pod("tp-test-1"))
    assert len(fake.charges) == 1 and fake.charges[0].seconds > 0


def test_pods_that_never_run_bill_all_the_same(fake: FakeRunPod, api: httpx.Client) -> None:
    for name in ("stuck_provisioning", "stuck_starting", "uptime_zero"):
        fake.faults.plan(name, pod=name)
    for name, status in (
        ("stuck_provisioning", "PROVISIONING"),
        ("stuck_starting", "STARTING"),
        ("uptime_zero", "RUNNING"),
    ):
        pod = make(api, fake, name=name)
        time.sleep(0.1)
        shown = api.get(f"/pods/{pod.id}").json()
        assert shown["status"] == status and pod.starts == 0
        assert shown["runtime"] is None or shown["runtime"]["uptime"] == 0
        assert shown["cost"] == pytest.approx(0.39) and not pod.charge.ended


def test_pods_crash_vanish_and_hang(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.faults.plan("crash_loop", pod="crash", after_s=0.05)
    fake.faults.plan("preempted", pod="exited", after_s=0.05)
    fake.faults.plan("preempted", pod="gone", after_s=0.05, gone=True)
    fake.faults.plan("hung", pod="hung", after_s=0.3)
    code = "import time\nwhile True: print('tick', flush=True); time.sleep(0.02)"
    names = ("crash", "exited", "gone", "hung")
    crash, exited, gone, hung = (make(api, fake, code, name=name) for name in names)
    until(lambda: crash.starts >= 3)
    until(lambda: api.get(f"/pods/{exited.id}").json()["status"] == "EXITED")
    until(lambda: api.get(f"/pods/{gone.id}").status_code == 404)
    until(lambda: not processes_of(exited.id) and not processes_of(gone.id))
    assert exited.charge.ended and gone.charge.ended
    assert exited in fake.live and gone not in fake.live
    assert exited.starts == gone.starts == 1
    until(lambda: states(hung) == {"T"})
    lines = len(hung.log)
    time.sleep(0.1)
    assert len(hung.log) == lines
    assert api.get(f"/pods/{hung.id}").json()["status"] == "RUNNING"
    hung.wake()
    until(lambda: len(hung.log) > lines)


def states(pod: FakePod) -> set[str]:
    """States of a pod's processes: T is stopped."""
    found = set()
    for pid in processes_of(pod.id):
        found.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found


def test_termination_may_fail_and_the_pod_bills_on(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.faults.plan("terminate_fails", tries=2)
    pod = running(make(api, fake))
    assert api.delete(f"/pods/{pod.id}").status_code == 500
    assert api.post(f"/pods/{pod.id}/action", json={"action": "terminate"}).status_code == 500
    assert fake.live == [pod] and pod.pid
    assert api.delete(f"/pods/{pod.id}").status_code == 204
    fake.faults.plan("terminate_ignored")
    pod = make(api, fake)
    assert api.delete(f"/pods/{pod.id}").status_code == 204
    assert api.get(f"/pods/{pod.id}").status_code == 200 and fake.live == [pod]


def test_the_price_and_the_shape_of_answers_may_differ(fake: FakeRunPod, api: httpx.Client) -> None:
    fake.faults.plan("price", factor=3)
    fake.faults.plan("drift", on="get", times=None)
    answer = api.post("/pods", json=body()).json()
    assert answer["cost"] == pytest.approx(0.39 * 3)
    shown = api.get(f"/pods/{answer['id']}").json()
    assert "addedNextYear" in shown and "addedNextYear" in shown["gpu"]


def test_many_at_once_are_counted_once_each(fake: FakeRunPod) -> None:
    headers = {"Authorization": f"Bearer {fake.api_key}"}
    fake.faults.plan("no_capacity", times=3)
    statuses: list[int] = []

    def ask(number: int) -> None:
        sent = body(name=f"pod-{number}")
        answer = httpx.post(f"{fake.rest_url}/pods", json=sent, headers=headers, timeout=20)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] * 7 + [400] * 3
    assert len(fake.live) == len({pod.id for pod in fake.pods}) == 7


# GraphQL, by the SDK and raw.


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


# S3.


def bucket(fake: FakeRunPod, **changes: Any) -> Any:
    """A client as RunPod's documentation wants it, that tries once."""
    config: dict[str, Any] = {
        "s3": {"addressing_style": "path"},
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        **changes.pop("config", {}),
    }
    keys: dict[str, Any] = {
        "aws_access_key_id": fake.s3_keys[0],
        "aws_secret_access_key": fake.s3_keys[1],
        "region_name": "eu-ro-1",
        **changes,
    }
    return boto3.client("s3", endpoint_url=fake.s3_url, config=Config(**config), **keys)


def refusal(call: Callable[..., Any], **values: Any) -> tuple[str, int]:
    """Code and status with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**values)
    answer = caught.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


@pytest.mark.parametrize("key", ["a", "deep/er/x", "spa ce/ü+&=%.txt", "a//b"[:1] + "~-_.!*'()"])
def test_objects_come_back_as_they_went(fake: FakeRunPod, key: str) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    s3.put_object(Bucket=volume.id, Key=key, Body=b"0123456789")
    assert (volume.path / key).read_bytes() == b"0123456789"
    assert s3.head_object(Bucket=volume.id, Key=key)["ContentLength"] == 10
    part = s3.get_object(Bucket=volume.id, Key=key, Range="bytes=2-4")
    assert (part["Body"].read(), part["ContentRange"]) == (b"234", "bytes 2-4/10")
    listed = s3.list_objects_v2(Bucket=volume.id)["Contents"]
    assert [one["Key"] for one in listed] == [key]
    s3.delete_object(Bucket=volume.id, Key=key)
    s3.delete_object(Bucket=volume.id, Key=key)
    assert refusal(s3.head_object, Bucket=volume.id, Key=key)[1] == 404
    assert refusal(s3.get_object, Bucket=volume.id, Key=key) == ("NoSuchKey", 404)


def test_only_the_right_keys_and_region_are_accepted(fake: FakeRunPod) -> None:
    volume = fake.add_volume("EU-RO-1")
    where = {"Bucket": volume.id, "Key": "x"}
    wrong = bucket(fake, aws_secret_access_key="guess")
    assert refusal(wrong.put_object, Body=b"x", **where) == ("SignatureDoesNotMatch", 403)
    unknown = bucket(fake, aws_access_key_id="who")
    assert refusal(unknown.put_object, Body=b"x", **where)[0] == "InvalidAccessKeyId"
    elsewhere = bucket(fake, region_name="us-ks-2")
    assert refusal(elsewhere.put_object, Body=b"x", **where)[0] == "AuthorizationHeaderMalformed"
    bucket(fake, region_name="EU-RO-1").put_object(Body=b"x", **where)
    missing = refusal(bucket(fake).get_object, Bucket="none", Key="x")
    assert missing == ("NoSuchBucket", 404)
    assert httpx.get(f"{fake.s3_url}/{volume.id}/x").status_code == 403


def test_what_runpods_s3_lacks_is_refused(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    where = {"Bucket": volume.id, "Key": "x"}
    s3.put_object(Body=b"x", **where)
    many = {"Bucket": volume.id, "Delete": {"Objects": [{"Key": "x"}]}}
    assert refusal(s3.delete_objects, **many)[1] == 501
    assert refusal(s3.get_bucket_versioning, Bucket=volume.id)[1] == 501
    assert refusal(s3.list_object_versions, Bucket=volume.id)[1] == 501
    assert refusal(s3.get_object_tagging, **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", Tagging="a=b", **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", IfNoneMatch="*", **where)[1] == 501
    assert refusal(s3.put_object, Body=b"x", ChecksumAlgorithm="SHA256", **where)[1] == 501
    sums = bucket(fake, config={"request_checksum_calculation": "when_supported"})
    assert refusal(sums.put_object, Body=b"x", **where)[1] == 501
    signed = s3.generate_presigned_url("get_object", Params=where)
    assert httpx.get(signed).status_code == 501
    fake.put_limit_bytes = 3
    assert refusal(s3.put_object, Body=b"1234", **where) == ("EntityTooLarge", 413)
    assert (volume.path / "x").read_bytes() == b"x"
    for key in ("../x", "a/./b", ".s3compat_uploads/x"):
        assert refusal(s3.put_object, Bucket=volume.id, Key=key, Body=b"")[1] in (400, 403)
    assert not (volume.path.parent / "x").exists()


def test_listing_comes_in_pages_and_shows_empty_directories(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    keys = ["a/1", "a/2", "a/b/3", "a.txt", "z"]
    for key in keys:
        s3.put_object(Bucket=volume.id, Key=key, Body=b"")
    (volume.path / "empty/inner").mkdir(parents=True)
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=volume.id, PaginationConfig={"PageSize": 2}
    )
    found = [one["Key"] for page in pages for one in page["Contents"]]
    assert found == sorted([*keys, "empty/inner/"])
    inside = s3.list_objects_v2(Bucket=volume.id, Prefix="a/", Delimiter="/")
    assert [one["Key"] for one in inside["Contents"]] == ["a/1", "a/2"]
    assert inside["CommonPrefixes"] == [{"Prefix": "a/b/"}]


def multipart(s3: Any, volume: FakeVolume, key: str, *parts: bytes) -> Callable[[], Any]:
    """Upload the parts; what comes back completes the object."""
    where = {"Bucket": volume.id, "Key": key}
    upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    done = [
        {"PartNumber": n, "ETag": s3.upload_part(PartNumber=n, Body=part, **upload)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]
    return lambda: s3.complete_multipart_upload(MultipartUpload={"Parts": done}, **upload)


def test_an_upload_in_parts_appears_at_once_and_whole(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    complete = multipart(s3, volume, "big", b"one", b"two")
    assert refusal(s3.head_object, Bucket=volume.id, Key="big")[1] == 404
    assert "Contents" not in s3.list_objects_v2(Bucket=volume.id)
    etag = complete()["ETag"]
    assert etag.endswith('-2"')
    assert (volume.path / "big").read_bytes() == b"onetwo"
    assert s3.head_object(Bucket=volume.id, Key="big")["ETag"] == etag
    assert [file.name for file in volume.path.iterdir()] == ["big"]
    with pytest.raises(ClientError, match="NoSuchUpload"):
        complete()


def test_files_of_many_parts_go_both_ways_by_boto3s_own_transfer(
    fake: FakeRunPod, tmp_path: Path
) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    fake.put_limit_bytes = 6_000_000
    parts = TransferConfig(multipart_threshold=5_500_000, multipart_chunksize=5_500_000)
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(12_000_000))
    s3.upload_file(str(there), volume.id, "a/b", Config=parts)
    s3.download_file(volume.id, "a/b", str(back), Config=parts)
    assert back.read_bytes() == there.read_bytes()
    assert len(fake.operations("s3:UploadPart")) == len(fake.operations("s3:GetObject")) == 3


@pytest.mark.parametrize("status", [502, 524])
@pytest.mark.parametrize("done", [True, False])
def test_completion_may_fail_whether_it_was_done_or_not(
    fake: FakeRunPod, status: int, done: bool
) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    complete = multipart(s3, volume, "big", b"one")
    fake.faults.plan("complete_fails", status=status, done=done)
    with pytest.raises(ClientError) as caught:
        complete()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert (volume.path / "big").exists() is done
    if not done:
        complete()
        assert (volume.path / "big").read_bytes() == b"one"


def test_a_full_volume_takes_no_more(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(limit_bytes=10), bucket(fake)
    s3.put_object(Bucket=volume.id, Key="x", Body=b"123456")
    more = {"Bucket": volume.id, "Key": "y", "Body": b"12345"}
    assert refusal(s3.put_object, **more) == ("InsufficientStorage", 507)
    volume.limit_bytes = 11
    s3.put_object(**more)
    fake.faults.plan("volume_full", on="s3:PutObject")
    assert refusal(s3.put_object, Bucket=volume.id, Key="z", Body=b"")[1] == 507
    assert sorted(file.name for file in volume.path.iterdir()) == ["x", "y"]


def test_transfers_break_off_and_leave_nothing_half_done(fake: FakeRunPod) -> None:
    volume, s3 = fake.add_volume(), bucket(fake)
    content = os.urandom(300_000)
    where = {"Bucket": volume.id, "Key": "x"}
    fake.faults.plan("upload_cut", bytes=100_000)
    with pytest.raises(HTTPClientError):
        s3.put_object(Body=content, **where)
    assert list(volume.path.iterdir()) == []
    s3.put_object(Body=content, **where)
    fake.faults.plan("download_cut", bytes=100_000)
    with pytest.raises((ResponseStreamingError, HTTPClientError)):
        s3.get_object(**where)["Body"].read()
    assert s3.get_object(**where)["Body"].read() == content
    fake.faults.plan("slow", on="s3:HeadObject", seconds=0.2)
    began = time.monotonic()
    s3.head_object(**where)
    assert time.monotonic() - began >= 0.2
    fake.faults.plan("server_error", on="s3:GetObject", status=503)
    assert refusal(s3.get_object, **where)[1] == 503


def test_it_starts_and_ends_quickly() -> None:
    has_namespaces()  # looked up once for each process
    began = time.monotonic()
    with FakeRunPod():
        pass
    assert time.monotonic() - began < 1


def test_a_pod_killed_from_outside_is_run_again(fake: FakeRunPod, api: httpx.Client) -> None:
    pod = running(make(api, fake))
    assert pod.pid is not None
    os.kill(pod.pid, signal.SIGKILL)
    until(lambda: pod.starts == 2)
