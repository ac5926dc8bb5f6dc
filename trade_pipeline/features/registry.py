"""Which indicators exist, and a feature set's settings turned into ones ready to compute.

Knows no bars and no files beyond the name that error messages give. Start at
`resolve(settings, origin)`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from trade_pipeline.features.indicators import SHIPPED, Indicator
from trade_pipeline.settings.base import Settings, SettingsError, closest, parse_settings
from trade_pipeline.settings.features import FeatureSetSettings

__all__ = ["IMPLEMENTATION", "FeatureSet", "Indicator", "Member", "indicators", "resolve"]

# Raised when `feature_table` gives other values from the same indicators.
IMPLEMENTATION = 1


@dataclass(frozen=True)
class Member:
    """One indicator of a set with its validated parameters."""

    indicator: Indicator[Any]
    parameters: Settings

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its columns."""
        return self.indicator.outputs(self.parameters)

    @property
    def lookback(self) -> int:
        """Bars before a value's own that the value may depend on."""
        return self.indicator.lookback(self.parameters)


@dataclass(frozen=True)
class FeatureSet:
    """A resolved feature set: its columns are those of its members, in order."""

    members: tuple[Member, ...]
    scaling: Literal["none", "standard"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all feature columns, unique."""
        return tuple(name for member in self.members for name in member.names)

    @property
    def lookback(self) -> int:
        """The longest lookback of its members, in bars."""
        return max(member.lookback for member in self.members)

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
                }
                for member in self.members
            ]
        }

    @property
    def implementations(self) -> dict[str, int]:
        """Part name to its implementation number, for `code_version`."""
        return {
            "features.table": IMPLEMENTATION,
            **{
                f"indicator.{member.indicator.name}": member.indicator.implementation
                for member in self.members
            },
        }


def indicators() -> dict[str, Indicator[Any]]:
    """All known indicators by name."""
    return {indicator.name: indicator for indicator in SHIPPED}


def resolve(settings: FeatureSetSettings, origin: str) -> FeatureSet:
    """Look up a set's indicators and validate their parameters.

    Args:
        settings: the parsed file.
        origin: the file, named by every error.

    Raises:
        SettingsError: an indicator or parameter is unknown or wrong, or two indicators give a
            column of the same name.
    """
    known = indicators()
    members = []
    owners: dict[str, str] = {}
    for position, chosen in enumerate(settings.indicators):
        entry = f"indicators.{position}"
        if chosen.name not in known:
            raise SettingsError(
                f"{origin}: {entry} names the unknown indicator {chosen.name!r}."
                f"{closest(chosen.name, list(known))}"
            )
        indicator = known[chosen.name]
        parameters = parse_settings(
            chosen.params, indicator.parameters, f"{origin}: {entry} ({chosen.name})"
        )
        member = Member(indicator, parameters)
        for name in member.names:
            if name in owners:
                raise SettingsError(
                    f"{origin}: {entry} ({chosen.name}) gives column {name!r}, which "
                    f"{owners[name]} gives too; remove one or change its parameters."
                )
            owners[name] = f"{entry} ({chosen.name})"
        members.append(member)
    return FeatureSet(tuple(members), settings.scaling)
