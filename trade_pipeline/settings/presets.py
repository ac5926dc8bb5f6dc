"""Presets: environment and algorithm for a kind of market, on which experiments can build.

`configs/presets/<name>.yaml` holds both, complete. An experiment with `preset: <name>` starts from
them and its own keys win; what comes out is an experiment as if all of it had been written there,
so nothing downstream knows of presets. Start at `read_experiment`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import model_validator

from trade_pipeline.settings.algorithm import AlgorithmSettings, check_algorithm
from trade_pipeline.settings.base import (
    Settings,
    SettingsError,
    closest,
    parse_settings,
    read_yaml,
)
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.overrides import PARTS, merge

PRESET = "preset"  # the key of an experiment that names one


class PresetSettings(Settings):
    """`configs/presets/<name>.yaml`."""

    environment: EnvironmentSettings
    algorithm: AlgorithmSettings

    @model_validator(mode="after")
    def _fit(self) -> "PresetSettings":
        check_algorithm(self.algorithm, self.environment, "the preset")
        return self


class Preset(NamedTuple):
    """A preset as it is written: what it leaves out is left to the defaults.

    Attributes:
        path: its file.
        content: `environment` and `algorithm`.
    """

    path: Path
    content: dict[str, Any]


def read_preset(path: Path) -> Preset:
    """Read one file, which must hold together by itself.

    Raises:
        SettingsError: a key is wrong or missing; names file and key.
    """
    content = read_yaml(path)
    parse_settings(content, PresetSettings, str(path))
    return Preset(path, content)


def read_experiment(path: Path, presets: Mapping[str, Preset]) -> ExperimentSettings:
    """Read one experiment, laid over the preset that it names, if it names one.

    Args:
        path: `configs/experiments/<name>.yaml`.
        presets: name to preset; right by themselves, so that what is wrong here is the
            experiment's.

    Raises:
        SettingsError: there is no such preset, or a key is wrong; names file and key.
    """
    content, origin = read_yaml(path), str(path)
    if isinstance(content, dict) and PRESET in content:
        name = content[PRESET]
        if not isinstance(name, str) or name not in presets:
            known = closest(str(name), list(presets))
            raise SettingsError(f"{path}: key {PRESET!r} names {name!r}.{known}")
        own = {key: value for key, value in content.items() if key != PRESET}
        content = {**own, **_laid_over(presets[name], own)}
        origin = f"{path} (on {presets[name].path.name})"
    return parse_settings(content, ExperimentSettings, origin)


def _laid_over(preset: Preset, own: Mapping[str, Any]) -> dict[str, Any]:
    """Environment and algorithm of a preset under those of an experiment."""
    return merge(preset.content, {part: own[part] for part in PARTS if part in own})
