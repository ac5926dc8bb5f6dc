"""The report of an experiment: one html file that needs nothing else.

The file holds plotly.js once and asks the network for nothing (its own security policy forbids
it). Equal input gives equal bytes: no clock, no random ids. It knows no storage and no
experiment, only what is to be shown.
Start at `render`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
from plotly.offline import get_plotlyjs

from trade_pipeline.backtest.report.charts import (
    MOST_MARKED_TRIPS,
    Figure,
    equity_chart,
    price_chart,
)
from trade_pipeline.backtest.report.curves import (
    FEWEST_POINTS,
    MOST_POINTS,
    Candles,
    aggregate,
    thin,
)
from trade_pipeline.backtest.report.template import PAGE, SCRIPT, STYLE
from trade_pipeline.evaluation.metrics import drawdown
from trade_pipeline.evaluation.trades import TRIP_SCHEMA

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Prices = tuple[IntArray, FloatArray, FloatArray, FloatArray, FloatArray]

MOST_POINTS_TOGETHER = 150_000  # of all curves: about 5 MB of page
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"
TRIP_COLUMNS = (
    "instrument",
    "side",
    "entry_time",
    "entry_price",
    "exit_time",
    "exit_price",
    "net",
    "entry_reason",
    "exit_reason",
)
PERCENT = frozenset(
    {
        "total_return",
        "cagr",
        "cagr_calendar",
        "cagr_day",
        "cagr_day_low",
        "cagr_day_high",
        "max_drawdown",
        "max_drawdown_day",
        "max_drawdown_day_low",
        "max_drawdown_day_high",
        "volatility",
        "volatility_bar",
        "var_5",
        "var_5_bar",
        "cvar_5",
        "cvar_5_bar",
        "hit_rate",
        "hit_rate_day",
        "hit_rate_bar",
        "fees_share",
        "slippage_share",
        "financing_share",
        "costs_share",
        "exposure",
        "time_in_market",
        "psr",
    }
)
# Columns shown under the column they bound: words, then the endings of their names.
RANGES = (("seeds", "min", "max"), ("95 %", "low", "high"))
LABELS = {
    "sharpe": "Sharpe (days)",
    "sharpe_low": "Sharpe, 95 % from",
    "sharpe_high": "Sharpe, 95 % to",
    "sharpe_bar": "Sharpe (bars)",
    "psr": "Probability Sharpe > 0",
    "total_return": "Total return",
    "cagr": "Annual growth",
    "cagr_calendar": "Annual growth (calendar)",
    "max_drawdown": "Largest drawdown",
    "var_5": "Value at risk 5 %",
    "cvar_5": "Expected shortfall 5 %",
    "sqn": "System quality number",
    "turnover": "Turnover a year",
}


@dataclass(frozen=True)
class Curve:
    """Equity over time of one trial, baseline or policy (the median seed, stitched)."""

    name: str
    kind: Literal["trial", "baseline", "policy"]
    ts: IntArray
    """[n] ms UTC, increasing."""
    equity: FloatArray
    """[n] quote currency, E_0 first."""


@dataclass(frozen=True)
class ReportInput:
    """Everything the page shows."""

    title: str
    curves: list[Curve]
    leaderboard: pl.DataFrame
    """One row a policy or baseline. `<x>_min` and `<x>_max` are shown beside `<x>`."""
    prices: dict[str, Prices]
    """Instrument to (ts of bar opens in ms UTC, open, high, low, close), [n] each."""
    trips: pl.DataFrame
    """`TRIP_COLUMNS` of the trial shown; exit columns and net are null where still open, as in
    `pl.concat([tables.trips, tables.open_lots], how="diagonal")`. Empty without columns is fine."""
    metrics: dict[str, dict[str, Any]]
    """Column name to the result of `evaluation.metrics.metrics`."""
    provenance: dict[str, str]
    notes: list[str] = field(default_factory=list)


Cell = tuple[str, bool]  # html, and whether it is a number


class _Section(NamedTuple):
    id: str
    title: str
    body: str


def render(report: ReportInput) -> str:
    """The page as one html text.

    Raises:
        ValueError: a curve or price table has ragged, empty or non-finite arrays, two curves
            share a name, or trips lack a column.
    """
    _check(report)
    figures: dict[str, Figure] = {}
    sections = [
        _Section("leaderboard", "Leaderboard", _leaderboard(report.leaderboard)),
        _Section("equity", "Equity and drawdown", _equity(report.curves, figures)),
        _Section("prices", "Prices and trades", _prices(report, figures)),
        _Section("metrics", "Metrics", _metrics(report.metrics)),
        _Section("provenance", "Provenance", _provenance(report.provenance)),
        _Section("notes", "Notes", _list(report.notes, "notes")),
    ]
    body = "\n".join(
        f'<section id="{section.id}"><h2>{section.title}</h2>\n{section.body}\n</section>'
        for section in sections
        if section.body
    )
    # A "<" inside JSON could end the script element; its escape is the same JSON.
    data = json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    replacements = {
        "title": escape(report.title),
        "summary": escape(summary(report)),
        "body": body,
        "figures": data,
        "style": STYLE,
        "script": SCRIPT,
        "plotly": get_plotlyjs(),
    }
    # Split on the marks rather than replace one after another: no value is searched for marks.
    pieces = PAGE.split("@@")
    pieces[1::2] = [replacements[name] for name in pieces[1::2]]
    return "".join(pieces)


def summary(report: ReportInput) -> str:
    """What the page says, in one sentence."""
    shown = next((c for c in report.curves if c.kind == "policy"), None) or next(
        iter(report.curves), None
    )
    if shown is None:
        return "No equity curve was given."
    grown, deepest = _growth(shown), float(drawdown(shown.equity).min())
    first, last = (datetime.fromtimestamp(int(ts) / 1000, UTC) for ts in shown.ts[[0, -1]])
    sharpe = report.metrics.get(shown.name, {}).get("values", {}).get("sharpe")
    ratio = "" if sharpe is None else f" (Sharpe ratio {_number(sharpe)})"
    rivals = [c for c in report.curves if c.kind == "baseline" and c is not shown]
    against = ", ".join(f"{c.name} returned {_percent(_growth(c))}" for c in rivals)
    return (
        f"From {first:%Y-%m-%d} to {last:%Y-%m-%d} {shown.name} returned {_percent(grown)}{ratio}, "
        f"falling {_percent(-deepest)} at worst" + (f"; {against}." if against else ".")
    )


def _growth(curve: Curve) -> float:
    return float(curve.equity[-1] / curve.equity[0] - 1)


def _leaderboard(table: pl.DataFrame) -> str:
    if table.height == 0:
        return ""
    if "experiment" in table.columns and table["experiment"].n_unique() == 1:
        table = table.drop("experiment")  # the title names it
    ranges = {
        name: [(said, low, high) for said, low, high in found if {low, high} <= set(table.columns)]
        for name in table.columns
        for found in [[(said, f"{name}_{low}", f"{name}_{high}") for said, low, high in RANGES]]
    }
    folded = {end for found in ranges.values() for _, *ends in found for end in ends}
    columns = [name for name in table.columns if name not in folded]
    rows = []
    for row in table.iter_rows(named=True):
        cells = []
        for name in columns:
            text = _cell(name, row[name])
            for said, low, high in ranges[name]:
                if row[low] is not None and row[high] is not None:
                    ends = f"{_cell(name, row[low])} to {_cell(name, row[high])}"
                    text += f' <span class="range">{said} {ends}</span>'
            cells.append((text, table.schema[name] != pl.String))
        rows.append((row.get("kind") == "policy", cells))
    header = [(_label(name), table.schema[name] != pl.String) for name in columns]
    hint = (
        "A policy's figures are those of its median seed; beside them the lowest and the highest "
        "seed, and the 95 % interval of the median seed."
    )
    return _table("leaderboard-table", header, rows) + (
        f'<p class="hint">{hint}</p>' if folded else ""
    )


def _equity(curves: list[Curve], figures: dict[str, Figure]) -> str:
    if not curves:
        return ""
    most = max(FEWEST_POINTS, min(MOST_POINTS, MOST_POINTS_TOGETHER // len(curves)))
    figures["equity-chart"] = equity_chart(
        [(escape(c.name), c.kind, thin(c.ts, c.equity, most)) for c in curves]
    )
    return (
        '<button type="button" id="log-scale" aria-pressed="false">Log scale</button>\n'
        '<div id="equity-chart" class="chart tall" role="img" '
        'aria-label="Equity and drawdown over time"></div>'
    )


def _prices(report: ReportInput, figures: dict[str, Figure]) -> str:
    parts = []
    everything = report.trips if report.trips.height else pl.DataFrame(schema=TRIP_SCHEMA)
    for number, (instrument, arrays) in enumerate(report.prices.items()):
        candles, together = aggregate(Candles(*arrays))
        trips = everything.filter(pl.col("instrument") == instrument)
        hints = []
        if together > 1:
            hints.append(f"Each candle is {together} bars.")
        if trips.height > MOST_MARKED_TRIPS:
            hints.append(
                f"Markers show the {MOST_MARKED_TRIPS:,} trades of {trips.height:,} that won or "
                "lost most."
            )
            largest = pl.col("net").abs().rank("ordinal", descending=True) <= MOST_MARKED_TRIPS
            trips = trips.filter(largest)
        figures[f"price-chart-{number}"] = price_chart(candles, trips)
        parts.append(
            f"<h3>{escape(instrument)}</h3>\n"
            f'<div id="price-chart-{number}" class="chart" role="img" '
            f'aria-label="Price of {escape(instrument)} with entries and exits"></div>'
            + "".join(f'<p class="hint">{hint}</p>' for hint in hints)
        )
    return "\n".join(parts)


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    if not metrics:
        return ""
    names = list(dict.fromkeys(name for found in metrics.values() for name in found["values"]))
    rows = []
    for name in names:
        values = [found["values"].get(name) for found in metrics.values()]
        rows.append((False, [(_label(name), False), *((_cell(name, v), True) for v in values)]))
    said = [
        f"{column}: {warning}"
        for column, found in metrics.items()
        for warning in found.get("warnings", ())
    ]
    # One line a reason: a dozen figures are often undefined for the same cause.
    for column, found in metrics.items():
        reasons: dict[str, list[str]] = {}
        for name, reason in found.get("undefined", {}).items():
            reasons.setdefault(reason, []).append(_plain_label(name))
        said += [f"{column}: no {', '.join(named)}: {why}." for why, named in reasons.items()]
    header = [("", False), *((escape(column), True) for column in metrics)]
    return _table("metrics-table", header, rows) + _list(said, "reasons")


def _provenance(provenance: Mapping[str, str]) -> str:
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in provenance.items()
    )
    return f"<dl>{rows}</dl>" if rows else ""


def _table(id_: str, header: list[Cell], rows: list[tuple[bool, list[Cell]]]) -> str:
    """A table that scrolls inside itself; the first cell names its row, strong rows stand out."""
    numeric = ("", ' class="number"')
    head = "".join(f'<th scope="col"{numeric[number]}>{text}</th>' for text, number in header)
    lines = []
    for strong, (first, *rest) in rows:
        cells = "".join(f"<td{numeric[number]}>{text}</td>" for text, number in rest)
        mark = ' class="policy"' if strong else ""
        lines.append(f'<tr{mark}><th scope="row">{first[0]}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table id="{id_}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>" + "\n".join(lines) + "</tbody></table></div>"
    )


def _list(lines: Iterable[str], kind: str) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def _plain_label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def _label(name: str) -> str:
    return escape(_plain_label(name))


def _cell(name: str, value: Any) -> str:
    """A value as escaped text, with the unit of the figure called `name`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    return _percent(value) if name in PERCENT else _number(value)


def _percent(value: float) -> str:
    return f"{value * 100:,.1f} %".replace("-", MINUS)


def _number(value: float) -> str:
    """Integers whole, others to two places, small ones to three digits."""
    if isinstance(value, int):
        text = f"{value:,}"
    elif value == 0 or abs(value) >= 0.1:
        text = f"{value:,.2f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)


def _check(report: ReportInput) -> None:
    names = [curve.name for curve in report.curves]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two curves are called {name!r}; each needs a name of its own")
    for curve in report.curves:
        _check_arrays(f"curve {curve.name!r}", {"ts": curve.ts, "equity": curve.equity})
    for instrument, arrays in report.prices.items():
        named = dict(zip(("ts", "open", "high", "low", "close"), arrays, strict=True))
        _check_arrays(f"prices of {instrument!r}", named)
    missing = [name for name in TRIP_COLUMNS if name not in report.trips.columns]
    if missing and report.trips.height:
        raise ValueError(f"trips have no column {', '.join(missing)}; the price charts need it")


def _check_arrays(subject: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    size = arrays["ts"].size
    if size == 0 or any(shape != (size,) for shape in shapes.values()):
        raise ValueError(f"{subject}: shapes are {shapes}; equal, not empty, one axis is expected")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array))[0])
            raise ValueError(f"{subject}: {name} is {array[row]} at row {row}; only numbers draw")
