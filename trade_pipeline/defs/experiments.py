"""The assets of each experiment: dataset, policy, backtest, report.

A factory over `configs/experiments/*.yaml`. Code versions build on each other, so that one changed
YAML value marks what depends on it and all that follows. Start at `build_experiment`.
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.compute.base import ComputeResource, Task
from trade_pipeline.defs.features import feature_set_version
from trade_pipeline.defs.partitions import same_partition, these_series
from trade_pipeline.defs.pictures import png
from trade_pipeline.defs.resources import Store, compute_key
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.settings.code_version import code_version, implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.location import ArtifactLocation

TRAINING_TASK = "trade_pipeline.training.task"


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
    dataset = code_version(
        {
            **{key: resolved[key] for key in ("series", "from", "to", "splits", "final_from")},
            "settings": [project.series[key].model_dump(mode="json") for key in experiment.series],
            "feature_set": feature_set_version(feature_set),
            "scaling": feature_set.scaling,
        },
        _implementations("training.dataset"),
    )
    policy = code_version(
        {"dataset": dataset, "variants": variants},
        _implementations("simulator.kernel", "training.trainer"),
    )
    backtest = code_version(
        {"policy": policy},
        _implementations("backtest.engine", "evaluation.metrics"),
    )
    report = code_version(
        {"backtest": backtest, "baselines": resolved["baselines"], "seeds": resolved["seeds"]},
        _implementations("backtest.experiment_report", "backtest.leaderboard"),
    )
    return Versions(dataset, policy, backtest, report)


def _implementations(*parts: str) -> dict[str, int]:
    return {part: implementation_of(f"trade_pipeline.{part}") for part in parts}


def build_experiment(
    name: str,
    project: Project,
    feature_set: FeatureSet,
    features: dg.AssetsDefinition,
    manifest: dg.AssetsDefinition,
) -> dict[str, dg.AssetsDefinition]:
    """Dataset, policy, backtest and report of one experiment, by these names."""
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
        from trade_pipeline.training.assemble import assemble_dataset
        from trade_pipeline.training.dataset import write_dataset

        built = assemble_dataset(store.path, project, experiment, feature_set, origin)
        staging = bundles.staging(store.path, f"{name}-dataset")
        with _discarded_on_failure(staging):
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

    @dg.asset(
        key=[name, "policy"],
        partitions_def=trial_partitions,
        deps=[dataset],
        code_version=versions.policy,
        io_manager_key="bundles",
        required_resource_keys={compute_key(experiment.compute), "store"},
        group_name=name,
        kinds={"pytorch", "stablebaselines3"},
        description="A trained policy; partition <variant>.f<fold>.s<seed>.",
        pool="training",
    )
    def policy(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        from trade_pipeline.training.specification import specification

        store: Store = context.resources.store
        compute: ComputeResource = getattr(context.resources, compute_key(experiment.compute))
        trial = trials[context.partition_key]
        staging = bundles.staging(store.path, f"{name}-policy-{trial.key}")
        started = time.monotonic()
        spec = specification(
            experiment=name,
            settings=experiment,
            trial=trial.key,
            dataset=bundles.current(layout.experiment_bundle(store.path, name, "dataset")),
            staging=staging,
            provenance=_provenance(context.run.run_id),
        )
        with _discarded_on_failure(staging):
            result = compute.run_task(context, Task(TRAINING_TASK, spec, staging.path))
        reference = BundleReference(staging, result["version"])
        return dg.MaterializeResult(
            value=reference,
            data_version=dg.DataVersion(reference.version),
            metadata={
                **_defined(result["metrics"]),
                "seconds": round(time.monotonic() - started, 1),
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
        with _discarded_on_failure(staging):
            done = backtest_trial(store.path, name, experiment, trial, staging)
        return dg.MaterializeResult(
            value=done.reference,
            data_version=dg.DataVersion(done.reference.version),
            metadata={
                **_defined(done.headline),
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
        with _discarded_on_failure(staging):
            done = write_report(store.path, name, experiment, staging)
        home = layout.experiment_bundle(store.path, name, "report")
        page = home.child(done.reference.version, "report.html").path
        return dg.MaterializeResult(
            value=done.reference,
            data_version=dg.DataVersion(done.reference.version),
            metadata={
                "report": dg.MetadataValue.path(str(page)),
                "leaderboard": dg.MetadataValue.md(done.table),
                "equity": png("equity of policy and baselines", done.picture),
            },
        )

    return {"dataset": dataset, "policy": policy, "backtest": backtest, "report": report}


@contextmanager
def _discarded_on_failure(staging: ArtifactLocation) -> Iterator[None]:
    """Remove a half-written bundle when its step fails or is cancelled."""
    try:
        yield
    except BaseException:  # a cancelled run raises no Exception
        shutil.rmtree(staging.path, ignore_errors=True)
        raise


def _provenance(run_id: str) -> dict[str, str]:
    """What is known of this run; it goes into informational members only."""
    return {
        "run_id": run_id,
        "commit": _commit(),
        "host": platform.node(),
        "started": datetime.now(UTC).isoformat(),
    }


def _defined(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures that have a value; metadata knows no null."""
    return {name: value for name, value in figures.items() if value is not None}


def _commit() -> str:
    """Commit of the code that runs, or `unknown` outside a git checkout."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def _utc(ms: Any) -> str:
    return datetime.fromtimestamp(int(ms) / 1000, UTC).isoformat()
