"""Plotly figures of a report as plain JSON values.

Figures are written by hand rather than with plotly's Python classes: the bytes then depend on
this file and the input only. Colours read on white and on black; backgrounds are transparent.
Names must arrive escaped, because plotly reads them as markup.
Start at `equity_chart` and `price_chart`.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.backtest.report.curves import Candles, ThinCurve

MOST_MARKED_TRIPS = 2_000

INK = "#7d8590"
MINUTE = "%Y-%m-%d %H:%M"
GRID = "rgba(125,133,144,0.25)"
POLICY = "#2f81f7"
GAIN, LOSS = "#2da44e", "#e5534b"
LONG, SHORT = "#2f81f7", "#d4762c"
BASELINES = ("#d4762c", "#7d8590", "#9a6dd7", "#1a9e96", "#c4587f", "#8a8d2b")

Figure = dict[str, Any]


def equity_chart(curves: Sequence[tuple[str, str, ThinCurve]]) -> Figure:
    """Equity above, drawdown below, on one time axis.

    Args:
        curves: (escaped name, kind, points); kind is policy, trial or baseline. Drawdowns of
            trials are left out where there is a policy: they would bury it.
    """
    has_policy = any(kind == "policy" for _, kind, _ in curves)
    trials = sum(kind == "trial" for _, kind, _ in curves)
    baseline = 0
    drawn: list[Figure] = []
    # Trials first: what is drawn later lies on top.
    for name, kind, points in sorted(curves, key=lambda curve: _LAYERS[curve[1]]):
        if kind == "trial":
            line: Figure = {"color": POLICY, "width": 1}
            style: Figure = {"line": line, "opacity": 0.5}
            first = not any(trace.get("legendgroup") == "trials" for trace in drawn)
            style |= {"legendgroup": "trials", "showlegend": first}
            if has_policy:
                style["hoverinfo"] = "skip"
            shown = f"trials ({trials})" if first and trials > 1 else name
        elif kind == "policy":
            style, shown = {"line": {"color": POLICY, "width": 2.5}, "legendgroup": name}, name
        else:
            color = BASELINES[baseline % len(BASELINES)]
            baseline += 1
            line = {"color": color, "width": 1.5, "dash": "dot"}
            style, shown = {"line": line, "legendgroup": name}, name
        trace = {"type": "scatter", "mode": "lines", "name": shown, "x": _times(points.ts)} | style
        if "hoverinfo" not in trace:
            trace["hovertemplate"] = "%{y:,.2f}"
        drawn.append(trace | {"y": _numbers(points.equity), "yaxis": "y"})
        if kind != "trial" or not has_policy:
            under = {"y": _numbers(points.drawdown), "yaxis": "y2", "showlegend": False}
            drawn.append(trace | under | {"hovertemplate": "%{y:.2%} drawdown"})
    layout = _layout(
        xaxis=_axis(
            type="date",
            anchor="y2",
            hoverformat=MINUTE,
            spikecolor=INK,
            spikethickness=1,
            spikedash="dot",
        ),
        yaxis=_axis(title={"text": "Equity"}, domain=[0.38, 1.0]),
        yaxis2=_axis(title={"text": "Drawdown"}, domain=[0.0, 0.31], tickformat=".0%"),
        hovermode="x unified",
        hoversubplots="axis",
    )
    return {"data": drawn, "layout": layout}


_LAYERS = {"trial": 0, "baseline": 1, "policy": 2}


def price_chart(candles: Candles, trips: pl.DataFrame) -> Figure:
    """Candles with a marker at each entry and exit.

    Args:
        candles: bars to draw.
        trips: trips of this instrument; an exit may be null (still open). At most
            `MOST_MARKED_TRIPS`.
    """
    hollow = {"line": {"color": INK, "width": 1}, "fillcolor": "rgba(0,0,0,0)"}
    drawn: list[Figure] = [
        {
            "type": "candlestick",
            "name": "Price",
            "x": _times(candles.ts),
            "open": _numbers(candles.open),
            "high": _numbers(candles.high),
            "low": _numbers(candles.low),
            "close": _numbers(candles.close),
            # Hollow up, filled down: markers own the colours.
            "increasing": hollow,
            "decreasing": hollow | {"fillcolor": INK},
        }
    ]
    closed = trips.filter(pl.col("exit_time").is_not_null())
    groups = (
        ("Long entry", "entry", "triangle-up", LONG, trips.filter(pl.col("side") == "long")),
        ("Short entry", "entry", "triangle-down", SHORT, trips.filter(pl.col("side") == "short")),
        ("Exit, gain", "exit", "circle-open", GAIN, closed.filter(pl.col("net") > 0)),
        ("Exit, loss", "exit", "x-thin-open", LOSS, closed.filter(pl.col("net") <= 0)),
    )
    for name, end, symbol, color, group in groups:
        if group.height == 0:
            continue
        times = group[f"{end}_time"].dt.timestamp("ms").to_numpy()
        reasons = group[f"{end}_reason"].fill_null("").to_list()
        hover = "%{y:,.6~g}<br>%{x}<br>%{text}"
        trace: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": _times(times),
            "y": _numbers(group[f"{end}_price"].to_numpy()),
            "text": reasons,
            "marker": {
                "symbol": symbol,
                "color": color,
                "size": 10,
                "line": {"color": color, "width": 2 if end == "exit" else 0},
            },
        }
        if end == "exit":
            trace["customdata"] = [f"{net:+,.2f}" for net in group["net"].to_list()]
            hover += "<br>net %{customdata}"
        drawn.append(trace | {"hovertemplate": hover})
    layout = _layout(
        xaxis=_axis(type="date", hoverformat=MINUTE, rangeslider={"visible": False}),
        yaxis=_axis(title={"text": "Price"}),
        hovermode="closest",
    )
    return {"data": drawn, "layout": layout}


def _layout(**parts: Any) -> Figure:
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": INK},
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": -0.08, "yanchor": "top"},
        "hoverlabel": {"bgcolor": "#24292f", "font": {"color": "#f0f3f6"}},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": POLICY},
        "dragmode": "zoom",
        "autosize": True,
    } | parts


def _axis(**parts: Any) -> Figure:
    return {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True} | parts


def _times(ts: npt.NDArray[np.int64]) -> Figure:
    """Times in ms: exact in float64, and plotly takes numbers on a date axis as ms UTC."""
    return _numbers(ts.astype(np.float64))


def _numbers(values: npt.NDArray[Any]) -> Figure:
    """Plotly's typed array: little-endian float64 as base64."""
    data = np.ascontiguousarray(values, dtype="<f8").tobytes()
    return {"dtype": "f8", "bdata": base64.b64encode(data).decode("ascii")}
