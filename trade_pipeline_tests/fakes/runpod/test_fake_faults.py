"""Faults of the fake RunPod: each does what it says, and says when it never came."""

import threading
import time
from pathlib import Path

import httpx
import pytest

from trade_pipeline_tests.fakes.runpod import NO_CAPACITY, NO_MONEY, FakeRunPod
from trade_pipeline_tests.fakes.runpod.clients import body, make, running, until
from trade_pipeline_tests.fakes.runpod.pods import FakePod, processes_of

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
        while pod.status != status:
            time.sleep(0.01)
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
    assert api.get(f"/pods/{hung.id}").json()["status"] == "RUNNING"
    lines = len(hung.log)
    hung.wake()
    until(lambda: len(hung.log) > lines + 10)


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
