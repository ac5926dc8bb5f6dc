"""Plotly figures of equity and of prices, as plain values and arrays.

Figures are written by hand rather than with plotly's Python classes: the bytes then depend on
this file and the input only. Names must arrive escaped, because plotly reads them as markup.
Start at `equity_chart` and `price_chart`.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.backtest.report.chart_parts import (
    BASELINES,
    CLEAR,
    DASHES,
    GAIN,
    INK,
    LONG,
    LOSS,
    MINUTE,
    POLICY,
    SHORT,
    Figure,
    axis,
    few_digits,
    layout,
    time_axis,
)
from trade_pipeline.backtest.report.content import FloatArray, IntArray
from trade_pipeline.backtest.report.curves import Candles, ThinCurve
from trade_pipeline.backtest.report.packing import in_ticks
from trade_pipeline.backtest.report.regime_shading import Runs, over, shading, shading_axis

MOST_MARKED_TRIPS = 1_000
# Most trips, and the size of their markers: many large ones would hide the price.
MARKER_SIZES = ((150, 10), (600, 7), (MOST_MARKED_TRIPS, 4))


def equity_chart(
    curves: Sequence[tuple[str, str, ThinCurve]],
    exposure: tuple[IntArray, FloatArray] | None = None,
    regimes: Runs | None = None,
) -> Figure:
    """Equity above, drawdown below and exposure under it, on one time axis.

    Args:
        curves: (escaped name, kind, points); kind is policy (in the foreground, strongest), trial
            or baseline. Drawdowns of trials are left out where there is a policy: they would bury
            it.
        exposure: [m] ms UTC and [m] gross exposure as a multiple of equity from then on.
        regimes: shaded behind equity.
    """
    has_policy = any(kind == "policy" for _, kind, _ in curves)
    trials = sum(kind == "trial" for _, kind, _ in curves)
    baseline = 0
    drawn: list[Figure] = shading(regimes, "y4") if regimes else []
    # Trials first: what is drawn later lies on top.
    for name, kind, points in sorted(curves, key=lambda curve: _LAYERS[curve[1]]):
        if kind == "trial":
            line: Figure = {"color": POLICY, "width": 1.25}
            style: Figure = {"line": line, "opacity": 0.9}
            first = not any(trace.get("legendgroup") == "trials" for trace in drawn)
            style |= {"legendgroup": "trials", "showlegend": first, "legendrank": 2}
            if has_policy:
                style["hoverinfo"] = "skip"
            shown = f"trials ({trials})" if first and trials > 1 else name
        elif kind == "policy":
            style, shown = {"line": {"color": POLICY, "width": 2.5}, "legendgroup": name}, name
            style["legendrank"] = 1
        else:
            round_, place = divmod(baseline, len(BASELINES))
            color, dash = BASELINES[place], DASHES[round_ % len(DASHES)]
            baseline += 1
            line = {"color": color, "width": 1.5, "dash": dash}
            style, shown = {"line": line, "legendgroup": name, "legendrank": 3}, name
        trace = {"type": "scatter", "mode": "lines", "name": shown, "x": _times(points.ts)} | style
        if "hoverinfo" not in trace:
            trace["hovertemplate"] = "%{y:,.2f}"
        drawn.append(trace | {"y": points.equity, "yaxis": "y"})
        if kind != "trial" or not has_policy:
            under = {"y": few_digits(points.drawdown), "yaxis": "y2", "showlegend": False}
            drawn.append(trace | under | {"hovertemplate": "%{y:.2%} drawdown"})
    if exposure is not None:
        drawn.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "exposure",
                "x": _times(exposure[0]),
                "y": few_digits(exposure[1]),
                "yaxis": "y3",
                "line": {"color": POLICY, "width": 0.6, "shape": "hv"},
                "fill": "tozeroy",
                "showlegend": False,
                "hovertemplate": "%{y:.1%}",
            }
        )
    lowest = "y2" if exposure is None else "y3"
    above, middle = ((0.38, 1.0), (0.0, 0.31)) if exposure is None else ((0.48, 1.0), (0.22, 0.43))
    overlaying = {} if regimes is None else over("y4")
    described = layout(
        xaxis=time_axis(anchor=lowest),
        yaxis=axis(title={"text": "Equity"}, domain=list(above), **overlaying),
        yaxis2=axis(title={"text": "Drawdown"}, domain=list(middle), tickformat=".0%"),
        hovermode="x unified",
        hoversubplots="axis",
    )
    if exposure is not None:
        described["yaxis3"] = axis(
            title={"text": "Exposure"}, domain=[0.0, 0.17], tickformat=".0%", rangemode="tozero"
        )
    if regimes is not None:
        described["yaxis4"] = shading_axis(above)
    return {"data": drawn, "layout": described}


_LAYERS = {"trial": 0, "baseline": 1, "policy": 2}


def price_chart(candles: Candles, trips: pl.DataFrame, regimes: Runs | None = None) -> Figure:
    """Candles with a marker at each entry and exit.

    Args:
        candles: bars to draw.
        trips: trips of this instrument; an exit may be null (still open). At most
            `MOST_MARKED_TRIPS`.
        regimes: shaded behind prices.
    """
    size = next(size for most, size in MARKER_SIZES if trips.height <= most)
    hollow = {"line": {"color": INK, "width": 1}, "fillcolor": CLEAR}
    drawn: list[Figure] = shading(regimes, "y2") if regimes else []
    drawn.append(
        {
            "type": "candlestick",
            "name": "Price",
            "x": _times(candles.ts),
            **{name: short(getattr(candles, name)) for name in ("open", "high", "low", "close")},
            # Hollow up, filled down: markers own the colours.
            "increasing": hollow,
            "decreasing": hollow | {"fillcolor": INK},
        }
    )
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
        reasons = group[f"{end}_reason"].fill_null("").to_list()
        hover = "%{y:,.6~g}<br>%{x}<br>%{text}"
        trace: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "x": _times(group[f"{end}_time"].dt.timestamp("ms").to_numpy()),
            "y": short(group[f"{end}_price"].to_numpy()),
            "text": [escape(reason) for reason in reasons],
            "marker": {
                "symbol": symbol,
                "color": color,
                "size": size,
                "line": {"color": color, "width": (2 if size > 5 else 1) if end == "exit" else 0},
            },
        }
        if end == "exit":
            trace["customdata"] = [f"{net:+,.2f}" for net in group["net"].to_list()]
            hover += "<br>net %{customdata}"
        drawn.append(trace | {"hovertemplate": hover})
    overlaying = {} if regimes is None else over("y2")
    described = layout(
        xaxis=axis(
            type="date",
            hoverformat=MINUTE,
            rangeslider={"visible": False},
            range=[float(edge) for edge in _span(candles.ts)],
        ),
        yaxis=axis(title={"text": "Price"}, **overlaying),
        hovermode="closest",
    )
    if regimes is not None:
        described["yaxis2"] = shading_axis((0.0, 1.0))
    return {"data": drawn, "layout": described}


def short(prices: FloatArray) -> npt.NDArray[np.floating]:
    """Prices as they are where they lie on ticks, else to seven digits: both take few bytes."""
    return prices if in_ticks(prices) else few_digits(prices)


def _span(ts: IntArray) -> tuple[int, int]:
    """From the first candle to the end of the last, with a little room."""
    room = max(int(ts[-1] - ts[0]) // 100, int(ts[-1] - ts[-2]) if ts.size > 1 else 60_000)
    return int(ts[0]) - room, int(ts[-1]) + room


def _times(ts: IntArray) -> FloatArray:
    """Times in ms: exact in float64, and plotly takes numbers on a date axis as ms UTC."""
    return ts.astype(np.float64)
