"""Oscillators between 0 and 100. Start at `INDICATORS`."""

from typing import Any

import numpy as np
import polars as pl
import polars_talib
from pydantic import Field

from trade_pipeline.features.indicator import Array, Bars, Indicator, Period, forgetting, talib
from trade_pipeline.features.indicators.parameters import PeriodParameters, names
from trade_pipeline.settings.base import Settings


class StochasticParameters(Settings):
    """Parameters of `stochastic`: the range's window and the two smoothing windows."""

    period: Period = 14
    k: int = Field(
        default=3, strict=True, ge=1, le=10_000, description="Bars of the mean that gives %K."
    )
    d: int = Field(
        default=3, strict=True, ge=1, le=10_000, description="Bars of the mean that gives %D."
    )


def _rsi(bars: Bars, parameters: PeriodParameters) -> dict[str, Array]:
    """Wilder's relative strength, 0 to 100; 50 once the close stood still for three periods.

    TA-Lib keeps the last ratio as long as nothing moves, though it rests on ever older bars until
    it depends on nothing within the lookback; and it gives 0 where nothing has moved yet.
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    close = bars["close"]
    column = talib(polars_talib.rsi(pl.col("close"), timeperiod=parameters.period), close=close)
    kernels.rest(close, 3 * parameters.period, column)
    return {f"rsi_{parameters.period}": column}


def _stochastic(bars: Bars, parameters: StochasticParameters) -> dict[str, Array]:
    """Where the close lies in the window's range, 0 to 100, smoothed once (%K) and twice (%D).

    A window without range counts as 50, its middle (TA-Lib: 0, its bottom).
    """
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    top = talib(polars_talib.max(pl.col("high"), timeperiod=parameters.period), high=bars["high"])
    bottom = talib(polars_talib.min(pl.col("low"), timeperiod=parameters.period), low=bars["low"])
    kernels.place_in_range(bars["close"], bottom, top)
    percent_k = _smooth(top, parameters.period - 1, parameters.k)
    percent_d = _smooth(percent_k, parameters.period + parameters.k - 2, parameters.d)
    return dict(zip(_stochastic_names(parameters), (percent_k, percent_d), strict=True))


def _stochastic_names(parameters: StochasticParameters) -> tuple[str, ...]:
    suffix = f"{parameters.period}_{parameters.k}_{parameters.d}"
    return (f"stochastic_k_{suffix}", f"stochastic_d_{suffix}")


def _smooth(values: Array, warm_up: int, window: int) -> Array:
    """Simple moving average that skips the warm-up: TA-Lib lets one NaN poison all that follows."""
    if window == 1:
        return values
    column = np.full(values.size, np.nan)
    column[warm_up:] = talib(
        polars_talib.sma(pl.col("value"), timeperiod=window), value=values[warm_up:]
    )
    return column


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "rsi",
        PeriodParameters,
        ("close",),
        names("rsi"),
        lambda parameters: forgetting(1 / parameters.period),
        _rsi,
    ),
    Indicator(
        "stochastic",
        StochasticParameters,
        ("high", "low", "close"),
        _stochastic_names,
        lambda parameters: parameters.period + parameters.k + parameters.d - 3,
        _stochastic,
    ),
)
