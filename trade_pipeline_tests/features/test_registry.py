import json
from pathlib import Path

import pytest

from trade_pipeline.features.registry import indicators, resolve
from trade_pipeline.settings.base import SettingsError, read_settings
from trade_pipeline.settings.code_version import code_version
from trade_pipeline.settings.features import FeatureSetSettings

CONFIGS = Path(__file__).parents[2] / "configs" / "features"


def settings_of(*entries: object, scaling: str = "standard") -> FeatureSetSettings:
    return FeatureSetSettings.model_validate({"indicators": entries, "scaling": scaling})


@pytest.mark.parametrize("name", ["daily", "minute"])
def test_shipped_feature_sets_resolve(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    feature_set = resolve(read_settings(path, FeatureSetSettings), str(path))
    assert feature_set.lookback == 187
    assert feature_set.scaling == "standard"
    assert len(set(feature_set.names)) == len(feature_set.names)
    json.dumps(feature_set.code)
    assert feature_set.implementations["indicator.rsi"] == 1


def test_columns_come_in_the_files_order() -> None:
    entries = [{"name": "rsi"}, {"name": "returns", "params": {"horizons": [5, 1]}}]
    feature_set = resolve(settings_of(*entries), "x.yaml")
    assert feature_set.names == ("rsi_14", "return_5", "return_1")


def test_code_changes_with_a_parameter_and_not_with_a_default_written_out() -> None:
    def version(*entries: object, scaling: str = "standard") -> str:
        feature_set = resolve(settings_of(*entries, scaling=scaling), "x.yaml")
        return code_version(feature_set.code, feature_set.implementations)

    plain = version({"name": "rsi"})
    assert version({"name": "rsi", "params": {"period": 14}}) == plain
    assert version({"name": "rsi"}, scaling="none") == plain, "tables hold unscaled features"
    assert version({"name": "rsi", "params": {"period": 15}}) != plain
    assert version({"name": "atr"}) != plain


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"name": "rsii"}, ["indicators.1", "'rsii'", "Did you mean 'rsi'?"]),
        (
            {"name": "rsi", "params": {"perod": 14}},
            ["indicators.1 (rsi)", "'perod'", "Did you mean 'period'?"],
        ),
        ({"name": "rsi", "params": {"period": 1}}, ["indicators.1 (rsi)", "'period' is 1"]),
        ({"name": "macd", "params": {"fast": 26, "slow": 12}}, ["fast 26 must be below slow 12"]),
        ({"name": "returns", "params": {"horizons": [1, 1]}}, ["horizons must be unique"]),
        ({"name": "atr"}, ["'atr_14'", "indicators.0 (atr) gives too"]),
    ],
)
def test_errors_name_the_file_the_entry_and_the_closest(entry: object, words: list[str]) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(settings_of({"name": "atr"}, entry), "configs/features/mine.yaml")
    for word in ["configs/features/mine.yaml", *words]:
        assert word in str(error.value)


# Parameters without a default: other series to read, and when a market is open.
REQUIRED = {
    "relative_strength": {"reference": "made.BETA.1d"},
    "rolling_correlation": {"reference": "made.BETA.1d"},
    "turbulence": {"series": ["made.BETA.1d"]},
    "session": {"zone": "America/New_York", "open": "09:30", "close": "16:00"},
}


def test_every_indicator_works_with_its_defaults_and_explains_itself() -> None:
    for name, indicator in indicators().items():
        entry = {"name": name, "params": REQUIRED.get(name, {})}
        feature_set = resolve(settings_of(entry), "x.yaml")
        assert feature_set.names
        assert feature_set.lookback >= 0
        assert feature_set.references == (
            ("made.BETA.1d",) if indicator.references(feature_set.members[0].parameters) else ()
        )
        assert indicator.compute.__doc__
