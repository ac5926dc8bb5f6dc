"""Feature sets: `configs/features/<set>.yaml`, an ordered list of indicators plus scaling.

Parameters of an indicator are checked against its own model by `features.registry`.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.series import TIMEFRAME_MS, Timeframe

HigherTimeframe = Literal["5m", "15m", "1h", "4h", "1d", "1w"]
HIGHER_TIMEFRAME_MS: dict[str, int] = {**TIMEFRAME_MS, "1w": 7 * TIMEFRAME_MS["1d"]}
Scaling = Literal["none", "standard", "robust", "rank"]


class IndicatorSettings(Settings):
    """One indicator of a set; `params` are those of the indicator's specification."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)
    timeframe: HigherTimeframe | None = Field(
        default=None, description="Compute on bars of this timeframe, seen once they have closed."
    )


class FeatureSetSettings(Settings):
    """`configs/features/<set>.yaml`."""

    indicators: tuple[IndicatorSettings, ...] = Field(min_length=1)
    scaling: Scaling = Field(
        default="standard",
        description="How a policy scales features, with statistics of its fold's training rows.",
    )
    timeframe: Timeframe | None = Field(
        default=None,
        description="Of the series that the set is for; absent: any. Needed when an indicator "
        "has a timeframe of its own.",
    )

    @model_validator(mode="after")
    def _longer_than_the_set(self) -> "FeatureSetSettings":
        for position, one in enumerate(self.indicators):
            if one.timeframe is None:
                continue
            entry = f"indicators.{position} ({one.name}) has timeframe {one.timeframe}"
            if self.timeframe is None:
                raise ValueError(
                    f"{entry}: say also which timeframe the set's own bars have, such as "
                    "`timeframe: 1m` beside `indicators`"
                )
            if TIMEFRAME_MS[self.timeframe] >= HIGHER_TIMEFRAME_MS[one.timeframe]:
                raise ValueError(f"{entry}, which must be longer than the set's {self.timeframe}")
        return self
