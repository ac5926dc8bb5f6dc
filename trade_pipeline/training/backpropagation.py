"""What a part of a minibatch of PPO says of its loss and the gradient, compiled.

For feed-forward networks of dense layers. Formulas: PPO-clip of Schulman et al. 2017 with an
entropy bonus. Knows no torch and no SB3; `dense_update` fills the records below. Start at
`chunk_gradient`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import (
    compiled_apart,
    compiled_products,
    stay_apart,
)
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.dense_layers import (
    INPUTS,
    OUTPUTS,
    Inputs,
    Layers,
    affine_gradient,
    backward,
    forward_all,
    inputs_gradient,
    matrix,
    sum_windows,
)
from trade_pipeline.training.distributions import (
    choices_gradient,
    log_probs_of_choices,
    log_probs_of_numbers,
    numbers_gradient,
    ratio_of,
    softmax_of_choices,
)
from trade_pipeline.training.inference import Float32Array

# Columns of what a minibatch gives: sums over its samples.
POLICY_LOSS, VALUE_LOSS, ENTROPY = range(3)
BEGIN, END, PARAMETER = range(3)  # columns of `Room.blocks`
CHUNK_ROWS, MOST_CHUNKS = 256, 16
NUMBERS = 5  # rows of `Room.numbers`


class Rollout(NamedTuple):
    """What was gathered of n samples: actions [n, parts], of others a number each, float32.

    Features, places and accounts are those of `dense_layers.Inputs`.
    """

    features: Float32Array
    places: IntArray
    accounts: NDArray[np.float32]
    actions: NDArray[np.float32]
    log_probs: Float32Array
    advantages: Float32Array
    returns: Float32Array


class Coefficients(NamedTuple):
    """Settings of an update; `step` counts from one, for Adam's bias, at its first minibatch."""

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
        places: int64 [threads, rows], see `dense_layers.Inputs`.
        accounts: float32 [threads, rows, A], likewise.
        hidden: float32 [threads, T, S, rows * widest].
        deltas: float32 [threads, 2, rows * widest].
        outputs: float32 [threads, rows * L], and then what they change the loss by.
        values: float32 [threads, rows].
        actions: float32 [threads, rows * parts].
        log_shares: float32 [threads, rows * L], of options; likewise `shares`.
        shares: probabilities of options.
        numbers: float64 [threads, NUMBERS, rows], of each sample.
        turned: float32 [threads, widest * widest], weights of one map, outputs first.
        gradients: float32 [chunks, P].
        sums: float64 [chunks, 3].
        blocks: int64 [blocks, 3], begin, end and parameter of what a thread takes at a time.
        squares: float64 [blocks], sums of the gradient's squares.
        norms: float64, of each parameter's gradient before clipping.
    """

    places: NDArray[np.int64]
    accounts: NDArray[np.float32]
    hidden: NDArray[np.float32]
    deltas: NDArray[np.float32]
    outputs: NDArray[np.float32]
    values: NDArray[np.float32]
    actions: NDArray[np.float32]
    log_shares: NDArray[np.float32]
    shares: NDArray[np.float32]
    numbers: NDArray[np.float64]
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


@compiled_products
def _losses(
    minibatch: Minibatch,
    thread: int,
    start: int,
    outputs: NDArray[np.float32],
    values: NDArray[np.float32],
    gradient: Float32Array,
    sums: NDArray[np.float64],
) -> None:
    """Sums of a chunk's losses; outputs and values are replaced by what they change the mean by.

    In passes over all samples, so that vector instructions take many at once.
    """
    layers, rollout, room = minibatch.layers, minibatch.rollout, minibatch.room
    scale, coefficients = minibatch.scale, minibatch.coefficients
    (rows, size), at = outputs.shape, layers.deviations
    chosen = minibatch.chosen[start : start + rows]
    actions = matrix(room.actions[thread], 0, rows, rollout.actions.shape[1])
    advantages, log_probs = room.numbers[thread, 0, :rows], room.numbers[thread, 1, :rows]
    by_log_prob, losses = room.numbers[thread, 2, :rows], room.numbers[thread, 3, :rows]
    own = room.numbers[thread, 4, :rows]
    for row in range(rows):
        advantage = rollout.advantages[chosen[row]]
        advantages[row] = (advantage - scale.mean) * scale.inverse_deviation
        for part in range(actions.shape[1]):
            actions[row, part] = rollout.actions[chosen[row], part]
    log_deviations = minibatch.parameters[at : at + size]
    log_shares = matrix(room.log_shares[thread], 0, size, rows)
    shares = matrix(room.shares[thread], 0, size, rows)
    if at >= 0:
        log_probs_of_numbers(log_deviations, outputs, actions, log_probs)
    else:
        softmax_of_choices(layers.counts, outputs, log_shares, shares, own)
        log_probs_of_choices(layers.counts, log_shares, actions, log_probs)
    log_ratios = minibatch.log_ratios[start : start + rows]
    for row in range(rows):
        log_ratios[row] = log_probs[row] - rollout.log_probs[chosen[row]]
    low, high = 1.0 - coefficients.clip_range, 1.0 + coefficients.clip_range
    for row in range(rows):
        ratio = ratio_of(log_ratios[row])
        free, bounded = advantages[row] * ratio, advantages[row] * min(max(ratio, low), high)
        losses[row] = min(free, bounded)
        by_log_prob[row] = -free * scale.weight if free <= bounded else 0.0
    # Not added up in `sums`: other threads write beside it, in the same cache line.
    policy_loss = value_loss = entropy = 0.0
    for row in range(rows):
        policy_loss -= losses[row]
    by_entropy = -coefficients.entropy * scale.weight
    if at >= 0:
        entropy = rows * numbers_gradient(
            log_deviations, outputs, actions, by_log_prob, by_entropy, gradient[at : at + size]
        )
    else:
        entropies = losses
        choices_gradient(
            layers.counts,
            log_shares,
            shares,
            actions,
            by_log_prob,
            by_entropy,
            outputs,
            entropies,
            own,
        )
        for row in range(rows):
            entropy += entropies[row]
    for row in range(rows):
        off = values[row, 0] - rollout.returns[chosen[row]]
        value_loss += off * off
        values[row, 0] = 2.0 * coefficients.value * scale.weight * off
    sums[POLICY_LOSS], sums[VALUE_LOSS], sums[ENTROPY] = policy_loss, value_loss, entropy


@compiled_products
def _gather(
    rollout: Rollout, chosen: IntArray, places: IntArray, accounts: NDArray[np.float32]
) -> Inputs:
    """Inputs of the samples chosen, in room for them."""
    rows = chosen.shape[0]
    for row in range(rows):
        places[row] = rollout.places[chosen[row]]
        for k in range(accounts.shape[1]):
            accounts[row, k] = rollout.accounts[chosen[row], k]
    return Inputs(rollout.features, places[:rows], accounts[:rows])


@compiled_apart
def chunk_gradient(minibatch: Minibatch, thread: int, chunk: int) -> None:
    """Sums and gradient of a chunk's part of the mean loss."""
    stay_apart()
    layers, parameters, room = minibatch.layers, minibatch.parameters, minibatch.room
    hidden, deltas, gradient = room.hidden[thread], room.deltas[thread], room.gradients[chunk]
    start = chunk * room.places.shape[1]
    rows = min(minibatch.chosen.shape[0] - start, room.places.shape[1])
    inputs = _gather(
        minibatch.rollout,
        minibatch.chosen[start : start + rows],
        room.places[thread],
        room.accounts[thread],
    )
    size, width = layers.action[OUTPUTS], layers.action[INPUTS]
    outputs = matrix(room.outputs[thread], 0, rows, size)
    values = matrix(room.values[thread], 0, rows, 1)
    for trunk in range(layers.trunks.shape[0]):
        sums = matrix(hidden[trunk, 0], 0, rows, layers.trunks[trunk, 0, OUTPUTS])
        sum_windows(layers, trunk, parameters, inputs.features, inputs.places, sums)
    forward_all(layers, parameters, inputs.accounts, hidden, outputs, values)
    _losses(minibatch, thread, start, outputs, values, gradient, room.sums[chunk])
    trunks, last = layers.trunks.shape[0], layers.trunks.shape[1] - 1
    seen = matrix(hidden[0, last], 0, rows, width)
    judged = matrix(hidden[trunks - 1, last], 0, rows, width)
    affine_gradient(layers.action, gradient, seen, outputs)
    affine_gradient(layers.value, gradient, judged, values)
    delta, turned = matrix(deltas[0], 0, rows, width), room.turned[thread]
    inputs_gradient(layers.action, parameters, outputs, turned, delta, True)
    if trunks == 2:
        backward(layers, 0, parameters, gradient, inputs, hidden, deltas, turned)
    inputs_gradient(layers.value, parameters, values, turned, delta, trunks == 2)
    backward(layers, trunks - 1, parameters, gradient, inputs, hidden, deltas, turned)
