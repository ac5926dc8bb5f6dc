"""The job `<experiment>_search`: looks for better settings, judged by the validation part alone.

Every training of it stands in the ledger and at `<experiment>/tried`; its policies are not kept. A
search that was killed or cancelled goes on when the job is started again. Start at `build_search`.
"""

import shutil
from typing import TYPE_CHECKING, Any

import dagster as dg

from trade_pipeline.compute.base import TaskError
from trade_pipeline.defs.overrides import record
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store, compute_key
from trade_pipeline.defs.trials import POOL, train_trial
from trade_pipeline.settings.base import SettingsError, yaml_text
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.overrides import at_paths, merge
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.search import SearchSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.location import StorageError

if TYPE_CHECKING:
    from trade_pipeline.training.search import Searched


def build_search(name: str, project: Project) -> dg.JobDefinition | None:
    """The job that searches; None where the experiment's file has no `search`."""
    experiment = project.experiments[name]
    settings = experiment.search
    if settings is None:
        return None

    @dg.op(
        name=f"search_{name}",
        out=dg.Out(dg.Nothing),
        required_resource_keys={compute_key(experiment.compute), "store"},
        pool=POOL,
        description=f"Try {settings.trials} settings; goes on where it was.",
    )
    def search(context: dg.OpExecutionContext) -> None:
        found = _search(context, name, experiment, settings)
        listed = experiment.variants[settings.variant]
        best = {"variants": {f"{settings.variant}_found": merge(listed, at_paths(found.best))}}
        context.log_event(
            dg.AssetMaterialization(
                [name, "search"],
                metadata={
                    "best": dg.MetadataValue.md(f"```yaml\n{yaml_text(best)}```"),
                    "validation_return": found.score,
                    "suggestions scored": found.scored,
                    "suggestions failed": found.failed,
                    "history": png("scores in order", found.picture),
                },
            )
        )

    @dg.job(
        name=f"{name}_search",
        description=f"Look for better settings of {name} on validation; started again, it goes on.",
    )
    def job() -> None:
        search()

    return job


def search_asset(name: str, dataset: dg.AssetsDefinition) -> dg.AssetSpec:
    """Where the outcome of searches is recorded."""
    return dg.AssetSpec(
        key=[name, "search"],
        deps=[dataset],
        group_name=name,
        description="The best settings that the search found so far, by validation return.",
    )


def _search(
    context: dg.OpExecutionContext,
    name: str,
    experiment: ExperimentSettings,
    settings: SearchSettings,
) -> "Searched":
    """Train what Optuna suggests, seed by seed."""
    try:
        from trade_pipeline.training import search as optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise dg.Failure(
            f"{name}_search needs Optuna; run: pip install 'trade_pipeline[search]'",
            allow_retries=False,
        ) from None

    store: Store = context.resources.store
    home = layout.experiment_bundle(store.path, name, "search")
    seeds = settings.seeds or experiment.seeds

    def evaluate(chosen: dict[str, Any]) -> float:
        """Mean validation return over the seeds."""
        overrides = at_paths(chosen)
        try:
            changed = experiment.tried(settings.variant, overrides, seeds, f"{name}/search")
        except SettingsError as error:
            raise optuna.NoScoreError(str(error)) from None
        returns = []
        for trial in changed.trials().values():
            if trial.fold != settings.fold:
                continue
            try:
                trained = train_trial(context, name, changed, trial)
            except TaskError as error:
                raise optuna.NoScoreError(str(error)) from None
            shutil.rmtree(trained.reference.location.path)
            found = trained.metrics["validation_return"]
            if found is None:
                raise optuna.NoScoreError(f"{trial.key} has no validation return.")
            returns.append(float(found))
            metadata = {"overrides": dg.MetadataValue.json(overrides), **trained.metrics}
            record(context, name, trial.key, metadata)
        return sum(returns) / len(returns)

    try:
        dataset = bundles.current(layout.experiment_bundle(store.path, name, "dataset"))
        setup = {
            "dataset": dataset.path.name,
            "variant": [
                part.model_dump(mode="json") for part in experiment.variant(settings.variant)
            ],
            "seeds": list(seeds),
        }
        return optuna.search(settings, setup, home.child("study.db"), evaluate, context.log.info)
    except (StorageError, optuna.SearchError) as error:
        raise dg.Failure(str(error), allow_retries=False) from None
