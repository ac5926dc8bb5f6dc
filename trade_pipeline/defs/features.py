"""The `features/<set>` assets: unscaled indicator values on the slices of a series."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from trade_pipeline.defs.automation import follows_manifest
from trade_pipeline.defs.checks import (
    CONTENT_HASH,
    Checked,
    column_schema,
    combined_version,
    stored_check,
)
from trade_pipeline.defs.partitions import (
    Partitions,
    all_years,
    partitions_of_run,
    same_partition,
)
from trade_pipeline.defs.resources import Store
from trade_pipeline.features.registry import FeatureSet, resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.market.stored import read_grids
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import content_hash, read_frame


def resolve_feature_sets(project: Project) -> dict[str, FeatureSet]:
    """Every feature set with its indicators' parameters checked. Raises `SettingsError`."""
    return {
        name: resolve(settings, str(project.configs / "features" / f"{name}.yaml"))
        for name, settings in project.feature_sets.items()
    }


def feature_set_version(feature_set: FeatureSet) -> str:
    """Code version of the tables of a set."""
    return code_version(feature_set.code, feature_set.implementations)


def build_features(
    project: Project,
    partitions: Partitions,
    feature_sets: dict[str, FeatureSet],
    ohlcv: dg.AssetsDefinition,
    manifest: dg.AssetsDefinition,
) -> dict[str, Checked]:
    """The asset and check of each feature set."""
    return {
        name: _build_one(name, feature_set, project, partitions, ohlcv, manifest)
        for name, feature_set in feature_sets.items()
    }


def _build_one(
    name: str,
    feature_set: FeatureSet,
    project: Project,
    partitions: Partitions,
    ohlcv: dg.AssetsDefinition,
    manifest: dg.AssetsDefinition,
) -> Checked:
    schema: dict[str, Any] = {"ts": pl.Datetime("ms", "UTC")}
    schema.update({column: pl.Float32() for column in feature_set.names})

    @dg.asset(
        key=["features", name],
        partitions_def=partitions.series,
        deps=[
            dg.AssetDep(ohlcv, partition_mapping=all_years()),
            dg.AssetDep(manifest, partition_mapping=same_partition()),
        ],
        backfill_policy=dg.BackfillPolicy.single_run(),
        automation_condition=follows_manifest(manifest),
        code_version=feature_set_version(feature_set),
        io_manager_key="frames",
        group_name="features",
        kinds={"polars", "parquet"},
        description=f"Indicators of configs/features/{name}.yaml, unscaled.",
        metadata={"dagster/column_schema": column_schema(schema)},
    )
    def features(
        context: dg.AssetExecutionContext, store: Store
    ) -> Iterator[dg.MaterializeResult[Any]]:
        tables, hashes = {}, {}
        for key in partitions_of_run(context):
            table = feature_table(read_grids(store.path, project.series[key]), feature_set)
            tables[key], hashes[key] = table, content_hash(table)
            context.add_asset_metadata(
                {
                    CONTENT_HASH: hashes[key],
                    "dagster/row_count": table.height,
                    "first_bar": str(table["ts"].min()),
                    "last_bar": str(table["ts"].max()),
                    "lookback": feature_set.lookback,
                },
                partition_key=key,
            )
        yield dg.MaterializeResult(value=tables, data_version=combined_version(hashes))

    def hash_of(store: Path, partition: str) -> str:
        return content_hash(read_frame(layout.features(store, name, partition)))

    return Checked(features, stored_check(features, hash_of))
