"""Each row of RunPod's failure table: its own exception, what to do, and no pod left behind."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest

from trade_pipeline.compute.runpod import follow, launch, reaper
from trade_pipeline.compute.runpod.connection import connect, utc_now
from trade_pipeline.compute.runpod.errors import BudgetExceeded, SpendLimitReached
from trade_pipeline.compute.runpod.launch import Launch
from trade_pipeline.compute.runpod.reaper import end_pod
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.errands import Errand
from trade_pipeline_tests.compute.runpod.remote_project import DATA_CENTER, GPUS

SOON_MINUTES = 0.03


@pytest.fixture(autouse=True)
def nobody_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses that RunPod needs are no part of the promises here."""
    monkeypatch.setattr(follow, "RECORD_LAG_S", 1.0)
    monkeypatch.setattr(launch, "LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(reaper, "WAITS_S", (0.1, 0.1, 0.1))


def test_over_budget_asks_for_nothing_and_keeps_what_it_would_have_sent(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.use(budget={"run_usd": 0.01, "day_usd": 500, "hourly_usd": 50, "pods": 10})
    said = errand.failure_of(instance)
    assert said.startswith("BudgetExceeded: ")
    assert "budget.run_usd" in said
    assert errand.fake.pods == []
    (kept,) = (errand.store / "pods" / "plans").iterdir()
    plan = read_json(ArtifactLocation(kept.parent, kept.name))
    assert plan["payload"]["gpu"]["id"] == GPUS[0]
    assert str(kept) in said


def test_no_capacity_takes_the_next_candidate(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("no_capacity", gpu=GPUS[0], wording=1)
    assert errand.run(instance).success
    errand.require_balance()


def test_no_capacity_anywhere_lists_every_attempt_in_runpods_words(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    for gpu, wording in zip(GPUS, (0, 2), strict=True):
        errand.fake.faults.plan("no_capacity", gpu=gpu, wording=wording)
    said = errand.failure_of(instance)
    assert said.startswith("NoCapacity: ")
    assert f"{GPUS[0]}: " in said and "no longer any instances" in said
    assert f"{GPUS[1]}: " in said and "insufficient capacity" in said
    assert errand.fake.pods == []
    errand.require_balance()


def test_a_spend_limit_stops_without_retries(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("balance", wording=1)
    assert errand.failure_of(instance).startswith("SpendLimitReached: ")
    assert SpendLimitReached.allow_retries is False
    assert len(errand.fake.operations("create")) == 1
    assert errand.fake.pods == []
    errand.require_balance()


def test_a_key_that_is_not_accepted(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("unauthorized", times=None)
    assert errand.failure_of(instance).startswith("AccessDenied: ")


def test_no_key_at_all(
    errand: Errand, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    said = errand.failure_of(instance)
    assert said.startswith("AccessDenied: RUNPOD_API_KEY is not set")


def test_a_candidate_that_is_forbidden_is_not_the_last(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.fake.faults.plan("forbidden", on="create", gpu=GPUS[0])
    assert errand.run(instance).success
    errand.require_balance()


def test_too_many_requests_are_waited_for(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("rate_limited", on="create", retry_after=1)
    assert errand.run(instance).success
    assert len(errand.fake.pods) == 1
    errand.require_balance()


@pytest.mark.parametrize("fault", ["created_but_500", "created_but_reset"])
def test_a_pod_whose_creation_was_not_answered_is_found_and_used(
    errand: Errand, instance: dg.DagsterInstance, fault: str
) -> None:
    errand.fake.faults.plan(fault)
    errand.fake.faults.plan("late_listing", lists=2)
    assert errand.run(instance).success
    assert len(errand.fake.charges) == 1
    errand.require_balance()


@pytest.mark.parametrize("fault", ["stuck_provisioning", "uptime_zero"])
def test_a_pod_that_never_starts_is_terminated(
    errand: Errand, instance: dg.DagsterInstance, fault: str
) -> None:
    errand.use(start_minutes=SOON_MINUTES)
    errand.fake.faults.plan(fault)
    said = errand.failure_of(instance)
    assert said.startswith("PodNeverStarted: ")
    assert "create container" in said or "RunPod says" in said
    errand.require_balance()


def test_a_crash_loop_is_terminated(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("crash_loop", after_s=0.0)
    said = errand.failure_of(instance)
    assert said.startswith("PodCrashLoop: ")
    assert "start container" in said
    errand.require_balance()


def test_a_pod_that_is_lost_without_resumes_left(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.use("sleep", resumes=0)
    errand.fake.faults.plan("preempted", after_s=0.5, gone=True)
    assert errand.failure_of(instance).startswith("PodLost: ")
    errand.require_balance()


def test_a_hung_pod_is_terminated(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.use("sleep", idle_minutes=SOON_MINUTES)
    errand.when(errand.beats, lambda: errand.fake.pods[0].hang())
    assert errand.failure_of(instance).startswith("PodHung: ")
    errand.require_balance()


def test_a_task_that_fails_in_the_pod_says_why(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.use("fail")
    said = errand.failure_of(instance)
    assert said.startswith("RemoteTaskFailed: ")
    assert "ValueError: the spec says no" in said
    errand.require_balance()


def test_a_pod_that_does_not_end_is_named(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("terminate_ignored", tries=None)
    said = errand.failure_of(instance)
    assert said.startswith("PodMayStillBeBilling: ")
    (pod,) = errand.fake.live
    assert pod.id in said
    assert "pods reap" in said


def test_a_termination_that_fails_twice_is_tried_again(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.fake.faults.plan("terminate_fails", tries=2)
    assert errand.run(instance).success
    errand.require_balance()


def test_a_full_volume_is_said_to_be_full(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("volume_full", on="s3:PutObject", times=None)
    said = errand.failure_of(instance)
    assert said.startswith("VolumeFull: ")
    assert errand.fake.pods == []


def test_a_data_center_that_is_not_the_volumes_is_refused_here(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.use(data_center="US-KS-2")
    said = errand.failure_of(instance)
    assert said.startswith("PlanError: ")
    assert DATA_CENTER in said and "US-KS-2" in said
    assert errand.fake.pods == []


def test_a_price_that_rose_is_not_paid(errand: Errand, instance: dg.DagsterInstance) -> None:
    errand.fake.faults.plan("price", factor=2.0)
    said = errand.failure_of(instance)
    assert said.startswith("BudgetExceeded: ")
    assert len(errand.fake.charges) == 1
    errand.require_balance()


def test_unknown_keys_in_answers_and_cut_logs_change_nothing(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.fake.faults.plan("drift", times=None)
    errand.fake.faults.plan("logs_cut", lines=1, times=1)
    assert errand.run(instance).success
    errand.require_balance()


@pytest.mark.parametrize("becomes", ["broken", "gone"])
def test_a_ledger_that_breaks_does_not_keep_the_pod(
    errand: Errand, instance: dg.DagsterInstance, becomes: str
) -> None:
    errand.use("report, then wait for a file")

    def break_it() -> None:
        errand.ledger.path.unlink()
        if becomes == "broken":
            errand.ledger.path.write_text("no database")
        (errand.volume_folder / "trade_pipeline" / "store" / "go").touch()

    errand.when(lambda: bool(errand.on_volume("store/runs")), break_it)
    said = errand.failure_of(instance)
    assert said.startswith("LedgerError: ")
    assert errand.fake.live == []


def test_pods_count_though_the_ledger_was_lost(
    errand: Errand, instance: dg.DagsterInstance
) -> None:
    errand.use(budget={"run_usd": 50, "day_usd": 500, "hourly_usd": 50, "pods": 1})
    settings = RunPodComputeSettings.model_validate(errand.settings)
    connection = connect(settings, errand.store, os.environ)
    Launch(connection, "1" * 16, "a" * 8, "a" * 8).ask("tp-main-11111111-aaaaaaaa-1", {}, print)
    errand.ledger.path.unlink()
    assert errand.failure_of(instance).startswith("BudgetExceeded: ")
    (stray,) = errand.ledger.open("main")
    end_pod(connection.api, errand.ledger, stray, "the test has ended", time.sleep, utc_now)
    errand.require_balance()


def test_ten_at_once_against_a_budget_for_three_start_three(errand: Errand) -> None:
    errand.use(budget={"run_usd": 50, "day_usd": 500, "hourly_usd": 50, "pods": 3})
    settings = RunPodComputeSettings.model_validate(errand.settings)

    def ask(number: int) -> str:
        connection = connect(settings, errand.store, os.environ)
        one = Launch(connection, f"{number:016x}", f"{number:08x}-run", f"{number:08x}-run")
        try:
            return one.ask(one.next_name(), {}, lambda said: None).state
        except BudgetExceeded:
            return "over budget"

    with ThreadPoolExecutor(10) as threads:
        outcomes = list(threads.map(ask, range(1, 11)))
    assert sorted(outcomes) == ["live"] * 3 + ["over budget"] * 7
    assert len(errand.fake.charges) == len(errand.fake.live) == 3
    api = RestApi(errand.fake.rest_url, errand.fake.environment["RUNPOD_API_KEY"])
    for lease in errand.ledger.open("main"):
        end_pod(api, errand.ledger, lease, "the test has ended", time.sleep, utc_now)
    errand.require_balance()
