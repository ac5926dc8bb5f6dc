"""PPO's update of a feed-forward SB3 policy in compiled code, in place of autograd.

Start at `DenseUpdate`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import SameTypes
from trade_pipeline.training.backpropagation import (
    Coefficients,
    Rollout,
    Room,
    chunk_rows,
)
from trade_pipeline.training.dense_layers import INPUTS, OUTPUTS
from trade_pipeline.training.dense_policy import DensePolicy, alone, threads_for
from trade_pipeline.training.minibatches import epoch
from trade_pipeline.training.ppo_step import Step, StepSettings

BLOCK = 2048  # parameters that a thread changes at a time


class DenseUpdate:
    """Steps of a policy whose parameters compiled code has.

    Args:
        dense: the policy's parameters.
        batch: samples of the largest minibatch.
        threads: that chunks of a minibatch are spread over.
    """

    def __init__(self, dense: DensePolicy, batch: int, threads: int) -> None:
        self._dense, layers = dense, dense.layers
        self._rollout: Rollout
        self._epoch = SameTypes(epoch)
        rows = chunk_rows(batch)
        chunks = -(-batch // rows)
        self._threads = threads_for(chunks, threads)
        trunks, depth = layers.trunks.shape[:2]
        widest, inputs = dense.widest, int(layers.trunks[0, 0, INPUTS])
        outputs = int(layers.action[OUTPUTS])
        blocks = np.array(
            [
                [start, min(start + BLOCK, end), number]
                for number, (begin, end) in enumerate(pairwise(layers.bounds.tolist()))
                for start in range(begin, end, BLOCK)
            ]
        )
        self._room = Room(
            inputs=np.empty((self._threads, rows, inputs), np.float32),
            hidden=np.empty((self._threads, trunks, depth, rows * widest), np.float32),
            deltas=np.empty((self._threads, 2, rows * widest), np.float32),
            outputs=np.empty((self._threads, rows * outputs), np.float32),
            values=np.empty((self._threads, rows), np.float32),
            shares=np.empty((self._threads, rows * outputs), np.float32),
            turned=np.empty((self._threads, widest * max(widest, outputs)), np.float32),
            gradients=np.zeros((chunks, int(layers.bounds[-1])), np.float32),
            sums=np.empty((chunks, 3)),
            blocks=blocks,
            squares=np.empty(len(blocks)),
            norms=np.empty(len(layers.bounds) - 1),
        )

    def begin(self, rollout: Mapping[str, torch.Tensor]) -> None:
        """Take a rollout.

        Args:
            rollout: `inputs` [n, I], `actions` [n, parts]; `log_probs`, `advantages`, `returns` of
                n numbers each.
        """
        flat = {name: rollout[name].numpy() for name in Rollout._fields}
        for name in ("log_probs", "advantages", "returns"):
            flat[name] = flat[name].reshape(-1)
        self._rollout = Rollout(**flat)
        self._dense.adopt()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Around steps; see `dense_policy.alone`."""
        with alone(self._threads):
            yield

    def epoch(self, order: NDArray[np.int64], batch: int, settings: StepSettings) -> list[Step]:
        """Learn from samples of the rollout, minibatch after minibatch; see `minibatches.epoch`."""
        log_ratios = np.empty(len(order), np.float32)
        found = np.empty((-(-len(order) // batch), 3))
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
        taken = self._epoch(
            self._dense.layers,
            self._dense.learned,
            self._rollout,
            order,
            batch,
            coefficients,
            self._room,
            log_ratios,
            found,
        )
        self._dense.steps += taken
        steps = []
        for number, sums in enumerate(found[: taken + 1]):
            moved = log_ratios[number * batch : (number + 1) * batch]
            policy_loss, value_loss, entropy = (sums / len(moved)).tolist()
            steps.append(Step(policy_loss, value_loss, entropy, moved, number < taken))
        return steps

    def gradient_norms(self) -> dict[str, float]:
        """L2 norms of the last step's gradient by layer, before clipping."""
        squares: dict[str, float] = {}
        for layer, norm in zip(self._dense.layer_names, self._room.norms.tolist(), strict=True):
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        return {layer: square**0.5 for layer, square in squares.items()}

    def end(self) -> None:
        """Tell the optimizer how many steps were taken."""
        self._dense.end()
