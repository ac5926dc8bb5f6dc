"""What a dataset was made with: all that making it again needs, beside the bars themselves.

Travels with a dataset bundle as `recipe.json` and with each policy trained on it, so that a bundle
can be rebuilt when `configs/` says something else by now. Start at `recipe_of`.
"""

from importlib.metadata import version as package_version
from platform import python_version
from typing import Any

from trade_pipeline.features.plugins.loading import SHIPPED_ONLY, Plugins
from trade_pipeline.features.registry import PLUGIN, FeatureSet, resolve
from trade_pipeline.settings.base import Settings, SettingsError, parse_settings
from trade_pipeline.settings.code_version import implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.settings.project import INDICATORS_VARIABLE, Project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation

MEMBER = "recipe.json"
PACKAGES = ("numpy", "polars", "polars-talib", "exchange-calendars", "pandas")
PARTS = ("market.coverage", "training.dataset")


class Recipe(Settings):
    """How a dataset was made.

    Attributes:
        experiment: its name.
        settings: of the experiment, as JSON, defaults filled in.
        series: of the series that it names, in its order, and of those that its features read
            beside them, likewise.
        feature_set: its feature set, likewise.
        implementations: part to the number that rises when it gives other values; of a plug-in
            also to a text that changes with its code.
        versions: Python and the packages that compute bars, calendars and features.
    """

    experiment: str
    settings: dict[str, Any]
    series: list[dict[str, Any]]
    feature_set: dict[str, Any]
    implementations: dict[str, int | str]
    versions: dict[str, str]

    @property
    def origin(self) -> str:
        """How errors name it."""
        return f"recorded settings of {self.experiment}"

    def experiment_settings(self) -> ExperimentSettings:
        """The experiment. Raises `SettingsError` where this code refuses what was recorded."""
        return parse_settings(self.settings, ExperimentSettings, self.origin)

    def series_settings(self) -> dict[str, SeriesSettings]:
        """Series by key. Raises `SettingsError` likewise."""
        read = [parse_settings(one, SeriesSettings, self.origin) for one in self.series]
        return {one.key: one for one in read}

    def features(self, plugins: Plugins = SHIPPED_ONLY) -> FeatureSet:
        """The feature set, resolved. Raises `SettingsError` likewise, naming a missing plug-in."""
        for part, code in self.implementations.items():
            name = part.removeprefix(PLUGIN)
            if part.startswith(PLUGIN) and name not in plugins.known:
                broken = "; ".join(str(one) for one in plugins.suspects(name)) or "none is broken"
                raise SettingsError(
                    f"{self.origin}: plug-in indicator {name!r} ({code}) is not known here "
                    f"({broken}); install its distribution, or put its file into the folder that "
                    f"{INDICATORS_VARIABLE} names."
                )
        settings = parse_settings(self.feature_set, FeatureSetSettings, self.origin)
        return resolve(settings, self.origin, plugins)


def recipe_of(name: str, project: Project, feature_set: FeatureSet) -> Recipe:
    """The recipe of an experiment's dataset, as the project has it now.

    Args:
        name: of the experiment.
        project: settings of everything.
        feature_set: the experiment's, resolved.
    """
    experiment = project.experiments[name]
    keys = dict.fromkeys((*experiment.series, *feature_set.references))
    return Recipe(
        experiment=name,
        settings=experiment.model_dump(mode="json", by_alias=True),
        series=[project.series[key].model_dump(mode="json") for key in keys],
        feature_set={**feature_set.code, "scaling": feature_set.scaling},
        implementations=implementations(feature_set),
        versions=versions(),
    )


def recorded(dataset: ArtifactLocation) -> dict[str, Any] | None:
    """The recipe that lies in a dataset bundle, as JSON; None in one of before there were any."""
    member = dataset.child(MEMBER)
    found: dict[str, Any] | None = read_json(member) if member.path.is_file() else None
    return found


def implementations(feature_set: FeatureSet) -> dict[str, int | str]:
    """Numbers of the parts that make a dataset, as they are now."""
    numbers = {part: implementation_of(f"trade_pipeline.{part}") for part in PARTS}
    return {**numbers, **feature_set.implementations}


def versions() -> dict[str, str]:
    """Python and the packages that make a dataset, as they are now."""
    return {"python": python_version(), **{name: package_version(name) for name in PACKAGES}}
