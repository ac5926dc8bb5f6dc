"""How much the price moves. Start at `INDICATORS`."""

from typing import Any

import numpy as np
import polars as pl
import polars_talib
from pydantic import Field

from trade_pipeline.features.indicator import Array, Bars, Indicator, forgetting, talib
from trade_pipeline.features.indicators.parameters import (
    PeriodParameters,
    WindowParameters,
    names,
    window_lookback,
)
from trade_pipeline.features.indicators.returns import log_returns
from trade_pipeline.features.indicators.windows import window_standing, window_sums


class BollingerParameters(WindowParameters):
    """Parameters of `bollinger`."""

    width: float = Field(
        default=2.0, ge=0.1, le=10, description="Standard deviations from the mean to a band."
    )


def _atr(bars: Bars, parameters: PeriodParameters) -> dict[str, Array]:
    """Wilder's average true range over the close; 0 at a constant price."""
    column = talib(
        polars_talib.atr(
            pl.col("high"), pl.col("low"), pl.col("close"), timeperiod=parameters.period
        ),
        high=bars["high"],
        low=bars["low"],
        close=bars["close"],
    )
    column /= bars["close"]
    return {f"atr_{parameters.period}": column}


def _bollinger(bars: Bars, parameters: BollingerParameters) -> dict[str, Array]:
    """Where the close stands between the bands, and how far they lie apart.

    Position is 0 at the window's mean, 1 on the upper band, -1 on the lower: %b is half of one
    more than it. Bandwidth is the distance of the bands over the mean. Deviations have ddof 0.
    Both are 0 at a constant price. Not from TA-Lib, whose bands collapse where prices are small.
    """
    position, bandwidth = window_standing(bars["close"], parameters.period, parameters.width)
    bandwidth *= 2
    return dict(zip(_bollinger_names(parameters), (position, bandwidth), strict=True))


def _bollinger_names(parameters: BollingerParameters) -> tuple[str, ...]:
    suffix = f"{parameters.period}_{parameters.width:g}"
    return (f"bollinger_position_{suffix}", f"bollinger_bandwidth_{suffix}")


def _realised_volatility(bars: Bars, parameters: WindowParameters) -> dict[str, Array]:
    """Root mean square of the window's one-bar log returns, per bar; 0 at a constant price."""
    squares = log_returns(bars["close"])
    squares *= squares
    column = window_sums(squares, parameters.period)
    column /= parameters.period
    return {f"realised_volatility_{parameters.period}": np.sqrt(column, out=column)}


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "atr",
        PeriodParameters,
        ("high", "low", "close"),
        names("atr"),
        lambda parameters: forgetting(1 / parameters.period),
        _atr,
    ),
    Indicator(
        "bollinger", BollingerParameters, ("close",), _bollinger_names, window_lookback, _bollinger
    ),
    Indicator(
        "realised_volatility",
        WindowParameters,
        ("close",),
        names("realised_volatility"),
        lambda parameters: parameters.period,
        _realised_volatility,
    ),
)
