"""The indicators that ship, by theme. Start at `SHIPPED`; a new one is one more `Indicator`."""

from typing import Any

from trade_pipeline.features.indicator import Indicator
from trade_pipeline.features.indicators import (
    clock,
    cross,
    momentum,
    returns,
    trend,
    turbulence,
    volatility,
    volume,
)

SHIPPED: tuple[Indicator[Any], ...] = (
    *returns.INDICATORS,
    *trend.INDICATORS,
    *momentum.INDICATORS,
    *volatility.INDICATORS,
    *volume.INDICATORS,
    *clock.INDICATORS,
    *cross.INDICATORS,
    *turbulence.INDICATORS,
)
