"""One experiment: `configs/experiments/<name>.yaml`, from data span to baselines.

A trial is `<variant>.f<fold>.s<seed>`; trials are listed here and looked up, never parsed.
"""

from datetime import date
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt, field_validator, model_validator

from trade_pipeline.settings.base import Settings, parse_settings
from trade_pipeline.settings.environment import EnvironmentSettings

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
RESERVED_NAMES = frozenset(
    {
        "adhoc_backtest",
        "features",
        "leaderboard",
        "manifest",
        "ohlcv",
        "staging",
        "storage_use",
        "verdicts",
    }
)
MOST_TRIALS = 99  # Dagster computes staleness over at most 99 upstream partitions, silently.


class FractionHoldout(Settings):
    """One fold: the rows in time order, cut by fractions that sum to 1."""

    kind: Literal["fraction"]
    train: float = Field(gt=0, lt=1)
    validation: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)
    embargo_bars: int | None = Field(default=None, ge=0, description="Default: feature lookback.")

    @model_validator(mode="after")
    def _sums_to_one(self) -> "FractionHoldout":
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test is {total:g}; it must be 1")
        return self


class CalendarHoldout(Settings):
    """One fold: train, then validation, then test, each from a date (00:00 UTC)."""

    kind: Literal["calendar"]
    validation_from: date
    test_from: date
    embargo_bars: int | None = Field(default=None, ge=0, description="Default: feature lookback.")

    @model_validator(mode="after")
    def _in_order(self) -> "CalendarHoldout":
        if not self.validation_from < self.test_from:
            raise ValueError("validation_from must come before test_from")
        return self


class WalkForward(Settings):
    """Folds that move forward by `test_days`; day counts are calendar days."""

    kind: Literal["walk_forward"]
    folds: int = Field(ge=1, le=99)
    mode: Literal["expanding", "rolling"] = "expanding"
    train_days: PositiveInt = Field(description="Length of the first fold's training part.")
    validation_days: PositiveInt
    test_days: PositiveInt
    embargo_bars: int | None = Field(default=None, ge=0, description="Default: feature lookback.")


SplitSettings = Annotated[
    FractionHoldout | CalendarHoldout | WalkForward, Field(discriminator="kind")
]


class NetworkSettings(Settings):
    """Policy network: a multilayer perceptron over the window and the account."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[PositiveInt, ...] = Field(default=(64, 64), min_length=1)
    activation: Literal["tanh", "relu"] = "tanh"
    shared: bool = Field(default=True, description="One trunk for policy and value.")


class PPOSettings(Settings):
    """Stable-Baselines3 PPO. Frames are environment steps summed over environments."""

    kind: Literal["ppo"]
    total_frames: PositiveInt = 100_000
    environments: PositiveInt = 128
    rollout_steps: PositiveInt = 16
    batch_size: PositiveInt = 512
    epochs: PositiveInt = 4
    learning_rate: float = Field(default=1e-3, gt=0)
    gamma: float = Field(default=0.99, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip_range: float = Field(default=0.2, gt=0)
    entropy_coefficient: float = Field(default=0.01, ge=0)
    value_coefficient: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)
    reward_scale: float = Field(
        default=100.0, gt=0, description="Rewards are multiplied by this for learning only."
    )
    network: NetworkSettings = NetworkSettings()
    threads: PositiveInt = Field(default=1, description="torch threads; part of the version.")

    @model_validator(mode="after")
    def _batches_fill_a_rollout(self) -> "PPOSettings":
        rollout = self.environments * self.rollout_steps
        if rollout % self.batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide environments x rollout_steps "
                f"= {rollout}"
            )
        return self


class FlatBaseline(Settings):
    """Never trades."""

    kind: Literal["flat"]


class BuyAndHoldBaseline(Settings):
    """Buys equal weights once and holds."""

    kind: Literal["buy_and_hold"]


class RandomBaseline(Settings):
    """Draws a uniform action each bar."""

    kind: Literal["random"]
    seed: int = Field(default=0, ge=0)


class SmaCrossBaseline(Settings):
    """Long while the fast average is above the slow one, otherwise flat."""

    kind: Literal["sma_cross"]
    fast: PositiveInt = 20
    slow: PositiveInt = 50

    @model_validator(mode="after")
    def _fast_is_faster(self) -> "SmaCrossBaseline":
        if self.fast >= self.slow:
            raise ValueError(f"fast {self.fast} must be below slow {self.slow}")
        return self


class EqualWeightBaseline(Settings):
    """Rebalances to equal weights each bar."""

    kind: Literal["equal_weight"]


BaselineSettings = Annotated[
    FlatBaseline | BuyAndHoldBaseline | RandomBaseline | SmaCrossBaseline | EqualWeightBaseline,
    Field(discriminator="kind"),
]


class Trial(NamedTuple):
    """One training: a variant on a fold with a seed; `key` is its partition."""

    key: str
    variant: str
    fold: int
    seed: int


def _only_base() -> dict[str, dict[str, Any]]:
    return {"base": {}}


class ExperimentSettings(Settings):
    """`configs/experiments/<name>.yaml`."""

    series: tuple[str, ...] = Field(min_length=1, description="Series keys, all one timeframe.")
    features: str = Field(description="Name of a feature set.")
    start: date = Field(alias="from", description="First day used.")
    end: date = Field(alias="to", description="First day not used.")
    splits: SplitSettings
    final_from: date | None = Field(
        default=None, description="Start of the period that no fold touches, up to `to`."
    )
    environment: EnvironmentSettings
    algorithm: PPOSettings
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=_only_base,
        min_length=1,
        description="Name to overrides of environment and algorithm.",
    )
    baselines: tuple[BaselineSettings, ...] = Field(
        default=(FlatBaseline(kind="flat"), BuyAndHoldBaseline(kind="buy_and_hold"))
    )
    compute: str = Field(default="local", description="Name of a file of configs/compute.")
    retrain: Literal["manual", "monthly", "on_new_slice"] = "manual"
    auto_remote: bool = Field(
        default=False, description="Whether a sensor may start remote compute."
    )

    @field_validator("series", "seeds")
    @classmethod
    def _unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError("entries must be unique")
        return values

    @field_validator("variants")
    @classmethod
    def _variant_names(cls, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, overrides in variants.items():
            if not name.replace("_", "").isalnum():
                raise ValueError(f"variant {name!r}: use letters, digits and underscores")
            unknown = set(overrides) - {"environment", "algorithm"}
            if unknown:
                raise ValueError(
                    f"variant {name!r} overrides {sorted(unknown)}; only environment and "
                    "algorithm can vary"
                )
        return variants

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSettings":
        if not self.start < self.end:
            raise ValueError(f"from {self.start} must come before to {self.end}")
        if self.final_from is not None and not self.start < self.final_from < self.end:
            raise ValueError(f"final_from {self.final_from} must lie between from and to")
        if self.environment.actions.kind == "brackets" and len(self.series) != 1:
            raise ValueError(
                f"actions of kind brackets trade one instrument, but {len(self.series)} series "
                "are listed; use kind weights"
            )
        for name in self.variants:
            self.variant(name)[0].costs.check_lists(len(self.series))
        if len(self.trials()) > MOST_TRIALS:
            raise ValueError(
                f"variants x folds x seeds is {len(self.trials())} trials; at most {MOST_TRIALS}"
            )
        return self

    @property
    def folds(self) -> int:
        """Number of folds of the splits."""
        return self.splits.folds if isinstance(self.splits, WalkForward) else 1

    def trials(self) -> dict[str, Trial]:
        """All trials by partition key, variants outermost."""
        listed = (
            Trial(f"{variant}.f{fold}.s{seed}", variant, fold, seed)
            for variant in self.variants
            for fold in range(self.folds)
            for seed in self.seeds
        )
        return {trial.key: trial for trial in listed}

    def variant(self, name: str) -> tuple[EnvironmentSettings, PPOSettings]:
        """Environment and algorithm of one variant, overrides applied and validated."""
        overrides = self.variants[name]
        environment = _merge(
            self.environment.model_dump(mode="json"), overrides.get("environment", {})
        )
        algorithm = _merge(self.algorithm.model_dump(mode="json"), overrides.get("algorithm", {}))
        return (
            parse_settings(environment, EnvironmentSettings, f"variants.{name}.environment"),
            parse_settings(algorithm, PPOSettings, f"variants.{name}.algorithm"),
        )


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides laid over a base, mapping by mapping; lists and other kinds are replaced whole."""
    if overrides.get("kind", base.get("kind")) != base.get("kind"):
        return dict(overrides)
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        if isinstance(value, dict) and isinstance(inner, dict):
            merged[key] = _merge(inner, value)
        else:
            merged[key] = value
    return merged
