"""The `<experiment>/regime_model` and `<experiment>/regimes` assets, one partition a fold.

Only experiments that configure `regimes` have them. Start at `build_regimes`.
"""

from typing import Any, NamedTuple

import dagster as dg

from trade_pipeline.defs.checks import column_schema
from trade_pipeline.defs.partitions import same_partition
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store
from trade_pipeline.defs.trials import discarded_on_failure
from trade_pipeline.settings.code_version import code_version, implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import content_hash


class RegimeAssets(NamedTuple):
    """What an experiment with regimes adds.

    Attributes:
        model: partitions `f0`, `f1` and so on.
        regimes: likewise.
        used_by_trials: from each trial to its fold's model.
    """

    model: dg.AssetsDefinition
    regimes: dg.AssetsDefinition
    used_by_trials: dg.AssetDep


def regime_version(dataset_version: str, settings: RegimeSettings) -> str:
    """Code version of an experiment's regime models."""
    return code_version(
        {"dataset": dataset_version, "regimes": settings.model_dump(mode="json")},
        {
            part: implementation_of(f"trade_pipeline.{part}")
            for part in ("features.regimes.fit", "training.regimes")
        },
    )


def build_regimes(
    name: str,
    experiment: ExperimentSettings,
    settings: RegimeSettings,
    dataset: dg.AssetsDefinition,
    dataset_version: str,
    origin: str,
) -> RegimeAssets:
    """Both assets of one experiment.

    Args:
        name: of the experiment.
        experiment: whose folds are the partitions.
        settings: its `regimes`.
        dataset: what is fitted on.
        dataset_version: code version of it.
        origin: the experiment's file, as errors name it.
    """
    keys = {key: fold for fold, key in enumerate(experiment.fold_keys)}
    folds = dg.StaticPartitionsDefinition(list(keys))

    @dg.asset(
        key=[name, "regime_model"],
        partitions_def=folds,
        deps=[dataset],
        code_version=regime_version(dataset_version, settings),
        io_manager_key="bundles",
        group_name=name,
        kinds={"hmmlearn"},
        description="Hidden Markov model of the market's states, fitted on a fold's training part.",
    )
    def regime_model(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.features.regimes import pictures
        from trade_pipeline.training.dataset import load_dataset
        from trade_pipeline.training.regimes import fit_fold, write_regime_model

        fold = keys[context.partition_key]
        current = bundles.current(layout.experiment_bundle(store.path, name, "dataset"))
        opened = load_dataset(current)
        staging = bundles.staging(store.path, f"{name}-regime_model-{context.partition_key}")
        with discarded_on_failure(staging):
            fitted = fit_fold(opened, settings, fold, origin)
            reference = write_regime_model(fitted, opened, settings, fold, staging)
        title = f"{name}, fold {fold}"
        return dg.MaterializeResult(
            value=reference,
            data_version=dg.DataVersion(reference.version),
            metadata={
                "states": fitted.model.states,
                "inputs": list(settings.inputs),
                "fits": fitted.trials.height,
                "transition": png(
                    "transition matrix", pictures.transition_png(fitted.model, title)
                ),
                "means": png("state means", pictures.state_means_png(fitted.model, title)),
                "bic": png("BIC by number of states", pictures.bic_png(fitted.trials, title)),
            },
        )

    @dg.asset(
        key=[name, "regimes"],
        partitions_def=folds,
        deps=[dg.AssetDep(regime_model, partition_mapping=same_partition()), dataset],
        code_version=regime_version(dataset_version, settings),
        io_manager_key="frames",
        group_name=name,
        kinds={"polars", "parquet"},
        description="The likeliest state at each bar and how likely each is, as known then.",
    )
    def regimes(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult[Any]:
        from trade_pipeline.features.regimes import pictures
        from trade_pipeline.training.dataset import load_dataset
        from trade_pipeline.training.regimes import load_regimes, regime_table, series_of

        fold = keys[context.partition_key]
        home = layout.experiment_bundle(store.path, name, "regime_model", context.partition_key)
        current = bundles.current(layout.experiment_bundle(store.path, name, "dataset"))
        opened = load_dataset(current)
        known = load_regimes(bundles.current(home), opened, fold)
        table = regime_table(opened, known)
        series = series_of(opened, settings)
        at = opened.instruments.index(series)
        picture = pictures.price_by_regime_png(
            opened.ts,
            opened.close[:, at],
            table["regime"].to_numpy(),
            known.model.states,
            f"{name}, fold {fold}: {series}",
        )
        shares = table["regime"].value_counts(normalize=True).sort("regime")
        return dg.MaterializeResult(
            value=table,
            data_version=dg.DataVersion(content_hash(table)),
            metadata={
                "dagster/row_count": table.height,
                "dagster/column_schema": column_schema(table.schema),
                "share of each": dg.MetadataValue.json(
                    {str(regime): round(share, 4) for regime, share in shares.iter_rows()}
                ),
                "price": png("price by regime", picture),
            },
        )

    by_fold = {
        key: [trial.key for trial in experiment.trials().values() if trial.fold == fold]
        for key, fold in keys.items()
    }
    used = dg.AssetDep(regime_model, partition_mapping=dg.StaticPartitionMapping(by_fold))
    return RegimeAssets(regime_model, regimes, used)
