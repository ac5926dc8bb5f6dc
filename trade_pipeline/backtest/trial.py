"""The backtest of one trial: its policy on the test part of its fold."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trade_pipeline.backtest import engine
from trade_pipeline.backtest.bundle import write_backtest
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.report.pictures import equity_png
from trade_pipeline.backtest.strategies import PolicyStrategy
from trade_pipeline.evaluation import metrics
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.simulator import kernel
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import StorageError
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset, load_dataset
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.regimes import with_regimes

PROVENANCE = "provenance.json"
HEADLINE = ("total_return", "sharpe", "max_drawdown", "turnover", "trades")


@dataclass(frozen=True)
class TrialBacktest:
    """A sealed backtest bundle, its headline figures (null where undefined) and its picture."""

    reference: BundleReference
    headline: dict[str, float | None]
    bars: int
    picture: bytes


def backtest_trial(
    store: Path,
    name: str,
    experiment: ExperimentSettings,
    trial: Trial,
    staging: ArtifactLocation,
) -> TrialBacktest:
    """Run the trial's current policy and write the bundle.

    Raises:
        StorageError: the policy is missing, or was trained on another version of the dataset,
            whose folds need not be those of now.
    """
    policy = bundles.current(layout.experiment_bundle(store, name, "policy", trial.key))
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, name, "dataset")))
    runner = PolicyRunner.load(policy)
    require_dataset(runner, dataset, f"{name}/policy {trial.key}")
    dataset = with_regimes(dataset, runner.regimes)
    environment, _ = experiment.variant(trial.variant)
    test = dataset.folds[trial.fold].test
    result = backtest(dataset, test, environment, PolicyStrategy(runner, trial.key), name)
    write_json(
        staging.child(PROVENANCE),
        {
            "experiment": name,
            "trial": trial.key,
            "fold": trial.fold,
            "dataset_version": dataset.version,
            "policy": {
                "key": policy.path.parent.relative_to(store).as_posix(),
                "version": policy.path.name,
            },
            "environment": environment.model_dump(mode="json"),
            "implementations": implementations(),
        },
    )
    written = write_backtest(
        result,
        dataset,
        staging,
        title=f"{name}: {trial.key}",
        provenance={"dataset": dataset.version, "policy": policy.path.name},
    )
    values: dict[str, Any] = written.metrics["values"]
    return TrialBacktest(
        reference=written.reference,
        headline={key: values[key] for key in HEADLINE},
        bars=len(result.ts),
        picture=equity_png({trial.key: (result.ts, result.equity)}, f"{name}: {trial.key}"),
    )


def implementations() -> dict[str, int]:
    """What makes a backtest of a policy, by part."""
    return {
        "kernel": kernel.IMPLEMENTATION,
        "engine": engine.IMPLEMENTATION,
        "metrics": metrics.IMPLEMENTATION,
    }


def require_dataset(runner: PolicyRunner, dataset: Dataset, origin: str) -> None:
    """Refuse a policy that was trained on another version of the dataset.

    Raises:
        StorageError: names both versions.
    """
    trained_on = runner.specification["dataset_version"]
    if trained_on != dataset.version:
        raise StorageError(
            f"{origin} was trained on dataset {trained_on}, but the current one is "
            f"{dataset.version}; materialize the policy again."
        )
