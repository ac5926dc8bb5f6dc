"""Market regimes of an experiment: its key `regimes`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trade_pipeline.settings.base import Settings

FEWEST_STATES, MOST_STATES = 2, 8
MOST_INPUTS = 16

States = Annotated[int, Field(strict=True, ge=FEWEST_STATES, le=MOST_STATES)]


class RegimeSettings(Settings):
    """A hidden Markov model of the market, fitted on each fold's training rows."""

    inputs: tuple[str, ...] = Field(
        min_length=1,
        max_length=MOST_INPUTS,
        description="Features of the set that the model sees. The first one is a return: states "
        "are ordered by its variance, the calmest first.",
    )
    states: tuple[States, ...] = Field(
        default=(2, 3, 4),
        min_length=1,
        description="Number of states, or numbers to choose from by the least BIC.",
    )
    covariance: Literal["diagonal", "full"] = Field(
        default="diagonal", description="Whether inputs may vary together within a state (full)."
    )
    restarts: int = Field(
        default=5, strict=True, ge=1, le=100, description="Fits a number of states, the best kept."
    )
    seed: int = Field(
        default=0, strict=True, ge=0, lt=2**32, description="Of the first restart; then counted up."
    )
    iterations: int = Field(
        default=500, strict=True, ge=2, le=10_000, description="Of EM, at most; then it failed."
    )
    tolerance: float = Field(
        default=1e-6,
        gt=0,
        le=1,
        description="EM has converged when the log likelihood of a row changes by less (nats).",
    )
    series: str | None = Field(
        default=None, description="Series whose features are read; default: the first one."
    )
    as_features: bool = Field(
        default=False, description="Whether policies see the filtered probabilities as features."
    )

    @field_validator("states", mode="before")
    @classmethod
    def _one_or_several(cls, states: Any) -> Any:
        return (states,) if isinstance(states, int) else states

    @field_validator("inputs", "states")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"{value!r} is listed twice; list it once")
        return values
