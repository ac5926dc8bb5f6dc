"""What every indicator that ships must keep; oracles are in the files named after it."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.indicator import TIMES, forgetting
from trade_pipeline.features.indicators import SHIPPED
from trade_pipeline.features.registry import FeatureSet, Member, resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.features import FeatureSetSettings

# What weighs 1e-6 beyond the lookback, in standard deviations of the column.
LOOKBACK_TOLERANCE = 1e-4
ROOT = Path(__file__).parents[2]
BYTES_PROGRAM = """
import sys
import polars as pl
from trade_pipeline_tests.features.test_indicators import digest
print(pl.thread_pool_size(), digest(pl.read_parquet(sys.argv[1])))
"""
MSFT, IBM = "sample.MSFT.1d", "sample.IBM.1d"


def use(name: str, **params: object) -> FeatureSet:
    """A set of one indicator."""
    content = {"indicators": [{"name": name, "params": params}]}
    return resolve(FeatureSetSettings.model_validate(content), "test.yaml")


def columns(bars: pl.DataFrame, feature_set: FeatureSet) -> dict[str, np.ndarray]:
    """All values of a set of one indicator in float64, warm-up included."""
    member: Member = feature_set.members[0]
    inputs = {}
    for name in member.inputs:
        column = bars[name].dt.epoch("ms") if name in TIMES else bars[name]
        inputs[name] = column.cast(pl.Float64).to_numpy()
    return member.compute(inputs)


def digest(bars: pl.DataFrame) -> str:
    """SHA-256 of all values of all sets, computed in two threads."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda feature_set: columns(bars, feature_set), SETS.values())
        buffers = [values.tobytes() for one in found for values in one.values()]
    return hashlib.sha256(b"".join(buffers)).hexdigest()


CLOCKS = {
    "time_of_day": use("time_of_day"),
    "day_of_week": use("day_of_week"),
    "session": use("session"),
    "overnight session": use("session", zone="Europe/London", open="23:00", close="07:45"),
}
OF_PRICES = {
    "returns": use("returns", horizons=[1, 5, 60]),
    "log returns": use("returns", horizons=[1, 20], kind="log"),
    "rsi": use("rsi"),
    "sma_ratio": use("sma_ratio"),
    "ema_ratio": use("ema_ratio"),
    "macd": use("macd"),
    "slow signal": use("macd", fast=5, slow=10, signal=30),
    "stochastic": use("stochastic"),
    "unsmoothed": use("stochastic", period=5, k=1, d=1),
    "atr": use("atr"),
    "bollinger": use("bollinger"),
    "wide bollinger": use("bollinger", period=50, width=2.5),
    "realised_volatility": use("realised_volatility"),
    "volume_zscore": use("volume_zscore"),
    "vwap_distance": use("vwap_distance"),
    "relative_strength": use("relative_strength", reference=MSFT, horizons=[1, 20]),
    "rolling_correlation": use("rolling_correlation", reference=MSFT, period=30),
    "turbulence": use("turbulence", series=[MSFT, IBM], period=60),
}
SETS = OF_PRICES | CLOCKS
every_set = pytest.mark.parametrize("feature_set", SETS.values(), ids=SETS.keys())
every_set_of_prices = pytest.mark.parametrize(
    "feature_set", OF_PRICES.values(), ids=OF_PRICES.keys()
)


def test_no_shipped_indicator_is_left_out_here() -> None:
    assert {one.name for one in SHIPPED} == {
        feature_set.members[0].indicator.name for feature_set in SETS.values()
    }


@every_set
@settings(max_examples=40, deadline=None, derandomize=True)
@given(cut=st.integers(1, 1_000), real=st.booleans())
def test_a_feature_never_changes_when_the_future_arrives(
    feature_set: FeatureSet,
    apple_beside: pl.DataFrame,
    thin_beside: pl.DataFrame,
    cut: int,
    real: bool,
) -> None:
    bars = apple_beside.head(1_000) if real else thin_beside
    prefix = columns(bars.head(cut), feature_set)
    for name, values in columns(bars, feature_set).items():
        np.testing.assert_array_equal(prefix[name], values[:cut], err_msg=name, strict=True)


@every_set
def test_values_rest_on_no_bar_before_the_declared_lookback(
    feature_set: FeatureSet, apple_beside: pl.DataFrame, thin_beside: pl.DataFrame
) -> None:
    lookback = feature_set.lookback
    for bars in (apple_beside, thin_beside):
        whole = columns(bars, feature_set)
        for start in range(0, bars.height - lookback, 23):
            segment = columns(bars.slice(start, lookback + 1), feature_set)
            for name, values in whole.items():
                error = abs(segment[name][lookback] - values[start + lookback])
                assert error <= LOOKBACK_TOLERANCE * np.nanstd(values), (name, start)


def test_bytes_are_the_same_with_any_number_of_threads(
    apple_beside: pl.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "bars.parquet"
    apple_beside.write_parquet(path)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BYTES_PROGRAM, str(path)],
            env={**os.environ, "POLARS_MAX_THREADS": threads},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "4")
    ]
    printed = [process.communicate(timeout=120)[0].split() for process in running]
    expected = digest(apple_beside)
    assert printed == [["1", expected], ["4", expected]]


@every_set
def test_a_lookback_is_no_longer_than_it_must_be(
    feature_set: FeatureSet, thin_beside: pl.DataFrame
) -> None:
    member = feature_set.members[0]
    recursive = member.indicator.name in ("rsi", "atr", "macd", "ema_ratio")
    missing = [int(np.isnan(one).sum()) for one in columns(thin_beside, feature_set).values()]
    assert max(missing) < member.lookback if recursive else max(missing) == member.lookback


@every_set
def test_bars_without_trades_are_finite(
    feature_set: FeatureSet, thin_beside: pl.DataFrame, still_beside: pl.DataFrame
) -> None:
    for bars in (thin_beside, still_beside):
        assert feature_table([bars], feature_set).height == bars.height - feature_set.lookback


@every_set_of_prices
def test_constant_prices_and_zero_volume_give_neutral_values(
    feature_set: FeatureSet, still_beside: pl.DataFrame
) -> None:
    table = feature_table([still_beside], feature_set)
    assert not table.is_empty()
    for name in feature_set.names:
        neutral = 50.0 if name.startswith(("rsi", "stochastic")) else 0.0
        np.testing.assert_allclose(table[name], neutral, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@every_set_of_prices
def test_features_do_not_depend_on_the_price_level(
    feature_set: FeatureSet, apple_beside: pl.DataFrame, scale: float
) -> None:
    scaled = apple_beside.with_columns(pl.col("open", "high", "low", "close") * scale)
    for name, values in columns(apple_beside, feature_set).items():
        np.testing.assert_allclose(
            columns(scaled, feature_set)[name], values, rtol=1e-6, atol=1e-9, err_msg=name
        )


@every_set
def test_any_number_of_bars_is_accepted_and_inputs_are_left_alone(
    feature_set: FeatureSet, apple_beside: pl.DataFrame
) -> None:
    for rows in (0, 1, 2, 13, 14, 15, 40):
        bars = apple_beside.head(rows)
        before = bars.clone()
        for values in columns(bars, feature_set).values():
            assert values.shape == (rows,)
        assert bars.equals(before)


def test_lookbacks_follow_the_rule_of_forgetting() -> None:
    for period in (2, 9, 26, 200):
        alpha = 2 / (period + 1)
        assert forgetting(alpha) == np.ceil(np.log(1e-6) / np.log(1 - alpha))
    lookbacks = {name: feature_set.lookback for name, feature_set in SETS.items()}
    assert lookbacks["rsi"] == lookbacks["atr"] == 187
    # EMA 26 alone takes 180; its signal line forgets a little later.
    assert lookbacks["macd"] == 185
    assert lookbacks["ema_ratio"] == 139
    assert lookbacks["stochastic"] == 17
    assert lookbacks["returns"] == 60
    assert lookbacks["sma_ratio"] == lookbacks["volume_zscore"] == 19


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("session", {"zone": "New York"}, "knows no zone 'New York'"),
        ("session", {"open": "9:30"}, "'open' is '9:30'"),
        ("session", {"close": 960}, "write the time in quotes"),
        ("session", {"open": "16:00"}, "must differ"),
        ("relative_strength", {}, "'reference'"),
        ("relative_strength", {"reference": "MSFT"}, "'reference' is 'MSFT'"),
        ("relative_strength", {"reference": MSFT, "horizons": [5, 5]}, "horizons must be unique"),
        ("turbulence", {"series": []}, "'series'"),
        ("turbulence", {"series": [MSFT, MSFT]}, "series must be unique"),
        ("turbulence", {"series": [MSFT, IBM], "period": 3}, "period 3 must be above 3"),
        ("bollinger", {"width": 0}, "'width' is 0"),
    ],
)
def test_wrong_parameters_are_explained(name: str, params: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        use(name, **params)


def test_a_columns_name_tells_all_parameters_apart() -> None:
    uses = [
        use("session"),
        use("session", zone="Europe/London"),
        use("session", open="09:00"),
        use("session", close="16:30"),
        use("bollinger"),
        use("bollinger", period=21),
        use("bollinger", width=2.5),
        use("ema_ratio", period=9),
        use("realised_volatility", period=9),
        use("vwap_distance", period=9),
        use("relative_strength", reference=MSFT),
        use("relative_strength", reference=IBM),
        use("rolling_correlation", reference=MSFT),
        use("rolling_correlation", reference=IBM),
        use("rolling_correlation", reference=IBM, period=9),
        use("turbulence", series=[MSFT]),
        use("turbulence", series=[MSFT, IBM]),
        use("turbulence", series=[MSFT], period=9),
    ]
    named = [name for feature_set in uses for name in feature_set.names]
    assert len(set(named)) == len(named)
