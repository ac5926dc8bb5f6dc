"""The check `fresh` of `ohlcv`: do bars of every series keep coming, as its calendar expects?

Dagster's own freshness looks at an asset's latest materialization, so that one living series hides
all dead ones. This looks at each series, reading the end of its newest file. Start at
`build_freshness`.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.defs.resources import Store
from trade_pipeline.market.calendars import CalendarError
from trade_pipeline.market.freshness import freshness
from trade_pipeline.market.stored import read_confirmed
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.location import StorageError

CRON = "50 * * * *"  # hourly, when the imports of the hour have ended
COLUMNS = {
    "series": "string",
    "last_bar": "string",
    "expected": "string",
    "hours_overdue": "float",
    "hours_allowed": "float",
    "verdict": "string",
}
FRESH, STALE, HISTORY = "fresh", "stale", "history: never stale"


class FreshnessCheck(NamedTuple):
    """The check, the job that evaluates it alone, and the hourly schedule of that job."""

    check: dg.AssetChecksDefinition
    job: UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition


def build_freshness(project: Project, ohlcv: dg.AssetsDefinition) -> FreshnessCheck:
    """The check over all series of a project."""

    @dg.asset_check(
        asset=ohlcv.key,
        name="fresh",
        description="No bar of a series with stale_after_hours is overdue for longer than that.",
    )
    def fresh(store: Store) -> dg.AssetCheckResult:
        now_ms = time.time_ns() // 1_000_000
        rows = [judge(store.path, one, now_ms) for one in project.series.values()]
        stale = [row for row in rows if row["verdict"] not in (FRESH, HISTORY)]
        return dg.AssetCheckResult(
            passed=not stale,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "stale_series": len(stale),
                "most_hours_overdue": max(_overdue(row) for row in rows),
                "series": _table(rows),
            },
        )

    job = dg.define_asset_job(
        "check_freshness",
        selection=dg.AssetSelection.checks(fresh),
        description="Evaluates the check fresh alone; it imports nothing.",
    )
    schedule = dg.ScheduleDefinition(
        name="check_freshness_hourly",
        job=job,
        cron_schedule=CRON,
        execution_timezone="UTC",
        description="Every hour, whether bars of every series keep coming.",
    )
    return FreshnessCheck(fresh, job, schedule)


Row = Mapping[str, str | float | None]


def judge(store: Path, series: SeriesSettings, now_ms: int) -> Row:
    """One row of the table: what is stored of a series, what is expected, and the verdict."""
    row: dict[str, str | float | None] = dict.fromkeys(COLUMNS)
    row["series"] = series.key
    try:
        last_ms, confirmed_ms = _newest(store, series.key)
        row["last_bar"] = _text(last_ms)
        if series.stale_after_hours is None:
            return row | {"verdict": HISTORY}
        found = freshness(series, last_ms, confirmed_ms, now_ms)
    except (StorageError, CalendarError) as error:
        return row | {"verdict": str(error)}
    return row | {
        "expected": _text(found.expected_ms),
        "hours_overdue": round(found.overdue_hours, 2),
        "hours_allowed": found.allowed_hours,
        "verdict": FRESH if found.fresh else STALE,
    }


def _newest(store: Path, key: str) -> tuple[int | None, int | None]:
    """Open of the newest stored bar and end of the newest confirmed interval, in ms."""
    folder = layout.ohlcv(store, key, 0).path.parent
    years = sorted((int(path.stem) for path in folder.glob("*.parquet")), reverse=True)
    confirmed_ms: int | None = None
    for year in years:  # the newest ones may be empty
        location = layout.ohlcv(store, key, year)
        if confirmed_ms is None:
            confirmed_ms = max((end for _, end in read_confirmed(location)), default=None)
        try:
            ts = pl.scan_parquet(location.path, glob=False).select("ts").tail(1).collect()["ts"]
        except (pl.exceptions.PolarsError, OSError) as error:
            raise StorageError(f"{location}: cannot be read ({error}); import it again.") from error
        if len(ts):
            return int(ts.dt.epoch("ms")[0]), confirmed_ms
    return None, confirmed_ms


def _table(rows: list[Row]) -> dg.MetadataValue:
    """Every series, the most overdue first."""
    ordered = sorted(rows, key=_overdue, reverse=True)
    columns = [dg.TableColumn(name, type=kind) for name, kind in COLUMNS.items()]
    return dg.MetadataValue.table(
        [dg.TableRecord(dict(row)) for row in ordered], schema=dg.TableSchema(columns=columns)
    )


def _overdue(row: Row) -> float:
    return float(row["hours_overdue"] or 0)


def _text(ms: int | None) -> str:
    if ms is None:
        return "none"
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
