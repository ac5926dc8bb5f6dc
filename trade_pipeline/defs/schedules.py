"""Jobs and the schedule: what runs when nobody presses a button."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.defs.partitions import Partitions

REFRESH_CRON = "15 6 * * *"  # daily, after the last exchange's day has ended in UTC


def build_refresh(
    partitions: Partitions, ohlcv: dg.AssetsDefinition
) -> tuple[UnresolvedAssetJobDefinition, dg.ScheduleDefinition]:
    """Job and schedule that import the current year of every series in one run."""
    job = dg.define_asset_job(
        "refresh_bars",
        selection=dg.AssetSelection.assets(ohlcv),
        description="Import bars: pick series and years, or let the schedule take this year.",
    )

    @dg.schedule(
        name="refresh_current_year",
        job=job,
        cron_schedule=REFRESH_CRON,
        execution_timezone="UTC",
        description="Every day, the current year of all series.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        year = context.scheduled_execution_time.year
        series = partitions.series.get_partition_keys()
        return dg.RunRequest(
            run_key=context.scheduled_execution_time.isoformat(),
            tags={
                "dagster/asset_partition_range_start": f"{series[0]}|{year}",
                "dagster/asset_partition_range_end": f"{series[-1]}|{year}",
            },
        )

    return job, refresh
