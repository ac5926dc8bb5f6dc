"""Plotly figures of what changes over time: rolling figures and learning curves.

Start at `rolling_chart` and `learning_chart`.
"""

from collections.abc import Mapping
from html import escape

import numpy as np
import polars as pl

from trade_pipeline.backtest.report.chart_parts import (
    BASELINES,
    POLICY,
    SHORT,
    Figure,
    axis,
    few_digits,
    layout,
    time_axis,
)
from trade_pipeline.backtest.report.content import FloatArray, IntArray
from trade_pipeline.backtest.report.curves import MOST_POINTS, thin_line

MOST_LEARNING_POINTS = 20_000  # of all trials together
COLOURS = (POLICY, *BASELINES)
# What a training says of how good it is: columns of its diagnostics, best first.
SCORES = (("validation_return", "Validation return"), ("ep_rew_mean", "Rollout reward"))


def rolling_chart(frame: pl.DataFrame) -> Figure | None:
    """Sharpe ratio above, volatility below; None where neither is known anywhere.

    Args:
        frame: `evaluation.periods.ROLLING_SCHEMA`; gaps stay gaps.
    """
    known = frame.filter(pl.col("sharpe").is_not_null() | pl.col("volatility").is_not_null())
    if known.height == 0:
        return None
    every = -(-known.height // MOST_POINTS)
    known = known.gather_every(every)
    times = known["time"].dt.timestamp("ms").to_numpy().astype(np.float64)
    panels = (
        ("sharpe", "Sharpe ratio", "y", POLICY, "%{y:.2f}"),
        ("volatility", "Volatility", "y2", SHORT, "%{y:.1%} volatility"),
    )
    drawn = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": title,
            "x": times,
            "y": few_digits(known[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()),
            "yaxis": yaxis,
            "line": {"color": color, "width": 1.5},
            "showlegend": False,
            "hovertemplate": template,
        }
        for name, title, yaxis, color, template in panels
    ]
    return {
        "data": drawn,
        "layout": layout(
            xaxis=time_axis(anchor="y2"),
            yaxis=axis(title={"text": "Sharpe ratio"}, domain=[0.52, 1.0]),
            yaxis2=axis(
                title={"text": "Volatility"},
                domain=[0.0, 0.44],
                tickformat=".0%",
                rangemode="tozero",
            ),
            hovermode="x unified",
            hoversubplots="axis",
        ),
    }


def learning_chart(trials: Mapping[str, pl.DataFrame]) -> Figure | None:
    """What each trial earned on validation and in its rollouts while it learned.

    Args:
        trials: name to `training.diagnostics.Diagnostics.frame()`; None where no trial has a
            score.
    """
    panels = [
        (name, title)
        for name, title in SCORES
        if any(_points(frame, name)[0].size for frame in trials.values())
    ]
    if not panels:
        return None
    most = max(50, MOST_LEARNING_POINTS // (len(trials) * len(panels)))
    drawn: list[Figure] = []
    for place, (name, _) in enumerate(panels):
        template = "%{y:.2%}" if name == "validation_return" else "%{y:,.4~g}"
        for number, (trial, frame) in enumerate(trials.items()):
            at, values = thin_line(*_points(frame, name), most)
            if at.size == 0:
                continue
            known = any(trace["legendgroup"] == f"trial {number}" for trace in drawn)
            drawn.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers" if at.size <= 30 else "lines",
                    "name": escape(trial),
                    "legendgroup": f"trial {number}",
                    "showlegend": not known,
                    "x": at.astype(np.float64),
                    "y": few_digits(values),
                    "yaxis": "y2" if place else "y",
                    "line": {"color": COLOURS[number % len(COLOURS)], "width": 1.5},
                    "marker": {"size": 4},
                    "hovertemplate": f"{template} after %{{x:,.0f}} frames",
                }
            )
    described = layout(
        xaxis=axis(title={"text": "Frames"}, anchor="y2" if len(panels) > 1 else "y"),
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
    )
    for place, (name, title) in enumerate(panels):
        domain = [0.0, 1.0] if len(panels) == 1 else ([0.54, 1.0], [0.0, 0.46])[place]
        percent = {"tickformat": ".1%"} if name == "validation_return" else {}
        described["yaxis2" if place else "yaxis"] = axis(
            title={"text": title}, domain=domain, **percent
        )
    return {"data": drawn, "layout": described}


def _points(frame: pl.DataFrame, name: str) -> tuple[IntArray, FloatArray]:
    """Frames and values of all rows that have a finite value."""
    if name not in frame.columns:
        return np.empty(0, np.int64), np.empty(0)
    rows = frame.select("frames", name).drop_nulls()
    at, values = rows["frames"].to_numpy().astype(np.int64), rows[name].to_numpy()
    finite = np.isfinite(values)
    return at[finite], values[finite]
