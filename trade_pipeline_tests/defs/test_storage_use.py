"""The `storage_use` asset over a project with something in its store."""

import shutil
from pathlib import Path

import dagster as dg
import polars as pl
import yaml

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA, materialize, write_yaml


def measure(deployment: Deployment) -> tuple[pl.DataFrame, dict[str, float]]:
    """The table, and the numbers among its metadata."""
    result = materialize(deployment.places, deployment.instance, "storage_use")
    assert result.success
    (event,) = result.get_asset_materialization_events()
    numbers = {
        name: value.value
        for name, value in event.materialization.metadata.items()
        if isinstance(value, dg.FloatMetadataValue) and isinstance(value.value, float)
    }
    return read_frame(layout.storage_use(deployment.places.store)), numbers


def taken(*paths: Path) -> int:
    """Bytes of files and of all files in folders."""
    files = [path for one in paths for path in (one, *one.rglob("*")) if path.is_file()]
    return sum(path.stat().st_size for path in files)


def test_every_part_of_the_store_is_counted_once(imported: Deployment) -> None:
    store = imported.places.store
    whole = taken(store)
    table, _ = measure(imported)
    sizes = {(row["kind"], row["name"]): row["bytes"] for row in table.iter_rows(named=True)}
    for key in (ALPHA, BETA):
        assert sizes["ohlcv", key] == taken(layout.ohlcv(store, key, 2022).path.parent) > 10_000
        assert sizes["manifest", key] == taken(layout.manifest(store, key).path) > 0
        assert sizes["features/tiny", key] == taken(layout.features(store, "tiny", key).path) > 0
    for name in ("alone", "pair"):
        assert sizes["experiment", name] == taken(store / name) > 10_000
    assert sum(sizes.values()) == whole
    assert table.filter(kind="ohlcv", name=ALPHA)["files"][0] >= 3
    assert table["kind"].to_list()[-1] == "other"


def test_each_series_and_experiment_has_a_number_that_can_be_plotted(imported: Deployment) -> None:
    table, first = measure(imported)
    assert set(first) == {
        "MB in all",
        "MB of the rest",
        *(f"MB {name}" for name in (ALPHA, BETA, "alone", "pair")),
    }
    alpha = table.filter(name=ALPHA)["bytes"].sum()
    assert first[f"MB {ALPHA}"] == alpha / 1e6
    assert first["MB in all"] == table["bytes"].sum() / 1e6

    ballast = layout.ohlcv(imported.places.store, ALPHA, 2019).path
    ballast.write_bytes(bytes(2_000_000))
    _, second = measure(imported)
    assert round(second[f"MB {ALPHA}"] - first[f"MB {ALPHA}"], 6) == 2.0
    assert set(second) == set(first), "a line of the plot for each"


def test_what_was_removed_from_the_configuration_counts_as_the_rest(imported: Deployment) -> None:
    _, before = measure(imported)
    path = imported.places.configs / "series.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    write_yaml(path, {"series": settings["series"][:1]})
    (imported.places.configs / "experiments" / "pair.yaml").unlink()
    _, after = measure(imported)
    assert f"MB {BETA}" not in after
    rest = after["MB of the rest"] - before["MB of the rest"]
    assert rest >= before[f"MB {BETA}"] + before["MB pair"] - 1e-9


def test_an_empty_store_is_measured_too(empty: Deployment) -> None:
    shutil.rmtree(empty.places.store, ignore_errors=True)
    table, numbers = measure(empty)
    assert table["bytes"].sum() == 0
    assert set(numbers.values()) == {0.0}


def test_it_depends_on_nothing_and_has_a_daily_schedule_that_is_off(empty: Deployment) -> None:
    definitions = build_definitions(empty.places)
    node = definitions.resolve_asset_graph().get(dg.AssetKey("storage_use"))
    assert (node.group_name, node.parent_keys, node.partitions_def) == ("operations", set(), None)
    schedule = definitions.resolve_schedule_def("measure_storage_daily")
    assert schedule.job_name == "measure_storage"
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    job = definitions.resolve_job_def("measure_storage")
    assert [node.name for node in job.nodes] == ["storage_use"], "nothing heavy beside it"
