import numpy as np
import polars as pl
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.features.causality import prefix_violations
from trade_pipeline.features.indicators import SHIPPED, forgetting
from trade_pipeline.features.registry import FeatureSet, Member, resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.features import FeatureSetSettings

# TA-Lib's own sums run in the same order; what remains is the division by the close.
ORACLE_TOLERANCE = 1e-12
# What weighs 1e-6 beyond the lookback, in standard deviations of the column.
LOOKBACK_TOLERANCE = 1e-4


def use(name: str, **params: object) -> FeatureSet:
    """A set of one indicator."""
    content = {"indicators": [{"name": name, "params": params}]}
    return resolve(FeatureSetSettings.model_validate(content), "test.yaml")


def columns(bars: pl.DataFrame, feature_set: FeatureSet) -> dict[str, np.ndarray]:
    """All values of a set of one indicator in float64, warm-up included."""
    member: Member = feature_set.members[0]
    inputs = {name: bars[name].to_numpy() for name in member.indicator.inputs}
    return member.indicator.compute(inputs, member.parameters)


SETS = {
    "returns": use("returns", horizons=[1, 5, 60]),
    "log returns": use("returns", horizons=[1, 20], kind="log"),
    **{one.name: use(one.name) for one in SHIPPED if one.name != "returns"},
    "slow signal": use("macd", fast=5, slow=10, signal=30),
    "unsmoothed": use("stochastic", period=5, k=1, d=1),
}
every_set = pytest.mark.parametrize("feature_set", SETS.values(), ids=SETS.keys())


def test_indicators_equal_talib_on_real_daily_bars(apple: pl.DataFrame) -> None:
    high, low, close = (apple[name].to_numpy() for name in ("high", "low", "close"))
    line, signal, histogram = talib.MACD(close, 12, 26, 9)
    percent_k, percent_d = talib.STOCH(high, low, close, 14, 3, 0, 3, 0)
    expected = {
        "rsi": {"rsi_14": talib.RSI(close, 14)},
        "sma_ratio": {"sma_ratio_20": close / talib.SMA(close, 20) - 1},
        "macd": {
            "macd_12_26_9": line / close,
            "macd_signal_12_26_9": signal / close,
            "macd_histogram_12_26_9": histogram / close,
        },
        "stochastic": {"stochastic_k_14_3_3": percent_k, "stochastic_d_14_3_3": percent_d},
        "atr": {"atr_14": talib.ATR(high, low, close, 14) / close},
    }
    for name, oracle in expected.items():
        lookback = SETS[name].lookback
        got = columns(apple, SETS[name])
        assert list(got) == list(oracle)
        for column, values in oracle.items():
            np.testing.assert_allclose(
                got[column][lookback:],
                values[lookback:],
                rtol=ORACLE_TOLERANCE,
                atol=ORACLE_TOLERANCE,
                err_msg=column,
            )


def test_returns_and_volume_zscore_equal_their_definitions(apple: pl.DataFrame) -> None:
    close, volume = apple["close"].to_numpy(), apple["volume"].to_numpy()
    simple, log = columns(apple, SETS["returns"]), columns(apple, SETS["log returns"])
    zscore = columns(apple, SETS["volume_zscore"])["volume_zscore_20"]
    for row in range(60, 3_270, 97):
        assert simple["return_5"][row] == pytest.approx(close[row] / close[row - 5] - 1)
        assert log["log_return_20"][row] == pytest.approx(np.log(close[row] / close[row - 20]))
        window = volume[row - 19 : row + 1]
        assert zscore[row] == pytest.approx((volume[row] - window.mean()) / window.std())


@every_set
@settings(max_examples=40, deadline=None, derandomize=True)
@given(cut=st.integers(1, 1_000), real=st.booleans())
def test_a_feature_never_changes_when_the_future_arrives(
    feature_set: FeatureSet, apple: pl.DataFrame, thin: pl.DataFrame, cut: int, real: bool
) -> None:
    bars = apple.head(1_000) if real else thin
    found = prefix_violations(lambda frame: feature_table([frame], feature_set), bars, [cut])
    assert found.is_empty(), found


@every_set
def test_values_rest_on_no_bar_before_the_declared_lookback(
    feature_set: FeatureSet, apple: pl.DataFrame, thin: pl.DataFrame
) -> None:
    lookback = feature_set.lookback
    for bars in (apple, thin):
        whole = columns(bars, feature_set)
        for start in range(0, bars.height - lookback, 23):
            segment = columns(bars.slice(start, lookback + 1), feature_set)
            for name, values in whole.items():
                error = abs(segment[name][lookback] - values[start + lookback])
                assert error <= LOOKBACK_TOLERANCE * np.nanstd(values), (name, start)


@every_set
def test_constant_prices_and_zero_volume_give_finite_neutral_values(
    feature_set: FeatureSet, still: pl.DataFrame
) -> None:
    table = feature_table([still], feature_set)
    assert table.height == still.height - feature_set.lookback
    for name in feature_set.names:
        neutral = 50.0 if name.startswith(("rsi", "stochastic")) else 0.0
        np.testing.assert_allclose(table[name], neutral, atol=1e-6, err_msg=name)


def test_volume_that_never_changes_has_zscore_zero(still: pl.DataFrame) -> None:
    # Twenty times 0.1 do not sum to 2: without a tolerance this gives 1 or -1.
    bars = still.with_columns(volume=pl.lit(0.1))
    assert set(feature_table([bars], SETS["volume_zscore"])["volume_zscore_20"]) == {0.0}


def test_a_volume_spike_leaves_no_trace_once_out_of_the_window(thin: pl.DataFrame) -> None:
    calm = thin.with_columns(volume=pl.when(pl.col("volume") == 1e9).then(1.0).otherwise("volume"))
    spiked, normal = (columns(bars, SETS["volume_zscore"]) for bars in (thin, calm))
    np.testing.assert_array_equal(
        spiked["volume_zscore_20"][220:], normal["volume_zscore_20"][220:]
    )


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
@every_set
def test_features_do_not_depend_on_the_price_level(
    feature_set: FeatureSet, apple: pl.DataFrame, scale: float
) -> None:
    scaled = apple.with_columns(pl.col("open", "high", "low", "close") * scale)
    for name, values in columns(apple, feature_set).items():
        np.testing.assert_allclose(
            columns(scaled, feature_set)[name], values, rtol=1e-6, atol=1e-9, err_msg=name
        )


@every_set
def test_any_number_of_bars_is_accepted_and_inputs_are_left_alone(
    feature_set: FeatureSet, apple: pl.DataFrame
) -> None:
    for rows in (0, 1, 2, 13, 14, 15, 40):
        bars = apple.head(rows)
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
    assert lookbacks["stochastic"] == 17
    assert lookbacks["returns"] == 60
    assert lookbacks["sma_ratio"] == lookbacks["volume_zscore"] == 19
