"""PPO's update of a feed-forward SB3 policy in compiled code, in place of autograd.

The policy's parameters and Adam's moments become views of flat arrays that `backpropagation` reads
and writes; SB3 sees them change. Start at `DenseUpdate`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numba import set_num_threads
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import nn

from trade_pipeline.simulator.compiled import config
from trade_pipeline.training.backpropagation import (
    LANES,
    Coefficients,
    Learned,
    Rollout,
    Room,
    chunk_rows,
    minibatch_step,
)
from trade_pipeline.training.choices import Choices
from trade_pipeline.training.dense_layers import INPUTS, OUTPUTS, Layers
from trade_pipeline.training.gradients import layer_of
from trade_pipeline.training.ppo_step import Step, StepSettings

MATRIX_PRODUCTS, TORCH = "kernels of matrix products", "kernels of torch"
KERNELS = {MATRIX_PRODUCTS, TORCH}
LINE = 16  # float32 numbers in a cache line


class DenseUpdate:
    """A policy's layers, parameters and Adam's state as compiled code has them.

    Args:
        policy: SB3's, with `sb3.ObservationTrunk` without convolution, and one linear map a head.
        batch: samples of the largest minibatch.
        threads: that chunks of a minibatch are spread over.
    """

    def __init__(self, policy: Any, batch: int, threads: int) -> None:
        self._policy = policy
        self._layer_names = [layer_of(name) for name, _ in policy.named_parameters()]
        parameters = list(policy.parameters())
        # Each in cache lines of its own: a product's last bits may depend on where numbers lie.
        sizes = [-(-parameter.numel() // LINE) * LINE for parameter in parameters]
        ends = np.cumsum([0, *sizes])
        self._bounds = ends.astype(np.int64)
        starts = dict(zip(map(id, parameters), ends.tolist(), strict=False))

        def layer(linear: nn.Linear) -> list[int]:
            outputs, inputs = linear.weight.shape
            return [inputs, outputs, starts[id(linear.weight)], starts[id(linear.bias)]]

        extractors = [policy.pi_features_extractor]
        if not policy.share_features_extractor:
            extractors.append(policy.vf_features_extractor)
        stages = [list(extractor.trunk.layers) for extractor in extractors]
        discrete = isinstance(policy.action_dist, Choices)
        counts = policy.action_dist.action_dims if discrete else []
        self._layers = Layers(
            trunks=np.array([[layer(linear) for linear in trunk[::2]] for trunk in stages]),
            action=np.array(layer(policy.action_net)),
            value=np.array(layer(policy.value_net)),
            counts=np.array(counts, np.int64),
            deviations=-1 if discrete else starts[id(policy.log_std)],
            bounds=self._bounds,
            relu=isinstance(stages[0][1], nn.ReLU),
        )
        size = int(ends[-1])
        self._steps = 0
        self._rollout: Rollout
        self._learned = Learned(*(torch.zeros(size).numpy() for _ in range(3)))
        rows = chunk_rows(batch)
        chunks = -(-batch // rows)
        self._threads = min(threads, chunks, config.NUMBA_NUM_THREADS)
        trunks, depth = self._layers.trunks.shape[:2]
        widest = int(self._layers.trunks[:, :, OUTPUTS].max())
        inputs = int(self._layers.trunks[0, 0, INPUTS])
        self._room = Room(
            inputs=np.empty((self._threads, rows, inputs), np.float32),
            hidden=np.empty((self._threads, trunks, depth, rows * widest), np.float32),
            deltas=np.empty((self._threads, 2, rows * widest), np.float32),
            outputs=np.empty((self._threads, rows * int(self._layers.action[OUTPUTS])), np.float32),
            values=np.empty((self._threads, rows), np.float32),
            gradients=np.zeros((chunks, size), np.float32),
            sums=np.empty((chunks, 3)),
            norms=np.empty(len(parameters)),
            lanes=np.empty(LANES),
        )

    def begin(self, rollout: Mapping[str, torch.Tensor]) -> None:
        """Take a rollout, and have the policy and its optimizer live in the flat arrays.

        Args:
            rollout: `inputs` [n, I], `actions` [n, parts]; `log_probs`, `advantages`, `returns` of
                n numbers each.
        """
        flat = {name: rollout[name].numpy() for name in Rollout._fields}
        for name in ("log_probs", "advantages", "returns"):
            flat[name] = flat[name].reshape(-1)
        self._rollout = Rollout(**flat)
        optimizer = self._policy.optimizer
        for k, parameter in enumerate(self._policy.parameters()):
            at = slice(self._bounds[k], self._bounds[k] + parameter.numel())
            own = [torch.from_numpy(flat[at]).view_as(parameter) for flat in self._learned]
            parameter.data = _moved(parameter.data, own[0])
            state = optimizer.state[parameter]
            self._steps = int(state.get("step", 0))
            for name, there in zip(("exp_avg", "exp_avg_sq"), own[1:], strict=True):
                state[name] = _moved(state.get(name, torch.zeros_like(there)), there)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around steps: chunks are spread over threads, and what they call is not."""
        before = torch.get_num_threads()
        # Matrix products that were spread over threads, too, would differ in bits.
        with _libraries().limit(limits=1, user_api="blas"):
            if self._threads > 1:
                set_num_threads(self._threads)
            yield
        # Numba and torch may share OpenMP, and with it the number of threads.
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)

    def step(self, chosen: NDArray[np.int64], settings: StepSettings) -> Step:
        """Learn from some samples of the rollout; see `backpropagation.minibatch_step`."""
        log_ratios = np.empty(len(chosen), np.float32)
        (group,) = self._policy.optimizer.param_groups
        coefficients = Coefficients(
            clip_range=settings.clip_range,
            entropy=settings.entropy_coefficient,
            value=settings.value_coefficient,
            most_norm=settings.max_grad_norm,
            most_divergence=settings.most_divergence,
            normalize_advantages=settings.normalize_advantages,
            learning_rate=float(group["lr"]),
            epsilon=float(group["eps"]),
            step=self._steps + 1,
        )
        taken = minibatch_step(
            self._layers,
            self._learned,
            self._rollout,
            chosen,
            coefficients,
            self._room,
            log_ratios,
        )
        self._steps += int(taken)
        policy_loss, value_loss, entropy = (self._room.sums[0] / len(chosen)).tolist()
        return Step(policy_loss, value_loss, entropy, log_ratios, bool(taken))

    def gradient_norms(self) -> dict[str, float]:
        """L2 norms of the last step's gradient by layer, before clipping."""
        squares: dict[str, float] = {}
        for layer, norm in zip(self._layer_names, self._room.norms.tolist(), strict=True):
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        return {layer: square**0.5 for layer, square in squares.items()}

    def end(self) -> None:
        """Tell the optimizer how many steps were taken."""
        for state in self._policy.optimizer.state.values():
            state["step"] = torch.tensor(float(self._steps))


def is_dense(policy: Any) -> bool:
    """Whether `DenseUpdate` knows all of a policy's layers."""
    trunk = policy.pi_features_extractor.trunk
    return trunk.convolution is None and len(trunk.layers) > 0


def kernels() -> dict[str, str]:
    """Which kernels compute: other ones give other last bits."""
    (blas,) = [
        library
        for library in _libraries().info()
        if library["user_api"] == "blas" and "scipy.libs" in library["filepath"]
    ] or [{"internal_api": "unknown", "architecture": "unknown"}]
    found = f"{blas['internal_api']} {blas.get('architecture', '')}"
    return {MATRIX_PRODUCTS: found, TORCH: torch.backends.cpu.get_cpu_capability()}


def _moved(tensor: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers in other memory, where they are not there already."""
    if tensor.data_ptr() != there.data_ptr():
        there.copy_(tensor)
    return there


@cache
def _libraries() -> ThreadpoolController:
    """The libraries that compute matrix products; numba's is scipy's."""
    import_module("scipy.linalg.cython_blas")
    return ThreadpoolController()
