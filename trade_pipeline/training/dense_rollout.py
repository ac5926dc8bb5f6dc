"""A rollout of a feed-forward SB3 policy in compiled code, in place of torch's modules.

What the policy's first layer is applied to stays for the update. Start at `DenseRollout`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import SameTypes
from trade_pipeline.training.acting import Look, Looked, LookingRoom, Observed, act
from trade_pipeline.training.dense_layers import INPUTS, OUTPUTS
from trade_pipeline.training.dense_policy import DensePolicy, threads_for

CHUNK_ROWS, MOST_CHUNKS = 64, 16


class DenseRollout:
    """What a policy does at each step of a rollout.

    Args:
        dense: the policy's parameters.
        extractor: its `sb3.ObservationTrunk`, which knows what windows are made of.
        steps: of a rollout, S.
        environments: E.
        threads: that accounts are spread over.

    Attributes:
        inputs: float32 [S * E, I], a step after the other: what the first layer was applied to.
    """

    def __init__(
        self, dense: DensePolicy, extractor: Any, steps: int, environments: int, threads: int
    ) -> None:
        self._dense, self._extractor = dense, extractor
        self._steps, self._environments = steps, environments
        layers = dense.layers
        self._rows = max(CHUNK_ROWS, -(-environments // MOST_CHUNKS))
        self.threads = threads_for(-(-environments // self._rows), threads)
        trunks, depth = layers.trunks.shape[:2]
        self._outputs = int(layers.action[OUTPUTS])
        self._parts = len(layers.counts) or self._outputs
        self._room = LookingRoom(
            hidden=np.empty((self.threads, trunks, depth, self._rows * dense.widest), np.float32),
            outputs=np.empty((self.threads, self._rows * self._outputs), np.float32),
            shares=np.empty((self.threads, self._rows * self._outputs), np.float32),
        )
        self.inputs = np.empty((steps * environments, int(layers.trunks[0, 0, INPUTS])), np.float32)
        self._features = extractor.features.numpy() if extractor.by_row else np.empty(0, np.float32)
        self._account_scale = extractor.trunk.account_scale.numpy()
        self._noise: NDArray[np.float32]
        self._act = SameTypes(act)

    def begin(self) -> None:
        """Draw what all actions of a rollout are made with, from numpy's generator."""
        shape = self._steps, self._environments, self._parts
        choices = self._dense.layers.deviations < 0
        drawn = np.random.random_sample(shape) if choices else np.random.standard_normal(shape)
        self._noise = drawn.astype(np.float32)

    def look(self, seen: Mapping[str, NDArray[Any]], step: int) -> Looked:
        """Actions, values and log probabilities of all environments at a step."""
        at = slice(step * self._environments, (step + 1) * self._environments)
        return self._look(seen, self._noise[step], self.inputs[at])

    def values(self, seen: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """What the policy expects of each observation, float32."""
        together = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
        return self.values_of(together)

    def values_of(self, seen: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What the policy expects of a batch of observations, float32 [B]."""
        count = len(seen["account"])
        noise = np.zeros((count, self._parts), np.float32)
        return self._look(seen, noise, np.empty((count, self.inputs.shape[1]), np.float32)).values

    def _look(
        self,
        seen: Mapping[str, NDArray[Any]],
        noise: NDArray[np.float32],
        inputs: NDArray[np.float32],
    ) -> Looked:
        row, extractor = np.empty((0, 1), np.int32), self._extractor
        if extractor.by_row:
            row = np.ascontiguousarray(seen["row"], np.int32)
        else:
            window = seen["window"].reshape(len(inputs), -1)
            inputs[:, : window.shape[1]] = window
        observed = Observed(
            features=self._features,
            window=extractor.window,
            columns=extractor.columns,
            row=row,
            account=np.ascontiguousarray(seen["account"], np.float32),
            account_scale=self._account_scale,
        )
        count = len(inputs)
        looked = Looked(
            inputs=inputs,
            actions=np.empty((count, self._parts), np.float32),
            values=np.empty(count, np.float32),
            log_probs=np.empty(count, np.float32),
        )
        layers, parameters = self._dense.layers, self._dense.learned.parameters
        self._act(Look(layers, parameters, observed, noise, looked, self._room, self._rows))
        return looked
