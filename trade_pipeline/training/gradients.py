"""How large a policy's gradients are, layer by layer, measured while it learns.

Hooks that look and change nothing. Knows modules of torch, no algorithm. Start at `GradientNorms`.
"""

from collections.abc import Sequence

import torch
from torch import nn

# Backward passes for each one measured. All of them would cost a small network 3 % of an update;
# one in eight costs less than 2 % and says the same of a layer.
GRADIENT_EVERY = 8


class GradientNorms:
    """Mean L2 norms of a policy's gradients by layer, as backward leaves them: before clipping.

    Of each backward pass only gradients count that start anew from `zero_grad`: SAC and TD3 send
    the actor's loss through the critic too, and what that leaves there is thrown away unused.

    Args:
        policy: shared parameters are counted once, under their first name.
        every: backward passes for each one measured; the first after `take` always is.
    """

    def __init__(self, policy: nn.Module, every: int = GRADIENT_EVERY) -> None:
        self._layers: dict[str, list[_Gradients]] = {}
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                self._layers.setdefault(layer_of(name), []).append(_Gradients(parameter, every))

    def take(self) -> dict[str, float]:
        """Norms since the last call: `gradient_norm/` and the layer, where one was measured."""
        norms = {}
        for layer, parameters in self._layers.items():
            squares = [parameter.take() for parameter in parameters]
            if all(squares):
                total = torch.stack([torch.stack(taken) for taken in squares]).double().sum(0)
                norms[f"gradient_norm/{layer}"] = float(total.sqrt().mean())
        return norms

    def state(self) -> list[tuple[int, list[torch.Tensor]]]:
        """What was measured since the last `take`, for a checkpoint."""
        return [one.state() for parameters in self._layers.values() for one in parameters]

    def restore(self, state: Sequence[tuple[int, list[torch.Tensor]]]) -> None:
        """Go on from `state`, of a policy like this one."""
        every = (one for parameters in self._layers.values() for one in parameters)
        for one, (passed, squares) in zip(every, state, strict=True):
            one.restore(passed, squares)

    def close(self) -> None:
        """Remove the hooks."""
        for parameters in self._layers.values():
            for parameter in parameters:
                parameter.handle.remove()


def layer_of(parameter: str) -> str:
    """Name of the layer that a named parameter of SB3's policies belongs to."""
    path, _, last = parameter.replace("features_extractor.", "").rpartition(".")
    return path or last


class _Gradients:
    """Squared norms of one parameter's gradients."""

    def __init__(self, parameter: nn.Parameter, every: int) -> None:
        self._parameter = parameter
        self._every = every
        self._passed = 0
        self._squares: list[torch.Tensor] = []
        # Called with the whole gradient of a pass, before it is added to `parameter.grad`.
        self.handle = parameter.register_hook(self._see)  # type: ignore[no-untyped-call]

    def _see(self, gradient: torch.Tensor) -> None:
        if self._parameter.grad is not None:
            return
        if self._passed % self._every == 0:
            flat = gradient.detach().flatten()
            self._squares.append(torch.dot(flat, flat))
        self._passed += 1

    def take(self) -> list[torch.Tensor]:
        taken, self._squares, self._passed = self._squares, [], 0
        return taken

    def state(self) -> tuple[int, list[torch.Tensor]]:
        return self._passed, list(self._squares)

    def restore(self, passed: int, squares: list[torch.Tensor]) -> None:
        self._passed, self._squares = passed, list(squares)
