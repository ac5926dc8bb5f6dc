"""The job that backtests any saved policy or baseline over any range, from the launchpad.

What came out is kept as a bundle and listed at the asset `adhoc_backtest`, a partition a request.
A wrong request is one sentence, and nothing is touched. Start at `build_adhoc`.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
)

from trade_pipeline.backtest.adhoc.request import AdhocRequest, parse_request
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store
from trade_pipeline.defs.trials import defined, discarded_on_failure
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout

if TYPE_CHECKING:
    from trade_pipeline.backtest.adhoc.run import AdhocBacktest

ASSET, JOB, OP = "adhoc_backtest", "adhoc_backtest_job", "adhoc"
DEFAULT_DAYS = 90  # of the range that the launchpad opens with


def build_adhoc(
    project: Project,
    feature_sets: Mapping[str, FeatureSet],
    policies: Sequence[dg.AssetsDefinition],
) -> tuple[dg.AssetSpec, dg.JobDefinition]:
    """The asset at which backtests are listed, and the job that makes them.

    Args:
        project: settings of everything.
        feature_sets: those that can be computed, by name.
        policies: `<experiment>/policy` of each experiment.
    """
    asset = dg.AssetSpec(
        key=ASSET,
        deps=[
            dg.AssetDep(policy, partition_mapping=dg.AllPartitionMapping()) for policy in policies
        ],
        group_name="adhoc",
        kinds={"numba", "plotly"},
        partitions_def=dg.DynamicPartitionsDefinition(name=ASSET),
        description=f"Backtests that were asked for with the job {JOB}; a partition a request.",
    )

    @dg.op(
        name=OP,
        out=dg.Out(dg.Nothing),
        required_resource_keys={"store"},
        config_schema=dg.Permissive(_fields()),  # type: ignore[no-untyped-call]
        description="Backtest a saved policy or a baseline over a range of stored series.",
    )
    def adhoc(context: dg.OpExecutionContext) -> None:
        from trade_pipeline.backtest.adhoc.run import write

        store: Store = context.resources.store
        done = _run(store, project, feature_sets, context.op_config)
        for note in done.notes:
            context.log.warning(note)
        staging = bundles.staging(store.path, ASSET)
        with discarded_on_failure(staging):
            written = write(done, staging)
        key, version = done.request.key, written.reference.version
        home = layout.adhoc_backtest(store.path, key)
        known = bundles.current_version(home) == version
        bundle = bundles.commit(written.reference, home)
        said = "as it was stored before" if known else "new"
        context.log.info(f"{ASSET}/{key}, version {version}: {said}")
        context.instance.add_dynamic_partitions(ASSET, [key])
        context.log_event(
            dg.AssetMaterialization(
                ASSET,
                partition=key,
                metadata={
                    **_warnings(done),
                    **defined(written.headline),
                    "dagster/row_count": len(done.result.ts),
                    "report": dg.MetadataValue.path(str(bundle.child("report.html").path)),
                    "request": dg.MetadataValue.json(done.request.document()),
                    "equity": png(done.title, written.picture),
                },
                tags={DATA_VERSION_TAG: version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"},
            )
        )

    @dg.job(
        name=JOB,
        config={"ops": {OP: {"config": _default(project)}}},
        description="Backtest any saved policy or a baseline over any range of stored series, with "
        f"costs and equity of your choice. What comes out is listed at {ASSET}.",
    )
    def job() -> None:
        adhoc()

    return asset, job


def requested(config: Mapping[str, Any]) -> dict[str, Any]:
    """The request as written: empty texts, lists and mappings are what the launchpad shows."""
    return {name: value for name, value in config.items() if value not in ("", [], {}, None)}


def _fields() -> dict[str, dg.Field]:
    """The keys that the launchpad completes and describes, of any value.

    Dagster would answer a wrong value or key with its schema; `parse_request` has a sentence.
    """
    return {
        field.alias or name: dg.Field(dg.Any, is_required=False, description=field.description)
        for name, field in AdhocRequest.model_fields.items()
    }


def _run(
    store: Store,
    project: Project,
    feature_sets: Mapping[str, FeatureSet],
    config: Mapping[str, Any],
) -> "AdhocBacktest":
    """Check and compute.

    Raises:
        Failure: the request makes no sense, or what it needs is not stored; nothing was touched.
    """
    from trade_pipeline.backtest.adhoc.resolution import resolve
    from trade_pipeline.backtest.adhoc.run import REFUSALS, run

    try:
        request = resolve(parse_request(requested(config)), store.path, project, feature_sets)
        return run(request, store.path, project)
    except REFUSALS as error:
        raise dg.Failure(str(error), allow_retries=False) from None


def _warnings(done: "AdhocBacktest") -> dict[str, Any]:
    """What to tell before any figure; nothing where there is nothing to tell."""
    if not done.notes:
        return {}
    found: dict[str, Any] = {
        "warnings": dg.MetadataValue.md("\n".join(f"- {note}" for note in done.notes))
    }
    if done.seen.label:
        found["in-sample"] = done.seen.label
    return found


def _default(project: Project) -> dict[str, Any]:
    """What the launchpad opens with: the first experiment's first trial, or buy and hold."""
    empty: dict[str, Any] = {
        "policy": "",
        "version": "",
        "baseline": {},
        "series": [],
        "features": "",
        "from": "",
        "to": "",
        "costs": {},
        "environment": {},
        "include_final": False,
    }
    for name, experiment in project.experiments.items():
        end = experiment.final_from or experiment.end
        start = max(experiment.start, end - timedelta(days=DEFAULT_DAYS))
        trial = next(iter(experiment.trials()))
        chosen = {"policy": f"{name}/policy/{trial}", "from": str(start), "to": str(end)}
        return empty | chosen
    return empty | {"baseline": {"kind": "buy_and_hold"}, "series": [next(iter(project.series))]}
