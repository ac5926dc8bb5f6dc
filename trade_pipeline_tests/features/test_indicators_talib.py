"""TA-Lib's own wheel as oracle, on real daily and real minute bars."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
import talib

from trade_pipeline_tests.features.test_indicators import MSFT, OF_PRICES, columns

Values = dict[str, np.ndarray]

# Where the same function of TA-Lib is asked, what remains is the division by the close.
SAME = 1e-12
# TA-Lib keeps running sums, some of squares of prices, where ours add each window up afresh.
RUNNING_SUM = 1e-11
RUNNING_SQUARES = 1e-8


def macd(bars: Values, fast: int, slow: int, signal: int) -> list[np.ndarray]:
    parts = talib.MACD(bars["close"], fast, slow, signal)
    return [part / bars["close"] for part in parts]


def bollinger(bars: Values, period: int, width: float) -> list[np.ndarray]:
    close = bars["close"]
    upper, middle, lower = talib.BBANDS(close, period, width, width)
    return [2 * (close - lower) / (upper - lower) - 1, (upper - lower) / middle]


def own_log_returns(bars: Values) -> np.ndarray:
    return np.log(talib.ROCR(bars["close"], 1))


def correlation(bars: Values) -> list[np.ndarray]:
    other = np.log(talib.ROCR(bars[f"close@{MSFT}"], 1))[1:]
    found = talib.CORREL(own_log_returns(bars)[1:], other, 30)
    return [np.concatenate([[np.nan], found])]


def realised(bars: Values) -> list[np.ndarray]:
    squares = own_log_returns(bars)[1:] ** 2
    return [np.concatenate([[np.nan], np.sqrt(talib.SMA(squares, 20))])]


def vwap(bars: Values) -> list[np.ndarray]:
    typical = talib.TYPPRICE(bars["high"], bars["low"], bars["close"])
    volume = bars["volume"]
    return [bars["close"] * talib.SUM(volume, 20) / talib.SUM(typical * volume, 20) - 1]


def volume_zscore(bars: Values) -> list[np.ndarray]:
    volume = bars["volume"]
    return [(volume - talib.SMA(volume, 20)) / talib.STDDEV(volume, 20)]


def relative_strength(bars: Values) -> list[np.ndarray]:
    other = bars[f"close@{MSFT}"]
    return [
        np.log(talib.ROCR(bars["close"], horizon) / talib.ROCR(other, horizon))
        for horizon in (1, 20)
    ]


ORACLES: dict[str, tuple[Callable[[Values], list[np.ndarray]], float]] = {
    "returns": (lambda bars: [talib.ROCP(bars["close"], one) for one in (1, 5, 60)], SAME),
    "log returns": (lambda bars: [np.log(talib.ROCR(bars["close"], one)) for one in (1, 20)], SAME),
    "rsi": (lambda bars: [talib.RSI(bars["close"], 14)], SAME),
    "sma_ratio": (lambda bars: [bars["close"] / talib.SMA(bars["close"], 20) - 1], SAME),
    "ema_ratio": (lambda bars: [bars["close"] / talib.EMA(bars["close"], 20) - 1], SAME),
    "macd": (lambda bars: macd(bars, 12, 26, 9), SAME),
    "slow signal": (lambda bars: macd(bars, 5, 10, 30), SAME),
    "stochastic": (
        lambda bars: [*talib.STOCH(bars["high"], bars["low"], bars["close"], 14, 3, 0, 3, 0)],
        RUNNING_SUM,
    ),
    "unsmoothed": (
        lambda bars: [*talib.STOCH(bars["high"], bars["low"], bars["close"], 5, 1, 0, 1, 0)],
        RUNNING_SUM,
    ),
    "atr": (
        lambda bars: [talib.ATR(bars["high"], bars["low"], bars["close"], 14) / bars["close"]],
        SAME,
    ),
    "bollinger": (lambda bars: bollinger(bars, 20, 2.0), RUNNING_SQUARES),
    "wide bollinger": (lambda bars: bollinger(bars, 50, 2.5), RUNNING_SQUARES),
    "realised_volatility": (realised, RUNNING_SUM),
    "volume_zscore": (volume_zscore, RUNNING_SQUARES),
    "vwap_distance": (vwap, RUNNING_SUM),
    "relative_strength": (relative_strength, SAME),
    "rolling_correlation": (correlation, RUNNING_SQUARES),
}


@pytest.mark.parametrize("real", ["apple_beside", "bitcoin"])
@pytest.mark.parametrize("name", ORACLES)
def test_indicators_equal_talib_on_real_bars(
    name: str, real: str, request: pytest.FixtureRequest
) -> None:
    bars: pl.DataFrame = request.getfixturevalue(real)
    values = {column: bars[column].to_numpy() for column in bars.columns if "ts" not in column}
    oracle, tolerance = ORACLES[name]
    feature_set = OF_PRICES[name]
    lookback = feature_set.lookback
    got = columns(bars, feature_set)
    for (column, ours), theirs in zip(got.items(), oracle(values), strict=True):
        assert np.isfinite(theirs[lookback:]).all()
        np.testing.assert_allclose(
            ours[lookback:], theirs[lookback:], rtol=tolerance, atol=tolerance, err_msg=column
        )


def test_only_what_talib_lacks_is_missing_here() -> None:
    assert set(OF_PRICES) - set(ORACLES) == {"turbulence"}
