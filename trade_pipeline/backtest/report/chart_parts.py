"""Colours, axes and layout that all charts share.

Colours read on white and on black; backgrounds are transparent. The page's script sets the ink and
the grid to those of the page. Start at `layout` and `axis`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Figure = dict[str, Any]

INK = "#7d8590"
GRID = "rgba(125,133,144,0.25)"
POLICY = "#2f81f7"
GAIN, LOSS = "#2da44e", "#e5534b"
LONG, SHORT = "#2f81f7", "#d4762c"
BASELINES = ("#d4762c", "#7d8590", "#9a6dd7", "#1a9e96", "#c4587f", "#8a8d2b")
DASHES = ("dot", "dash", "dashdot", "longdash")
CLEAR = "rgba(0,0,0,0)"
DAY, MINUTE = "%Y-%m-%d", "%Y-%m-%d %H:%M"


def layout(**parts: Any) -> Figure:
    """Plotly's layout with what all charts have in common."""
    return {
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": -0.08, "yanchor": "top"},
        "hoverlabel": {"bgcolor": "#24292f", "font": {"color": "#f0f3f6"}},
        "modebar": {"bgcolor": CLEAR, "color": INK, "activecolor": POLICY},
        "dragmode": "zoom",
        "autosize": True,
    } | parts


def axis(**parts: Any) -> Figure:
    """An axis of plotly's layout."""
    return {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True} | parts


def time_axis(**parts: Any) -> Figure:
    """A time axis with a line under the pointer."""
    line = {"spikecolor": INK, "spikethickness": 1, "spikedash": "dot"}
    return axis(type="date", hoverformat=MINUTE, **line) | parts


def hover_days(figures: Mapping[str, Figure]) -> None:
    """Let all charts show days without a time: of daily bars it says nothing."""
    for one in figures.values():
        axis_ = one["layout"]["xaxis"]
        if axis_.get("hoverformat") == MINUTE:
            axis_["hoverformat"] = DAY


def few_digits(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Seven digits, in half the bytes: for what is drawn but not read to the cent."""
    return values.astype(np.float32)
