"""PPO's update of a feed-forward SB3 policy in compiled code, in place of autograd.

Start at `DenseUpdate`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import SameTypes
from trade_pipeline.training.backpropagation import (
    NUMBERS,
    Coefficients,
    Rollout,
    Room,
    chunk_rows,
)
from trade_pipeline.training.dense_layers import OUTPUTS
from trade_pipeline.training.dense_policy import DensePolicy, alone, threads_for
from trade_pipeline.training.minibatches import learn
from trade_pipeline.training.ppo_step import StepSettings, Update

BLOCK = 2048  # parameters that a thread changes at a time


class DenseUpdate:
    """Updates of a policy whose parameters compiled code has.

    Args:
        dense: the policy's parameters.
        batch: samples of the largest minibatch.
        threads: that chunks of a minibatch are spread over.
    """

    def __init__(self, dense: DensePolicy, batch: int, threads: int) -> None:
        self._dense, layers = dense, dense.layers
        self._rollout: Rollout
        self._learn = SameTypes(learn)
        rows = chunk_rows(batch)
        chunks = -(-batch // rows)
        self._threads = threads_for(chunks, threads)
        trunks, depth = layers.trunks.shape[:2]
        widest = dense.widest
        outputs = int(layers.action[OUTPUTS])
        parts = len(layers.counts) or outputs
        blocks = np.array(
            [
                [start, min(start + BLOCK, end), number]
                for number, (begin, end) in enumerate(pairwise(layers.bounds.tolist()))
                for start in range(begin, end, BLOCK)
            ]
        )
        self._room = Room(
            places=np.empty((self._threads, rows), np.int64),
            accounts=np.empty((self._threads, rows, layers.account), np.float32),
            hidden=np.empty((self._threads, trunks, depth, rows * widest), np.float32),
            deltas=np.empty((self._threads, 2, rows * widest), np.float32),
            outputs=np.empty((self._threads, rows * outputs), np.float32),
            values=np.empty((self._threads, rows), np.float32),
            actions=np.empty((self._threads, rows * parts), np.float32),
            log_shares=np.empty((self._threads, rows * outputs), np.float32),
            shares=np.empty((self._threads, rows * outputs), np.float32),
            numbers=np.empty((self._threads, NUMBERS, rows)),
            turned=np.empty((self._threads, widest * max(widest, outputs)), np.float32),
            gradients=np.zeros((chunks, int(layers.bounds[-1])), np.float32),
            sums=np.empty((chunks, 3)),
            blocks=blocks,
            squares=np.empty(len(blocks)),
            norms=np.empty(len(layers.bounds) - 1),
        )

    def begin(self, rollout: Rollout) -> None:
        """Take a rollout; the policy's parameters are where `DensePolicy.adopt` has put them."""
        self._rollout = rollout

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around `learn`; see `dense_policy.alone`."""
        with alone(self._threads):
            yield

    def learn(self, orders: NDArray[np.int64], batch: int, settings: StepSettings) -> Update:
        """Learn from the rollout; see `ppo_step.AutogradUpdate.learn`."""
        epochs, samples = orders.shape
        minibatches = -(-samples // batch)
        log_ratios, losses = np.empty(samples, np.float32), np.empty((epochs, minibatches, 3))
        coefficients = Coefficients(
            clip_range=float(settings.clip_range),
            entropy=float(settings.entropy_coefficient),
            value=float(settings.value_coefficient),
            most_norm=float(settings.max_grad_norm),
            most_divergence=float(settings.most_divergence),
            normalize_advantages=bool(settings.normalize_advantages),
            learning_rate=self._dense.learning_rate,
            epsilon=self._dense.epsilon,
            step=self._dense.steps + 1,
        )
        steps = self._learn(
            self._dense.layers,
            self._dense.learned,
            self._rollout,
            orders,
            batch,
            coefficients,
            self._room,
            log_ratios,
            losses,
        )
        self._dense.steps += steps
        seen = min(steps + 1, epochs * minibatches)  # the last one may not have been taken
        epoch, last = divmod(seen - 1, minibatches)
        return Update(
            losses=losses.reshape(-1, 3)[:seen],
            log_ratios=log_ratios[: (last + 1) * batch],
            epochs=epoch + 1,
            steps=steps,
        )

    def gradient_norms(self) -> dict[str, float]:
        """L2 norms of the last step's gradient by layer, before clipping."""
        squares: dict[str, float] = {}
        for layer, norm in zip(self._dense.layer_names, self._room.norms.tolist(), strict=True):
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        return {layer: square**0.5 for layer, square in squares.items()}

    def end(self) -> None:
        """Tell the optimizer how many steps were taken."""
        self._dense.end()
