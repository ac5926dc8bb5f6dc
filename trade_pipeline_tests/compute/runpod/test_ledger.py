"""The lease ledger: what it remembers, what it costs, and what a kill or damage does to it."""

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.compute.runpod.lease import cost_usd, imbalances
from trade_pipeline.compute.runpod.ledger import Ledger, LedgerError
from trade_pipeline_tests.compute.runpod.leases import (
    NOON,
    RUN,
    Clock,
    anything_goes,
    intent,
    ledger_at,
    live,
    pod,
)

FORK = multiprocessing.get_context("fork")


def test_a_lease_goes_from_intent_to_its_cost_and_every_step_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    ledger = ledger_at(tmp_path, clock)
    wanted = intent(usd_h=0.6, hours=3)

    entered = ledger.enter(wanted, anything_goes)
    assert (entered.state, entered.pod_id, entered.cost_usd) == ("intent", None, None)
    assert entered.asked_at == NOON and entered.root_run == RUN

    clock.sleep(5)
    lived = ledger.live(wanted.name, pod(wanted.name, "p1", 0.5, NOON + timedelta(seconds=2)))
    assert (lived.state, lived.pod_id, lived.rate_usd_h) == ("live", "p1", 0.5)

    clock.sleep(3595)
    assert ledger.ending(wanted.name, "the task has ended").state == "ending"
    ended = ledger.ended(wanted.name, "gone", NOON + timedelta(seconds=5402))

    # 12:00:02 to 13:30:02 are one and a half hours at the rate that RunPod named.
    assert ended.cost_usd == pytest.approx(0.75)
    assert (ended.state, ended.reason) == ("ended", "the task has ended")
    assert [(step.state, step.entered_at) for step in ledger.history(wanted.name)] == [
        ("intent", NOON),
        ("live", NOON + timedelta(seconds=5)),
        ("ending", NOON + timedelta(hours=1)),
        ("ended", NOON + timedelta(hours=1)),
    ]
    assert ledger.open("main") == []
    assert ledger.of_pod("p1") == ledger.lease(wanted.name) == ended
    assert ledger.of_job(wanted.job) == ledger.of_run(RUN) == ledger.leases() == [ended]


def test_another_process_reads_what_one_wrote(tmp_path: Path) -> None:
    written = ledger_at(tmp_path).enter(intent(), anything_goes)
    assert ledger_at(tmp_path).leases() == [written]


def test_ending_twice_leaves_the_first_cost(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    wanted = intent(usd_h=1)
    live(ledger, "p1", wanted)
    first = ledger.ended(wanted.name, "one reaper", NOON + timedelta(hours=1))
    second = ledger.ended(wanted.name, "another reaper", NOON + timedelta(hours=5))
    assert first == second and first.cost_usd == pytest.approx(1)


def test_a_pod_that_ends_before_it_began_by_clocks_that_differ_costs_nothing(
    tmp_path: Path,
) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent(), NOON + timedelta(seconds=30))
    ended = ledger.ended(intent().name, "gone", NOON)
    assert ended.cost_usd == 0 and imbalances([ended], ()) == []


def test_a_pod_without_a_price_counts_with_the_approved_one(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    ledger.enter(intent(usd_h=0.5), anything_goes)
    assert ledger.live(intent().name, pod(intent().name, "p1", 0.0)).rate_usd_h == 0.5


def test_only_an_intent_becomes_void_and_a_void_one_may_be_asked_for_again(
    tmp_path: Path,
) -> None:
    ledger = ledger_at(tmp_path)
    ledger.enter(intent(1), anything_goes)
    live(ledger, "p2", intent(2))
    assert ledger.void(intent(1).name, "no capacity").state == "void"
    assert ledger.void(intent(2).name, "no capacity").state == "live"

    again = ledger.enter(intent(1, usd_h=0.9, gpu="NVIDIA A40"), anything_goes)
    assert (again.state, again.gpu, again.approved_usd_h) == ("intent", "NVIDIA A40", 0.9)
    states = [step.state for step in ledger.history(intent(1).name)]
    assert states == ["intent", "void", "intent"]


def test_a_name_is_asked_for_once(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    ledger.enter(intent(), anything_goes)
    with pytest.raises(LedgerError, match="was asked for already and is intent"):
        ledger.enter(intent(), anything_goes)


def test_a_pod_has_one_lease_and_a_lease_one_pod(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent(1))
    ledger.enter(intent(2), anything_goes)
    with pytest.raises(LedgerError, match=r"p1 belongs to lease .*-1 already"):
        ledger.live(intent(2).name, pod(intent(2).name, "p1"))
    with pytest.raises(LedgerError, match="has pod p1, and now pod p9 too"):
        ledger.live(intent(1).name, pod(intent(1).name, "p9"))
    with pytest.raises(LedgerError, match="no lease is named nobody"):
        ledger.live("nobody", pod("nobody", "p3"))


def test_a_pod_that_was_taken_for_gone_goes_on_costing(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent(usd_h=1, hours=1))
    ledger.ended(intent().name, "gone", NOON + timedelta(hours=1))
    again = ledger.again(intent().name, "it is there")
    assert again.state == "live" and again.cost_usd is None
    assert ledger.ended(again.name, "", NOON + timedelta(hours=3)).cost_usd == pytest.approx(3)


def test_a_pod_that_no_lease_knows_is_entered_once_and_counts(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent())
    twin = pod(intent().name, "p2", 2.0)
    stray = ledger.stray(twin, "main")
    assert ledger.stray(twin, "main") == stray
    assert stray.name == f"{intent().name}~p2" and stray.run == ""
    assert ledger.stray(pod("tp-main-x", "p3"), "main").name == "tp-main-x"
    assert ledger.burn_usd_h("main") == pytest.approx(0.5 + 2.0 + 0.5)


def test_a_retry_takes_over_a_live_pod_and_the_reaper_then_leaves_it(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent())
    taken = ledger.take_over(intent().name, "another-run")
    assert (taken.run, taken.root_run, taken.state) == ("another-run", RUN, "live")
    assert ledger.ending(taken.name, "its run has ended", run=RUN).state == "live"
    assert ledger.ending(taken.name, "its run has ended", run="another-run").state == "ending"
    with pytest.raises(LedgerError, match="cannot take over"):
        ledger.take_over(taken.name, "third-run")


def test_a_run_counts_costs_of_what_ended_and_estimates_of_what_is_open(tmp_path: Path) -> None:
    clock = Clock()
    ledger = ledger_at(tmp_path, clock)
    live(ledger, "p1", intent(1, usd_h=2.0, hours=10))
    ledger.ended(intent(1).name, "lost", NOON + timedelta(minutes=30))
    retry = intent(1, usd_h=1.0, hours=4, run="feedbeef-retry", root_run=RUN)
    ledger.enter(retry, anything_goes)
    live(ledger, "p9", intent(1, run="0therrun", usd_h=9.0))
    ledger.enter(intent(7, usd_h=50), anything_goes)
    ledger.void(intent(7).name, "no capacity")

    # 2 USD/h for half an hour, 4 planned hours of the retry, nothing for what never was a pod.
    assert ledger.spent_of_run(RUN) == pytest.approx(1.0 + 4.0)
    assert {lease.name for lease in ledger.of_run(RUN)} >= {intent(1).name, retry.name}

    # Beyond its planned hours an open pod counts with what it has cost by now.
    ledger.live(retry.name, pod(retry.name, "p2", 1.0))
    clock.sleep(6 * 3600)
    assert ledger.spent_of_run(RUN) == pytest.approx(1.0 + 6.0)


def test_a_day_counts_what_ended_in_it_and_what_is_open(tmp_path: Path) -> None:
    clock = Clock(datetime(2026, 9, 13, 22, tzinfo=UTC))
    ledger = ledger_at(tmp_path, clock)
    live(ledger, "p1", intent(1, usd_h=1.0, hours=3), clock())
    ledger.ended(intent(1).name, "", datetime(2026, 9, 13, 23, 59, 59, 999_000, tzinfo=UTC))
    live(ledger, "p2", intent(2, usd_h=1.0, hours=3), clock())
    ledger.ended(intent(2).name, "", datetime(2026, 9, 14, tzinfo=UTC))
    live(ledger, "p3", intent(3, usd_h=1.0, hours=5), clock())
    live(ledger, "p4", intent(4, usd_h=1.0, deployment="other"), clock())
    clock.now = datetime(2026, 9, 14, 0, 30, tzinfo=UTC)
    ledger.enter(intent(5, usd_h=1.0, hours=7), anything_goes)

    yesterday, today = date(2026, 9, 13), date(2026, 9, 14)
    assert ledger.spent_of_day("main", yesterday) == pytest.approx(2 + 5, abs=1e-5)
    assert ledger.spent_of_day("main", today) == pytest.approx(2 + 5 + 7)
    figures = ledger.figures("main", RUN)
    assert (figures.pods, figures.burn_usd_h) == (2, pytest.approx(2.0))
    assert figures.day_usd == pytest.approx(14)
    # The other deployment's pod is half an hour past its two planned ones.
    assert figures.run_usd == pytest.approx(2 + 2 + 5 + 7 + 2.5, abs=1e-5)


@given(
    rate=st.floats(0, 100),
    first=st.timedeltas(timedelta(days=-1), timedelta(days=30)),
    more=st.timedeltas(timedelta(0), timedelta(days=30)),
)
def test_a_pod_never_costs_less_for_living_longer(
    rate: float, first: timedelta, more: timedelta
) -> None:
    assert 0 <= cost_usd(rate, NOON, NOON + first) <= cost_usd(rate, NOON, NOON + first + more)


def test_an_audit_names_each_imbalance(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    live(ledger, "p1", intent(1, usd_h=1.0))
    live(ledger, "p2", intent(2, usd_h=1.0))
    ledger.ended(intent(2).name, "", NOON + timedelta(hours=1))
    assert imbalances(ledger.leases(), {"p1"}) == []

    found = imbalances(ledger.leases(), {"p2"})
    assert "Pod p2 lives and has no open lease." in found
    assert any("is live, and its pod is not there" in one for one in found)

    with sqlite3.connect(ledger.path) as connection:
        connection.execute("UPDATE lease SET cost_usd = 0.5 WHERE pod_id = 'p2'")
    found = imbalances(ledger.leases(), {"p1"})
    assert found == [
        f"Lease {intent(2).name} cost 0.500000 USD, but its hours times its rate are 1.000000 USD."
    ]


def test_history_is_only_added_to(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    ledger.enter(intent(), anything_goes)
    with sqlite3.connect(ledger.path) as connection:
        for change in ("DELETE FROM history", "UPDATE history SET state = 'void'"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                connection.execute(change)
    assert len(ledger.history()) == 1


def test_a_check_that_refuses_leaves_no_trace(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)

    def refuse(figures: object) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        ledger.enter(intent(), refuse)
    assert ledger.leases() == [] and ledger.history() == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no database at all, but long enough to be told from an empty file" * 20, "no readable"),
        (b"SQLite format 3\0" + b"\xff" * 5000, "no readable"),
    ],
)
def test_a_damaged_file_is_said_to_be_one(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "leases.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=says) as raised:
        Ledger(path, Clock())
    assert str(path) in str(raised.value) and "RunPod's console" in str(raised.value)
    assert path.read_bytes() == content


def test_a_ledger_damaged_after_it_was_opened_is_said_to_be_so(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    for attempt in range(40):
        ledger.enter(intent(attempt), anything_goes)
    content = bytearray(ledger.path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    ledger.path.write_bytes(content)
    with pytest.raises(LedgerError, match="no readable lease ledger"):
        ledger.leases()


def test_a_newer_ledger_and_another_database_are_refused(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    with sqlite3.connect(ledger.path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(LedgerError, match=r"newer trade_pipeline \(schema 7, this one knows 1\)"):
        ledger.leases()

    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE lease (x)")
    with pytest.raises(LedgerError, match="is no lease ledger"):
        Ledger(other, Clock())


def test_a_ledger_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be used now"):
        Ledger(tmp_path, Clock())  # a folder


def test_an_intent_outlives_the_process_that_wrote_it(tmp_path: Path) -> None:
    written = FORK.Event()

    def ask() -> None:
        ledger_at(tmp_path).enter(intent(), anything_goes)
        written.set()
        time.sleep(600)  # the answer never comes

    process = FORK.Process(target=ask)
    process.start()
    assert written.wait(60)
    process.kill()
    process.join()
    [lease] = ledger_at(tmp_path).leases()
    assert lease.state == "intent" and lease.counted_usd(NOON) == pytest.approx(1.0)


def test_a_kill_at_any_moment_leaves_a_ledger_that_balances(tmp_path: Path) -> None:
    ledger = ledger_at(tmp_path)
    draw = random.Random(6)

    def work(start: int, under_way: Any) -> None:
        for attempt in range(start, start + 10_000):
            wanted = intent(attempt)
            live(ledger, f"p{attempt}", wanted)
            ledger.ending(wanted.name, "done")
            ledger.ended(wanted.name, "done", NOON + timedelta(hours=1))
            under_way.set()

    for kill in range(12):
        under_way = FORK.Event()
        process = FORK.Process(target=work, args=(10_000 * kill, under_way))
        process.start()
        assert under_way.wait(60)
        time.sleep(0.1 * draw.random())
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    leases = ledger.leases()
    still_open = [lease for lease in leases if lease.is_open]
    assert len(still_open) <= 12 <= len(leases) - len(still_open)
    pods = {lease.pod_id for lease in still_open if lease.pod_id}
    orphans = [lease for lease in still_open if lease.pod_id is None]
    assert len(imbalances(leases, pods)) == len(orphans)
    last = {step.name: step.state for step in ledger.history()}
    assert last == {lease.name: lease.state for lease in leases}
    with sqlite3.connect(ledger.path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_many_processes_make_and_use_one_ledger_at_once(tmp_path: Path) -> None:
    start = FORK.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        ledger = ledger_at(tmp_path)  # which all of them make
        for attempt in range(10):
            live(ledger, f"p{number}-{attempt}", intent(100 * number + attempt))

    processes = [FORK.Process(target=work, args=(number,)) for number in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert len({lease.pod_id for lease in ledger_at(tmp_path).leases()}) == 80
