"""Tables and lists as html, and figures as the text in them.

A `Cell` holds html: whoever makes one escapes what is in it.
Start at `html_table`; `cell` writes a figure with the unit that its name implies.
"""

import math
from collections.abc import Iterable
from html import escape
from typing import Any

Cell = tuple[str, bool]  # escaped html, and whether it is a number

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"
PERCENT = frozenset(
    {
        "total_return",
        "return",
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
        "share_of_time",
        "share",
        "largest_share",
        "alpha",
        "tracking_error",
        "up_capture",
        "down_capture",
        "psr",
        "deflated_sharpe",
    }
)
LABELS = {
    "sharpe": "Sharpe (days)",
    "sharpe_low": "Sharpe, 95 % from",
    "sharpe_high": "Sharpe, 95 % to",
    "sharpe_bar": "Sharpe (bars)",
    "psr": "Probability Sharpe > 0",
    "deflated_sharpe": "Deflated Sharpe",
    "total_return": "Total return",
    "cagr": "Annual growth",
    "cagr_calendar": "Annual growth (calendar)",
    "max_drawdown": "Largest drawdown",
    "var_5": "Value at risk 5 %",
    "cvar_5": "Expected shortfall 5 %",
    "sqn": "System quality number",
    "turnover": "Turnover a year",
    "alpha": "Alpha a year",
    "share": "Share allowed",
    "largest_share": "Largest share taken",
}
ENDINGS = {
    "_low": ", 95 % from",
    "_high": ", 95 % to",
    "_day": " (days)",
    "_bar": " (bars)",
}


def html_table(id_: str, header: list[Cell], rows: list[tuple[bool, list[Cell]]]) -> str:
    """A table that scrolls inside itself; the first cell names its row, strong rows stand out.

    Args:
        id_: of the table element.
        header: a cell a column.
        rows: whether the row stands out, and its cells.
    """
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


def html_list(lines: Iterable[str], kind: str) -> str:
    """Lines of plain text as a list of that class; nothing where there are none."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="{kind}">{items}</ul>' if items else ""


def hint(text: str) -> str:
    """Plain text set small under a chart or table."""
    return f'<p class="hint">{escape(text)}</p>'


def plain_label(name: str) -> str:
    """What a figure is called, as plain text."""
    if name in LABELS:
        return LABELS[name]
    for ending, words in ENDINGS.items():
        if name.endswith(ending):
            return plain_label(name.removesuffix(ending)) + words
    return name.replace("_", " ").capitalize()


def label(name: str) -> str:
    """What a figure is called, escaped."""
    return escape(plain_label(name))


def cell(name: str, value: Any) -> str:
    """A value as escaped text, with the unit of the figure called `name`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    return percent(value) if name in PERCENT else number(value)


def percent(value: float) -> str:
    """A fraction in percent, to one place."""
    return f"{round(value * 100, 1) + 0.0:,.1f} %".replace("-", MINUS)


def number(value: float) -> str:
    """Integers whole, others to two places, small ones to three digits."""
    if isinstance(value, int):
        text = f"{value:,}"
    elif value == 0 or abs(value) >= 0.1:
        text = f"{value:,.2f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)
