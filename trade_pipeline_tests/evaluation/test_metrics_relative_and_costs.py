"""A curve beside another one, costs as a share of what was earned, and capacity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.evaluation.costs import capacity, cost_shares
from trade_pipeline.evaluation.growth import MS_PER_DAY
from trade_pipeline.evaluation.relative import NAMES, relative

NOON = MS_PER_DAY // 2


def curve(moves):
    return 100 * np.cumprod(np.append(1.0, 1 + np.asarray(moves, float)))


def days(count):
    return NOON + MS_PER_DAY * np.arange(count + 1, dtype=np.int64)


def beside(moves, others, risk_free=0.0):
    return relative(
        curve(moves), days(len(moves)), curve(others), days(len(others)), 365.0, risk_free
    )


NOISE = np.random.default_rng(5).normal(0.001, 0.02, 100)


def test_a_curve_beside_itself_and_beside_twice_the_moves():
    same = beside(NOISE, NOISE)
    assert same["beta"].value == pytest.approx(1.0)
    assert same["alpha"].value == pytest.approx(0.0, abs=1e-12)
    assert same["up_capture"].value == same["down_capture"].value == 1.0
    assert same["tracking_error"].value == 0.0
    assert same["information_ratio"].reason == "the difference to the benchmark does not vary"
    levered = beside(2 * NOISE + 0.001, NOISE)
    assert levered["beta"].value == pytest.approx(2.0)
    assert levered["correlation"].value == pytest.approx(1.0)
    assert levered["alpha"].value == pytest.approx(1.001**365 - 1)
    assert levered["tracking_error"].value == pytest.approx(NOISE.std(ddof=1) * np.sqrt(365))


def test_bars_inside_the_day_do_not_matter_and_curves_may_have_other_bars():
    fine = np.repeat(curve(NOISE), 2)[1:]
    fine[1:-1:2] *= 1.5  # the first half of a day swings, and its end is as before
    halves = np.sort(np.concatenate([days(100), days(100)[1:] - NOON // 2]))
    coarse = beside(NOISE, NOISE[::-1])
    found = relative(fine, halves, curve(NOISE[::-1]), days(100), 365.0)
    assert {k: v.value for k, v in found.items()} == pytest.approx(
        {k: v.value for k, v in coarse.items()}
    )


def test_curves_of_other_days_are_refused_by_the_first_day_that_differs():
    with pytest.raises(ValueError, match=r"3 days and the benchmark 2; 1970-01-04 is in only one"):
        beside([0.1, 0.2, 0.3], [0.1, 0.2])


@pytest.mark.parametrize(
    ("ours", "theirs", "reasons"),
    [
        ([0.1], [0.2], dict.fromkeys(NAMES, "1 returns; at least two are needed")),
        ([], [], dict.fromkeys(NAMES, "0 returns; at least two are needed")),
        (
            [0.1, -0.1, 0.2],
            [0.0, 0.0, 0.0],
            {
                **dict.fromkeys(
                    ("alpha", "beta", "correlation"), "the benchmark's returns do not vary"
                ),
                "up_capture": "the benchmark never rose",
                "down_capture": "the benchmark never fell",
            },
        ),
        ([0.0, 0.0], [0.1, -0.1], {"correlation": "returns do not vary"}),
        ([0.1, 0.2], [0.1, 0.3], {"down_capture": "the benchmark never fell"}),
        ([0.1, 0.2], [-0.1, -0.3], {"up_capture": "the benchmark never rose"}),
        (
            [30.0, 20.0, 0.1],
            [0.1, 0.2, -0.1],
            {
                "up_capture": "the curve is too short to annualise: the result exceeds any number",
                "alpha": "the curve is too short to annualise: the result exceeds any number",
            },
        ),
        (
            [-0.9, 0.9, -0.9],
            [-0.1, -0.1, 0.3],
            {},
        ),
        (
            [0.0, -0.9, 5.0, -0.9],
            [0.1, 0.4, -0.6, 0.5],
            {},
        ),
    ],
)
def test_what_has_no_value_beside_a_benchmark_says_why(ours, theirs, reasons):
    found = beside(ours, theirs)
    assert tuple(found) == NAMES
    assert {name: one.reason for name, one in found.items() if one.reason} == reasons
    assert all((one.value is None) == (one.reason is not None) for one in found.values())


def test_alpha_of_a_rest_that_loses_more_than_all_has_no_value():
    # Slope 3, and the mean of ours is far below the line: -1.07 a day.
    found = beside([-0.9, -0.3, -0.9, -0.3], [0.16, 0.36, 0.16, 0.36])
    assert found["beta"].value == pytest.approx(3.0)
    assert "loss of all" in found["alpha"].reason


def test_moves_whose_squares_exceed_any_number_are_said_to():
    found = beside([1e200, 0.1, 0.2], [0.1, -0.2, 0.3])
    for name in NAMES[:-1]:
        assert found[name].value is None and "exceeds any number" in found[name].reason
    assert found["down_capture"].value is not None


@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.01, 3.0]), st.floats(-1.0, 1.0)),
        max_size=20,
    )
)
def test_beside_a_benchmark_each_figure_is_finite_or_explained_even_after_ruin(moves):
    ours, theirs = [a for a, _ in moves], [b for _, b in moves]
    for one in beside(ours, theirs, risk_free=0.02).values():
        assert (one.value is None) != (one.reason is None)
        assert one.value is None or np.isfinite(one.value)


def test_after_ruin_neither_curve_counts():
    cut = beside([0.1, -0.2, -1.0], [0.1, 0.2, -0.1])
    assert beside([0.1, -0.2, -1.0, 0.0, 0.0], [0.1, 0.2, -0.1, 0.5, 0.6]) == cut
    assert beside([0.1, -0.2, 0.3, 0.4], [0.1, 0.2, -1.0, 0.0]) == beside(
        [0.1, -0.2, 0.3], [0.1, 0.2, -1.0]
    )


def test_costs_are_shares_of_what_was_earned_before_them():
    found = cost_shares(net_result=60.0, fees=25.0, slippage=20.0, financing=-5.0)
    assert {name: one.value for name, one in found.items()} == {
        "gross_result": 100.0,
        "fees_share": 0.25,
        "slippage_share": 0.2,
        "financing_share": -0.05,
        "costs_share": 0.4,
    }


@pytest.mark.parametrize("net", [-40.0, -50.0])
def test_costs_have_no_share_of_a_gross_loss_or_of_nothing(net):
    found = cost_shares(net, 30.0, 10.0, 0.0)
    assert found["gross_result"].value == net + 40
    for name in ("fees_share", "slippage_share", "financing_share", "costs_share"):
        assert found[name].value is None and "not above zero" in found[name].reason


def capacity_of(bar, quantity, volume, share=0.01):
    return capacity(
        np.array(bar, np.int64), np.array(quantity, float), np.array(volume, float), 1000.0, share
    )


def test_capacity_is_bound_by_the_bar_of_which_most_was_traded():
    found = capacity_of([3, 7, 7, 9], [1.0, -4.0, -1.0, 0.0], [1000.0, 2000.0, 2000.0, 0.0])
    # Bar 7 trades 5 of 2000 in two fills: 0.25 %; four times the equity would take 1 %.
    assert {name: one.value for name, one in found.items()} == {
        "share": 0.01,
        "equity": 4000.0,
        "largest_share": 0.0025,
        "bar": 7,
    }


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.floats(-10, 10).filter(lambda q: abs(q) > 1e-3)),
        min_size=1,
        max_size=30,
    ),
    st.floats(0.001, 0.5),
)
def test_at_capacity_no_bar_exceeds_the_share_and_one_takes_all_of_it(fills, share):
    bar, quantity = (np.array(column) for column in zip(*fills, strict=True))
    volume = np.array([10.0, 200.0, 30.0, 4000.0, 50.0, 6.0])[bar]
    found = capacity_of(bar, quantity, volume, share)
    scale = found["equity"].value / 1000
    taken = [np.abs(quantity[bar == one]).sum() * scale / volume[bar == one][0] for one in set(bar)]
    assert max(taken) == pytest.approx(share)


@pytest.mark.parametrize(
    ("fills", "reason"),
    [
        (([], [], []), "nothing was traded"),
        (([1], [0.0], [5.0]), "nothing was traded"),
        (([1, 2], [1.0, 1.0], [0.0, 5.0]), "1 of 2 bars that were traded in have no volume"),
        (([1], [1.0], [np.nan]), "1 of 1 bars"),
    ],
)
def test_capacity_that_cannot_be_known_says_why(fills, reason):
    found = capacity_of(*fills)
    for name in ("equity", "largest_share", "bar"):
        assert (found[name].value is None and found[name].reason == reason) or reason in str(found)
    assert found["share"].value == 0.01
    with pytest.raises(ValueError, match="share is 0"):
        capacity_of(*fills, share=0.0)
