"""The rule of promotion, over figures alone."""

from trade_pipeline.backtest.promotion_rule import Candidate, Choice, Incumbent, decide, median
from trade_pipeline.settings.experiment import Trial
from trade_pipeline.settings.promotion import PromotionSettings

SHARPE = PromotionSettings()


def figures(
    sharpe: float | None, total_return: float = 0.1, drawdown: float = -0.1
) -> dict[str, float | None]:
    return {"sharpe": sharpe, "total_return": total_return, "max_drawdown": drawdown}


def candidate(
    sharpe: float | None,
    variant: str = "base",
    seed: int = 0,
    drawdown: float = -0.1,
    total_return: float = 0.1,
    **baselines: dict[str, float | None],
) -> Candidate:
    return Candidate(
        Trial(f"{variant}.f0.s{seed}", variant, 0, seed),
        f"version of {variant} {seed} {sharpe}",
        sharpe,
        figures(sharpe, total_return, drawdown),
        baselines,
    )


def chosen(choice: Choice) -> str | None:
    return None if choice.chosen is None else choice.chosen.trial.key


def test_a_variant_stands_or_falls_with_its_median_seed() -> None:
    lucky = [candidate(value, "lucky", seed) for seed, value in enumerate((0.1, 9.0, 0.2))]
    steady = [candidate(value, "steady", seed) for seed, value in enumerate((1.1, 1.0, 1.2))]
    assert chosen(decide(SHARPE, [*lucky, *steady], [], None)) == "steady.f0.s0"


def test_of_an_even_number_of_seeds_the_lower_middle_counts() -> None:
    seeds = [candidate(value, seed=seed) for seed, value in enumerate((4.0, 1.0, 3.0, 2.0))]
    assert median(seeds).score == 2.0


def test_a_seed_without_a_score_counts_as_the_worst() -> None:
    seeds = [candidate(value, seed=seed) for seed, value in enumerate((None, -1.0, -2.0))]
    assert median(seeds).score == -2.0
    assert chosen(decide(SHARPE, [candidate(None)], [], None)) is None


def test_the_baselines_that_the_rule_names_must_be_beaten_and_no_others() -> None:
    one = candidate(1.0, hold=figures(1.5), flat=figures(0.5))
    assert chosen(decide(SHARPE, [one], ["hold", "flat"], None)) is None
    assert chosen(decide(SHARPE, [one], ["flat"], None)) == "base.f0.s0"
    tied = candidate(1.0, hold=figures(1.0))
    said = decide(SHARPE, [tied], ["hold"], None).objections["base"]
    assert said == ["it does not beat hold (sharpe 1 against 1)"]


def test_a_baseline_without_the_metric_is_beaten_by_the_return() -> None:
    flat = figures(None, 0.0, 0.0)
    assert chosen(decide(SHARPE, [candidate(1.0, flat=flat)], ["flat"], None)) == "base.f0.s0"
    losing = candidate(1.0, total_return=-0.1, flat=flat)
    said = decide(SHARPE, [losing], ["flat"], None).objections["base"]
    assert said == ["it does not beat flat (total_return -0.1 against 0)"]


def test_the_incumbent_stays_unless_it_is_beaten_by_the_margin() -> None:
    incumbent = Incumbent("old.f0.s0", "old version", figures(1.0))
    rule = PromotionSettings(min_improvement=0.5)
    assert chosen(decide(rule, [candidate(1.5)], [], incumbent)) is None
    assert chosen(decide(rule, [candidate(1.51)], [], incumbent)) == "base.f0.s0"
    incomparable = Incumbent("old.f0.s0", "old version", None)
    assert chosen(decide(rule, [candidate(0.1)], [], incomparable)) == "base.f0.s0"


def test_what_is_promoted_is_not_promoted_again() -> None:
    one = candidate(2.0)
    choice = decide(SHARPE, [one], [], Incumbent("base.f0.s0", one.policy, figures(1.0)))
    assert choice.chosen is None
    assert choice.objections["base"] == ["it is the promoted policy already"]


def test_the_next_best_is_taken_when_the_best_falls_too_deep() -> None:
    rule = PromotionSettings(max_drawdown=0.2)
    deep = candidate(3.0, "deep", drawdown=-0.21)
    choice = decide(rule, [deep, candidate(1.0, "calm", drawdown=-0.2)], [], None)
    assert chosen(choice) == "calm.f0.s0"
    assert choice.objections["deep"] == ["its drawdown of 21.0% exceeds 20.0%"]
