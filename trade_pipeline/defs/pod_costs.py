"""The assets `pod_costs` and `volume_storage`: what RunPod costs, beside the ledger's reckoning.

A schedule measures both daily once it is switched on. Start at `build_pod_assets`; the tables are
made by `cost_table` and `volume_table`, which ask nobody.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import dagster as dg
import polars as pl
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.compute.runpod.api import Volume
from trade_pipeline.compute.runpod.connection import connect
from trade_pipeline.compute.runpod.lease import Lease
from trade_pipeline.compute.runpod.plan import volume_alert, volume_of, volume_usd_month
from trade_pipeline.compute.runpod.reaper import Reconciled, reconcile
from trade_pipeline.defs.checks import rows_table
from trade_pipeline.defs.operations import daily, measured_table, measurement
from trade_pipeline.defs.resources import Store
from trade_pipeline.settings.compute import RunPodComputeSettings

CRON = "20 6 * * *"  # daily; RunPod's bill of yesterday is there by then
MOMENT = pl.Datetime("ms", "UTC")
COSTS: dict[str, pl.DataType] = {
    "pod": pl.String(),  # its name
    "pod_id": pl.String(),
    "deployment": pl.String(),
    "run": pl.String(),
    "experiment": pl.String(),  # empty where the run is not known
    "gpu": pl.String(),
    "began": MOMENT,
    "ended": MOMENT,  # null while it lives
    "hours": pl.Float64(),
    "usd_h": pl.Float64(),
    "ledger_usd": pl.Float64(),
    "billed_usd": pl.Float64(),  # null until RunPod has billed anything
    "difference_usd": pl.Float64(),  # billed less ledger
}
VOLUMES: dict[str, pl.DataType] = {
    "id": pl.String(),
    "name": pl.String(),
    "data_center": pl.String(),
    "size_gb": pl.Int64(),
    "usd_month": pl.Float64(),
}


class PodAssets(NamedTuple):
    """Both assets, the check of the volumes, the job that measures, and its daily schedule."""

    costs: dg.AssetsDefinition
    storage: dg.AssetsDefinition
    check: dg.AssetChecksDefinition
    job: UnresolvedAssetJobDefinition
    schedule: dg.ScheduleDefinition


def build_pod_assets(
    computes: Mapping[str, RunPodComputeSettings], experiments: Collection[str]
) -> PodAssets:
    """The assets over all computes of kind runpod, which share one account and one ledger."""

    @measured_table(
        "pod_costs",
        COSTS,
        "One row a pod since the first of last month: its cost by the ledger and by RunPod's bill, "
        "which lags by hours.",
    )
    def pod_costs(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        connection = connect(next(iter(computes.values())), store.path, os.environ)
        now = datetime.now(UTC)
        since = (now.replace(day=1) - timedelta(days=1)).replace(day=1)
        rows = reconcile(connection.api, connection.ledger, _midnight(since), now)
        runs = _experiments(context.instance, {row.run for row in rows}, experiments)
        table = cost_table(rows, connection.ledger.leases(), runs, now)
        return measurement(
            table,
            {
                "USD today": spent(table, _midnight(now)),
                "USD this month": spent(table, _midnight(now).replace(day=1)),
                "USD billed in all": float(table["billed_usd"].sum()),
                "USD billed less ledger": float(table["difference_usd"].sum()),
                "pods": rows_table(reversed(table.to_dicts())),
            },
        )

    @measured_table(
        "volume_storage",
        VOLUMES,
        "Size and monthly price of the network volumes that computes name; a volume costs by what "
        "is allocated, full or not.",
    )
    def volume_storage(store: Store) -> dg.MaterializeResult[Any]:
        connections = [connect(one, store.path, os.environ) for one in computes.values()]
        named = [volume_of(one.settings, connections[0].volumes) for one in connections]
        table = volume_table([volume for volume in named if volume is not None])
        return measurement(
            table,
            {
                "GB": int(table["size_gb"].sum()),
                "USD a month": float(table["usd_month"].sum()),
                "volumes": rows_table(table.to_dicts()),
            },
        )

    @dg.asset_check(
        asset=volume_storage,
        name="size",
        description="No network volume comes near 1 TB, which it would cost for ever.",
    )
    def size(volume_storage: pl.DataFrame) -> dg.AssetCheckResult:
        alerts = [alert for one in volumes_of(volume_storage) if (alert := volume_alert(one))]
        return dg.AssetCheckResult(
            passed=not alerts,
            severity=dg.AssetCheckSeverity.WARN,
            description=" ".join(alerts) or None,
            metadata={"volumes": volume_storage.height, "alerts": alerts},
        )

    job = dg.define_asset_job(
        "measure_pods",
        selection=dg.AssetSelection.assets(pod_costs, volume_storage),
        description="What pods and volumes cost; asks RunPod and changes nothing there.",
    )
    schedule = daily(job, CRON, "Every day, what pods and network volumes cost.")
    return PodAssets(pod_costs, volume_storage, size, job, schedule)


def cost_table(
    rows: Iterable[Reconciled],
    leases: Iterable[Lease],
    experiments: Mapping[str, str],
    now: datetime,
) -> pl.DataFrame:
    """One row a pod, oldest first.

    Args:
        rows: ledger and bill.
        leases: of the ledger; those of the rows are among them.
        experiments: by run.
        now: until when a living pod is counted.

    Returns:
        `COSTS`.
    """
    by_name = {lease.name: lease for lease in leases}
    found = []
    for row in rows:
        lease = by_name[row.name]
        assert lease.began_at is not None  # as for every lease that has a pod
        lived = (lease.ended_at or now) - lease.began_at
        found.append(
            (
                *(row.name, row.pod_id, lease.deployment, row.run),
                *(experiments.get(row.run, ""), lease.gpu, lease.began_at, lease.ended_at),
                *(max(lived / timedelta(hours=1), 0.0), lease.burn_usd_h),
                *(row.ledger_usd, row.billed_usd, row.difference_usd),
            )
        )
    return pl.DataFrame(found, schema=COSTS, orient="row").sort("began", "pod")


def spent(costs: pl.DataFrame, since: datetime) -> float:
    """Dollars by the ledger of pods that live, or that ended since then.

    As in the budget, a pod counts in whole for the day on which it ends.
    """
    counted = costs.filter(pl.col("ended").is_null() | (pl.col("ended") >= since))
    return float(counted["ledger_usd"].sum())


def volume_table(volumes: Iterable[Volume]) -> pl.DataFrame:
    """One row a volume, each once: `VOLUMES`."""
    rows = {
        one.id: (one.id, one.name, one.data_center, one.size_gb, volume_usd_month(one.size_gb))
        for one in volumes
    }
    return pl.DataFrame(list(rows.values()), schema=VOLUMES, orient="row")


def volumes_of(table: pl.DataFrame) -> Sequence[Volume]:
    """What `volume_table` was made of."""
    return [Volume(**row) for row in table.drop("usd_month").to_dicts()]


def _experiments(
    instance: dg.DagsterInstance, runs: Collection[str], experiments: Collection[str]
) -> dict[str, str]:
    """The experiment of each run, by the assets that it makes or by its job's name."""
    if not runs:
        return {}
    known = instance.get_runs(dg.RunsFilter(run_ids=sorted(runs)))
    return {run.run_id: _experiment(run, experiments) for run in known}


def _experiment(run: dg.DagsterRun, experiments: Collection[str]) -> str:
    for key in run.asset_selection or ():
        if key.path[0] in experiments:
            return key.path[0]
    fits = [name for name in experiments if run.job_name.startswith(f"{name}_")]
    return max(fits, key=len, default="")


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)
