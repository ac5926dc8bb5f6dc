"""Which rows an episode covers and in which position it begins.

Knows nothing of features or policies; randomness comes in as a generator.
Start at `Segments` and `sample_starts`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trade_pipeline.simulator.actions import ActionMapping
from trade_pipeline.simulator.kernel import IntArray, Orders


@dataclass(frozen=True)
class Segments:
    """Row ranges [a, b) without gaps; an episode never leaves one.

    Attributes:
        rows: int64 [S, 2].

    Raises:
        ValueError: if the shape is wrong or a range is empty or negative.
    """

    rows: IntArray

    def __post_init__(self) -> None:
        rows = np.array(self.rows, np.int64)
        if rows.ndim != 2 or rows.shape[1] != 2:
            raise ValueError(f"segments have shape {rows.shape}; [S, 2] of row ranges is expected")
        wrong = np.flatnonzero((rows[:, 0] < 0) | (rows[:, 0] >= rows[:, 1]))
        if wrong.size:
            a, b = rows[wrong[0]]
            raise ValueError(f"segment {wrong[0]} is [{a}, {b}); 0 <= a < b is needed")
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)

    def decisions(self, window: int) -> IntArray:
        """First and last decision row of each segment that holds one.

        The first decision needs `window` closed rows, the last one a row to trade on.

        Args:
            window: W, bars of an observation.

        Returns:
            int64 [K, 2], both rows included, K <= S.
        """
        bounds: IntArray = self.rows + np.array([window - 1, -2])
        return bounds[bounds[:, 0] <= bounds[:, 1]]

    def check(self, window: int, rows: int) -> None:
        """Refuse segments that leave the market or hold no decision at all.

        Raises:
            ValueError: with the numbers.
        """
        if self.rows.size and self.rows[:, 1].max() > rows:
            raise ValueError(
                f"a segment ends at row {self.rows[:, 1].max()}, the market has {rows} rows"
            )
        if not len(self.decisions(window)):
            longest = int(np.max(self.rows[:, 1] - self.rows[:, 0], initial=0))
            raise ValueError(
                f"no segment holds an episode: the longest of {len(self.rows)} has {longest} rows, "
                f"a window of {window} needs {window + 1}; shorten the window or add data"
            )


def sample_starts(
    rng: np.random.Generator, segments: Segments, window: int, episode_bars: int, count: int
) -> tuple[IntArray, IntArray]:
    """Draw training episodes, uniform over the admissible first decision rows.

    A start is admissible if `episode_bars` decisions follow in its segment; a segment with fewer
    decisions has one start, its first, and gives an episode of all of them.

    Args:
        rng: where randomness comes from.
        segments: row ranges.
        window: W, bars of an observation.
        episode_bars: decisions of an episode.
        count: how many to draw.

    Returns:
        int64 [count] first and int64 [count] last decision rows, both included.

    Raises:
        ValueError: if no segment holds a decision.
    """
    bounds = segments.decisions(window)
    if not len(bounds):
        raise ValueError(
            f"none of {len(segments.rows)} segments has the {window + 1} rows that a window of "
            f"{window} needs"
        )
    starts = np.maximum(1, bounds[:, 1] - bounds[:, 0] + 2 - episode_bars)
    ends = np.cumsum(starts)
    draw = rng.integers(0, ends[-1], count)
    segment = np.searchsorted(ends, draw, side="right")
    first = bounds[segment, 0] + draw - (ends - starts)[segment]
    return first, np.minimum(first + episode_bars - 1, bounds[segment, 1])


def starting_orders(
    mapping: ActionMapping, rng: np.random.Generator, count: int, random_position: bool
) -> Orders:
    """Positions to begin `count` episodes with: flat, or flat half of the time.

    The other half begins in the position of a uniformly random action, brackets included.
    """
    actions: npt.NDArray[Any] = mapping.sample(rng, count)
    orders = mapping.to_orders(actions)
    flat = rng.integers(0, 2, (count, 1)) == 0 if random_position else np.ones((count, 1), bool)
    return orders._replace(hold=orders.hold | flat)
