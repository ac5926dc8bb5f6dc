"""The `features/<set>` assets: unscaled indicator values on the slices of a series."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from trade_pipeline.defs.automation import follows_manifest
from trade_pipeline.defs.causality import causal_check
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
    same_and,
)
from trade_pipeline.defs.resources import Store
from trade_pipeline.features.assemble import read_segments
from trade_pipeline.features.plugins.loading import Plugins, parameter_problems
from trade_pipeline.features.registry import BrokenPluginError, FeatureSet, resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import find_series
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import content_hash, read_frame


def resolve_feature_sets(
    project: Project, plugins: Plugins
) -> tuple[dict[str, FeatureSet], dict[str, str]]:
    """Every feature set, its indicators' parameters and the series they read checked.

    Args:
        project: all settings.
        plugins: indicators that do not ship.

    Returns:
        The sets by name, and why a set cannot be resolved, of those that a broken plug-in stops.

    Raises:
        SettingsError: a set is wrong; the message names file and entry.
    """
    found: dict[str, FeatureSet] = {}
    broken: dict[str, str] = {}
    # All at once: one process tries the plug-ins of every set.
    every = [one for settings in project.feature_sets.values() for one in settings.indicators]
    parameter_problems(plugins, every)
    for name, settings in project.feature_sets.items():
        origin = str(project.configs / "features" / f"{name}.yaml")
        try:
            found[name] = resolve(settings, origin, plugins)
        except BrokenPluginError as error:
            broken[name] = str(error)
            continue
        for key in found[name].references:
            find_series(project.series, key, origin)
    return found, broken


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
    """The asset and its checks of each feature set."""
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
            dg.AssetDep(
                manifest, partition_mapping=same_and(feature_set.references, project.series)
            ),
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
            table = _table(context, store, project, key, feature_set)
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

    causal = causal_check(name, features, feature_set, project)
    return Checked(features, stored_check(features, hash_of), causal)


def _table(
    context: dg.AssetExecutionContext,
    store: Store,
    project: Project,
    key: str,
    feature_set: FeatureSet,
) -> pl.DataFrame:
    """The table of one series; empty for one of another timeframe than the set is for."""
    timeframe = project.series[key].timeframe
    if feature_set.timeframe not in (None, timeframe):
        context.log.info(
            f"{key} has bars of {timeframe}; this set is for {feature_set.timeframe}, so its table "
            "is empty."
        )
        return feature_table([], feature_set)
    return feature_table(read_segments(store.path, key, project.series, feature_set), feature_set)
