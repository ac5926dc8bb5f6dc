"""The `ohlcv` asset: bars of a series and year, validated before anything is written.

Good partitions of a run commit; bad ones are named, in a check with the offending rows and in
the failure, and what was stored of them stays. Start at `build_ohlcv(project, partitions)`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
from dagster._core.definitions.data_version import CODE_VERSION_TAG

from trade_pipeline.defs.checks import (
    CONTENT_HASH,
    MOST_ROWS_SHOWN,
    Checked,
    column_schema,
    combined_version,
    record_version,
    rows_table,
    stored_check,
)
from trade_pipeline.defs.partitions import (
    Partitions,
    SeriesYear,
    partitions_of_run,
    series_years,
)
from trade_pipeline.defs.resources import Store
from trade_pipeline.market import bars as market_bars
from trade_pipeline.market.sources.base import SourceBars, SourceError, split_years
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline.market.stored import confirmed_metadata, read_partition
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import content_hash, frame_lock, write_frame

CHECK = "valid_bars"


class Refusal(NamedTuple):
    """Why a partition was not written: a sentence, and the first bad rows as a table."""

    sentence: str
    rows: list[dict[str, object]]


@dataclass
class Outcome:
    """What became of the partitions of one run, by partition key."""

    committed: dict[str, dict[str, Any]] = field(default_factory=dict)  # their metadata
    refused: dict[str, Refusal] = field(default_factory=dict)


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
            dg.AssetCheckSpec(
                CHECK, asset="ohlcv", description="Every stored and offered bar keeps the rules."
            )
        ],
        io_manager_key="frames",
        group_name="market",
        kinds={"polars", "parquet"},
        description="Traded bars of one series and year, as the source gives them (raw prices).",
        metadata={"dagster/column_schema": column_schema(market_bars.BAR_SCHEMA)},
    )
    def ohlcv(context: dg.AssetExecutionContext, store: Store) -> Iterator[Any]:
        wanted = series_years(partitions_of_run(context))
        outcome = import_bars(project, store.path, wanted, context.log.info)
        standing = _standing_verdicts(store.path, project)
        yield dg.AssetCheckResult(
            check_name=CHECK,
            passed=not standing,
            metadata={
                "partitions_refused": sorted(standing),
                "first_bad_rows": rows_table(
                    {"partition": key, **row} for key, rows in standing.items() for row in rows
                ),
            },
        )
        if outcome.refused:
            _record_committed(context, outcome, version)
            raise dg.Failure(_refusal_message(outcome), allow_retries=False)
        for key, metadata in outcome.committed.items():
            context.add_asset_metadata(metadata, partition_key=key)
        hashes = {key: metadata[CONTENT_HASH] for key, metadata in outcome.committed.items()}
        yield dg.MaterializeResult(data_version=combined_version(hashes))

    def hash_of(store: Path, partition: str) -> str:
        (one,) = series_years([partition])
        bars, confirmed = read_partition(layout.ohlcv(store, one.series, one.year))
        return content_hash(bars, confirmed_metadata(confirmed))

    return Checked(ohlcv, stored_check(ohlcv, hash_of))


def import_bars(
    project: Project,
    store: Path,
    wanted: list[SeriesYear],
    log: Callable[[str], None],
) -> Outcome:
    """Read, validate, merge and store the wanted partitions, series by series.

    A partition with a bad row is refused whole and what was stored of it stays.
    """
    outcome = Outcome()
    by_series: dict[str, list[SeriesYear]] = {}
    for one in wanted:
        by_series.setdefault(one.series, []).append(one)
    started = time.monotonic()
    for done, (key, partitions) in enumerate(by_series.items(), start=1):
        series = project.series[key]
        try:
            read = source_for(series).read(series, project.base)
        except SourceError as error:
            for one in partitions:
                rows: list[dict[str, object]] = [{"rule": "source", "value": str(error)}]
                outcome.refused[one.key] = Refusal(str(error), rows)
        else:
            years = split_years(read, [one.year for one in partitions])
            for one in partitions:
                _import_year(series, one, years[one.year], store, outcome)
            for note in read.notes:
                log(f"{key}: {note}")
        elapsed = time.monotonic() - started
        left = elapsed / done * (len(by_series) - done)
        log(
            f"{key}: {len(partitions)} years read; {done} of {len(by_series)} series, "
            f"{left:.0f} s left"
        )
    for one in wanted:
        _keep_verdict(store, one, outcome)
    return outcome


def _import_year(
    series: SeriesSettings, one: SeriesYear, read: SourceBars, store: Path, outcome: Outcome
) -> None:
    bad = market_bars.violations(read.bars, series, one.year)
    if not bad.is_empty():
        rows = [{"file": read.origin, **row} for row in bad.head(MOST_ROWS_SHOWN).to_dicts()]
        sentence = market_bars.explain(bad, one.series, read.origin)
        outcome.refused[one.key] = Refusal(sentence, rows)
        return
    location = layout.ohlcv(store, one.series, one.year)
    incoming = read.bars.select(list(market_bars.BAR_SCHEMA))
    with frame_lock(location):
        stored, confirmed = market_bars.empty_bars(), list[tuple[int, int]]()
        if location.path.exists():
            stored, confirmed = read_partition(location)
        merged = market_bars.merge(stored, incoming)
        metadata = confirmed_metadata([*confirmed, *read.confirmed])
        version = write_frame(location, merged, metadata)
    outcome.committed[one.key] = {
        CONTENT_HASH: version,
        "dagster/row_count": merged.height,
        "new_bars": merged.height - stored.height,
        "first_bar": str(merged["ts"].min()),
        "last_bar": str(merged["ts"].max()),
        "source": read.origin,
    }


def _keep_verdict(store: Path, one: SeriesYear, outcome: Outcome) -> None:
    """A refused partition's rows stay on record until the partition is imported well."""
    location = layout.verdict(store, CHECK, one.series, one.year)
    if one.key in outcome.refused:
        rows = outcome.refused[one.key].rows
        texts = [{name: str(value) for name, value in row.items()} for row in rows]
        write_json(location, {"partition": one.key, "rows": texts})
    else:
        location.path.unlink(missing_ok=True)


def _standing_verdicts(store: Path, project: Project) -> dict[str, list[dict[str, str]]]:
    """Rows of every partition whose last import was refused, by partition key."""
    standing = {}
    for series in project.series:
        for path in sorted(layout.verdict(store, CHECK, series, 0).path.parent.glob("*.json")):
            document = read_json(layout.verdict(store, CHECK, series, int(path.stem)))
            standing[document["partition"]] = document["rows"]
    return standing


def _record_committed(context: dg.AssetExecutionContext, outcome: Outcome, version: str) -> None:
    """Materializations of the good partitions, which a failing step would not record."""
    for key, metadata in outcome.committed.items():
        event = dg.AssetMaterialization(
            "ohlcv", partition=key, metadata=metadata, tags={CODE_VERSION_TAG: version}
        )
        record_version(context.op_execution_context, event, metadata[CONTENT_HASH])


def _refusal_message(outcome: Outcome) -> str:
    total = len(outcome.refused) + len(outcome.committed)
    lines = [
        f"{len(outcome.refused)} of {total} partitions were refused; what was stored of them is "
        "unchanged, the others are committed."
    ]
    for key, refusal in list(outcome.refused.items())[:MOST_ROWS_SHOWN]:
        lines.append(f"{key}: {refusal.sentence}")
    return "\n".join([*lines, "Correct the source and materialize these partitions again."])
