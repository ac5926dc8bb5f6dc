"""Distributions of actions, compiled: what is drawn, log probabilities and their gradients.

Choices are independent categorical distributions whose logits follow one another; numbers are
Gaussians with a deviation each. Knows no network and no loss.
"""

import numpy as np

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.inference import Float32Array

HALF_LOG_2_PI = 0.5 * np.log(2.0 * np.pi)


@compiled
def exponential(x: float) -> float:
    """E to the power of a number up to 0, within 1e-8 of itself from -20 on, and 0 from -80 on.

    The power of a 256th by Taylor's series, squared eight times: unlike a library's function, it
    becomes vector instructions, and is the same on every processor.
    """
    y = max(x, -80.0) * (1.0 / 256.0)
    power = 1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0))
    power = 1.0 + y * (1.0 + y * (1.0 / 2.0 + y * (1.0 / 6.0 + y * power)))
    for _ in range(8):
        power *= power
    return power


@compiled
def softmax_of_choices(counts: IntArray, outputs: Float32Array, shares: Float32Array) -> None:
    """Logits of samples, one after the other, become log probabilities.

    Args:
        counts: int64 [parts], options of each choice, L together.
        outputs: float32 [rows * L], logits.
        shares: float32 [rows * L], filled with the probability of each option.
    """
    start = 0
    while start < outputs.shape[0]:
        for part in range(counts.shape[0]):
            end = start + counts[part]
            largest = outputs[start]
            for j in range(start, end):
                largest = max(largest, outputs[j])
            for j in range(start, end):
                outputs[j] -= largest
            start = end
    for k in range(outputs.shape[0]):
        shares[k] = exponential(outputs[k])
    start = 0
    while start < outputs.shape[0]:
        for part in range(counts.shape[0]):
            end = start + counts[part]
            total = 0.0
            for j in range(start, end):
                total += shares[j]
            inverse, log_total = 1.0 / total, np.log(total)
            for j in range(start, end):
                shares[j] *= inverse
                outputs[j] -= log_total
            start = end


@compiled
def draw_choices(
    counts: IntArray, shares: Float32Array, drawn: Float32Array, actions: Float32Array
) -> None:
    """Choices of one sample: of each part the option in whose share a number in [0, 1) falls."""
    start = 0
    for part in range(counts.shape[0]):
        chosen, upto = 0, shares[start]
        while chosen < counts[part] - 1 and drawn[part] >= upto:
            chosen += 1
            upto += shares[start + chosen]
        actions[part] = chosen
        start += counts[part]


@compiled
def log_prob_of_choices(counts: IntArray, log_shares: Float32Array, actions: Float32Array) -> float:
    """Of one sample's choices, whose options have these log probabilities [L]."""
    log_prob, start = 0.0, 0
    for part in range(counts.shape[0]):
        log_prob += log_shares[start + int(actions[part])]
        start += counts[part]
    return log_prob


@compiled
def choices_gradient(
    counts: IntArray,
    outputs: Float32Array,
    actions: Float32Array,
    shares: Float32Array,
    by_log_prob: float,
    by_entropy: float,
) -> float:
    """Entropy; log probabilities are replaced by what their logits change the loss by.

    `outputs` [L] and `shares` [L] as `softmax_of_choices` left them.
    """
    entropy, start = 0.0, 0
    for part in range(counts.shape[0]):
        end = start + counts[part]
        here = 0.0
        for j in range(start, end):
            here -= float(shares[j]) * outputs[j]
        chosen = start + int(actions[part])
        for j in range(start, end):
            share = float(shares[j])
            taken = 1.0 if j == chosen else 0.0
            outputs[j] = by_log_prob * (taken - share) - by_entropy * share * (outputs[j] + here)
        entropy += here
        start = end
    return entropy


@compiled
def log_prob_of_numbers(
    log_deviations: Float32Array, outputs: Float32Array, actions: Float32Array
) -> float:
    """Of one sample's numbers, each from its own Gaussian around an output."""
    log_prob = 0.0
    for j in range(outputs.shape[0]):
        scaled = float(actions[j] - outputs[j]) * np.exp(-float(log_deviations[j]))
        log_prob -= 0.5 * scaled * scaled + log_deviations[j] + HALF_LOG_2_PI
    return log_prob


@compiled
def numbers_gradient(
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
