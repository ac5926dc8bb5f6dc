"""Which indicators exist, and a feature set's settings turned into ones ready to compute.

Knows no bars and no files beyond the name that error messages give. Start at
`resolve(settings, origin, plugins)`.
"""

from dataclasses import dataclass
from typing import Any

from trade_pipeline.features import higher_timeframe
from trade_pipeline.features.higher_timeframe import lookback_on_higher, on_higher_bars
from trade_pipeline.features.indicator import (
    PRICES_AND_VOLUME,
    TIMES,
    Array,
    Bars,
    Indicator,
    reference_column,
)
from trade_pipeline.features.plugins.loading import (
    SHIPPED_ONLY,
    Known,
    Plugins,
    parameter_problems,
)
from trade_pipeline.features.plugins.specification import declaration_problem, told
from trade_pipeline.settings.base import Settings, SettingsError, closest, parse_settings
from trade_pipeline.settings.features import (
    HIGHER_TIMEFRAME_MS,
    FeatureSetSettings,
    IndicatorSettings,
    Scaling,
)
from trade_pipeline.settings.series import TIMEFRAME_MS

__all__ = [
    "IMPLEMENTATION",
    "BrokenPluginError",
    "FeatureSet",
    "Indicator",
    "Member",
    "indicators",
    "resolve",
]

# Raised when `feature_table` gives other values from the same indicators.
IMPLEMENTATION = 1
PLUGIN = "plugin."  # opens the names of what plug-ins add to `FeatureSet.implementations`


class BrokenPluginError(SettingsError):
    """A set cannot be resolved because of a plug-in; the message names it and says why."""


@dataclass(frozen=True)
class Member:
    """One indicator of a set with its validated parameters.

    Attributes:
        indicator: what is computed.
        parameters: of it.
        timeframe: of the bars it is computed on; None: the series' own.
        bars_each: most of the series' bars that make one of those.
        plugin: what values of a plug-in depend on beside its `implementation`; None: it ships.
    """

    indicator: Indicator[Any]
    parameters: Settings
    timeframe: str | None = None
    bars_each: int = 1
    plugin: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its columns."""
        suffix = "" if self.timeframe is None else f"_{self.timeframe}"
        return tuple(f"{name}{suffix}" for name in self.indicator.outputs(self.parameters))

    @property
    def lookback(self) -> int:
        """Bars before a value's own that the value may depend on."""
        own = self.indicator.lookback(self.parameters)
        return own if self.timeframe is None else lookback_on_higher(own, self.bars_each)

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of other series that it reads."""
        return self.indicator.references(self.parameters)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Columns it reads, those of other series included."""
        times = () if self.timeframe is None else TIMES
        own = tuple(dict.fromkeys((*self.indicator.inputs, *times)))
        return own + tuple(
            reference_column(column, series)
            for series in self.references
            for column in self.reference_columns
        )

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Which columns of other series it reads."""
        return tuple(one for one in self.indicator.inputs if one in PRICES_AND_VOLUME)

    def compute(self, bars: Bars) -> dict[str, Array]:
        """Its columns as its indicator gives them, each [T] float64 with NaN during warm-up."""
        if self.timeframe is None:
            return self.indicator.compute(bars, self.parameters)
        outputs = on_higher_bars(self.indicator, self.parameters, bars, self.timeframe)
        return {f"{name}_{self.timeframe}": values for name, values in outputs.items()}


@dataclass(frozen=True)
class FeatureSet:
    """A resolved feature set: its columns are those of its members, in order.

    Attributes:
        members: in the file's order.
        scaling: of the policies that train on it.
        timeframe: of the series it is for; None: any.
    """

    members: tuple[Member, ...]
    scaling: Scaling
    timeframe: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all feature columns, unique."""
        return tuple(name for member in self.members for name in member.names)

    def gives_returns(self, name: str) -> bool:
        """Whether a column holds returns of the price, as far as that is known: plug-ins may."""
        owner = next(member for member in self.members if name in member.names)
        return owner.indicator.name == "returns" or owner.plugin is not None

    @property
    def lookback(self) -> int:
        """The longest lookback of its members, in bars."""
        return max(member.lookback for member in self.members)

    @property
    def references(self) -> tuple[str, ...]:
        """Keys of other series that its members read, unique."""
        found = [series for member in self.members for series in member.references]
        return tuple(dict.fromkeys(found))

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Which columns of other series its members read, unique."""
        reading = [member for member in self.members if member.references]
        found = [column for member in reading for column in member.reference_columns]
        return tuple(dict.fromkeys(found))

    @property
    def code(self) -> dict[str, Any]:
        """Configuration that shapes the table, defaults filled in, for `code_version`.

        Scaling is left out: tables hold unscaled features, so it is part of what trains on them.
        """
        return {
            "indicators": [
                {
                    "name": member.indicator.name,
                    "params": member.parameters.model_dump(mode="json"),
                    **_where_given(timeframe=member.timeframe),
                }
                for member in self.members
            ],
            **_where_given(timeframe=self.timeframe),
        }

    @property
    def implementations(self) -> dict[str, int | str]:
        """Part name to its implementation number, for `code_version`; of plug-ins also a text."""
        longer = any(member.timeframe for member in self.members)
        return {
            "features.table": IMPLEMENTATION,
            **({"features.higher_timeframe": higher_timeframe.IMPLEMENTATION} if longer else {}),
            **{
                f"indicator.{member.indicator.name}": member.indicator.implementation
                for member in self.members
            },
            **{
                f"{PLUGIN}{member.indicator.name}": member.plugin
                for member in self.members
                if member.plugin is not None
            },
        }


def indicators(plugins: Plugins = SHIPPED_ONLY) -> dict[str, Indicator[Any]]:
    """All known indicators by name."""
    return {name: one.indicator for name, one in plugins.known.items()}


def resolve(
    settings: FeatureSetSettings, origin: str, plugins: Plugins = SHIPPED_ONLY
) -> FeatureSet:
    """Look up a set's indicators and validate their parameters.

    Args:
        settings: the parsed file.
        origin: the file, named by every error.
        plugins: see `plugins.load_plugins`.

    Raises:
        BrokenPluginError: an indicator is unknown while plug-ins are broken, or is one that fails
            at these parameters.
        SettingsError: an indicator or parameter is unknown or wrong, or two indicators give a
            column of the same name.
    """
    known = plugins.known
    members = []
    owners: dict[str, str] = {}
    problems = parameter_problems(plugins, settings.indicators)
    for position, chosen in enumerate(settings.indicators):
        entry = f"indicators.{position}"
        if chosen.name not in known:
            raise _unknown(chosen.name, f"{origin}: {entry}", plugins)
        where = f"{origin}: {entry} ({chosen.name})"
        if problems[position] is not None:
            raise _broken(where, known[chosen.name], problems[position])
        member = _member(known[chosen.name], chosen, settings.timeframe, where)
        if member.timeframe is not None and member.references:
            raise SettingsError(
                f"{origin}: {entry} ({chosen.name}) reads other series, which works on the set's "
                "own bars only; remove its timeframe."
            )
        for name in member.names:
            if name in owners:
                raise SettingsError(
                    f"{origin}: {entry} ({chosen.name}) gives column {name!r}, which "
                    f"{owners[name]} gives too; remove one or change its parameters."
                )
            owners[name] = f"{entry} ({chosen.name})"
        members.append(member)
    return FeatureSet(tuple(members), settings.scaling, settings.timeframe)


def _member(known: Known, chosen: IndicatorSettings, base: str | None, where: str) -> Member:
    """The indicator with its parameters; a plug-in's own functions may raise anything."""
    indicator = known.indicator
    try:
        parameters = parse_settings(chosen.params, indicator.parameters, where)
    except SettingsError:
        raise
    except Exception as error:
        raise _broken(where, known, f"its parameters fail: {told(error)}") from error
    if known.code is not None:
        try:
            problem = declaration_problem(indicator, parameters)
        except Exception as error:
            problem = f"its specification fails: {told(error)}"
        if problem is not None:
            raise _broken(where, known, problem)
    if chosen.timeframe is None or base is None:
        return Member(indicator, parameters, plugin=known.code)
    bars_each = HIGHER_TIMEFRAME_MS[chosen.timeframe] // TIMEFRAME_MS[base]
    return Member(indicator, parameters, chosen.timeframe, bars_each, known.code)


def _broken(where: str, known: Known, problem: str | None) -> BrokenPluginError:
    return BrokenPluginError(f"{where} is broken at these parameters: {known.origin}: {problem}.")


def _unknown(name: str, entry: str, plugins: Plugins) -> SettingsError:
    suspects = plugins.suspects(name)
    if not suspects:
        return SettingsError(
            f"{entry} names the unknown indicator {name!r}.{closest(name, list(plugins.known))}"
        )
    return BrokenPluginError(
        f"{entry} names the indicator {name!r}, which is not known while a plug-in is broken: "
        f"{'; '.join(str(one) for one in suspects)}."
    )


def _where_given(**values: str | None) -> dict[str, str]:
    """Keys that were given: one that is not leaves code versions as they were."""
    return {name: value for name, value in values.items() if value is not None}
