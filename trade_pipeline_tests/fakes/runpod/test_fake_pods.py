"""The fake RunPod's pods are real processes, kept away from the host, with a log."""

import json
import os
import re
import signal
import time
from pathlib import Path

import httpx
import pytest

from trade_pipeline_tests.fakes.runpod import FakeRunPod, Timing
from trade_pipeline_tests.fakes.runpod.barrier import has_namespaces
from trade_pipeline_tests.fakes.runpod.clients import (
    WAIT_S,
    bucket,
    make,
    on_volume,
    quick,
    running,
    until,
    wait_until_gone,
)
from trade_pipeline_tests.fakes.runpod.pods import processes_of
from trade_pipeline_tests.loopback_site import only_loopback


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
    fake.timing = Timing(provisioning_s=0.5, starting_s=0.5)
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
        "import os, signal, sys, time;"
        # No print: the signal may come in the middle of the one below.
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'asked\\n'), sys.exit()));"
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
    fake.timing = Timing(terminated_visible_s=60.0)
    pod = make(api, fake)
    api.delete(f"/pods/{pod.id}")
    shown = api.get("/pods").json()["pods"][0]
    assert (shown["status"], shown["cost"], shown["actions"]) == ("TERMINATED", 0.0, [])
    pod.timing.terminated_visible_s = 0.0
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


def test_a_pod_killed_from_outside_is_run_again(fake: FakeRunPod, api: httpx.Client) -> None:
    pod = running(make(api, fake))
    assert pod.pid is not None
    os.kill(pod.pid, signal.SIGKILL)
    until(lambda: pod.starts == 2)
