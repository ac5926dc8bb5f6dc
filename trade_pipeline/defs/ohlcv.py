"""The `ohlcv` asset: bars of a series and year, validated before anything is written.

Good partitions of a run commit; bad ones are named, in a check with the offending rows and in
the failure, and what was stored of them stays. Start at `build_ohlcv(project, partitions)`. Jobs
that change bars (`backfill`) record what they did through `imported` and `materialization`.
"""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
)
from dagster._core.storage.tags import MULTIDIMENSIONAL_PARTITION_PREFIX

from trade_pipeline.defs.checks import (
    MOST_ROWS_SHOWN,
    Checked,
    column_schema,
    combined_version,
    rows_table,
    stored_check,
)
from trade_pipeline.defs.partitions import Partitions, partitions_of_run, series_years
from trade_pipeline.defs.resources import Store
from trade_pipeline.market import bars as market_bars
from trade_pipeline.market import verdicts
from trade_pipeline.market.importing import CONTENT_HASH, Outcome, SeriesYear, import_bars
from trade_pipeline.market.sources.base import Interval, Surroundings
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.stored import partition_metadata, read_partition
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import content_hash, frame_lock, read_hash

Context = dg.OpExecutionContext | dg.AssetExecutionContext
KEY = dg.AssetKey("ohlcv")
INTERRUPTED = "a run that was interrupted"
DESCRIPTIONS = {
    verdicts.VALID: "Every stored and offered bar keeps the rules.",
    verdicts.GAPS: "No run of unknown bars is longer than a slice may hold.",
    verdicts.OUTLIERS: "No price jumps out of proportion.",
    verdicts.DIFFERENCES: "Sources agree on the bars that more than one of them gave.",
}


def build_ohlcv(project: Project, partitions: Partitions) -> Checked:
    """The asset and its check."""
    implementations = {"bars": market_bars.IMPLEMENTATION}
    for series in project.series.values():
        implementations[series.source.kind] = source_for(series).implementation

    version = code_version({}, implementations)

    @dg.asset(
        name="ohlcv",
        partitions_def=partitions.series_by_year,
        backfill_policy=dg.BackfillPolicy.single_run(),
        code_version=version,
        check_specs=[
            dg.AssetCheckSpec(check, asset="ohlcv", description=DESCRIPTIONS[check])
            for check in verdicts.CHECKS
        ],
        io_manager_key="frames",
        group_name="market",
        kinds={"polars", "parquet"},
        description="Traded bars of one series and year, as the source gives them (raw prices).",
        metadata={"dagster/column_schema": column_schema(market_bars.BAR_SCHEMA)},
    )
    def ohlcv(context: dg.AssetExecutionContext, store: Store) -> Iterator[Any]:
        wanted = series_years(partitions_of_run(context))
        outcome = yield from imported(context, project, store.path, wanted, version)
        yield from check_results(project, store.path)
        if outcome.refused:
            yield from materializations(outcome, version)
            raise dg.Failure(refusal_message(outcome), allow_retries=False)
        for one, metadata in outcome.committed.items():
            context.add_asset_metadata(metadata, partition_key=one.key)
        hashes = {one.key: found[CONTENT_HASH] for one, found in outcome.committed.items()}
        yield dg.MaterializeResult(data_version=combined_version(hashes))

    def hash_of(store: Path, partition: str) -> str:
        (one,) = series_years([partition])
        stored = read_partition(layout.ohlcv(store, one.series, one.year))
        return content_hash(stored.bars, partition_metadata(stored.confirmed, stored.actions))

    return Checked(ohlcv, stored_check(ohlcv, hash_of))


def surroundings(project: Project, store: Path, context: Context) -> Surroundings:
    """The world as a run sees it; plans show on the asset before the first request."""
    return Surroundings(
        base=project.base,
        store=store,
        environment=os.environ,
        now_ms=lambda: time.time_ns() // 1_000_000,
        sleep=time.sleep,
        log=context.log.info,
        announce=lambda series, plan: context.log_event(
            dg.AssetObservation(KEY, metadata={"series": series, "plan": plan})
        ),
    )


def check_results(project: Project, store: Path) -> Iterator[dg.AssetCheckResult]:
    """One result a check, over the verdicts of all partitions and not of the run's alone."""
    for check in verdicts.CHECKS:
        standing = verdicts.standing(store, check, project.series)
        valid = check == verdicts.VALID
        yield dg.AssetCheckResult(
            check_name=check,
            passed=not standing,
            severity=dg.AssetCheckSeverity.ERROR if valid else dg.AssetCheckSeverity.WARN,
            metadata={
                "partitions_refused" if valid else "partitions": sorted(standing),
                "first_bad_rows": rows_table(
                    {"partition": key, **row} for key, rows in standing.items() for row in rows
                ),
            },
        )


def evaluations(project: Project, store: Path) -> Iterator[AssetCheckEvaluation]:
    """`check_results` for a job that is not the asset's own, which Dagster cannot place itself."""
    for result in check_results(project, store):
        assert result.check_name is not None
        yield AssetCheckEvaluation(
            KEY,
            result.check_name,
            result.passed,
            result.metadata,
            severity=result.severity,
            blocking=False,
        )


def imported(
    context: Context,
    project: Project,
    store: Path,
    wanted: Iterable[SeriesYear],
    version: str,
    window: Interval | None = None,
    route: str | None = None,
) -> Generator[dg.AssetMaterialization, None, Outcome]:
    """`import_bars`; when it is interrupted, what it stored until then is recorded first."""
    wanted = list(wanted)
    around = surroundings(project, store, context)
    try:
        return import_bars(project.series, wanted, around, window, route)
    except BaseException:  # a terminated run as well
        yield from unrecorded(context.instance, store, wanted, version)
        raise


def materializations(outcome: Outcome, version: str) -> Iterator[dg.AssetMaterialization]:
    """One event a committed partition, which a failing step or another job would not record."""
    for one, metadata in outcome.committed.items():
        yield materialization(one, metadata, version)


def materialization(
    one: SeriesYear, metadata: Mapping[str, Any], version: str
) -> dg.AssetMaterialization:
    """The event that the asset itself would record: its own data version, the asset's code version.

    Args:
        one: the partition.
        metadata: holds `CONTENT_HASH`.
        version: the asset's code version.
    """
    dimensions = {"series": one.series, "year": str(one.year)}
    return dg.AssetMaterialization(
        KEY,
        partition=dg.MultiPartitionKey(dimensions),
        metadata=metadata,
        tags={
            **{
                f"{MULTIDIMENSIONAL_PARTITION_PREFIX}{name}": key
                for name, key in dimensions.items()
            },
            CODE_VERSION_TAG: version,
            DATA_VERSION_TAG: metadata[CONTENT_HASH],
            DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        },
    )


def recorded_hash(instance: dg.DagsterInstance, one: SeriesYear) -> str | None:
    """Content hash that the event log has of a partition; None when it was never recorded."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=KEY, asset_partitions=[one.key]), limit=1
    ).records
    event = records[0].asset_materialization if records else None
    return None if event is None else str(event.metadata[CONTENT_HASH].value)


def unrecorded(
    instance: dg.DagsterInstance, store: Path, partitions: Iterable[SeriesYear], version: str
) -> Iterator[dg.AssetMaterialization]:
    """Events of the partitions that hold something else than the event log says."""
    for one in partitions:
        location = layout.ohlcv(store, one.series, one.year)
        if not location.path.exists():
            continue
        with frame_lock(location):
            found, rows = read_hash(location), read_partition(location).bars.height
        if found != recorded_hash(instance, one):
            metadata = {CONTENT_HASH: found, "dagster/row_count": rows, "source": INTERRUPTED}
            yield materialization(one, metadata, version)


def refusal_message(outcome: Outcome) -> str:
    """Which partitions were refused and why, for the failure of the run."""
    total = len({*outcome.refused, *outcome.committed})
    lines = [
        f"{len(outcome.refused)} of {total} partitions failed; of these no bad row was stored, and "
        "what was stored before stays."
    ]
    for one, refusal in list(outcome.refused.items())[:MOST_ROWS_SHOWN]:
        lines.append(f"{one.key}: {refusal.sentence}")
    return "\n".join([*lines, "Do what the sentences say, then import these partitions again."])
