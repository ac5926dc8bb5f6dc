"""Feature sets: `configs/features/<set>.yaml`, an ordered list of indicators plus scaling.

Parameters of an indicator are checked against its own model by `features.registry`.
"""

from typing import Any, Literal

from pydantic import Field

from trade_pipeline.settings.base import Settings


class IndicatorSettings(Settings):
    """One indicator of a set; `params` are those of the indicator's specification."""

    name: str
    params: dict[str, Any] = Field(default_factory=dict)


class FeatureSetSettings(Settings):
    """`configs/features/<set>.yaml`."""

    indicators: tuple[IndicatorSettings, ...] = Field(min_length=1)
    scaling: Literal["none", "standard"] = Field(
        default="standard",
        description="How a policy scales features, with statistics of its fold's training rows.",
    )
