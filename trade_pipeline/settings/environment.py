"""The environment of an experiment: what one simulated account sees, may do, pays and earns.

The rules behind the numbers are in docs/simulator.md. Start at `EnvironmentSettings`.
"""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, field_validator, model_validator

from trade_pipeline.settings.base import Settings

NotNegative = Annotated[float, Field(ge=0, le=1e15)]
Positive = Annotated[float, Field(gt=0, le=1e15)]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def _zero_or_sensible(step: float) -> float:
    if 0 < step < 1e-12:
        raise ValueError("a step is 0 for none, or at least 1e-12")
    return step


Step = Annotated[NotNegative, AfterValidator(_zero_or_sensible)]
EachInstrument = Step | tuple[Step, ...]
Bps = Annotated[float, Field(ge=0, le=10_000)]
Rate = Annotated[float, Field(ge=0, le=100)]
Distance = Annotated[float, Field(gt=0, le=1e6)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6)]
Range = tuple[Factor, Factor]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class FlatFee(Settings):
    """The same fraction of every fill's notional."""

    kind: Literal["flat"] = "flat"
    bps: Bps = 10.0


class FeeTier(Settings):
    """What applies from a traded volume on."""

    volume: NotNegative = Field(description="Quote currency traded in the last 30 UTC days.")
    maker_bps: Bps
    taker_bps: Bps


class MakerTakerFee(Settings):
    """An exchange's schedule: take-profits rest in the book and pay as makers, the rest takes."""

    kind: Literal["maker_taker"]
    tiers: tuple[FeeTier, ...] = Field(min_length=1)

    @field_validator("tiers")
    @classmethod
    def _rising(cls, tiers: tuple[FeeTier, ...]) -> tuple[FeeTier, ...]:
        volumes = [tier.volume for tier in tiers]
        if volumes[0] != 0 or any(a >= b for a, b in pairwise(volumes)):
            raise ValueError(f"volumes {volumes} must begin at 0 and rise")
        return tiers


class PerShareFee(Settings):
    """A stock broker's: so much a share, at least a minimum an order leg, at most a fraction."""

    kind: Literal["per_share"]
    per_share: NotNegative = Field(description="Quote currency a share or coin.")
    minimum: NotNegative = Field(default=0.0, description="Quote currency a fill.")
    maximum_fraction: Fraction | None = Field(
        default=None, description="Of a fill's notional; wins over the minimum."
    )


FeeSettings = Annotated[FlatFee | MakerTakerFee | PerShareFee, Field(discriminator="kind")]


class FixedSlippage(Settings):
    """The same fraction of the price whatever is traded."""

    kind: Literal["fixed"] = "fixed"
    bps: Annotated[float, Field(ge=0, lt=10_000)] = 2.0


class ImpactSlippage(Settings):
    """Half a spread, and an impact that grows with the square root of the share of the volume."""

    kind: Literal["impact"]
    bps: NotNegative = Field(default=1.0, description="Whatever is traded: half the spread.")
    impact_bps: NotNegative = Field(description="For as much as the bar's whole volume.")

    @model_validator(mode="after")
    def _leaves_a_price(self) -> "ImpactSlippage":
        if self.bps + self.impact_bps >= 10_000:
            raise ValueError(
                f"bps + impact_bps is {self.bps + self.impact_bps:g}; a sale would fill at or "
                "below zero, so it must be less than 10000"
            )
        return self


SlippageSettings = Annotated[FixedSlippage | ImpactSlippage, Field(discriminator="kind")]


class CostSettings(Settings):
    """What trading costs. Rates are annual fractions on elapsed time over 365 days."""

    fee: FeeSettings = FlatFee()
    slippage: SlippageSettings = FixedSlippage()
    borrow_rate: Rate = Field(default=0.0, description="Annual, on short notional.")
    interest_rate: Rate = Field(default=0.0, description="Annual, on negative cash.")
    cash_rate: Rate = Field(
        default=0.0, description="Annual, earned on cash that no short sale brought in."
    )
    funding_rate: float = Field(
        default=0.0, gt=-1, lt=1, description="Of a perpetual's position, longs pay, each time."
    )
    funding_hours: Annotated[int, Field(gt=0, le=10**6)] = Field(
        default=8, description="Hours between fundings, counted from 1970-01-01 00:00 UTC."
    )
    lot_size: EachInstrument = Field(
        default=0.0, description="Quantity step, one or one an instrument; 0 is continuous."
    )
    tick_size: EachInstrument = Field(
        default=0.0, description="Price step of brackets, one or one an instrument; 0 is none."
    )
    min_notional: EachInstrument = Field(
        default=0.0, description="Smallest order in quote currency, one or one an instrument."
    )
    participation: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="Most of a bar's volume that orders take; 0 is no cap."
    )

    def check_lists(self, instruments: int) -> None:
        """Refuse a list of another length than there are instruments.

        Raises:
            ValueError: naming the key.
        """
        for name in ("lot_size", "tick_size", "min_notional"):
            values = getattr(self, name)
            if isinstance(values, tuple) and len(values) != instruments:
                raise ValueError(
                    f"costs.{name} lists {len(values)} numbers for {instruments} instruments; give "
                    "one number, or one for each in the order of the series"
                )


class BracketActions(Settings):
    """One instrument: direction, size, stop-loss and take-profit from these lists."""

    kind: Literal["brackets"]
    sizes: tuple[Positive, ...] = Field(
        default=(1.0,), min_length=1, description="Position as a fraction of equity."
    )
    stops: tuple[Fraction | None, ...] = Field(
        default=(None,), min_length=1, description="Distance from entry; null is no stop."
    )
    takes: tuple[Distance | None, ...] = Field(
        default=(None,), min_length=1, description="Distance from entry; null is no target."
    )
    short: bool = True


class WeightActions(Settings):
    """Any number of instruments: one target weight each, up to `max_position` of equity."""

    kind: Literal["weights"]
    stop: Fraction | None = Field(
        default=None, description="Stop-loss of every position, distance from its entry."
    )
    take: Distance | None = Field(
        default=None, description="Take-profit of every position, distance from its entry."
    )
    short: bool = False


ActionSettings = Annotated[BracketActions | WeightActions, Field(discriminator="kind")]


class PlainTerm(Settings):
    """A reward term without parameters."""

    term: Literal["log_return", "cost", "drawdown", "exposure", "turnover", "inventory"]
    weight: Weight = 1.0


class TurbulenceGate(Settings):
    """Exposure counts against the account while returns are more unusual than in training."""

    term: Literal["turbulence_gate"]
    weight: Weight = 1.0
    quantile: Fraction = Field(
        default=0.95, description="Of the training rows' turbulence; above it the gate is shut."
    )


class DifferentialSharpe(Settings):
    """What a step adds to a moving Sharpe ratio."""

    term: Literal["differential_sharpe"]
    weight: Weight = 1.0
    decay: Fraction = Field(default=0.01, description="Weight of the newest return, eta.")


class CustomTerm(Settings):
    """A function of yours, found by name."""

    term: Literal["custom"]
    weight: Weight = 1.0
    function: str = Field(description="`module:function`, importable.")
    implementation: PositiveInt = Field(
        default=1, description="Raise it when the function changes: policies are then stale."
    )

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        module, _, name = function.partition(":")
        if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ValueError("write module:function, such as my_terms:holding")
        return function


RewardTerm = Annotated[
    PlainTerm | TurbulenceGate | DifferentialSharpe | CustomTerm, Field(discriminator="term")
]


class UniformStarts(Settings):
    """Every row that can begin an episode is as likely as any other."""

    kind: Literal["uniform"] = "uniform"


class SequentialStarts(Settings):
    """Episodes follow each other through the data; environments begin at equal distances."""

    kind: Literal["sequential"]
    start_offset_bars: Annotated[int, Field(ge=0, le=10**9)] = Field(
        default=0, description="Each start is moved later by 0 to this many bars, at random."
    )


class StratifiedStarts(Settings):
    """Every label is as likely as any other, then every row with that label."""

    kind: Literal["stratified"]
    label: str = Field(description="A feature of whole numbers, of the first series.")


StartSettings = Annotated[
    UniformStarts | SequentialStarts | StratifiedStarts, Field(discriminator="kind")
]


class Randomisation(Settings):
    """Factors drawn log-uniformly for each training episode; evaluation and backtests use 1."""

    fee: Range = (1.0, 1.0)
    slippage: Range = (1.0, 1.0)
    price: Range = Field(
        default=(1.0, 1.0), description="Prices times this, volumes divided by it."
    )

    @field_validator("fee", "slippage", "price")
    @classmethod
    def _in_order(cls, bounds: Range) -> Range:
        if bounds[0] > bounds[1]:
            raise ValueError(f"{list(bounds)} must be [lowest, highest]")
        return bounds


class EnvironmentSettings(Settings):
    """What one simulated account sees and pays."""

    window: Annotated[int, Field(gt=0, le=10**6)] = Field(
        default=32, description="Bars of features in an observation."
    )
    episode_bars: Annotated[int, Field(gt=0, le=10**9)] = Field(
        default=250, description="Decisions of a training episode before it truncates."
    )
    starts: StartSettings = Field(
        default=UniformStarts(), description="Where training episodes begin."
    )
    random_start_position: bool = Field(
        default=True, description="Training episodes may start holding a position."
    )
    randomisation: Randomisation = Randomisation()
    initial_equity: Positive = Field(default=100_000.0, description="Quote currency.")
    costs: CostSettings = CostSettings()
    max_leverage: Positive = Field(default=1.0, description="Cap of gross exposure / equity.")
    maintenance_margin: float = Field(
        default=0.05, ge=0, lt=1, description="Equity / gross below this liquidates."
    )
    max_position: Positive | None = Field(
        default=None,
        description="Largest target weight of an instrument, long or short; by default 1, or the "
        "largest of actions.sizes.",
    )
    max_turnover: Positive | None = Field(
        default=None, description="Most that one bar's orders may change, as a fraction of equity."
    )
    no_trade_band: float = Field(
        default=0.0, ge=0, lt=1, description="Weight changes below this do not trade."
    )
    actions: ActionSettings
    reward: tuple[RewardTerm, ...] = Field(
        default=(PlainTerm(term="log_return"),), min_length=1, description="Terms are summed."
    )

    @property
    def short(self) -> bool:
        """Whether a position may be negative."""
        return self.actions.short

    @property
    def largest_position(self) -> float:
        """Largest target weight of an instrument, long or short, as a fraction of equity."""
        sizes = self.actions.sizes if isinstance(self.actions, BracketActions) else (1.0,)
        return self.max_position or max(sizes)

    @field_validator("reward")
    @classmethod
    def _each_once(cls, terms: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [getattr(term, "function", term.term) for term in terms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice} are listed twice; add their weights")
        return terms

    @model_validator(mode="after")
    def _leverage_suffices(self) -> "EnvironmentSettings":
        largest = self.largest_position
        if isinstance(self.actions, BracketActions) and max(self.actions.sizes) > largest:
            raise ValueError(
                f"actions.sizes go up to {max(self.actions.sizes):g}, beyond max_position "
                f"{largest:g}; raise max_position or drop the size"
            )
        if largest > self.max_leverage:
            raise ValueError(
                f"a position of {largest:g} times equity needs max_leverage {largest:g} or more, "
                f"but it is {self.max_leverage:g}; raise it, or lower max_position and sizes"
            )
        if self.max_leverage * self.maintenance_margin >= 1:
            raise ValueError(
                f"max_leverage {self.max_leverage:g} with maintenance_margin "
                f"{self.maintenance_margin:g} liquidates a full position as it is opened; their "
                "product must be below 1"
            )
        highest = self.randomisation.slippage[1]
        slippage = self.costs.slippage
        most = slippage.bps + getattr(slippage, "impact_bps", 0.0)
        if most * highest >= 10_000:
            raise ValueError(
                f"slippage of up to {most:g} bps times randomisation {highest:g} leaves a sale no "
                "price; keep it below 10000 bps"
            )
        return self
