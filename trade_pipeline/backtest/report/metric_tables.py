"""Figures as tables: leaderboard, metrics, months, market, capacity, regimes, other costs.

Start at `leaderboard_table` and `metric_tables`.
"""

from collections.abc import Collection, Mapping
from html import escape
from typing import Any

import polars as pl

from trade_pipeline.backtest.instants import instant
from trade_pipeline.backtest.report.content import SENSITIVITY_COLUMNS
from trade_pipeline.backtest.report.figures import (
    NOTHING,
    cell,
    described,
    label,
    percent,
    plain_label,
    repeated,
)
from trade_pipeline.backtest.report.tables import hint, html_list, html_table
from trade_pipeline.evaluation.periods import MONTHS, heat_map

REPEATED = "Figures of bars that are those of days in every column are left out."
TAP = "A tap on an underlined name says what it is."
Metrics = Mapping[str, Mapping[str, Any]]

# Columns shown under the column they bound: words, then the endings of their names.
RANGES = (("seeds", "min", "max"), ("95 %", "low", "high"))
# Columns that a narrow screen should show first, and those that can wait.
FIRST = ("name", "sharpe", "total_return", "max_drawdown", "deflated_sharpe", "trials_tried")
LAST = ("seeds", "median_seed", "folds", "kind")
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DEEPEST_COLOUR = 0.6  # opacity: text stays readable on it
# Figures of `metrics` results beside `values`: key, heading and what it is.
BESIDE = (
    (
        "market",
        "Beside the market",
        "The market is an equal weight of all instruments, no costs. Captures set the annual "
        "growth of up, or down, days beside the market's of these days: over many they lie far "
        "from the share of one day's move.",
    ),
    (
        "capacity",
        "Capacity",
        "The largest starting equity at which no order takes more than the share given of its "
        "bar's volume: an upper bound, as prices are taken not to notice.",
    ),
)


def leaderboard_table(table: pl.DataFrame) -> str:
    """A row a policy or baseline; ranges of seeds and intervals stand under what they bound."""
    if table.height == 0:
        return ""
    if "experiment" in table.columns and table["experiment"].n_unique() == 1:
        table = table.drop("experiment")  # the title names it
    ranges = {name: _ranges(name, table.columns) for name in table.columns}
    folded = {end for found in ranges.values() for _, *ends in found for end in ends}
    others = [name for name in table.columns if name not in (*FIRST, *LAST)]
    wanted = [name for name in (*FIRST, *others, *LAST) if name in table.columns]
    columns = [name for name in wanted if name not in folded]
    rows = []
    for row in table.iter_rows(named=True):
        cells = []
        for name in columns:
            text = cell(name, row[name])
            for words, low, high in ranges[name]:
                if row[low] is not None and row[high] is not None:
                    ends = f"{cell(name, row[low])} to {cell(name, row[high])}"
                    text += f' <span class="range">{words} {ends}</span>'
            cells.append((text, table.schema[name] != pl.String))
        rows.append((row.get("kind") == "policy", cells))
    header = [(label(name), table.schema[name] != pl.String) for name in columns]
    said = (
        "A policy's figures are those of its median seed; beside them the lowest and the highest "
        "seed, and the 95 % interval of the median seed. Deflated Sharpe is the probability that "
        "the true ratio is above the best that chance gives so many trials. Trades are closed "
        "round trips, from flat to flat."
    )
    return html_table("leaderboard-table", header, rows) + (hint(said) if folded else "")


def _ranges(name: str, columns: list[str]) -> list[tuple[str, str, str]]:
    """What bounds a column: words and the two columns."""
    found = [(words, f"{name}_{low}", f"{name}_{high}") for words, low, high in RANGES]
    return [one for one in found if set(one[1:]) <= set(columns)]


def metric_tables(metrics: Metrics) -> str:
    """All figures side by side, why some are undefined, and the parts beside them.

    Args:
        metrics: column name to the result of `evaluation.metrics.metrics` or `bundle.figures`.
    """
    if not metrics:
        return ""
    said = [
        f"{column}: {warning}"
        for column, found in metrics.items()
        for warning in found.get("warnings", ())
    ]
    parts = [hint(TAP) + _side_by_side("metrics-table", metrics) + html_list(said, "reasons")]
    for key, heading, words in BESIDE:
        given = {column: found[key] for column, found in metrics.items() if found.get(key)}
        if given:
            table = _side_by_side(f"{key}-table", given)
            parts.append(f"<h3>{heading}</h3>\n{hint(words)}{_binding(given)}{table}")
    regimes = {column: found["regimes"] for column, found in metrics.items() if "regimes" in found}
    return "\n".join(parts) + _regime_table(regimes)


def _side_by_side(id_: str, metrics: Metrics) -> str:
    """A row a figure, a column each result; one line a reason under the table."""
    twice = repeated([found["values"] for found in metrics.values()])
    every = dict.fromkeys(name for found in metrics.values() for name in found["values"])
    names = [name for name in every if name not in twice]
    rows = []
    for name in names:
        values = [found["values"].get(name) for found in metrics.values()]
        rows.append((False, [(described(name), False), *((cell(name, v), True) for v in values)]))
    header = [("", False), *((escape(column), True) for column in metrics)]
    said = hint(REPEATED) if twice else ""
    return html_table(id_, header, rows) + said + html_list(_reasons(metrics, twice), "reasons")


def _reasons(metrics: Metrics, without: Collection[str] = ()) -> list[str]:
    """Which figures are undefined and why: a dozen are often so for the same cause."""
    said = []
    for column, found in metrics.items():
        reasons: dict[str, list[str]] = {}
        for name, reason in found.get("undefined", {}).items():
            if name not in without:
                reasons.setdefault(reason, []).append(plain_label(name))
        said += [f"{column}: no {', '.join(named)}: {why}." for why, named in reasons.items()]
    return said


def _binding(capacities: Metrics) -> str:
    """Which bar limits each capacity."""
    lines = []
    for column, found in capacities.items():
        if "binding" in found:
            at = instant(found["binding"]["close_ts"])
            which = found["binding"]["instrument"]
            lines.append(f"{column}: the bar of {which} that closes {at} binds.")
    return html_list(lines, "reasons")


def _regime_table(regimes: Mapping[str, Metrics]) -> str:
    """A row a result and regime."""
    if not regimes:
        return ""
    everything = [found for parts in regimes.values() for found in parts.values()]
    names = list(dict.fromkeys(name for found in everything for name in found["values"]))
    rows = [
        (
            False,
            [
                (escape(column), False),
                (escape(regime), False),
                *((cell(name, found["values"].get(name)), True) for name in names),
            ],
        )
        for column, parts in regimes.items()
        for regime, found in parts.items()
    ]
    # The Sharpe ratio is that of bars here: a regime rarely lasts days.
    titles = ["Sharpe (bars)" if name == "sharpe" else plain_label(name) for name in names]
    header = [("", False), ("Regime", False), *((escape(title), True) for title in titles)]
    reasons = [
        line
        for column, parts in regimes.items()
        for line in _reasons({f"{column}, regime {regime}": one for regime, one in parts.items()})
    ]
    words = hint("Regime 0 is the calmest; the label is the one known when a position was decided.")
    table = html_table("regimes-table", header, rows) + html_list(reasons, "reasons")
    return f"\n<h3>By regime</h3>\n{words}{table}"


def months_table(months: pl.DataFrame) -> str:
    """Returns by month as a heat map, with each year's compounded.

    Args:
        months: `evaluation.periods.MONTH_SCHEMA`; other columns than `return` are optional.
    """
    if months.height == 0:
        return ""
    details = {(row["year"], row["month"]): row for row in months.iter_rows(named=True)}
    known = [abs(one) for one in months["return"].to_list() if one is not None]
    deepest = max(known, default=0.0) or 1.0
    rows = []
    for line in heat_map(months).iter_rows(named=True):
        year = line["year"]
        cells = [
            (_heat(line[month], deepest, _details(details.get((year, int(month))))), True)
            for month in MONTHS
        ]
        returns = [details[year, int(m)]["return"] for m in MONTHS if (year, int(m)) in details]
        total = None
        if None not in returns:
            total = 1.0
            for one in returns:
                total *= 1.0 + one
            total -= 1.0
        text = NOTHING if total is None else f"<strong>{percent(total)}</strong>"
        rows.append((False, [(str(year), False), *cells, (text, True)]))
    header = [("Year", False), *((name, True) for name in MONTH_NAMES), ("Year's return", True)]
    words = "Returns after costs; a year's is that of its months one after the other."
    return html_table("months-table", header, rows) + hint(words)


def _heat(value: float | None, deepest: float, title: str) -> str:
    """A month's return on its colour; the sign stands in the text, too."""
    if value is None:
        return f"<span{title}>{NOTHING}</span>"
    share = min(abs(value) / deepest, 1.0) * DEEPEST_COLOUR
    kind = "gain" if value >= 0 else "loss"
    return f'<span class="heat {kind}" style="--heat:{share:.2f}"{title}>{percent(value)}</span>'


def _details(row: Mapping[str, Any] | None) -> str:
    """A title attribute with a month's other figures."""
    if row is None:
        return ' title="no bars"'
    names = [name for name in ("days", "sharpe", "volatility", "max_drawdown") if name in row]
    said = ", ".join(f"{label(name)} {cell(name, row[name])}" for name in names)
    reason = f"; {escape(row['reason'])}" if row.get("reason") else ""
    return f' title="{said}{reason}"' if said or reason else ""


def sensitivity_table(table: pl.DataFrame) -> str:
    """What is left under other costs or delays: a row a strategy and case."""
    if table.height == 0:
        return ""
    figures = [name for name in table.columns if name not in SENSITIVITY_COLUMNS]
    rows = [
        (
            False,
            [
                (escape(str(row["strategy"])), False),
                (escape(str(row["name"])), False),
                *((cell(name, row[name]), True) for name in figures),
            ],
        )
        for row in table.iter_rows(named=True)
    ]
    header = [("Strategy", False), ("Case", False), *((label(name), True) for name in figures)]
    words = (
        "Costs are fees and slippage. One bar later, decisions know what was known a bar earlier; "
        "a result that falls apart then hung on speed, or on a leak; each slice begins a bar later "
        "for it, so it has that many bars fewer. At other costs a strategy may "
        "trade at other times, so more costs can come out better by chance."
    )
    return html_table("sensitivity-table", header, rows) + hint(words)
