"""A market with a known best policy, and how near a greedy policy comes to it.

The log price x is mean-reverting: x' = RHO x + SIGMA eps, with a half-life of 30 bars. A bar opens
where the last one closed, positions are short, flat or long (-1, 0, 1), and each change pays COST.
The best rule is to flip to the other side beyond THRESHOLD and to keep what is held between
(dynamic programming agrees), which earns 0.49 bp a bar; to follow the sign of x alone loses 0.13.
Policies are judged by the expected return of what they hold, given x, so that the luck of the next
bars does not count. Shared by `benchmarks/training.py` and the peers; needs numpy alone. Start at
`log_prices` and `share_of_best`.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

RHO = 0.5 ** (1 / 30)
SIGMA = 8e-4
DEVIATION = SIGMA / (1 - RHO**2) ** 0.5  # of x in the long run
COST = 6e-4  # of what is traded, one way
THRESHOLD = 0.70 * DEVIATION

TRAINING_ROWS = 2_000_000
EPISODE_BARS = 1440
STARTS = 32  # held-out episodes, all begun flat
EPISODE_ROWS = EPISODE_BARS + 2  # the last decision needs a row to trade on
TARGET = 0.9  # share of what the best rule earns


def log_prices(rows: int, seed: int) -> FloatArray:
    """x of one path, float64 [rows], begun at a draw from where it is in the long run."""
    rng = np.random.default_rng(seed)
    path: list[float] = rng.normal(0, SIGMA, rows).tolist()
    path[0] = rng.normal(0, DEVIATION)
    for row in range(1, rows):
        path[row] += RHO * path[row - 1]
    return np.array(path)


@cache
def held_out() -> FloatArray:
    """x of the path that policies are judged on, float64 [STARTS * EPISODE_ROWS]."""
    return log_prices(STARTS * EPISODE_ROWS, seed=1)


def decided_on() -> NDArray[np.int64]:
    """Rows of the held-out path on which something is decided, int64 [EPISODE_BARS, STARTS]."""
    return EPISODE_ROWS * np.arange(STARTS) + np.arange(EPISODE_BARS)[:, None]


def followed(decide: Callable[[FloatArray, FloatArray], FloatArray]) -> FloatArray:
    """Positions [EPISODE_BARS, STARTS] of a policy: x [STARTS] and what is held to what to hold."""
    seen, held = held_out()[decided_on()], np.zeros(STARTS)
    positions = np.empty(seen.shape)
    for bar, x in enumerate(seen):
        positions[bar] = held = decide(x, held)
    return positions


def best_rule(x: FloatArray, held: FloatArray) -> FloatArray:
    """Flip beyond the threshold."""
    return np.where(abs(x) > THRESHOLD, -np.sign(x), held)


def expected_earnings(positions: FloatArray) -> float:
    """Expected return a bar of positions [EPISODE_BARS, STARTS], costs taken off."""
    changes = abs(np.diff(positions, axis=0, prepend=0.0))
    returns = (RHO - 1) * held_out()[decided_on()]
    return float((positions * returns - COST * changes).mean())


def share_of_best(positions: FloatArray) -> float:
    """What positions [EPISODE_BARS, STARTS] are expected to earn, by what the best rule's are."""
    return expected_earnings(positions) / expected_earnings(followed(best_rule))
