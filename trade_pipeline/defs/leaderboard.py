"""The `leaderboard` asset: every policy and baseline of every experiment, after costs."""

from typing import Any

import dagster as dg

from trade_pipeline.backtest import leaderboard as rows
from trade_pipeline.defs.checks import column_schema
from trade_pipeline.defs.resources import Store
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.storage.frames import content_hash


def build_leaderboard(
    reports: dict[str, dg.AssetsDefinition], report_versions: dict[str, str]
) -> dg.AssetsDefinition:
    """The asset over all experiments' reports."""

    @dg.asset(
        name="leaderboard",
        deps=list(reports.values()),
        code_version=code_version(report_versions, {"leaderboard": rows.IMPLEMENTATION}),
        io_manager_key="frames",
        group_name="leaderboard",
        kinds={"polars"},
        description="Median seed of the stitched test curve of each policy, beside the baselines.",
        metadata={"dagster/column_schema": column_schema(rows.SCHEMA)},
    )
    def leaderboard(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        table, broken = rows.combine(store.path, list(reports))
        for line in broken:
            context.log.warning(line)
        return dg.MaterializeResult(
            value=table,
            data_version=dg.DataVersion(content_hash(table)),
            metadata={
                "dagster/row_count": table.height,
                "leaderboard": dg.MetadataValue.md(rows.markdown(table)),
                **({"left out": "\n".join(broken)} if broken else {}),
            },
        )

    return leaderboard
