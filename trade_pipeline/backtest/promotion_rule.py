"""Which candidate replaces the promoted policy: a rule over figures of validation parts.

Pure: figures in, choice out. It knows no file and no bar. Start at `decide`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from trade_pipeline.settings.experiment import Trial
from trade_pipeline.settings.promotion import PromotionSettings

Figures = Mapping[str, float | None]
IS_PROMOTED = "it is the promoted policy already"


@dataclass(frozen=True)
class Candidate:
    """A trial of the last fold.

    Attributes:
        trial: variant and seed.
        policy: version of its bundle.
        score: orders the seeds of a variant, and the variants; None where undefined.
        figures: on the last fold's validation part.
        baselines: name to figures on the same part, under the variant's costs and limits.
    """

    trial: Trial
    policy: str
    score: float | None
    figures: Figures
    baselines: Mapping[str, Figures]


@dataclass(frozen=True)
class Incumbent:
    """What is promoted now.

    Attributes:
        trial: key of the trial that made it.
        policy: version of its bundle.
        figures: on the last fold's validation part; None where it cannot be run there.
    """

    trial: str
    policy: str
    figures: Figures | None


@dataclass(frozen=True)
class Choice:
    """What the rule says.

    Attributes:
        candidates: every trial of the last fold.
        chosen: the policy to promote; None: what is promoted stays.
        medians: of each variant the candidate that stands for it.
        objections: of each variant what speaks against its candidate; empty: it qualifies.
    """

    candidates: Sequence[Candidate]
    chosen: Candidate | None
    medians: dict[str, Candidate]
    objections: dict[str, list[str]]


def decide(
    rule: PromotionSettings,
    candidates: Sequence[Candidate],
    beat: Collection[str],
    incumbent: Incumbent | None,
) -> Choice:
    """The best of the variants' median seeds that is better than all it must be better than.

    Args:
        rule: of the experiment.
        candidates: every trial of the last fold; the first of equal ones is preferred.
        beat: names of the baselines that it must be better than.
        incumbent: what is promoted now, if anything is.
    """
    variants = dict.fromkeys(one.trial.variant for one in candidates)
    medians = {
        variant: median([one for one in candidates if one.trial.variant == variant])
        for variant in variants
    }
    objections = {
        variant: _objections(rule, one, beat, incumbent) for variant, one in medians.items()
    }
    qualified = [one for variant, one in medians.items() if not objections[variant]]
    chosen = max(qualified, key=_rank, default=None)
    return Choice(candidates, chosen, medians, objections)


def median(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate in the middle by score; of an even number the lower of the two.

    One without a score counts as worse than any that has one.
    """
    ranked = sorted(candidates, key=lambda one: (_rank(one), one.trial.seed))
    return ranked[(len(ranked) - 1) // 2]


def _rank(candidate: Candidate) -> tuple[bool, float]:
    return (candidate.score is not None, candidate.score or 0.0)


def _objections(
    rule: PromotionSettings,
    candidate: Candidate,
    beat: Collection[str],
    incumbent: Incumbent | None,
) -> list[str]:
    """Why a candidate is not promoted, in words."""
    if incumbent is not None and candidate.policy == incumbent.policy:
        return [IS_PROMOTED]
    metric, own = rule.metric, candidate.figures[rule.metric]
    if own is None or candidate.score is None:
        return [f"its {metric} is undefined"]
    found = []
    deepest = -(candidate.figures["max_drawdown"] or 0.0)
    if rule.max_drawdown is not None and deepest > rule.max_drawdown:
        found.append(f"its drawdown of {deepest:.1%} exceeds {rule.max_drawdown:.1%}")
    for name, figures in candidate.baselines.items():
        if name in beat and not _better(candidate.figures, figures, metric, 0.0):
            found.append(
                f"it does not beat {name} ({_against(candidate.figures, figures, metric)})"
            )
    if incumbent is not None and incumbent.figures is not None:
        margin = rule.min_improvement
        if not _better(candidate.figures, incumbent.figures, metric, margin):
            more = f" by more than {margin:g}" if margin else ""
            against = _against(candidate.figures, incumbent.figures, metric)
            found.append(f"it does not beat the promoted {incumbent.trial}{more} ({against})")
    return found


def _better(figures: Figures, other: Figures, metric: str, margin: float) -> bool:
    """Whether the metric is higher; where the other has none (flat has no Sharpe), the return."""
    ours, theirs = figures[metric], other[metric]
    if ours is not None and theirs is not None:
        return ours > theirs + margin
    return (figures["total_return"] or 0.0) > (other["total_return"] or 0.0)


def _against(figures: Figures, other: Figures, metric: str) -> str:
    shown = metric if other[metric] is not None else "total_return"
    return f"{shown} {figures[shown] or 0.0:.4g} against {other[shown] or 0.0:.4g}"
