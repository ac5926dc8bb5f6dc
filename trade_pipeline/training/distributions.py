"""Distributions of actions, compiled: what is drawn, log probabilities and their gradients.

Choices are independent categorical distributions whose logits follow one another; numbers are
Gaussians with a deviation each. Choices lie an option a row, samples side by side, so that vector
instructions take many at once; functions of our own instead of a library's become such instructions
too, and are the same on every processor. Knows no network and no loss.
"""

import math

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled, compiled_apart, stay_apart
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.inference import Float32Array

HALF_LOG_2_PI = 0.5 * np.log(2.0 * np.pi)

Options = NDArray[np.float32]  # [L, n], an option a row
Samples = NDArray[np.float32]  # [n, parts]
PerSample = NDArray[np.float64]  # [n]


@compiled
def exponential(x: float) -> float:
    """E to the power of a number up to 0, within 1e-8 of itself from -20 on, and 0 from -80 on.

    The power of a 256th by Taylor's series, squared eight times.
    """
    y = max(x, -80.0) * (1.0 / 256.0)
    power = 1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0))
    power = 1.0 + y * (1.0 + y * (1.0 / 2.0 + y * (1.0 / 6.0 + y * power)))
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    power *= power
    return power * power


@compiled
def ratio_of(log_ratio: float) -> float:
    """E to the power of any number, as exact as `exponential`; at most e to the 80th."""
    power = exponential(-abs(log_ratio))
    return 1.0 / power if log_ratio > 0.0 else power


@compiled
def logarithm(x: float) -> float:
    """Of a number from 1 to 100, within 1e-9.

    Of its eighth root, by the series of the inverse hyperbolic tangent.
    """
    root = math.sqrt(math.sqrt(math.sqrt(x)))
    y = (root - 1.0) / (root + 1.0)
    square = y * y
    series = 1.0 / 13.0 + square * (1.0 / 15.0 + square * (1.0 / 17.0))
    series = 1.0 / 7.0 + square * (1.0 / 9.0 + square * (1.0 / 11.0 + square * series))
    series = 1.0 + square * (1.0 / 3.0 + square * (1.0 / 5.0 + square * series))
    return 16.0 * y * series


@compiled_apart
def softmax_of_choices(
    counts: IntArray, outputs: Samples, log_shares: Options, shares: Options, totals: PerSample
) -> None:
    """Probabilities of options and their logarithms.

    Args:
        counts: int64 [parts], options of each choice, L together.
        outputs: float32 [n, L], logits.
        log_shares: float32 [L, n], filled.
        shares: float32 [L, n], filled.
        totals: float64 [n], room.
    """
    stay_apart()
    samples, start = outputs.shape[0], 0
    for k in range(samples):
        for j in range(outputs.shape[1]):
            log_shares[j, k] = outputs[k, j]
    for part in range(counts.shape[0]):
        end = start + counts[part]
        largest = shares[start]
        for k in range(samples):
            largest[k] = log_shares[start, k]
        for j in range(start + 1, end):
            for k in range(samples):
                largest[k] = max(largest[k], log_shares[j, k])
        for j in range(start, end):
            for k in range(samples):
                log_shares[j, k] -= largest[k]
        for k in range(samples):
            totals[k] = 0.0
        for j in range(start, end):
            for k in range(samples):
                share = exponential(log_shares[j, k])
                shares[j, k] = share
                totals[k] += share
        for j in range(start, end):
            for k in range(samples):
                shares[j, k] /= totals[k]
        for k in range(samples):
            totals[k] = logarithm(totals[k])
        for j in range(start, end):
            for k in range(samples):
                log_shares[j, k] -= totals[k]
        start = end


@compiled_apart
def draw_choices(
    counts: IntArray, shares: Options, drawn: Samples, actions: Samples, upto: PerSample
) -> None:
    """Of each part the option in whose share a number in [0, 1) falls; `upto` [n] is room."""
    stay_apart()
    start = 0
    for part in range(counts.shape[0]):
        end = start + counts[part]
        for k in range(upto.shape[0]):
            upto[k] = 0.0
            actions[k, part] = 0.0
        for j in range(start, end - 1):
            for k in range(upto.shape[0]):
                upto[k] += shares[j, k]
                actions[k, part] += 1.0 if drawn[k, part] >= upto[k] else 0.0
        start = end


@compiled_apart
def log_probs_of_choices(
    counts: IntArray, log_shares: Options, actions: Samples, log_probs: PerSample
) -> None:
    """Log probabilities [n] of samples' choices."""
    stay_apart()
    for k in range(log_probs.shape[0]):
        log_probs[k] = 0.0
    start = 0
    for part in range(counts.shape[0]):
        for k in range(log_probs.shape[0]):
            log_probs[k] += log_shares[start + int(actions[k, part]), k]
        start += counts[part]


@compiled_apart
def choices_gradient(
    counts: IntArray,
    log_shares: Options,
    shares: Options,
    actions: Samples,
    by_log_prob: PerSample,
    by_entropy: float,
    outputs: Samples,
    entropies: PerSample,
    own: PerSample,
) -> None:
    """What logits change the loss by, in place of them.

    Args:
        counts: as in `softmax_of_choices`, likewise `log_shares` and `shares`.
        log_shares: as it left them.
        shares: likewise.
        actions: float32 [n, parts], choices.
        by_log_prob: float64 [n], what log probabilities change the loss by.
        by_entropy: what a sample's entropy changes it by.
        outputs: float32 [n, L], filled.
        entropies: float64 [n], filled.
        own: float64 [n], room.
    """
    stay_apart()
    for k in range(entropies.shape[0]):
        entropies[k] = 0.0
    start = 0
    for part in range(counts.shape[0]):
        end = start + counts[part]
        for k in range(own.shape[0]):
            own[k] = 0.0
        for j in range(start, end):
            for k in range(own.shape[0]):
                own[k] -= float(shares[j, k]) * log_shares[j, k]
        for j in range(start, end):
            for k in range(own.shape[0]):
                share = float(shares[j, k])
                taken = 1.0 if actions[k, part] == j - start else 0.0
                outputs[k, j] = by_log_prob[k] * (taken - share) - by_entropy * share * (
                    log_shares[j, k] + own[k]
                )
        for k in range(own.shape[0]):
            entropies[k] += own[k]
        start = end


@compiled_apart
def log_probs_of_numbers(
    log_deviations: Float32Array, outputs: Samples, actions: Samples, log_probs: PerSample
) -> None:
    """Log probabilities [n] of samples' numbers, each from its own Gaussian around an output."""
    stay_apart()
    for k in range(log_probs.shape[0]):
        log_probs[k] = 0.0
    for j in range(outputs.shape[1]):
        inverse = np.exp(-float(log_deviations[j]))
        for k in range(log_probs.shape[0]):
            scaled = float(actions[k, j] - outputs[k, j]) * inverse
            log_probs[k] -= 0.5 * scaled * scaled + log_deviations[j] + HALF_LOG_2_PI


@compiled_apart
def numbers_gradient(
    log_deviations: Float32Array,
    outputs: Samples,
    actions: Samples,
    by_log_prob: PerSample,
    by_entropy: float,
    gradient: Float32Array,
) -> float:
    """Entropy of each sample; outputs are replaced by what they change the loss by.

    Likewise `gradient` [L] for the logarithms of deviations.
    """
    stay_apart()
    entropy = 0.0
    for j in range(outputs.shape[1]):
        entropy += 0.5 + HALF_LOG_2_PI + log_deviations[j]
        inverse = np.exp(-float(log_deviations[j]))
        total = 0.0
        for k in range(outputs.shape[0]):
            scaled = float(actions[k, j] - outputs[k, j]) * inverse
            total += by_log_prob[k] * (scaled * scaled - 1.0) + by_entropy
            outputs[k, j] = by_log_prob[k] * scaled * inverse
        gradient[j] = total
    return entropy
