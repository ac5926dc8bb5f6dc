"""All definitions of a project: reads `configs/`, builds every asset, checks what they name.

Start at `build_definitions`. Nothing here reads data; a wrong configuration stops here.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec

import dagster as dg

from trade_pipeline.backtest.plugins.installed import check_strategies
from trade_pipeline.defs.adhoc import build_adhoc
from trade_pipeline.defs.automation import build_follower
from trade_pipeline.defs.backfill import build_backfill, build_prune
from trade_pipeline.defs.causality import observations_check
from trade_pipeline.defs.derived import build_derived_sensor
from trade_pipeline.defs.experiments import build_experiment, experiment_versions
from trade_pipeline.defs.features import build_features, resolve_feature_sets
from trade_pipeline.defs.freshness import build_freshness
from trade_pipeline.defs.inbox import build_inbox_sensor
from trade_pipeline.defs.indicators import build_broken, build_indicators_list
from trade_pipeline.defs.leaderboard import build_leaderboard
from trade_pipeline.defs.manifests import build_manifest
from trade_pipeline.defs.ohlcv import build_ohlcv
from trade_pipeline.defs.overrides import build_override, tried_asset
from trade_pipeline.defs.partitions import Partitions
from trade_pipeline.defs.pods import build_pods
from trade_pipeline.defs.resources import build_resources
from trade_pipeline.defs.schedules import build_refresh
from trade_pipeline.defs.search import build_search, search_asset
from trade_pipeline.defs.sensors import build_jobs, build_retrain_sensor
from trade_pipeline.defs.storage_use import build_storage_use
from trade_pipeline.features.plugins.loading import load_plugins
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.market.calendars import CalendarError, find_calendar
from trade_pipeline.settings.base import SettingsError, closest
from trade_pipeline.settings.project import Places, Project, read_project


def build_definitions(places: Places) -> dg.Definitions:
    """The code location of a configs folder and a store.

    Of an experiment whose features a broken plug-in makes impossible there is only the dataset,
    which says so.

    Raises:
        SettingsError: a file of configs is wrong; the message names the file and the key.
    """
    whole = read_project(places.configs, places.indicators)
    for key, series in whole.series.items():
        try:
            find_calendar(series.calendar)
        except CalendarError as error:
            file = places.configs / "series.yaml"
            raise SettingsError(f"{file}: key 'calendar' of series {key}: {error}") from None
    plugins = load_plugins(whole.indicators)
    feature_sets, broken = resolve_feature_sets(whole, plugins)
    usable = {
        name: experiment
        for name, experiment in whole.experiments.items()
        if experiment.features not in broken
    }
    project = replace(whole, experiments=usable)
    _check_environments(places, project, feature_sets)
    partitions = Partitions.of(project)
    ohlcv = build_ohlcv(project, partitions)
    manifest = build_manifest(project, partitions, ohlcv.asset)
    features = build_features(project, partitions, feature_sets, ohlcv.asset, manifest.asset)
    experiments = {
        name: build_experiment(
            name,
            project,
            feature_sets[experiment.features],
            features[experiment.features].asset,
            manifest.asset,
        )
        for name, experiment in project.experiments.items()
    }
    observations = [
        observations_check(name, assets["dataset"], project.experiments[name])
        for name, assets in experiments.items()
    ]
    leaderboard = build_leaderboard(
        {name: assets["report"] for name, assets in experiments.items()},
        {
            name: experiment_versions(experiment, project, feature_sets[experiment.features]).report
            for name, experiment in project.experiments.items()
        },
    )
    jobs = {name: build_jobs(name, assets, leaderboard) for name, assets in experiments.items()}
    searches = {name: job for name in experiments if (job := build_search(name, project))}
    refresh_job, refresh_schedules = build_refresh(project, ohlcv.asset)
    backfill_job = build_backfill(project, ohlcv.asset)
    freshness = build_freshness(project, ohlcv.asset)
    adhoc, adhoc_job = build_adhoc(
        project, feature_sets, [assets["policy"] for assets in experiments.values()]
    )
    storage_use = build_storage_use(whole)
    pods = build_pods(whole, places.store)
    checked = [ohlcv, manifest, *features.values()]
    return dg.Definitions(
        assets=[
            *(one.asset for one in checked),
            *(asset for assets in experiments.values() for asset in assets.values()),
            *build_broken(whole, partitions, broken, manifest.asset),
            build_indicators_list(plugins),
            leaderboard,
            adhoc,
            storage_use.asset,
            *pods.assets,
            *(tried_asset(name, assets["dataset"]) for name, assets in experiments.items()),
            *(search_asset(name, experiments[name]["dataset"]) for name in searches),
        ],
        asset_checks=[
            *(check for one in checked for check in one.checks),
            *observations,
            freshness.check,
            *pods.checks,
        ],
        jobs=[
            refresh_job,
            backfill_job,
            build_prune(project, ohlcv.asset),
            freshness.job,
            storage_use.job,
            adhoc_job,
            *pods.jobs,
            *(job for steps in jobs.values() for job in steps.values()),
            *(build_override(name, project) for name in experiments),
            *searches.values(),
        ],
        schedules=[
            *refresh_schedules,
            freshness.schedule,
            storage_use.schedule,
            *pods.schedules,
        ],
        sensors=[
            build_inbox_sensor(project, backfill_job),
            build_derived_sensor(project, places.store, refresh_job),
            build_retrain_sensor(project, places.store, jobs),
            build_follower([manifest.asset, *(one.asset for one in features.values())]),
            *pods.sensors,
        ],
        resources=build_resources(places, project.compute, project.base),
        executor=dg.in_process_executor,
    )


def _check_environments(
    places: Places, project: Project, feature_sets: Mapping[str, FeatureSet]
) -> None:
    """Refuse starts stratified by no feature of the set, and reward terms without a module."""
    for name, experiment in project.experiments.items():
        feature_set = feature_sets[experiment.features]
        known = feature_set.names
        file = places.configs / "experiments" / f"{name}.yaml"
        check_strategies(experiment.baselines, f"{file}: key 'baselines'")
        timeframe = project.series[experiment.series[0]].timeframe
        if feature_set.timeframe not in (None, timeframe):
            raise SettingsError(
                f"{file}: key 'features' names {experiment.features!r}, which is for bars of "
                f"{feature_set.timeframe}, but the experiment's series have bars of {timeframe}."
            )
        if experiment.regimes is not None:
            for one in experiment.regimes.inputs:
                if one not in known:
                    raise SettingsError(
                        f"{file}: key 'regimes.inputs': {one!r} is no feature of "
                        f"{experiment.features}.{closest(one, list(known))}"
                    )
            first = experiment.regimes.inputs[0]
            if not feature_set.gives_returns(first):
                raise SettingsError(
                    f"{file}: key 'regimes.inputs': the first one is {first!r}, but states are "
                    "ordered by the variance of a return: name a column of the indicator returns "
                    "first."
                )
            known = (*known, "regime")
        for variant in experiment.variants:
            environment = experiment.variant(variant)[0]
            for term in environment.reward:
                module = getattr(term, "function", "json").partition(":")[0]
                if not _exists(module):
                    raise SettingsError(
                        f"{file}: key 'environment.reward' of variant {variant}: there is no "
                        f"module {module!r}; correct the name, or put its folder on PYTHONPATH."
                    )
            label = getattr(environment.starts, "label", None)
            if label is not None and label not in known:
                regimes = " For regimes, configure `regimes`." if label == "regime" else ""
                raise SettingsError(
                    f"{file}: key 'environment.starts.label' of variant {variant}: {label!r} is no "
                    f"feature of {experiment.features}; known are {', '.join(known)}.{regimes}"
                )


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # of a package that it is said to lie in
        return False
