"""The notebook face: bars, features, policies and backtests of a store, without Dagster.

Every function takes `configs` and `store`; without them `TRADE_PIPELINE_CONFIGS` and
`TRADE_PIPELINE_STORE` count, else the folders `configs` and `store` of the working folder.
"""

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from trade_pipeline.backtest.adhoc.request import parse_request
from trade_pipeline.backtest.adhoc.resolution import resolve as resolve_request
from trade_pipeline.backtest.adhoc.run import AdhocBacktest
from trade_pipeline.backtest.adhoc.run import run as run_adhoc
from trade_pipeline.backtest.compare.differences import doubts, metric_differences
from trade_pipeline.backtest.compare.sides import load_side
from trade_pipeline.backtest.engine import BacktestResult
from trade_pipeline.backtest.engine import backtest as run_backtest
from trade_pipeline.backtest.promotion_record import promoted
from trade_pipeline.backtest.strategies import PolicyStrategy
from trade_pipeline.backtest.trial import require_dataset
from trade_pipeline.features.plugins.loading import load_plugins
from trade_pipeline.features.registry import BrokenPluginError
from trade_pipeline.features.registry import resolve as resolve_features
from trade_pipeline.market.bars import adjusted
from trade_pipeline.market.stored import read_bars
from trade_pipeline.settings.base import SettingsError, closest
from trade_pipeline.settings.experiment import ExperimentSettings, Trial
from trade_pipeline.settings.project import Places, read_project
from trade_pipeline.settings.series import find_series
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import StorageError, read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.policy import PolicyRunner


@dataclass(frozen=True)
class Policy:
    """A trained policy as stored: its network, ready to act, and what it was trained as."""

    experiment: str
    trial: Trial
    settings: ExperimentSettings
    runner: PolicyRunner
    store: Path


def load_bars(
    series: str,
    adjust: bool = True,
    configs: Path | str | None = None,
    store: Path | str | None = None,
) -> pl.DataFrame:
    """All stored bars of a series, `ts` in UTC, only bars that traded.

    Args:
        series: key of configs/series.yaml, such as `sample.AAPL.1d`.
        adjust: multiply prices by `adj_factor` (stocks), and divide volume by known splits;
            otherwise as the source has them.
        configs: configs folder.
        store: store folder.

    Raises:
        SettingsError: there is no such series.
        StorageError: nothing is stored for it.
    """
    places = _places(configs, store)
    find_series(read_project(places.configs).series, series, "load_bars")
    stored = read_bars(places.store, series)
    return adjusted(stored.bars, stored.actions) if adjust else stored.bars


def load_features(
    feature_set: str,
    series: str,
    configs: Path | str | None = None,
    store: Path | str | None = None,
) -> pl.DataFrame:
    """The feature table of a series: `ts` and Float32 columns, unscaled.

    Raises:
        SettingsError: there is no such series or feature set.
        StorageError: it is not materialized.
    """
    places = _places(configs, store)
    project = read_project(places.configs)
    find_series(project.series, series, "load_features")
    if feature_set not in project.feature_sets:
        known = closest(feature_set, list(project.feature_sets))
        raise SettingsError(f"load_features: unknown feature set {feature_set!r}.{known}")
    location = layout.features(places.store, feature_set, series)
    if not location.path.exists():
        raise StorageError(f"features/{feature_set} of {series} are not materialized.")
    return read_frame(location)


def load_policy(
    experiment: str,
    trial: str | None = None,
    configs: Path | str | None = None,
    store: Path | str | None = None,
    bundle: str | None = None,
) -> Policy:
    """The promoted policy, or the current version of a trial's, verified member by member.

    Args:
        experiment: name of a file of configs/experiments.
        trial: its key, `<variant>.f<fold>.s<seed>`; None is the policy that is promoted.
        configs: configs folder.
        store: store folder.
        bundle: key of another policy, such as `imported/mine`, in the place of that trial's: to
            backtest it on the trial's test part.

    Raises:
        SettingsError: there is no such experiment or trial.
        BundleError: it is not trained or promoted, or a byte of it was changed.
    """
    places = _places(configs, store)
    experiments = read_project(places.configs).experiments
    if experiment not in experiments:
        known = closest(experiment, list(experiments))
        raise SettingsError(f"load_policy: unknown experiment {experiment!r}.{known}")
    settings = experiments[experiment]
    if trial is None and bundle is not None:
        raise SettingsError(
            f"load_policy: name a trial of {experiment}, whose test part {bundle} is for."
        )
    if trial is None:
        chosen = promoted(places.store, experiment)
        if chosen is None:
            raise bundles.BundleError(
                f"load_policy: {experiment} has no promoted policy; materialize "
                f"{experiment}/promoted, or name a trial."
            )
        runner = PolicyRunner.load(chosen.location(places.store))
        made_by = Trial(chosen.trial, chosen.variant, chosen.fold, chosen.seed)
        return Policy(experiment, made_by, settings, runner, places.store)
    trials = settings.trials()
    if trial not in trials:
        raise SettingsError(
            f"load_policy: {experiment} has no trial {trial!r}.{closest(trial, list(trials))}"
        )
    home = layout.experiment_bundle(places.store, experiment, "policy", trial)
    if bundle is not None:
        home = ArtifactLocation(places.store, bundle)
    runner = PolicyRunner.load(bundles.current(home))
    return Policy(experiment, trials[trial], settings, runner, places.store)


def backtest(policy: Policy) -> BacktestResult:
    """Run a policy over the test part of its fold; the same numbers as the asset's.

    Raises:
        BundleError: there is no dataset, or a byte of it was changed.
        StorageError: the policy was trained on another version of the dataset.
    """
    home = layout.experiment_bundle(policy.store, policy.experiment, "dataset")
    dataset = load_dataset(bundles.current(home))
    require_dataset(policy.runner, dataset, f"{policy.experiment}/policy {policy.trial.key}")
    environment, _ = policy.settings.variant(policy.trial.variant)
    return run_backtest(
        dataset,
        dataset.folds[policy.trial.fold].test,
        environment,
        PolicyStrategy(policy.runner, policy.trial.key),
        policy.experiment,
    )


def compare(a: str, b: str, store: Path | str | None = None) -> pl.DataFrame:
    """The figures of two reports or backtests: `metric`, `a`, `b`, `difference` (B minus A).

    Beside an undefined figure, `undefined_a` and `undefined_b` say why. What makes the two unlike,
    such as other markets, is warned of.

    Args:
        a: key such as `aapl_ppo/report`, or `key@version` for another than the current version.
        b: the other one.
        store: store folder.

    Raises:
        StorageError: one is not there, or is neither report nor backtest.
    """
    for one in (a, b):
        if not isinstance(one, str):
            raise StorageError(f"compare: {one!r} is no key; give two such as 'aapl_ppo/report'.")
    folder = _places(None, store).store
    sides = load_side(folder, a), load_side(folder, b)
    for line in doubts(*sides):
        warnings.warn(line, stacklevel=2)
    return metric_differences(*sides)


def adhoc_backtest(
    start: str,
    end: str,
    policy: str | None = None,
    baseline: Mapping[str, Any] | None = None,
    configs: Path | str | None = None,
    store: Path | str | None = None,
    **request: Any,
) -> AdhocBacktest:
    """Run any saved policy or a baseline over any stored range; nothing is stored.

    Args:
        start: first bar: a date, or a date and time, UTC.
        end: exclusive end.
        policy: key of a stored policy, such as `aapl_ppo/policy/base.f0.s0` or `imported/mine`.
        baseline: in its place an entry of an experiment's baselines, such as
            `{"kind": "buy_and_hold"}`.
        configs: configs folder.
        store: store folder.
        request: what else an `AdhocRequest` has: `series`, `features`, `costs`, `initial_equity`,
            `environment`, `version`, `include_final`.

    Returns:
        `result`, `beside` (buy and hold, flat) and `notes`: training rows in the range come first.

    Raises:
        SettingsError: the request makes no sense.
        StorageError: what it needs is not stored.
    """
    places = _places(configs, store)
    project = read_project(places.configs, places.indicator_files)
    given = {"from": start, "to": end, "policy": policy, "baseline": baseline, **request}
    asked = parse_request({name: value for name, value in given.items() if value is not None})
    plugins = load_plugins(places.indicator_files)
    sets = {}
    for name, settings in project.feature_sets.items():
        # A set that a plug-in stops is unknown, as in the web UI; others go on.
        with suppress(BrokenPluginError):
            sets[name] = resolve_features(settings, f"features/{name}", plugins)
    return run_adhoc(resolve_request(asked, places.store, project, sets), places.store, project)


def _places(configs: Path | str | None, store: Path | str | None) -> Places:
    found = Places.from_environment(os.environ)
    return Places(
        configs=found.configs if configs is None else Path(configs).resolve(),
        store=found.store if store is None else Path(store).resolve(),
        indicators=found.indicators,
    )
