"""Pods in Dagster: the sensor that reaps, and what is seen of their cost. RunPod is on loopback."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from trade_pipeline.compute.runpod.errors import PodMayStillBeBilling, RunPodError
from trade_pipeline.compute.runpod.plan import volume_usd_month
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.defs.pod_costs import COSTS, spent
from trade_pipeline.defs.pods import build_reaper, run_states, runpod_computes
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock, read_frame
from trade_pipeline_tests.compute.runpod.leases import anything_goes, intent
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.pod_hosts import PodHost, fresh_host
from trade_pipeline_tests.small_project import materialize

HOUR = timedelta(hours=1)
GONE_RUN = "00000000-0000-4000-8000-000000000000"
Status = dg.DagsterRunStatus


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodHost]:
    with fresh_host(tmp_path / "project", monkeypatch) as host:
        yield host


class Reaper:
    """The sensor of a project, ticked by hand; it does not wait between attempts."""

    def __init__(self, host: PodHost, tick_s: float = 40.0) -> None:
        self.host = host
        computes = runpod_computes(read_project(host.deployment.places.configs))
        self.sensor = build_reaper(computes, host.store, sleep=lambda seconds: None, tick_s=tick_s)

    def tick(self) -> str:
        """What the tick says."""
        with dg.build_sensor_context(instance=self.host.deployment.instance) as context:
            found = self.sensor.evaluate_tick(context)
        assert not found.run_requests
        assert found.skip_message is not None
        assert not any(secret in found.skip_message for secret in self.host.secrets)
        return found.skip_message


def failed_tick(reaper: Reaper) -> BaseException:
    """Why a tick is red."""
    with pytest.raises(Exception) as caught:
        reaper.tick()
    text = str(caught.value) + str(caught.value.__cause__)
    assert not any(secret in text for secret in reaper.host.secrets)
    return caught.value.__cause__ or caught.value


# What a project gets.


def test_a_project_without_runpod_has_none_of_it(empty: Deployment) -> None:
    definitions = build_definitions(empty.places)
    keys = {one.to_user_string() for one in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert not keys & {"pod_costs", "volume_storage"}
    assert "pods_reaper" not in [sensor.name for sensor in definitions.sensors or []]


def test_a_project_with_runpod_reaps_from_the_start_and_measures_when_asked(
    host: PodHost,
) -> None:
    definitions = build_definitions(host.deployment.places)
    sensor = definitions.resolve_sensor_def("pods_reaper")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds == 60
    schedule = definitions.resolve_schedule_def("measure_pods_daily")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    job = definitions.resolve_job_def(schedule.job_name)
    names = {node.name for node in job.nodes}
    assert names == {"pod_costs", "volume_storage", "volume_storage_size"}
    for name in ("pod_costs", "volume_storage"):
        node = definitions.resolve_asset_graph().get(dg.AssetKey(name))
        assert (node.group_name, node.parent_keys) == ("operations", set())
    dg.Definitions.validate_loadable(definitions)


def test_loading_asks_nothing_of_runpod_and_touches_no_store(host: PodHost) -> None:
    definitions = build_definitions(host.deployment.places)
    definitions.resolve_asset_graph()
    assert host.fake.seen == [] and not host.store.exists()


def test_two_files_that_share_a_deployment_get_one_reaper(host: PodHost) -> None:
    host.compute("second")
    definitions = build_definitions(host.deployment.places)
    assert [one.name for one in definitions.sensors or []].count("pods_reaper") == 1
    pod = host.ask(host.run(Status.FAILURE))
    assert "terminated" in Reaper(host).tick() and pod.id not in host.live
    assert len(host.fake.operations("list")) == 1


# The sensor.


def test_without_a_key_the_tick_says_what_to_set_and_asks_nothing(
    host: PodHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    message = Reaper(host).tick()
    assert "RUNPOD_API_KEY" in message and "configs/compute/runpod.yaml" in message
    assert host.fake.seen == [] and not layout.leases(host.store).exists()


def test_where_no_pod_lives_the_tick_says_so(host: PodHost) -> None:
    assert Reaper(host).tick() == "No pod lives that nobody needs."


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.FAILURE, Status.CANCELED])
def test_the_pod_of_a_run_that_has_ended_goes(host: PodHost, status: Status) -> None:
    run = host.run(status)
    pod = host.ask(run)
    message = Reaper(host).tick()
    assert all(word in message for word in ("terminated", pod.id, run, "has ended", "USD"))
    assert host.live == set() and host.lease(pod).state == "ended"


@pytest.mark.parametrize(
    "status", [Status.NOT_STARTED, Status.STARTING, Status.STARTED, Status.CANCELING]
)
def test_the_pod_of_a_run_that_goes_on_stays(host: PodHost, status: Status) -> None:
    pod = host.ask(host.run(status), ago=HOUR)
    host.beat(pod, timedelta())
    with frame_lock(layout.pod_lock(host.store, host.lease(pod).job)):
        assert Reaper(host).tick() == "No pod lives that nobody needs."
    assert host.live == {pod.id}


def test_the_pod_of_a_run_whose_process_is_gone_goes_after_ten_minutes(host: PodHost) -> None:
    """Dagster takes a run that was killed outside its daemon for one that goes on."""
    run = host.run(Status.STARTED)
    young, old = (host.ask(run, ago=timedelta(minutes=ago)) for ago in (9, 11))
    message = Reaper(host).tick()
    assert "waits for it any more" in message and old.id in message
    assert host.live == {young.id}


def test_the_pod_of_an_unknown_run_goes_after_ten_minutes(host: PodHost) -> None:
    young = host.ask(GONE_RUN, ago=timedelta(minutes=9))
    old = host.ask(GONE_RUN, ago=timedelta(minutes=11))
    message = Reaper(host).tick()
    assert "is not known" in message and old.id in message and young.id not in message
    assert host.live == {young.id}


def test_states_of_runs_are_read_at_once(host: PodHost) -> None:
    ended, running = host.run(Status.CANCELED), host.run(Status.STARTED)
    found = run_states(host.deployment.instance, {ended, running, GONE_RUN, ""})
    assert found == {ended: "ended", running: "running", GONE_RUN: "unknown"}
    assert run_states(host.deployment.instance, set()) == {}


def test_pods_of_others_are_left_alone(host: PodHost) -> None:
    others = {host.make(name).id for name in ("notebook", "tp-other-01234567-5d3f9a1c-1")}
    Reaper(host).tick()
    assert host.live == others and host.fake.operations("delete") == []


def test_a_pod_that_has_gone_silent_goes(host: PodHost) -> None:
    run = host.run(Status.STARTED)
    silent, speaks = host.ask(run, hours=9.0), host.ask(run, hours=9.0)
    host.beat(silent, timedelta(minutes=45))
    host.beat(speaks, timedelta(minutes=5))
    message = Reaper(host).tick()
    assert "last heartbeat" in message and silent.id in message
    assert host.live == {speaks.id}


def test_a_heartbeat_counts_on_whichever_exchange_of_the_deployment_it_lies(
    host: PodHost,
) -> None:
    other = host.fake.add_volume("EU-RO-1", name="other")
    host.compute("second", exchange={"kind": "volume", "id": other.id})
    host.compute("third", exchange={"kind": "volume", "id": "your-volume-id"})
    pod = host.ask(host.run(Status.STARTED))
    host.beat(pod, timedelta(minutes=5), other)
    host.beat(pod, timedelta(minutes=45))
    assert pod.id not in (message := Reaper(host).tick())
    assert "compute third" in message and "your-volume-id" in message
    assert host.live == {pod.id}


def test_where_no_heartbeat_can_be_read_the_other_rules_hold(
    host: PodHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_S3_SECRET_ACCESS_KEY")
    silent = host.ask(host.run(Status.STARTED))
    host.beat(silent, timedelta(minutes=45))
    ended = host.ask(host.run(Status.SUCCESS))
    message = Reaper(host).tick()
    assert "RUNPOD_S3_SECRET_ACCESS_KEY" in message and ended.id in message
    assert host.live == {silent.id}


def test_an_exchange_that_refuses_is_asked_once_a_tick(host: PodHost) -> None:
    host.fake.faults.plan("forbidden", on="s3:HeadObject", times=None)
    run = host.run(Status.STARTED)
    pods = {host.ask(run).id, host.ask(run).id}
    assert "heartbeats of compute runpod could not be read" in Reaper(host).tick()
    # For one pod only: each attempt at an exchange that does not answer may take half a minute.
    assert len({one.path for one in host.fake.operations("s3:HeadObject")}) == 1
    assert host.live == pods


def test_a_pod_whose_clock_is_wrong_lives_as_long_as_its_heartbeats_come(host: PodHost) -> None:
    pod = host.ask(host.run(Status.STARTED))
    host.beat(pod, timedelta())
    lease = host.lease(pod)
    path = host.volume.path / f"trade_pipeline/jobs/{lease.job}/{lease.name}/heartbeat.json"
    path.write_text('{"seq": 1, "ts_ms": 0}', encoding="utf-8")
    Reaper(host).tick()
    assert host.live == {pod.id}


def test_a_pod_that_resists_makes_the_tick_red_after_all_others_were_looked_at(
    host: PodHost,
) -> None:
    run = host.run(Status.FAILURE)
    host.fake.faults.plan("terminate_ignored", pod="*-1")
    resists, goes = host.ask(run), host.ask(run)
    reaper = Reaper(host)
    error = failed_tick(reaper)
    assert isinstance(error, PodMayStillBeBilling) and error.pod_id == resists.id
    assert all(word in str(error) for word in (resists.id, "console", f"pod {goes.id}"))
    assert host.live == {resists.id}
    assert isinstance(failed_tick(reaper), PodMayStillBeBilling), "and red until it is gone"
    host.fake.pod(resists.id).faults.clear()  # type: ignore[attr-defined]
    assert "terminated" in reaper.tick() and host.live == set()


def test_a_refused_key_makes_the_tick_red_and_says_why(host: PodHost) -> None:
    host.fake.faults.plan("unauthorized", on="list")
    reaper = Reaper(host)
    error = failed_tick(reaper)
    assert isinstance(error, RunPodError) and "AccessDenied" in str(error)
    assert reaper.tick() == "No pod lives that nobody needs.", "the next tick is not disturbed"


def test_a_round_that_outlasts_its_tick_goes_on_and_is_told_of_later(host: PodHost) -> None:
    seen = threading.Event()
    host.fake.faults.plan("slow", on="delete", seconds=60.0, until=seen)
    pod = host.ask(host.run(Status.SUCCESS))
    reaper = Reaper(host, tick_s=0.05)
    assert "still being looked at" in reaper.tick()
    assert host.live == {pod.id}
    seen.set()
    deadline = time.monotonic() + 60
    while "still being looked at" in (message := reaper.tick()):
        assert time.monotonic() < deadline
    assert "terminated" in message and pod.id in message and host.live == set()
    assert len(host.fake.operations("delete")) == 1, "one round, however many ticks"


# What it costs.


def numbers(host: PodHost, asset: str) -> dict[str, object]:
    """Metadata of the newest materialization of an asset."""
    event = host.deployment.instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None and event.asset_materialization is not None
    return {key: value.value for key, value in event.asset_materialization.metadata.items()}


def measured(host: PodHost, asset: str) -> tuple[pl.DataFrame, dict[str, object]]:
    """Materialize; the stored table and the metadata."""
    places, instance = host.deployment.places, host.deployment.instance
    assert materialize(places, instance, asset).success
    return read_frame(getattr(layout, asset)(host.store)), numbers(host, asset)


def test_each_pod_has_a_row_with_what_it_cost_and_what_was_billed(host: PodHost) -> None:
    host.fake.timing.billing_lag_s = 0.0
    trials = host.run(Status.SUCCESS)
    ended = host.ask(trials)
    time.sleep(0.5)
    Reaper(host).tick()
    lives = host.ask(GONE_RUN)
    table, told = measured(host, "pod_costs")
    assert table.schema == pl.Schema(COSTS)
    rows = {row["pod_id"]: row for row in table.iter_rows(named=True)}
    assert set(rows) == {ended.id, lives.id}
    row = rows[ended.id]
    assert (row["run"], row["experiment"], row["gpu"]) == (trials, "alone", "NVIDIA L4")
    lease = host.lease(ended)
    assert row["ledger_usd"] == lease.cost_usd == pytest.approx(row["hours"] * row["usd_h"])
    (billed,) = [one.usd for one in host.fake.charges if one.pod_id == ended.id]
    assert row["billed_usd"] == pytest.approx(billed)
    assert row["difference_usd"] == pytest.approx(billed - lease.cost_usd)
    assert rows[lives.id]["experiment"] == "" and rows[lives.id]["ended"] is None
    everything = table["ledger_usd"].sum()
    since_midnight = rows[lives.id]["ledger_usd"]  # where it came between the two pods
    for total in (told["USD today"], told["USD this month"]):
        assert total in (pytest.approx(everything), pytest.approx(since_midnight))
    assert all(pod.id in str(told["pods"]) for pod in (ended, lives))


def test_what_was_not_billed_yet_is_open_and_not_zero(host: PodHost) -> None:
    host.ask(GONE_RUN)  # the fake's bill lags by an hour, as RunPod's does
    table, _ = measured(host, "pod_costs")
    assert table["billed_usd"].to_list() == table["difference_usd"].to_list() == [None]


def test_an_intent_has_no_row_and_no_pod_gives_an_empty_table(host: PodHost) -> None:
    host.ledger().enter(intent(), anything_goes)
    table, told = measured(host, "pod_costs")
    assert table.is_empty() and told["USD today"] == 0.0


def test_a_pod_counts_for_the_day_on_which_it_ends() -> None:
    midnight = datetime(2026, 10, 2, tzinfo=UTC)

    def row(ended: datetime | None, usd: float) -> dict[str, object]:
        return {**dict.fromkeys(COSTS), "ended": ended, "ledger_usd": usd}

    rows = [row(midnight - HOUR, 1.0), row(midnight + HOUR, 2.0), row(None, 4.0)]
    table = pl.DataFrame(rows, schema=COSTS)
    assert spent(table, midnight) == 6.0
    assert spent(table, midnight.replace(day=1)) == 7.0


def test_the_volume_of_a_compute_is_measured_by_what_is_allocated(host: PodHost) -> None:
    host.compute("second")
    host.fake.add_volume("EU-CZ-1", size_gb=2000, name="of somebody else")
    table, told = measured(host, "volume_storage")
    assert table.rows() == [(host.volume.id, "exchange", "EU-RO-1", 50, volume_usd_month(50))]
    assert (told["GB"], told["USD a month"]) == (50, pytest.approx(3.5))


@pytest.mark.parametrize(("size_gb", "passed"), [(899, True), (900, False)])
def test_a_volume_near_a_terabyte_is_warned_of(host: PodHost, size_gb: int, passed: bool) -> None:
    volume = host.fake.add_volume("EU-RO-1", size_gb=size_gb, name="large")
    host.compute(exchange={"kind": "volume", "id": volume.id})
    places, instance = host.deployment.places, host.deployment.instance
    result = materialize(places, instance, "volume_storage")
    assert result.success, "a warning stops nothing"
    (check,) = result.get_asset_check_evaluations()
    assert check.passed == passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert passed or volume.id in str(check.metadata["alerts"].value)


def test_without_a_key_the_assets_fail_with_what_to_set(
    host: PodHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    result = materialize(host.deployment.places, host.deployment.instance, "pod_costs")
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "RUNPOD_API_KEY is not set" in str(failure.event_specific_data)
