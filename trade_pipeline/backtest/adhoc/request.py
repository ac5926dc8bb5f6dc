"""What somebody asks to be backtested, as they write it.

Loads nothing heavy: the launchpad shows these keys when the code location loads. Start at
`parse_request`; `resolution` holds a request against what is stored.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from pydantic import Field, field_validator, model_validator

from trade_pipeline.backtest.instants import instant
from trade_pipeline.settings.base import Settings, parse_settings
from trade_pipeline.settings.baselines import BaselineSettings

ORIGIN = "adhoc_backtest"


class AdhocRequest(Settings):
    """A policy or a baseline, over a range of some series."""

    policy: str | None = Field(
        default=None,
        description="Key of a stored policy: <experiment>/policy/<trial>, imported/<name>, or "
        "<experiment>/promoted for what is promoted. Empty: `baseline` says what trades.",
    )
    version: str | None = Field(
        default=None, description="Of that bundle, 32 hex digits. Empty: the current one."
    )
    baseline: BaselineSettings | None = Field(
        default=None,
        description="In the place of a policy: one entry as in `baselines` of an experiment, such "
        "as {kind: sma_cross, fast: 20, slow: 50}.",
    )
    series: tuple[str, ...] = Field(
        default=(),
        description="Keys of configs/series.yaml, all one timeframe, as many as the policy trades "
        "and in its order. Empty: those it was trained on.",
    )
    features: str | None = Field(
        default=None,
        description="A feature set. Empty: that of the policy; a baseline then takes every bar.",
    )
    start: datetime = Field(
        alias="from", description="First bar: a date, or a date and time; UTC where no zone stands."
    )
    end: datetime = Field(alias="to", description="Exclusive end, written likewise.")
    costs: dict[str, Any] = Field(
        default_factory=dict,
        description="What differs of `environment.costs`, such as {fee: {kind: flat, bps: 0}}.",
    )
    initial_equity: float | None = Field(
        default=None, description="Quote currency. Empty: as in training; a baseline has 100000."
    )
    environment: dict[str, Any] = Field(
        default_factory=dict,
        description="What else differs: max_leverage, maintenance_margin, max_turnover, "
        "no_trade_band; of a baseline also window, actions and max_position.",
    )
    include_final: bool = Field(
        default=False,
        description="Look at the final period of the policy's experiment although the policy was "
        "never promoted; the report says that it was done.",
    )

    @field_validator("start", "end", mode="before")
    @classmethod
    def _instant(cls, value: Any) -> datetime:
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                raise ValueError(
                    "is no date; write it as 2024-01-31, or with a time as 2024-01-31T06:00 (UTC)"
                ) from None
        elif type(value) is date:
            value = datetime(value.year, value.month, value.day)
        if not isinstance(value, datetime):
            raise ValueError("is no date; write it as 2024-01-31")
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @field_validator("series")
    @classmethod
    def _unique(cls, series: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(series)) != len(series):
            raise ValueError("entries must be unique")
        return series

    @model_validator(mode="after")
    def _one_strategy(self) -> "AdhocRequest":
        if (self.policy is None) == (self.baseline is None):
            raise ValueError(
                "name either a policy (the key of its bundle) or a baseline (such as "
                "{kind: buy_and_hold}), not both and not neither"
            )
        if self.version is not None and self.policy is None:
            raise ValueError("version is of a policy; leave it out for a baseline")
        if self.baseline is not None and not self.series:
            raise ValueError("a baseline has no series of its own; name at least one under series")
        if not self.start < self.end:
            start, end = (instant(milliseconds(one)) for one in (self.start, self.end))
            raise ValueError(
                f"from {start} must come before to {end}, which is not part of the range"
            )
        return self


def parse_request(content: Mapping[str, Any]) -> AdhocRequest:
    """A request as people write it. Raises `SettingsError` that names the wrong key."""
    return parse_settings(dict(content), AdhocRequest, ORIGIN)


def milliseconds(at: datetime) -> int:
    """An instant in ms."""
    return round(at.timestamp() * 1000)
