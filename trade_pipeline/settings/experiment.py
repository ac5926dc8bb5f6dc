"""One experiment: `configs/experiments/<name>.yaml`, from data span to baselines.

A trial is `<variant>.f<fold>.s<seed>`; trials are listed here and looked up, never parsed.
Variants are those of the file, each with every combination of its `sweep`.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from trade_pipeline.settings.algorithm import AlgorithmSettings, check_algorithm
from trade_pipeline.settings.base import Settings, SettingsError, closest, parse_settings
from trade_pipeline.settings.baselines import (
    BaselineSettings,
    BuyAndHoldBaseline,
    FlatBaseline,
    check_names,
)
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.overrides import (
    PARTS,
    at_path,
    check_paths,
    merge,
    short_hash,
    spelled,
    swept,
)
from trade_pipeline.settings.promotion import PromotionSettings
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.settings.search import SearchSettings

NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
RESERVED_NAMES = frozenset(
    {
        "adhoc_backtest",
        "checkpoints",
        "features",
        "imported",
        "indicators",
        "leaderboard",
        "ledger",
        "manifest",
        "ohlcv",
        "pod_costs",
        "pods",
        "quarantine",
        "staging",
        "storage_use",
        "verdicts",
        "volume_storage",
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


class _Varied(Settings):
    """What a variant can change."""

    environment: EnvironmentSettings
    algorithm: AlgorithmSettings


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
    algorithm: AlgorithmSettings
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32, strict=True)], ...] = Field(min_length=1)
    sweep: dict[str, tuple[Any, ...]] = Field(
        default_factory=dict,
        exclude=True,  # variants hold what it gives
        description="Dotted path in environment or algorithm to the values to try.",
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=_only_base,
        min_length=1,
        validate_default=True,
        description="Name to overrides of environment and algorithm; sweep multiplies them.",
    )
    baselines: tuple[BaselineSettings, ...] = Field(
        default=(FlatBaseline(kind="flat"), BuyAndHoldBaseline(kind="buy_and_hold")),
        description="Rules and strategies of yours that reports show beside the policies.",
    )
    promotion: PromotionSettings = PromotionSettings()
    regimes: RegimeSettings | None = Field(
        default=None, description="States of the market, fitted on each fold's training part."
    )
    search: SearchSettings | None = Field(
        default=None, description="Settings to look for; needs the extra `search`."
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

    @field_validator("baselines")
    @classmethod
    def _own_names(cls, baselines: tuple[BaselineSettings, ...]) -> tuple[BaselineSettings, ...]:
        check_names(baselines)
        return baselines

    @field_validator("sweep")
    @classmethod
    def _values_to_try(cls, sweep: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        check_paths(list(sweep))
        for path, values in sweep.items():
            if not values:
                raise ValueError(f"{path!r} has no value to try; list one, or drop the key")
            names = [spelled(value) for value in values]
            for value, name in zip(values, names, strict=True):
                if names.count(name) > 1:
                    raise ValueError(f"{path!r} lists {value!r} twice")
        return sweep

    @field_validator("variants")
    @classmethod
    def _variant_names(
        cls, variants: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        for name, overrides in variants.items():
            if not name.replace("_", "").isalnum():
                raise ValueError(f"variant {name!r}: use letters, digits and underscores")
            unknown = set(overrides) - set(PARTS)
            if unknown:
                raise ValueError(
                    f"variant {name!r} overrides {sorted(unknown)}; only environment and "
                    "algorithm can vary"
                )
        return swept(variants, info.data.get("sweep", {}), MOST_TRIALS)

    @model_validator(mode="after")
    def _consistent(self) -> "ExperimentSettings":
        if not self.start < self.end:
            raise ValueError(f"from {self.start} must come before to {self.end}")
        if self.final_from is not None and not self.start < self.final_from < self.end:
            raise ValueError(f"final_from {self.final_from} must lie between from and to")
        if self.regimes is not None and self.regimes.series not in (None, *self.series):
            known = closest(self.regimes.series or "", list(self.series))
            raise ValueError(f"regimes.series {self.regimes.series!r} is not listed.{known}")
        self.promotion.check_baselines([one.kind for one in self.baselines])
        for name in self.variants:
            environment, algorithm = self.variant(name)
            if environment.actions.kind == "brackets" and len(self.series) != 1:
                raise ValueError(
                    f"variant {name}: actions of kind brackets trade one instrument, but "
                    f"{len(self.series)} series are listed; use kind weights"
                )
            environment.costs.check_lists(len(self.series))
            check_algorithm(algorithm, environment, f"variant {name}")
            self._check_baselines(name, environment)
        if len(self.trials()) > MOST_TRIALS:
            raise ValueError(
                f"variants x folds x seeds is {len(self.trials())} trials; at most {MOST_TRIALS}"
            )
        if self.search is not None:
            self._check_search(self.search)
        return self

    def _check_baselines(self, variant: str, environment: EnvironmentSettings) -> None:
        for one in self.baselines:
            if one.label == variant:
                raise ValueError(
                    f"variant {variant!r} has the name of a baseline, and a report shows both; "
                    "rename the variant"
                )
            if getattr(one, "short", False) and not environment.short:
                raise ValueError(
                    f"baseline {one.label} sells short, but variant {variant} may not: its "
                    "environment.actions.short is false. Set it, or drop `short` of the baseline"
                )

    def _check_search(self, search: SearchSettings) -> None:
        if search.variant not in self.variants:
            known = closest(search.variant, list(self.variants))
            raise ValueError(f"search.variant: there is no variant {search.variant!r}.{known}")
        if search.fold >= self.folds:
            raise ValueError(f"search.fold {search.fold}: there are {self.folds}, counted from 0")
        for path, dimension in search.space.items():
            for value in dimension.ends:
                self.tried(search.variant, at_path(path, value), self.seeds, f"search.space.{path}")

    @property
    def folds(self) -> int:
        """Number of folds of the splits."""
        return self.splits.folds if isinstance(self.splits, WalkForward) else 1

    @property
    def fold_keys(self) -> tuple[str, ...]:
        """Partitions of what there is one of a fold: `f0`, `f1` and so on."""
        return tuple(f"f{fold}" for fold in range(self.folds))

    def trials(self) -> dict[str, Trial]:
        """All trials by partition key, variants outermost."""
        listed = (
            Trial(f"{variant}.f{fold}.s{seed}", variant, fold, seed)
            for variant in self.variants
            for fold in range(self.folds)
            for seed in self.seeds
        )
        return {trial.key: trial for trial in listed}

    def variant(self, name: str) -> tuple[EnvironmentSettings, AlgorithmSettings]:
        """Environment and algorithm of one variant, overrides applied and validated."""
        mine = self.model_dump(mode="json", include=set(PARTS))
        origin = f"{'sweep' if self.sweep else 'variants'}.{name}"
        varied = parse_settings(merge(mine, self.variants[name]), _Varied, origin)
        return varied.environment, varied.algorithm

    def tried(
        self, variant: str, overrides: Mapping[str, Any], seeds: Sequence[int], origin: str
    ) -> "ExperimentSettings":
        """The experiment with one new variant alone, `<variant>_x<8 hex digits>`.

        Args:
            variant: which of its variants the overrides change.
            overrides: of `environment` and `algorithm`, as in `variants`.
            seeds: of the new trials.
            origin: opens each message, such as the experiment's file.

        Raises:
            SettingsError: there is no such variant, or the overrides are wrong.
        """
        if variant not in self.variants:
            known = closest(variant, list(self.variants))
            raise SettingsError(f"{origin}: there is no variant {variant!r}.{known}")
        varied = _Varied(**dict(zip(PARTS, self.variant(variant), strict=True)))
        name = f"{variant}_x{short_hash(overrides)}"
        content = {
            **self.model_dump(mode="json", by_alias=True, exclude={"search"}),
            "variants": {name: merge(varied.model_dump(mode="json"), overrides)},
            "seeds": list(seeds),
        }
        return parse_settings(content, ExperimentSettings, f"{origin}: overrides of {variant}")
