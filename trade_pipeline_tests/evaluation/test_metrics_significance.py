"""Intervals, the deflated Sharpe ratio by its authors' own example, and the spread over seeds."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from trade_pipeline.evaluation.ratios import sharpe
from trade_pipeline.evaluation.significance import (
    RESAMPLES,
    deflated_sharpe,
    expected_maximum_sharpe,
    intervals,
    probabilistic_sharpe,
    probability_above,
    seed_spread,
    sharpe_interval,
)


def noise(count=300, mean=0.001, seed=7):
    return np.random.default_rng(seed).normal(mean, 0.01, count)


def two_with_variance(variance):
    """Two Sharpe ratios with that variance (ddof 1)."""
    return [0.0, math.sqrt(2 * variance)]


def test_the_deflated_sharpe_ratio_is_that_of_the_example_in_the_paper():
    # Bailey and Lopez de Prado 2014: annual Sharpe 2.5 over 1250 days of 250 a year, skew -3,
    # kurtosis 10; 100 trials whose annual ratios have variance 1/2: 0.1132 a day, DSR 0.9004.
    best = expected_maximum_sharpe(100, two_with_variance(0.5)).value / math.sqrt(250)
    assert best == pytest.approx(0.1132, abs=5e-5)
    ratio = 2.5 / math.sqrt(250)
    assert probability_above(ratio, best, 1250, -3, 10).value == pytest.approx(0.9004, abs=5e-5)
    # "Should the strategy have been selected after only 46 trials, DSR would be 0.9505."
    best = expected_maximum_sharpe(46, two_with_variance(0.5)).value / math.sqrt(250)
    assert probability_above(ratio, best, 1250, -3, 10).value == pytest.approx(0.9505, abs=5e-5)


@pytest.mark.parametrize("trials", [2, 10, 1000])
def test_the_expected_maximum_is_what_drawing_so_many_trials_gives(trials):
    drawn = np.random.default_rng(1).normal(0, 2.0, (20_000, trials)).max(axis=1).mean()
    found = expected_maximum_sharpe(trials, two_with_variance(4.0)).value
    # The formula is an approximation from extreme value theory, poor for few trials.
    assert found == pytest.approx(drawn, rel={2: 0.08, 10: 0.03, 1000: 0.01}[trials])


def test_more_trials_deflate_more_and_one_trial_not_at_all():
    returns = noise(mean=0.002)
    known = [0.3, -0.2, 1.1, None]
    found = [deflated_sharpe(returns, 365.0, trials, known).value for trials in (1, 5, 50, 5000)]
    assert found[0] == probabilistic_sharpe(returns, 365.0).value
    assert found == sorted(found, reverse=True) and len(set(found)) == 4
    spread = float(np.std([0.3, -0.2, 1.1], ddof=1))
    expected = spread * (
        (1 - np.euler_gamma) * norm.ppf(1 - 1 / 5) + np.euler_gamma * norm.ppf(1 - 1 / (5 * np.e))
    )
    assert expected_maximum_sharpe(5, known).value == pytest.approx(expected)
    assert found[1] == pytest.approx(
        probabilistic_sharpe(returns, 365.0, benchmark=expected).value, rel=1e-12
    )


@pytest.mark.parametrize(
    ("returns", "trials", "known", "reason"),
    [
        (noise(), 5, [1.0], "1 of 5 trials have a Sharpe ratio; their variance needs two"),
        (noise(), 5, [None, None], "0 of 5 trials"),
        (noise(), 2, [1.0, 2.0, 3.0], "3 Sharpe ratios are more than the 2 trials counted"),
        (noise(), 5, [1.0, 1.0], "do not vary"),
        (noise(1), 5, [1.0, 2.0], "1 returns; at least two"),
        (np.zeros(50), 5, [1.0, 2.0], "returns do not vary"),
    ],
)
def test_a_deflated_sharpe_ratio_that_cannot_be_known_says_why(returns, trials, known, reason):
    found = deflated_sharpe(returns, 365.0, trials, known)
    assert found.value is None and reason in found.reason


def test_no_trials_at_all_is_a_mistake():
    with pytest.raises(ValueError, match="trials is 0; the strategy itself is one"):
        deflated_sharpe(noise(), 365.0, 0, [])


def test_a_probability_without_a_variance_says_so():
    assert "variance of the Sharpe" in probability_above(2.0, 0.0, 50, 3.0, 1.0).reason
    assert "1 returns" in probability_above(0.1, 0.0, 1, 0.0, 3.0).reason


def slow_intervals(returns, periods, seed):
    """The same bootstrap, one return after the other."""
    count = len(returns)
    length = round(count ** (1 / 3))
    blocks = math.ceil(count / length)
    starts = np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, blocks))
    ratios, growths, deepest = [], [], []
    for some in starts.tolist():
        drawn = [returns[(s + k) % count] for s in some for k in range(length)][:count]
        ratios.append(np.mean(drawn) / np.std(drawn, ddof=1) * math.sqrt(periods))
        level = peak = 1.0
        worst = 0.0
        for one in drawn:
            level *= 1 + one
            peak = max(peak, level)
            worst = min(worst, level / peak - 1)
        growths.append(level ** (periods / count) - 1)
        deepest.append(worst)
    return {
        name: tuple(np.percentile(values, [2.5, 97.5]))
        for name, values in (("sharpe", ratios), ("cagr", growths), ("max_drawdown", deepest))
    }


def test_intervals_equal_a_bootstrap_written_out_and_repeat_for_a_seed():
    returns = noise(130)
    found = intervals(returns, 365.0, seed=3)
    expected = slow_intervals(returns.tolist(), 365.0, seed=3)
    assert found.keys() == expected.keys()
    for name, ends in expected.items():
        assert tuple(one.value for one in found[name]) == pytest.approx(ends, rel=1e-9)
    assert intervals(returns, 365.0, seed=3) == found != intervals(returns, 365.0, seed=4)
    assert sharpe_interval(returns, 365.0, seed=3) == found["sharpe"]


def test_the_sharpe_interval_holds_the_true_ratio_about_19_times_in_20():
    true = 0.05 * math.sqrt(365)
    held = 0
    for seed in range(60):
        returns = np.random.default_rng(seed).normal(0.0005, 0.01, 250)
        low, high = sharpe_interval(returns, 365.0)
        held += low.value <= true <= high.value
    assert 51 <= held <= 60


def test_a_risk_free_rate_shifts_the_interval_with_the_ratio():
    returns = noise()
    plain, shifted = sharpe_interval(returns, 365.0), sharpe_interval(returns, 365.0, 0.10)
    moved = sharpe(returns, 365.0).value - sharpe(returns, 365.0, 0.10).value
    assert plain[0].value - shifted[0].value == pytest.approx(moved, rel=0.2)


@pytest.mark.parametrize(
    ("returns", "name", "reason"),
    [
        (noise(9), "sharpe", "9 returns; at least 10 are needed to resample"),
        (noise(9), "cagr", "9 returns; at least 10"),
        (noise(9), "max_drawdown", "9 returns; at least 10"),
        (np.zeros(50), "sharpe", "most resampled returns do not vary"),
        (np.full(50, 1e30), "cagr", "exceeds any number"),
    ],
)
def test_an_interval_that_cannot_be_known_says_why(returns, name, reason):
    low, high = intervals(returns, 365.0)[name]
    assert low.value is None and high.value is None
    assert reason in low.reason and low == high


def test_an_account_that_never_moves_has_intervals_of_growth_and_drawdown_at_zero():
    found = intervals(np.zeros(50), 365.0)
    assert [one.value for one in found["cagr"]] == [0.0, 0.0]
    assert [one.value for one in found["max_drawdown"]] == [0.0, 0.0]


def test_ruin_among_the_days_is_in_the_intervals():
    returns = np.append(noise(29), -1.0)
    found = intervals(returns, 365.0)
    assert found["max_drawdown"][0].value == -1.0
    assert found["cagr"][0].value == -1.0


def test_the_spread_over_seeds_counts_seeds_without_the_figure_apart():
    seeds = {1: {"a": 3.0, "b": None}, 2: {"a": 1.0, "b": None}, 3: {"a": None, "b": 2.0}}
    seeds[4] = {"a": 2.0, "b": None}
    seeds[5] = {"a": 5.0, "b": None}
    found = seed_spread(seeds, ["a", "b"])
    assert found["a"]["values"] == pytest.approx(
        {
            "minimum": 1.0,
            "median": 2.0,  # of 1, 2, 3, 5 the lower one in the middle
            "maximum": 5.0,
            "mean": 2.75,
            "deviation": np.std([1, 2, 3, 5], ddof=1),
            "seeds": 5,
            "undefined_seeds": 1,
        }
    )
    assert found["a"]["undefined"] == {}
    assert found["b"]["values"]["median"] == 2.0
    assert found["b"]["undefined"] == {"deviation": "one seed has this figure; two are needed"}
    none = seed_spread({1: {"a": None}}, ["a"])["a"]
    assert set(none["undefined"]) == {"minimum", "median", "maximum", "mean", "deviation"}
    assert set(none["undefined"].values()) == {"no seed has this figure"}
