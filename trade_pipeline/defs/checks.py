"""Checks that people see beside an asset, and each partition's own data version.

Dagster gives all partitions of a single-run range one shared data version, although each has its
own content. `stored_check` runs right after the asset, hashes what is stored, and records one
materialization a partition with that hash as its version. Being blocking, it stands before
everything downstream in the run.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import polars as pl
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
)

from trade_pipeline.defs.resources import Store
from trade_pipeline.market.importing import CONTENT_HASH as CONTENT_HASH
from trade_pipeline.market.importing import MOST_ROWS_SHOWN as MOST_ROWS_SHOWN
from trade_pipeline.storage.documents import json_hash


class Checked(NamedTuple):
    """An asset and the checks that stand right behind it."""

    asset: dg.AssetsDefinition
    stored: dg.AssetChecksDefinition
    causal: dg.AssetChecksDefinition | None = None

    @property
    def checks(self) -> list[dg.AssetChecksDefinition]:
        """All of them."""
        return [self.stored] if self.causal is None else [self.stored, self.causal]


HashOf = Callable[[Path, str], str]
"""From the store and a partition key to the hash of what is stored now."""


def combined_version(hashes: Mapping[str, str]) -> dg.DataVersion:
    """Version that a run's partitions share until `stored_check` gives each its own."""
    if len(hashes) == 1:
        return dg.DataVersion(next(iter(hashes.values())))
    return dg.DataVersion(json_hash(dict(hashes)))


def stored_check(asset: dg.AssetsDefinition, hash_of: HashOf) -> dg.AssetChecksDefinition:
    """Blocking check that the stored bytes are what the asset recorded, partition by partition."""
    key = asset.key

    @dg.asset_check(
        asset=key,
        name="stored",
        blocking=True,
        description="What is stored hashes to what was recorded; gives each partition its version.",
    )
    def stored(context: dg.AssetCheckExecutionContext, store: Store) -> dg.AssetCheckResult:
        partitions = list(context.op_execution_context.partition_keys)
        differing = []
        for partition in partitions:
            event = _latest_materialization(context, key, partition)
            recorded = event.metadata[CONTENT_HASH].value if event is not None else None
            found = hash_of(store.path, partition)
            if event is None or recorded != found:
                differing.append(f"{partition}: recorded {recorded}, stored {found}")
            elif len(partitions) > 1:
                record_version(context.op_execution_context, event, found)
        return dg.AssetCheckResult(
            passed=not differing,
            metadata={"partitions": len(partitions), "differing": differing[:MOST_ROWS_SHOWN]},
        )

    return stored


def record_version(
    context: dg.OpExecutionContext, event: dg.AssetMaterialization, version: str
) -> None:
    """Record a materialization again with its own data version; provenance tags are kept."""
    context.log_event(
        event._replace(
            tags={
                **(event.tags or {}),
                DATA_VERSION_TAG: version,
                DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
            }
        )
    )


def column_schema(schema: Mapping[str, pl.DataType]) -> dg.TableSchema:
    """Columns and dtypes of a frame for `dagster/column_schema`."""
    return dg.TableSchema(
        columns=[dg.TableColumn(name, type=str(dtype)) for name, dtype in schema.items()]
    )


def rows_table(rows: Iterable[Mapping[str, object]]) -> dg.MetadataValue:
    """A metadata table of the first rows; values as text, so that columns may mix types."""
    shown = list(islice(rows, MOST_ROWS_SHOWN))
    names = list(dict.fromkeys(name for row in shown for name in row)) or ["row"]
    # Every record needs every column: Dagster refuses a table whose rows differ.
    records = [dg.TableRecord({name: str(row.get(name, "")) for name in names}) for row in shown]
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in names])
    return dg.MetadataValue.table(records, schema=schema)


def _latest_materialization(
    context: dg.AssetCheckExecutionContext, key: dg.AssetKey, partition: str
) -> dg.AssetMaterialization | None:
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    return records[0].asset_materialization if records else None
