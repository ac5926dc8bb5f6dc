"""The causal filter: what it equals, and what it never does."""

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hmmlearn.hmm import GaussianHMM
from hypothesis import given
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from statsmodels.tsa.api import MarkovRegression

from trade_pipeline.features.regimes.filtering import filter_regimes, labels
from trade_pipeline.features.regimes.fit import fit_regimes
from trade_pipeline.features.regimes.model import RegimeError, RegimeModel
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline_tests.features.regimes.markets import (
    INPUTS,
    TRANSITION,
    known_model,
    one_segment,
    planted,
)

ROWS = 600
REGIMES, OBSERVATIONS = planted(ROWS, 3)
MODEL = known_model()
WHOLE = filter_regimes(MODEL, OBSERVATIONS, one_segment(ROWS))


def hmmlearn_model(model: RegimeModel) -> GaussianHMM:
    other = GaussianHMM(model.states, covariance_type="full", init_params="")
    other.startprob_, other.transmat_ = model.start, model.transition
    other.means_, other.covars_ = model.means, model.covariances
    return other


def slow_filter(model: RegimeModel, observations: np.ndarray) -> np.ndarray:
    """In logarithms throughout, from the textbook; one segment."""
    standardised = (observations - model.center) / model.scale
    with np.errstate(divide="ignore"):
        chances, start = np.log(model.transition), np.log(model.start)
    density = np.stack(
        [
            multivariate_normal(mean, covariance).logpdf(standardised).reshape(-1)
            for mean, covariance in zip(model.means, model.covariances, strict=True)
        ],
        axis=1,
    )
    rows = [start + density[0]]
    for row in density[1:]:
        rows.append(logsumexp(rows[-1][:, None] + chances, axis=0) + row)
    joint = np.array(rows)
    return np.exp(joint - logsumexp(joint, axis=1, keepdims=True))


def returns_model(deviations: np.ndarray) -> RegimeModel:
    """One input whose deviation alone tells the regimes apart; starts from long-run shares."""
    shares = np.linalg.matrix_power(TRANSITION, 4096)[0]
    states = len(deviations)
    return RegimeModel(
        ("log_return_1",),
        np.zeros(1),
        np.ones(1),
        shares / shares.sum(),
        TRANSITION,
        np.zeros((states, 1)),
        deviations.reshape(states, 1, 1) ** 2,
    )


def test_it_equals_hmmlearn_given_no_later_row() -> None:
    other = hmmlearn_model(MODEL)
    standardised = (OBSERVATIONS - MODEL.center) / MODEL.scale
    for row in (0, 1, 2, 17, 100, 301, ROWS - 1):
        known_then = other.predict_proba(standardised[: row + 1])[-1]
        np.testing.assert_allclose(WHOLE[row], known_then, rtol=0, atol=1e-9)


def test_it_is_not_what_hindsight_says() -> None:
    standardised = (OBSERVATIONS - MODEL.center) / MODEL.scale
    smoothed = hmmlearn_model(MODEL).predict_proba(standardised)
    assert np.abs(WHOLE - smoothed).max() > 0.1


def test_it_equals_statsmodels_on_real_returns(apple: pl.DataFrame) -> None:
    """Unadjusted prices: splits are returns of twenty deviations."""
    returns = np.diff(np.log(apple["close"].to_numpy()))
    deviations = np.array([0.012, 0.025, 0.06])
    model = returns_model(deviations)
    ours = filter_regimes(model, returns[:, None], one_segment(len(returns)))
    theirs = MarkovRegression(returns, k_regimes=3, trend="c", switching_variance=True)
    parameters = np.concatenate([TRANSITION[:, :-1].T.ravel(), np.zeros(3), deviations**2])
    filtered = theirs.filter(parameters).filtered_marginal_probabilities
    assert len(set(labels(ours).tolist())) == 3
    np.testing.assert_allclose(ours, filtered, rtol=0, atol=1e-6)


def test_it_equals_a_slow_filter_where_densities_underflow() -> None:
    observations = OBSERVATIONS.copy()
    observations[50] = MODEL.center + 50 * MODEL.scale  # as a density: exp(-1250)
    observations[51:53] = MODEL.center - 200 * MODEL.scale
    ours = filter_regimes(MODEL, observations, one_segment(ROWS))
    np.testing.assert_allclose(ours, slow_filter(MODEL, observations), rtol=0, atol=1e-9)
    assert labels(ours)[50] == 2


@pytest.mark.parametrize("value", [1e200, -1e308])
def test_a_row_that_no_state_explains_says_nothing(value: float) -> None:
    observations = OBSERVATIONS.copy()
    observations[50] = value
    ours = filter_regimes(MODEL, observations, one_segment(ROWS))
    np.testing.assert_allclose(ours[50], WHOLE[49] @ TRANSITION, rtol=0, atol=1e-12)
    assert np.isfinite(ours).all()


def test_a_state_that_cannot_be_reached_stays_impossible() -> None:
    never = RegimeModel(
        ("x",),
        np.zeros(1),
        np.ones(1),
        np.array([1.0, 0.0]),
        np.array([[1.0, 0.0], [0.5, 0.5]]),
        np.array([[0.0], [90.0]]),
        np.array([[[1.0]], [[1.0]]]),
    )
    ours = filter_regimes(never, np.array([[0.0], [90.0], [90.0]]), one_segment(3))
    assert ours.tolist() == [[1.0, 0.0]] * 3


@given(
    cut=st.integers(1, ROWS),
    first=st.integers(0, ROWS // 2),
    gap=st.integers(0, 50),
    inputs=st.integers(1, 2),
)
def test_later_rows_change_no_bit(cut: int, first: int, gap: int, inputs: int) -> None:
    model = RegimeModel(
        MODEL.inputs[:inputs],
        MODEL.center[:inputs],
        MODEL.scale[:inputs],
        MODEL.start,
        MODEL.transition,
        MODEL.means[:, :inputs],
        MODEL.covariances[:, :inputs, :inputs],
    )
    segments = np.array([[first, first + 100], [first + 100 + gap, ROWS]])
    whole = filter_regimes(model, OBSERVATIONS[:, :inputs], segments)
    kept = np.minimum(segments, cut)
    prefix = filter_regimes(model, OBSERVATIONS[:cut, :inputs], kept[kept[:, 0] < kept[:, 1]])
    assert prefix.tobytes() == whole[:cut].tobytes()


def test_each_segment_begins_without_memory() -> None:
    segments = np.array([[0, 200], [200, 330], [400, 600]])
    ours = filter_regimes(MODEL, OBSERVATIONS, segments)
    for first, last in segments:
        alone = filter_regimes(MODEL, OBSERVATIONS[first:last], one_segment(last - first))
        assert ours[first:last].tobytes() == alone.tobytes()
    assert np.abs(ours[200] - WHOLE[200]).max() > 1e-3
    assert np.isnan(ours[330:400]).all()


def test_rows_outside_segments_are_not_looked_at() -> None:
    observations = OBSERVATIONS.copy()
    observations[330:400] = np.nan
    ours = filter_regimes(MODEL, observations, np.array([[0, 330], [400, ROWS]]))
    assert np.isnan(ours[330:400]).all()
    assert np.isfinite(ours[:330]).all()
    assert np.isfinite(ours[400:]).all()
    assert filter_regimes(MODEL, observations, np.empty((0, 2), np.int64)).shape == (ROWS, 3)


def test_probabilities_sum_to_one_and_inputs_are_not_written_to() -> None:
    observations = OBSERVATIONS.copy()
    ours = filter_regimes(MODEL, observations, one_segment(ROWS))
    np.testing.assert_allclose(ours.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert (ours >= 0).all()
    assert observations.tobytes() == OBSERVATIONS.tobytes()


def test_a_fitted_model_finds_planted_regimes_in_later_rows() -> None:
    regimes, observations = planted(4_000, 5)
    settings = RegimeSettings(inputs=INPUTS, states=(3,))
    fitted = fit_regimes(observations, np.array([[0, 2_000]]), INPUTS, settings)
    found = labels(filter_regimes(fitted.model, observations, one_segment(4_000)))
    assert np.mean(found[2_000:] == regimes[2_000:]) > 0.93


def test_labels_are_the_likeliest_the_calmer_of_equals_and_minus_one_without_any() -> None:
    nan = np.nan
    found = labels(np.array([[0.1, 0.9], [0.5, 0.5], [nan, nan], [1.0, 0.0]]))
    assert found.dtype == np.int8
    assert found.tolist() == [1, 0, -1, 0]
    assert labels(np.empty((0, 3))).tolist() == []


@pytest.mark.parametrize(
    ("row", "column", "value"), [(0, 0, np.nan), (41, 1, np.inf), (599, 1, -np.inf)]
)
def test_what_is_not_finite_is_named_by_row_and_input(row: int, column: int, value: float) -> None:
    observations = OBSERVATIONS.copy()
    observations[row, column] = value
    with pytest.raises(RegimeError, match=rf"row {row}: {INPUTS[column]} is {value}; correct"):
        filter_regimes(MODEL, observations, np.array([[0, 40], [40, ROWS]]))


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        ([[0, 601]], r"segment 0 is rows \[0, 601\)"),
        ([[0, 10], [9, 20]], r"segment 1 is rows \[9, 20\).*after row 10"),
        ([[5, 5]], r"segment 0 is rows \[5, 5\).*must hold a row"),
        ([[-1, 5]], r"segment 0 is rows \[-1, 5\)"),
        ([0, 5], r"segments have shape \[2\]"),
    ],
)
def test_segments_that_make_no_sense_are_refused(segments: list[object], said: str) -> None:
    with pytest.raises(RegimeError, match=said):
        filter_regimes(MODEL, OBSERVATIONS, np.array(segments))


def test_observations_of_other_inputs_are_refused() -> None:
    with pytest.raises(RegimeError, match=r"shape \[600, 1\]; \[rows, 2\] is needed.*realised"):
        filter_regimes(MODEL, OBSERVATIONS[:, :1], one_segment(ROWS))
