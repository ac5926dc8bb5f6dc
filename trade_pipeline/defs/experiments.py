"""The assets of each experiment: dataset, policy, backtest, report, promoted.

A factory over `configs/experiments/*.yaml`. Code versions build on each other, so that one changed
YAML value marks what depends on it and all that follows. Start at `build_experiment`.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dagster as dg

from trade_pipeline.backtest.plugins.installed import strategy_versions
from trade_pipeline.defs.features import feature_set_version
from trade_pipeline.defs.partitions import same_partition, these_series
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.promotion import build_promoted
from trade_pipeline.defs.regimes import build_regimes
from trade_pipeline.defs.resources import Store, compute_key
from trade_pipeline.defs.trials import (
    POOL,
    defined,
    discarded_on_failure,
    train_trial,
    training_pictures,
)
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.code_version import code_version, implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import write_json
from trade_pipeline.training import ledger, recipe


@dataclass(frozen=True)
class Versions:
    """Code versions of an experiment's assets, each built on the one before."""

    dataset: str
    policy: str
    backtest: str
    report: str


def experiment_versions(
    experiment: ExperimentSettings, project: Project, feature_set: FeatureSet
) -> Versions:
    """Hash what each asset depends on; a comment in a YAML file changes nothing."""
    resolved = experiment.model_dump(mode="json", by_alias=True)
    variants = {
        name: [part.model_dump(mode="json") for part in experiment.variant(name)]
        for name in experiment.variants
    }
    keys = dict.fromkeys((*experiment.series, *feature_set.references))
    dataset = code_version(
        {
            **{key: resolved[key] for key in ("series", "from", "to", "splits", "final_from")},
            "settings": [project.series[key].model_dump(mode="json") for key in keys],
            "feature_set": feature_set_version(feature_set),
            "scaling": feature_set.scaling,
        },
        _implementations("training.dataset"),
    )
    regimes = {} if experiment.regimes is None else {"regimes": resolved["regimes"]}
    policy = code_version(
        {"dataset": dataset, "variants": variants, **regimes},
        _implementations("simulator.kernel", "training.trainer"),
    )
    backtest = code_version(
        {"policy": policy},
        _implementations("backtest.engine", "evaluation.metrics"),
    )
    strategies = strategy_versions(experiment.baselines).items()
    report = code_version(
        {"backtest": backtest, "baselines": resolved["baselines"], "seeds": resolved["seeds"]},
        _implementations("backtest.experiment_report", "backtest.leaderboard", "backtest.rules")
        | {f"strategy.{strategy}": of for strategy, of in strategies},
    )
    return Versions(dataset, policy, backtest, report)


def _implementations(*parts: str) -> dict[str, int | str]:
    return {part: implementation_of(f"trade_pipeline.{part}") for part in parts}


def build_experiment(
    name: str,
    project: Project,
    feature_set: FeatureSet,
    features: dg.AssetsDefinition,
    manifest: dg.AssetsDefinition,
) -> dict[str, dg.AssetsDefinition]:
    """Dataset, policy, backtest, report, promoted, and regimes if any, by these names."""
    experiment = project.experiments[name]
    versions = experiment_versions(experiment, project, feature_set)
    trials = experiment.trials()
    trial_partitions = dg.StaticPartitionsDefinition(list(trials))
    origin = str(project.configs / "experiments" / f"{name}.yaml")

    @dg.asset(
        key=[name, "dataset"],
        deps=[
            dg.AssetDep(features, partition_mapping=these_series(experiment.series)),
            dg.AssetDep(manifest, partition_mapping=these_series(experiment.series)),
        ],
        code_version=versions.dataset,
        io_manager_key="bundles",
        group_name=name,
        kinds={"numpy"},
        description="Aligned bars, features and folds; what training and backtests read.",
    )
    def dataset(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.backtest.plugins.loading import check_parameters
        from trade_pipeline.training.assemble import assemble_dataset
        from trade_pipeline.training.dataset import write_dataset

        # Only reports run them, but nobody wants to hear of a misspelt parameter after training.
        for problem in check_parameters(experiment.baselines, origin):
            context.log.warning(f"{name}/report will fail: {problem}")
        built = assemble_dataset(store.path, project, experiment, feature_set, origin)
        staging = bundles.staging(store.path, f"{name}-dataset")
        with discarded_on_failure(staging):
            made_with = recipe.recipe_of(name, project, feature_set).model_dump(mode="json")
            write_json(staging.child(recipe.MEMBER), made_with)
            reference = write_dataset(built, staging)
        return dg.MaterializeResult(
            value=reference,
            data_version=dg.DataVersion(reference.version),
            metadata={
                "dagster/row_count": len(built.ts),
                "instruments": list(built.instruments),
                "features": list(built.feature_names),
                "slices": len(built.segments),
                "folds": len(built.folds),
                "first_bar": _utc(built.ts[0]),
                "last_bar": _utc(built.ts[-1]),
            },
        )

    regimes = None
    if experiment.regimes is not None:
        regimes = build_regimes(
            name, experiment, experiment.regimes, dataset, versions.dataset, origin
        )

    @dg.asset(
        key=[name, "policy"],
        partitions_def=trial_partitions,
        deps=[dataset] if regimes is None else [dataset, regimes.used_by_trials],
        code_version=versions.policy,
        io_manager_key="bundles",
        required_resource_keys={compute_key(experiment.compute), "store"},
        group_name=name,
        kinds={"pytorch", "stablebaselines3"},
        description="A trained policy; partition <variant>.f<fold>.s<seed>.",
        metadata={"variants": dg.MetadataValue.md(_variants(experiment))},
        pool=POOL,
    )
    def policy(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        trial = trials[context.partition_key]
        trained = train_trial(context, name, experiment, trial)
        return dg.MaterializeResult(
            value=trained.reference,
            data_version=dg.DataVersion(trained.reference.version),
            metadata={
                **defined(trained.metrics),
                **training_pictures(trained.reference.location, f"{name}: {trial.key}"),
            },
        )

    @dg.asset(
        key=[name, "backtest"],
        partitions_def=trial_partitions,
        deps=[dg.AssetDep(policy, partition_mapping=same_partition()), dataset],
        code_version=versions.backtest,
        io_manager_key="bundles",
        group_name=name,
        kinds={"numba"},
        description="The policy on its fold's test part, through the simulator's kernel.",
    )
    def backtest(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.backtest.trial import backtest_trial

        trial = trials[context.partition_key]
        staging = bundles.staging(store.path, f"{name}-backtest-{trial.key}")
        with discarded_on_failure(staging):
            done = backtest_trial(store.path, name, experiment, trial, staging)
        return dg.MaterializeResult(
            value=done.reference,
            data_version=dg.DataVersion(done.reference.version),
            metadata={
                **defined(done.headline),
                "dagster/row_count": done.bars,
                "equity": png("equity and drawdown", done.picture),
            },
        )

    @dg.asset(
        key=[name, "report"],
        deps=[dg.AssetDep(backtest, partition_mapping=dg.AllPartitionMapping()), dataset],
        code_version=versions.report,
        io_manager_key="bundles",
        group_name=name,
        kinds={"plotly"},
        description="All trials beside the baselines, after costs, as one page.",
    )
    def report(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.backtest.experiment_report import write_report

        staging = bundles.staging(store.path, f"{name}-report")
        with discarded_on_failure(staging):
            done = write_report(store.path, name, experiment, staging, context.log.info)
        home = layout.experiment_bundle(store.path, name, "report")
        page = home.child(done.reference.version, "report.html").path
        tried = ledger.trials_tried(store.path, experiment=name)
        return dg.MaterializeResult(
            value=done.reference,
            data_version=dg.DataVersion(done.reference.version),
            metadata={
                "report": dg.MetadataValue.path(str(page)),
                "leaderboard": dg.MetadataValue.md(done.table),
                "trials ever tried": tried.trials,
                "configurations ever tried": tried.configurations,
                "equity": png("equity of policy and baselines", done.picture),
            },
        )

    promoted = build_promoted(name, experiment, report, versions.report)
    of_regimes = (
        {} if regimes is None else {"regime_model": regimes.model, "regimes": regimes.regimes}
    )
    return {
        "dataset": dataset,
        **of_regimes,
        "policy": policy,
        "backtest": backtest,
        "report": report,
        "promoted": promoted,
    }


def _variants(experiment: ExperimentSettings) -> str:
    """What each variant changes, as a table."""
    rows = [
        f"| {name} | `{yaml_text(overrides, one_line=True)}` |"
        for name, overrides in experiment.variants.items()
    ]
    return "\n".join(["| variant | overrides |", "|---|---|", *rows])


def _utc(ms: Any) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat()
