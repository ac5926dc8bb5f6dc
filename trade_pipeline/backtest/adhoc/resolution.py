"""A request of an ad-hoc backtest with nothing left to a default, held against what is stored.

Start at `resolve`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trade_pipeline.backtest.adhoc.policy import SavedPolicy, find_policy
from trade_pipeline.backtest.adhoc.range import SpanMs, check_range
from trade_pipeline.backtest.adhoc.request import ORIGIN, AdhocRequest, milliseconds
from trade_pipeline.backtest.adhoc.seen import final_note
from trade_pipeline.backtest.instants import instant
from trade_pipeline.backtest.plugins.installed import check_strategies, strategy_versions
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.settings.base import SettingsError, closest, parse_settings
from trade_pipeline.settings.baselines import BaselineSettings
from trade_pipeline.settings.environment import BracketActions, EnvironmentSettings
from trade_pipeline.settings.overrides import merge
from trade_pipeline.settings.project import Project
from trade_pipeline.settings.series import SeriesSettings, find_series
from trade_pipeline.storage.documents import json_hash

KEY_DIGITS = 16
OF_THE_REQUEST = ("costs", "initial_equity")
OF_TRAINING = ("episode_bars", "starts", "random_start_position", "randomisation", "reward")
OF_THE_POLICY = ("window", "actions", "max_position")
# A rule sees prices, not windows: its first decision is on the first bar of the range.
BASELINE_ENVIRONMENT = {"window": 1, "actions": {"kind": "weights"}}


@dataclass(frozen=True)
class Resolved:
    """A request that makes sense, everything spelled out.

    Attributes:
        policy: what decides; None for a baseline.
        baseline: likewise; None for a policy.
        series: settings of the instruments.
        features: name of a feature set and the set; None: bars alone.
        span_ms: [start, end) in ms.
        environment: costs, window, limits and initial equity.
        notes: what a reader must know of the range.
    """

    policy: SavedPolicy | None
    baseline: BaselineSettings | None
    series: tuple[SeriesSettings, ...]
    features: tuple[str, FeatureSet] | None
    span_ms: SpanMs
    environment: EnvironmentSettings
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """JSON-able: all that decides what comes out, but the data."""
        policy = self.policy
        plugin = {} if self.baseline is None else strategy_versions([self.baseline])
        return {
            "policy": None if policy is None else {"key": policy.key, "version": policy.version},
            "baseline": None if self.baseline is None else self.baseline.model_dump(mode="json"),
            "series": [one.key for one in self.series],
            "features": None if self.features is None else self.features[0],
            "from": instant(self.span_ms[0]),
            "to": instant(self.span_ms[1]),
            "environment": self.environment.model_dump(mode="json"),
            **({"strategies": plugin} if plugin else {}),
        }

    @property
    def key(self) -> str:
        """Hash of the request: the partition of `adhoc_backtest`."""
        return json_hash(self.document())[:KEY_DIGITS]


def resolve(
    request: AdhocRequest,
    store: Path,
    project: Project,
    feature_sets: Mapping[str, FeatureSet],
) -> Resolved:
    """Check a request against settings, policy and manifests; no bar is read.

    Args:
        request: what was asked.
        store: the store's folder.
        project: settings of everything.
        feature_sets: those that can be computed, by name.

    Raises:
        SettingsError: a key is wrong; the message names it and what would be right.
        StorageError: a policy or manifest is not stored, or damaged.
        PolicyError: the policy is none that can act.
    """
    policy = None
    if request.policy is not None:
        policy = find_policy(store, request.policy, request.version, ORIGIN)
    if request.baseline is not None:
        check_strategies([request.baseline], f"{ORIGIN}: key 'baseline'")
    series = _series(request, policy, project)
    features = _features(request, policy, project, feature_sets)
    if features is not None and features[1].timeframe not in (None, series[0].timeframe):
        raise SettingsError(
            f"{ORIGIN}: key 'features' names {features[0]!r}, which is for bars of "
            f"{features[1].timeframe}, but the series have bars of {series[0].timeframe}."
        )
    environment = _environment(request, policy, len(series))
    span_ms = (milliseconds(request.start), milliseconds(request.end))
    notes = check_range(store, series, span_ms, ORIGIN)
    if policy is not None:
        final = final_note(store, project, policy, span_ms, request.include_final, ORIGIN)
        notes = [one for one in (final, _other_series(policy, series)) if one is not None] + notes
    return Resolved(policy, request.baseline, series, features, span_ms, environment, tuple(notes))


def _series(
    request: AdhocRequest, policy: SavedPolicy | None, project: Project
) -> tuple[SeriesSettings, ...]:
    """Settings of the series, as many and of such bars as the policy was trained on."""
    where = f"{ORIGIN}: key 'series'"
    if not request.series:
        where += f" is empty, so it is that of {request.policy}"
    keys = request.series or (() if policy is None else policy.series)
    found = tuple(find_series(project.series, key, where) for key in keys)
    timeframes = sorted({one.timeframe for one in found})
    if len(timeframes) > 1:
        raise SettingsError(f"{where} mixes timeframes {', '.join(timeframes)}; use one.")
    if policy is None:
        return found
    if len(found) != len(policy.series):
        raise SettingsError(
            f"{where} lists {len(found)}, but {policy.name} trades {len(policy.series)} "
            f"instrument(s), trained on {', '.join(policy.series)}; name {len(policy.series)}, in "
            "that order."
        )
    trained = _timeframe(policy, project)
    if trained not in (None, timeframes[0]):
        raise SettingsError(
            f"{where}: {found[0].key} has bars of {timeframes[0]}, but {policy.name} was trained "
            f"on bars of {trained}; name series with such bars."
        )
    return found


def _other_series(policy: SavedPolicy, series: tuple[SeriesSettings, ...]) -> str | None:
    """What to say where a policy trades other series than those of its training, or another order.

    What it learned is of places: nothing in it knows a series by its name.
    """
    keys = tuple(one.key for one in series)
    if keys == policy.series:
        return None
    order = ", in that order" if set(keys) == set(policy.series) else ""
    return (
        f"{policy.name} was trained on {', '.join(policy.series)}{order}, but trades "
        f"{', '.join(keys)} here: it treats each as the one it was trained on in that place."
    )


def _timeframe(policy: SavedPolicy, project: Project) -> str | None:
    """Of the bars it was trained on; None where neither its recipe nor our settings know it."""
    if policy.recipe is not None:
        recorded = {one.get("key"): one.get("timeframe") for one in policy.recipe.series}
        return recorded.get(policy.series[0])
    known = project.series.get(policy.series[0])
    return None if known is None else known.timeframe


def _features(
    request: AdhocRequest,
    policy: SavedPolicy | None,
    project: Project,
    feature_sets: Mapping[str, FeatureSet],
) -> tuple[str, FeatureSet] | None:
    """The feature set, one that gives what the policy sees."""
    name = request.features
    if name is None and policy is None:
        return None
    if name is None and policy is not None:
        name = _of_policy(policy, feature_sets)
    assert name is not None
    where = f"{ORIGIN}: key 'features'"
    if name in project.feature_sets and name not in feature_sets:
        raise SettingsError(f"{where}: a plug-in that {name!r} needs is broken; see `indicators`.")
    if name not in feature_sets:
        raise SettingsError(f"{where} names {name!r}.{closest(name, list(feature_sets))}")
    feature_set = feature_sets[name]
    if policy is not None:
        _check_features(where, name, feature_set, policy)
    return name, feature_set


def _of_policy(policy: SavedPolicy, feature_sets: Mapping[str, FeatureSet]) -> str:
    """Name of the set a policy was trained with: as recorded, or the only one with its columns."""
    if policy.settings is not None:
        return policy.settings.features
    fitting = [
        name for name, one in feature_sets.items() if tuple(one.names) == policy.feature_names
    ]
    if len(fitting) != 1:
        raise SettingsError(
            f"{ORIGIN}: key 'features' is empty, and {policy.name} does not record its feature "
            f"set; {len(fitting)} sets have its columns ({', '.join(policy.feature_names)}). Name "
            f"one of {', '.join(feature_sets)}."
        )
    return fitting[0]


def _check_features(where: str, name: str, feature_set: FeatureSet, policy: SavedPolicy) -> None:
    if tuple(feature_set.names) != policy.feature_names:
        raise SettingsError(
            f"{where}: {name!r} has columns {', '.join(feature_set.names)}, but {policy.name} was "
            f"trained on {', '.join(policy.feature_names)}; name a set with these, in that order."
        )
    if policy.recipe is None:
        return
    trained, now = policy.recipe.feature_set.get("indicators"), feature_set.code["indicators"]
    if trained != now:
        raise SettingsError(
            f"{where}: {name!r} has the columns that {policy.name} was trained on, but computes "
            f"them otherwise: it was {trained}, is {now}. Name a set that does it as then."
        )


def _environment(
    request: AdhocRequest, policy: SavedPolicy | None, instruments: int
) -> EnvironmentSettings:
    """The policy's environment, or the defaults, with what differs."""
    for key in request.environment:
        where = f"{ORIGIN}: key 'environment.{key}'"
        if key in OF_THE_REQUEST:
            raise SettingsError(f"{where}: write it as key {key!r} of the request itself.")
        if key in OF_TRAINING:
            raise SettingsError(
                f"{where} shapes training alone, a backtest does not read it; leave it out."
            )
        if key in OF_THE_POLICY and policy is not None:
            raise SettingsError(
                f"{where} is part of what {policy.name} was trained with; only a baseline takes "
                "another. Leave it out."
            )
    if policy is not None:
        base = policy.environment.model_dump(mode="json")
    else:
        base = dict(BASELINE_ENVIRONMENT)
    content = merge(base, request.environment)
    costs = EnvironmentSettings.model_validate(base).costs.model_dump(mode="json")
    content["costs"] = merge(costs, request.costs)
    if request.initial_equity is not None:
        content["initial_equity"] = request.initial_equity
    environment = parse_settings(content, EnvironmentSettings, ORIGIN)
    if isinstance(environment.actions, BracketActions) and instruments != 1:
        raise SettingsError(
            f"{ORIGIN}: key 'environment.actions': actions of kind brackets trade one instrument, "
            f"but {instruments} series are listed; use kind weights."
        )
    try:
        environment.costs.check_lists(instruments)
    except ValueError as error:
        raise SettingsError(f"{ORIGIN}: key 'costs': {error}.") from None
    return environment
