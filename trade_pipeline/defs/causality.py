"""Checks that people see in the UI: nothing looks ahead, neither features nor observations.

Start at `causal_check` and `observations_check`.
"""

from typing import Any

import dagster as dg
import polars as pl

from trade_pipeline.defs.checks import rows_table
from trade_pipeline.defs.resources import Store
from trade_pipeline.features import causality_verdicts as verdicts
from trade_pipeline.features.assemble import read_segments
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import content_hash, read_frame


def causal_check(
    name: str, asset: dg.AssetsDefinition, feature_set: FeatureSet, project: Project
) -> dg.AssetChecksDefinition:
    """Blocking check that no column looks ahead or rests on more bars than it declares.

    What it finds is kept: no dataset is built on such a table, in this run or later.

    Args:
        name: of the set.
        asset: `features/<set>`.
        feature_set: of it.
        project: settings of its series.
    """

    @dg.asset_check(
        asset=asset.key,
        name="causal",
        blocking=True,
        description="No value changes when later bars arrive (every prefix of 1,000 consecutive "
        "rows, and a sample of all others), nor with more history than the lookback. Over all "
        "series, those of earlier runs too.",
    )
    def causal(context: dg.AssetCheckExecutionContext, store: Store) -> dg.AssetCheckResult:
        from trade_pipeline.features.causality_check import check_feature_set

        hints: list[dict[str, Any]] = []
        rows = cuts = 0
        seconds = 0.0
        keys = list(context.op_execution_context.partition_keys)
        for number, key in enumerate(keys, start=1):
            if feature_set.timeframe not in (None, project.series[key].timeframe):
                verdicts.keep(store.path, name, key, "", ())  # its table is empty
                continue
            segments = read_segments(store.path, key, project.series, feature_set)
            checked = check_feature_set(segments, feature_set)
            series = pl.lit(key).alias("series")
            digest = content_hash(read_frame(layout.features(store.path, name, key)))
            verdicts.keep(store.path, name, key, digest, checked.violations.to_dicts())
            hints += checked.decay.filter("suspect").select(series, pl.all()).to_dicts()
            rows, cuts = rows + checked.rows, cuts + checked.cuts
            seconds += checked.seconds
            context.log.info(
                f"{key} ({number} of {len(keys)}): {checked.cuts} prefixes of {checked.rows} bars "
                f"in {checked.seconds:.1f} s, {checked.violations.height} violations"
            )
        standing = verdicts.standing(store.path, name, project.series)
        found = [{"series": key, **row} for key, rows_ in standing.items() for row in rows_]
        return dg.AssetCheckResult(
            passed=not found,
            description=_said(found),
            metadata={
                "violations": rows_table(found),
                "bars": rows,
                "prefixes": cuts,
                "seconds": round(seconds, 1),
                "foretell one bar and no more (look at these)": rows_table(hints),
            },
        )

    return causal


def _said(found: list[dict[str, str]]) -> str:
    if not found:
        return "No column of any series looks ahead."
    first = found[0]
    return (
        f"{first['series']}: {first['column']}, {first['kind']}, first at {first['ts']}: "
        f"{first['problem']}" + (f" And {len(found) - 1} more." if len(found) > 1 else "")
    )


def observations_check(
    name: str, dataset: dg.AssetsDefinition, experiment: ExperimentSettings
) -> dg.AssetChecksDefinition:
    """Blocking check that the environments of an experiment show nothing of later rows.

    Args:
        name: of the experiment.
        dataset: its asset.
        experiment: whose variants are tried.
    """

    @dg.asset_check(
        asset=dataset.key,
        name="causal",
        blocking=True,
        description="No observation of an episode changes when later bars and features do.",
    )
    def causal(store: Store) -> dg.AssetCheckResult:
        from trade_pipeline.training.dataset import load_dataset
        from trade_pipeline.training.observation_check import check_observations

        home = layout.experiment_bundle(store.path, name, "dataset")
        opened = load_dataset(bundles.current(home), check=False)
        environments = [experiment.variant(variant)[0] for variant in experiment.variants]
        different = {one.model_dump_json(): one for one in environments}
        audits = [check_observations(opened, one) for one in different.values()]
        return dg.AssetCheckResult(
            passed=all(one.verdict == "clean" for one in audits),
            metadata={
                "environments": len(audits),
                "report": dg.MetadataValue.md("\n\n".join(one.report() for one in audits)),
            },
        )

    return causal
