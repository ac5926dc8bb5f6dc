"""Jobs that try something else from the launchpad, without an edit of the experiment's file.

`<experiment>_override` trains and backtests a variant with overrides, as a trial of its own: the
configured trials and what is current of them stay as they are. What was tried is listed at the
asset `<experiment>/tried`, a partition a trial. Start at `build_override`.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store, compute_key
from trade_pipeline.defs.trials import POOL, defined, discarded_on_failure, train_trial
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.location import StorageError

OVERRIDE = "override"


class OverrideConfig(dg.Config):
    """A variant, and what is different this time."""

    variant: str = Field(description="Of the experiment's file; the overrides change it.")
    fold: int = Field(default=0, description="Which fold to train and test on.")
    seed: int = Field(default=0, description="Need not be one of the experiment's.")
    environment: dict[str, Any] = Field(default={}, description="Overrides, as in variants.")
    algorithm: dict[str, Any] = Field(default={}, description="Overrides, as in variants.")


def build_override(name: str, project: Project) -> dg.JobDefinition:
    """The job that trains and backtests a variant with overrides."""
    experiment = project.experiments[name]
    origin = str(project.configs / "experiments" / f"{name}.yaml")

    @dg.op(
        name=f"{OVERRIDE}_{name}",
        out=dg.Out(dg.Nothing),
        required_resource_keys={compute_key(experiment.compute), "store"},
        pool=POOL,
        description="Train and backtest a variant with overrides.",
    )
    def override(context: dg.OpExecutionContext, config: OverrideConfig) -> None:
        from trade_pipeline.backtest.trial import backtest_trial

        store: Store = context.resources.store
        try:
            changed, trial = overridden(experiment, config, origin)
            trained = train_trial(context, name, changed, trial)
        except (SettingsError, StorageError) as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        bundles.commit(
            trained.reference, layout.experiment_bundle(store.path, name, "policy", trial.key)
        )
        staging = bundles.staging(store.path, f"{name}-backtest-{trial.key}")
        with discarded_on_failure(staging):
            done = backtest_trial(store.path, name, changed, trial, staging)
        bundles.commit(
            done.reference, layout.experiment_bundle(store.path, name, "backtest", trial.key)
        )
        record(
            context,
            name,
            trial.key,
            {
                "overrides": dg.MetadataValue.json(overrides(config)),
                "policy": trained.reference.version,
                "backtest": done.reference.version,
                **trained.metrics,
                **done.headline,
                "dagster/row_count": done.bars,
                "equity": png("equity and drawdown", done.picture),
            },
        )

    first = next(iter(experiment.variants))
    default = {
        "variant": first,
        "fold": 0,
        "seed": experiment.seeds[0],
        "environment": {},
        "algorithm": {},
    }

    @dg.job(
        name=f"{name}_{OVERRIDE}",
        config={"ops": {f"{OVERRIDE}_{name}": {"config": default}}},
        description=f"Train and backtest a variant of {name} with overrides of environment and "
        "algorithm, as a trial of its own; configured trials are left alone.",
    )
    def job() -> None:
        override()

    return job


def tried_asset(name: str, dataset: dg.AssetsDefinition) -> dg.AssetSpec:
    """Where trials that no file lists are recorded: overrides and those of a search."""
    return dg.AssetSpec(
        key=[name, "tried"],
        deps=[dataset],
        group_name=name,
        partitions_def=dg.DynamicPartitionsDefinition(name=_partitions(name)),
        description="Trials from the launchpad and of searches; no report or promotion reads them.",
    )


def overrides(config: OverrideConfig) -> dict[str, Any]:
    """The parts that are overridden."""
    parts = {"environment": config.environment, "algorithm": config.algorithm}
    return {part: values for part, values in parts.items() if values}


def overridden(
    experiment: ExperimentSettings, config: OverrideConfig, origin: str
) -> tuple[ExperimentSettings, Trial]:
    """Check a request.

    Returns:
        The experiment with the new variant alone, and the trial to train.

    Raises:
        SettingsError: variant, fold, seed or an override is wrong; opens with `origin`.
    """
    changed = experiment.tried(config.variant, overrides(config), [config.seed], origin)
    trials = {trial.fold: trial for trial in changed.trials().values()}
    if config.fold not in trials:
        raise SettingsError(
            f"{origin}: there is no fold {config.fold}; the splits give {len(trials)}, "
            "counted from 0."
        )
    trial = trials[config.fold]
    if trial.variant in experiment.variants:
        raise SettingsError(
            f"{origin}: variant {trial.variant!r} is configured already; materialize partition "
            f"{trial.key} of its policy instead."
        )
    if changed.variant(trial.variant) == experiment.variant(config.variant):
        raise SettingsError(
            f"{origin}: the overrides change nothing of variant {config.variant!r}; materialize "
            "its own partition of the policy instead."
        )
    return changed, trial


def record(
    context: dg.OpExecutionContext, name: str, trial: str, metadata: Mapping[str, Any]
) -> None:
    """Record a trial at `<experiment>/tried`; the version of a policy is its data version."""
    context.instance.add_dynamic_partitions(_partitions(name), [trial])
    context.log_event(
        dg.AssetMaterialization([name, "tried"], metadata=defined(metadata), partition=trial)
    )


def _partitions(name: str) -> str:
    return f"{name}_tried"
