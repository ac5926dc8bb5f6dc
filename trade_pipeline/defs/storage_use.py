"""The `storage_use` asset: bytes of each series and experiment, as numbers that the UI plots."""

from typing import Any, NamedTuple

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.defs.operations import daily, measured_table, measurement
from trade_pipeline.defs.resources import Store
from trade_pipeline.settings.project import Project
from trade_pipeline.storage.usage import SCHEMA, usage

CRON = "40 5 * * *"  # daily, before the imports of the morning
MB = 1_000_000


class StorageUse(NamedTuple):
    """The asset, the job that measures, and the daily schedule of that job."""

    asset: dg.AssetsDefinition
    job: UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition


def build_storage_use(project: Project) -> StorageUse:
    """The asset over all series, feature sets and experiments of a project."""

    @measured_table(
        "storage_use",
        SCHEMA,
        "Bytes on the disk of each series and experiment; its plots show the growth.",
    )
    def storage_use(store: Store) -> dg.MaterializeResult[Any]:
        table = usage(store.path, project.series, project.feature_sets, project.experiments)
        named = table.group_by("name", maintain_order=True).agg(pl.col("bytes").sum()).rows()
        return measurement(
            table,
            {
                "MB in all": int(table["bytes"].sum()) / MB,
                **{f"MB {name or 'of the rest'}": taken / MB for name, taken in named},
            },
        )

    job = dg.define_asset_job("measure_storage", selection=dg.AssetSelection.assets(storage_use))
    schedule = daily(job, CRON, "Every day, how much room each series and experiment takes.")
    return StorageUse(storage_use, job, schedule)
