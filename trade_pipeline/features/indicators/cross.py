"""One series against another. Start at `INDICATORS`."""

from typing import Any

import numpy as np
from pydantic import Field, field_validator

from trade_pipeline.features.indicator import Array, Bars, Indicator, Period, reference_column
from trade_pipeline.features.indicators.parameters import Horizon, SeriesKey, unique
from trade_pipeline.features.indicators.returns import log_returns
from trade_pipeline.features.indicators.windows import window_products, window_sums
from trade_pipeline.settings.base import Settings

# Log returns whose deviation is below this are equal but for rounding.
STILL = 1e-12


class RelativeStrengthParameters(Settings):
    """Parameters of `relative_strength`."""

    reference: SeriesKey = Field(description="Key of the series to compare with.")
    horizons: tuple[Horizon, ...] = Field(
        default=(20,), min_length=1, description="Bars back, one column each."
    )

    @field_validator("horizons")
    @classmethod
    def _unique(cls, horizons: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(unique(horizons, "horizons"))


class RollingCorrelationParameters(Settings):
    """Parameters of `rolling_correlation`."""

    reference: SeriesKey = Field(description="Key of the series to compare with.")
    period: Period = 60


def _relative_strength(bars: Bars, parameters: RelativeStrengthParameters) -> dict[str, Array]:
    """Log return of the close minus that of the reference, over each horizon.

    Horizons count the series' own bars. 0 where both stand still, and against itself.
    """
    own, other = bars["close"], bars[reference_column("close", parameters.reference)]
    columns = {}
    for name, horizon in zip(_strength_names(parameters), parameters.horizons, strict=True):
        columns[name] = log_returns(own, horizon)
        columns[name] -= log_returns(other, horizon)
    return columns


def _strength_names(parameters: RelativeStrengthParameters) -> tuple[str, ...]:
    return tuple(
        f"relative_strength_{horizon}_{parameters.reference}" for horizon in parameters.horizons
    )


def _rolling_correlation(bars: Bars, parameters: RollingCorrelationParameters) -> dict[str, Array]:
    """Correlation of one-bar log returns with the reference's over the window, -1 to 1.

    0 where either does not vary; 1 against itself.
    """
    own = log_returns(bars["close"])
    other = log_returns(bars[reference_column("close", parameters.reference)])
    period = parameters.period
    own_mean, other_mean = window_sums(own, period) / period, window_sums(other, period) / period
    own_square = window_products(own, own_mean, own, own_mean, period)
    other_square = window_products(other, other_mean, other, other_mean, period)
    still = np.minimum(own_square, other_square) <= period * STILL**2
    scale = np.where(still, 1.0, np.sqrt(own_square * other_square))
    both = window_products(own, own_mean, other, other_mean, period)
    column = np.where(still, 0.0, np.clip(both / scale, -1.0, 1.0))
    return {_correlation_names(parameters)[0]: column}


def _correlation_names(parameters: RollingCorrelationParameters) -> tuple[str, ...]:
    return (f"rolling_correlation_{parameters.period}_{parameters.reference}",)


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "relative_strength",
        RelativeStrengthParameters,
        ("close",),
        _strength_names,
        lambda parameters: max(parameters.horizons),
        _relative_strength,
        references=lambda parameters: (parameters.reference,),
    ),
    Indicator(
        "rolling_correlation",
        RollingCorrelationParameters,
        ("close",),
        _correlation_names,
        lambda parameters: parameters.period,
        _rolling_correlation,
        references=lambda parameters: (parameters.reference,),
    ),
)
