"""The budget: no sequence of plans and no race passes a limit."""

import multiprocessing
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.compute.runpod.budget import Budget, objections
from trade_pipeline.compute.runpod.errors import BudgetExceeded
from trade_pipeline.compute.runpod.lease import Figures
from trade_pipeline.compute.runpod.ledger import LedgerError
from trade_pipeline.settings.compute import BudgetSettings
from trade_pipeline_tests.compute.runpod.leases import (
    NOON,
    RUN,
    Clock,
    intent,
    ledger_at,
    live,
    pod,
)

FORK = multiprocessing.get_context("fork")
AMPLE = {"run_usd": 1e6, "day_usd": 1e6, "hourly_usd": 1e6, "pods": 1000}


def allowing(**limits: Any) -> BudgetSettings:
    return BudgetSettings(**{**AMPLE, **limits})


def test_what_fits_is_entered_and_what_does_not_is_not(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    budget = Budget(allowing(day_usd=2.5), ledger)
    assert budget.approve(intent(1, usd_h=0.5, hours=2)).state == "intent"
    assert budget.approve(intent(2, usd_h=0.5, hours=3)).estimate_usd == 1.5  # to the last cent
    assert budget.examine(intent(3, usd_h=0.01, hours=1)) != []
    with pytest.raises(BudgetExceeded):
        budget.approve(intent(3, usd_h=0.01, hours=1))
    assert [lease.name for lease in ledger.leases()] == [intent(1).name, intent(2).name]


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({"pods": 1}, ["budget.pods allows 1 pod:", "are 1, this pod 1, together 2", "pods list"]),
        (
            {"hourly_usd": 1.0},
            ["budget.hourly_usd allows 1 USD an hour", "take 0.8, this pod 0.4, together 1.2"],
        ),
        (
            {"run_usd": 2.0},
            ["budget.run_usd allows 2 USD", "takes 1.6, this pod 1.2, together 2.8", "`hours`"],
        ),
        (
            {"day_usd": 2.5},
            ["budget.day_usd allows 2.5 USD", "take 1.6, this pod 1.2, together 2.8", "midnight"],
        ),
    ],
)
def test_a_refusal_names_key_limit_figures_and_way_out(
    tmp_path: Path, limit: dict[str, float], says: list[str]
) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent(1, usd_h=0.8, hours=2))
    with pytest.raises(BudgetExceeded) as raised:
        Budget(allowing(**limit), ledger).approve(intent(2, usd_h=0.4, hours=3))
    for part in [*says, intent(2).name, "NVIDIA L4", "No pod was asked for"]:
        assert part in str(raised.value)
    assert str(raised.value).count("budget.") == 1  # only the limit that is passed
    assert not raised.value.allow_retries


def test_every_limit_that_is_passed_is_named_at_once(tmp_path: Path) -> None:
    tight = allowing(run_usd=0.1, day_usd=0.1, hourly_usd=0.1)
    found = Budget(tight, ledger_at(tmp_path)).examine(intent())
    assert [one.split()[0] for one in found] == [
        "budget.hourly_usd",
        "budget.run_usd",
        "budget.day_usd",
    ]


def test_the_pods_that_a_run_lost_count_for_the_pod_that_resumes_it(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    budget = Budget(allowing(run_usd=3.0), ledger)
    budget.approve(intent(1, usd_h=1.0, hours=2))
    budget.confirm(intent(1).name, pod(intent(1).name, "p1", 1.0))
    ledger.ended(intent(1).name, "lost", NOON + timedelta(minutes=90))
    with pytest.raises(BudgetExceeded, match=r"takes 1\.5, this pod 2, together 3\.5"):
        budget.approve(intent(2, usd_h=1.0, hours=2))
    with pytest.raises(BudgetExceeded):
        budget.approve(intent(1, usd_h=1.0, hours=2, run="feedbeef-retry", root_run=RUN))
    budget.approve(intent(2, usd_h=1.0, hours=1.5))
    budget.approve(intent(1, usd_h=1.0, hours=2, run="0therrun"))


def test_unused_hours_are_free_again_when_a_pod_ends(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    budget = Budget(allowing(day_usd=10), ledger)
    budget.approve(intent(1, usd_h=1.0, hours=10))
    assert budget.examine(intent(2, usd_h=1.0, hours=8)) != []
    budget.confirm(intent(1).name, pod(intent(1).name, "p1", 1.0))
    ledger.ended(intent(1).name, "done", NOON + timedelta(hours=2))
    assert budget.examine(intent(2, usd_h=1.0, hours=8)) == []
    ledger.enter(intent(2, usd_h=1.0, hours=8), lambda figures: None)
    ledger.void(intent(2).name, "no capacity")
    assert budget.examine(intent(3, usd_h=1.0, hours=8)) == []


def test_a_pod_dearer_than_approved_is_to_be_terminated_at_once(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    budget = Budget(allowing(), ledger)
    budget.approve(intent(usd_h=0.43))
    with pytest.raises(BudgetExceeded, match=r"p1 .*terminated at once.* 0\.86 USD/h, 0\.43"):
        budget.confirm(intent().name, pod(intent().name, "p1", 0.86))
    [lease] = ledger.open("main")
    assert (lease.state, lease.pod_id, lease.burn_usd_h) == ("ending", "p1", 0.86)


@pytest.mark.parametrize("usd_h", [0.1 + 0.2, 0.3, 0.2])
def test_a_pod_at_or_below_the_approved_price_is_confirmed(tmp_path: Path, usd_h: float) -> None:
    budget = Budget(allowing(), ledger_at(tmp_path))
    budget.approve(intent(usd_h=0.3))
    lease = budget.confirm(intent().name, pod(intent().name, "p1", usd_h))
    assert (lease.state, lease.pod_id, lease.rate_usd_h) == ("live", "p1", usd_h)
    assert budget.confirm(intent().name, pod(intent().name, "p1", usd_h)) == lease


def test_a_pod_that_the_reaper_took_back_meanwhile_is_not_confirmed(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    budget = Budget(allowing(), ledger)
    budget.approve(intent())
    ledger.live(intent().name, pod(intent().name, "p1"))
    ledger.ending(intent().name, "its run has ended")
    with pytest.raises(LedgerError, match=r"p1 .* was taken back .*its run has ended"):
        budget.confirm(intent().name, pod(intent().name, "p1"))


@pytest.mark.parametrize(
    ("usd_h", "hours"),
    [(float("nan"), 1.0), (0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (0.5, 0.0)],
)
def test_what_has_no_price_fits_no_budget(tmp_path: Path, usd_h: float, hours: float) -> None:
    budget = Budget(allowing(), ledger_at(tmp_path))
    with pytest.raises(BudgetExceeded, match="can be held against no budget"):
        budget.approve(intent(usd_h=usd_h, hours=hours))


def test_ten_processes_at_once_against_a_budget_for_three_start_exactly_three(
    tmp_path: Path,
) -> None:
    for case, limit in enumerate(
        ({"pods": 3}, {"hourly_usd": 1.5}, {"run_usd": 3.0}, {"day_usd": 3.5})
    ):
        folder = tmp_path / str(case)
        start = FORK.Barrier(10)

        def ask(
            attempt: int, folder: Path = folder, start: Any = start, limit: Any = limit
        ) -> None:
            budget = Budget(allowing(**limit), ledger_at(folder))
            start.wait()
            try:
                budget.approve(intent(attempt, usd_h=0.5, hours=2))
            except BudgetExceeded:
                raise SystemExit(3) from None

        processes = [FORK.Process(target=ask, args=(attempt,)) for attempt in range(10)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(process.exitcode for process in processes) == [0] * 3 + [3] * 7, limit
        assert len(ledger_at(folder).open("main")) == 3


@given(
    figures=st.builds(
        Figures, st.integers(0, 9), st.floats(0, 9), st.floats(0, 99), st.floats(0, 99)
    ),
    usd_h=st.floats(0.01, 9),
    hours=st.floats(0.01, 50),
    limits=st.builds(
        BudgetSettings,
        run_usd=st.floats(0.1, 99),
        day_usd=st.floats(0.1, 99),
        hourly_usd=st.floats(0.1, 9),
        pods=st.integers(1, 9),
    ),
)
def test_a_pod_is_refused_exactly_when_it_would_pass_a_limit(
    figures: Figures, usd_h: float, hours: float, limits: BudgetSettings
) -> None:
    passed = {
        "budget.pods": figures.pods + 1 - limits.pods,
        "budget.hourly_usd": figures.burn_usd_h + usd_h - limits.hourly_usd,
        "budget.run_usd": figures.run_usd + usd_h * hours - limits.run_usd,
        "budget.day_usd": figures.day_usd + usd_h * hours - limits.day_usd,
    }
    found = objections(limits, figures, intent(usd_h=usd_h, hours=hours))
    assert {one.split()[0] for one in found} == {key for key, by in passed.items() if by > 1e-9}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([0.2, 0.5, 1.1]), st.sampled_from([1, 3, 8])),
        st.tuples(st.just("made"), st.integers(0, 5), st.sampled_from([0.5, 1.0])),
        st.tuples(st.just("gone"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("void"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.4, 2.0, 9.0]), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_no_history_passes_a_limit_and_what_was_spent_stays_spent(
    steps: list[tuple[str, float, float]],
) -> None:
    limits = allowing(run_usd=6, day_usd=7, hourly_usd=2, pods=3)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        ledger = ledger_at(Path(folder), clock)
        budget = Budget(limits, ledger)
        costs_before: dict[str, float] = {}
        for number, (step, first, second) in enumerate(steps):
            waiting = [lease for lease in ledger.open("main") if lease.pod_id is None]
            lived = [lease for lease in ledger.open("main") if lease.pod_id is not None]
            if step == "wait":
                clock.sleep(first * 3600)
            elif step == "ask":
                wanted = intent(number, usd_h=first, hours=second)
                before = ledger.figures("main", RUN)
                fits = (
                    before.pods + 1 <= 3
                    and before.burn_usd_h + first <= 2 + 1e-9
                    and before.run_usd + first * second <= 6 + 1e-9
                    and before.day_usd + first * second <= 7 + 1e-9
                )
                try:
                    budget.approve(wanted)
                except BudgetExceeded:
                    assert not fits
                else:
                    assert fits
            elif step in ("made", "void") and waiting:
                lease = waiting[int(first) % len(waiting)]
                if step == "void":
                    ledger.void(lease.name, "no capacity")
                else:
                    usd_h = lease.approved_usd_h * second
                    budget.confirm(lease.name, pod(lease.name, f"p{number}", usd_h, clock()))
            elif step == "gone" and lived:
                ledger.ended(lived[int(first) % len(lived)].name, "gone", clock())
            costs = {lease.name: lease.cost_usd or 0.0 for lease in ledger.leases()}
            for name, cost in costs_before.items():
                assert costs[name] >= cost
            costs_before = costs
            figures = ledger.figures("main", RUN)
            assert figures.pods <= 3 and figures.burn_usd_h <= 2 + 1e-9
            assert figures.run_usd >= sum(costs.values()) - 1e-9
