"""The lineage over a small project: versions, staleness, new years, late series."""

import os
import re
from datetime import UTC, datetime

import dagster as dg
import numpy as np
import polars as pl
import pytest
from dagster._core.definitions.data_version import StaleStatus
from safetensors.numpy import load_file

from trade_pipeline.defs.partitions import Partitions
from trade_pipeline.market.stored import read_partition
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.defs.staleness import stale, statuses, version
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, import_bars, materialize

TRIALS = [f"base.f{fold}.s{seed}" for fold in (0, 1) for seed in (0, 1)]


def test_after_a_full_run_everything_is_fresh(trained: Deployment) -> None:
    found = statuses(trained)
    assert set(found.values()) == {StaleStatus.FRESH}
    assert {"alone/report", "pair/report", "leaderboard", f"features/tiny|{BETA}"} <= set(found)


def test_each_partition_of_a_range_has_the_version_of_its_own_content(imported: Deployment) -> None:
    full = [f"{ALPHA}|{year}" for year in (2020, 2021, 2022)] + [f"{BETA}|2021", f"{BETA}|2022"]
    versions = {key: version(imported, "ohlcv", key) for key in full}
    assert len(set(versions.values())) == len(full)
    assert version(imported, "manifest", ALPHA) != version(imported, "manifest", BETA)
    assert version(imported, "features/tiny", ALPHA) != version(imported, "features/tiny", BETA)


def test_importing_again_changes_no_version_and_marks_nothing_stale(imported: Deployment) -> None:
    before = {key: version(imported, "ohlcv", key) for key in (f"{ALPHA}|2020", f"{BETA}|2022")}
    assert import_bars(imported.places, imported.instance).success
    assert {key: version(imported, "ohlcv", key) for key in before} == before
    assert stale(imported) == set()


def test_one_series_changed_in_a_range_makes_only_its_downstream_stale(trained: Deployment) -> None:
    path = trained.root / "data" / "beta.csv"
    frame = pl.read_csv(path)
    volume = pl.when(pl.col("ts") == "2021-06-01T00:00:00").then(5.0).otherwise("volume")
    frame.with_columns(volume=volume).write_csv(path)
    assert import_bars(trained.places, trained.instance).success
    assert stale(trained) == {f"manifest|{BETA}", f"features/tiny|{BETA}"}

    close = pl.when(pl.col("ts") == "2021-06-01T00:00:00").then(pl.col("low")).otherwise("close")
    frame.with_columns(close=close).write_csv(path)
    assert import_bars(trained.places, trained.instance).success
    assert materialize(
        trained.places, trained.instance, "manifest", "features/tiny", first=ALPHA, last=BETA
    ).success
    assert stale(trained) == {"pair/dataset"}
    assert materialize(trained.places, trained.instance, "pair/dataset").success
    assert stale(trained) == {"pair/policy|base.f0.s0", "pair/backtest|base.f0.s0", "pair/report"}


def test_one_yaml_value_marks_exactly_its_policy_and_downstream(trained: Deployment) -> None:
    trained.edit("configs/experiments/alone.yaml", "rollout_steps: 32", "rollout_steps: 16")
    policies = {f"alone/policy|{key}" for key in TRIALS}
    backtests = {f"alone/backtest|{key}" for key in TRIALS}
    last = {"alone/report", "alone/promoted", "leaderboard"}
    assert stale(trained) == policies | backtests | last


def test_a_comment_and_the_order_of_keys_change_nothing(trained: Deployment) -> None:
    path = trained.root / "configs" / "experiments" / "alone.yaml"
    text = path.read_text(encoding="utf-8")
    moved = text.replace("features: tiny\n", "")
    path.write_text(f"# said in passing\n{moved}features: tiny\n", encoding="utf-8")
    assert stale(trained) == set()


def test_one_indicator_changed_marks_its_features(trained: Deployment) -> None:
    trained.edit("configs/features/tiny.yaml", "period: 10", "period: 12")
    found = stale(trained)
    assert {f"features/tiny|{ALPHA}", f"features/tiny|{BETA}", "alone/dataset"} <= found
    assert not [name for name in found if name.startswith(("ohlcv", "manifest"))]


def test_a_year_before_a_series_begins_is_an_empty_frame(imported: Deployment) -> None:
    bars = read_partition(layout.ohlcv(imported.places.store, BETA, 2020)).bars
    assert bars.height == 0
    assert read_partition(layout.ohlcv(imported.places.store, BETA, 2021))[0].height > 300


def test_a_new_year_becomes_a_partition_on_its_first_day(imported: Deployment) -> None:
    year = Partitions.of(read_project(imported.places.configs)).year
    assert year.get_partition_keys(datetime(2031, 1, 1, 0, 1, tzinfo=UTC))[-1] == "2031"


def test_bars_of_a_new_year_reach_the_manifest_and_leave_old_datasets_alone(
    trained: Deployment,
) -> None:
    path = trained.root / "data" / "alpha.csv"
    frame = pl.read_csv(path)
    later = frame.tail(1).with_columns(ts=pl.lit("2023-01-02T00:00:00"))
    pl.concat([frame, later]).write_csv(path)
    before = version(trained, "alone/dataset")
    result = materialize(trained.places, trained.instance, "ohlcv", first=f"{ALPHA}|2023")
    assert result.success
    assert stale(trained) == {f"manifest|{ALPHA}", f"features/tiny|{ALPHA}"}
    assert materialize(
        trained.places, trained.instance, "manifest", "features/tiny", first=ALPHA, last=BETA
    ).success
    assert materialize(trained.places, trained.instance, "alone/dataset").success
    assert version(trained, "alone/dataset") == before


def test_policy_weights_differ_between_seeds_and_repeat_for_a_seed(trained: Deployment) -> None:
    store = trained.places.store
    weights = {}
    for key in TRIALS[:2]:
        home = bundles.current(layout.experiment_bundle(store, "alone", "policy", key))
        weights[key] = load_file(home.path / "policy.safetensors")
    first, second = weights.values()
    assert any(not np.array_equal(first[name], second[name]) for name in first)

    before = version(trained, "alone/policy", TRIALS[0])
    assert materialize(trained.places, trained.instance, "alone/policy", first=TRIALS[0]).success
    assert version(trained, "alone/policy", TRIALS[0]) == before


def test_training_reports_live_from_a_process_of_its_own(imported: Deployment) -> None:
    result = materialize(imported.places, imported.instance, "alone/policy", first=TRIALS[0])
    assert result.success
    logs = imported.instance.all_logs(result.run_id)
    reported = [log for log in logs if "frames" in log.user_message]
    assert reported, "no progress line reached the event log"
    pids = {
        int(found.group(1))
        for log in logs
        if (found := re.search(r"Task runs in process (\d+)", log.user_message))
    }
    assert len(pids) == 1
    assert os.getpid() not in pids


@pytest.mark.parametrize("asset", ["alone/backtest", "pair/backtest"])
def test_a_backtest_materialized_again_has_the_same_version(
    trained: Deployment, asset: str
) -> None:
    before = version(trained, asset, "base.f0.s0")
    assert materialize(trained.places, trained.instance, asset, first="base.f0.s0").success
    assert version(trained, asset, "base.f0.s0") == before


def test_a_report_materialized_again_has_the_same_version(trained: Deployment) -> None:
    before = version(trained, "alone/report"), version(trained, "leaderboard")
    assert materialize(trained.places, trained.instance, "alone/report", "leaderboard").success
    assert (version(trained, "alone/report"), version(trained, "leaderboard")) == before


def test_metadata_holds_counts_schema_and_pictures(trained: Deployment) -> None:
    def metadata(asset: str, partition: str) -> dict[str, object]:
        records = trained.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(asset.split("/")), asset_partitions=[partition]
            ),
            limit=1,
        ).records
        event = records[0].asset_materialization
        assert event is not None
        return {name: value.value for name, value in event.metadata.items()}

    assert metadata("ohlcv", f"{ALPHA}|2020")["dagster/row_count"] == 366
    assert "data:image/png" in str(metadata("manifest", ALPHA)["coverage"])
    assert "data:image/png" in str(metadata("alone/backtest", TRIALS[0])["equity"])
    definitions = {
        key.to_user_string(): spec.metadata
        for asset in statuses_definitions(trained)
        for key, spec in asset.specs_by_key.items()
    }
    assert "dagster/column_schema" in definitions["ohlcv"]
    assert "dagster/column_schema" in definitions["features/tiny"]


def statuses_definitions(deployment: Deployment) -> list[dg.AssetsDefinition]:
    from trade_pipeline.defs.build import build_definitions

    found = build_definitions(deployment.places).assets or []
    return [one for one in found if isinstance(one, dg.AssetsDefinition)]
