"""Fitting regimes: what is found, what is chosen, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from scipy.stats import norm

from trade_pipeline.features.regimes.filtering import filter_regimes, labels
from trade_pipeline.features.regimes.fit import fit_regimes, parameter_count
from trade_pipeline.features.regimes.model import RegimeError, RegimeModel
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline_tests.features.regimes.markets import (
    DEVIATIONS,
    INPUTS,
    MEANS,
    TRANSITION,
    one_segment,
    planted,
)

ROWS = 3_000
REGIMES, OBSERVATIONS = planted(ROWS, 11)
SEGMENTS = np.array([[0, 1_200], [1_200, ROWS]])


def settings(**changes: object) -> RegimeSettings:
    return RegimeSettings(**{"inputs": INPUTS, "states": 3, "restarts": 3, **changes})


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_planted_regimes_are_found(covariance: str) -> None:
    fitted = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(covariance=covariance))
    model = fitted.model
    in_units = model.center + model.scale * model.means
    deviations = model.scale * np.sqrt(np.diagonal(model.covariances, axis1=1, axis2=2))
    assert (np.abs(in_units - MEANS) < [4e-3, 0.15]).all()
    np.testing.assert_allclose(deviations, DEVIATIONS, rtol=0.15)
    np.testing.assert_allclose(model.transition, TRANSITION, rtol=0, atol=0.03)
    beside = model.covariances[:, 0, 1]
    assert (beside == 0).all() if covariance == "diagonal" else (beside != 0).all()
    assert model.inputs == INPUTS


def test_bic_chooses_the_planted_number_of_states() -> None:
    fitted = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(states=(2, 3, 4)))
    assert fitted.model.states == 3
    trials = fitted.trials
    assert trials.columns == [
        *("states", "seed", "log_likelihood", "bic", "iterations", "converged", "dropped"),
        "chosen",
    ]
    assert trials["states"].to_list() == [2] * 3 + [3] * 3 + [4] * 3
    assert trials["seed"].to_list() == [0, 1, 2] * 3
    usable = trials.filter(pl.col("dropped").is_null())
    chosen = trials.filter("chosen")
    assert chosen["bic"].to_list() == [usable["bic"].min()]


def plain_log_likelihood(
    model: RegimeModel, observations: np.ndarray, segments: np.ndarray
) -> float:
    """Of standardised rows with diagonal covariances, from the filter's textbook recursion."""
    standardised = (observations - model.center) / model.scale
    deviations = np.sqrt(np.diagonal(model.covariances, axis1=1, axis2=2))
    total = 0.0
    for first, last in segments:
        expected = model.start
        for row in standardised[first:last]:
            joint = expected * norm.pdf(row, model.means, deviations).prod(axis=1)
            total += np.log(joint.sum())
            expected = joint / joint.sum() @ model.transition
    return float(total)


def test_bic_counts_every_free_number_and_every_row() -> None:
    fitted = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings())
    chosen = fitted.trials.filter("chosen").row(0, named=True)
    expected = plain_log_likelihood(fitted.model, OBSERVATIONS, SEGMENTS)
    assert chosen["log_likelihood"] == pytest.approx(expected, rel=1e-9)
    free = 6 + 6 + 6  # transitions, means, variances
    assert chosen["bic"] == pytest.approx(free * np.log(ROWS) - 2 * expected, rel=1e-9)


@pytest.mark.parametrize(
    ("states", "inputs", "covariance", "count"),
    [
        (2, 1, "diagonal", 2 + 2 + 2),  # statsmodels counts 6 for this model, too
        (2, 1, "full", 2 + 2 + 2),
        (3, 2, "diagonal", 6 + 6 + 6),
        (3, 2, "full", 6 + 6 + 9),
        (4, 3, "full", 12 + 12 + 24),
    ],
)
def test_free_numbers_of_a_model(states: int, inputs: int, covariance: str, count: int) -> None:
    assert parameter_count(states, inputs, covariance) == count


def test_states_are_ordered_by_the_variance_of_the_first_input() -> None:
    for seed in (0, 17):
        model = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(seed=seed)).model
        assert (np.diff(model.covariances[:, 0, 0]) > 0).all()
    # The return alone decides: the other input is turned upside down.
    upside_down = OBSERVATIONS * [1.0, -1.0]
    model = fit_regimes(upside_down, SEGMENTS, INPUTS, settings()).model
    assert (np.diff(model.covariances[:, 0, 0]) > 0).all()
    assert (np.diff(model.means[:, 1]) < 0).all()


def test_labels_are_stable_across_seeds_and_folds() -> None:
    found = [
        labels(filter_regimes(fit_regimes(OBSERVATIONS, rows, INPUTS, chosen).model, *everything))
        for everything in [(OBSERVATIONS, one_segment(ROWS))]
        for chosen in (settings(seed=0), settings(seed=99))
        for rows in (np.array([[0, 1_500]]), np.array([[0, 2_500]]))
    ]
    for other in found[1:]:
        assert np.mean(other == found[0]) > 0.98


def test_only_training_rows_are_looked_at() -> None:
    training = np.array([[100, 1_200], [1_500, 2_000]])
    changed = np.full_like(OBSERVATIONS, np.nan)
    for first, last in training:
        changed[first:last] = OBSERVATIONS[first:last]
    there = fit_regimes(OBSERVATIONS, training, INPUTS, settings())
    here = fit_regimes(changed, training, INPUTS, settings())
    assert here.model.document() == there.model.document()
    assert here.trials.equals(there.trials)


def test_no_transition_is_learnt_across_a_gap() -> None:
    """Calm and wild rows take turns by segment: within one, nothing ever changes."""
    generator = np.random.default_rng(0)
    returns = generator.normal(size=(2_000, 1)) * np.repeat([0.01, 0.05] * 10, 100)[:, None]
    ends = np.arange(100, 2_001, 100)
    apart = np.stack([ends - 100, ends], axis=1)
    chosen = settings(states=2)
    within = fit_regimes(returns, apart, ("r",), chosen).model.transition
    joined = fit_regimes(returns, one_segment(2_000), ("r",), chosen).model.transition
    assert within.diagonal().min() > 0.998
    assert joined.diagonal().max() < 0.997
    assert within.min() > 0  # not seen is not impossible


def test_a_segment_starts_from_long_run_shares() -> None:
    model = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings()).model
    np.testing.assert_allclose(model.start @ model.transition, model.start, rtol=0, atol=1e-12)
    shares = np.bincount(REGIMES) / ROWS
    np.testing.assert_allclose(model.start, shares, rtol=0, atol=0.1)


def test_the_fit_is_the_best_of_its_restarts() -> None:
    several = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(restarts=4)).trials
    likelihoods = several["log_likelihood"].to_list()
    assert len(set(likelihoods)) == 4  # each from a start of its own
    single = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(restarts=1, seed=2))
    assert single.trials["log_likelihood"][0] == likelihoods[2]


def test_outliers_far_beyond_every_start_are_fitted() -> None:
    """A density of 0 in every state: scaled probabilities give up, logarithms do not."""
    observations = OBSERVATIONS.copy()
    observations[700:730] += 1_000 * DEVIATIONS[2] * np.linspace(1, 2, 30)[:, np.newaxis]
    fitted = fit_regimes(observations, SEGMENTS, INPUTS, settings(states=2, restarts=4))
    assert fitted.trials["log_likelihood"].null_count() == 0
    found = labels(filter_regimes(fitted.model, observations, SEGMENTS))
    assert np.flatnonzero(found == 1).tolist() == list(range(700, 730))


def test_a_change_seen_once_is_not_for_ever() -> None:
    generator = np.random.default_rng(0)
    returns = generator.normal(size=(1_000, 1)) * np.repeat([0.01, 0.05], 500)[:, None]
    model = fit_regimes(returns, one_segment(1_000), ("r",), settings(states=2)).model
    assert model.transition.min() > 1e-5
    assert model.start.min() > 1e-3


def test_one_regime_alone_gives_a_model_or_says_why_not() -> None:
    returns = np.random.default_rng(3).normal(size=(2_000, 1)) * 0.01
    try:
        model = fit_regimes(returns, one_segment(2_000), ("r",), settings(states=(2, 3))).model
    except RegimeError as error:
        assert "none of 6 fits is usable" in str(error)
    else:
        assert RegimeModel.parse(model.document()).states == 2


@pytest.mark.parametrize("value", [0.0, 0.1, -1e6])
def test_an_input_that_never_varies_is_named(value: float) -> None:
    observations = OBSERVATIONS.copy()
    observations[:, 1] = value
    with pytest.raises(RegimeError, match="realised_volatility_20 does not vary in the 3000"):
        fit_regimes(observations, SEGMENTS, INPUTS, settings())


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(RegimeError, match=r"2 training row\(s\) are too few for 3 states of 2"):
        fit_regimes(OBSERVATIONS, np.array([[7, 9]]), INPUTS, settings())
    with pytest.raises(RegimeError, match=r"0 training row\(s\) are too few"):
        fit_regimes(OBSERVATIONS, np.empty((0, 2), np.int64), INPUTS, settings())


def test_values_whose_squares_overflow_are_refused() -> None:
    observations = OBSERVATIONS.copy()
    observations[5, 0] = 1e300
    with pytest.raises(RegimeError, match=r"log_return_1 has values up to 1e\+300"):
        fit_regimes(observations, SEGMENTS, INPUTS, settings())


def test_what_is_not_finite_is_named_by_row_and_input() -> None:
    observations = OBSERVATIONS.copy()
    observations[1_234, 1] = np.nan
    with pytest.raises(RegimeError, match="row 1234: realised_volatility_20 is nan"):
        fit_regimes(observations, SEGMENTS, INPUTS, settings())


def test_a_market_that_mostly_stands_still_is_refused_with_the_reason() -> None:
    """Equal rows make a state of no width, whose likelihood says nothing."""
    generator = np.random.default_rng(0)
    moving = generator.random(2_000) < 0.3
    returns = np.where(moving, generator.normal(size=2_000), 0.0)[:, None]
    with pytest.raises(RegimeError, match=r"a state shrank onto rows that are alike.*inputs whose"):
        fit_regimes(returns, one_segment(2_000), ("r",), settings(states=2))


def test_fits_that_do_not_converge_are_dropped_and_said_so() -> None:
    with pytest.raises(RegimeError, match=r"3 x not converged after 2 iterations.*iterations"):
        fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(iterations=2, tolerance=1e-12))
    # Some starts are nearer than others: enough iterations for one of them.
    iterations = fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings()).trials["iterations"]
    assert iterations.min() < iterations.max()
    trials = fit_regimes(
        OBSERVATIONS, SEGMENTS, INPUTS, settings(iterations=int(iterations.min()))
    ).trials
    dropped = trials.filter(pl.col("iterations") == iterations.min(), ~pl.col("converged"))
    assert dropped["dropped"].to_list() == [
        f"not converged after {iterations.min()} iterations"
    ] * ((iterations > iterations.min()).sum())
    assert dropped["bic"].null_count() == dropped.height
    assert trials.filter("chosen")["converged"].to_list() == [True]


def test_a_state_that_no_row_is_in_is_dropped() -> None:
    _, observations = planted(1_000, 2)
    trials = fit_regimes(observations, one_segment(1_000), INPUTS, settings(restarts=6)).trials
    empty = trials.filter(pl.col("dropped") == "a state holds fewer than 10 rows")
    assert empty.height > 0
    assert not empty["chosen"].any()


SCRIPT = """
import hashlib, json
import numpy as np
from trade_pipeline.features.regimes.filtering import filter_regimes
from trade_pipeline.features.regimes.fit import fit_regimes
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline_tests.features.regimes.markets import INPUTS, one_segment, planted
_, observations = planted(2_000, 1)
chosen = RegimeSettings(inputs=INPUTS, states=(2, 3), restarts=1, covariance="full", seed=5)
fitted = fit_regimes(observations, one_segment(2_000), INPUTS, chosen)
digest = hashlib.sha256(json.dumps(fitted.model.document()).encode())
digest.update(json.dumps(fitted.trials.to_dicts()).encode())
digest.update(filter_regimes(fitted.model, observations, one_segment(2_000)).tobytes())
print(digest.hexdigest())
"""


def test_bits_do_not_depend_on_threads_or_on_the_run() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **dict.fromkeys(names, threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for threads in ("1", "4")
    ]
    first, second = (process.communicate()[0].strip() for process in running)
    assert len(first) == 64
    assert first == second


def test_another_seed_gives_another_start() -> None:
    first, second = (
        fit_regimes(OBSERVATIONS, SEGMENTS, INPUTS, settings(seed=seed, restarts=1)).trials
        for seed in (0, 1)
    )
    assert first["log_likelihood"][0] != second["log_likelihood"][0]
