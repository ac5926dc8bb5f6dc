"""Which rows an episode covers.

Knows nothing of features or policies. Start at `Segments` and `starts_of`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trade_pipeline.settings.environment import (
    EnvironmentSettings,
    SequentialStarts,
    StratifiedStarts,
)
from trade_pipeline.simulator.compiled import compiled
from trade_pipeline.simulator.market import IntArray
from trade_pipeline.simulator.randomness import Streams, next_below


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
        given = np.asarray(self.rows)
        if given.size and given.dtype.kind not in "iu":
            raise ValueError(f"segments have dtype {given.dtype}; row numbers are integers")
        rows = np.array(given, np.int64)
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


class Starts(NamedTuple):
    """Where training episodes can begin, as compiled code reads it.

    Attributes:
        first: int64 [K] first decision rows, in groups of one label each.
        last: int64 [K] the last decision row of the episode that begins there.
        groups: int64 [L + 1] where each group begins, and K.
        sequential: whether episodes follow each other in the order listed.
        most_offset: most bars by which a start is moved later.
    """

    first: IntArray
    last: IntArray
    groups: IntArray
    sequential: bool
    most_offset: int


EPISODE = np.dtype(
    [
        ("first", np.int64),  # first decision row
        ("last", np.int64),  # last decision row
        ("number", np.int64),  # of sequential starts, the one that comes next
        ("reward", np.float64),  # sum so far
        ("ended_first", np.int64),  # likewise of the episode that ended last
        ("ended_row", np.int64),
        ("ended_reward", np.float64),
        ("ended_terminated", np.bool_),
    ],
    align=True,
)


def starts_of(
    settings: EnvironmentSettings, segments: Segments, labels: npt.NDArray[Any] | None
) -> Starts:
    """All admissible starts; a segment with too few decisions has one, its first.

    Args:
        settings: `window`, `episode_bars` and `starts`.
        segments: row ranges.
        labels: [T] whole numbers, for stratified starts.

    Raises:
        ValueError: if labels are needed and missing, too few, or no whole numbers.
    """
    bars = settings.episode_bars
    bounds = segments.decisions(settings.window)
    sequential = isinstance(settings.starts, SequentialStarts)
    listed = [
        np.arange(a, b + 1, bars) if sequential else np.arange(a, max(a, b + 1 - bars) + 1)
        for a, b in bounds
    ]
    first = np.concatenate(listed)
    last = np.repeat(bounds[:, 1], [len(rows) for rows in listed])
    groups = np.array([0, len(first)])
    if isinstance(settings.starts, StratifiedStarts):
        rows = int(segments.rows[:, 1].max())
        carried = _whole_numbers(settings.starts.label, labels, rows)[first]
        order = np.argsort(carried, kind="stable")
        first, last = first[order], last[order]
        groups = np.append(np.unique(carried[order], return_index=True)[1], len(first))
    return Starts(
        first=first.astype(np.int64),
        last=np.minimum(first + bars - 1, last).astype(np.int64),
        groups=groups.astype(np.int64),
        sequential=sequential,
        most_offset=getattr(settings.starts, "start_offset_bars", 0),
    )


@compiled
def draw_episode(starts: Starts, streams: Streams, episode: Any, e: int) -> None:
    """The next episode of environment e into its EPISODE record."""
    if starts.sequential:
        k = episode.number
        episode.number = (k + 1) % starts.first.shape[0]
    else:
        group = 0
        if starts.groups.shape[0] > 2:
            group = next_below(streams, e, starts.groups.shape[0] - 1)
        start = starts.groups[group]
        k = start + next_below(streams, e, starts.groups[group + 1] - start)
    first = starts.first[k]
    last = starts.last[k]
    if starts.most_offset > 0:
        first += next_below(streams, e, min(starts.most_offset, last - first) + 1)
    episode.first = first
    episode.last = last
    episode.reward = 0.0


@compiled
def stagger(streams: Streams, episode: Any, e: int) -> None:
    """Cut an episode to a random length."""
    episode.last = episode.first + next_below(streams, e, episode.last - episode.first + 1)


def _whole_numbers(name: str, labels: npt.NDArray[Any] | None, rows: int) -> IntArray:
    if labels is None:
        raise ValueError(
            f"starts are stratified by {name}, but no labels were given; pass labels, one a row"
        )
    if np.ndim(labels) != 1 or len(labels) < rows:
        raise ValueError(
            f"label {name}: labels have shape {np.shape(labels)}; one a row, for {rows} rows or "
            "more, is needed"
        )
    wrong = np.flatnonzero(~np.isfinite(labels) | (np.rint(labels) != labels))
    if wrong.size:
        raise ValueError(
            f"label {name}: row {wrong[0]} is {labels[wrong[0]]}; labels are whole numbers, such "
            "as the number of a regime"
        )
    return np.asarray(labels).astype(np.int64)
