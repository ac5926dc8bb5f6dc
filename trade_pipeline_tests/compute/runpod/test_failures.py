"""Each row of RunPod's failure table: its own exception, what to do, and no pod left behind."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.connection import connect, utc_now
from trade_pipeline.compute.runpod.errors import BudgetExceeded, SpendLimitReached
from trade_pipeline.compute.runpod.launch import Launch
from trade_pipeline.compute.runpod.reaper import end_pod
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.remote_project import DATA_CENTER, GPUS
from trade_pipeline_tests.compute.runpod.remotes import Remote

SOON = {"start_minutes": 0.05, "idle_minutes": 0.05}


def test_over_budget_asks_for_nothing_and_keeps_what_it_would_have_sent(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.use(budget={"run_usd": 0.01, "day_usd": 500, "hourly_usd": 50, "pods": 10})
    said = remote.failure_of(instance)
    assert said.startswith("BudgetExceeded: ")
    assert "budget.run_usd" in said
    assert remote.fake.pods == []
    (kept,) = (remote.places.store / "pods" / "plans").iterdir()
    plan = read_json(ArtifactLocation(kept.parent, kept.name))
    assert plan["payload"]["gpu"]["id"] == GPUS[0]
    assert str(kept) in said


def test_no_capacity_takes_the_next_candidate(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("no_capacity", gpu=GPUS[0], wording=1)
    assert remote.train(instance).success
    assert remote.version == remote.local_version
    remote.require_balance()


def test_no_capacity_anywhere_lists_every_attempt_in_runpods_words(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    for gpu, wording in zip(GPUS, (0, 2), strict=True):
        remote.fake.faults.plan("no_capacity", gpu=gpu, wording=wording)
    said = remote.failure_of(instance)
    assert said.startswith("NoCapacity: ")
    assert f"{GPUS[0]}: " in said and "no longer any instances" in said
    assert f"{GPUS[1]}: " in said and "insufficient capacity" in said
    assert remote.fake.pods == []
    remote.require_balance()


def test_a_spend_limit_stops_without_retries(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("balance", wording=1)
    assert remote.failure_of(instance).startswith("SpendLimitReached: ")
    assert SpendLimitReached.allow_retries is False
    assert len(remote.fake.operations("create")) == 1
    assert remote.fake.pods == []
    remote.require_balance()


def test_a_key_that_is_not_accepted(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("unauthorized", times=None)
    assert remote.failure_of(instance).startswith("AccessDenied: ")


def test_no_key_at_all(
    remote: Remote, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    said = remote.failure_of(instance)
    assert said.startswith("AccessDenied: RUNPOD_API_KEY is not set")


def test_a_candidate_that_is_forbidden_is_not_the_last(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.fake.faults.plan("forbidden", on="create", gpu=GPUS[0])
    assert remote.train(instance).success
    remote.require_balance()


def test_too_many_requests_are_waited_for(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("rate_limited", on="create", retry_after=1)
    assert remote.train(instance).success
    assert len(remote.fake.pods) == 1
    remote.require_balance()


@pytest.mark.parametrize("fault", ["created_but_500", "created_but_reset"])
def test_a_pod_whose_creation_was_not_answered_is_found_and_used(
    remote: Remote, instance: dg.DagsterInstance, fault: str
) -> None:
    remote.fake.faults.plan(fault)
    remote.fake.faults.plan("late_listing", lists=2)
    assert remote.train(instance).success
    assert remote.version == remote.local_version
    assert len(remote.fake.charges) == 1
    remote.require_balance()


@pytest.mark.parametrize("fault", ["stuck_provisioning", "uptime_zero"])
def test_a_pod_that_never_starts_is_terminated(
    remote: Remote, instance: dg.DagsterInstance, fault: str
) -> None:
    remote.use(**SOON)
    remote.fake.faults.plan(fault)
    said = remote.failure_of(instance)
    assert said.startswith("PodNeverStarted: ")
    assert "create container" in said or "RunPod says" in said
    remote.require_balance()


def test_a_crash_loop_is_terminated(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("crash_loop", after_s=0.05)
    said = remote.failure_of(instance)
    assert said.startswith("PodCrashLoop: ")
    assert "start container" in said
    remote.require_balance()


def test_a_pod_that_is_lost_without_resumes_left(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.use(resumes=0)
    remote.fake.faults.plan("preempted", after_s=0.5, gone=True)
    assert remote.failure_of(instance).startswith("PodLost: ")
    remote.require_balance()


def test_a_hung_pod_is_terminated(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.use(**SOON, algorithm={"total_frames": 200_000})
    remote.fake.faults.plan("hung", after_s=6.0)
    assert remote.failure_of(instance).startswith("PodHung: ")
    remote.require_balance()


def test_a_task_that_fails_in_the_pod_says_why(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.use(algorithm={"learning_rate": 1e30})
    said = remote.failure_of(instance)
    assert said.startswith("RemoteTaskFailed: ")
    assert "weights are not finite" in said
    remote.require_balance()


def test_a_pod_that_does_not_end_is_named(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("terminate_ignored", tries=None)
    said = remote.failure_of(instance)
    assert said.startswith("PodMayStillBeBilling: ")
    (pod,) = remote.fake.live
    assert pod.id in said
    assert "pods reap" in said


def test_a_termination_that_fails_twice_is_tried_again(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.fake.faults.plan("terminate_fails", tries=2)
    assert remote.train(instance).success
    remote.require_balance()


def test_a_full_volume_is_said_to_be_full(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("volume_full", on="s3:PutObject", times=None)
    said = remote.failure_of(instance)
    assert said.startswith("VolumeFull: ")
    assert remote.fake.pods == []


def test_a_data_center_that_is_not_the_volumes_is_refused_here(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.use(data_center="US-KS-2")
    said = remote.failure_of(instance)
    assert said.startswith("PlanError: ")
    assert DATA_CENTER in said and "US-KS-2" in said
    assert remote.fake.pods == []


def test_a_price_that_rose_is_not_paid(remote: Remote, instance: dg.DagsterInstance) -> None:
    remote.fake.faults.plan("price", factor=2.0)
    said = remote.failure_of(instance)
    assert said.startswith("BudgetExceeded: ")
    assert len(remote.fake.charges) == 1
    remote.require_balance()


def test_unknown_keys_in_answers_and_cut_logs_change_nothing(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.fake.faults.plan("drift", times=None)
    remote.fake.faults.plan("logs_cut", lines=1, times=1)
    assert remote.train(instance).success
    assert remote.version == remote.local_version
    remote.require_balance()


def test_a_ledger_that_breaks_does_not_keep_the_pod(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    ledger = remote.ledger.path
    remote.when(
        lambda: bool(remote.fake.operations("logs")), lambda: ledger.write_text("no database")
    )
    said = remote.failure_of(instance)
    assert said.startswith("LedgerError: ")
    assert remote.fake.live == []


def test_pods_count_though_the_ledger_was_lost(
    remote: Remote, instance: dg.DagsterInstance
) -> None:
    remote.use(budget={"run_usd": 50, "day_usd": 500, "hourly_usd": 50, "pods": 1})
    settings = RunPodComputeSettings.model_validate(remote.settings)
    connection = connect(settings, remote.places.store, os.environ)
    Launch(connection, "1" * 16, "a" * 8, "a" * 8).ask("tp-main-11111111-aaaaaaaa-1", {}, print)
    remote.ledger.path.unlink()
    assert remote.failure_of(instance).startswith("BudgetExceeded: ")
    (stray,) = remote.ledger.open("main")
    end_pod(connection.api, remote.ledger, stray, "the test has ended", time.sleep, utc_now)
    remote.require_balance()


def test_ten_at_once_against_a_budget_for_three_start_three(remote: Remote) -> None:
    remote.use(budget={"run_usd": 50, "day_usd": 500, "hourly_usd": 50, "pods": 3})
    settings = RunPodComputeSettings.model_validate(remote.settings)

    def ask(number: int) -> str:
        connection = connect(settings, remote.places.store, os.environ)
        launch = Launch(connection, f"{number:016x}", f"{number:08x}-run", f"{number:08x}-run")
        try:
            return launch.ask(launch.next_name(), {}, lambda said: None).state
        except BudgetExceeded:
            return "over budget"

    with ThreadPoolExecutor(10) as threads:
        outcomes = list(threads.map(ask, range(1, 11)))
    assert sorted(outcomes) == ["live"] * 3 + ["over budget"] * 7
    assert len(remote.fake.charges) == len(remote.fake.live) == 3
    api = RestApi(remote.fake.rest_url, remote.fake.environment["RUNPOD_API_KEY"])
    for lease in remote.ledger.open("main"):
        end_pod(api, remote.ledger, lease, "the test has ended", time.sleep, utc_now)
    remote.require_balance()
