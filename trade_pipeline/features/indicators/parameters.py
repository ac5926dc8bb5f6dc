"""Parameters that several indicators share."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from trade_pipeline.features.indicator import Period
from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.series import KEY_PATTERN

Horizon = Annotated[int, Field(strict=True, ge=1, le=10_000, description="In bars.")]
SeriesKey = Annotated[str, Field(pattern=KEY_PATTERN)]
Item = TypeVar("Item")


class PeriodParameters(Settings):
    """Parameters of indicators after Wilder: `rsi` and `atr`."""

    period: Period = 14


class WindowParameters(Settings):
    """Parameters of indicators over one window or one average."""

    period: Period = 20


def unique(items: Sequence[Item], what: str) -> Sequence[Item]:
    """The same items. Raises `ValueError` where two are equal."""
    if len(set(items)) != len(items):
        raise ValueError(f"{what} must be unique")
    return items


def names(prefix: str) -> Callable[[PeriodParameters | WindowParameters], tuple[str, ...]]:
    """Outputs of an indicator with one column, `<prefix>_<period>`."""
    return lambda parameters: (f"{prefix}_{parameters.period}",)


def window_lookback(parameters: PeriodParameters | WindowParameters) -> int:
    """Of a window that ends with the bar itself."""
    return parameters.period - 1
