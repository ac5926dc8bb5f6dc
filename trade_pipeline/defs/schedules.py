"""Jobs and schedules: which bars are fetched when nobody presses a button.

One schedule a timeframe, so that a venue that reaches back some hundred bars is asked before they
are out of its reach. Start at `build_refresh`.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings

# Kraken's REST reaches 720 bars back, and half of that allows for one tick that fails. Daily ones
# run after the last exchange's day has ended in UTC, a few minutes apart from each other.
CRONS = {
    "1m": "5 */6 * * *",
    "5m": "20 6 * * *",
    "15m": "25 6 * * *",
    "1h": "30 6 * * *",
    "4h": "35 6 * * *",
    "1d": "15 6 * * *",
}
# The sample never grows, and derived series follow their origin by a sensor.
NEVER_NEW = ("bokeh_sample", "derived")
LATE_DAYS = 3  # of a year in which bars of the year before still come in


def build_refresh(
    project: Project, ohlcv: dg.AssetsDefinition
) -> tuple[UnresolvedAssetJobDefinition, list[dg.ScheduleDefinition]]:
    """The job that imports a partition, and a schedule for each timeframe that can bring bars."""
    job = dg.define_asset_job(
        "refresh_bars",
        selection=dg.AssetSelection.assets(ohlcv),
        description="Import bars: pick series and years, or let a schedule take this year.",
    )
    by_timeframe: dict[str, list[SeriesSettings]] = {timeframe: [] for timeframe in CRONS}
    for series in project.series.values():
        if series.source.kind not in NEVER_NEW:
            by_timeframe[series.timeframe].append(series)
    return job, [
        _schedule(job, timeframe, found) for timeframe, found in by_timeframe.items() if found
    ]


def _schedule(
    job: UnresolvedAssetJobDefinition, timeframe: str, series: Sequence[SeriesSettings]
) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"refresh_{timeframe}",
        job=job,
        cron_schedule=CRONS[timeframe],
        execution_timezone="UTC",
        description=f"Every {'6 hours' if timeframe == '1m' else 'day'}, this year's bars of "
        f"{', '.join(one.key for one in series)}; a run a series, so that a venue that fails stops "
        "no other.",
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        tick = context.scheduled_execution_time
        requests = [
            dg.RunRequest(
                run_key=f"{one.key}|{year}:{tick.isoformat()}",
                partition_key=dg.MultiPartitionKey({"series": one.key, "year": str(year)}),
            )
            for one in series
            for year in _years(one, tick)
        ]
        return requests or dg.SkipReason("none of these series has begun (first_year)")

    return refresh


def _years(series: SeriesSettings, tick: datetime) -> Iterator[int]:
    """This year, and in its first days the year before it as well."""
    if tick.month == 1 and tick.day <= LATE_DAYS and tick.year > series.first_year:
        yield tick.year - 1
    if tick.year >= series.first_year:
        yield tick.year
