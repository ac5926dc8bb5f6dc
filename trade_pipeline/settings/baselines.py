"""Rules that a policy should beat: the key `baselines` of an experiment.

What each decides is written at its class and in docs/strategies.md; `backtest/rules.py` does it.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.overrides import short_hash, spelled

LONGEST_LABEL = 60
Bars = Annotated[int, Field(gt=0, le=1_000_000)]
Window = Annotated[int, Field(ge=2, le=1_000_000)]


class Baseline(Settings):
    """Base of every entry: a kind and parameters, which make its name in reports."""

    named_by: ClassVar[tuple[str, ...]] = ()

    @property
    def label(self) -> str:
        """What reports call it: its kind, the parameters `named_by`, others that were changed.

        >>> DonchianBaseline(kind="donchian", exit=5, short=True).label
        'donchian_20_5_short'
        """
        given = self.model_dump(mode="json")
        words = [given["kind"], *(spelled(given[name]) for name in self.named_by)]
        for name, field in type(self).model_fields.items():
            if name != "kind" and name not in self.named_by and given[name] != field.default:
                words += [name] if given[name] is True else [name, spelled(given[name])]
        return "_".join(words)


class FlatBaseline(Baseline):
    """Never trades."""

    kind: Literal["flat"]


class BuyAndHoldBaseline(Baseline):
    """Buys equal weights once and holds."""

    kind: Literal["buy_and_hold"]


class EqualWeightBaseline(Baseline):
    """Rebalances to equal weights each bar."""

    kind: Literal["equal_weight"]


class RandomBaseline(Baseline):
    """Draws a uniform action each bar."""

    named_by = ("seed",)
    kind: Literal["random"]
    seed: int = Field(default=0, ge=0)


class SmaCrossBaseline(Baseline):
    """Long while the fast average is above the slow one, otherwise flat."""

    named_by = ("fast", "slow")
    kind: Literal["sma_cross"]
    fast: PositiveInt = 20
    slow: PositiveInt = 50

    @model_validator(mode="after")
    def _fast_is_faster(self) -> "SmaCrossBaseline":
        if self.fast >= self.slow:
            raise ValueError(f"fast {self.fast} must be below slow {self.slow}")
        return self


class DonchianBaseline(Baseline):
    """Long from a close above the highest high of `entry` bars to one below `exit` bars' lows."""

    named_by = ("entry", "exit")
    kind: Literal["donchian"]
    entry: Bars = Field(default=20, description="Earlier bars whose range a close must leave.")
    exit: Bars = Field(default=10, description="Earlier bars whose range ends the position.")
    short: bool = Field(default=False, description="Breaks downward are sold short.")


class RsiReversionBaseline(Baseline):
    """Long from an RSI below `low` to one above `high`."""

    named_by = ("period", "low", "high")
    kind: Literal["rsi_reversion"]
    period: Window = Field(default=14, description="Of Wilder's smoothing, in bars.")
    low: float = Field(default=30.0, gt=0, lt=100)
    high: float = Field(default=70.0, gt=0, lt=100)
    short: bool = Field(default=False, description="Short from above `high` to below `low`.")

    @model_validator(mode="after")
    def _low_is_lower(self) -> "RsiReversionBaseline":
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        return self


class MomentumBaseline(Baseline):
    """Long after a rise over `lookback` bars, otherwise flat."""

    named_by = ("lookback",)
    kind: Literal["momentum"]
    lookback: Bars = Field(default=252, description="Bars that the return is taken over.")
    skip: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Latest bars that are left out of it."
    )
    short: bool = Field(default=False, description="Short after a fall.")


class VolatilityTargetBaseline(Baseline):
    """Long, the larger the calmer the market: target volatility over that of `window` bars."""

    named_by = ("target", "window")
    kind: Literal["volatility_target"]
    target: float = Field(default=0.15, gt=0, le=10, description="Annual, 0.15 is 15 %.")
    window: Window = Field(default=60, description="Bars of returns that volatility is taken of.")
    max_leverage: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Times equity; the environment's caps count too.",
    )
    band: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the wanted weight that it may be off by."
    )


class InverseVolatilityBaseline(Baseline):
    """Weights proportional to one over each instrument's volatility, set anew now and then."""

    named_by = ("window", "rebalance")
    kind: Literal["inverse_volatility"]
    window: Window = Field(default=60, description="Bars of returns that volatility is taken of.")
    rebalance: Bars = Field(default=20, description="Bars from one rebalancing to the next.")


class PluginBaseline(Baseline):
    """A strategy of yours: an entry point of the group `trade_pipeline.strategies`."""

    kind: Literal["plugin"]
    name: str = Field(min_length=1, max_length=LONGEST_LABEL, description="Of the entry point.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments that make the strategy."
    )

    @field_validator("parameters")
    @classmethod
    def _can_be_recorded(cls, parameters: dict[str, Any]) -> dict[str, Any]:
        short_hash(parameters)  # refuses what is no JSON, such as a date or infinity
        return parameters

    @property
    def label(self) -> str:
        """What reports call it: its name and the parameters given, hashed where that is long."""
        words = [f"{name}_{spelled(value)}" for name, value in self.parameters.items()]
        text = "_".join([self.name, *words])
        return text if len(text) <= LONGEST_LABEL else f"{self.name}_x{short_hash(self.parameters)}"


BaselineSettings = Annotated[
    FlatBaseline
    | BuyAndHoldBaseline
    | RandomBaseline
    | SmaCrossBaseline
    | DonchianBaseline
    | RsiReversionBaseline
    | MomentumBaseline
    | VolatilityTargetBaseline
    | EqualWeightBaseline
    | InverseVolatilityBaseline
    | PluginBaseline,
    Field(discriminator="kind"),
]
BaselineKind = Literal[
    "flat",
    "buy_and_hold",
    "random",
    "sma_cross",
    "donchian",
    "rsi_reversion",
    "momentum",
    "volatility_target",
    "equal_weight",
    "inverse_volatility",
    "plugin",
]


def check_names(baselines: tuple[BaselineSettings, ...]) -> None:
    """Refuse two entries that reports would call by one name.

    Raises:
        ValueError: names it.
    """
    labels = [one.label for one in baselines]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"{label!r} is listed {labels.count(label)} times; drop all but one, or give them "
                "other parameters"
            )
