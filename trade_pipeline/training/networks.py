"""The networks of policies as torch modules, built from the `network` part of a specification.

Training learns with them (inside SB3's features extractors), exports are made from them; acting
is `inference`, which computes the same from the same weights. Start at `network_specification`
and `PolicyNetwork`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trade_pipeline.settings.algorithm import (
    CNNSettings,
    LSTMSettings,
    MLPSettings,
    NetworkSettings,
)

# One position input beside a long window of features is too quiet to be learned from.
LARGEST_POSITION_SCALE = 8.0
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def network_specification(
    network: NetworkSettings,
    window: int,
    columns: int,
    instruments: int,
    outputs: int,
    normalized_account: bool = False,
) -> dict[str, Any]:
    """What a network is built from, JSON-able: sizes, and the scale of each account input.

    Args:
        network: settings.
        window: rows of an observation, W.
        columns: features of all instruments, C = N * F.
        instruments: N; the account vector has A = 5 N + 1 columns.
        outputs: numbers that the action is made of, L.
        normalized_account: whether the account vector comes normalized, so that no input is quiet.
    """
    features = window * columns / instruments
    scale = 1.0 if normalized_account else min(LARGEST_POSITION_SCALE, features**0.5)
    account_scale = [scale, scale, 1.0, 1.0, 1.0] * instruments + [1.0]
    made: dict[str, Any] = {
        "kind": network.kind,
        "window": window,
        "columns": columns,
        "hidden": list(network.hidden),
        "activation": network.activation,
        "account_scale": account_scale,
        "outputs": outputs,
    }
    match network:
        case MLPSettings():
            pass
        case CNNSettings():
            made |= {"channels": list(network.channels), "kernel": network.kernel}
        case LSTMSettings():
            made |= {"size": network.size}
    return made


class Trunk(nn.Module):
    """From an observation to features [B, hidden[-1]]; submodules `convolution` and `layers`.

    mlp, lstm: the window, flattened, beside the scaled account, through `layers`. cnn: the window
    as C channels of W bars through `convolution` first, its output flattened channel by channel.
    """

    account_scale: torch.Tensor

    def __init__(self, specification: Mapping[str, Any]) -> None:
        super().__init__()
        window, columns = specification["window"], specification["columns"]
        activation = ACTIVATIONS[specification["activation"]]
        scale = torch.tensor(specification["account_scale"])
        self.register_buffer("account_scale", scale, persistent=False)
        self.window, self.columns = window, columns
        inputs = window * columns
        self.convolution: nn.Module | None = None
        if specification["kind"] == "cnn":
            kernel, stages, channels = specification["kernel"], [], columns
            for count in specification["channels"]:
                stages += [nn.Conv1d(channels, count, kernel), activation()]
                channels, window = count, window - kernel + 1
            self.convolution = nn.Sequential(*stages)
            inputs = channels * window
        self.layers = layers(inputs + len(scale), specification["hidden"], activation)

    def forward(self, window: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        """Features of window [B, W * C] (bar by bar) and account [B, A]."""
        return self.of_inputs(self.inputs(window, account))

    def inputs(self, window: torch.Tensor, account: torch.Tensor) -> torch.Tensor:
        """What no weight has touched yet, [B, W * C + A]."""
        return torch.cat([window, account * self.account_scale], dim=1)

    def of_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Features of what `inputs` gave."""
        if self.convolution is not None:
            flat = self.window * self.columns
            bars = inputs[:, :flat].view(-1, self.window, self.columns).transpose(1, 2)
            inputs = torch.cat([self.convolution(bars).flatten(1), inputs[:, flat:]], dim=1)
        features: torch.Tensor = self.layers(inputs)
        return features


def layers(inputs: int, hidden: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """A linear map and an activation for each hidden size."""
    made: list[nn.Module] = []
    for size in hidden:
        made += [nn.Linear(inputs, size), activation()]
        inputs = size
    return nn.Sequential(*made)


class PolicyNetwork(nn.Module):
    """From an observation to the numbers that the action is made of: trunk, memory, linear map.

    Attributes:
        trunk: see `Trunk`.
        lstm: of kind lstm only.
        action: the last linear map.
    """

    def __init__(self, specification: Mapping[str, Any]) -> None:
        super().__init__()
        self.trunk = Trunk(specification)
        features = specification["hidden"][-1]
        self.lstm: nn.LSTM | None = None
        if specification["kind"] == "lstm":
            self.lstm = nn.LSTM(features, specification["size"])
            features = specification["size"]
        self.action = nn.Linear(features, specification["outputs"])

    def forward(
        self,
        window: torch.Tensor,
        account: torch.Tensor,
        memory: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
        """Outputs [B, L] and the new memory.

        Args:
            window: float32 [B, W * C], scaled features bar by bar.
            account: float32 [B, A].
            memory: hidden and cell state, float32 [1, B, size] each, of kind lstm; None is zeros.
        """
        features = self.trunk(window, account)
        if self.lstm is not None:
            sequence, memory = self.lstm(features[None], memory)
            features = sequence[0]
        return self.action(features), memory


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch on `count` threads, then restore: thread counts change the last bits of sums."""
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
