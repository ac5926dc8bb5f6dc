"""PPO's steps on minibatches, compiled: gradient, clipping and Adam for a whole update in one call.

A minibatch is cut into chunks whose gradients are added in their order, so that the number of
threads changes no bit. Formulas: Adam of Kingma and Ba 2015, bias corrected. Start at `learn`.
"""

import math

import numba
import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import (
    compiled,
    compiled_apart,
    compiled_products_parallel,
    int64,
    stay_apart,
)
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.backpropagation import (
    BEGIN,
    END,
    PARAMETER,
    Coefficients,
    Minibatch,
    Rollout,
    Room,
    Scale,
    chunk_gradient,
)
from trade_pipeline.training.dense_layers import ONE, Layers, Learned
from trade_pipeline.training.inference import Float32Array

FIRST_DECAY, SECOND_DECAY = 0.9, 0.999  # Adam's


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
def _gather_block(block: IntArray, gradients: NDArray[np.float32], chunks: int) -> float:
    """Add a block of all chunks' gradients to the first one's; its sum of squares.

    Squares are summed in eight parts, which is fast and always the same.
    """
    gradient = gradients[0, block[BEGIN] : block[END]]
    for chunk in range(1, chunks):
        other = gradients[chunk, block[BEGIN] : block[END]]
        for k in range(gradient.shape[0]):
            gradient[k] += other[k]
    a = b = c = d = e = f = g = h = 0.0
    for k in range(0, gradient.shape[0], 8):
        a += float(gradient[k]) * float(gradient[k])
        b += float(gradient[k + 1]) * float(gradient[k + 1])
        c += float(gradient[k + 2]) * float(gradient[k + 2])
        d += float(gradient[k + 3]) * float(gradient[k + 3])
        e += float(gradient[k + 4]) * float(gradient[k + 4])
        f += float(gradient[k + 5]) * float(gradient[k + 5])
        g += float(gradient[k + 6]) * float(gradient[k + 6])
        h += float(gradient[k + 7]) * float(gradient[k + 7])
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@compiled
def _adam(
    learned: Learned,
    gradient: Float32Array,
    block: IntArray,
    shrink: float,
    chosen: Coefficients,
    step: int,
) -> None:
    """One step of a block of parameters; the gradient is replaced by what they change by."""
    rate = np.float32(chosen.learning_rate / (1.0 - FIRST_DECAY**step))
    correction = np.float32(1.0 / np.sqrt(1.0 - SECOND_DECAY**step))
    epsilon, factor = np.float32(chosen.epsilon), np.float32(shrink)
    first_decay, second_decay = np.float32(FIRST_DECAY), np.float32(SECOND_DECAY)
    start, end = block[BEGIN], block[END]
    slopes, parameters = gradient[start:end], learned.parameters[start:end]
    first, second = learned.first_moment[start:end], learned.second_moment[start:end]
    for k in range(parameters.shape[0]):
        slope = slopes[k] * factor
        first[k] += (ONE - first_decay) * (slope - first[k])
        second[k] = second_decay * second[k] + (ONE - second_decay) * slope * slope
        slopes[k] = rate * first[k] / (np.sqrt(second[k]) * correction + epsilon)
    # Apart: other threads have read the parameters, so processors take them back line by line,
    # which is ten times as fast with no other numbers written in between.
    for k in range(parameters.shape[0]):
        parameters[k] -= slopes[k]


@compiled
def _chunk_count(minibatch: Minibatch) -> int:
    rows = minibatch.room.places.shape[1]
    return int((minibatch.chosen.shape[0] + rows - 1) // rows)


@compiled_apart
def _chunks_of(minibatch: Minibatch, thread: int) -> None:
    """`chunk_gradient` for each chunk of a thread."""
    stay_apart()
    for chunk in range(thread, _chunk_count(minibatch), minibatch.room.places.shape[0]):
        chunk_gradient(minibatch, thread, chunk)


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
    """`_chunks_of` for each thread; numba hands threads no tuple of tuples."""
    for thread in numba.prange(room.places.shape[0]):
        minibatch = Minibatch(
            layers, parameters, rollout, chosen, scale, coefficients, room, log_ratios
        )
        _chunks_of(minibatch, int64(thread))


@compiled
def _minibatch_step(minibatch: Minibatch, learned: Learned, step: int) -> bool:
    """One step of Adam on some samples, unless the policy has moved too far already."""
    room, coefficients, log_ratios = minibatch.room, minibatch.coefficients, minibatch.log_ratios
    count, blocks = log_ratios.shape[0], room.blocks
    chunks = _chunk_count(minibatch)
    # Threads of numba's would change the number of torch's: none for one.
    if room.places.shape[0] == 1:
        _chunks_of(minibatch, int64(0))
    else:
        _chunks_on_threads(*minibatch)
    for block in range(blocks.shape[0]):
        room.squares[block] = _gather_block(blocks[block], room.gradients, chunks)
    for chunk in range(1, chunks):
        for column in range(room.sums.shape[1]):
            room.sums[0, column] += room.sums[chunk, column]
    divergence = 0.0
    for row in range(count):
        divergence += np.exp(log_ratios[row]) - 1.0 - log_ratios[row]
    if divergence / count > coefficients.most_divergence:
        return False
    norms = room.norms
    norms[:] = 0.0
    total = 0.0
    for block in range(blocks.shape[0]):
        norms[blocks[block, PARAMETER]] += room.squares[block]
        total += room.squares[block]
    for k in range(norms.shape[0]):
        norms[k] = math.sqrt(norms[k])
    # As torch.nn.utils.clip_grad_norm_ has it.
    shrink = min(coefficients.most_norm / (np.sqrt(total) + 1e-6), 1.0)
    for block in range(blocks.shape[0]):
        _adam(learned, room.gradients[0], blocks[block], shrink, coefficients, step)
    return True


@compiled
def learn(
    layers: Layers,
    learned: Learned,
    rollout: Rollout,
    orders: NDArray[np.int64],
    batch: int,
    coefficients: Coefficients,
    room: Room,
    log_ratios: Float32Array,
    losses: NDArray[np.float64],
) -> int:
    """A step of Adam on each minibatch of each epoch, until the policy has moved too far.

    Args:
        layers: where parameters are.
        learned: changed in place.
        rollout: all samples.
        orders: int64 [epochs, n], rows of `rollout`, a minibatch after the other.
        batch: samples of each minibatch of an epoch but perhaps the last.
        coefficients: settings.
        room: with threads for as many as it has; `norms` are the last step's.
        log_ratios: float32 [n], log probabilities now less those then, of the last epoch's samples.
        losses: float64 [epochs, minibatches, 3], filled with means over each one's samples.

    Returns:
        How many steps were taken.
    """
    count, taken = orders.shape[1], 0
    for epoch in range(orders.shape[0]):
        for start in range(0, count, batch):
            end = min(start + batch, count)
            chosen = orders[epoch, start:end]
            minibatch = Minibatch(
                layers,
                learned.parameters,
                rollout,
                chosen,
                _scale(rollout.advantages, chosen, coefficients.normalize_advantages),
                coefficients,
                room,
                log_ratios[start:end],
            )
            goes_on = _minibatch_step(minibatch, learned, coefficients.step + taken)
            for column in range(losses.shape[2]):
                losses[epoch, start // batch, column] = room.sums[0, column] / (end - start)
            if not goes_on:
                return taken
            taken += 1
    return taken
