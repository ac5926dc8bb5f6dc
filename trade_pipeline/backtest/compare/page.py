"""Two finished results on one page that works offline.

What makes them unlike stands on top, before any figure. Start at `comparison`.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import polars as pl

from trade_pipeline.backtest.compare import differences
from trade_pipeline.backtest.compare.sides import Side
from trade_pipeline.backtest.report.chart_parts import Figure, hover_days
from trade_pipeline.backtest.report.charts import equity_chart
from trade_pipeline.backtest.report.curves import thin
from trade_pipeline.backtest.report.figures import (
    MINUS,
    NOTHING,
    PERCENT,
    cell,
    described,
    difference,
    label,
    plain_label,
    repeated,
)
from trade_pipeline.backtest.report.frame import Section, chart, log_button, page
from trade_pipeline.backtest.report.metric_tables import REPEATED, TAP
from trade_pipeline.backtest.report.tables import Cell, hint, html_list, html_table
from trade_pipeline.evaluation.measure import FloatArray, IntArray

LIKE = "Both traded the same markets at the same times, on the same data and at the same costs."
SAME = "Both sides are the same."
# What a row of the leaderboard is laid beside another by, where both have it.
RANKED = (
    *("sharpe", "sharpe_low", "sharpe_high", "deflated_sharpe", "total_return", "max_drawdown"),
    *("turnover", "trades", "seeds", "folds"),
)


def comparison(a: Side, b: Side) -> str:
    """The page as one html text; `a` is the solid line, `b` the dotted one."""
    doubts = differences.doubts(a, b)
    figures: dict[str, Figure] = {}
    sections = [
        Section("doubts", "Before you compare", html_list(doubts, "doubts") or hint(LIKE)),
        Section("sides", "What is compared", _sides(a, b)),
        Section("metrics", "Metrics", _metrics(a, b)),
        Section("common", "Equity over the common time", _common(a, b, figures)),
        Section("own", "Equity, each over its own time", _own(a, b, figures)),
        Section("leaderboard", "Leaderboards", _leaderboards(a, b)),
        Section(
            "configuration",
            "Configuration that differs",
            _differing("configuration-table", a.configuration, b.configuration),
        ),
        Section(
            "provenance",
            "Provenance that differs",
            _differing("provenance-table", a.provenance | a.data, b.provenance | b.data),
        ),
    ]
    if a.daily and b.daily:
        hover_days(figures)
    return page(f"{a.key} beside {b.key}", _summary(a, b, doubts), sections, figures)


def _summary(a: Side, b: Side, doubts: Sequence[str]) -> str:
    returns = [cell("total_return", one.figures["values"]["total_return"]) for one in (a, b)]
    said = (
        f"A, {a.key} ({a.subject}), returned {returns[0]} from {a.period}; "
        f"B, {b.key} ({b.subject}), {returns[1]} from {b.period}."
    )
    unlike = [one.partition(":")[0].lower() for one in doubts if one.startswith("Different")]
    if unlike:
        return f"Not like with like: {', '.join(unlike)}. {said}"
    return f"{SAME} {said}" if differences.same(a, b) else said


def _sides(a: Side, b: Side) -> str:
    lines = [
        ("Bundle", a.key, b.key),
        ("Version", a.version, b.version),
        ("Shown", a.subject, b.subject),
        ("Markets", ", ".join(a.instruments), ", ".join(b.instruments)),
        ("Period", a.period, b.period),
    ]
    rows = [
        (False, [(name, False), (escape(left), False), (escape(right), False)])
        for name, left, right in lines
    ]
    return _pairs("sides-table", [("", False), ("A", False), ("B", False)], rows)


def _metrics(a: Side, b: Side) -> str:
    table = differences.metric_differences(a, b)
    rows: list[tuple[bool, list[Cell]]] = []
    reasons: dict[str, list[str]] = {}
    twice = repeated([dict(zip(table["metric"], table[side], strict=True)) for side in "ab"])
    for name, first, second, apart, why_a, why_b in table.iter_rows():
        if name in twice:
            continue
        part, _, figure = name.rpartition(": ")
        words = f"{part.capitalize()}: {plain_label(figure).lower()}" if part else None
        values = (cell(figure, _whole(figure, value)) for value in (first, second))
        apart = difference(figure, _whole(figure, apart))
        cells = [(described(figure, words), False), *((text, True) for text in (*values, apart))]
        rows.append((False, cells))
        for letter, why in (("A", why_a), ("B", why_b)):
            if why is not None:
                plain = plain_label(figure)
                reasons.setdefault(f"{letter} has no {{}}: {why}.", []).append(
                    f"{plain} ({part})" if part else plain
                )
    said = [sentence.replace("{}", ", ".join(names), 1) for sentence, names in reasons.items()]
    header = [("", False), ("A", True), ("B", True), (f"B {MINUS} A", True)]
    left_out = hint(REPEATED) if twice else ""
    body = _pairs("metrics-table", header, rows) + left_out
    return hint(TAP) + body + html_list(said, "reasons")


def _common(a: Side, b: Side, figures: dict[str, Figure]) -> str:
    shared = differences.common(a, b)
    if shared is None:
        return hint("There is no time in which both have equity, so nothing can be laid over.")
    figures["common-chart"] = _overlay((shared.ts_a, shared.a), (shared.ts_b, shared.b))
    rows = [
        (
            False,
            [
                (label(name), False),
                (cell(name, left), True),
                (cell(name, right), True),
                (
                    difference(name, None if left is None or right is None else right - left),
                    True,
                ),
            ],
        )
        for name, left, right in differences.common_figures(a, b, shared)
    ]
    header = [("", False), ("A", True), ("B", True), (f"B {MINUS} A", True)]
    said = hint("Both are 1 where the common time begins; figures below are of that time alone.")
    unlike = [line for line in differences.doubts(a, b) if line.startswith(differences.OTHER_BARS)]
    said += html_list(unlike, "doubts")
    return (
        said
        + log_button("common-chart", "common-log")
        + chart("common-chart", "Equity and drawdown of both over the common time", tall=True)
        + _pairs("common-table", header, rows)
    )


def _own(a: Side, b: Side, figures: dict[str, Figure]) -> str:
    figures["own-chart"] = _overlay((a.ts, differences.own(a)), (b.ts, differences.own(b)))
    return log_button("own-chart", "own-log") + chart(
        "own-chart", "Equity and drawdown of both, each from its own beginning", tall=True
    )


def _overlay(a: tuple[IntArray, FloatArray], b: tuple[IntArray, FloatArray]) -> Figure:
    return equity_chart([("A", "policy", thin(*a)), ("B", "baseline", thin(*b))])


def _leaderboards(a: Side, b: Side) -> str:
    tables = [_rows_by_name(one.leaderboard) for one in (a, b)]
    if not any(tables):
        return ""
    parts = []
    for place, name in enumerate(dict.fromkeys((*tables[0], *tables[1]))):
        pair = [table.get(name, {}) for table in tables]
        kind = next(row["kind"] for row in pair if row)
        rows: list[tuple[bool, list[Cell]]] = []
        for key in RANKED:
            left, right = (row.get(key) for row in pair)
            if left is None and right is None:
                continue
            apart = None if left is None or right is None else right - left
            values = (cell(key, left), cell(key, right), difference(key, apart))
            rows.append((False, [(label(key), False), *((text, True) for text in values)]))
        shown = name if kind == "policy" else f"{name} (baseline)"
        header: list[Cell] = [("", False), ("A", True), ("B", True), (f"B {MINUS} A", True)]
        body = _pairs(f"leaderboard-table-{place}", header, rows)
        parts.append(f"<h3>{escape(shown)}</h3>\n{body}")
    return "\n".join(parts)


def _pairs(id_: str, header: list[Cell], rows: list[tuple[bool, list[Cell]]]) -> str:
    """A table that a narrow screen shows without scrolling: a row's name above its values."""
    return f'<div class="pairs">{html_table(id_, header, rows)}</div>'


def _rows_by_name(table: pl.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in table.to_dicts()}


def _differing(id_: str, a: dict[str, Any], b: dict[str, Any]) -> str:
    found = differences.differing(a, b)
    if not found:
        return hint("Nothing differs.")
    rows = [
        (
            False,
            [
                (escape(name), False),
                (_setting(name, a), False),
                (_setting(name, b), False),
            ],
        )
        for name, _, _ in found
    ]
    same = len(a | b) - len(found)
    return _pairs(id_, [("", False), ("A", False), ("B", False)], rows) + hint(
        f"{same} more are the same in both."
    )


def _setting(name: str, side: dict[str, Any]) -> str:
    """A value as it would be written; a dash where the side has no such key."""
    return escape(str(side[name])) if name in side else NOTHING


def _whole(name: str, value: float | None) -> float | None:
    """Counts come as floats from the frame; they are shown whole."""
    whole = value is not None and value == int(value) and name not in PERCENT
    return int(value) if whole and value is not None else value
