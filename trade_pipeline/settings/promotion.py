"""When a policy replaces the promoted one: the key `promotion` of an experiment."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from trade_pipeline.settings.base import Settings
from trade_pipeline.settings.baselines import BaselineKind

Metric = Literal["sharpe", "sortino", "calmar", "psr", "total_return", "cagr"]


class PromotionSettings(Settings):
    """Which validation results a policy needs. A variant stands for its median seed."""

    metric: Metric = "sharpe"
    fold: Literal["last", "all"] = Field(
        default="last",
        description="Validation parts that count; with all, a seed counts by its mean over folds. "
        "The policy promoted is one of the last fold in either case.",
    )
    min_improvement: float = Field(
        default=0.0, ge=0, description="The metric must exceed the incumbent's by more than this."
    )
    beat: Literal["all"] | tuple[BaselineKind, ...] = Field(
        default="all", description="Kinds of the experiment's baselines to be better than."
    )
    max_drawdown: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Deepest drawdown allowed, as a fraction of equity."
    )

    def check_baselines(self, kinds: Collection[str]) -> None:
        """Refuse a rule that names baselines which the experiment does not run.

        Args:
            kinds: of the experiment's baselines.

        Raises:
            ValueError: names the kinds that are missing.
        """
        missing = [] if self.beat == "all" else [one for one in self.beat if one not in kinds]
        if missing:
            raise ValueError(
                f"promotion.beat names {', '.join(missing)}, which `baselines` does not list; "
                f"add it there. Listed: {', '.join(kinds) or 'none'}"
            )
