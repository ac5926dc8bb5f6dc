"""PPO's step on one minibatch, compiled: network, loss, gradient, clipping and Adam in one call.

For feed-forward networks of dense layers, whose matrix products take less time than the calls and
the copies around them. A minibatch is cut into chunks whose gradients are added in their order, so
that the number of threads changes no bit. Formulas: PPO-clip of Schulman et al. 2017 with an
entropy bonus; Adam of Kingma and Ba 2015, bias corrected. Knows no torch and no SB3; `dense_update`
fills the records below. Start at `minibatch_step`.
"""

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import (
    compiled,
    compiled_products,
    compiled_products_parallel,
)
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.dense_layers import (
    INPUTS,
    ONE,
    OUTPUTS,
    WEIGHTS,
    ZERO,
    Layers,
    affine,
    affine_gradient,
    backward,
    forward,
    matrix,
)
from trade_pipeline.training.inference import Float32Array

# Columns of what a minibatch gives: sums over its samples.
POLICY_LOSS, VALUE_LOSS, ENTROPY = range(3)
LANES = 16  # sums of squares are taken in so many parts: a fixed order that is fast
CHUNK_ROWS, MOST_CHUNKS = 256, 16

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999  # Adam's
HALF_LOG_2_PI = 0.5 * np.log(2.0 * np.pi)


class Learned(NamedTuple):
    """What a step changes, float32 [P] each: parameters and Adam's two moments."""

    parameters: Float32Array
    first_moment: Float32Array
    second_moment: Float32Array


class Rollout(NamedTuple):
    """What was gathered, float32, a row a sample: inputs [n, I], actions [n, parts], others [n]."""

    inputs: Float32Array
    actions: Float32Array
    log_probs: Float32Array
    advantages: Float32Array
    returns: Float32Array


class Coefficients(NamedTuple):
    """Settings of a step; `step` counts from one, for Adam's bias."""

    clip_range: float
    entropy: float
    value: float
    most_norm: float
    most_divergence: float
    learning_rate: float
    epsilon: float
    step: int
    normalize_advantages: bool


class Scale(NamedTuple):
    """What a minibatch's advantages are normalized by, and one over its samples."""

    mean: float
    inverse_deviation: float
    weight: float


class Room(NamedTuple):
    """Where a step works: per thread, but gradients and sums, which are per chunk.

    Attributes:
        inputs: float32 [threads, rows, I].
        hidden: float32 [threads, T, S, rows * widest].
        deltas: float32 [threads, 2, rows * widest].
        outputs: float32 [threads, rows * L], and then what they change the loss by.
        values: float32 [threads, rows].
        gradients: float32 [chunks, P].
        sums: float64 [chunks, 3].
        norms: float64, of each parameter's gradient before clipping.
        lanes: float64 [LANES].
    """

    inputs: NDArray[np.float32]
    hidden: NDArray[np.float32]
    deltas: NDArray[np.float32]
    outputs: NDArray[np.float32]
    values: NDArray[np.float32]
    gradients: NDArray[np.float32]
    sums: NDArray[np.float64]
    norms: NDArray[np.float64]
    lanes: NDArray[np.float64]


def chunk_rows(batch: int) -> int:
    """Samples of a chunk, but perhaps the last, of a minibatch of so many."""
    return max(CHUNK_ROWS, -(-batch // MOST_CHUNKS))


@compiled
def _log_prob_of_choices(counts: IntArray, outputs: Float32Array, actions: Float32Array) -> float:
    """Of one sample's choices; its logits are replaced by log probabilities."""
    log_prob, start = 0.0, 0
    for part in range(counts.shape[0]):
        end = start + counts[part]
        largest = outputs[start]
        for j in range(start, end):
            largest = max(largest, outputs[j])
        total = 0.0
        for j in range(start, end):
            total += np.exp(float(outputs[j] - largest))
        total = np.log(total) + largest
        for j in range(start, end):
            outputs[j] -= total
        log_prob += outputs[start + int(actions[part])]
        start = end
    return log_prob


@compiled
def _choices_gradient(
    counts: IntArray,
    outputs: Float32Array,
    actions: Float32Array,
    by_log_prob: float,
    by_entropy: float,
) -> float:
    """Entropy; log probabilities are replaced by what their logits change the loss by."""
    entropy, start = 0.0, 0
    for part in range(counts.shape[0]):
        end = start + counts[part]
        here = 0.0
        for j in range(start, end):
            here -= np.exp(float(outputs[j])) * outputs[j]
        chosen = start + int(actions[part])
        for j in range(start, end):
            share = np.exp(float(outputs[j]))
            taken = 1.0 if j == chosen else 0.0
            outputs[j] = by_log_prob * (taken - share) - by_entropy * share * (outputs[j] + here)
        entropy += here
        start = end
    return entropy


@compiled
def _log_prob_of_numbers(
    log_deviations: Float32Array, outputs: Float32Array, actions: Float32Array
) -> float:
    """Of one sample's numbers, each from its own Gaussian around an output."""
    log_prob = 0.0
    for j in range(outputs.shape[0]):
        scaled = float(actions[j] - outputs[j]) * np.exp(-float(log_deviations[j]))
        log_prob -= 0.5 * scaled * scaled + log_deviations[j] + HALF_LOG_2_PI
    return log_prob


@compiled
def _numbers_gradient(
    log_deviations: Float32Array,
    outputs: Float32Array,
    actions: Float32Array,
    by_log_prob: float,
    by_entropy: float,
    gradient: Float32Array,
) -> float:
    """Entropy; outputs are replaced by what they change the loss by, `gradient` is added to."""
    entropy = 0.0
    for j in range(outputs.shape[0]):
        inverse = np.exp(-float(log_deviations[j]))
        scaled = float(actions[j] - outputs[j]) * inverse
        gradient[j] += by_log_prob * (scaled * scaled - 1.0) + by_entropy
        outputs[j] = by_log_prob * scaled * inverse
        entropy += 0.5 + HALF_LOG_2_PI + log_deviations[j]
    return entropy


@compiled
def _losses(
    layers: Layers,
    parameters: Float32Array,
    rollout: Rollout,
    chosen: IntArray,
    scale: Scale,
    coefficients: Coefficients,
    outputs: Float32Array,
    values: Float32Array,
    gradient: Float32Array,
    sums: NDArray[np.float64],
    log_ratios: Float32Array,
) -> None:
    """Sums of a chunk's losses; outputs and values are replaced by what they change the mean by."""
    size, at = outputs.shape[1], layers.deviations
    log_deviations = parameters[at : at + size]
    sums[:] = 0.0
    if at >= 0:
        gradient[at : at + size] = ZERO
    by_entropy = -coefficients.entropy * scale.weight
    low, high = 1.0 - coefficients.clip_range, 1.0 + coefficients.clip_range
    for row in range(chosen.shape[0]):
        sample = chosen[row]
        actions = rollout.actions[sample]
        if at >= 0:
            log_prob = _log_prob_of_numbers(log_deviations, outputs[row], actions)
        else:
            log_prob = _log_prob_of_choices(layers.counts, outputs[row], actions)
        advantage = (rollout.advantages[sample] - scale.mean) * scale.inverse_deviation
        log_ratio = log_prob - rollout.log_probs[sample]
        log_ratios[row] = log_ratio
        ratio = np.exp(log_ratio)
        free, bounded = advantage * ratio, advantage * min(max(ratio, low), high)
        sums[POLICY_LOSS] -= min(free, bounded)
        by_log_prob = -free * scale.weight if free <= bounded else 0.0
        if at >= 0:
            sums[ENTROPY] += _numbers_gradient(
                log_deviations,
                outputs[row],
                actions,
                by_log_prob,
                by_entropy,
                gradient[at : at + size],
            )
        else:
            sums[ENTROPY] += _choices_gradient(
                layers.counts, outputs[row], actions, by_log_prob, by_entropy
            )
        off = values[row, 0] - rollout.returns[sample]
        sums[VALUE_LOSS] += off * off
        values[row, 0] = 2.0 * coefficients.value * scale.weight * off


@compiled_products
def _chunk(
    layers: Layers,
    parameters: Float32Array,
    rollout: Rollout,
    chosen: IntArray,
    scale: Scale,
    coefficients: Coefficients,
    room: Room,
    thread: int,
    chunk: int,
    log_ratios: Float32Array,
) -> None:
    """Sums and gradient of a chunk's part of the mean loss."""
    rows, hidden, deltas = chosen.shape[0], room.hidden[thread], room.deltas[thread]
    gradient = room.gradients[chunk]
    inputs = room.inputs[thread, :rows]
    for row in range(rows):
        source = rollout.inputs[chosen[row]]
        for k in range(source.shape[0]):
            inputs[row, k] = source[k]
    trunks, last = layers.trunks.shape[0], layers.trunks.shape[1] - 1
    for trunk in range(trunks):
        forward(layers, trunk, parameters, inputs, hidden)
    size, width = layers.action[OUTPUTS], layers.action[INPUTS]
    seen = matrix(hidden[0, last], 0, rows, width)
    judged = matrix(hidden[trunks - 1, last], 0, rows, width)
    outputs = matrix(room.outputs[thread], 0, rows, size)
    values = matrix(room.values[thread], 0, rows, 1)
    affine(layers.action, parameters, seen, outputs)
    affine(layers.value, parameters, judged, values)
    _losses(
        layers,
        parameters,
        rollout,
        chosen,
        scale,
        coefficients,
        outputs,
        values,
        gradient,
        room.sums[chunk],
        log_ratios,
    )
    affine_gradient(layers.action, gradient, seen, outputs)
    affine_gradient(layers.value, gradient, judged, values)
    delta = matrix(deltas[0], 0, rows, width)
    np.dot(outputs, matrix(parameters, layers.action[WEIGHTS], size, width), delta)
    if trunks == 2:
        backward(layers, 0, parameters, gradient, inputs, hidden, deltas)
        for row in range(rows):
            for j in range(width):
                delta[row, j] = ZERO
    weights = parameters[layers.value[WEIGHTS] : layers.value[WEIGHTS] + width]
    for row in range(rows):
        by_value = values[row, 0]
        for j in range(width):
            delta[row, j] += by_value * weights[j]
    backward(layers, trunks - 1, parameters, gradient, inputs, hidden, deltas)


@compiled
def _scale(advantages: Float32Array, chosen: IntArray, normalize: bool) -> Scale:
    """Mean and deviation (of a sample) of a minibatch's advantages, in the order of its rows."""
    count = chosen.shape[0]
    if not normalize or count == 1:
        return Scale(0.0, 1.0, 1.0 / count)
    total = 0.0
    for row in range(count):
        total += advantages[chosen[row]]
    mean, squares = total / count, 0.0
    for row in range(count):
        squares += (advantages[chosen[row]] - mean) ** 2
    return Scale(mean, 1.0 / (np.sqrt(squares / (count - 1)) + 1e-8), 1.0 / count)


@compiled
def _norm(values: Float32Array, lanes: NDArray[np.float64]) -> float:
    """L2 norm; squares are summed in `LANES` parts, which is fast and always the same."""
    lanes[:] = 0.0
    together = values.shape[0] - values.shape[0] % LANES
    for start in range(0, together, LANES):
        block = values[start : start + LANES]
        for j in range(LANES):
            lanes[j] += float(block[j]) * float(block[j])
    for k in range(together, values.shape[0]):
        lanes[k - together] += float(values[k]) * float(values[k])
    total = 0.0
    for j in range(LANES):
        total += lanes[j]
    return math.sqrt(total)


@compiled
def _adam(learned: Learned, gradient: Float32Array, shrink: float, chosen: Coefficients) -> None:
    rate = np.float32(chosen.learning_rate / (1.0 - FIRST_DECAY**chosen.step))
    correction = np.float32(1.0 / np.sqrt(1.0 - SECOND_DECAY**chosen.step))
    epsilon, factor = np.float32(chosen.epsilon), np.float32(shrink)
    first_decay, second_decay = np.float32(FIRST_DECAY), np.float32(SECOND_DECAY)
    parameters, first, second = learned
    for k in range(parameters.shape[0]):
        slope = gradient[k] * factor
        first[k] += (ONE - first_decay) * (slope - first[k])
        second[k] = second_decay * second[k] + (ONE - second_decay) * slope * slope
        parameters[k] -= rate * first[k] / (np.sqrt(second[k]) * correction + epsilon)


@compiled_products
def _chunks_of(
    thread: int,
    layers: Layers,
    parameters: Float32Array,
    rollout: Rollout,
    chosen: IntArray,
    scale: Scale,
    coefficients: Coefficients,
    room: Room,
    log_ratios: Float32Array,
) -> None:
    """`_chunk` for each chunk of a thread."""
    count, threads, rows = chosen.shape[0], room.inputs.shape[0], room.inputs.shape[1]
    for chunk in range(thread, (count + rows - 1) // rows, threads):
        start, end = chunk * rows, min((chunk + 1) * rows, count)
        _chunk(
            layers,
            parameters,
            rollout,
            chosen[start:end],
            scale,
            coefficients,
            room,
            thread,
            chunk,
            log_ratios[start:end],
        )


@compiled_products_parallel
def _chunks_on_threads(
    layers: Layers,
    parameters: Float32Array,
    rollout: Rollout,
    chosen: IntArray,
    scale: Scale,
    coefficients: Coefficients,
    room: Room,
    log_ratios: Float32Array,
) -> None:
    """`_chunks_of` for each thread."""
    for thread in numba.prange(room.inputs.shape[0]):
        _chunks_of(
            thread, layers, parameters, rollout, chosen, scale, coefficients, room, log_ratios
        )


@compiled
def minibatch_step(
    layers: Layers,
    learned: Learned,
    rollout: Rollout,
    chosen: IntArray,
    coefficients: Coefficients,
    room: Room,
    log_ratios: Float32Array,
) -> bool:
    """One step of Adam on the samples `chosen`, unless the policy has moved too far already.

    Args:
        layers: where parameters are.
        learned: changed in place.
        rollout: all samples.
        chosen: int64 [B], rows of `rollout`.
        coefficients: settings.
        room: with threads for as many as it has; `sums` and `norms` say what was found.
        log_ratios: float32 [B], filled with log probabilities now less those then.

    Returns:
        Whether the step was taken.
    """
    count = chosen.shape[0]
    scale = _scale(rollout.advantages, chosen, coefficients.normalize_advantages)
    parameters = learned.parameters
    if room.inputs.shape[0] == 1:
        # Threads of numba's would change the number of torch's.
        _chunks_of(0, layers, parameters, rollout, chosen, scale, coefficients, room, log_ratios)
    else:
        _chunks_on_threads(
            layers, parameters, rollout, chosen, scale, coefficients, room, log_ratios
        )
    chunks = (count + room.inputs.shape[1] - 1) // room.inputs.shape[1]
    gradient = room.gradients[0]
    for chunk in range(1, chunks):
        other = room.gradients[chunk]
        for k in range(gradient.shape[0]):
            gradient[k] += other[k]
        for column in range(room.sums.shape[1]):
            room.sums[0, column] += room.sums[chunk, column]
    divergence = 0.0
    for row in range(count):
        divergence += np.exp(log_ratios[row]) - 1.0 - log_ratios[row]
    if divergence / count > coefficients.most_divergence:
        return False
    squares = 0.0
    for k in range(room.norms.shape[0]):
        norm = _norm(gradient[layers.bounds[k] : layers.bounds[k + 1]], room.lanes)
        room.norms[k] = norm
        squares += norm * norm
    # As torch.nn.utils.clip_grad_norm_ has it.
    _adam(
        learned,
        gradient,
        min(coefficients.most_norm / (np.sqrt(squares) + 1e-6), 1.0),
        coefficients,
    )
    return True
