"""What a dataset was made with: all that making it again needs, beside the bars themselves.

Travels with a dataset bundle as `recipe.json` and with each policy trained on it, so that a bundle
can be rebuilt when `configs/` says something else by now. Start at `recipe_of`.
"""

from importlib.metadata import version as package_version
from platform import python_version
from typing import Any

from trade_pipeline.features.registry import FeatureSet, resolve
from trade_pipeline.settings.base import Settings, parse_settings
from trade_pipeline.settings.code_version import implementation_of
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.settings.project import Project
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
        series: of the series that it names, in its order, likewise.
        feature_set: its feature set, likewise.
        implementations: part to the number that rises when it gives other values.
        versions: Python and the packages that compute bars, calendars and features.
    """

    experiment: str
    settings: dict[str, Any]
    series: list[dict[str, Any]]
    feature_set: dict[str, Any]
    implementations: dict[str, int]
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

    def features(self) -> FeatureSet:
        """The feature set, resolved. Raises `SettingsError` likewise."""
        settings = parse_settings(self.feature_set, FeatureSetSettings, self.origin)
        return resolve(settings, self.origin)


def recipe_of(name: str, project: Project) -> Recipe:
    """The recipe of an experiment's dataset, as the project has it now.

    Args:
        name: of the experiment.
        project: settings of everything.
    """
    experiment = project.experiments[name]
    feature_set = resolve(project.feature_sets[experiment.features], experiment.features)
    return Recipe(
        experiment=name,
        settings=experiment.model_dump(mode="json", by_alias=True),
        series=[project.series[key].model_dump(mode="json") for key in experiment.series],
        feature_set={**feature_set.code, "scaling": feature_set.scaling},
        implementations=implementations(feature_set),
        versions=versions(),
    )


def recorded(dataset: ArtifactLocation) -> dict[str, Any] | None:
    """The recipe that lies in a dataset bundle, as JSON; None in one of before there were any."""
    member = dataset.child(MEMBER)
    found: dict[str, Any] | None = read_json(member) if member.path.is_file() else None
    return found


def implementations(feature_set: FeatureSet) -> dict[str, int]:
    """Numbers of the parts that make a dataset, as they are now."""
    numbers = {part: implementation_of(f"trade_pipeline.{part}") for part in PARTS}
    return {**numbers, **feature_set.implementations}


def versions() -> dict[str, str]:
    """Python and the packages that make a dataset, as they are now."""
    return {"python": python_version(), **{name: package_version(name) for name in PACKAGES}}
