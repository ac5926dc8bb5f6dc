"""What a part of a minibatch of PPO says of its loss and the gradient, compiled.

For feed-forward networks of dense layers. Formulas: PPO-clip of Schulman et al. 2017 with an
entropy bonus. Knows no torch and no SB3; `dense_update` fills the records below. Start at
`chunk_gradient`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import (
    compiled,
    compiled_apart,
    stay_apart,
)
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.dense_layers import (
    INPUTS,
    OUTPUTS,
    ZERO,
    Layers,
    affine_gradient,
    backward,
    forward_all,
    inputs_gradient,
    matrix,
)
from trade_pipeline.training.distributions import (
    choices_gradient,
    log_prob_of_choices,
    log_prob_of_numbers,
    numbers_gradient,
    softmax_of_choices,
)
from trade_pipeline.training.inference import Float32Array

# Columns of what a minibatch gives: sums over its samples.
POLICY_LOSS, VALUE_LOSS, ENTROPY = range(3)
BEGIN, END, PARAMETER = range(3)  # columns of `Room.blocks`
CHUNK_ROWS, MOST_CHUNKS = 256, 16


class Rollout(NamedTuple):
    """What was gathered, float32, a row a sample: inputs [n, I], actions [n, parts], others [n]."""

    inputs: Float32Array
    actions: Float32Array
    log_probs: Float32Array
    advantages: Float32Array
    returns: Float32Array


class Coefficients(NamedTuple):
    """Settings of an epoch; `step` counts from one, for Adam's bias, at its first minibatch."""

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
        shares: float32 [threads, rows * L], probabilities of options.
        turned: float32 [threads, widest * widest], weights of one map, outputs first.
        gradients: float32 [chunks, P].
        sums: float64 [chunks, 3].
        blocks: int64 [blocks, 3], begin, end and parameter of what a thread takes at a time.
        squares: float64 [blocks], sums of the gradient's squares.
        norms: float64, of each parameter's gradient before clipping.
    """

    inputs: NDArray[np.float32]
    hidden: NDArray[np.float32]
    deltas: NDArray[np.float32]
    outputs: NDArray[np.float32]
    values: NDArray[np.float32]
    shares: NDArray[np.float32]
    turned: NDArray[np.float32]
    gradients: NDArray[np.float32]
    sums: NDArray[np.float64]
    blocks: NDArray[np.int64]
    squares: NDArray[np.float64]
    norms: NDArray[np.float64]


class Minibatch(NamedTuple):
    """Samples of the rollout that a step learns from, and all that their gradient needs.

    Attributes:
        layers: where parameters are.
        parameters: as they are before the step.
        rollout: all samples.
        chosen: int64 [B], rows of `rollout`.
        scale: of their advantages.
        coefficients: settings.
        room: where threads work.
        log_ratios: float32 [B], filled.
    """

    layers: Layers
    parameters: Float32Array
    rollout: Rollout
    chosen: IntArray
    scale: Scale
    coefficients: Coefficients
    room: Room
    log_ratios: Float32Array


def chunk_rows(batch: int) -> int:
    """Samples of a chunk, but perhaps the last, of a minibatch of so many."""
    return max(CHUNK_ROWS, -(-batch // MOST_CHUNKS))


@compiled
def _losses(
    minibatch: Minibatch,
    start: int,
    outputs: Float32Array,
    values: Float32Array,
    shares: NDArray[np.float32],
    gradient: Float32Array,
    sums: NDArray[np.float64],
) -> None:
    """Sums of a chunk's losses; outputs and values are replaced by what they change the mean by."""
    layers, rollout = minibatch.layers, minibatch.rollout
    scale, coefficients = minibatch.scale, minibatch.coefficients
    size, at = outputs.shape[1], layers.deviations
    log_deviations = minibatch.parameters[at : at + size]
    # Not added up in `sums`: other threads write beside it, in the same cache line.
    policy_loss = value_loss = entropy = 0.0
    if at >= 0:
        gradient[at : at + size] = ZERO
    by_entropy = -coefficients.entropy * scale.weight
    low, high = 1.0 - coefficients.clip_range, 1.0 + coefficients.clip_range
    for row in range(outputs.shape[0]):
        sample = minibatch.chosen[start + row]
        actions = rollout.actions[sample]
        if at >= 0:
            log_prob = log_prob_of_numbers(log_deviations, outputs[row], actions)
        else:
            log_prob = log_prob_of_choices(layers.counts, outputs[row], actions)
        advantage = (rollout.advantages[sample] - scale.mean) * scale.inverse_deviation
        log_ratio = log_prob - rollout.log_probs[sample]
        minibatch.log_ratios[start + row] = log_ratio
        ratio = np.exp(log_ratio)
        free, bounded = advantage * ratio, advantage * min(max(ratio, low), high)
        policy_loss -= min(free, bounded)
        by_log_prob = -free * scale.weight if free <= bounded else 0.0
        if at >= 0:
            entropy += numbers_gradient(
                log_deviations,
                outputs[row],
                actions,
                by_log_prob,
                by_entropy,
                gradient[at : at + size],
            )
        else:
            entropy += choices_gradient(
                layers.counts, outputs[row], actions, shares[row], by_log_prob, by_entropy
            )
        off = values[row, 0] - rollout.returns[sample]
        value_loss += off * off
        values[row, 0] = 2.0 * coefficients.value * scale.weight * off
    sums[POLICY_LOSS], sums[VALUE_LOSS], sums[ENTROPY] = policy_loss, value_loss, entropy


@compiled_apart
def chunk_gradient(minibatch: Minibatch, thread: int, chunk: int) -> None:
    """Sums and gradient of a chunk's part of the mean loss."""
    stay_apart()
    layers, parameters, room = minibatch.layers, minibatch.parameters, minibatch.room
    hidden, deltas, gradient = room.hidden[thread], room.deltas[thread], room.gradients[chunk]
    start = chunk * room.inputs.shape[1]
    rows = min(minibatch.chosen.shape[0] - start, room.inputs.shape[1])
    inputs = room.inputs[thread, :rows]
    for row in range(rows):
        source = minibatch.rollout.inputs[minibatch.chosen[start + row]]
        for k in range(source.shape[0]):
            inputs[row, k] = source[k]
    size, width = layers.action[OUTPUTS], layers.action[INPUTS]
    outputs = matrix(room.outputs[thread], 0, rows, size)
    values = matrix(room.values[thread], 0, rows, 1)
    forward_all(layers, parameters, inputs, hidden, outputs, values)
    shares = room.shares[thread]
    if layers.deviations < 0:
        used = rows * size
        softmax_of_choices(layers.counts, room.outputs[thread, :used], shares[:used])
    shared = matrix(shares, 0, rows, size)
    _losses(minibatch, start, outputs, values, shared, gradient, room.sums[chunk])
    trunks, last = layers.trunks.shape[0], layers.trunks.shape[1] - 1
    seen = matrix(hidden[0, last], 0, rows, width)
    judged = matrix(hidden[trunks - 1, last], 0, rows, width)
    affine_gradient(layers.action, gradient, seen, outputs)
    affine_gradient(layers.value, gradient, judged, values)
    delta = matrix(deltas[0], 0, rows, width)
    flat, turned = deltas[0, : rows * width], room.turned[thread]
    flat[:] = ZERO
    inputs_gradient(layers.action, parameters, outputs, turned, delta)
    if trunks == 2:
        backward(layers, 0, parameters, gradient, inputs, hidden, deltas, turned)
        flat[:] = ZERO
    inputs_gradient(layers.value, parameters, values, turned, delta)
    backward(layers, trunks - 1, parameters, gradient, inputs, hidden, deltas, turned)
