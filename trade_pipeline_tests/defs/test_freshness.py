"""The check `fresh` as its own job evaluates it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import yaml

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.storage import layout
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, bars, materialize, write_yaml


def allow(deployment: Deployment, **hours: float) -> None:
    """Set `stale_after_hours` of series, by the name of their file."""
    path = deployment.places.configs / "series.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for entry in settings["series"]:
        for name, allowed in hours.items():
            if name in entry["source"]["path"]:
                entry["stale_after_hours"] = allowed
    write_yaml(path, settings)


def evaluate(deployment: Deployment) -> tuple[dg.AssetCheckEvaluation, dict[str, dict[str, Any]]]:
    """What the job says: its one evaluation, and the table by series."""
    job = build_definitions(deployment.places).resolve_job_def("check_freshness")
    result = job.execute_in_process(instance=deployment.instance)
    assert result.success, "a stale series is a warning"
    assert not result.get_asset_materialization_events()
    (evaluation,) = result.get_asset_check_evaluations()
    table = evaluation.metadata["series"]
    assert isinstance(table, dg.TableMetadataValue)
    return evaluation, {str(row.data["series"]): dict(row.data) for row in table.records}


def test_a_series_that_states_nothing_is_history(imported: Deployment) -> None:
    evaluation, rows = evaluate(imported)
    assert evaluation.passed
    assert {row["verdict"] for row in rows.values()} == {"history: never stale"}
    assert rows[ALPHA]["last_bar"] == "2022-09-26 00:00 UTC"
    assert rows[ALPHA]["hours_overdue"] is None


def test_a_dead_series_is_named_beside_living_ones(imported: Deployment) -> None:
    days, began = 30, datetime.now(UTC)
    first = began.date() - timedelta(days)
    bars(1, days, first).write_csv(imported.root / "data" / "alpha.csv")
    allow(imported, alpha=48, beta=48)
    for year in {first.year, began.year}:
        this = f"{ALPHA}|{year}"
        assert materialize(imported.places, imported.instance, "ohlcv", first=this).success

    evaluation, rows = evaluate(imported)
    yesterdays = {f"{at - timedelta(1):%Y-%m-%d} 00:00 UTC" for at in (began, datetime.now(UTC))}
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert evaluation.metadata["stale_series"].value == 1
    assert {key: row["verdict"] for key, row in rows.items()} == {ALPHA: "fresh", BETA: "stale"}
    assert list(rows) == [BETA, ALPHA], "the worst first"
    dead = rows[BETA]
    assert dead["last_bar"] == "2022-09-26 00:00 UTC"
    assert dead["expected"] in yesterdays
    since = datetime.now(UTC) - datetime(2022, 9, 28, tzinfo=UTC)
    assert abs(dead["hours_overdue"] - since / timedelta(hours=1)) < 1
    assert dead["hours_allowed"] == 48
    assert rows[ALPHA]["hours_overdue"] < 1, "none, or midnight has just passed"


def test_what_was_never_imported_is_stale(empty: Deployment) -> None:
    allow(empty, alpha=48)
    evaluation, rows = evaluate(empty)
    assert not evaluation.passed
    assert (rows[ALPHA]["last_bar"], rows[ALPHA]["verdict"]) == ("none", "stale")
    assert rows[BETA]["last_bar"] == "none"


def test_a_damaged_file_is_named_and_the_others_are_judged(imported: Deployment) -> None:
    allow(imported, alpha=48, beta=48)
    location = layout.ohlcv(imported.places.store, ALPHA, 2026)
    for path in location.path.parent.glob("*.parquet"):
        path.write_bytes(b"damaged on the disk")
    evaluation, rows = evaluate(imported)
    assert not evaluation.passed
    assert evaluation.metadata["stale_series"].value == 2
    assert "cannot be read" in rows[ALPHA]["verdict"]
    assert str(location.path.parent) in rows[ALPHA]["verdict"]
    assert rows[BETA]["verdict"] == "stale"


def test_an_import_evaluates_it_too_and_is_not_failed_by_it(imported: Deployment) -> None:
    allow(imported, beta=48)
    result = materialize(imported.places, imported.instance, "ohlcv", first=f"{BETA}|2022")
    assert result.success
    named = {one.check_name: one.passed for one in result.get_asset_check_evaluations()}
    assert named["fresh"] is False


def test_the_schedule_is_hourly_and_off_until_somebody_turns_it_on(empty: Deployment) -> None:
    schedule = build_definitions(empty.places).resolve_schedule_def("check_freshness_hourly")
    assert schedule.job_name == "check_freshness"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    minute, *others = str(schedule.cron_schedule).split()
    assert minute.isdigit()
    assert others == ["*"] * 4
