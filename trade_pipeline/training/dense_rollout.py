"""A rollout of a feed-forward SB3 policy in compiled code, in place of torch's modules.

What the policy's first layer is applied to stays for the update. Start at `DenseRollout`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer

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
        looked: of all steps, [S * E, ...], a step after the other; `inputs` are what the first
            layer was applied to.
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
            log_shares=np.empty((self.threads, self._rows * self._outputs), np.float32),
            shares=np.empty((self.threads, self._rows * self._outputs), np.float32),
            numbers=np.empty((self.threads, self._rows)),
        )
        self.looked = self._room_for(steps * environments)
        self._features = extractor.features.numpy() if extractor.by_row else np.empty(0, np.float32)
        self._account_scale = extractor.trunk.account_scale.numpy()
        self._noise: NDArray[np.float32]
        self._act = SameTypes(act)

    def begin(self, random: np.random.Generator) -> None:
        """Draw what all actions of a rollout are made with."""
        shape = self._steps, self._environments, self._parts
        choices = self._dense.layers.deviations < 0
        draw = random.random if choices else random.standard_normal
        self._noise = draw(shape, np.float32)

    def look(self, seen: Mapping[str, NDArray[Any]], step: int) -> Looked:
        """Actions, values and log probabilities of all environments at a step."""
        at = slice(step * self._environments, (step + 1) * self._environments)
        looked = Looked(*(array[at] for array in self.looked))
        self._look(seen, self._noise[step], looked)
        return looked

    def keep(self, buffer: RolloutBuffer) -> None:
        """Have all steps in SB3's buffer."""
        for there, here in (
            (buffer.actions, self.looked.actions),
            (buffer.values, self.looked.values),
            (buffer.log_probs, self.looked.log_probs),
        ):
            there[:] = here.reshape(there.shape)
        buffer.full = True

    def values(self, seen: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """What the policy expects of each observation, float32."""
        together = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
        return self.values_of(together)

    def values_of(self, seen: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What the policy expects of a batch of observations, float32 [B]."""
        count = len(seen["account"])
        looked = self._room_for(count)
        self._look(seen, np.zeros((count, self._parts), np.float32), looked)
        return looked.values

    def _room_for(self, count: int) -> Looked:
        return Looked(
            inputs=np.empty((count, int(self._dense.layers.trunks[0, 0, INPUTS])), np.float32),
            actions=np.empty((count, self._parts), np.float32),
            values=np.empty(count, np.float32),
            log_probs=np.empty(count, np.float32),
        )

    def _look(
        self,
        seen: Mapping[str, NDArray[Any]],
        noise: NDArray[np.float32],
        looked: Looked,
    ) -> None:
        row, extractor = np.empty((0, 1), np.int32), self._extractor
        if extractor.by_row:
            row = np.ascontiguousarray(seen["row"], np.int32)
        else:
            window = seen["window"].reshape(len(noise), -1)
            looked.inputs[:, : window.shape[1]] = window
        observed = Observed(
            features=self._features,
            window=extractor.window,
            columns=extractor.columns,
            row=row,
            account=np.ascontiguousarray(seen["account"], np.float32),
            account_scale=self._account_scale,
        )
        layers, parameters = self._dense.layers, self._dense.learned.parameters
        self._act(Look(layers, parameters, observed, noise, looked, self._room, self._rows))
