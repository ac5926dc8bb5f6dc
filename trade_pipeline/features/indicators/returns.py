"""Returns of the close. Start at `INDICATORS`."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from trade_pipeline.features.indicator import Array, Bars, Indicator
from trade_pipeline.features.indicators.parameters import Horizon, unique
from trade_pipeline.settings.base import Settings


class ReturnsParameters(Settings):
    """Parameters of `returns`."""

    horizons: tuple[Horizon, ...] = Field(
        default=(1,), min_length=1, description="Bars back, one column each."
    )
    kind: Literal["simple", "log"] = "simple"

    @field_validator("horizons")
    @classmethod
    def _unique(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(unique(horizons, "horizons"))


def log_returns(close: Array, horizon: int = 1) -> Array:
    """Logarithm of the close's growth over so many bars: [T] to [T], NaN before there are any."""
    column = _growth(close, horizon)
    return np.log(column, out=column)


def _growth(close: Array, horizon: int) -> Array:
    """Each close over the one so many bars before."""
    column = np.full(close.size, np.nan)
    np.divide(close[horizon:], close[:-horizon], out=column[horizon:])
    return column


def _returns(bars: Bars, parameters: ReturnsParameters) -> dict[str, Array]:
    """Change of the close over each horizon, as a fraction; 0 at a constant price."""
    close = bars["close"]
    columns = {}
    for name, horizon in zip(_names(parameters), parameters.horizons, strict=True):
        if parameters.kind == "log":
            columns[name] = log_returns(close, horizon)
        else:
            columns[name] = _growth(close, horizon)
            columns[name] -= 1
    return columns


def _names(parameters: ReturnsParameters) -> tuple[str, ...]:
    prefix = "log_return" if parameters.kind == "log" else "return"
    return tuple(f"{prefix}_{horizon}" for horizon in parameters.horizons)


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "returns",
        ReturnsParameters,
        ("close",),
        _names,
        lambda parameters: max(parameters.horizons),
        _returns,
    ),
)
