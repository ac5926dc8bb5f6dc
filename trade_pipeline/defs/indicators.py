"""The `indicators` asset, and what stands in for assets that a broken plug-in makes impossible.

A broken plug-in never stops the code location: its feature sets and the datasets on them stay in
the graph, say why in their description, and fail with that sentence. Start at
`build_indicators_list` and `build_broken`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from trade_pipeline.defs.partitions import Partitions, these_series
from trade_pipeline.features.plugins.loading import Plugins
from trade_pipeline.features.plugins.specification import parameters_text
from trade_pipeline.settings.project import Project

COLUMNS = ("name", "origin", "inputs", "parameters")
BROKEN_COLUMNS = ("origin", "error")


def build_indicators_list(plugins: Plugins) -> dg.AssetSpec:
    """What `trade-pipeline indicators list` prints, as metadata tables."""
    rows = [
        (name, one.origin, ", ".join(one.indicator.inputs), parameters_text(one.indicator))
        for name, one in sorted(plugins.known.items())
    ]
    metadata: dict[str, Any] = {"indicators": _table(COLUMNS, rows), "broken": len(plugins.broken)}
    if plugins.broken:
        broken = [(one.origin, one.error) for one in plugins.broken]
        metadata["broken plug-ins"] = _table(BROKEN_COLUMNS, broken)
    return dg.AssetSpec(
        "indicators",
        group_name="operations",
        kinds={"python"},
        description=f"Indicators that a feature set may name: {len(rows)} known, "
        f"{len(plugins.broken)} broken, as this code location found them when it was loaded.",
        metadata=metadata,
    )


def build_broken(
    project: Project,
    partitions: Partitions,
    broken: Mapping[str, str],
    manifest: dg.AssetsDefinition,
) -> list[dg.AssetsDefinition]:
    """Features of sets that cannot be resolved, and the datasets of experiments on them.

    Args:
        project: all of it.
        partitions: of the project.
        broken: name of a set to the sentence that says why.
        manifest: what features are made from.
    """
    assets = {
        name: _failing(["features", name], why, "features", [manifest], partitions.series)
        for name, why in broken.items()
    }
    datasets = [
        _failing(
            [name, "dataset"],
            broken[experiment.features],
            name,
            [
                dg.AssetDep(
                    assets[experiment.features],
                    partition_mapping=these_series(experiment.series),
                )
            ],
        )
        for name, experiment in project.experiments.items()
        if experiment.features in broken
    ]
    return [*assets.values(), *datasets]


def _failing(
    key: list[str],
    why: str,
    group: str,
    deps: list[Any],
    partitions: dg.PartitionsDefinition[Any] | None = None,
) -> dg.AssetsDefinition:
    @dg.asset(
        key=key,
        partitions_def=partitions,
        deps=deps,
        backfill_policy=None if partitions is None else dg.BackfillPolicy.single_run(),
        code_version="broken plug-in",
        group_name=group,
        description=f"Cannot be made: {why}",
    )
    def failing() -> None:
        raise dg.Failure(why, allow_retries=False)

    return failing


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> dg.MetadataValue:
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    return dg.MetadataValue.table(records, schema=schema)
