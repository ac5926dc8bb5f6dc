"""Where the close stands against its averages. Start at `INDICATORS`."""

from typing import Any

import numpy as np
import polars as pl
import polars_talib
from pydantic import model_validator

from trade_pipeline.features.indicator import Array, Bars, Indicator, Period, forgetting, talib
from trade_pipeline.features.indicators.parameters import WindowParameters, names, window_lookback
from trade_pipeline.settings.base import Settings


class MacdParameters(Settings):
    """Parameters of `macd`: periods of its three exponential averages."""

    fast: Period = 12
    slow: Period = 26
    signal: Period = 9

    @model_validator(mode="after")
    def _fast_is_faster(self) -> "MacdParameters":
        # TA-Lib would swap the two silently, and the column's name would be wrong.
        if self.fast >= self.slow:
            raise ValueError(f"fast {self.fast} must be below slow {self.slow}")
        return self


def _sma_ratio(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Close over its simple moving average, minus one; 0 at a constant price."""
    mean = talib(
        polars_talib.sma(pl.col("close"), timeperiod=parameters.period), close=bars["close"]
    )
    return {f"sma_ratio_{parameters.period}": bars["close"] / mean - 1}


def _ema_ratio(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Close over its exponential moving average, minus one; 0 at a constant price."""
    mean = talib(
        polars_talib.ema(pl.col("close"), timeperiod=parameters.period), close=bars["close"]
    )
    return {f"ema_ratio_{parameters.period}": bars["close"] / mean - 1}


def _macd(bars: Bars, parameters: MacdParameters) -> dict[str, Array]:
    """MACD line, signal line and their difference, over the close; 0 at a constant price."""
    expression = polars_talib.macd(
        pl.col("close"),
        fastperiod=parameters.fast,
        slowperiod=parameters.slow,
        signalperiod=parameters.signal,
    )
    close = bars["close"]
    parts = pl.DataFrame({"close": close}).select(expression.alias("all")).unnest("all")
    return {
        name: np.asarray(parts[part].to_numpy() / close, dtype=np.float64)
        for name, part in zip(
            _macd_names(parameters), ("macd", "macdsignal", "macdhist"), strict=True
        )
    }


def _macd_names(parameters: MacdParameters) -> tuple[str, ...]:
    suffix = f"{parameters.fast}_{parameters.slow}_{parameters.signal}"
    return (f"macd_{suffix}", f"macd_signal_{suffix}", f"macd_histogram_{suffix}")


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "sma_ratio", WindowParameters, ("close",), names("sma_ratio"), window_lookback, _sma_ratio
    ),
    Indicator(
        "ema_ratio",
        WindowParameters,
        ("close",),
        names("ema_ratio"),
        lambda parameters: forgetting(2 / (parameters.period + 1)),
        _ema_ratio,
    ),
    Indicator(
        "macd",
        MacdParameters,
        ("close",),
        _macd_names,
        lambda parameters: forgetting(2 / (parameters.slow + 1), 2 / (parameters.signal + 1)),
        _macd,
    ),
)
