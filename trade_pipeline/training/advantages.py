"""Advantages of a rollout, compiled. Start at `estimate`."""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.training.inference import Float32Array


@compiled
def estimate(
    rewards: NDArray[np.float32],
    values: NDArray[np.float32],
    starts: NDArray[np.float32],
    last_values: Float32Array,
    last_starts: Float32Array,
    discount: np.float32,
    decay: np.float32,
    advantages: NDArray[np.float32],
    returns: NDArray[np.float32],
) -> None:
    """Generalized advantage estimation (Schulman et al. 2016), with the bits of SB3's.

    Args:
        rewards: float32 [S, E], of S steps of E environments.
        values: float32 [S, E], expected before each step.
        starts: float32 [S, E], one where an episode begins, else zero.
        last_values: float32 [E], expected after the last step.
        last_starts: float32 [E], one where the last step ended an episode.
        discount: gamma.
        decay: gamma times lambda.
        advantages: float32 [S, E], filled.
        returns: float32 [S, E], filled with advantages plus values.
    """
    steps, environments = rewards.shape
    one = np.float32(1.0)
    for back in range(steps):
        step = steps - 1 - back
        for e in range(environments):
            if back == 0:
                goes_on, following, later = one - last_starts[e], last_values[e], np.float32(0.0)
            else:
                goes_on, following = one - starts[step + 1, e], values[step + 1, e]
                later = advantages[step + 1, e]
            surprise = rewards[step, e] + discount * following * goes_on - values[step, e]
            advantages[step, e] = surprise + decay * goes_on * later
            returns[step, e] = advantages[step, e] + values[step, e]
