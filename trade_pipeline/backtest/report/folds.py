"""Which days each fold trained, was chosen and was tested on, and where the charts join them.

Start at `folds_table` and `mark_seams`.
"""

from collections.abc import Sequence

from trade_pipeline.backtest.instants import day, instant
from trade_pipeline.backtest.report.chart_parts import INK, Figure
from trade_pipeline.backtest.report.content import Fold
from trade_pipeline.backtest.report.figures import NOTHING, duration
from trade_pipeline.backtest.report.tables import Cell, hint, html_table
from trade_pipeline.market.calendars import DAY_MS

MOST_NAMED = 12  # names of more folds would cover each other
SHADE = "rgba(125,133,144,0.22)"


def folds_table(folds: Sequence[Fold], seams: Sequence[tuple[int, int]], daily: bool) -> str:
    """A row a fold: its parts, and what is skipped between it and the one before."""
    if not folds:
        return ""
    header: list[Cell] = [
        (name, False)
        for name in ("Fold", "Train", "Validation", "Test", "Equity", "Skipped before it")
    ]
    rows: list[tuple[bool, list[Cell]]] = []
    for number, fold in enumerate(folds):
        parts = [_span(*part, daily) for part in (fold.train, fold.validation, fold.test)]
        skipped = NOTHING
        if number and seams[number - 1][1] > seams[number - 1][0]:
            start, end = seams[number - 1]
            skipped = (
                f"{_closes(start, end, daily)} <span>({duration((end - start) / DAY_MS)})</span>"
            )
        cells = [f"f{number}", *parts, _closes(*fold.curve, daily), skipped]
        rows.append((False, [(text, False) for text in cells]))
    said = (
        "Parts are from their first bar to their last. Equity is that of the closes from the "
        "first decision on, which needs a full window of bars."
    )
    if seams:
        said += (
            " What lies between the equity of two folds is skipped: nothing is held there, and "
            "equity goes on as it was. What is open at the end of a part is worth its last close "
            "and not carried on. The charts shade these times."
        )
    return html_table("folds-table", header, rows) + hint(said)


def mark_seams(figure: Figure, seams: Sequence[tuple[int, int]]) -> None:
    """Shade what is skipped between folds on a figure's time axis, and name the fold after it."""
    layout = figure["layout"]
    layout["shapes"] = [
        *layout.get("shapes", []),
        *(
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": float(start),
                "x1": float(end),
                "y0": 0,
                "y1": 1,
                "fillcolor": SHADE,
                "line": {"color": INK, "width": 1, "dash": "dot"},
            }
            for start, end in seams
        ),
    ]
    if len(seams) <= MOST_NAMED:
        layout["annotations"] = [
            {
                "text": f"f{number}",
                "xref": "x",
                "yref": "paper",
                "x": float(end),
                "y": 1,
                "xanchor": "left",
                "yanchor": "bottom",
                "showarrow": False,
            }
            for number, (_, end) in enumerate(seams, 1)
        ]


def _span(first: int, last: int, daily: bool) -> str:
    """From one bar to another, by their opens; lines break between both only."""
    name = day if daily else instant
    return f"<span>{name(first)}</span> to <span>{name(last)}</span>"


def _closes(first: int, last: int, daily: bool) -> str:
    """From one close to another; the close of a day's bar may be the next midnight."""
    return _span(first - 1, last - 1, True) if daily else _span(first, last, False)
