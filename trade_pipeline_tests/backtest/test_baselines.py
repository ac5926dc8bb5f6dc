"""Entries of `baselines`: their names in reports, and what is refused."""

import math
from datetime import date
from typing import Any

import pytest

from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.baselines import BaselineKind
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline_tests.small_project import EXPERIMENT


def test_every_kind_can_be_listed_and_beaten_under_a_name_of_its_own() -> None:
    kinds = list(BaselineKind.__args__)  # type: ignore[attr-defined]
    entries = [{"kind": kind} | ({"name": "mine"} if kind == "plugin" else {}) for kind in kinds]
    experiment = parse_settings(
        {**EXPERIMENT, "baselines": entries, "promotion": {"beat": kinds}},
        ExperimentSettings,
        "x.yaml",
    )
    labels = [one.label for one in experiment.baselines]
    assert len(set(labels)) == len(kinds)
    assert {one.kind for one in experiment.baselines} == set(kinds)
    for one in experiment.baselines:
        if one.kind != "plugin":
            assert baseline(one).name == one.label
    with pytest.raises(SettingsError, match="beat names donchian, which `baselines` does not list"):
        parse_settings(
            {**EXPERIMENT, "promotion": {"beat": ["donchian"]}}, ExperimentSettings, "x.yaml"
        )


def labels(*entries: dict[str, Any]) -> list[str]:
    experiment = parse_settings(
        {**EXPERIMENT, "baselines": list(entries)}, ExperimentSettings, "x.yaml"
    )
    return [one.label for one in experiment.baselines]


def test_a_rule_listed_with_other_parameters_has_another_name() -> None:
    found = labels(
        {"kind": "donchian"},
        {"kind": "donchian", "exit": 5},
        {"kind": "donchian", "short": True},
        {"kind": "momentum"},
        {"kind": "momentum", "skip": 21},
        {"kind": "volatility_target", "target": 0.1},
        {"kind": "volatility_target", "target": 0.1, "band": 0.2},
        {"kind": "plugin", "name": "mine"},
        {"kind": "plugin", "name": "mine", "parameters": {"period": 5}},
        {"kind": "plugin", "name": "mine", "parameters": {"period": 6, "deep": {"a": [1.5]}}},
    )
    assert found[:9] == [
        "donchian_20_10",
        "donchian_20_5",
        "donchian_20_10_short",
        "momentum_252",
        "momentum_252_skip_21",
        "volatility_target_0p1_60",
        "volatility_target_0p1_60_band_0p2",
        "mine",
        "mine_period_5",
    ]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"kind": "flat"}, {"kind": "flat"}], "'flat' is listed 2 times"),
        ([{"kind": "donchian"}, {"kind": "donchian", "entry": 20}], "'donchian_20_10' is listed 2"),
        ([{"kind": "flat"}, {"kind": "plugin", "name": "flat"}], "'flat' is listed 2 times"),
        ([{"kind": "donchian", "entry": 0}], "baselines.0.entry"),
        ([{"kind": "donchian", "enter": 5}], "unknown key 'baselines.0.enter'"),
        ([{"kind": "rsi_reversion", "low": 70, "high": 30}], "low 70 must be below high 30"),
        ([{"kind": "rsi_reversion", "high": 100}], "baselines.0.high"),
        ([{"kind": "momentum", "skip": -1}], "baselines.0.skip"),
        ([{"kind": "volatility_target", "window": 1}], "baselines.0.window"),
        ([{"kind": "volatility_target", "target": 0}], "baselines.0.target"),
        ([{"kind": "volatility_target", "band": 1}], "baselines.0.band"),
        ([{"kind": "inverse_volatility", "rebalance": 0}], "baselines.0.rebalance"),
        ([{"kind": "plugin", "name": "a", "parameters": {"b": math.inf}}], "cannot be a setting"),
        ([{"kind": "plugin", "name": "a", "parameters": {"b": [date(2020, 1, 1)]}}], "as text"),
        ([{"kind": "plugin", "parameters": {}}], "'baselines.0.name' is missing"),
        ([{"kind": "donchain"}], "donchian"),
    ],
)
def test_wrong_entries_are_refused_with_their_key(
    entries: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        labels(*entries)
    assert words in str(refused.value)


def test_a_variant_cannot_have_the_name_of_a_baseline() -> None:
    with pytest.raises(SettingsError, match="variant 'flat' has the name of a baseline"):
        parse_settings({**EXPERIMENT, "variants": {"flat": {}}}, ExperimentSettings, "x.yaml")
