"""Other series beside a series' own bars, each row with what had closed by then.

Knows no store. Start at `with_references`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.features.indicator import reference_column


@dataclass(frozen=True)
class Reference:
    """Another series' bars.

    Attributes:
        grids: one frame a slice, in order of time: `close_ts` Datetime(ms, UTC) and Float64
            columns, prices adjusted.
        timeframe_ms: how long the last bar of a slice stays the newest.
    """

    grids: Sequence[pl.DataFrame]
    timeframe_ms: int


def with_references(
    segments: Sequence[pl.DataFrame], references: Mapping[str, Reference], columns: Sequence[str]
) -> list[pl.DataFrame]:
    """Segments with the columns of other series under `reference_column`.

    A row takes the bar of the other series that closed last, at its own close or before. Where the
    other series has a gap, the segment ends and another begins after it.

    Args:
        segments: frames with `close_ts`, in order of time.
        references: by series key.
        columns: of the references, to be taken.
    """
    for series, reference in references.items():
        segments = [
            part for segment in segments for part in _beside(segment, series, reference, columns)
        ]
    return list(segments)


def _beside(
    segment: pl.DataFrame, series: str, reference: Reference, columns: Sequence[str]
) -> list[pl.DataFrame]:
    """The runs of a segment's rows for which the reference has a bar, with its columns."""
    closes = [_closes(grid) for grid in reference.grids]
    known = np.concatenate([np.empty(0, np.int64), *closes])
    last = np.cumsum([len(one) for one in closes]) - 1
    own = _closes(segment)
    newest = np.searchsorted(known, own, side="right") - 1
    inside = newest >= 0
    ended = np.isin(newest, last) & inside
    inside[ended] = own[ended] < known[newest[ended]] + reference.timeframe_ms
    if not inside.any():
        return []
    taken = pl.concat([grid.select(columns) for grid in reference.grids])[np.maximum(newest, 0)]
    whole = segment.with_columns(
        taken[column].alias(reference_column(column, series)) for column in columns
    )
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0))
    return [whole.slice(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)]


def _closes(frame: pl.DataFrame) -> NDArray[np.int64]:
    return frame["close_ts"].dt.epoch("ms").to_numpy()
