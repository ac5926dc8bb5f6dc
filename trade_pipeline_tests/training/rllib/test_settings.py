import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from trade_pipeline.settings.algorithm import RLlibPPOSettings
from trade_pipeline.training.rllib import require_ray
from trade_pipeline.training.trainer import TrainingError
from trade_pipeline_tests.training import synthetic
from trade_pipeline_tests.training.rllib import runs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, "workers 3 does not divide environments 16"),
        ({"network": {"kind": "lstm"}}, "algorithm rllib_ppo does not work with network lstm"),
        ({"normalize": {"account": True}}, "algorithm rllib_ppo keeps no running statistics"),
        ({"normalize": {"reward": True}}, "algorithm rllib_ppo keeps no running statistics"),
        ({"clip_range": {"kind": "linear", "start": 0.2}}, "clip_range"),
        ({"target_kl": 0.1}, "target_kl"),
        ({"deterministic": True}, "deterministic"),
    ],
)
def test_what_rllib_cannot_do_is_refused_before_there_are_data(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        runs.experiment(**changes)


def test_a_bundle_s_configuration_says_that_nothing_is_promised_to_repeat() -> None:
    _, algorithm = runs.experiment(workers=1).variant("base")
    assert isinstance(algorithm, RLlibPPOSettings)
    assert algorithm.model_dump(mode="json")["deterministic"] is False


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed here")
def test_without_ray_a_training_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    message = re.escape("trial base.f0.s0: algorithm rllib_ppo needs Ray") + ".*"
    with pytest.raises(TrainingError, match=message + re.escape("trade_pipeline[rllib]")):
        runs.train(tmp_path, synthetic.dataset(), runs.experiment())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed here")
def test_with_ray_nothing_is_refused() -> None:
    require_ray("trial base.f0.s0")
