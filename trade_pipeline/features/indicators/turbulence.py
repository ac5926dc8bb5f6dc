"""How unusual today's returns of several series are together. Start at `INDICATORS`.

Source: M. Kritzman, Y. Li, "Skulls, Financial Turbulence, and Risk Management", Financial Analysts
Journal 66(5), 2010, pages 30 to 41.
"""

from typing import Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from trade_pipeline.features.indicator import Array, Bars, Indicator, Period, reference_column
from trade_pipeline.features.indicators.cross import STILL
from trade_pipeline.features.indicators.parameters import SeriesKey, unique
from trade_pipeline.features.indicators.returns import log_returns
from trade_pipeline.features.indicators.windows import window_products, window_sums
from trade_pipeline.settings.base import Settings

# Added to each variance, as a share of it: two series that move as one leave a distance finite.
RIDGE = 1e-6
# Bars for which all covariances are held at a time, so that memory does not grow with the bars.
_ROWS_AT_ONCE = 65_536


class TurbulenceParameters(Settings):
    """Parameters of `turbulence`."""

    series: tuple[SeriesKey, ...] = Field(
        min_length=1, description="Keys of the series beside the series itself."
    )
    period: Period = 250

    @field_validator("series")
    @classmethod
    def _unique(cls, series: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(unique(series, "series"))

    @model_validator(mode="after")
    def _enough_bars(self) -> "TurbulenceParameters":
        together = len(self.series) + 1
        if self.period <= together:
            raise ValueError(
                f"period {self.period} must be above {together}, the number of series: fewer "
                "returns have no covariance of full rank"
            )
        return self


def _turbulence(bars: Bars, parameters: TurbulenceParameters) -> dict[str, Array]:
    """Squared Mahalanobis distance of the bar's log returns, over the number of series.

    From mean and covariance (ddof 1) of the `period` returns before the bar, so that 1 is usual.
    A series that did not vary over that time adds nothing; 0 where none did.
    """
    closes = [bars["close"]]
    closes += [bars[reference_column("close", key)] for key in parameters.series]
    changes = [log_returns(close) for close in closes]
    period, size = parameters.period, closes[0].size
    column = np.full(size, np.nan)
    for start in range(period + 1, size, _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, size)
        part = [one[start - period : stop] for one in changes]
        column[start:stop] = _distances(part, period)
    return {_names(parameters)[0]: column}


def _distances(changes: list[Array], period: int) -> Array:
    """Distances of the last [rows] of [period + rows] returns of each series."""
    from trade_pipeline.features.indicators import kernels  # numba takes half a second

    means = [window_sums(one, period) / period for one in changes]
    products = [
        window_products(changes[i], means[i], changes[j], means[j], period)
        for i in range(len(changes))
        for j in range(i + 1)
    ]
    # Windows end with the return before the bar's own.
    before = slice(period - 1, -1)
    today = np.stack(
        [one[period:] - mean[before] for one, mean in zip(changes, means, strict=True)]
    )
    distances = np.empty(today.shape[1])
    lower = np.stack([one[before] for one in products])
    kernels.mahalanobis(today, lower, period, STILL, RIDGE, distances)
    return distances


def _names(parameters: TurbulenceParameters) -> tuple[str, ...]:
    return (f"turbulence_{parameters.period}_{'_'.join(parameters.series)}",)


INDICATORS: tuple[Indicator[Any], ...] = (
    Indicator(
        "turbulence",
        TurbulenceParameters,
        ("close",),
        _names,
        lambda parameters: parameters.period + 1,
        _turbulence,
        references=lambda parameters: parameters.series,
    ),
)
