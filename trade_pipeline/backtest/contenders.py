"""Whom an experiment's report compares: each policy and each baseline, over all test parts.

Reads the trials' stored backtests, runs the baselines on the same parts, and finds the policies
behind the backtests to run them again. Start at `stored_trials`, `policies` and `baselines`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from trade_pipeline.backtest import leaderboard
from trade_pipeline.backtest.bundle import figures_of
from trade_pipeline.backtest.curve import Curve, part_scales, stitch
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.open_trips import open_trips
from trade_pipeline.backtest.rules import lowered_leverage, too_few_bars
from trade_pipeline.backtest.sensitivity import Run
from trade_pipeline.backtest.strategies import PolicyStrategy, baseline
from trade_pipeline.backtest.trial import PROVENANCE
from trade_pipeline.evaluation.trades import match_fills
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import StorageError, read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline.training.regimes import with_regimes

# Columns of trades that grow with the account.
MONEY = ("quantity", "gross", "fee", "net", "realised", "unrealised")


class StoredTrial(NamedTuple):
    """A trial with its backtest bundle and the bundle of the policy that was tested."""

    trial: Trial
    backtest: ArtifactLocation
    policy: ArtifactLocation


@dataclass(frozen=True)
class Contender:
    """A policy or baseline: stitched curve and figures of each seed; a baseline has seed 0.

    Figures are those of `bundle.figures_of`.
    """

    name: str
    kind: Literal["policy", "baseline"]
    curves: dict[int, Curve]
    figures: dict[int, dict[str, Any]]

    @property
    def seed(self) -> int:
        """The median seed."""
        return leaderboard.median_seed(self.figures)

    @property
    def middle(self) -> Curve:
        """The median seed's curve."""
        return self.curves[self.seed]


def stored_trials(
    store: Path, name: str, experiment: ExperimentSettings, dataset_version: str
) -> dict[str, StoredTrial]:
    """The current backtest of every trial, all on the dataset of that version.

    Raises:
        StorageError: a trial has no backtest, or backtests ran on different datasets.
    """
    found = {}
    missing = []
    others = []
    for key, trial in experiment.trials().items():
        home = layout.experiment_bundle(store, name, "backtest", key)
        if bundles.current_version(home) is None:
            missing.append(key)
            continue
        location = bundles.current(home)
        made_of = read_json(location.child(PROVENANCE))
        policy = ArtifactLocation(
            store, f"{made_of['policy']['key']}/{made_of['policy']['version']}"
        )
        found[key] = StoredTrial(trial, location, policy)
        if made_of["dataset_version"] != dataset_version:
            others.append(key)
    if others:
        raise StorageError(
            f"{name}/report shows one market, but these backtests ran on another version of the "
            f"dataset than the current {dataset_version}: {', '.join(others)}. Materialize "
            f"{name}/policy and {name}/backtest of these partitions again."
        )
    if missing:
        raise StorageError(
            f"{name}/report needs a backtest of every trial; missing: {', '.join(missing)}. "
            f"Materialize {name}/policy and {name}/backtest of these partitions."
        )
    return found


def policies(
    experiment: ExperimentSettings, stored: Mapping[str, StoredTrial], dataset: Dataset
) -> list[Contender]:
    """Each variant, its folds stitched for each seed."""
    contenders = []
    for variant in experiment.variants:
        curves = {
            seed: stitch([Curve.stored(one.backtest) for one in of(stored, variant, seed)])
            for seed in experiment.seeds
        }
        contenders.append(Contender(variant, "policy", curves, _figures(curves, dataset)))
    return contenders


def baselines(
    experiment: ExperimentSettings, dataset: Dataset, origin: str
) -> tuple[list[Contender], dict[str, list[Run]], list[str]]:
    """Each baseline on the same test parts, window and costs as the first variant.

    Returns:
        The baselines, by name how to run them again, and which could never decide and why.
    """
    environment = first_environment(experiment)
    contenders, runs, notes = [], {}, []
    for settings in experiment.baselines:
        strategy = baseline(settings)
        runs[strategy.name] = [Run(dataset, fold.test, strategy) for fold in dataset.folds]
        parts = [
            Curve.of(backtest(dataset, run.part, environment, strategy, origin))
            for run in runs[strategy.name]
        ]
        tests = [fold.test for fold in dataset.folds]
        short_of_bars = too_few_bars(strategy, dataset, tests, environment.window)
        lowered = lowered_leverage(strategy, len(dataset.instruments), environment)
        notes += [one for one in (short_of_bars, lowered) if one is not None]
        curves = {0: stitch(parts)}
        figures = _figures(curves, dataset)
        contenders.append(Contender(strategy.name, "baseline", curves, figures))
    return contenders, runs, notes


def first_environment(experiment: ExperimentSettings) -> EnvironmentSettings:
    """Of the first variant, which is the one that a report shows."""
    return experiment.variant(next(iter(experiment.variants)))[0]


def of(stored: Mapping[str, StoredTrial], variant: str, seed: int) -> list[StoredTrial]:
    """The trials of a variant and seed, a fold each, in order."""
    return [
        one for one in stored.values() if one.trial.variant == variant and one.trial.seed == seed
    ]


def runs_of(trials: Sequence[StoredTrial], dataset: Dataset) -> list[Run]:
    """How to run the policies of a variant's folds again, each with its fold's regimes.

    Raises:
        BundleError: a policy is not there any more, or a byte of it was changed.
    """
    runs = []
    for one in trials:
        runner = PolicyRunner.load(one.policy)
        seen = with_regimes(dataset, runner.regimes)
        test = dataset.folds[one.trial.fold].test
        runs.append(Run(seen, test, PolicyStrategy(runner, one.trial.key)))
    return runs


def trips_of(trials: Sequence[StoredTrial], dataset: Dataset) -> pl.DataFrame:
    """Trades of a variant's folds, one part after the other, in the money of the stitched curve.

    What was open at the end of a part follows it, as `open_trips` has it.
    """
    curves = [Curve.stored(one.backtest) for one in trials]
    parts = []
    for one, curve, scale in zip(trials, curves, part_scales(curves), strict=True):
        closed = read_frame(one.backtest.child("trades.parquet"))
        tables = match_fills(read_frame(one.backtest.child("fills.parquet")))
        last = int(np.searchsorted(dataset.close_ts, curve.close_ts[-1]))
        both = pl.concat([closed, open_trips(tables, dataset, last)], how="diagonal")
        parts.append(both.with_columns(pl.col(MONEY) * scale))
    return pl.concat(parts)


def _figures(curves: Mapping[int, Curve], dataset: Dataset) -> dict[int, dict[str, Any]]:
    found = {}
    for seed, curve in curves.items():
        rows = np.searchsorted(dataset.close_ts, curve.close_ts)
        found[seed] = figures_of(curve, rows, dataset)
    return found
