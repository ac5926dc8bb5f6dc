"""What a pod's first process takes as a task: description, inputs, a wheel."""

import json
from typing import Any

import pytest

from trade_pipeline.compute.runpod.pod_task import TaskRefused, parse_task
from trade_pipeline_tests.compute.runpod.pods import (
    JOB,
    LIMIT_S,
    NAME,
    STAGING,
    Pod,
    a_wheel,
    an_input,
    described,
)

SEAL = {"staging": STAGING, "content": "weights"}


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
