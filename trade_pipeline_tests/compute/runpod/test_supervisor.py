"""A pod's first process: the task runs once, its end is written down, and nothing is left of it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.compute.runpod.exchange import ExitRecord
from trade_pipeline.compute.runpod.pod_task import TaskRefused, parse_task
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.specification import specification
from trade_pipeline_tests.compute.runpod.pods import (
    JOB,
    LIMIT_S,
    NAME,
    PROJECT,
    STAGING,
    SUPERVISOR,
    Pod,
    described,
    is_running,
    pipes_environment,
)
from trade_pipeline_tests.fakes.runpod.barrier import has_namespaces
from trade_pipeline_tests.fakes.runpod.pods import children_of

SEAL = {"staging": STAGING, "content": "weights"}
SEVERAL_BEATS_S = 1.0


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path / "root")
    yield pod
    pod.close()


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
    time.sleep(SEVERAL_BEATS_S)
    assert again.poll() is None
    assert len(pod.runs()) == 1
    assert pod.record() == record
    code, _, errors = pod.end()
    assert code == 128 + signal.SIGTERM
    assert "nothing is run" in errors


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


# What it is told.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("module", "os; import sys"),
        ("module", None),
        ("spec", []),
        ("spec", {"staging": "../elsewhere"}),
        ("spec", {"staging": "demo/policy"}),
        ("inputs", {"../dataset": "0" * 32}),
        ("inputs", {"dataset": "latest"}),
        ("wheel", {"key": "a.whl"}),
        ("wheel", {"key": "a.whl", "sha256": "no hash"}),
        ("wheel", {"key": "/a.whl", "sha256": "0" * 64}),
        ("max_runtime_s", 0),
        ("max_runtime_s", True),
        ("max_runtime_s", float("inf")),
        ("max_runtime_s", "60"),
        ("checkpoint", "a//b"),
    ],
)
def test_a_description_with_a_value_that_cannot_be_names_its_key(name: str, value: Any) -> None:
    content = json.dumps({**described("seal"), name: value}).encode()
    with pytest.raises(TaskRefused, match="staging" if "staging" in str(value) else name):
        parse_task(content, "task.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        json.dumps({**described("seal"), "also": 1}).encode(),
        json.dumps({"module": "os"}).encode(),
    ],
)
def test_a_description_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(TaskRefused, match=r"task\.json"):
        parse_task(content, "task.json")


def test_a_wrong_description_gives_a_record(pod: Pod) -> None:
    record = pod.told("seal", SEAL, also=1).exit()
    assert record["rc"] == 78
    assert "'also'" in record["reason"]
    assert pod.runs() == []


def test_a_missing_description_gives_a_record(pod: Pod) -> None:
    pod.root.mkdir()
    record = pod.exit()
    assert record["rc"] == 78
    assert "task.json: cannot be read" in record["reason"]


def test_a_root_that_is_not_mounted_ends_the_process_and_makes_no_folder(pod: Pod) -> None:
    process = pod.start()
    _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode not in (0, None)
    assert "is the volume mounted" in errors
    assert not pod.root.exists()


@pytest.mark.parametrize(
    ("job", "name"), [("../../etc", NAME), (JOB, "notebook"), (JOB, f"{NAME}/../x"), (JOB, "tp-")]
)
def test_names_that_no_host_gives_are_refused(pod: Pod, job: str, name: str) -> None:
    pod.told("seal", SEAL)
    before = sorted(pod.root.rglob("*"))
    process = pod.start("--root", str(pod.root), "--job", job, "--attempt", name)
    process.communicate(timeout=LIMIT_S)
    assert process.returncode == 78
    assert sorted(pod.root.rglob("*")) == before


def an_input(pod: Pod) -> tuple[str, str]:
    """Key and version of a bundle in the pod's store."""
    staging = bundles.staging(pod.store, "dataset")
    (staging.path / "rows").write_text("1, 2, 3", encoding="utf-8")
    reference = bundles.seal(staging, ("rows",))
    location = bundles.commit(reference, ArtifactLocation(pod.store, "demo/dataset"))
    return location.key, reference.version


def test_a_task_starts_with_whole_inputs(pod: Pod) -> None:
    key, version = an_input(pod)
    assert pod.told("seal", SEAL, inputs={key: version}).exit()["rc"] == 0


@pytest.mark.parametrize("harm", ["changed", "missing", "another version"])
def test_a_task_does_not_start_with_a_broken_input(pod: Pod, harm: str) -> None:
    key, version = an_input(pod)
    if harm == "changed":
        (pod.store / key / "rows").write_text("1, 2, 4", encoding="utf-8")
    elif harm == "missing":
        (pod.store / key).rename(pod.store / "elsewhere")
    else:
        version = "0" * 32
    record = pod.told("seal", SEAL, inputs={key: version}).exit()
    assert record["rc"] == 66
    assert key in record["reason"]
    assert pod.runs() == []


# Development: a wheel.


def a_wheel(root: Path) -> dict[str, str]:
    """A wheel that brings a task of its own."""
    key = "wheels/0123456789abcdef/brought-0.1-py3-none-any.whl"
    file = root / key
    file.parent.mkdir(parents=True)
    code = "def run(spec, report, clock):\n    return {'brought': __file__}\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("brought_task.py", code)
        info = "brought-0.1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 0.1\n")
        wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return {"key": key, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def test_a_wheel_is_what_runs(pod: Pod) -> None:
    wheel = a_wheel(pod.root)
    record = pod.told("", module="brought_task", wheel=wheel).exit()
    assert record["rc"] == 0, record["reason"]
    assert str(pod.root) not in record["result"]["brought"]


def test_a_wheel_with_another_hash_is_never_run(pod: Pod) -> None:
    wheel = a_wheel(pod.root)
    record = pod.told("", module="brought_task", wheel={**wheel, "sha256": "0" * 64}).exit()
    assert record["rc"] == 78
    assert wheel["sha256"] in record["reason"]
    assert record["result"] is None


# What it says while it runs.


def test_messages_reach_the_host_while_the_task_runs_and_all_of_them_at_its_end(pod: Pod) -> None:
    pod.environment |= pipes_environment()
    pod.told("report, then wait for a file").start()

    def said(what: str) -> bool:
        return any(what in json.dumps(message) for message in pod.messages())

    pod.wait(lambda: said("halfway there"), "no message while the task runs")
    assert not (pod.folder / "exit.json").exists()
    assert pod.messages()[0]["method"] == "opened"
    (pod.store / "go").touch()
    pod.record()
    assert [message["method"] for message in pod.messages()][-2:] == [
        "report_custom_message",
        "closed",
    ]


def test_a_task_that_fails_closes_its_messages_with_the_exception(pod: Pod) -> None:
    pod.environment |= pipes_environment()
    assert pod.told("fail", {"word": "no"}).exit()["rc"] == 1
    last = pod.messages()[-1]
    assert last["method"] == "closed"
    assert "the spec says no" in last["params"]["exception"]["message"]


def test_what_a_task_prints_is_in_the_containers_log_at_once(pod: Pod) -> None:
    process = pod.told("print").start()
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "to standard output\n"
    for line in process.stderr:
        if line == "to standard error\n":
            break
    else:
        pytest.fail("the log has ended")
    assert not (pod.folder / "exit.json").exists()
    (pod.store / "go").touch()
    assert pod.record()["rc"] == 0


def test_heartbeats_count_up_through_the_phases(pod: Pod) -> None:
    pod.told("report, then wait for a file").start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    first = pod.heartbeat()
    assert first["phase"] == "running"
    pod.wait(lambda: pod.heartbeat()["seq"] >= first["seq"] + 2, "the heart does not beat")
    assert abs(pod.heartbeat()["ts_ms"] - time.time() * 1000) < 5_000
    (pod.store / "go").touch()
    pod.record()
    assert pod.heartbeat()["phase"] == "done"
    assert pod.heartbeat()["seq"] > first["seq"] + 2


def test_the_heart_beats_while_inputs_are_prepared(pod: Pod) -> None:
    key, version = an_input(pod)
    pod.told("seal", SEAL, inputs={key: version}).start()
    pod.appears(pod.folder / "heartbeat.json")
    beats = set()
    while (beat := pod.heartbeat())["phase"] == "preparing":
        beats.add(beat["seq"])
        time.sleep(0.01)
    assert len(beats) >= 2
    assert pod.record()["rc"] == 0


def test_the_task_gets_no_key_of_the_pod(pod: Pod) -> None:
    pod.environment |= {"RUNPOD_API_KEY": "of-the-pod", "FOR_THE_TASK": "yes"}
    result = pod.told("environment").exit()["result"]
    assert "RUNPOD_API_KEY" not in result
    assert result["FOR_THE_TASK"] == "yes"
    assert result["PYTHONUNBUFFERED"] == "1"
    assert result["TRADE_PIPELINE_POD_ROOT"] == str(pod.root)


@pytest.mark.parametrize("healed", [True, False])
def test_messages_that_cannot_be_written_wait_and_end_no_task(pod: Pod, healed: bool) -> None:
    pod.environment |= pipes_environment()
    pod.told("report, then wait for a file")
    pod.folder.mkdir()
    in_the_way = pod.folder / "messages"
    in_the_way.touch()
    pod.start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    if healed:
        time.sleep(SEVERAL_BEATS_S)
        in_the_way.unlink()
    (pod.store / "go").touch()
    assert pod.record()["rc"] == 0
    if healed:
        assert [message["method"] for message in pod.messages()][::4] == ["opened", "closed"]
    else:
        assert "messages to Dagster are lost" in pod.end()[2]


def test_a_heartbeat_that_cannot_be_written_ends_no_task(pod: Pod) -> None:
    (pod.told("seal", SEAL).folder / "heartbeat.json").mkdir(parents=True)
    assert pod.exit()["rc"] == 0


def test_a_record_that_cannot_be_written_is_tried_again(pod: Pod) -> None:
    in_the_way = pod.told("seal", SEAL).folder / "exit.json"
    in_the_way.mkdir(parents=True)
    pod.start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    time.sleep(SEVERAL_BEATS_S)
    in_the_way.rmdir()
    assert pod.record()["rc"] == 0


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


@pytest.mark.parametrize("act", ["ignore terminate", "with a child"])
def test_a_task_out_of_time_is_ended_with_all_that_it_started(pod: Pod, act: str) -> None:
    record = pod.told(act, max_runtime_s=4).exit()
    assert record["rc"] == 124
    assert "limit of 4 s" in record["reason"]
    assert not is_running(pod.runs()[0])
    if act == "with a child":
        assert not is_running(int((pod.store / "child").read_text("utf-8")))


def test_what_a_task_leaves_running_ends_with_it(pod: Pod) -> None:
    assert pod.told("leave a child").exit()["rc"] == 0
    assert not is_running(int((pod.store / "child").read_text("utf-8")))


def test_a_pod_that_is_told_to_end_ends_the_task_and_says_so(pod: Pod) -> None:
    pod.told("sleep").start()
    pod.wait(lambda: bool(pod.runs()), "the task does not start")
    began = time.monotonic()
    code, _, _ = pod.end()
    assert code == 143
    assert time.monotonic() - began < 5
    assert pod.record()["rc"] == 143
    assert not is_running(pod.runs()[0])


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


# The real thing.


def test_a_training_in_a_pod_gives_the_version_that_it_gives_here(pod: Pod) -> None:
    from trade_pipeline.training import task as training
    from trade_pipeline.training.dataset import write_dataset
    from trade_pipeline_tests.training import synthetic

    content = synthetic.experiment()
    location = ArtifactLocation(pod.store, "demo/dataset/source")
    write_dataset(synthetic.dataset(), location)
    version = bundles.verify(location)["version"]
    location.path.rename(location.path.with_name(version))
    dataset = ArtifactLocation(pod.store, f"demo/dataset/{version}")
    spec = specification(
        experiment="demo",
        settings=content,
        trial="base.f0.s1",
        dataset=dataset,
        staging=ArtifactLocation(Path("/of/the/host"), STAGING),
        provenance={},
    )
    spec["store"] = "/of/the/host"
    pod.told("", module="trade_pipeline.training.task", spec={}, inputs={dataset.key: version})
    task = pod.root / "jobs" / JOB / "task.json"
    task.write_text(json.dumps({**json.loads(task.read_text("utf-8")), "spec": spec}), "utf-8")
    record = pod.exit()
    assert record["rc"] == 0, record["reason"]
    assert (
        bundles.verify(ArtifactLocation(pod.store, STAGING))["version"]
        == (record["result"]["version"])
    )

    staging = bundles.staging(pod.store, "here")
    here = {**spec, "store": str(pod.store), "staging": staging.key}
    assert (
        training.run(here, lambda _: None, time.monotonic)["version"]
        == (record["result"]["version"])
    )
