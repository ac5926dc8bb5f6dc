"""Fitting regimes: expectation maximisation by hmmlearn, from several starts, chosen by BIC.

The same rows, settings and seed give the same bits whatever the number of threads. Pure functions
over arrays. Start at `fit_regimes`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from hmmlearn.base import ConvergenceMonitor
from hmmlearn.hmm import GaussianHMM
from threadpoolctl import threadpool_limits

from trade_pipeline.features.regimes.filtering import (
    Rows,
    check_observations,
    filter_regimes,
    labels,
)
from trade_pipeline.features.regimes.model import FloatArray, RegimeError, RegimeModel
from trade_pipeline.settings.regimes import RegimeSettings

# Raised when the same rows and settings give another model.
IMPLEMENTATION = 1

FEWEST_ROWS = 10  # that are most probably in a state, for the state to be one
LEAST_VARIANCE = 1e-6  # of any mixture of standardised inputs within a state
# What is added to what was counted, so that no jump is impossible and no variance is 0.
PRIOR_JUMPS = 0.1
PRIOR_VARIANCE = 0.01
MOST_FALL = 1e-4  # of a row's log likelihood (nats) in one iteration: what is added may cost some
LEAST_VARYING = 1e-9  # deviation to largest value: less is rounding error
GROUPS_A_STATE = 10  # of rows that a start is drawn from

TRIALS = {
    "states": pl.Int64,
    "seed": pl.Int64,
    "log_likelihood": pl.Float64,
    "bic": pl.Float64,
    "iterations": pl.Int64,
    "converged": pl.Boolean,
    "dropped": pl.String,
    "chosen": pl.Boolean,
}


@dataclass(frozen=True)
class Fitted:
    """What `fit_regimes` found.

    Attributes:
        model: the one of least BIC.
        trials: a row for each number of states and restart: `states seed log_likelihood bic
            iterations converged dropped chosen`. `dropped` says why it could not be chosen and is
            null otherwise; log likelihood (nats, of standardised rows) and BIC are null where
            there is no model.
    """

    model: RegimeModel
    trials: pl.DataFrame


@dataclass(frozen=True)
class _Trial:
    states: int
    seed: int
    iterations: int = 0
    converged: bool = False
    log_likelihood: float | None = None
    bic: float | None = None
    dropped: str | None = None
    model: RegimeModel | None = None


class _Monitor(ConvergenceMonitor):  # type: ignore[misc]
    """Stops a fit where it has converged; hmmlearn's says so, too, when its iterations ran out."""

    def __init__(self, tolerance: float, iterations: int, rows: int) -> None:
        super().__init__(tolerance * rows, iterations, verbose=False)
        self.most_fall = MOST_FALL * rows

    def report(self, log_prob: float) -> None:
        """Remember the log likelihood, without a warning where it fell."""
        self.history.append(log_prob)
        self.iter += 1

    @property
    def converged(self) -> bool:
        """Whether the last iteration changed little."""
        if len(self.history) < 2:
            return False
        gain = self.history[-1] - self.history[-2]
        return bool(-self.most_fall < gain < self.tol)


def fit_regimes(
    observations: FloatArray, segments: Rows, inputs: Sequence[str], settings: RegimeSettings
) -> Fitted:
    """Fit every number of states from every start, and keep the model of least BIC.

    The chance of a state at a segment's start is its long-run share: with few segments there is
    nothing else to learn it from.

    Args:
        observations: float64 [T, D], not standardised.
        segments: int64 [S, 2], training rows [a, b) in order; the other rows are not looked at.
        inputs: names of the D columns.
        settings: `inputs` are taken from the argument of that name.

    Raises:
        RegimeError: rows are too few or not finite, an input does not vary, or no fit is usable.
    """
    names = tuple(inputs)
    observations = np.ascontiguousarray(observations, np.float64)
    segments = np.ascontiguousarray(segments, np.int64)
    check_observations(observations, segments, names)
    lengths = (segments[:, 1] - segments[:, 0]).tolist()
    most = max(settings.states)
    needed = max(parameter_count(most, len(names), settings.covariance), most * FEWEST_ROWS)
    if sum(lengths) <= needed:
        raise RegimeError(
            f"regimes: {sum(lengths)} training row(s) are too few for {most} states of "
            f"{len(names)} input(s); more than {needed} are needed. Give more rows or fewer states."
        )
    rows = np.concatenate([observations[first:last] for first, last in segments])
    center, scale = _standards(rows, names)
    rows = (rows - center) / scale
    # A matrix product split over threads may add in another order.
    with threadpool_limits(1), np.errstate(all="ignore"):
        trials = [
            _trial(rows, lengths, (names, center, scale), settings, states, settings.seed + restart)
            for states in settings.states
            for restart in range(settings.restarts)
        ]
    usable = [trial for trial in trials if trial.dropped is None]
    if not usable:
        reasons = Counter(str(trial.dropped) for trial in trials)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
        raise RegimeError(
            f"regimes: none of {len(trials)} fits is usable ({listed}). List fewer states, give "
            "inputs whose values differ from row to row, or raise restarts or iterations."
        )
    best = min(usable, key=lambda trial: (trial.bic, trial.states, trial.seed))
    assert best.model is not None
    names_of_fields = [name for name in TRIALS if name != "chosen"]
    table = [
        {**{name: getattr(trial, name) for name in names_of_fields}, "chosen": trial is best}
        for trial in trials
    ]
    return Fitted(best.model, pl.DataFrame(table, schema=TRIALS))


def parameter_count(states: int, inputs: int, covariance: str) -> int:
    """Numbers that a fit is free to choose.

    Each row of transitions sums to 1, and the start follows from the transitions.

    >>> parameter_count(2, 1, "diagonal"), parameter_count(3, 2, "full")
    (6, 21)
    """
    varying = inputs if covariance == "diagonal" else inputs * (inputs + 1) // 2
    return states * (states - 1) + states * inputs + states * varying


def _standards(rows: FloatArray, inputs: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
    """Mean and deviation [D] of each input."""
    with np.errstate(over="ignore", invalid="ignore"):
        center, scale = rows.mean(axis=0), rows.std(axis=0)
    for name, deviation, largest in zip(inputs, scale, np.abs(rows).max(axis=0), strict=True):
        if not np.isfinite(deviation):
            raise RegimeError(
                f"regimes: {name} has values up to {largest}, whose squares no float holds; "
                "correct the feature."
            )
        if deviation <= LEAST_VARYING * largest:
            raise RegimeError(
                f"regimes: {name} does not vary in the {len(rows)} training rows (about "
                f"{rows[0, inputs.index(name)]}); leave it out of the inputs, or give other rows."
            )
    return center, scale


def _trial(
    rows: FloatArray,
    lengths: list[int],
    standards: tuple[tuple[str, ...], FloatArray, FloatArray],
    settings: RegimeSettings,
    states: int,
    seed: int,
) -> _Trial:
    """One fit from one start; `rows` are standardised, one segment after the other."""
    inputs, center, scale = standards
    fitted = _maximised(rows, lengths, settings, states, seed)
    if fitted is None:
        return _Trial(states, seed, dropped="no density could be computed")
    iterations = fitted.monitor_.iter
    if not fitted.monitor_.converged:
        reason = f"not converged after {iterations} iterations"
        return _Trial(states, seed, iterations, dropped=reason)
    order = np.argsort(fitted.covars_[:, 0, 0], kind="stable")
    transition = fitted.transmat_[order][:, order]
    covariances = fitted.covars_[order]
    model = RegimeModel(
        inputs,
        center,
        scale,
        _long_run(transition),
        transition,
        fitted.means_[order],
        (covariances + covariances.transpose(0, 2, 1)) / 2,  # rounding leaves it not quite so
    )
    fitted.startprob_ = model.start[np.argsort(order)]
    log_likelihood = float(fitted.score(rows, lengths))
    free = parameter_count(states, len(inputs), settings.covariance)
    return _Trial(
        states,
        seed,
        iterations,
        converged=True,
        log_likelihood=log_likelihood,
        bic=free * float(np.log(len(rows))) - 2 * log_likelihood,
        dropped=_degenerate(model, rows, lengths),
        model=model,
    )


def _maximised(
    rows: FloatArray, lengths: list[int], settings: RegimeSettings, states: int, seed: int
) -> GaussianHMM | None:
    """A model whose numbers are finite, or None.

    Scaled probabilities are three times as fast as logarithms, but where all densities of a row
    are 0 they say nothing.
    """
    width = rows.shape[1]
    means, variances, transition = _start(rows, states, np.random.default_rng([seed, states]))
    diagonal = settings.covariance == "diagonal"
    for implementation in ("scaling", "log"):
        model = GaussianHMM(
            states,
            covariance_type="diag" if diagonal else "full",
            covars_prior=PRIOR_VARIANCE if diagonal else PRIOR_VARIANCE * np.eye(width),
            transmat_prior=1 + PRIOR_JUMPS,
            n_iter=settings.iterations,
            params="tmc",
            init_params="",
            implementation=implementation,
        )
        model.monitor_ = _Monitor(settings.tolerance, settings.iterations, len(rows))
        model.startprob_ = np.full(states, 1 / states)
        model.transmat_, model.means_ = transition, means
        model.covars_ = variances if diagonal else variances[:, :, np.newaxis] * np.eye(width)
        try:
            model.fit(rows, lengths)
        except ValueError:  # densities of 0, or a covariance that is none
            continue
        numbers = (model.transmat_, model.means_, model.covars_, model.monitor_.history)
        if all(np.isfinite(part).all() for part in numbers):
            return model
    return None


def _start(
    rows: FloatArray, states: int, generator: np.random.Generator
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Means [K, D], variances [K, D] and transitions [K, K] to start from.

    Regimes last, so runs of consecutive rows resemble them: many are drawn, all of one random
    length, and grouped by how much the first input varies in them.
    """
    longest = len(rows) // states
    length = int(np.exp(generator.uniform(np.log(FEWEST_ROWS), np.log(longest))))
    starts = generator.integers(0, len(rows) - length + 1, states * GROUPS_A_STATE)
    means = np.array([rows[first : first + length].mean(axis=0) for first in starts])
    variances = np.array([rows[first : first + length].var(axis=0) for first in starts])
    order = np.argsort(variances[:, 0], kind="stable").reshape(states, GROUPS_A_STATE)
    picked = order[np.arange(states), generator.integers(0, GROUPS_A_STATE, states)]
    staying = generator.uniform(0.8, 0.99)
    transition = np.full((states, states), (1 - staying) / (states - 1))
    np.fill_diagonal(transition, staying)
    return means[picked], np.maximum(variances[picked], 1e-2), transition


def _long_run(transition: FloatArray) -> FloatArray:
    """Share of time in each state [K]; every state can be reached, so it is unique."""
    states = len(transition)
    balance = transition.T - np.eye(states)
    balance[-1] = 1.0  # shares sum to 1, in place of the equation that follows from the others
    shares = np.linalg.solve(balance, np.eye(states)[-1])
    shares = np.clip(shares, 0.0, 1.0)
    normalised: FloatArray = shares / shares.sum()
    return normalised


def _degenerate(model: RegimeModel, rows: FloatArray, lengths: list[int]) -> str | None:
    """Why a model is of no use; None where it is."""
    ends = np.cumsum(lengths)
    segments = np.stack([ends - lengths, ends], axis=1)
    standardised = replace(model, center=np.zeros(rows.shape[1]), scale=np.ones(rows.shape[1]))
    found = labels(filter_regimes(standardised, rows, segments))
    counts = np.bincount(found, minlength=model.states)
    if counts.min() < FEWEST_ROWS:
        return f"a state holds fewer than {FEWEST_ROWS} rows"
    # What was added to the squares of so many rows is no width of theirs.
    least = LEAST_VARIANCE + 2 * PRIOR_VARIANCE / counts
    if (np.linalg.eigvalsh(model.covariances).min(axis=1) < least).any():
        return "a state shrank onto rows that are alike"
    return None
