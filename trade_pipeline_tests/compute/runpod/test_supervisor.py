"""A pod's first process: the task runs once, its end is written down, and nothing is left of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from trade_pipeline.compute.runpod.exchange import ExitRecord
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.pods import (
    LIMIT_S,
    PROJECT,
    STAGING,
    SUPERVISOR,
    Pod,
)
from trade_pipeline_tests.fakes.runpod.barrier import has_namespaces
from trade_pipeline_tests.fakes.runpod.pods import children_of
from trade_pipeline_tests.processes import is_running

SEAL = {"staging": STAGING, "content": "weights"}
SEVERAL_BEATS_S = 1.0


# What it loads.


def test_a_pod_on_a_volume_starts_without_loading_anything_but_the_standard_library() -> None:
    code = f"import sys, {SUPERVISOR}; print('\\n'.join(sys.modules))"
    listed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=PROJECT
    ).stdout.split()
    before = subprocess.run(
        [sys.executable, "-c", "import sys; print('\\n'.join(sys.modules))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    tops = {name.partition(".")[0] for name in set(listed) - set(before)}
    assert tops - set(sys.stdlib_module_names) - {"__mp_main__"} == {"trade_pipeline"}


# Once.


def test_a_sealed_bundle_is_named_in_the_exit_record(pod: Pod) -> None:
    before_ms = time.time() * 1000
    record = pod.told("seal", SEAL).exit()
    index = pod.store / STAGING / "bundle.json"
    assert record["rc"] == 0
    assert record["reason"] == ""
    assert record["bundle_sha256"] == hashlib.sha256(index.read_bytes()).hexdigest()
    assert record["result"]["staging"] == STAGING
    assert record["result"]["version"] == json.loads(index.read_bytes())["version"]
    assert before_ms <= record["finished_ms"] <= time.time() * 1000
    ExitRecord.model_validate(record)
    bundles.verify(ArtifactLocation(pod.store, STAGING))


def test_the_record_is_the_last_file_and_the_pod_sleeps_then(pod: Pod) -> None:
    pod.told("seal", SEAL).exit()
    files = [path for path in pod.root.rglob("*") if path.is_file()]
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    assert newest == pod.folder / "exit.json"
    assert pod.heartbeat()["phase"] == "done"
    time.sleep(SEVERAL_BEATS_S)
    assert pod.processes[-1].poll() is None
    assert max(files, key=lambda path: path.stat().st_mtime_ns) == newest


def test_a_command_that_is_started_again_runs_nothing_and_sleeps(pod: Pod) -> None:
    record = pod.told("seal", SEAL).exit()
    pod.end(signal.SIGKILL)
    again = pod.start()
    assert again.stderr is not None
    assert any("nothing is run" in line for line in again.stderr), "it has ended"
    time.sleep(SEVERAL_BEATS_S)
    assert again.poll() is None
    assert len(pod.runs()) == 1
    assert pod.record() == record
    code, _, _ = pod.end()
    assert code == 128 + signal.SIGTERM


def test_a_container_that_broke_down_in_the_middle_says_so_and_runs_nothing(pod: Pod) -> None:
    pod.told("sleep").start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    (task,) = pod.runs()
    os.kill(task, signal.SIGSTOP)  # so that it cannot notice that it is alone
    pod.processes[-1].kill()
    pod.processes[-1].wait(LIMIT_S)
    pod.start()
    time.sleep(SEVERAL_BEATS_S)
    assert not (pod.folder / "exit.json").exists(), "the record came while the task still ran"
    os.kill(task, signal.SIGCONT)
    record = pod.record()
    assert record["rc"] == 75
    assert record["reason"] == "restarted by RunPod after a crash"
    assert record["result"] is None
    assert not is_running(task)
    assert pod.runs() == [task]


def test_a_second_start_beside_a_living_one_leaves_the_record_to_it(pod: Pod) -> None:
    pod.told("report, then wait for a file").start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    second = pod.start()
    time.sleep(SEVERAL_BEATS_S)
    assert not (pod.folder / "exit.json").exists()
    (pod.store / "go").touch()
    assert pod.record()["rc"] == 0
    assert second.poll() is None
    assert len(pod.runs()) == 1


def test_two_pods_of_one_job_each_run_it(pod: Pod) -> None:
    pod.told("seal", SEAL).exit()
    other = Pod(pod.root, name="tp-main-01234567-5d3f9a1c-2")
    try:
        # In the folder that the first one filled: the task finds it empty.
        assert other.exit()["rc"] == 0
    finally:
        other.close()
    assert len(pod.runs()) == 2


# How it ends.


def test_a_failure_is_told_with_the_end_of_its_log(pod: Pod) -> None:
    record = pod.told("fail", {"staging": STAGING, "word": "no"}).exit()
    assert record["rc"] == 1
    assert record["reason"].endswith("ValueError: the spec says no")
    assert len(record["reason"].encode()) < 8_300
    assert record["result"] is None
    assert record["bundle_sha256"] is None


def test_a_task_that_was_killed_is_told_by_its_signal(pod: Pod) -> None:
    record = pod.told("kill itself").exit()
    assert record["rc"] == 128 + signal.SIGKILL
    assert "signal 9" in record["reason"]
    assert "memory" in record["reason"]


@pytest.mark.parametrize("act", ["leave", "return"])
def test_a_task_without_a_result_has_failed(pod: Pod, act: str) -> None:
    record = pod.told(act, {"result": [1]}).exit()
    assert record["rc"] == 70
    assert record["result"] is None


def test_a_full_disk_is_in_the_reason(pod: Pod) -> None:
    assert "No space left on device" in pod.told("fill the disk").exit()["reason"]


def test_a_task_out_of_time_is_ended(pod: Pod) -> None:
    record = pod.told("sleep", max_runtime_s=2).exit()
    assert record["rc"] == 124
    assert "limit of 2 s" in record["reason"]


def test_what_a_task_leaves_running_ends_with_it(pod: Pod) -> None:
    assert pod.told("leave a child").exit()["rc"] == 0
    assert not is_running(int((pod.store / "child").read_text("utf-8")))


@pytest.mark.parametrize("act", ["sleep", "ignore terminate", "with a child"])
def test_a_pod_that_is_told_to_end_ends_the_task_with_all_that_it_started_and_says_so(
    pod: Pod, act: str
) -> None:
    pod.told(act).start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    child = pod.store / "child"
    if act == "with a child":
        pod.appears(child)
    code, _, _ = pod.end()
    assert code == 143
    assert pod.record()["rc"] == 143
    assert not is_running(pod.runs()[0])
    assert not child.exists() or not is_running(int(child.read_text("utf-8")))


def test_a_pod_that_is_told_to_end_while_it_sleeps_ends(pod: Pod) -> None:
    record = pod.told("seal", SEAL).exit()
    assert pod.end()[0] == 143
    assert pod.record() == record


@pytest.mark.skipif(not has_namespaces(), reason="needs root and namespaces of processes")
def test_as_the_first_process_of_a_container_it_obeys_signals_and_collects_orphans(
    pod: Pod,
) -> None:
    pod.prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    outer = pod.told("leave orphans").start()
    pod.appears(pod.store / "orphaned")
    (first,) = children_of(outer.pid)
    pod.wait(lambda: len(children_of(first)) == 1, "what was orphaned is not collected")
    os.kill(first, signal.SIGTERM)
    outer.communicate(timeout=LIMIT_S)
    assert pod.record()["rc"] == 143


# A pod that ends itself.


class Terminations(ThreadingHTTPServer):
    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        self.seen: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v2"


class _Answer(BaseHTTPRequestHandler):
    server: Terminations

    def do_DELETE(self) -> None:
        self.server.seen.append((self.path, self.headers["Authorization"]))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@pytest.mark.parametrize("status", [204, 403])
def test_a_pod_that_nobody_ends_asks_for_it_and_takes_a_refusal(pod: Pod, status: int) -> None:
    server = Terminations(status)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        pod.environment |= {
            "TRADE_PIPELINE_LINGER_S": "0.3",
            "TRADE_PIPELINE_RUNPOD_URL": server.url,
            "RUNPOD_API_KEY": "of-the-pod",
            "RUNPOD_POD_ID": "abc123",
        }
        pod.told("seal", SEAL).exit()
        pod.wait(lambda: len(server.seen) >= 2, "it does not ask again")
        assert server.seen[0] == ("/v2/pods/abc123", "Bearer of-the-pod")
        assert pod.processes[-1].poll() is None
        assert "of-the-pod" not in "".join(pod.end()[1:])
    finally:
        server.shutdown()
        server.server_close()
