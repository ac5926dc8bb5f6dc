"""Search for settings: the key `search` of an experiment's file.

Paths are dotted, as in a sweep. Bounds are inclusive. Start at `SearchSettings`.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.overrides import check_paths, spelled


class _Range(Settings):
    @model_validator(mode="after")
    def _not_empty(self) -> "_Range":
        low, high = self.ends
        if not low < high:
            raise ValueError(f"low {low:g} must be below high {high:g}")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all: both bounds."""
        return (getattr(self, "low"), getattr(self, "high"))  # noqa: B009 - of each kind its type


class FloatRange(_Range):
    """Any number between two."""

    kind: Literal["float"]
    low: float
    high: float


class LogFloatRange(_Range):
    """Any number between two; each order of magnitude is as likely."""

    kind: Literal["log_float"]
    low: float = Field(gt=0)
    high: float = Field(gt=0)


class IntRange(_Range):
    """A whole number between two."""

    kind: Literal["int"]
    low: int
    high: int


class Choice(Settings):
    """One of the values listed; lists and mappings are values, too."""

    kind: Literal["choice"]
    values: tuple[Any, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _each_once(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [spelled(value) for value in values]
        for value, name in zip(values, names, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"values lists {value!r} twice")
        return values

    @property
    def ends(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


Dimension = Annotated[
    FloatRange | LogFloatRange | IntRange | Choice,
    Field(discriminator="kind"),
]


class SearchSettings(Settings):
    """Which settings to look for, and how; judged by the validation part alone."""

    space: dict[str, Dimension] = Field(min_length=1, description="Dotted path to its values.")
    trials: PositiveInt = Field(description="Settings to try; each with every seed.")
    sampler: Literal["tpe", "random"] = "tpe"
    seed: NonNegativeInt = Field(default=0, description="Of the suggestions.")
    variant: str = Field(default="base", description="What the suggestions change.")
    fold: NonNegativeInt = 0
    seeds: tuple[NonNegativeInt, ...] | None = Field(
        default=None,
        min_length=1,
        description="Of the trainings; their mean counts. By default the experiment's.",
    )

    @field_validator("space")
    @classmethod
    def _places(cls, space: dict[str, Any]) -> dict[str, Any]:
        check_paths(list(space))
        return space

    @field_validator("seeds")
    @classmethod
    def _unique(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) != len(seeds):
            raise ValueError("entries must be unique")
        return seeds
