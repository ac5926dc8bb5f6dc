"""Runs that are killed or cancelled: no pod goes on, nothing is paid twice, the result is the same.

Three moments of a run in `make test`, twenty random ones with `SOAK=1` (`make soak`).
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.connection import utc_now
from trade_pipeline.compute.runpod.reaper import Patience, reap
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline_tests.compute.runpod.remote_project import start_run
from trade_pipeline_tests.compute.runpod.remotes import TRIAL, Remote

CANCEL_S = 15.0
LONG = {"total_frames": 3_000_000}
NO_PATIENCE = Patience(*(timedelta(0) for _ in Patience._fields))


def started(remote: Remote, home: Path) -> "subprocess.Popen[str]":
    return start_run(remote.places, home, remote.fake, "alone/policy", TRIAL)


def wait_for(holds: Callable[[], bool], within_s: float = 90.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def trains(remote: Remote) -> bool:
    """Whether a pod has begun to learn."""
    return any(remote.volume_folder.rglob("store/checkpoints/**/bundle.json"))


def reap_all(remote: Remote) -> None:
    api = RestApi(remote.fake.rest_url, remote.fake.environment["RUNPOD_API_KEY"])
    reap(api, remote.ledger, "main", lambda run: "ended", utc_now, patience=NO_PATIENCE)


Moment = Callable[[Remote], bool]
MOMENTS: dict[str, Moment] = {
    "the intent is written": lambda remote: bool(remote.ledger.leases()),
    "the pod is there": lambda remote: bool(remote.fake.pods),
    "it learns": trains,
}
SECOND_RUN, REAPER = "a second run", "the reaper"
CASES = zip(MOMENTS, (SECOND_RUN, REAPER, SECOND_RUN), strict=True)
SOAK_KILLS = 20 if os.environ.get("SOAK") else 0
SEED = 20261121


@pytest.mark.parametrize(("moment", "then"), CASES)
def test_a_run_killed_leaves_no_pod_and_no_second_charge(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path, moment: str, then: str
) -> None:
    run = started(remote, tmp_path / "home")
    wait_for(lambda: MOMENTS[moment](remote))
    kill_and_require_order(run, remote, instance, then)


@pytest.mark.parametrize("number", range(SOAK_KILLS))
def test_a_run_killed_at_a_random_point(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path, number: int
) -> None:
    run = started(remote, tmp_path / "home")
    wait_for(lambda: MOMENTS["the intent is written"](remote) or run.poll() is not None)
    time.sleep(random.Random(SEED + number).uniform(0.0, 12.0))
    kill_and_require_order(run, remote, instance, (SECOND_RUN, REAPER)[number % 2])


def kill_and_require_order(
    run: "subprocess.Popen[str]", remote: Remote, instance: dg.DagsterInstance, then: str
) -> None:
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = remote.version is not None
    if then == REAPER:
        time.sleep(1.0)  # a request that was on its way arrives
        reap_all(remote)
    elif not done:
        assert remote.train(instance).success
    if then == SECOND_RUN or done:
        assert remote.version == remote.local_version
    assert len(remote.fake.charges) <= 1
    remote.require_balance()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_cancelled_terminates_its_pod_within_15_s(
    remote: Remote, tmp_path: Path, ended_by: signal.Signals
) -> None:
    remote.use(algorithm=LONG)
    run = started(remote, tmp_path / "home")
    wait_for(lambda: trains(remote))
    began = time.monotonic()
    run.send_signal(ended_by)
    wait_for(lambda: remote.fake.live == [], within_s=CANCEL_S)
    assert time.monotonic() - began < CANCEL_S
    run.communicate(timeout=60)
    assert run.returncode != 0
    remote.require_balance()
    assert remote.version is None
    assert not list((remote.places.store / "staging").glob("*-policy-*"))


def test_a_pod_lost_in_the_middle_goes_on_from_its_checkpoint(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.when(lambda: trains(remote), lambda: remote.fake.pods[0].preempt(gone=False))
    outcome = remote.train(instance)
    assert outcome.success
    assert remote.version == remote.local_version
    assert len(remote.fake.charges) == 2
    said = [entry.user_message for entry in instance.all_logs(outcome.run_id)]
    assert any("Asks for another pod" in line for line in said)
    assert any("goes on from its checkpoint at" in line for line in said)
    remote.require_balance()


def test_a_result_that_a_killed_run_did_not_take_is_not_paid_again(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = started(remote, tmp_path / "home")
    wait_for(lambda: any(remote.volume_folder.rglob("jobs/*/*/exit.json")))
    run.send_signal(signal.SIGKILL)
    run.wait()
    reap_all(remote)
    assert remote.train(instance).success
    assert remote.version == remote.local_version
    assert len(remote.fake.charges) == 1
    remote.require_balance()


@pytest.mark.parametrize("changes", [{"bundle_sha256": "0" * 64}, {"rc": "none"}])
def test_a_spoilt_result_of_a_killed_run_is_not_taken(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path, changes: dict[str, str]
) -> None:
    remote.use(poll_s=3.0)  # so that the run is killed before it looks
    run = started(remote, tmp_path / "home")
    wait_for(lambda: any(remote.volume_folder.rglob("jobs/*/*/exit.json")))
    run.send_signal(signal.SIGKILL)
    run.wait()
    (record,) = remote.volume_folder.rglob("jobs/*/*/exit.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    reap_all(remote)
    assert remote.train(instance).success
    assert remote.version == remote.local_version
    assert len(remote.fake.charges) == 2
    remote.require_balance()


def test_a_deliberate_second_training_gets_a_pod_of_its_own(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    assert remote.train(instance).success
    assert remote.train(instance).success
    assert len(remote.fake.charges) == 2
    remote.require_balance()
