"""A rollout of a feed-forward SB3 policy in compiled code, in place of torch's modules.

What was seen and done stays for the update. Start at `DenseRollout`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer

from trade_pipeline.simulator.compiled import SameTypes
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.training.acting import Look, Looked, LookingRoom, Observed, act, look_ahead
from trade_pipeline.training.backpropagation import Rollout
from trade_pipeline.training.dense_layers import OUTPUTS
from trade_pipeline.training.dense_policy import DensePolicy, threads_for

CHUNK_ROWS, MOST_CHUNKS = 256, 16
AHEAD = 16  # steps: what is known of an episode's windows is lost where it ends


class DenseRollout:
    """What a policy does at each step of a rollout.

    Args:
        dense: the policy's parameters.
        extractor: its `sb3.ObservationTrunk`, by row.
        steps: of a rollout, S.
        environments: E.
        threads: that accounts are spread over.

    Attributes:
        threads: that it needs at most.
    """

    def __init__(
        self, dense: DensePolicy, extractor: Any, steps: int, environments: int, threads: int
    ) -> None:
        self._dense = dense
        self._steps, self._environments = steps, environments
        layers = dense.layers
        self._rows = max(CHUNK_ROWS, -(-environments // MOST_CHUNKS))
        acting = threads_for(-(-environments // self._rows), threads)
        trunks, depth = layers.trunks.shape[:2]
        outputs = int(layers.action[OUTPUTS])
        self._parts = len(layers.counts) or outputs
        self._room = LookingRoom(
            hidden=np.empty((acting, trunks, depth, self._rows * dense.widest), np.float32),
            outputs=np.empty((acting, self._rows * outputs), np.float32),
            log_shares=np.empty((acting, self._rows * outputs), np.float32),
            shares=np.empty((acting, self._rows * outputs), np.float32),
            numbers=np.empty((acting, self._rows)),
        )
        self._looked = self._room_for(steps * environments)
        self._steps_looked = [
            self._looked.between(first, first + environments)
            for first in range(0, steps * environments, environments)
        ]
        self._features = extractor.features.numpy()
        self._window, self._columns = extractor.window, extractor.columns
        self._account_scale = extractor.trunk.account_scale.numpy()
        # Of the steps ahead and the one after them, a step after the other.
        self._ahead = min(steps, AHEAD)
        known = (self._ahead + 1) * environments
        self._expected = np.full(known, -1)
        self._sums = np.empty((trunks, known, int(layers.trunks[0, 0, OUTPUTS])), np.float32)
        self._ahead_threads = threads_for(-(-known // CHUNK_ROWS), threads)
        self.threads = max(acting, self._ahead_threads)
        self._noise: NDArray[np.float32]
        self._act, self._look_ahead = SameTypes(act), SameTypes(look_ahead)

    def begin(self, random: np.random.Generator) -> None:
        """Draw what all actions of a rollout are made with; parameters may have changed."""
        self._expected.fill(-1)
        shape = self._steps, self._environments, self._parts
        choices = self._dense.layers.deviations < 0
        draw = random.random if choices else random.standard_normal
        self._noise = draw(shape, np.float32)

    def look(self, seen: Mapping[str, NDArray[Any]], step: int) -> Looked:
        """Actions, values and log probabilities of all environments at a step."""
        looked, ahead = self._steps_looked[step], step % self._ahead
        if ahead == 0:
            self._expect(seen["row"], min(self._ahead, self._steps - step) + 1)
        self._look(seen, looked, self._noise[step], self._expected, ahead * self._environments)
        return looked

    def last_values(self, seen: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """What the policy expects, float32 [E], of all environments after the last step."""
        ahead = (self._steps - 1) % self._ahead + 1
        return self._values(seen, self._expected, ahead * self._environments)

    def values(self, seen: Sequence[Mapping[str, NDArray[Any]]]) -> NDArray[np.float32]:
        """What the policy expects of each observation, float32."""
        together = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
        return self._values(together, np.full(len(seen), -1), 0)

    def keep(self, buffer: RolloutBuffer) -> None:
        """Have all steps in SB3's buffer."""
        for there, here in (
            (buffer.actions, self._looked.actions),
            (buffer.values, self._looked.values),
            (buffer.log_probs, self._looked.log_probs),
        ):
            there[:] = here.reshape(there.shape)
        buffer.full = True

    def samples(self, buffer: RolloutBuffer) -> Rollout:
        """All steps with what they gave, a step after the other."""
        looked = self._looked
        return Rollout(
            features=self._features,
            places=looked.places,
            accounts=looked.accounts,
            actions=looked.actions,
            log_probs=looked.log_probs,
            advantages=buffer.advantages.reshape(-1),
            returns=buffer.returns.reshape(-1),
        )

    def _room_for(self, count: int) -> Looked:
        return Looked(
            places=np.empty(count, np.int64),
            accounts=np.empty((count, self._dense.layers.account), np.float32),
            actions=np.empty((count, self._parts), np.float32),
            values=np.empty(count, np.float32),
            log_probs=np.empty(count, np.float32),
        )

    def _expect(self, row: NDArray[np.int32], steps: int) -> None:
        """Apply first layers to the windows of so many steps, as if no episode ended."""
        first = row[:, 0].astype(np.int64) + 1 - self._window
        following = self._columns * (first + np.arange(steps)[:, None])
        last = len(self._features) - self._window * self._columns
        expected = self._expected[: steps * len(row)]
        np.minimum(following.reshape(-1), last, out=expected)
        self._look_ahead(
            self._dense.layers,
            self._dense.learned.parameters,
            self._features,
            expected,
            self._sums,
            self._ahead_threads,
        )

    def _values(
        self, seen: Mapping[str, NDArray[Any]], expected: IntArray, at: int
    ) -> NDArray[np.float32]:
        count = len(seen["account"])
        looked = self._room_for(count)
        noise = np.zeros((count, self._parts), np.float32)
        self._look(seen, looked, noise, expected, at)
        return looked.values

    def _look(
        self,
        seen: Mapping[str, NDArray[Any]],
        looked: Looked,
        noise: NDArray[np.float32],
        expected: IntArray,
        at: int,
    ) -> None:
        observed = Observed(
            row=np.ascontiguousarray(seen["row"], np.int32),
            account=np.ascontiguousarray(seen["account"], np.float32),
            account_scale=self._account_scale,
            window=self._window,
            columns=self._columns,
        )
        self._act(
            Look(
                self._dense.layers,
                self._dense.learned.parameters,
                self._features,
                observed,
                expected,
                self._sums,
                at,
                noise,
                looked,
                self._room,
                self._rows,
            )
        )
