"""What the assets that watch the operation have in common: a small table, measured daily.

Start at `measured_table`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.defs.checks import column_schema
from trade_pipeline.storage.frames import content_hash


def measured_table(
    name: str, schema: Mapping[str, pl.DataType], description: str
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Decorator: an asset of the operations group that stores a frame of this schema."""
    return dg.asset(
        name=name,
        code_version="1",
        io_manager_key="frames",
        group_name="operations",
        kinds={"polars"},
        description=description,
        metadata={"dagster/column_schema": column_schema(schema)},
    )


def measurement(table: pl.DataFrame, metadata: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
    """The result of such an asset, its rows counted."""
    return dg.MaterializeResult(
        value=table,
        data_version=dg.DataVersion(content_hash(table)),
        metadata={"dagster/row_count": table.height, **metadata},
    )


def daily(job: UnresolvedAssetJobDefinition, cron: str, description: str) -> dg.ScheduleDefinition:
    """A schedule of a job by the clock of UTC, off until somebody switches it on."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_daily",
        job=job,
        cron_schedule=cron,
        execution_timezone="UTC",
        description=description,
    )
