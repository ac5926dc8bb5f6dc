"""The report of an experiment: one html file that needs nothing else.

It knows no storage and no experiment, only what is to be shown. The frame around the sections,
which other pages share, is in `frame`. Start at `render`.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.backtest.report import windows
from trade_pipeline.backtest.report.chart_parts import Figure, hover_days
from trade_pipeline.backtest.report.charts import (
    MOST_MARKED_TRIPS,
    equity_chart,
    price_chart,
    short,
)
from trade_pipeline.backtest.report.content import (
    TRIP_COLUMNS,
    Curve,
    IntArray,
    Prices,
    ReportInput,
    check,
)
from trade_pipeline.backtest.report.curves import (
    FEWEST_POINTS,
    MOST_CANDLES,
    MOST_POINTS,
    MOST_STEPS,
    Candles,
    aggregate,
    steps,
    thin,
)
from trade_pipeline.backtest.report.figures import number, percent
from trade_pipeline.backtest.report.folds import folds_table, mark_seams
from trade_pipeline.backtest.report.frame import Section, chart, log_button, page
from trade_pipeline.backtest.report.metric_tables import (
    leaderboard_table,
    metric_tables,
    months_table,
    sensitivity_table,
)
from trade_pipeline.backtest.report.performance_charts import learning_chart, rolling_chart
from trade_pipeline.backtest.report.regime_shading import Runs, runs
from trade_pipeline.backtest.report.tables import Cell, hint, html_list, html_table
from trade_pipeline.backtest.report.trade_charts import (
    MOST_SCATTERED,
    excursion_chart,
    result_chart,
)
from trade_pipeline.backtest.report.trade_list import at_first_and_last_fill, listed, trade_list
from trade_pipeline.evaluation.metrics import drawdown
from trade_pipeline.evaluation.trades import TRIP_SCHEMA

__all__ = ["TRIP_COLUMNS", "Curve", "ReportInput", "render", "summary"]

# Of all curves and of all price charts: about 900 and 600 kB of page.
MOST_POINTS_TOGETHER, MOST_CANDLES_TOGETHER = 40_000, 12_000
FEWEST_CANDLES = 300
MOST_MARKED_TOGETHER, FEWEST_MARKED = 3_000, 100


def render(report: ReportInput) -> str:
    """The page as one html text.

    Raises:
        ValueError: arrays are ragged, empty or not finite, two curves share a name, or a frame
            lacks a column.
    """
    check(report)
    figures: dict[str, Figure] = {}
    data: dict[str, Any] = {}
    found = None if report.regimes is None else runs(*report.regimes)
    trades = listed(report.trips if report.trips.height else pl.DataFrame(schema=TRIP_SCHEMA))
    sections = [
        Section("leaderboard", "Leaderboard", leaderboard_table(report.leaderboard)),
        Section("folds", "Folds", folds_table(report.folds, report.seams, report.daily)),
        Section("equity", "Equity and drawdown", _equity(report, found, figures)),
        Section("months", "Monthly returns", months_table(report.months)),
        Section("rolling", "Rolling Sharpe ratio and volatility", _rolling(report, figures)),
        Section("prices", "Prices and trades", _prices(report, found, figures, data)),
        Section("trades", "Trades", _trades(report, trades, data)),
        Section("results", "What trades earned", _results(trades, figures)),
        Section("sensitivity", "Other costs and delays", sensitivity_table(report.sensitivity)),
        Section("metrics", "Metrics", metric_tables(report.metrics)),
        Section("learning", "Learning curves", _learning(report, figures)),
        Section("provenance", "Provenance", _provenance(report)),
        Section("notes", "Notes", html_list(report.notes, "notes")),
    ]
    if report.seams:
        for id_ in figures:
            if id_ == "equity-chart" or id_.startswith("price-chart"):
                mark_seams(figures[id_], report.seams)
    if report.daily:
        hover_days(figures)
    return page(report.title, summary(report), sections, figures, data)


def summary(report: ReportInput) -> str:
    """What the page says, in one sentence."""
    shown = foreground(report)
    if shown is None:
        return "No equity curve was given."
    grown, deepest = _growth(shown), float(drawdown(shown.equity).min())
    first, last = (datetime.fromtimestamp(int(ts) / 1000, UTC) for ts in shown.ts[[0, -1]])
    sharpe = report.metrics.get(shown.name, {}).get("values", {}).get("sharpe")
    ratio = "" if sharpe is None else f" (Sharpe ratio {number(sharpe)})"
    rivals = [c for c in report.curves if c.kind == "baseline" and c is not shown]
    against = ", ".join(f"{c.name} returned {percent(_growth(c))}" for c in rivals)
    return (
        f"From {first:%Y-%m-%d} to {last:%Y-%m-%d} {shown.name} returned {percent(grown)}{ratio}, "
        f"falling {percent(-deepest)} at worst" + (f"; {against}." if against else ".")
    )


def foreground(report: ReportInput) -> Curve | None:
    """The curve that trades and prices are of."""
    policies = [curve for curve in report.curves if curve.kind == "policy"]
    return next(iter([*policies, *report.curves]), None)


def _growth(curve: Curve) -> float:
    return float(curve.equity[-1] / curve.equity[0] - 1)


def _equity(report: ReportInput, found: Runs | None, figures: dict[str, Figure]) -> str:
    curves = report.curves
    if not curves:
        return ""
    most = max(FEWEST_POINTS, min(MOST_POINTS, MOST_POINTS_TOGETHER // len(curves)))
    figures["equity-chart"] = equity_chart(
        [(escape(c.name), c.kind, thin(c.ts, c.equity, most)) for c in curves],
        None if report.exposure is None else steps(*report.exposure),
        found,
    )
    words = "Equity and drawdown over time" + ("" if report.exposure is None else ", and exposure")
    together = 0 if report.exposure is None else -(-report.exposure[0].size // MOST_STEPS)
    return (
        log_button("equity-chart", "log-scale")
        + chart("equity-chart", words, tall=True)
        + (hint(f"Exposure is the mean of each {together} bars.") if together > 1 else "")
        + _shading_hint(found)
    )


def _shading_hint(found: Runs | None) -> str:
    if found is None or found.together == 1:
        return ""
    return hint(f"Each {found.together} bars are shaded by their most frequent regime.")


def _rolling(report: ReportInput, figures: dict[str, Figure]) -> str:
    drawn = rolling_chart(report.rolling) if report.rolling.height else None
    if drawn is None:
        return ""
    figures["rolling-chart"] = drawn
    days = report.rolling["days"].to_list() if "days" in report.rolling.columns else []
    over = max((one for one in days if one is not None), default=None)
    words = f"Of daily returns over the last {over} days, annualised." if over else ""
    return chart("rolling-chart", "Sharpe ratio and volatility of the last days over time") + (
        hint(words) if words else ""
    )


def _prices(
    report: ReportInput, found: Runs | None, figures: dict[str, Figure], data: dict[str, Any]
) -> str:
    parts = []
    some = report.trips if report.trips.height else pl.DataFrame(schema=TRIP_SCHEMA)
    everything = at_first_and_last_fill(some)
    share = max(len(report.prices), 1)
    most = max(FEWEST_CANDLES, min(MOST_CANDLES, MOST_CANDLES_TOGETHER // share))
    for place, (instrument, arrays) in enumerate(report.prices.items()):
        id_ = f"price-chart-{place}"
        candles, together = aggregate(Candles(*arrays), most)
        trips = everything.filter(pl.col("instrument") == instrument)
        hints = []
        if together > 1:
            said = f"Each candle is {together} bars."
            kept = windows.around_trades(arrays[0], trips, windows.MOST_WINDOW_BARS // share)
            if kept.size:
                data.setdefault("windows", {})[id_] = _window(arrays, kept)
                said += (
                    f" Around trades {kept.size:,} of {arrays[0].size:,} bars are kept as they "
                    "are: they show once you zoom in on them."
                )
            hints.append(f'<p class="hint" id="{id_}-detail">{said}</p>')
        marked = max(FEWEST_MARKED, min(MOST_MARKED_TRIPS, MOST_MARKED_TOGETHER // share))
        if trips.height > marked:
            words = f"Markers show the {marked:,} trades of {trips.height:,} that won or lost most."
            hints.append(hint(words))
            largest = pl.col("net").abs().rank("ordinal", descending=True) <= marked
            trips = trips.filter(largest)
        figures[id_] = price_chart(candles, trips, found)
        parts.append(
            f"<h3>{escape(instrument)}</h3>\n"
            + chart(id_, f"Price of {instrument} with entries and exits")
            + "".join(hints)
        )
    return "\n".join(parts) + (_shading_hint(found) if parts else "")


def _window(arrays: Prices, kept: IntArray) -> dict[str, Any]:
    """Bars at full resolution; `starts` are the places where one stretch of them begins."""
    ts, *prices = arrays
    named = zip(("open", "high", "low", "close"), prices, strict=True)
    return {
        "first": int(ts[0]),
        "last": int(ts[-1]),
        "starts": windows.starts(kept),
        "ts": ts[kept],
        **{name: short(values[kept]) for name, values in named},
    }


def _trades(report: ReportInput, trades: pl.DataFrame, data: dict[str, Any]) -> str:
    if trades.height == 0:
        return ""
    charts = {name: f"price-chart-{place}" for place, name in enumerate(report.prices)}
    body, data["trades"] = trade_list(trades, charts, report.daily)
    said = (
        "A trade goes from flat to flat. Where it was built up or closed in parts, quantity is all "
        "that was entered, prices are those of its first and last fill, and MFE and MAE are "
        "measured from the mean entry price of what was held at the time."
    )
    return body + hint(said) + _reconciled(report, trades)


def _reconciled(report: ReportInput, trades: pl.DataFrame) -> str:
    """Trades and financing as what they add up to: the change of equity."""
    shown = foreground(report)
    if report.financing is None or shown is None or "net" not in trades.columns:
        return ""
    still_open = trades.filter(pl.col("net").is_null())
    lines = [(f"Net of {_trades_in_words(trades.height - still_open.height)}", trades["net"].sum())]
    if still_open.height:
        held = _trades_in_words(still_open.height, "still open")
        lines += [
            (f"Realised so far of {held}", still_open["realised"].sum()),
            (f"Unrealised of {held}, at the last close", still_open["unrealised"].sum()),
        ]
    lines += [
        ("Interest, borrowing and funding", -report.financing),
        ("Change of equity", float(shown.equity[-1] - shown.equity[0])),
    ]
    rows: list[tuple[bool, list[Cell]]] = [
        (place == len(lines) - 1, [(escape(name), False), (number(float(value)), True)])
        for place, (name, value) in enumerate(lines)
    ]
    header: list[Cell] = [("", False), ("Quote currency", True)]
    return "<h3>What equity changed by</h3>\n" + html_table("reconciled-table", header, rows)


def _trades_in_words(count: int, kind: str = "closed") -> str:
    return f"{count:,} {kind} trade{'' if count == 1 else 's'}"


def _results(trades: pl.DataFrame, figures: dict[str, Figure]) -> str:
    closed = trades.filter(pl.col("net").is_not_null())
    if closed.height == 0:
        return ""
    name = "return" if "return" in closed.columns else "net"
    results = closed[name].drop_nulls().to_numpy()
    parts = []
    if results.size:
        figures["result-chart"], clipped = result_chart(results, name == "return")
        middle = float(np.median(results))
        won = float(np.mean(closed["net"].to_numpy() > 0))
        total = "1 trade" if closed.height == 1 else f"{closed.height:,} trades"
        words = (
            f"{total}, of which {percent(won)} won; mean {_result(name, float(results.mean()))}, "
            f"median {_result(name, middle)}"
            + (" of what was bought or sold." if name == "return" else ".")
        )
        if clipped:
            words += " The outermost bars hold what lies beyond them, too."
        parts.append(
            "<h3>Distribution of results</h3>\n"
            + chart("result-chart", "How many trades earned how much")
            + hint(words)
        )
    both = ("mfe_share", "mae_share")
    if set(both) <= set(closed.columns):
        measured = closed.drop_nulls(both)
        if measured.height:
            every = -(-measured.height // MOST_SCATTERED)
            figures["excursion-chart"] = excursion_chart(measured.gather_every(every))
            words = (
                "How far price went for a trade and against it while it was held, in parts of the "
                "entry price."
            )
            if every > 1:
                words += f" One trade of {every} is drawn."
            parts.append(
                "<h3>Best and worst price while held</h3>\n"
                + chart("excursion-chart", "Best against worst price of each trade")
                + hint(words)
            )
    return '<div class="beside">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>"


def _result(name: str, value: float) -> str:
    """To a hundredth of a percent: many trades earn little each."""
    return percent(value, places=2) if name == "return" else number(value)


def _learning(report: ReportInput, figures: dict[str, Figure]) -> str:
    drawn = learning_chart(report.learning) if report.learning else None
    if drawn is None:
        return ""
    figures["learning-chart"] = drawn
    return chart("learning-chart", "What each trial earned while it learned", tall=True)


def _provenance(report: ReportInput) -> str:
    items: Mapping[str, str] = report.provenance
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in items.items()
    )
    folded = (
        "<details><summary>Configuration</summary>"
        f'<pre class="scroll" tabindex="0">{escape(report.configuration)}</pre></details>'
        if report.configuration
        else ""
    )
    return (f"<dl>{rows}</dl>" if rows else "") + folded
