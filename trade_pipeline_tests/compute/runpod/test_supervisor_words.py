"""What a pod says while its task runs: messages, log, heartbeats."""

import json
import time

import pytest

from trade_pipeline_tests.compute.runpod.pods import (
    STAGING,
    Pod,
    an_input,
    pipes_environment,
)

SEAL = {"staging": STAGING, "content": "weights"}
SEVERAL_BEATS_S = 1.0


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
    pod.environment["TRADE_PIPELINE_HEARTBEAT_S"] = "0.02"
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
