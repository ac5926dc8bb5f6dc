"""A policy's network as an ONNX graph, for use elsewhere; nothing here reads it again.

Written operator by operator from the weights, without torch: the graph is small, and the same
policy gives the same file. Start at `write_onnx`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.policy import WEIGHTS, Normalizer, PolicyRunner

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

# Old enough for runtimes of 2022 on; every operator that is used has meant the same since.
OPERATORS, FORMAT = 17, 8
_ACTIVATIONS = {"tanh": "Tanh", "relu": "Relu"}


class OnnxExportError(StorageError):
    """A policy cannot be exported; the message says what is missing."""


def write_onnx(location: ArtifactLocation, version: str, target: Path) -> None:
    """Write the network of a policy bundle as an ONNX graph.

    Inputs: `window` float32 [1, W * C] of scaled features bar by bar and `account` float32 [1, A];
    with a memory also `hidden` and `cell`, float32 [1, 1, size], zeros at first. Outputs:
    `outputs` float32 [1, L]; with a memory `new_hidden` and `new_cell`. The file's metadata says
    as JSON how features are scaled and how outputs become an action: with `scaling`'s `ranks`, as
    scaling `rank` has them, feature f of instrument n is first
    `np.interp(feature, ranks["knots"][n][f], ranks["scores"][n][f])`; each then becomes
    `(feature - mean[n][f]) / std[n][f]`.

    Args:
        location: folder of the bundle's version.
        version: of the bundle, for the metadata.
        target: file to write.

    Raises:
        OnnxExportError: the package onnx is not installed.
        StorageError: the bundle does not verify.
    """
    try:
        import onnx
    except ImportError as error:
        raise OnnxExportError(
            "export to ONNX needs the package onnx; install it with "
            "pip install 'trade_pipeline[onnx]'."
        ) from error
    runner = PolicyRunner.load(location)
    weights = safetensors.numpy.load_file(location.path / WEIGHTS)
    specification = runner.specification
    graph = _Graph(specification["network"], weights, runner.normalizer)
    model = graph.model()
    statistics = runner.normalizer.document()
    scaling = {name: value for name, value in statistics.items() if name != "account"}
    onnx.helper.set_model_props(
        model,
        {
            "version": version,
            "observation": json.dumps(specification["observation"]),
            "action": json.dumps(specification["action"]),
            "scaling": json.dumps(scaling),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString(deterministic=True))


class _Graph:
    """`networks.PolicyNetwork` as ONNX operators, in the order in which it computes."""

    def __init__(
        self,
        network: dict[str, Any],
        weights: dict[str, NDArray[np.float32]],
        normalizer: Normalizer,
    ) -> None:
        self._network = network
        self._weights = weights
        self._normalizer = normalizer
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def model(self) -> "ModelProto":
        """The whole graph."""
        from onnx import TensorProto, helper

        network = self._network
        sizes = {
            "window": [1, network["window"] * network["columns"]],
            "account": [1, len(network["account_scale"])],
        }
        gives = {"outputs": [1, network["outputs"]]}
        features = self._add("Concat", [self._window(), self._account()], axis=1)
        features = self._layers(features, "trunk.layers")
        if network["kind"] == "lstm":
            memory = [1, 1, network["size"]]
            sizes |= {"hidden": memory, "cell": memory}
            gives |= {"new_hidden": memory, "new_cell": memory}
            features = self._memory(features)
        self._linear(features, "action", "outputs")
        graph = helper.make_graph(
            self._nodes,
            "policy",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in gives.items()],
            self._constants,
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPERATORS)],
            ir_version=FORMAT,
            producer_name="trade_pipeline",
        )

    def _window(self) -> str:
        """The window as the perceptron sees it, convolved of kind cnn."""
        network, seen = self._network, "window"
        if network["kind"] != "cnn":
            return seen
        shape = self._constant(np.array([1, network["window"], network["columns"]], np.int64))
        seen = self._add("Reshape", [seen, shape])
        seen = self._add("Transpose", [seen], perm=[0, 2, 1])
        for name in self._numbered("trunk.convolution"):
            tensors = [self._weight(f"{name}.{part}") for part in ("weight", "bias")]
            seen = self._activation(self._add("Conv", [seen, *tensors]))
        return self._add("Flatten", [seen], axis=1)

    def _account(self) -> str:
        """The account, normalized in float64 as VecNormalize does, then scaled."""
        from onnx import TensorProto

        statistics, seen = self._normalizer.account, "account"
        if statistics is not None:
            deviation = np.sqrt(statistics.var + statistics.epsilon)
            bounds = [self._constant(np.float64(b)) for b in (-statistics.clip, statistics.clip)]
            seen = self._add("Cast", [seen], to=TensorProto.DOUBLE)
            seen = self._add("Sub", [seen, self._constant(statistics.mean)])
            seen = self._add("Div", [seen, self._constant(deviation)])
            seen = self._add("Clip", [seen, *bounds])
            seen = self._add("Cast", [seen], to=TensorProto.FLOAT)
        scale = np.array(self._network["account_scale"], np.float32)
        return self._add("Mul", [seen, self._constant(scale)])

    def _layers(self, seen: str, prefix: str) -> str:
        for name in self._numbered(prefix):
            seen = self._activation(self._linear(seen, name))
        return seen

    def _memory(self, features: str) -> str:
        size = self._network["size"]
        gates = np.r_[0, 3, 1, 2]  # torch: in, forget, cell, out; ONNX: in, out, forget, cell

        def ordered(name: str) -> NDArray[np.float32]:
            array = self._weights[f"lstm.{name}_l0"]
            return array.reshape(4, size, -1)[gates].reshape(array.shape)

        bias = np.concatenate([ordered("bias_ih"), ordered("bias_hh")])
        inputs = [
            self._add("Reshape", [features, self._constant(np.array([1, 1, -1], np.int64))]),
            self._constant(ordered("weight_ih")[None]),
            self._constant(ordered("weight_hh")[None]),
            self._constant(bias[None]),
            "",  # length of the sequence: all of it
            "hidden",
            "cell",
        ]
        self._add("LSTM", inputs, ["", "new_hidden", "new_cell"], hidden_size=size)
        return self._add("Reshape", ["new_hidden", self._constant(np.array([1, -1], np.int64))])

    def _linear(self, seen: str, name: str, to: str | None = None) -> str:
        tensors = [self._weight(f"{name}.{part}") for part in ("weight", "bias")]
        return self._add("Gemm", [seen, *tensors], None if to is None else [to], transB=1)

    def _activation(self, seen: str) -> str:
        return self._add(_ACTIVATIONS[self._network["activation"]], [seen])

    def _numbered(self, prefix: str) -> list[str]:
        """Names `<prefix>.<number>` of the layers that have weights, in order."""
        numbers = {
            int(name.removeprefix(prefix + ".").partition(".")[0])
            for name in self._weights
            if name.startswith(prefix + ".")
        }
        return [f"{prefix}.{number}" for number in sorted(numbers)]

    def _weight(self, name: str) -> str:
        return self._constant(self._weights[name], name)

    def _constant(self, array: Any, name: str | None = None) -> str:
        from onnx import numpy_helper

        name = name or f"constant.{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def _add(
        self, operator: str, inputs: Sequence[str], outputs: list[str] | None = None, **options: Any
    ) -> str:
        """Append a node and return the name of its first output."""
        from onnx import helper

        outputs = outputs or [f"{operator.lower()}.{len(self._nodes)}"]
        self._nodes.append(
            helper.make_node(operator, list(inputs), outputs, name=str(len(self._nodes)), **options)
        )
        return outputs[0]
