"""The key `regimes` of an experiment."""

from typing import Any

import pytest

from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.regimes import RegimeSettings


def read(**content: Any) -> RegimeSettings:
    return parse_settings({"inputs": ["log_return_1"], **content}, RegimeSettings, "a.yaml")


def test_one_number_of_states_is_a_list_of_one() -> None:
    assert read(states=3) == read(states=[3])
    assert read(states=3).states == (3,)
    assert RegimeSettings.model_validate(read(states=3).model_dump(mode="json")) == read(states=3)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"inputs": []}, "inputs"),
        ({"inputs": ["a", "b", "a"]}, "'a' is listed twice; list it once"),
        ({"states": 1}, "greater than or equal to 2"),
        ({"states": 9}, "less than or equal to 8"),
        ({"states": []}, "states"),
        ({"states": [3, 3]}, "3 is listed twice"),
        ({"states": True}, "valid integer"),
        ({"covariance": "tied"}, "'diagonal' or 'full'"),
        ({"restarts": 0}, "restarts"),
        ({"seed": -1}, "seed"),
        ({"iterations": 1}, "iterations"),
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"state": 3}, "unknown key 'state'. Did you mean 'states'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(content: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        read(**content)
    assert str(refused.value).startswith("a.yaml: ")
