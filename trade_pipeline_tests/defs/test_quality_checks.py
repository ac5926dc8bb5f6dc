"""What people see of gaps and outliers after an import."""

import dagster as dg
import polars as pl

from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import BETA, materialize

PRICES = ("open", "high", "low", "close")


def evaluations(
    deployment: Deployment,
) -> tuple[dict[str, dg.AssetCheckEvaluation], dict[str, dg.MetadataValue]]:
    """Checks of an import of BETA's 2021 by name, and the metadata of the partition."""
    done = materialize(deployment.places, deployment.instance, "ohlcv", first=f"{BETA}|2021")
    assert done.success, "what looks wrong is stored all the same"
    (event, *_) = done.get_asset_materialization_events()
    found = {one.check_name: one for one in done.get_asset_check_evaluations()}
    return found, dict(event.materialization.metadata)


def rows(evaluation: dg.AssetCheckEvaluation) -> list[dict[str, object]]:
    table = evaluation.metadata["first_bad_rows"]
    assert isinstance(table, dg.TableMetadataValue)
    return [dict(row.data) for row in table.records]


def test_a_hole_and_a_bad_tick_are_warnings_with_a_table_until_they_are_corrected(
    empty: Deployment,
) -> None:
    path = empty.root / "data" / "beta.csv"
    good = pl.read_csv(path)
    ten_times = [
        pl.when(pl.col("ts") == "2021-06-01T00:00:00").then(pl.col(name) * 10).otherwise(name)
        for name in PRICES
    ]
    wrong = good.with_columns(one.alias(name) for name, one in zip(PRICES, ten_times, strict=True))
    hole = pl.col("ts").is_between(pl.lit("2021-08-02"), pl.lit("2021-08-09"))
    wrong.filter(~hole).write_csv(path)

    checks, metadata = evaluations(empty)
    assert (metadata["gaps"].value, metadata["outliers"].value) == (1, 1)
    for name in ("gaps", "outliers"):
        assert not checks[name].passed
        assert checks[name].severity == dg.AssetCheckSeverity.WARN
        assert checks[name].metadata["partitions"].value == [f"{BETA}|2021"]
    (gap,) = rows(checks["gaps"])
    assert (str(gap["first"])[:10], str(gap["last"])[:10], gap["bars"]) == (
        "2021-08-02",
        "2021-08-08",
        "7",
    )
    (outlier,) = rows(checks["outliers"])
    assert (str(outlier["ts"])[:10], outlier["column"]) == ("2021-06-01", "high")

    good.write_csv(path)
    checks, metadata = evaluations(empty)
    assert (metadata["gaps"].value, metadata["outliers"].value) == (0, 0)
    assert checks["gaps"].passed
    assert checks["outliers"].passed
