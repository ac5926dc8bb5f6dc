"""The reaper over a loopback RunPod: pods that nobody needs go, and no pod of others does."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.compute.runpod.api import Pod
from trade_pipeline.compute.runpod.budget import Budget
from trade_pipeline.compute.runpod.errors import (
    BudgetExceeded,
    CreationUnclear,
    ExchangeError,
    PodMayStillBeBilling,
)
from trade_pipeline.compute.runpod.lease import Lease, imbalances
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.plan import is_ours
from trade_pipeline.compute.runpod.reaper import Patience, Reaped, end_pod, reap, reconcile
from trade_pipeline.compute.runpod.rest import RestApi
from trade_pipeline.settings.compute import BudgetSettings
from trade_pipeline_tests.compute.runpod.leases import RUN, anything_goes, asked_for, intent
from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

FORK = multiprocessing.get_context("fork")
PATIENCE = Patience(
    grace=timedelta(minutes=10),
    slack=timedelta(minutes=20),
    start=timedelta(minutes=30),
    idle=timedelta(minutes=40),
)
AMPLE = BudgetSettings(run_usd=1e6, day_usd=1e6, hourly_usd=1e6, pods=1000)


class ShiftedClock:
    """The time of the machine, and a shift that tests add to."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift


def soon(seconds: float) -> None:
    """A sleep for machines that answer at once."""
    time.sleep(min(seconds / 50, 0.1))


@dataclass
class Host:
    """A host with its ledger, and the RunPod that it talks to."""

    fake: FakeRunPod
    api: RestApi
    ledger: Ledger
    clock: ShiftedClock

    def ask(self, attempt: int = 1, **changes: Any) -> Pod:
        """Make a pod, as a run does."""
        wanted = intent(attempt, usd_h=1.0, **changes)
        self.ledger.enter(wanted, anything_goes)
        pod = self.make(wanted.name)
        self.ledger.live(wanted.name, pod)
        return pod

    def make(self, name: str) -> Pod:
        """A pod that the ledger is not told of."""
        return self.api.create_pod(asked_for(name))

    def reap(
        self,
        state: str | Callable[[str], Any] = "running",
        heartbeat: Callable[[str, str], datetime | None] | None = None,
    ) -> list[Reaped]:
        return reap(
            self.api,
            self.ledger,
            "main",
            state if callable(state) else lambda run: state,
            self.clock,
            patience=PATIENCE,
            heartbeat=heartbeat or (lambda name, job: self.clock()),
            sleep=soon,
        )

    def lease(self, attempt: int = 1) -> Lease:
        found = self.ledger.lease(intent(attempt).name)
        assert found is not None
        return found

    @property
    def live(self) -> set[str]:
        return {pod.id for pod in self.fake.live}

    @property
    def imbalances(self) -> list[str]:
        """Between the ledger and the pods of its deployment."""
        ours = {pod.id for pod in self.fake.live if is_ours(pod.name, "main")}
        return imbalances(self.ledger.leases(), ours)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with FakeRunPod() as fake:
        clock = ShiftedClock()
        ledger = Ledger(tmp_path / "leases.sqlite", clock)
        yield Host(fake, RestApi(fake.rest_url, fake.api_key, sleep=soon), ledger, clock)
        assert not fake.unexpected and not fake.faults.unused


def outcomes(found: list[Reaped]) -> list[tuple[str, str]]:
    return sorted((one.name, one.outcome) for one in found)


def test_a_pod_whose_run_goes_on_stays(host: Host) -> None:
    pod = host.ask()
    assert host.reap("running") == []
    assert host.live == {pod.id} and host.imbalances == []


def test_a_pod_whose_run_has_ended_goes_and_costs_what_runpod_charges(host: Host) -> None:
    pod = host.ask()
    [reaped] = host.reap("ended")
    assert (reaped.outcome, reaped.pod_id, reaped.run) == ("terminated", pod.id, RUN)
    assert f"run {RUN} has ended" in reaped.reason
    assert host.live == set() and host.imbalances == []
    [charge] = host.fake.charges
    # RunPod tells the time of creation in whole seconds, and a busy machine asks late.
    assert charge.usd - 1e-6 <= host.lease().cost_usd <= charge.usd + 10 * charge.usd_h / 3600
    assert host.reap("ended") == []


def test_only_the_run_that_has_ended_loses_its_pod(host: Host) -> None:
    host.ask(1)
    kept = host.ask(1, run="0therrun-2222")
    found = host.reap(lambda run: "ended" if run == RUN else "running")
    assert outcomes(found) == [(intent(1).name, "terminated")]
    assert host.live == {kept.id}


def test_a_pod_of_an_unknown_run_goes_after_a_grace(host: Host) -> None:
    pod = host.ask()
    [left] = host.reap("unknown")
    assert (left.outcome, left.pod_id) == ("young", pod.id) and "is not known" in left.reason
    assert left.grace_until == host.lease().asked_at + timedelta(minutes=10)
    assert host.live == {pod.id}
    host.clock.shift = timedelta(minutes=11)
    [reaped] = host.reap("unknown")
    assert reaped.outcome == "terminated" and "is not known" in reaped.reason
    assert host.live == set()


def test_a_pod_goes_when_its_planned_hours_are_over(host: Host) -> None:
    host.ask(hours=2.0)
    host.clock.shift = timedelta(hours=2, minutes=19)
    assert host.reap() == []
    host.clock.shift = timedelta(hours=2, minutes=21)
    [reaped] = host.reap()
    assert "2 planned hours are over" in reaped.reason and host.live == set()
    assert host.lease().cost_usd == pytest.approx(host.lease().burn_usd_h * 2.35, rel=1e-2)


def test_a_pod_goes_when_its_heartbeat_is_old(host: Host) -> None:
    host.ask(hours=9.0)
    last = host.clock()
    asked: list[tuple[str, str]] = []

    def heartbeat(name: str, job: str) -> datetime:
        asked.append((name, job))
        return last

    host.clock.shift = timedelta(minutes=39)
    assert host.reap(heartbeat=heartbeat) == []
    host.clock.shift = timedelta(minutes=41)
    [reaped] = host.reap(heartbeat=heartbeat)
    assert "last heartbeat" in reaped.reason and host.live == set()
    assert set(asked) == {(intent().name, intent().job)}


def test_a_pod_goes_when_no_heartbeat_ever_came(host: Host) -> None:
    host.ask(hours=9.0)
    host.clock.shift = timedelta(minutes=29)
    assert host.reap(heartbeat=lambda name, job: None) == []
    host.clock.shift = timedelta(minutes=31)
    [reaped] = host.reap(heartbeat=lambda name, job: None)
    assert "no heartbeat" in reaped.reason and host.live == set()


def test_a_pod_stays_when_its_heartbeat_cannot_be_read(host: Host) -> None:
    def heartbeat(name: str, job: str) -> None:
        raise ExchangeError("the volume does not answer")

    pod = host.ask(hours=9.0)
    host.clock.shift = timedelta(hours=8)
    assert host.reap(heartbeat=heartbeat) == [] and host.live == {pod.id}
    untold = reap(host.api, host.ledger, "main", lambda run: "running", host.clock, sleep=soon)
    assert untold == [] and host.live == {pod.id}


def test_pods_of_others_are_never_touched(host: Host) -> None:
    others = [
        host.make("tp-main-notebook"),
        host.make("tp-other-01234567-5d3f9a1c-1"),
        host.make("training"),
    ]
    host.clock.shift = timedelta(days=3)
    assert host.reap("ended") == []
    assert host.live == {pod.id for pod in others}
    assert host.fake.operations("delete") == host.fake.operations("action") == []


def test_a_pod_of_ours_that_no_lease_knows_goes_after_a_grace_and_counts(host: Host) -> None:
    stray = host.make("tp-main-89abcdef-00000000-1")
    [left] = host.reap()
    assert (left.outcome, left.grace_until) == ("young", stray.created_at + timedelta(minutes=10))
    assert host.live == {stray.id}
    host.clock.shift = timedelta(minutes=11)
    [reaped] = host.reap()
    assert reaped.outcome == "terminated" and "no lease knew it" in reaped.reason
    assert host.live == set() and host.imbalances == []
    today = host.ledger.spent_of_day("main", host.clock().date())
    assert today == pytest.approx(stray.cost_usd_h * 11 / 60, rel=0.02)


@pytest.mark.parametrize("fault", ["created_but_500", "created_but_reset", "created_but_html"])
def test_a_pod_whose_creation_was_answered_badly_is_adopted(host: Host, fault: str) -> None:
    host.fake.faults.plan(fault)
    host.ledger.enter(intent(usd_h=1.0), anything_goes)
    with pytest.raises(CreationUnclear):
        host.make(intent().name)
    assert outcomes(host.reap("running")) == [(intent().name, "adopted")]
    assert {host.lease().pod_id} == host.live and host.lease().state == "live"
    assert host.reap("running") == []
    assert outcomes(host.reap("ended")) == [(intent().name, "terminated")]
    assert host.live == set() and host.imbalances == [] and len(host.fake.charges) == 1


def test_an_adopted_pod_that_is_dearer_than_approved_goes(host: Host) -> None:
    host.fake.faults.plan("price", factor=10.0)
    host.ledger.enter(intent(usd_h=1.0), anything_goes)
    host.make(intent().name)
    [reaped] = host.reap("running")
    assert reaped.outcome == "terminated" and "1 were approved" in reaped.reason
    assert host.live == set()


def test_an_intent_is_given_up_after_a_grace_only(host: Host) -> None:
    host.ledger.enter(intent(), anything_goes)
    assert host.reap("ended") == [] and host.lease().state == "intent"
    host.clock.shift = timedelta(minutes=11)
    assert outcomes(host.reap("ended")) == [(intent().name, "void")]
    assert host.lease().state == "void" and host.imbalances == []


def test_a_pod_that_appears_after_its_intent_was_given_up_goes(host: Host) -> None:
    host.fake.faults.plan("late_listing", lists=1)
    host.ledger.enter(intent(usd_h=1.0), anything_goes)
    pod = host.make(intent().name)  # and the answer is lost
    host.clock.shift = timedelta(minutes=11)
    assert outcomes(host.reap("running")) == [(intent().name, "void")]
    assert host.live == {pod.id}
    [reaped] = host.reap("running")
    assert reaped.outcome == "terminated" and "given up" in reaped.reason
    assert host.live == set() and host.imbalances == []


def test_a_live_pod_that_the_list_leaves_out_is_neither_lost_nor_kept_alive(host: Host) -> None:
    host.fake.faults.plan("late_listing", lists=99)
    pod = host.ask()
    host.clock.shift = timedelta(minutes=11)
    assert host.reap("running") == [] and host.live == {pod.id}
    assert outcomes(host.reap("ended")) == [(intent().name, "terminated")]
    assert host.live == set() and host.imbalances == []


def test_a_lease_whose_pod_went_by_itself_is_closed_with_its_cost(host: Host) -> None:
    pod = host.ask()
    host.fake.pod(pod.id).preempt(gone=True)
    assert host.reap("running") == []  # RunPod may not know a young pod yet
    host.clock.shift = timedelta(minutes=30)
    [reaped] = host.reap("running")
    assert (reaped.outcome, reaped.reason) == ("gone", "it was gone without us")
    assert reaped.cost_usd == pytest.approx(pod.cost_usd_h / 2, rel=1e-2)
    assert host.imbalances == []


@pytest.mark.parametrize("fault", ["terminate_fails", "terminate_ignored"])
def test_a_pod_that_cannot_be_ended_keeps_no_other_alive_and_is_told_of(
    host: Host, fault: str
) -> None:
    host.fake.faults.plan(fault, pod=intent(1).name)
    resists, goes = host.ask(1), host.ask(2)
    found = {one.name: one for one in host.reap("ended")}
    assert found[intent(2).name].outcome == "terminated"
    failed = found[intent(1).name]
    assert failed.outcome == "failed" and isinstance(failed.error, PodMayStillBeBilling)
    assert failed.error.pod_id == resists.id and resists.id in failed.reason
    assert "console" in failed.reason
    assert host.live == {resists.id} and goes.id not in host.live
    assert host.lease(1).state == "ending"  # it counts on, and the next round tries again
    assert outcomes(host.reap("running")) == [(intent(1).name, "failed")]


def test_a_pod_that_resists_for_a_while_is_ended_in_the_end(host: Host) -> None:
    host.fake.faults.plan("terminate_ignored", tries=2)
    host.ask()
    assert outcomes(host.reap("ended")) == [(intent().name, "terminated")]
    assert host.live == set() and host.imbalances == []


def test_a_terminated_pod_that_is_shown_for_a_while_counts_as_gone(host: Host) -> None:
    host.fake.timing.terminated_visible_s = 60
    host.ask()
    assert outcomes(host.reap("ended")) == [(intent().name, "terminated")]
    assert host.reap("ended") == []
    assert host.live == set() and len(host.ledger.history(intent().name)) == 4


def test_a_pod_that_was_taken_for_gone_and_is_there_goes(host: Host) -> None:
    host.ask()
    host.ledger.ended(intent().name, "by mistake", host.clock())
    [reaped] = host.reap("running")
    assert reaped.outcome == "terminated" and "taken for gone" in reaped.reason
    assert host.live == set() and host.imbalances == []


def test_of_two_pods_with_one_name_the_one_without_lease_goes(host: Host) -> None:
    kept = host.ask()
    host.make(intent().name)
    host.clock.shift = timedelta(minutes=11)
    [reaped] = host.reap("running")
    assert reaped.outcome == "terminated" and reaped.name.startswith(intent().name + "~")
    assert host.live == {kept.id} and host.imbalances == []


def test_a_pod_that_another_run_took_over_meanwhile_stays(host: Host) -> None:
    pod = host.ask()

    def ended_and_taken_over(run: str) -> str:
        host.ledger.take_over(intent().name, "the-retry")
        return "ended"

    assert host.reap(ended_and_taken_over) == []
    assert host.live == {pod.id} and host.lease().state == "live"


def test_two_reapers_at_once_end_each_pod_once(host: Host) -> None:
    for attempt in range(4):
        host.ask(attempt)
    found: list[list[Reaped]] = []
    threads = [threading.Thread(target=lambda: found.append(host.reap("ended"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and not [one for part in found for one in part if one.error]
    assert host.live == set() and host.imbalances == []
    for attempt in range(4):
        states = [step.state for step in host.ledger.history(intent(attempt).name)]
        assert states == ["intent", "live", "ending", "ended"]


def test_ending_a_pod_twice_is_fine(host: Host) -> None:
    host.ask()
    first = end_pod(host.api, host.ledger, host.lease(), "done", soon, host.clock)
    again = end_pod(host.api, host.ledger, host.lease(), "once more", soon, host.clock)
    assert first == again and (first.state, first.reason) == ("ended", "done")
    assert host.live == set()


def test_ending_an_intent_finds_its_pod_by_name(host: Host) -> None:
    host.fake.faults.plan("late_listing", lists=2)
    host.ledger.enter(intent(usd_h=1.0), anything_goes)
    host.make(intent().name)  # and the answer is lost
    ended = end_pod(host.api, host.ledger, host.lease(), "cancelled", soon, host.clock)
    assert ended.state == "ended" and host.live == set() and host.imbalances == []


def test_ending_an_intent_without_a_pod_leaves_it_to_the_reaper(host: Host) -> None:
    host.ledger.enter(intent(), anything_goes)
    left = end_pod(host.api, host.ledger, host.lease(), "cancelled", soon, host.clock)
    assert left.state == "intent"


def test_a_pod_dearer_than_approved_is_refused_and_then_ended(host: Host) -> None:
    host.fake.faults.plan("price", factor=3.0)
    budget = Budget(AMPLE, host.ledger)
    budget.approve(intent(usd_h=host.fake.gpus["NVIDIA L4"].price_usd_h))
    pod = host.make(intent().name)
    with pytest.raises(BudgetExceeded, match="terminated at once"):
        budget.confirm(intent().name, pod)
    end_pod(host.api, host.ledger, host.lease(), "too dear", soon, host.clock)
    assert host.live == set() and host.imbalances == []


def test_ledger_and_bill_are_compared_pod_by_pod(host: Host) -> None:
    start = host.clock()
    for attempt in (1, 2):
        host.ask(attempt)
    host.make("of-somebody-else")
    time.sleep(1.5)
    end_pod(host.api, host.ledger, host.lease(1), "done", soon, host.clock)
    since = start - timedelta(minutes=1)
    assert [row.billed_usd for row in reconcile(host.api, host.ledger, since, host.clock())] == [
        None,
        None,
    ]  # the bill lags

    host.fake.timing.billing_lag_s = 0
    rows = reconcile(host.api, host.ledger, since, host.clock())
    assert [(row.name, row.pod_id) for row in rows] == [
        (intent(1).name, host.lease(1).pod_id),
        (intent(2).name, host.lease(2).pod_id),
    ]
    for row in rows:
        assert row.billed_usd is not None and row.difference_usd is not None
        assert row.difference_usd == pytest.approx(row.billed_usd - row.ledger_usd)
        assert abs(row.difference_usd) < 10 * host.lease(1).burn_usd_h / 3600
    assert rows[0].ledger_usd == host.lease(1).cost_usd
    assert reconcile(host.api, host.ledger, host.clock() + timedelta(1), host.clock()) == []


def test_a_host_killed_at_any_moment_leaves_no_pod_and_no_charge_unaccounted(
    host: Host,
) -> None:
    draw = random.Random(6)

    def work(start: int, under_way: Any) -> None:
        """What a run does, again and again, with clients of its own."""
        api = RestApi(host.fake.rest_url, host.fake.api_key, sleep=soon)
        ledger = Ledger(host.ledger.path, host.clock)
        budget = Budget(AMPLE, ledger)
        for attempt in range(start, start + 1000):
            wanted = intent(attempt, usd_h=1.0)
            budget.approve(wanted)
            lease = budget.confirm(wanted.name, api.create_pod(asked_for(wanted.name)))
            end_pod(api, ledger, lease, "done", soon, host.clock)
            under_way.set()

    for kill in range(6):
        under_way = FORK.Event()
        process = FORK.Process(target=work, args=(1000 * kill, under_way))
        process.start()
        assert under_way.wait(60)
        time.sleep(0.3 * draw.random())
        assert process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if kill % 2:
            host.reap("ended")
    host.reap("ended")
    host.clock.shift = timedelta(minutes=11)  # for intents that never became a pod
    host.reap("ended")

    assert host.live == set() and host.imbalances == [] and host.ledger.open("main") == []
    leases = [lease for lease in host.ledger.leases() if lease.pod_id]
    assert len(leases) == len(host.fake.charges) >= 6
    assert {lease.pod_id for lease in leases} == {charge.pod_id for charge in host.fake.charges}
