"""The key `promotion` of an experiment."""

import pytest

from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline_tests.small_project import EXPERIMENT


def experiment(**promotion: object) -> ExperimentSettings:
    return parse_settings({**EXPERIMENT, "promotion": promotion}, ExperimentSettings, "some.yaml")


def test_without_the_key_the_sharpe_ratio_must_beat_every_baseline() -> None:
    rule = parse_settings(EXPERIMENT, ExperimentSettings, "some.yaml").promotion
    assert (rule.metric, rule.fold, rule.beat, rule.min_improvement) == ("sharpe", "last", "all", 0)


@pytest.mark.parametrize(
    ("promotion", "said"),
    [
        ({"beat": ["flat", "sma_cross"]}, "sma_cross.*`baselines`.*flat, buy_and_hold"),
        ({"metric": "sharp"}, r"promotion\.metric.*'sharp'"),
        ({"metrics": "sharpe"}, "promotion.metrics.*Did you mean 'metric'"),
        ({"max_drawdown": 20}, r"promotion\.max_drawdown.*20"),
        ({"min_improvement": -0.1}, r"promotion\.min_improvement.*-0\.1"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(promotion: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        experiment(**promotion)
