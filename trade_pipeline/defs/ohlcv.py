"""The `ohlcv` asset: bars of a series and year, validated before anything is written.

Good partitions of a run commit; bad ones are named, in a check with the offending rows and in
the failure, and what was stored of them stays. Start at `build_ohlcv(project, partitions)`.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG

from trade_pipeline.defs.checks import (
    MOST_ROWS_SHOWN,
    Checked,
    column_schema,
    combined_version,
    record_version,
    rows_table,
    stored_check,
)
from trade_pipeline.defs.partitions import Partitions, partitions_of_run, series_years
from trade_pipeline.defs.resources import Store
from trade_pipeline.market import bars as market_bars
from trade_pipeline.market import verdicts
from trade_pipeline.market.importing import CONTENT_HASH, Outcome, import_bars
from trade_pipeline.market.sources.base import Surroundings
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.stored import partition_metadata, read_partition
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import content_hash

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
        around = surroundings(project, store.path, context.log.info)
        outcome = import_bars(project.series, wanted, around)
        yield from check_results(project, store.path)
        if outcome.refused:
            _record_committed(context, outcome, version)
            raise dg.Failure(_refusal_message(outcome), allow_retries=False)
        for one, metadata in outcome.committed.items():
            context.add_asset_metadata(metadata, partition_key=one.key)
        hashes = {one.key: found[CONTENT_HASH] for one, found in outcome.committed.items()}
        yield dg.MaterializeResult(data_version=combined_version(hashes))

    def hash_of(store: Path, partition: str) -> str:
        (one,) = series_years([partition])
        stored = read_partition(layout.ohlcv(store, one.series, one.year))
        return content_hash(stored.bars, partition_metadata(stored.confirmed, stored.actions))

    return Checked(ohlcv, stored_check(ohlcv, hash_of))


def surroundings(project: Project, store: Path, log: Callable[[str], None]) -> Surroundings:
    """The world as a run sees it."""
    return Surroundings(
        base=project.base,
        store=store,
        environment=os.environ,
        now_ms=lambda: time.time_ns() // 1_000_000,
        sleep=time.sleep,
        log=log,
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


def _record_committed(context: dg.AssetExecutionContext, outcome: Outcome, version: str) -> None:
    """Materializations of the good partitions, which a failing step would not record."""
    for one, metadata in outcome.committed.items():
        event = dg.AssetMaterialization(
            "ohlcv", partition=one.key, metadata=metadata, tags={CODE_VERSION_TAG: version}
        )
        record_version(context.op_execution_context, event, metadata[CONTENT_HASH])


def _refusal_message(outcome: Outcome) -> str:
    total = len({*outcome.refused, *outcome.committed})
    lines = [
        f"{len(outcome.refused)} of {total} partitions were refused; of these no bad row was "
        "stored, the others are committed."
    ]
    for one, refusal in list(outcome.refused.items())[:MOST_ROWS_SHOWN]:
        lines.append(f"{one.key}: {refusal.sentence}")
    return "\n".join([*lines, "Correct the source and materialize these partitions again."])
