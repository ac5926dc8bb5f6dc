"""Which strategies are installed as entry points of `GROUP`, without importing any.

The code location asks here when it loads; `plugins` imports one when it is to decide. Start at
`find_strategy`.
"""

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import NamedTuple

from trade_pipeline.settings.base import SettingsError, closest
from trade_pipeline.settings.baselines import BaselineSettings, PluginBaseline

GROUP = "trade_pipeline.strategies"


class StrategyError(Exception):
    """A strategy cannot be used; the message names it, where it is from, and why."""


class InstalledStrategy(NamedTuple):
    """An entry point.

    Attributes:
        name: of it.
        value: the module and what stands there, `module:name`.
        distribution: name and version of what installed it.
    """

    name: str
    value: str
    distribution: str

    def __str__(self) -> str:
        """How errors name it."""
        return f"strategy {self.name!r} of {self.distribution} (entry point {self.value})"


def installed_strategies() -> list[InstalledStrategy]:
    """All, by name, then by distribution.

    Raises:
        StrategyError: what is installed cannot be listed.
    """
    found = set()
    try:
        for point in entry_points(group=GROUP):
            known = point.dist
            distribution = "unknown" if known is None else f"{known.name} {known.version}"
            found.add(InstalledStrategy(point.name, point.value, distribution))
    except Exception as error:  # metadata of any distribution may be damaged
        raise StrategyError(
            f"strategies: installed distributions cannot be listed ({type(error).__name__}: "
            f"{error}); mend or remove the damaged one."
        ) from error
    return sorted(found)


def find_strategy(name: str, origin: str = "baselines") -> InstalledStrategy:
    """The one entry point of a name.

    Args:
        name: as an experiment has it.
        origin: the file, as errors name it.

    Raises:
        SettingsError: there is none.
        StrategyError: there are several, or what is installed cannot be listed.
    """
    known = installed_strategies()
    found = [one for one in known if one.name == name]
    if not found:
        hint = closest(name, [one.name for one in known])
        raise SettingsError(
            f"{origin}: there is no strategy {name!r} in the entry point group {GROUP}; install "
            f"its distribution, or correct the name.{hint}"
        )
    if len(found) > 1:
        givers = " and ".join(f"{one.distribution} ({one.value})" for one in found)
        raise StrategyError(f"strategy {name!r} is given by {givers}; remove one.")
    return found[0]


def check_strategies(baselines: Iterable[BaselineSettings], origin: str) -> None:
    """Refuse names that no installed distribution gives; nothing is imported.

    Raises:
        SettingsError: names the strategy and what is near.
    """
    for one in _plugins(baselines):
        try:
            find_strategy(one, origin)
        except StrategyError:
            continue  # whoever runs it says so; one damaged distribution concerns nobody else


def strategy_versions(baselines: Iterable[BaselineSettings]) -> dict[str, str]:
    """Name of each plug-in strategy to the distribution and version that it is of.

    What cannot be found is "not installed": whoever runs it says why.
    """
    names = _plugins(baselines)
    try:
        known = installed_strategies() if names else []
    except StrategyError:
        known = []
    return {
        name: " and ".join(one.distribution for one in known if one.name == name) or "not installed"
        for name in names
    }


def _plugins(baselines: Iterable[BaselineSettings]) -> list[str]:
    return sorted({one.name for one in baselines if isinstance(one, PluginBaseline)})
