"""Everything of `configs/` at once, checked against each other before anything runs.

Start at `read_project(configs)`; `Places.from_environment` says where configs and store are.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trade_pipeline.settings.base import SettingsError, closest, read_settings
from trade_pipeline.settings.bucket import BucketSettings
from trade_pipeline.settings.compute import ComputeSettings, read_compute
from trade_pipeline.settings.experiment import (
    NAME_PATTERN,
    RESERVED_NAMES,
    ExperimentSettings,
)
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.settings.presets import Preset, read_experiment, read_preset
from trade_pipeline.settings.series import SeriesSettings, find_series, read_series

CONFIGS_VARIABLE = "TRADE_PIPELINE_CONFIGS"
STORE_VARIABLE = "TRADE_PIPELINE_STORE"
INDICATORS_VARIABLE = "TRADE_PIPELINE_INDICATORS"
INDICATORS = "indicators"  # folder of drop-in files in configs/, unless the variable says another


@dataclass(frozen=True)
class Places:
    """Folders a deployment works in."""

    configs: Path
    store: Path
    bucket: BucketSettings | None = None  # of which the store is a cache
    indicators: Path | None = None  # of drop-in files; None: `indicators` inside configs

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Places":
        """Read `TRADE_PIPELINE_CONFIGS`, `_STORE`, `_S3`, and `_INDICATORS`.

        Defaults: `configs` and `store` of the working folder, no bucket, and drop-in files in
        `indicators` of configs.
        """
        indicators = environment.get(INDICATORS_VARIABLE)
        return cls(
            configs=Path(environment.get(CONFIGS_VARIABLE, "configs")).resolve(),
            store=Path(environment.get(STORE_VARIABLE, "store")).resolve(),
            bucket=BucketSettings.from_environment(environment),
            indicators=Path(indicators).resolve() if indicators else None,
        )

    @property
    def indicator_files(self) -> Path:
        """Folder of drop-in files; need not exist."""
        return self.configs / INDICATORS if self.indicators is None else self.indicators


@dataclass(frozen=True)
class Project:
    """All settings of one configs folder."""

    configs: Path
    series: dict[str, SeriesSettings]
    feature_sets: dict[str, FeatureSetSettings]
    experiments: dict[str, ExperimentSettings]
    compute: dict[str, ComputeSettings]
    presets: dict[str, Preset] = field(default_factory=dict)
    indicators: Path | None = None  # folder of drop-in files; None: there are none

    @property
    def base(self) -> Path:
        """Folder that paths inside configs/ are relative to: the one that holds `configs`."""
        return self.configs.parent


def read_project(configs: Path, indicators: Path | None = None) -> Project:
    """Read and cross-check every file of a configs folder.

    Args:
        configs: the folder.
        indicators: of drop-in files; default: `indicators` inside configs.

    Raises:
        SettingsError: a file is wrong, or names a series, feature set or compute that is absent.
    """
    series = read_series(configs / "series.yaml")
    feature_sets = {
        path.stem: read_settings(path, FeatureSetSettings) for path in _files(configs, "features")
    }
    compute = {path.stem: read_compute(path) for path in _files(configs, "compute")}
    presets = {path.stem: read_preset(path) for path in _files(configs, "presets")}
    experiments = {}
    for path in _files(configs, "experiments"):
        experiment = read_experiment(path, presets)
        if path.stem in RESERVED_NAMES:
            raise SettingsError(f"{path}: {path.stem!r} is a reserved name; rename the file.")
        chosen = [find_series(series, key, str(path)) for key in experiment.series]
        timeframes = {one.timeframe for one in chosen}
        if len(timeframes) > 1:
            raise SettingsError(
                f"{path}: key 'series' mixes timeframes {sorted(timeframes)}; use one."
            )
        _must_exist(path, "features", experiment.features, feature_sets)
        _must_exist(path, "compute", experiment.compute, compute)
        experiments[path.stem] = experiment
    folder = configs / INDICATORS if indicators is None else indicators
    return Project(configs, series, feature_sets, experiments, compute, presets, folder)


def _files(configs: Path, folder: str) -> list[Path]:
    for path in sorted((configs / folder).glob("*.yml")):
        raise SettingsError(f"{path}: only files that end in .yaml are read; rename it.")
    paths = sorted((configs / folder).glob("*.yaml"))
    for path in paths:
        if not re.match(NAME_PATTERN, path.stem):
            raise SettingsError(
                f"{path}: the file's name becomes an asset's; use lower case letters, digits and _."
            )
    return paths


def _must_exist(path: Path, key: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise SettingsError(f"{path}: key {key!r} names {name!r}.{closest(name, list(known))}")
