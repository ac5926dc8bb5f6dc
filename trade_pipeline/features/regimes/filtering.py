"""The causal filter: how likely each regime is at a bar, given the bars up to it and no later one.

`predict` and `predict_proba` of hmmlearn smooth: they read the future. Nothing here does.
Start at `filter_regimes`.
"""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from trade_pipeline.features.regimes.model import FloatArray, RegimeError, RegimeModel

# Raised when the same model and observations give other probabilities.
IMPLEMENTATION = 1

Rows = NDArray[np.int64]


def filter_regimes(model: RegimeModel, observations: FloatArray, segments: Rows) -> FloatArray:
    """Probability of each regime at each row, given the rows of its segment up to it.

    Rows appended later change no earlier probability, to the last bit. A row that every state
    finds impossible (its density is 0 as a float64) says nothing: the regimes go on without it.

    Args:
        model: see `fit.fit_regimes`.
        observations: float64 [T, D], the model's inputs in their order, not standardised.
        segments: int64 [S, 2], rows [a, b) in order; nothing carries over from one to the next.

    Returns:
        float64 [T, K], rows sum to 1; NaN outside segments.

    Raises:
        RegimeError: shapes do not fit, or a row within a segment is not finite.
    """
    observations = np.ascontiguousarray(observations, np.float64)
    segments = np.ascontiguousarray(segments, np.int64)
    check_observations(observations, segments, model.inputs)
    roots = np.linalg.cholesky(model.covariances)
    diagonals = np.diagonal(roots, axis1=1, axis2=2)
    constants = -np.log(diagonals).sum(axis=1) - 0.5 * len(model.inputs) * np.log(2 * np.pi)
    probabilities = np.full((len(observations), model.states), np.nan)
    _filter(
        observations,
        segments,
        *(model.center, model.scale, model.start, model.transition, model.means),
        roots,
        constants,
        probabilities,
    )
    return probabilities


def labels(probabilities: FloatArray) -> NDArray[np.int8]:
    """The most probable regime of each row, the calmer of equals; -1 where there is none.

    Args:
        probabilities: float64 [T, K], NaN where unknown.

    Returns:
        int8 [T].
    """
    known = ~np.isnan(probabilities).any(axis=1)
    return np.where(known, np.argmax(probabilities, axis=1), -1).astype(np.int8)


def check_observations(observations: FloatArray, segments: Rows, inputs: tuple[str, ...]) -> None:
    """Refuse what cannot be filtered or fitted.

    Raises:
        RegimeError: names the shape, the segment, or the row and input.
    """
    if observations.ndim != 2 or observations.shape[1] != len(inputs):
        raise RegimeError(
            f"regimes: observations have shape {list(observations.shape)}; [rows, {len(inputs)}] "
            f"is needed, one column each of {', '.join(inputs)}."
        )
    if segments.ndim != 2 or segments.shape[1] != 2:
        raise RegimeError(
            f"regimes: segments have shape {list(segments.shape)}; [segments, 2] is needed."
        )
    end = 0
    for number, (first, last) in enumerate(segments):
        if not end <= first < last <= len(observations):
            raise RegimeError(
                f"regimes: segment {number} is rows [{first}, {last}); each must hold a row, "
                f"begin at or after row {end} where the one before it ends, and end by row "
                f"{len(observations)}."
            )
        end = last
        wrong = np.argwhere(~np.isfinite(observations[first:last]))
        if wrong.size:
            row, column = wrong[0]
            raise RegimeError(
                f"regimes: row {first + row}: {inputs[column]} is "
                f"{observations[first + row, column]}; correct the feature, or end the segment "
                "before this row."
            )


def _forward(
    observations: FloatArray,
    segments: Rows,
    center: FloatArray,
    scale: FloatArray,
    start: FloatArray,
    transition: FloatArray,
    means: FloatArray,
    roots: FloatArray,
    constants: FloatArray,
    probabilities: FloatArray,
) -> None:
    """Fill `probabilities` [T, K] within segments.

    Densities stay logarithms until the largest is subtracted: however far away a row lies, one
    state keeps weight 1. `roots` [K, D, D] are lower Cholesky factors of the covariances,
    `constants` [K] the logarithms of the densities at the means.
    """
    states, width = means.shape
    predicted = np.empty(states)
    weight = np.empty(states)
    distance = np.empty(width)
    for segment in range(len(segments)):
        predicted[:] = start
        for row in range(segments[segment, 0], segments[segment, 1]):
            best = -np.inf
            for state in range(states):
                square = 0.0
                for i in range(width):
                    value = (observations[row, i] - center[i]) / scale[i] - means[state, i]
                    for j in range(i):
                        value -= roots[state, i, j] * distance[j]
                    distance[i] = value / roots[state, i, i]
                    square += distance[i] * distance[i]
                score = constants[state] - 0.5 * square + np.log(predicted[state])
                if not score > -np.inf:  # NaN, too: infinity less infinity
                    score = -np.inf
                weight[state] = score
                best = max(best, score)
            total = 0.0
            for state in range(states):
                weight[state] = np.exp(weight[state] - best) if best > -np.inf else predicted[state]
                total += weight[state]
            for state in range(states):
                probabilities[row, state] = weight[state] / total
            for after in range(states):
                chance = 0.0
                for before in range(states):
                    chance += probabilities[row, before] * transition[before, after]
                predicted[after] = chance


# No fastmath: the same rows give the same bits, whatever follows them.
_filter: Any = numba.njit(cache=True, error_model="numpy", nogil=True)(_forward)
