"""What figures are called, what they mean and how they are written with their unit.

Start at `cell` and `described`; `tables` lays them out.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from trade_pipeline.evaluation.meanings import meaning

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
    "longest_drawdown_days": "Longest drawdown",
    "alpha": "Alpha a year",
    "share": "Share allowed",
    "largest_share": "Largest share taken",
}
OF_TRADES = "hit_rate"  # that of days and bars is of something else
DURATIONS = frozenset({"longest_drawdown_days"})
ENDINGS = {
    "_low": ", 95 % from",
    "_high": ", 95 % to",
    "_day": " (days)",
    "_bar": " (bars)",
}


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


def described(name: str, title: str | None = None) -> str:
    """What a figure is called as html, `title` where given; a tap on it shows what it is."""
    shown = label(name) if title is None else escape(title)
    said = meaning(name)
    if said is None:
        return shown
    words = f"<span>{escape(said)}</span>"
    return f'<details class="meaning"><summary>{shown}</summary>{words}</details>'


def repeated(columns: Sequence[Mapping[str, Any]]) -> set[str]:
    """Figures that say again what another does in every column, as those of daily bars do.

    Args:
        columns: name of a figure to its value, None where it has none.
    """
    known = {name for values in columns for name in values}
    found = set()
    for name in known:
        base = name.removesuffix("_bar").removesuffix("_day")
        others = [f"{base}_day", base] if name.endswith("_bar") else [base]
        twin = next((one for one in others if one in known and one != OF_TRADES), name)
        if twin != name and all(_alike(values.get(name), values.get(twin)) for values in columns):
            found.add(name)
    return found


def _alike(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def cell(name: str, value: Any) -> str:
    """A value as escaped text, with the unit of the figure called `name`."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return escape(str(value))
    if name in DURATIONS:
        return duration(value)
    return percent(value) if name in PERCENT else number(value)


def difference(name: str, value: float | None) -> str:
    """How far two values of a figure are apart, with a sign; of percentages in their points."""
    if value is None:
        return NOTHING
    text = f"{_places(value * 100, 2)} pp" if name in PERCENT else cell(name, value)
    return f"+{text}" if value > 0 else text


def percent(value: float, places: int = 1) -> str:
    """A fraction in percent; one that would round to nothing keeps a digit."""
    return f"{_places(value * 100, places)} %"


def number(value: float) -> str:
    """Integers whole, others to two places, small ones to three digits."""
    if isinstance(value, int):
        text = f"{value:,}"
    elif value == 0 or abs(value) >= 0.1:
        text = f"{value + 0.0:,.2f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", MINUS)


def duration(days: float) -> str:
    """A time in the unit that it is best read in.

    >>> duration(634.04), duration(3.25), duration(1), duration(0.135), duration(0.01)
    ('634 days', '3.2 days', '1 day', '3.2 h', '14 min')
    """
    size = abs(days)
    if size >= 1 or size == 0:
        text = f"{days:,.0f}" if size >= 10 else f"{days:.1f}".removesuffix(".0")
        text += " day" if text in ("1", "-1") else " days"
    elif size * 24 >= 1:
        text = f"{days * 24:.1f}".removesuffix(".0") + " h"
    else:
        text = f"{days * 24 * 60:.0f} min"
    return text.replace("-", MINUS)


def _places(value: float, places: int) -> str:
    """To so many places, or to one digit where that would be zero though the value is not."""
    rounded = round(value, places)
    text = f"{value:.1g}" if rounded == 0 and value != 0 else f"{rounded + 0.0:,.{places}f}"
    return text.replace("-", MINUS)
