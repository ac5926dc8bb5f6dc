"""Plotly figures of what trades earned. Start at `result_chart` and `excursion_chart`."""

import math

import numpy as np
import polars as pl

from trade_pipeline.backtest.report.chart_parts import (
    GAIN,
    INK,
    LOSS,
    Figure,
    axis,
    few_digits,
    layout,
)
from trade_pipeline.backtest.report.content import FloatArray

BARS = 40
TAIL = 0.5  # percent of results at either end that share the outermost bars
MOST_SCATTERED = 2_000


def result_chart(results: FloatArray, is_share: bool) -> tuple[Figure, bool]:
    """How often trades earned how much, and whether the outermost bars hold what lies beyond.

    A bar never mixes gains and losses, and its width is 1, 2 or 5 of some power of ten.

    Args:
        results: [trades] net result of closed trades, at least one.
        is_share: whether they are fractions of what was bought or sold; else quote currency.
    """
    low = float(np.percentile(results, TAIL, method="lower"))
    high = float(np.percentile(results, 100.0 - TAIL, method="higher"))
    width = _round_width(max(high, 0.0) - min(low, 0.0))
    first = min(math.ceil(low / width) - 1, -1 if (results <= 0).any() else 0)
    last = max(math.ceil(high / width), 1 if (results > 0).any() else 0)
    # Nothing earned is no gain: a result of zero belongs to the bar that ends there.
    bins = np.ceil(results / width).astype(np.int64) - 1
    clipped = bool(((bins < first) | (bins >= last)).any())
    counts = np.bincount(np.clip(bins, first, last - 1) - first, minlength=last - first)
    edges = np.arange(first, last + 1)
    middles = (edges[:-1] + 0.5) * width
    form = ".2%" if is_share else ",.2f"
    texts = [f"{edge * width:{form}} to {(edge + 1) * width:{form}}" for edge in edges[:-1]]
    figure = {
        "data": [
            {
                "type": "bar",
                "name": "trades",
                "x": middles,
                "y": counts,
                "width": width * 0.94,
                "text": texts,
                "textposition": "none",
                "marker": {"color": [GAIN if middle > 0 else LOSS for middle in middles]},
                "hovertemplate": "%{y} trades: %{text}<extra></extra>",
            }
        ],
        "layout": layout(
            xaxis=axis(
                title={"text": "Net result" + ("" if is_share else ", quote currency")},
                tickformat=".1~%" if is_share else ",.6~g",
            ),
            yaxis=axis(title={"text": "Trades"}),
            showlegend=False,
            bargap=0,
            shapes=[
                {
                    "type": "line",
                    "x0": 0,
                    "x1": 0,
                    "yref": "paper",
                    "y0": 0,
                    "y1": 1,
                    "line": {"color": INK, "width": 1},
                }
            ],
        ),
    }
    return figure, clipped


def excursion_chart(trips: pl.DataFrame) -> Figure:
    """How far price went against a trade (to the right) and for it (up), in parts of entry price.

    Args:
        trips: closed, with `number`, `net`, `mfe_share`, `mae_share` and no null.
    """
    groups = (
        ("gain", "circle", GAIN, trips.filter(pl.col("net") > 0)),
        ("loss", "x-thin-open", LOSS, trips.filter(pl.col("net") <= 0)),
    )
    drawn = []
    for name, symbol, color, group in groups:
        if group.height == 0:
            continue
        line = {"color": color, "width": 1.5 if name == "loss" else 0}
        drawn.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": few_digits(group["mae_share"].to_numpy()),
                "y": few_digits(group["mfe_share"].to_numpy()),
                "customdata": group["number"].to_numpy().astype(np.float64),
                "marker": {"symbol": symbol, "color": color, "size": 6, "line": line},
                "opacity": 0.75,
                "hovertemplate": "trade %{customdata}<br>%{y:.2%} for, %{x:.2%} against",
            }
        )
    return {
        "data": drawn,
        "layout": layout(
            xaxis=axis(
                title={"text": "Worst price against it (MAE)"},
                tickformat=".1~%",
                rangemode="tozero",
            ),
            yaxis=axis(
                title={"text": "Best price for it (MFE)"}, tickformat=".1~%", rangemode="tozero"
            ),
            hovermode="closest",
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        ),
    }


def _round_width(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that at most `BARS` of them span it."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / BARS))
    return next(times * power for times in (1, 2, 5, 10) if times * power * BARS >= span)
