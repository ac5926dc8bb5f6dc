"""Dense layers, compiled: what they give, and how what follows them changes their parameters.

Knows no loss. Start at `forward` and `backward`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled, compiled_products
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.inference import Float32Array
from trade_pipeline.training.products import add_product

# Columns of a layer: sizes, and where weights [inputs, outputs] and biases begin.
INPUTS, OUTPUTS, WEIGHTS, BIASES = range(4)
ZERO, ONE, TWO = np.float32(0.0), np.float32(1.0), np.float32(2.0)
TANH_LIMIT, EIGHTH = np.float32(9.0), np.float32(0.125)  # beyond the limit the tangent is 1
ABOVE_2, ABOVE_4 = np.float32(1 / 9), np.float32(1 / 945)
BELOW_2, BELOW_4 = np.float32(4 / 9), np.float32(1 / 63)


class Layers(NamedTuple):
    """A policy's layers in its flat array of parameters.

    Attributes:
        trunks: int64 [T, S, 4], columns above; one trunk for both heads, or one for each.
        account: how many of a first layer's inputs are the account's, behind those of the window.
        action: int64 [4], the last map of the policy; likewise value.
        value: as action.
        counts: int64 [parts], options of each choice; empty: a Gaussian for each output.
        deviations: where the logarithms of its standard deviations begin, -1 with choices.
        bounds: int64, where each parameter begins, filled up with zeros, and the end.
        relu: whether layers end in max(x, 0) instead of tanh.
    """

    trunks: IntArray
    account: int
    action: IntArray
    value: IntArray
    counts: IntArray
    deviations: int
    bounds: IntArray
    relu: bool


class Inputs(NamedTuple):
    """What first layers are applied to: of each of n samples a window of features and an account.

    Windows overlap, so they are read where they are and never put beside one another.

    Attributes:
        features: float32, flat.
        places: int64 [n], where windows begin in `features`.
        accounts: float32 [n, A], scaled.
    """

    features: Float32Array
    places: IntArray
    accounts: NDArray[np.float32]


class Learned(NamedTuple):
    """What a step changes, float32 [P] each: parameters and Adam's two moments."""

    parameters: Float32Array
    first_moment: Float32Array
    second_moment: Float32Array


@compiled
def tanh(x: np.float32) -> np.float32:
    """Hyperbolic tangent in float32, within 5e-7 of itself: of an eighth by a fraction, doubled.

    The fraction is Pade's of order [5/4].
    """
    y = min(max(x, -TANH_LIMIT), TANH_LIMIT) * EIGHTH
    square = y * y
    above = y * (ONE + square * (ABOVE_2 + square * ABOVE_4))
    below = ONE + square * (BELOW_2 + square * BELOW_4)
    above, below = TWO * above * below, above * above + below * below
    above, below = TWO * above * below, above * above + below * below
    # Rounding may pass 1, where the slope would change its sign.
    return min(max(TWO * above * below / (above * above + below * below), -ONE), ONE)


@compiled_products
def matrix(flat: Float32Array, start: int, rows: int, columns: int) -> Float32Array:
    """A part of a flat array as a matrix."""
    return flat[start : start + rows * columns].reshape(rows, columns)


@compiled_products
def begin_sums(layer: IntArray, parameters: Float32Array, target: Float32Array) -> None:
    """A layer's biases into each row of `target` [B, outputs]."""
    size = layer[OUTPUTS]
    biases = parameters[layer[BIASES] : layer[BIASES] + size]
    for row in range(target.shape[0]):
        for j in range(size):
            target[row, j] = biases[j]


@compiled_products
def affine(
    layer: IntArray, parameters: Float32Array, features: Float32Array, target: Float32Array
) -> None:
    """What a layer makes of features [B, inputs], into `target` [B, outputs]."""
    inputs, size = layer[INPUTS], layer[OUTPUTS]
    begin_sums(layer, parameters, target)
    weights = parameters[layer[WEIGHTS] : layer[WEIGHTS] + inputs * size]
    rows = target.shape[0]
    add_product(features, inputs, 1, weights, size, target, size, rows, size, inputs, False)


@compiled_products
def sum_windows(
    layers: Layers,
    trunk: int,
    parameters: Float32Array,
    features: Float32Array,
    places: IntArray,
    target: Float32Array,
) -> None:
    """What a first layer makes of windows, without accounts, into `target` [n, outputs].

    Args:
        layers: of the policy.
        trunk: whose first layer.
        parameters: of the policy.
        features: as in `Inputs`, likewise `places`.
        places: int64 [n].
        target: [n, outputs].
    """
    layer, rows = layers.trunks[trunk, 0], target.shape[0]
    length, size = layer[INPUTS] - layers.account, layer[OUTPUTS]
    begin_sums(layer, parameters, target)
    weights = parameters[layer[WEIGHTS] : layer[WEIGHTS] + length * size]
    add_product(features, places, 1, weights, size, target, size, rows, size, length, False)


@compiled_products
def add_accounts(
    layer: IntArray,
    parameters: Float32Array,
    accounts: NDArray[np.float32],
    target: Float32Array,
) -> None:
    """What a first layer makes of accounts [n, A], added to what `sum_windows` left."""
    (rows, count), size = accounts.shape, layer[OUTPUTS]
    end = layer[WEIGHTS] + layer[INPUTS] * size
    weights = parameters[end - count * size : end]
    add_product(accounts, count, 1, weights, size, target, size, rows, size, count, False)


@compiled_products
def bias_gradient(layer: IntArray, gradient: Float32Array, delta: Float32Array) -> None:
    """Of a map whose outputs change the loss by `delta` [rows, outputs]."""
    rows, size = delta.shape
    biases = gradient[layer[BIASES] : layer[BIASES] + size]
    for j in range(size):
        biases[j] = ZERO
    for row in range(rows):
        for j in range(size):
            biases[j] += delta[row, j]


@compiled_products
def affine_gradient(
    layer: IntArray, gradient: Float32Array, features: Float32Array, delta: Float32Array
) -> None:
    """Of a map whose outputs change the loss by `delta` [rows, outputs]."""
    inputs, size, rows = layer[INPUTS], layer[OUTPUTS], delta.shape[0]
    weights = gradient[layer[WEIGHTS] : layer[WEIGHTS] + inputs * size]
    if size == 1:  # across its inputs, so that vectors are full; the same sums
        add_product(delta, 1, 1, features, inputs, weights, inputs, 1, inputs, rows, True)
    else:
        add_product(features, 1, inputs, delta, size, weights, size, inputs, size, rows, True)
    bias_gradient(layer, gradient, delta)


@compiled_products
def first_gradient(
    layer: IntArray, gradient: Float32Array, inputs: Inputs, delta: Float32Array
) -> None:
    """`affine_gradient` of a first layer."""
    (rows, size), count = delta.shape, inputs.accounts.shape[1]
    length = layer[INPUTS] - count
    end = layer[WEIGHTS] + layer[INPUTS] * size
    windows, accounts = gradient[layer[WEIGHTS] : end], gradient[end - count * size : end]
    places = inputs.places
    add_product(inputs.features, 1, places, delta, size, windows, size, length, size, rows, True)
    add_product(inputs.accounts, 1, count, delta, size, accounts, size, count, size, rows, True)
    bias_gradient(layer, gradient, delta)


@compiled_products
def inputs_gradient(
    layer: IntArray,
    parameters: Float32Array,
    delta: Float32Array,
    turned: Float32Array,
    target: Float32Array,
    anew: bool,
) -> None:
    """What inputs [rows, inputs] of a map change the loss by, added to `target`.

    Args:
        layer: of the map.
        parameters: of the policy.
        delta: [rows, outputs], what its outputs change the loss by.
        turned: room for the map's weights.
        target: [rows, inputs].
        anew: whether it is filled instead of added to.
    """
    inputs, size, rows = layer[INPUTS], layer[OUTPUTS], delta.shape[0]
    weights = parameters[layer[WEIGHTS] : layer[WEIGHTS] + inputs * size]
    for k in range(inputs):
        for j in range(size):
            turned[j * inputs + k] = weights[k * size + j]
    add_product(delta, size, 1, turned, inputs, target, inputs, rows, inputs, size, anew)


@compiled_products
def forward(
    layers: Layers,
    trunk: int,
    parameters: Float32Array,
    accounts: NDArray[np.float32],
    hidden: Float32Array,
) -> None:
    """Hidden values of each layer of a trunk; the first one holds what `sum_windows` gave."""
    source, rows = accounts, accounts.shape[0]
    for s in range(layers.trunks.shape[1]):
        layer = layers.trunks[trunk, s]
        size = layer[OUTPUTS]
        target = matrix(hidden[trunk, s], 0, rows, size)
        if s == 0:
            add_accounts(layer, parameters, accounts, target)
        else:
            affine(layer, parameters, source, target)
        flat = hidden[trunk, s, : rows * size]
        if layers.relu:
            for k in range(rows * size):
                flat[k] = max(flat[k], ZERO)
        else:
            for k in range(rows * size):
                flat[k] = tanh(flat[k])
        source = target


@compiled_products
def forward_all(
    layers: Layers,
    parameters: Float32Array,
    accounts: NDArray[np.float32],
    hidden: Float32Array,
    outputs: Float32Array,
    values: Float32Array,
) -> None:
    """`forward` of all trunks, and what both heads make of the last hidden values."""
    rows, trunks, last = accounts.shape[0], layers.trunks.shape[0], layers.trunks.shape[1] - 1
    for trunk in range(trunks):
        forward(layers, trunk, parameters, accounts, hidden)
    width = layers.action[INPUTS]
    affine(layers.action, parameters, matrix(hidden[0, last], 0, rows, width), outputs)
    affine(layers.value, parameters, matrix(hidden[trunks - 1, last], 0, rows, width), values)


@compiled_products
def backward(
    layers: Layers,
    trunk: int,
    parameters: Float32Array,
    gradient: Float32Array,
    inputs: Inputs,
    hidden: Float32Array,
    deltas: Float32Array,
    turned: Float32Array,
) -> None:
    """Gradients of a trunk whose last hidden values change the loss by what lies in `deltas[0]`."""
    rows, last = inputs.accounts.shape[0], layers.trunks.shape[1] - 1
    for back in range(last + 1):
        s = last - back
        layer = layers.trunks[trunk, s]
        size = layer[OUTPUTS]
        changes = deltas[back % 2, : rows * size]
        values = hidden[trunk, s, : rows * size]
        if layers.relu:
            for k in range(rows * size):
                changes[k] = changes[k] if values[k] > ZERO else ZERO
        else:
            for k in range(rows * size):
                changes[k] *= ONE - values[k] * values[k]
        delta = changes.reshape(rows, size)
        if s == 0:
            first_gradient(layer, gradient, inputs, delta)
        else:
            before = layer[INPUTS]
            affine_gradient(layer, gradient, matrix(hidden[trunk, s - 1], 0, rows, before), delta)
            following = matrix(deltas[(back + 1) % 2], 0, rows, before)
            inputs_gradient(layer, parameters, delta, turned, following, True)
