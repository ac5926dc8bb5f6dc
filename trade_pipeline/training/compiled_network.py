"""A network of fixed weights, ready for compiled code.

Turns weights under the names of `networks.PolicyNetwork` into a `Plan`; knows nothing of torch,
bundles or actions. Start at `CompiledNetwork`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trade_pipeline.simulator.market import FloatArray, IntArray
from trade_pipeline.training.inference import (
    ACCOUNT,
    ACTIVATIONS,
    GATES,
    INPUTS,
    LINEAR,
    MEMORY,
    NOTHING,
    OUTPUTS,
    POSITIONS,
    STRIDE,
    Float32Array,
    Plan,
    forward_all,
)


def weight_shapes(network: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of a network, as `networks.PolicyNetwork` has them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, *kernel: int) -> int:
        shapes[f"{name}.weight"] = (outputs, inputs, *kernel)
        shapes[f"{name}.bias"] = (outputs,)
        return outputs

    length, features = network["window"], network["columns"]
    if network["kind"] == "cnn":
        for stage, channels in enumerate(network["channels"]):
            kernel = network["kernel"]
            features = linear(f"trunk.convolution.{2 * stage}", features, channels, kernel)
            length -= kernel - 1
    inputs = length * features + len(network["account_scale"])
    for stage, size in enumerate(network["hidden"]):
        inputs = linear(f"trunk.layers.{2 * stage}", inputs, size)
    if network["kind"] == "lstm":
        size = network["size"]
        for name, seen in (("ih", inputs), ("hh", size)):
            shapes[f"lstm.weight_{name}_l0"] = (4 * size, seen)
            shapes[f"lstm.bias_{name}_l0"] = (4 * size,)
        inputs = size
    linear("action", inputs, network["outputs"])
    return shapes


class CompiledNetwork:
    """A network of fixed weights: outputs of E observations at once, each as if it were alone.

    Args:
        network: the `network` part of a specification.
        weights: float32 arrays of `weight_shapes`.
        account_mean: float64 [A], subtracted from the account vector; None leaves it as it is.
        account_deviation: float64 [A], divides what is left.
        account_clip: bounds the quotient.

    Attributes:
        plan: the same for compiled code.
        inputs: W * C numbers of a window.
        account_inputs: A.
        outputs: L.
        memory_size: numbers that are remembered from one observation to the next.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        weights: Mapping[str, Float32Array],
        account_mean: FloatArray | None = None,
        account_deviation: FloatArray | None = None,
        account_clip: float = np.inf,
    ) -> None:
        scale = np.array(network["account_scale"], np.float32)
        self.inputs = int(network["window"] * network["columns"])
        self.account_inputs, self.outputs = len(scale), int(network["outputs"])
        self.memory_size = 2 * int(network["size"]) if network["kind"] == "lstm" else 0
        stages, blocks = _stages(network, weights)
        self.plan = Plan(
            stages,
            np.concatenate([block.reshape(-1) for block in blocks]).astype(np.float32),
            np.zeros(len(scale)) if account_mean is None else np.array(account_mean, np.float64),
            np.ones(len(scale))
            if account_deviation is None
            else np.array(account_deviation, np.float64),
            float(account_clip),
            scale,
        )
        self._largest = _largest_buffer(stages)

    def room(self) -> Float32Array:
        """Room to work in, for one thread."""
        return np.zeros((2, self._largest), np.float32)

    def memory(self, count: int) -> Float32Array:
        """The memory before the first of a sequence, float32 [count, memory_size]."""
        return np.zeros((count, self.memory_size), np.float32)

    def forward(
        self, window: Float32Array, account: Float32Array, memory: Float32Array
    ) -> Float32Array:
        """Outputs of E observations.

        Args:
            window: float32 [E, W * C], scaled features bar by bar.
            account: float32 [E, A].
            memory: float32 [E, memory_size], changed in place.

        Returns:
            float32 [E, L].

        Raises:
            ValueError: a shape or dtype does not fit.
        """
        count = len(window)
        for name, array, columns in (
            ("window", window, self.inputs),
            ("account", account, self.account_inputs),
            ("memory", memory, self.memory_size),
        ):
            if array.shape != (count, columns) or array.dtype != np.float32:
                raise ValueError(
                    f"{name} is {array.dtype} {list(array.shape)}; "
                    f"float32 {[count, columns]} is expected"
                )
        if not memory.flags.c_contiguous:
            raise ValueError("memory is changed in place; give an array in C order")
        outputs = np.empty((count, self.outputs), np.float32)
        forward_all(
            self.plan,
            np.ascontiguousarray(window),
            np.ascontiguousarray(account),
            memory,
            self.room(),
            outputs,
        )
        return outputs


def _largest_buffer(stages: IntArray) -> int:
    """Most numbers that go into or come out of one stage."""
    into = (stages[:, POSITIONS] - 1) * stages[:, STRIDE] + stages[:, INPUTS]
    return int(max(into.max(), (stages[:, POSITIONS] * stages[:, OUTPUTS]).max()))


def _stages(
    network: Mapping[str, Any], weights: Mapping[str, Float32Array]
) -> tuple[IntArray, list[Float32Array]]:
    """Rows of `Plan.stages`, and weights and bias of each, transposed."""
    rows: list[list[int]] = []
    blocks: list[Float32Array] = []
    activation = ACTIVATIONS[network["activation"]]

    def add(
        weight: Float32Array,
        bias: Float32Array,
        positions: int,
        stride: int,
        joined: int,
        then: int,
    ) -> None:
        offset = sum(block.size for block in blocks)
        inputs, outputs = weight.shape
        rows.append([inputs, outputs, positions, stride, joined, then, offset])
        blocks.extend((np.ascontiguousarray(weight), bias))

    length, features = network["window"], network["columns"]
    if network["kind"] == "cnn":
        for stage in range(len(network["channels"])):
            name = f"trunk.convolution.{2 * stage}"
            weight = weights[f"{name}.weight"]  # [out, in, kernel]; bar by bar: [kernel, in, out]
            count, _, kernel = weight.shape
            length -= kernel - 1
            moved = weight.transpose(2, 1, 0).reshape(-1, count)
            add(moved, weights[f"{name}.bias"], length, features, NOTHING, activation)
            features = count
    for stage in range(len(network["hidden"])):
        name = f"trunk.layers.{2 * stage}"
        weight = weights[f"{name}.weight"].T
        if stage == 0 and network["kind"] == "cnn":
            # Convolutions come out bar by bar here, channel by channel in the weights.
            seen = length * features
            moved = weight[:seen].reshape(features, length, -1).transpose(1, 0, 2).reshape(seen, -1)
            weight = np.concatenate([moved, weight[seen:]])
        joined = ACCOUNT if stage == 0 else NOTHING
        add(weight, weights[f"{name}.bias"], 1, 0, joined, activation)
    if network["kind"] == "lstm":
        both = [weights[f"lstm.weight_{name}_l0"].T for name in ("ih", "hh")]
        bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
        add(np.concatenate(both), bias, 1, 0, MEMORY, GATES)
    add(weights["action.weight"].T, weights["action.bias"], 1, 0, NOTHING, LINEAR)
    return np.array(rows, np.int64), blocks
