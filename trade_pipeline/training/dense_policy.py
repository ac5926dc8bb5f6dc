"""A feed-forward SB3 policy's parameters as compiled code has them: flat arrays and layers in them.

SB3's modules and their optimizer become views of the arrays, and see them change. Start at
`DensePolicy`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numba import set_num_threads
from torch import nn

from trade_pipeline.simulator.compiled import config
from trade_pipeline.training.choices import Choices
from trade_pipeline.training.dense_layers import OUTPUTS, Layers, Learned
from trade_pipeline.training.gradients import layer_of

KERNELS = "kernels of torch"
MOMENTS = ("exp_avg", "exp_avg_sq")  # as torch calls them
LINE = 16  # float32 numbers in a cache line


class DensePolicy:
    """What a policy has learned, in flat arrays, and where its layers lie in them.

    Args:
        policy: SB3's, with `sb3.ObservationTrunk` by row and without convolution, and one linear
            map a head.

    Attributes:
        layers: where weights and biases are.
        learned: parameters and Adam's moments.
        layer_names: of each parameter.
        steps: that Adam has taken.
    """

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.layer_names = [layer_of(name) for name, _ in policy.named_parameters()]
        parameters = list(policy.parameters())
        # Each in cache lines of its own: a product's last bits may depend on where numbers lie.
        sizes = [-(-parameter.numel() // LINE) * LINE for parameter in parameters]
        ends = np.cumsum([0, *sizes])
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
        self.layers = Layers(
            trunks=np.array([[layer(linear) for linear in trunk[::2]] for trunk in stages]),
            account=len(extractors[0].trunk.account_scale),
            action=np.array(layer(policy.action_net)),
            value=np.array(layer(policy.value_net)),
            counts=np.array(counts, np.int64),
            deviations=-1 if discrete else starts[id(policy.log_std)],
            bounds=ends.astype(np.int64),
            relu=isinstance(stages[0][1], nn.ReLU),
        )
        self.steps = 0
        # One for all parameters: whoever lets torch step this optimizer must give each its own.
        self._step = torch.tensor(0.0)
        self._step_number = self._step.numpy()
        flats = [torch.zeros(int(ends[-1])) for _ in range(3)]
        self.learned = Learned(*(flat.numpy() for flat in flats))
        # Weights lie inputs first, as products want them.
        self._own = [
            (
                parameter,
                [
                    flat[start : start + parameter.numel()].view(parameter.shape[::-1]).t()
                    for flat in flats
                ],
            )
            for parameter, start in zip(parameters, ends.tolist(), strict=False)
        ]

    @property
    def widest(self) -> int:
        """Outputs of the widest layer of a trunk."""
        return int(self.layers.trunks[:, :, OUTPUTS].max())

    def adopt(self) -> None:
        """Have the policy and its optimizer live in the flat arrays, with what they hold now."""
        optimizer = self._policy.optimizer
        for parameter, (own, *moments) in self._own:
            state = optimizer.state[parameter]
            if parameter.data_ptr() != own.data_ptr():
                own.copy_(parameter.data)
                parameter.data = own
            for name, there in zip(MOMENTS, moments, strict=True):
                if name not in state or state[name].data_ptr() != there.data_ptr():
                    there.copy_(state.get(name, torch.zeros_like(there)))
                    state[name] = there
                    self.steps = int(state.get("step", 0))
                    state["step"] = self._step
                    self.end()

    def end(self) -> None:
        """Tell the optimizer how many steps were taken."""
        self._step_number[()] = self.steps

    @property
    def learning_rate(self) -> float:
        """The optimizer's, as it is now."""
        return float(self._policy.optimizer.param_groups[0]["lr"])

    @property
    def epsilon(self) -> float:
        """What Adam adds to deviations."""
        return float(self._policy.optimizer.param_groups[0]["eps"])


def is_dense(policy: Any) -> bool:
    """Whether `DensePolicy` knows all of a policy's layers, and where windows are."""
    extractor = policy.pi_features_extractor
    trunk = extractor.trunk
    return extractor.by_row and trunk.convolution is None and len(trunk.layers) > 0


def threads_for(chunks: int, threads: int) -> int:
    """How many threads to spread so many chunks over."""
    return int(min(threads, chunks, config.NUMBA_NUM_THREADS))


@contextmanager
def alone(threads: int) -> Iterator[None]:
    """Around calls of compiled code that spreads chunks over threads."""
    before = torch.get_num_threads()
    if threads > 1:
        set_num_threads(threads)
    yield
    # Numba and torch may share OpenMP, and with it the number of threads.
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


def kernels() -> dict[str, str]:
    """Which kernels torch computes with: other ones give other last bits."""
    return {KERNELS: torch.backends.cpu.get_cpu_capability()}
