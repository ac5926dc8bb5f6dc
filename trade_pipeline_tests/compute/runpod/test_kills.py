"""Runs that are killed or cancelled: no pod goes on, nothing is paid twice, the result is the same.

Three moments of a run in `make test`, twenty random ones with `SOAK=1` (`make soak`).
"""

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.connection import utc_now
from trade_pipeline.compute.runpod.reaper import Patience, reap
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline_tests.compute.runpod.errands import Errand
from trade_pipeline_tests.compute.runpod.hosts import RemoteHost
from trade_pipeline_tests.compute.runpod.remotes import Remote

CANCEL_S = 15.0
NO_PATIENCE = Patience(*(timedelta(0) for _ in Patience._fields))
SECOND_RUN, REAPER = "a second run", "the reaper"
SOAK_KILLS = 20 if os.environ.get("SOAK") else 0
SEED = 20261121


def wait_for(holds: Callable[[], bool], within_s: float = 300.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        late = time.monotonic() >= until
        assert not late or holds(), "it did not come"
        time.sleep(0.02)


def has_asked(host: RemoteHost) -> bool:
    """Whether the ledger knows that a pod is to be made."""
    return bool(host.ledger.leases())


def has_pod(host: RemoteHost) -> bool:
    return bool(host.fake.pods)


def kill(run: "subprocess.Popen[str]") -> None:
    run.send_signal(signal.SIGKILL)
    run.wait()


def reap_all(host: RemoteHost) -> None:
    api = RestApi(host.fake.rest_url, host.fake.environment["RUNPOD_API_KEY"])
    reap(api, host.ledger, "main", lambda run: "ended", utc_now, patience=NO_PATIENCE)


@pytest.mark.parametrize(
    ("moment", "then"), [(has_asked, SECOND_RUN), (has_pod, REAPER)], ids=["asked", "pod"]
)
def test_a_run_killed_leaves_no_pod_and_no_second_charge(
    errand: Errand,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    moment: Callable[[RemoteHost], bool],
    then: str,
) -> None:
    run = errand.started(tmp_path / "home")
    wait_for(lambda: moment(errand))
    kill_and_require_order(run, errand, instance, then)


def test_a_run_killed_while_its_pod_learns_is_taken_over(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = remote.started(tmp_path / "home")
    wait_for(lambda: remote.trains() or remote.has_result() or run.poll() is not None)
    kill_and_require_order(run, remote, instance, SECOND_RUN)


@pytest.mark.parametrize("number", range(SOAK_KILLS))
def test_a_run_killed_at_a_random_point(
    remote: Remote, instance: dg.DagsterInstance, tmp_path: Path, number: int
) -> None:
    run = remote.started(tmp_path / "home")
    wait_for(lambda: has_asked(remote) or run.poll() is not None)
    after_s, then = (
        random.Random(SEED + number).uniform(0.0, 12.0),
        (SECOND_RUN, REAPER)[number % 2],
    )
    time.sleep(after_s)
    kill_and_require_order(run, remote, instance, then)
    paid, left = remote.fake.charges, len(remote.fake.live)
    print(
        f"\nkill {number + 1} of {SOAK_KILLS}, {after_s:.1f} s after the intent, then {then}: "
        f"pods left {left}, charges {len(paid)} of {sum(one.usd for one in paid):.4f} USD"
    )


def kill_and_require_order(
    run: "subprocess.Popen[str]", host: RemoteHost, instance: dg.DagsterInstance, then: str
) -> None:
    kill(run)
    done = host.version is not None
    if then == REAPER:
        time.sleep(1.0)  # a request that was on its way arrives
        reap_all(host)
    elif not done:
        assert host.run(instance).success
    if then == SECOND_RUN or done:
        assert host.version == host.local_version
    assert len(host.fake.charges) <= 1
    host.require_balance()


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_a_run_cancelled_terminates_its_pod_within_15_s(
    errand: Errand, tmp_path: Path, ended_by: signal.Signals
) -> None:
    errand.use("sleep")
    run = errand.started(tmp_path / "home")
    wait_for(errand.beats)
    run.send_signal(ended_by)
    wait_for(lambda: errand.fake.live == [], within_s=CANCEL_S)
    run.communicate()
    assert run.returncode != 0
    errand.require_balance()
    assert errand.version is None


def test_a_pod_lost_in_the_middle_goes_on_from_its_checkpoint(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    def preempt() -> None:
        with remote.held_in_training():
            remote.fake.pods[0].preempt(gone=False)

    preempting = threading.Thread(target=preempt, daemon=True)
    preempting.start()
    outcome = remote.run(instance)
    preempting.join()
    assert outcome.success
    assert remote.version == remote.local_version
    assert len(remote.fake.charges) == 2
    said = [entry.user_message for entry in instance.all_logs(outcome.run_id)]
    assert any("Asks for another pod" in line for line in said)
    assert any("goes on from its checkpoint at" in line for line in said)
    remote.require_balance()


def test_a_result_that_a_killed_run_did_not_take_is_not_paid_again(
    errand: Errand, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    run = errand.started(tmp_path / "home")
    wait_for(errand.has_result)
    kill(run)
    reap_all(errand)
    assert errand.run(instance).success
    assert errand.version == errand.local_version
    assert len(errand.fake.charges) == 1
    errand.require_balance()


@pytest.mark.parametrize("changes", [{"bundle_sha256": "0" * 64}, {"rc": "none"}])
def test_a_spoilt_result_of_a_killed_run_is_not_taken(
    errand: Errand, instance: dg.DagsterInstance, tmp_path: Path, changes: dict[str, str]
) -> None:
    errand.use(poll_s=60.0)  # so that the run is killed before it looks
    run = errand.started(tmp_path / "home")
    wait_for(errand.has_result)
    kill(run)
    (record,) = errand.on_volume("jobs/*/*/exit.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))
    reap_all(errand)
    errand.use(poll_s=0.2)
    assert errand.run(instance).success
    assert errand.version == errand.local_version
    assert len(errand.fake.charges) == 2
    errand.require_balance()


def test_a_deliberate_second_training_gets_a_pod_of_its_own(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    assert errand.run(instance).success
    assert errand.run(instance).success
    assert len(errand.fake.charges) == 2
    errand.require_balance()
