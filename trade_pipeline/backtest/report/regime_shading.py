"""Regimes as shaded times behind a curve.

Start at `runs`; `shading` draws them.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from trade_pipeline.backtest.report.chart_parts import Figure
from trade_pipeline.backtest.report.content import IntArray

MOST_RUNS = 2_000  # a screen is no wider
# From calm to wild, told apart by those who see no red and green, too.
RAMP = ((47, 129, 247), (26, 158, 150), (196, 176, 36), (212, 118, 44), (207, 52, 70))
OPACITY = 0.17


class Runs(NamedTuple):
    """Stretches of one regime, [r] each: from `start` up to `end`, ms UTC, without label -1."""

    start: IntArray
    end: IntArray
    label: IntArray
    together: int
    """Bars of which the most frequent regime is shown."""


def runs(ts: IntArray, labels: IntArray) -> Runs:
    """Bars of one regime after another, put together; at most about `MOST_RUNS`.

    Where regimes change more often, each stretch of k bars counts as its most frequent regime, the
    calmer of equals.

    Args:
        ts: [n] ms UTC, increasing.
        labels: [n] regime of each bar, -1 none.
    """
    together = 1
    if np.count_nonzero(np.diff(labels)) >= MOST_RUNS:
        together = -(-labels.size // MOST_RUNS)
        starts = np.arange(0, labels.size, together)
        known = np.unique(labels)
        counts = np.stack([np.add.reduceat(labels == label, starts) for label in known])
        labels, ends = known[counts.argmax(axis=0)], np.append(ts[starts[1:]], _end(ts))
        ts = ts[starts]
    else:
        ends = np.append(ts[1:], _end(ts))
    first = np.flatnonzero(np.append(True, np.diff(labels) != 0))
    last = np.append(first[1:], labels.size) - 1
    named = labels[first] >= 0
    return Runs(ts[first][named], ends[last][named], labels[first][named], together)


def shading(found: Runs, yaxis: str) -> list[Figure]:
    """Plotly's traces, a label each from calm to wild, on an axis from 0 to 1."""
    known = np.unique(found.label)
    top = int(known[-1]) if known.size else 0
    drawn = []
    for label in known.tolist():
        rows = found.label == label
        # Up at the start of a run and down at its end.
        times = np.stack([found.start[rows], found.end[rows]], axis=1).ravel()
        drawn.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": regime_name(label, top),
                "x": times.astype(np.float64),
                "y": np.tile([1.0, 0.0], int(rows.sum())),
                "yaxis": yaxis,
                "line": {"width": 0, "shape": "hv"},
                "fill": "tozeroy",
                "fillcolor": f"rgba({_colour(label, top)},{OPACITY})",
                "hoverinfo": "skip",
                "legendgroup": f"regime {label}",
                "legendrank": 1_001 + label,
            }
        )
    return drawn


def shading_axis(domain: tuple[float, float]) -> Figure:
    """The axis that `shading` lies on: without marks, and it never moves."""
    return {"domain": list(domain), "range": [0, 1], "fixedrange": True, "visible": False}


def over(yaxis: str) -> Figure:
    """What an axis says that lies over `shading_axis` and keeps its own ticks and grid."""
    return {"overlaying": yaxis, "tickmode": "auto"}


def regime_name(label: int, top: int) -> str:
    """What a legend calls a regime; `top` is the largest label."""
    extreme = {0: " (calmest)", top: " (wildest)"} if top else {}
    return f"regime {label}{extreme.get(label, '')}"


def _colour(label: int, top: int) -> str:
    """Red, green and blue on the ramp from calm to wild."""
    place = 0.0 if top == 0 else label / top * (len(RAMP) - 1)
    at = np.arange(len(RAMP))
    parts: list[npt.NDArray[np.float64]] = [
        np.interp([place], at, np.array(channel)) for channel in zip(*RAMP, strict=True)
    ]
    return ",".join(str(round(float(part[0]))) for part in parts)


def _end(ts: IntArray) -> int:
    """Where the last bar ends, if it is as long as most."""
    return int(ts[-1]) + (int(np.median(np.diff(ts))) if ts.size > 1 else 0)
