"""The key `search` of an experiment's file."""

from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.settings.base import SettingsError, read_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline_tests.small_project import EXPERIMENT, write_yaml

RATE = {"algorithm.learning_rate": {"kind": "log_float", "low": 1e-4, "high": 0.01}}


def read(tmp_path: Path, search: dict[str, Any]) -> ExperimentSettings:
    write_yaml(tmp_path / "some.yaml", {**EXPERIMENT, "search": {"trials": 3, **search}})
    return read_settings(tmp_path / "some.yaml", ExperimentSettings)


def test_every_kind_of_dimension_is_read(tmp_path: Path) -> None:
    space = {
        **RATE,
        "algorithm.gamma": {"kind": "float", "low": 0.9, "high": 1},
        "algorithm.epochs": {"kind": "int", "low": 1, "high": 8},
        "algorithm.network.hidden": {"kind": "choice", "values": [[64, 64], [256]]},
        "environment.actions.short": {"kind": "choice", "values": [True, False]},
    }
    search = read(tmp_path, {"space": space}).search
    assert search is not None
    assert {path: dimension.ends for path, dimension in search.space.items()} == {
        "algorithm.learning_rate": (0.0001, 0.01),
        "algorithm.gamma": (0.9, 1.0),
        "algorithm.epochs": (1, 8),
        "algorithm.network.hidden": ([64, 64], [256]),
        "environment.actions.short": (True, False),
    }
    assert (search.sampler, search.variant, search.fold, search.seeds) == ("tpe", "base", 0, None)


def test_a_search_changes_no_trial(tmp_path: Path) -> None:
    without = ExperimentSettings.model_validate(EXPERIMENT)
    assert read(tmp_path, {"space": RATE}).trials() == without.trials()


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing to search": ({"space": {}}, ["search.space"]),
    "misspelt path": (
        {"space": {"algorithm.gama": {"kind": "float", "low": 0.1, "high": 0.2}}},
        ["search.space.algorithm.gama", "gamma"],
    ),
    "path of something else": (
        {"space": {"splits.folds": {"kind": "int", "low": 1, "high": 2}}},
        ["search.space", "splits.folds"],
    ),
    "bound that cannot be": (
        {"space": {"algorithm.gamma": {"kind": "float", "low": 0.9, "high": 1.5}}},
        ["search.space.algorithm.gamma", "1.5"],
    ),
    "choice that cannot be": (
        {"space": {"algorithm.network.kind": {"kind": "choice", "values": ["mlp", "lstm"]}}},
        ["search.space.algorithm.network.kind", "lstm", "recurrent_ppo"],
    ),
    "empty range": (
        {"space": {"algorithm.epochs": {"kind": "int", "low": 4, "high": 4}}},
        ["algorithm.epochs", "low 4", "high 4"],
    ),
    "zero on a log scale": (
        {"space": {"algorithm.learning_rate": {"kind": "log_float", "low": 0, "high": 1}}},
        ["algorithm.learning_rate", "low", "greater than 0"],
    ),
    "a choice twice": (
        {"space": {"algorithm.epochs": {"kind": "choice", "values": [1, "1"]}}},
        ["algorithm.epochs", "twice"],
    ),
    "unknown kind": (
        {"space": {"algorithm.epochs": {"kind": "normal", "mean": 1}}},
        ["algorithm.epochs", "log_float", "choice"],
    ),
    "unknown variant": ({"space": RATE, "variant": "bass"}, ["search.variant", "'bass'", "'base'"]),
    "unknown fold": ({"space": RATE, "fold": 2}, ["search.fold 2", "there are 2"]),
    "unknown sampler": ({"space": RATE, "sampler": "grid"}, ["search.sampler", "'grid'", "tpe"]),
    "a seed twice": ({"space": RATE, "seeds": [1, 1]}, ["search.seeds", "unique"]),
    "unknown key": ({"space": RATE, "prunner": "none"}, ["search.prunner"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_search_that_cannot_be_is_refused_by_file_and_key(case: str, tmp_path: Path) -> None:
    search, words = REFUSED[case]
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, search)
    text = str(caught.value)
    assert all(word in text for word in ["some.yaml", *words]), text
