"""Dense layers, compiled: what they give, and how what follows them changes their parameters.

Matrix products are the libraries' (BLAS), everything around them is here. Knows no loss. Start at
`forward` and `backward`.
"""

from typing import NamedTuple

import numpy as np

from trade_pipeline.simulator.compiled import compiled_products
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.inference import Float32Array, tanh

# Columns of a layer: sizes, and where weights [outputs, inputs] and biases begin.
INPUTS, OUTPUTS, WEIGHTS, BIASES = range(4)
ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Layers(NamedTuple):
    """A policy's layers in its flat array of parameters.

    Attributes:
        trunks: int64 [T, S, 4], columns above; one trunk for both heads, or one for each.
        action: int64 [4], the last map of the policy; likewise value.
        value: as action.
        counts: int64 [parts], options of each choice; empty: a Gaussian for each output.
        deviations: where the logarithms of its standard deviations begin, -1 with choices.
        bounds: int64, where each parameter begins, filled up with zeros, and the end.
        relu: whether layers end in max(x, 0) instead of tanh.
    """

    trunks: IntArray
    action: IntArray
    value: IntArray
    counts: IntArray
    deviations: int
    bounds: IntArray
    relu: bool


@compiled_products
def matrix(flat: Float32Array, start: int, rows: int, columns: int) -> Float32Array:
    """A part of a flat array as a matrix."""
    return flat[start : start + rows * columns].reshape(rows, columns)


@compiled_products
def affine(
    layer: IntArray, parameters: Float32Array, features: Float32Array, target: Float32Array
) -> None:
    """What a layer makes of features [B, inputs], into `target` [B, outputs]."""
    size = layer[OUTPUTS]
    np.dot(features, matrix(parameters, layer[WEIGHTS], size, layer[INPUTS]).T, target)
    for row in range(target.shape[0]):
        for j in range(size):
            target[row, j] += parameters[layer[BIASES] + j]


@compiled_products
def affine_gradient(
    layer: IntArray, gradient: Float32Array, features: Float32Array, delta: Float32Array
) -> None:
    """Of a map whose outputs change the loss by `delta` [rows, outputs]."""
    size = layer[OUTPUTS]
    target = matrix(gradient, layer[WEIGHTS], size, layer[INPUTS])
    np.dot(delta.T, features, target)
    biases = gradient[layer[BIASES] : layer[BIASES] + size]
    for j in range(size):
        biases[j] = ZERO
    for row in range(delta.shape[0]):
        for j in range(size):
            biases[j] += delta[row, j]


@compiled_products
def forward(
    layers: Layers, trunk: int, parameters: Float32Array, inputs: Float32Array, hidden: Float32Array
) -> None:
    """Hidden values of each layer of a trunk."""
    source, rows = inputs, inputs.shape[0]
    for s in range(layers.trunks.shape[1]):
        layer = layers.trunks[trunk, s]
        size = layer[OUTPUTS]
        target = matrix(hidden[trunk, s], 0, rows, size)
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
def backward(
    layers: Layers,
    trunk: int,
    parameters: Float32Array,
    gradient: Float32Array,
    inputs: Float32Array,
    hidden: Float32Array,
    deltas: Float32Array,
) -> None:
    """Gradients of a trunk whose last hidden values change the loss by what lies in `deltas[0]`."""
    rows, last = inputs.shape[0], layers.trunks.shape[1] - 1
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
            affine_gradient(layer, gradient, inputs, delta)
        else:
            before = layer[INPUTS]
            affine_gradient(layer, gradient, matrix(hidden[trunk, s - 1], 0, rows, before), delta)
            weights = matrix(parameters, layer[WEIGHTS], size, before)
            np.dot(delta, weights, matrix(deltas[(back + 1) % 2], 0, rows, before))
