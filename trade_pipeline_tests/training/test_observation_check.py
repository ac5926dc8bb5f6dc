"""The environments of an experiment show nothing of later rows, whatever its settings."""

from dataclasses import replace

import numpy as np
import pytest

from trade_pipeline.settings.base import read_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.simulator.env import TradingEnv
from trade_pipeline.storage import bundles, layout
from trade_pipeline.training.dataset import Dataset, load_dataset
from trade_pipeline.training.observation_check import check_observations
from trade_pipeline_tests.deployment import Deployment


def opened(deployment: Deployment, name: str) -> tuple[Dataset, ExperimentSettings]:
    home = layout.experiment_bundle(deployment.places.store, name, "dataset")
    path = deployment.places.configs / "experiments" / f"{name}.yaml"
    return load_dataset(bundles.current(home)), read_settings(path, ExperimentSettings)


@pytest.mark.parametrize("name", ["alone", "pair"])
def test_observations_of_shipped_environments_are_clean(imported: Deployment, name: str) -> None:
    dataset, experiment = opened(imported, name)
    found = check_observations(dataset, experiment.variant("base")[0])
    assert found.verdict == "clean", found.report()


def test_a_short_dataset_is_tried_as_far_as_it_goes(imported: Deployment) -> None:
    dataset, experiment = opened(imported, "alone")
    a = int(dataset.segments[0, 0])
    short = replace(dataset, segments=np.array([[a, a + 8]]))
    assert check_observations(short, experiment.variant("base")[0]).verdict == "clean"


def test_an_environment_that_shows_the_next_row_is_caught(
    imported: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, experiment = opened(imported, "alone")
    honest = TradingEnv.__init__

    def one_row_early(
        self: TradingEnv, market: object, features: np.ndarray, *others: object
    ) -> None:
        honest(self, market, np.roll(features, -1, axis=0), *others)  # type: ignore[arg-type]

    monkeypatch.setattr(TradingEnv, "__init__", one_row_early)
    found = check_observations(dataset, experiment.variant("base")[0])
    assert found.verdict == "looks ahead"
    assert any(one.component.startswith("window") for one in found.findings)
