"""The launchpad's jobs: a range is imported or removed, and Dagster knows what became of it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import dagster as dg
import polars as pl
import yaml
from dagster._core.definitions.data_version import StaleStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.market.pruning import prune
from trade_pipeline.market.sources.base import year_interval
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.project import Places, read_project
from trade_pipeline.storage import layout
from trade_pipeline_tests.defs.staleness import stale, statuses, version
from trade_pipeline_tests.defs.test_bad_input import failure_text, spoil, stored_bytes
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, materialize

OHLCV = dg.AssetKey("ohlcv")
CHECKS = ("valid_bars", "gaps", "outliers", "source_differences")


@cache
def definitions(places: Places) -> dg.Definitions:
    """Built once a test: no test here edits a configuration."""
    return build_definitions(places)


def job(
    deployment: Deployment, name: str, config: Mapping[str, object]
) -> dg.ExecuteInProcessResult:
    """Run a job with the config of its one op, as the launchpad sends it."""
    op = {"backfill_bars": "backfill", "prune_bars": "prune"}[name]
    return (
        definitions(deployment.places)
        .resolve_job_def(name)
        .execute_in_process(
            instance=deployment.instance,
            run_config={"ops": {op: {"config": config}}},
            raise_on_error=False,
        )
    )


def backfill(
    deployment: Deployment, *series: str, start: str = "2020-01-01", **config: str
) -> dg.ExecuteInProcessResult:
    return job(deployment, "backfill_bars", {"series": list(series), "from": start, **config})


def pruned(
    deployment: Deployment, *series: str, start: str = "2020-01-01", **config: object
) -> dg.ExecuteInProcessResult:
    config = {"confirm": True, **config}
    return job(deployment, "prune_bars", {"series": list(series), "from": start, **config})


def event(deployment: Deployment, partition: str) -> dg.AssetMaterialization:
    """Latest materialization of a partition of ohlcv."""
    wanted = dg.AssetRecordsFilter(asset_key=OHLCV, asset_partitions=[partition])
    record = deployment.instance.fetch_materializations(wanted, limit=1).records[0]
    assert record.asset_materialization is not None
    return record.asset_materialization


def materialized(result: dg.ExecuteInProcessResult) -> list[str | None]:
    return [one.materialization.partition for one in result.get_asset_materialization_events()]


def said(deployment: Deployment, result: dg.ExecuteInProcessResult) -> list[str]:
    """Messages of a run's log, in order."""
    return [log.user_message for log in deployment.instance.all_logs(result.run_id)]


def check_status(deployment: Deployment, check: str) -> tuple[str, AssetCheckExecutionRecordStatus]:
    """Run and status of a check's latest result, as the web UI asks for it."""
    key = dg.AssetCheckKey(OHLCV, check)
    storage = deployment.instance.event_log_storage
    record = storage.get_latest_asset_check_execution_by_key([key])[key]
    return record.run_id, record.status


def test_a_backfill_records_what_the_asset_itself_would(imported: Deployment) -> None:
    partition = f"{ALPHA}|2021"
    by_asset = event(imported, partition)
    result = backfill(imported, ALPHA, start="2021-01-01", to="2022-01-01")
    assert result.success, failure_text(result)
    assert materialized(result) == [partition]
    assert statuses(imported)[f"ohlcv|{partition}"] == StaleStatus.FRESH
    assert stale(imported) == set()

    assert materialize(imported.places, imported.instance, "ohlcv", first=partition).success
    again = event(imported, partition)
    by_job = next(iter(result.get_asset_materialization_events())).materialization
    assert by_job.tags == again.tags, "data version, code version and dimensions"
    assert set(by_job.metadata) <= set(again.metadata)
    assert by_job.metadata["content_hash"] == by_asset.metadata["content_hash"]


def test_an_empty_project_is_filled_by_a_backfill(empty: Deployment) -> None:
    result = backfill(empty, BETA, ALPHA, start="2021-06-01", to="2022-02-01")
    assert result.success, failure_text(result)
    partitions = [f"{key}|{year}" for key in (BETA, ALPHA) for year in (2021, 2022)]
    assert materialized(result) == partitions
    assert empty.instance.get_materialized_partitions(OHLCV) == set(partitions)
    assert len({version(empty, "ohlcv", one) for one in partitions}) == 4
    for one in partitions:
        assert statuses(empty)[f"ohlcv|{one}"] == StaleStatus.FRESH
    assert materialize(empty.places, empty.instance, "manifest", first=ALPHA, last=BETA).success


def test_other_bars_make_stale_what_was_made_from_them(imported: Deployment) -> None:
    before = version(imported, "ohlcv", f"{BETA}|2021")
    spoil(imported.root / "data" / "beta.csv", 100, volume=7.0)
    assert backfill(imported, BETA, start="2021-01-01").success
    assert version(imported, "ohlcv", f"{BETA}|2021") != before
    assert stale(imported) == {f"manifest|{BETA}", f"features/tiny|{BETA}"}


def test_the_plan_is_told_before_anything_is_fetched(imported: Deployment) -> None:
    result = backfill(imported, ALPHA, start="2021-03-01T06:00", to="2021-06-01", route="file")
    plan = "file 2021-03-01 06:00 to 2021-06-01 00:00 UTC"
    assert event(imported, f"{ALPHA}|2021").metadata["plan"].value == plan
    messages = said(imported, result)
    first_event = next(n for n, text in enumerate(messages) if text.startswith("Materialized"))
    assert messages.index(f"{ALPHA}: plan: {plan}") < first_event


def test_times_may_name_their_zone(imported: Deployment) -> None:
    result = backfill(imported, ALPHA, start="2021-03-01T06:00+02:00", to="2021-06-01T00:00Z")
    assert result.success
    plan = event(imported, f"{ALPHA}|2021").metadata["plan"].value
    assert plan == "file 2021-03-01 04:00 to 2021-06-01 00:00 UTC"


def test_the_checks_of_the_bars_are_reported(imported: Deployment) -> None:
    result = backfill(imported, ALPHA)
    succeeded = (result.run_id, AssetCheckExecutionRecordStatus.SUCCEEDED)
    assert {check_status(imported, check) for check in CHECKS} == {succeeded}

    spoil(imported.root / "data" / "alpha.csv", 100, close=0.01)
    result = backfill(imported, ALPHA)
    failed = (result.run_id, AssetCheckExecutionRecordStatus.FAILED)
    assert check_status(imported, "valid_bars") == failed
    (found,) = [x for x in result.get_asset_check_evaluations() if x.check_name == "valid_bars"]
    assert found.metadata["partitions_refused"].value == [f"{ALPHA}|2020"]
    assert found.metadata["first_bad_rows"].records[0].data["row"] == "102"
    # The asset's own run says so too, until the partition is imported well.
    again = materialize(imported.places, imported.instance, "ohlcv", first=f"{BETA}|2021")
    assert check_status(imported, "valid_bars") == (again.run_id, failed[1])


def test_of_a_source_that_fails_the_rest_is_recorded(empty: Deployment) -> None:
    spoil(empty.root / "data" / "alpha.csv", 500, high=0.01)
    result = backfill(empty, ALPHA, BETA, start="2021-01-01", to="2023-01-01")
    assert not result.success
    text = failure_text(result)
    assert all(word in text for word in (f"{ALPHA}|2021", "alpha.csv", "502", "high")), text
    assert empty.instance.get_materialized_partitions(OHLCV) == {
        f"{ALPHA}|2022",
        f"{BETA}|2021",
        f"{BETA}|2022",
    }


def test_what_an_interrupted_import_stored_is_recorded(empty: Deployment) -> None:
    # The bars are stored, then the verdicts cannot be, which no source foresees.
    empty.places.store.mkdir()
    (empty.places.store / "verdicts").write_text("")
    result = backfill(empty, ALPHA, start="2020-01-01", to="2021-01-01")
    assert not result.success
    location = layout.ohlcv(empty.places.store, ALPHA, 2020)
    assert read_partition(location).bars.height == 366
    found = event(empty, f"{ALPHA}|2020")
    assert found.metadata["dagster/row_count"].value == 366

    (empty.places.store / "verdicts").unlink()
    assert backfill(empty, ALPHA, start="2020-01-01", to="2021-01-01").success
    assert version(empty, "ohlcv", f"{ALPHA}|2020") == found.metadata["content_hash"].value


REFUSED: dict[str, tuple[dict[str, object], list[str]]] = {
    "no series": ({"series": []}, ["series is empty", ALPHA, BETA]),
    "unknown series": ({"series": [ALPHA, "made.BETTA.1d"]}, ["made.BETTA.1d", BETA]),
    "unknown route": ({"route": "fiel"}, [ALPHA, "'fiel'", "'file'"]),
    "route of another source": ({"route": "trades"}, [ALPHA, "'trades'", "file"]),
    "no date": ({"from": "yesterday"}, ["from", "'yesterday'", "2024-01-31"]),
    "no date at all": ({"from": ""}, ["from", "2024-01-31"]),
    "impossible date": ({"to": "2021-02-30"}, ["to", "2021-02-30"]),
    "ends before it starts": (
        {"from": "2021-06-01", "to": "2021-05-01"},
        ["2021-06-01 00:00 UTC", "2021-05-01 00:00 UTC", "before"],
    ),
    "is empty": ({"from": "2021-06-01", "to": "2021-06-01"}, ["2021-06-01", "before"]),
    "starts in the future": ({"from": "2190-01-01"}, ["2190-01-01", "before"]),
    "before the series begins": (
        {"series": [ALPHA, BETA], "from": "2020-06-01"},
        ["2020-06-01", BETA, "2021"],
    ),
}


def test_a_wrong_request_is_one_sentence_and_touches_nothing(imported: Deployment) -> None:
    before = stored_bytes(imported)
    for case, (config, words) in REFUSED.items():
        asked = {"series": [ALPHA], "from": "2021-01-01", **config}
        jobs = {"backfill_bars": asked}
        if "route" not in config:
            jobs["prune_bars"] = {**asked, "confirm": True}
        for name, one in jobs.items():
            result = job(imported, name, one)
            text = failure_text(result)
            assert not result.success, (case, name)
            assert all(word in text for word in words), (case, name, text)
            assert materialized(result) == [], (case, name)
            (failed,) = [event for event in result.all_events if event.is_step_failure]
            assert failed.step_failure_data.user_failure_data is not None, (case, name)
    assert stored_bytes(imported) == before


def test_an_end_in_the_future_is_cut_to_now(imported: Deployment) -> None:
    result = backfill(imported, ALPHA, start="2022-01-01", to="2190-01-01")
    assert result.success
    assert [one for one in said(imported, result) if "2190-01-01" in one and "cut to" in one]
    assert materialized(result)[0] == f"{ALPHA}|2022"


def test_what_the_launchpad_starts_with_can_be_launched(empty: Deployment) -> None:
    found = (
        definitions(empty.places)
        .resolve_job_def("backfill_bars")
        .execute_in_process(instance=empty.instance, raise_on_error=False)
    )
    assert found.success, failure_text(found)
    refused = (
        definitions(empty.places)
        .resolve_job_def("prune_bars")
        .execute_in_process(instance=empty.instance, raise_on_error=False)
    )
    assert not refused.success


def test_every_field_of_the_launchpad_is_described(empty: Deployment) -> None:
    for name, op in (("backfill_bars", "backfill"), ("prune_bars", "prune")):
        fields = (
            definitions(empty.places)
            .resolve_job_def(name)
            .get_node_named(op)
            .definition.config_field
        )
        described = fields.config_type.fields
        assert {"series", "from", "to"} <= set(described)
        assert all(field.description for field in described.values())


def test_nothing_is_pruned_without_a_word(imported: Deployment) -> None:
    before = stored_bytes(imported)
    for config in ({"confirm": False}, {"to": "2021-01-01", "confirm": False}):
        result = pruned(imported, ALPHA, **config)
        assert not result.success
        assert "confirm: true" in failure_text(result)
        assert ALPHA in failure_text(result)
    assert stored_bytes(imported) == before


def test_a_pruned_range_is_gone_and_known_to_be(imported: Deployment) -> None:
    store = imported.places.store
    beta = layout.ohlcv(store, BETA, 2021).path.read_bytes()
    before = version(imported, "ohlcv", f"{ALPHA}|2021")
    result = pruned(imported, ALPHA, start="2021-03-01", to="2022-02-01")
    assert result.success, failure_text(result)
    assert materialized(result) == [f"{ALPHA}|2021", f"{ALPHA}|2022"]
    assert any("337 bars removed" in one for one in said(imported, result))  # 306 and 31 days
    left = read_partition(layout.ohlcv(store, ALPHA, 2021)).bars
    assert left.height == 31 + 28
    found = event(imported, f"{ALPHA}|2021")
    assert found.metadata["dagster/row_count"].value == 59
    assert found.metadata["removed_bars"].value == 306
    assert version(imported, "ohlcv", f"{ALPHA}|2021") != before
    assert layout.ohlcv(store, BETA, 2021).path.read_bytes() == beta
    assert stale(imported) == {f"manifest|{ALPHA}", f"features/tiny|{ALPHA}"}
    assert check_status(imported, "gaps")[0] == result.run_id

    again = pruned(imported, ALPHA, start="2021-03-01", to="2022-02-01")
    assert again.success
    assert materialized(again) == [], "what is gone is not removed twice"


def test_a_range_that_cuts_bars_is_widened_and_the_log_says_what_went(
    imported: Deployment,
) -> None:
    before = stored_bytes(imported)
    cut = {"start": "2021-03-01T06:00", "to": "2021-03-04T12:00"}
    whole = f"{ALPHA} from 2021-03-01 00:00 UTC to 2021-03-05 00:00 UTC"
    assert whole in failure_text(pruned(imported, ALPHA, confirm=False, **cut))
    result = pruned(imported, ALPHA, **cut)
    assert result.success, failure_text(result)
    messages = said(imported, result)
    went = f"{ALPHA}: bars {whole.removeprefix(ALPHA).strip()} are removed"
    assert f"{went}, widened to whole bars" in messages
    assert f"{ALPHA}|2021: 4 bars removed, 361 left" in messages
    source = event(imported, f"{ALPHA}|2021").metadata["source"].value
    assert source == "prune_bars from 2021-03-01 00:00 UTC to 2021-03-05 00:00 UTC"
    job_definition = definitions(imported.places).resolve_job_def("prune_bars")
    assert "widened to whole bars" in (job_definition.description or "")

    assert backfill(imported, ALPHA, start="2021-01-01", to="2022-01-01").success
    assert stored_bytes(imported) == before
    exact = pruned(imported, ALPHA, start="2021-03-01", to="2021-03-05")
    assert f"{went}" in said(imported, exact)


def test_a_backfill_after_pruning_ends_with_the_bytes_of_before(imported: Deployment) -> None:
    before = stored_bytes(imported)
    versions = {year: version(imported, "ohlcv", f"{ALPHA}|{year}") for year in (2020, 2021, 2022)}
    assert pruned(imported, ALPHA).success
    for year in versions:
        assert read_partition(layout.ohlcv(imported.places.store, ALPHA, year)).bars.is_empty()
    assert backfill(imported, ALPHA).success
    assert stored_bytes(imported) == before
    assert {year: version(imported, "ohlcv", f"{ALPHA}|{year}") for year in versions} == versions
    assert stale(imported) == set()


def test_a_prune_that_was_killed_is_recorded_by_the_next(imported: Deployment) -> None:
    store, series = imported.places.store, read_project(imported.places.configs).series[ALPHA]
    assert prune(store, series, 2021, year_interval(2021)) is not None  # and then the kill
    result = pruned(imported, ALPHA, start="2021-01-01", to="2022-01-01")
    assert materialized(result) == [f"{ALPHA}|2021"]
    assert event(imported, f"{ALPHA}|2021").metadata["dagster/row_count"].value == 0
    assert f"manifest|{ALPHA}" in stale(imported)


def test_a_damaged_partition_is_repaired_by_pruning_and_a_backfill(imported: Deployment) -> None:
    before = stored_bytes(imported)
    path = layout.ohlcv(imported.places.store, ALPHA, 2021).path
    path.write_bytes(path.read_bytes()[:-100])
    assert not backfill(imported, ALPHA, start="2021-01-01", to="2022-01-01").success
    assert pruned(imported, ALPHA, start="2021-01-01", to="2022-01-01").success
    assert backfill(imported, ALPHA, start="2021-01-01", to="2022-01-01").success
    assert stored_bytes(imported) == before
    assert stale(imported) == set()


def command_line(deployment: Deployment, *options: str) -> subprocess.CompletedProcess[str]:
    """`dagster job` as a user runs it."""
    home = deployment.root / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump({"telemetry": {"enabled": False}}))
    return subprocess.run(
        [sys.executable, "-m", "dagster", "job", *options],
        env={
            **os.environ,
            "DAGSTER_HOME": str(home),
            "TRADE_PIPELINE_CONFIGS": str(deployment.places.configs),
            "TRADE_PIPELINE_STORE": str(deployment.places.store),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_line_runs_a_backfill_from_a_file(empty: Deployment, tmp_path: Path) -> None:
    config = tmp_path / "backfill.yaml"
    # Dates without quotes, as people write them.
    config.write_text(
        f"ops: {{backfill: {{config: {{series: [{ALPHA}], from: 2021-01-01, to: 2022-01-01}}}}}}"
    )
    module = ["-m", "trade_pipeline.definitions", "-j", "backfill_bars"]
    done = command_line(empty, "execute", *module, "-c", str(config))
    assert done.returncode == 0, done.stdout + done.stderr
    assert pl.read_parquet(layout.ohlcv(empty.places.store, ALPHA, 2021).path).height == 365
