"""The `manifest` asset: coverage of a series and the slices that training may draw from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.defs.automation import follows_bars
from trade_pipeline.defs.checks import CONTENT_HASH, Checked, combined_version, stored_check
from trade_pipeline.defs.partitions import Partitions, all_years, partitions_of_run
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store
from trade_pipeline.market import coverage as market_coverage
from trade_pipeline.market.stored import read_bars
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import json_hash, read_json


def build_manifest(project: Project, partitions: Partitions, ohlcv: dg.AssetsDefinition) -> Checked:
    """The asset and its check."""

    @dg.asset(
        name="manifest",
        partitions_def=partitions.series,
        deps=[dg.AssetDep(ohlcv, partition_mapping=all_years())],
        backfill_policy=dg.BackfillPolicy.single_run(),
        automation_condition=follows_bars(),
        code_version=code_version({}, {"coverage": market_coverage.IMPLEMENTATION}),
        io_manager_key="documents",
        group_name="market",
        kinds={"json"},
        description="Per day what was expected and found; slices of good days.",
    )
    def manifest(
        context: dg.AssetExecutionContext, store: Store
    ) -> Iterator[dg.MaterializeResult[Any]]:
        from trade_pipeline.market.pictures import coverage_png  # matplotlib takes a second

        documents, hashes = {}, {}
        for key in partitions_of_run(context):
            series = project.series[key]
            stored = read_bars(store.path, key)
            found = market_coverage.coverage(stored.bars, stored.confirmed, series)
            documents[key] = found.to_document(key, series.coverage, stored.hashes)
            hashes[key] = json_hash(documents[key])
            context.add_asset_metadata(
                {
                    CONTENT_HASH: hashes[key],
                    "dagster/row_count": stored.bars.height,
                    "days": found.days.height,
                    "excluded_days": found.days.filter(~found.days["good"]).height,
                    "slices": len(found.slices),
                    "slice_bars": sum(one.rows for one in found.slices),
                    "coverage": png("coverage of each day", coverage_png(found.days)),
                },
                partition_key=key,
            )
        yield dg.MaterializeResult(value=documents, data_version=combined_version(hashes))

    def hash_of(store: Path, partition: str) -> str:
        return json_hash(read_json(layout.manifest(store, partition)))

    return Checked(manifest, stored_check(manifest, hash_of))
