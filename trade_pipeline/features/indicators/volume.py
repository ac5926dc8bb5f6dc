"""Who trades, and at what price. Start at `INDICATORS`."""

from typing import Any

from trade_pipeline.features.indicator import Array, Bars, Indicator
from trade_pipeline.features.indicators.parameters import WindowParameters, names, window_lookback
from trade_pipeline.features.indicators.windows import window_standing, window_sums


def _volume_zscore(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Volume's distance from its window's mean in standard deviations (ddof 0).

    Between -sqrt(period - 1) and +sqrt(period - 1); 0 where all volumes of the window are equal.
    """
    zscore, _ = window_standing(bars["volume"], parameters.period, 1.0)
    return {f"volume_zscore_{parameters.period}": zscore}


def _vwap_distance(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Close over the window's volume-weighted average price, minus one.

    A bar's price is the mean of its high, low and close. 0 at a constant price, and where nothing
    traded in the whole window.
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    paid = bars["high"] + bars["low"]
    paid += bars["close"]
    paid /= 3
    paid *= bars["volume"]
    column = window_sums(paid, parameters.period)
    kernels.distances_from_average(
        bars["close"], window_sums(bars["volume"], parameters.period), column
    )
    return {f"vwap_distance_{parameters.period}": column}


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "volume_zscore",
        WindowParameters,
        ("volume",),
        names("volume_zscore"),
        window_lookback,
        _volume_zscore,
    ),
    Indicator(
        "vwap_distance",
        WindowParameters,
        ("high", "low", "close", "volume"),
        names("vwap_distance"),
        window_lookback,
        _vwap_distance,
    ),
)
