"""The list of trades: what the page's script sorts, filters and pages, and its first page as html.

Start at `trade_list`.
"""

import math
from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from trade_pipeline.backtest.report.figures import MINUS, NOTHING
from trade_pipeline.backtest.report.tables import Cell, html_table

MOST_LISTED = 10_000  # about 900 kB of page
PAGE_ROWS = 50
NO_REGIME = "none"
FILTERS = (
    ("side", "Side"),
    ("entry_reason", "Entry reason"),
    ("exit_reason", "Exit reason"),
    ("regime", "Regime"),
)


class Column(NamedTuple):
    """A column of the list: `kind` is text, time, number or percent."""

    key: str
    label: str
    kind: str
    digits: int = 0
    """Digits that the middle one of all numbers is shown with."""
    fewest: int = 0
    """Places behind the point that are always shown."""


COLUMNS = (
    Column("number", "#", "number"),
    Column("instrument", "Instrument", "text"),
    Column("side", "Side", "text"),
    Column("entry_time", "Entry (UTC)", "time"),
    Column("entry_price", "Entry price", "number", 6, 2),
    Column("exit_time", "Exit (UTC)", "time"),
    Column("exit_price", "Exit price", "number", 6, 2),
    Column("quantity", "Quantity", "number", 4),
    Column("fee", "Fee", "number", 3, 2),
    Column("net", "Net", "number", 3, 2),
    Column("return", "Return", "percent"),
    Column("realised", "Realised so far", "number", 3, 2),
    Column("unrealised", "Unrealised", "number", 3, 2),
    Column("mfe_share", "MFE", "percent"),
    Column("mae_share", "MAE", "percent"),
    Column("bars", "Bars held", "number"),
    Column("regime", "Regime", "text"),
    Column("entry_reason", "Entry reason", "text"),
    Column("exit_reason", "Exit reason", "text"),
)


def listed(trips: pl.DataFrame) -> pl.DataFrame:
    """Trips by entry time with the columns of `COLUMNS` that can be had, numbered from 1.

    `return` is the net result as a part of what was bought or sold, `mfe_share` and `mae_share` are
    parts of the mean entry price, `bars` is how many opens lie between entry and exit, or the last
    close where still open.
    """
    has = set(trips.columns)
    added = []
    if {"quantity", "net"} <= has:
        spent = pl.col("entry_price") * pl.col("quantity").abs()
        added.append(pl.when(spent > 0).then(pl.col("net") / spent).alias("return"))
    for name in ("mfe", "mae"):
        if name in has:
            part = pl.col(name) / pl.col("entry_price")
            added.append(pl.when(pl.col("entry_price") > 0).then(part).alias(f"{name}_share"))
    if {"entry_row", "exit_row"} <= has:
        bars = pl.col("exit_row") - pl.col("entry_row")
        added.append((pl.coalesce(bars, "bars") if "bars" in has else bars).alias("bars"))
    if "regime" in has:
        label = pl.col("regime").cast(pl.String)
        named = pl.when(label == "-1").then(pl.lit(NO_REGIME)).otherwise(label)
        added.append(named.alias("regime"))
    ordered = at_first_and_last_fill(
        trips.sort("entry_time", maintain_order=True).with_columns(added)
    )
    numbered = ordered.with_columns(number=pl.int_range(1, ordered.height + 1, dtype=pl.Int64))
    known = [column.key for column in COLUMNS if column.key in numbered.columns]
    # A column of nulls only, such as the fees of a table without them, says nothing.
    return numbered.select(
        name
        for name in known
        if name in ("exit_time", "exit_price", "net", "exit_reason")
        or numbered[name].null_count() < numbered.height
    )


def at_first_and_last_fill(trips: pl.DataFrame) -> pl.DataFrame:
    """Trips with the prices of their first and last fill in the place of means, where known."""
    ends = (("entry_price", "first_price"), ("exit_price", "last_price"))
    return trips.with_columns(
        pl.coalesce(fill, mean).alias(mean) for mean, fill in ends if fill in trips.columns
    )


def trade_list(
    trades: pl.DataFrame, charts: Mapping[str, str], daily: bool = False
) -> tuple[str, dict[str, Any]]:
    """The list's html and what the page's script needs.

    Args:
        trades: of `listed`, at least one. More than `MOST_LISTED` are cut down to those that won or
            lost most.
        charts: instrument to the id of its chart, which a trade is shown in.
        daily: whether bars are days, so that no time of day is shown.
    """
    everything = trades.height
    if everything > MOST_LISTED:
        largest = pl.col("net").abs().rank("ordinal", descending=True) <= MOST_LISTED
        trades = trades.filter(largest | pl.col("net").is_null())
    columns = [column for column in COLUMNS if column.key in trades.columns]
    instruments = trades["instrument"].unique(maintain_order=True).to_list()
    shown = [column for column in columns if column.key != "instrument" or len(instruments) > 1]
    places = {column.key: _places(column, trades[column.key]) for column in shown}
    whole_days = daily or _whole_days(trades)
    rows = [
        (
            False,
            [_cell(column, row[column.key], places[column.key], whole_days) for column in shown],
        )
        for row in trades.head(PAGE_ROWS).iter_rows(named=True)
    ]
    header: list[Cell] = [(escape(column.label), column.kind != "text") for column in shown]
    table = html_table("trades-table", header, rows)
    data = {
        "rows": trades.height,
        "page": PAGE_ROWS,
        "wholeDays": whole_days,
        "columns": [
            {
                "key": column.key,
                "label": column.label,
                "kind": column.kind,
                "places": places.get(column.key, 0),
                "shown": column in shown,
                **_values(column, trades[column.key]),
            }
            for column in columns
        ],
        "charts": [[name, charts[name]] for name in instruments if name in charts],
    }
    cut = (
        f'<p class="hint">The list holds the {trades.height:,} trades of {everything:,} that won '
        "or lost most; all are in trades.csv of the bundle.</p>"
        if trades.height < everything
        else ""
    )
    more = trades.height > PAGE_ROWS
    without = (
        f'<noscript><p class="hint">These are the first {PAGE_ROWS} of {trades.height:,} trades; '
        "the others need JavaScript.</p></noscript>"
        if more
        else ""
    )
    return _controls(trades) + table + _PRINTED + _PAGER + cut + without, data


_PRINTED = '<p id="trades-printed" class="hint paper"></p>'
_PAGER = (
    '<div id="trades-pager" class="controls" hidden>'
    '<button type="button" data-to="first" aria-label="First page">\N{LEFTWARDS ARROW TO BAR}'
    "</button>"
    '<button type="button" data-to="previous">Previous</button>'
    '<span id="trades-page"></span>'
    '<button type="button" data-to="next">Next</button>'
    '<button type="button" data-to="last" aria-label="Last page">\N{RIGHTWARDS ARROW TO BAR}'
    "</button>"
    '<button type="button" id="trades-csv">Download CSV</button></div>'
)


def _controls(trades: pl.DataFrame) -> str:
    """Search and choices, which the script shows; a choice only where there is one."""
    parts = [
        '<label>Search <input type="search" id="trades-search" autocomplete="off"></label>',
        '<label>Result <select id="trades-result"><option value="">all</option>'
        '<option value="win">win</option><option value="loss">loss</option>'
        '<option value="open">open</option></select></label>',
    ]
    for key, name in FILTERS:
        values = sorted(trades[key].drop_nulls().unique()) if key in trades.columns else []
        if len(values) > 1:
            texts = [escape(value) for value in values]
            options = "".join(f'<option value="{text}">{text}</option>' for text in texts)
            parts.append(
                f'<label>{name} <select data-filter="{key}"><option value="">all</option>{options}'
                "</select></label>"
            )
    return (
        '<div id="trades-controls" class="controls" hidden>'
        + "".join(parts)
        + '<button type="button" id="trades-clear">Clear</button></div>'
        '<p id="trades-count" class="hint" role="status"></p>'
    )


def _values(column: Column, values: pl.Series) -> dict[str, Any]:
    """Codes and names of texts, an array of numbers; no value is code 0 or NaN."""
    if column.kind == "text":
        names = values.drop_nulls().unique(maintain_order=True).to_list()
        codes = {name: number for number, name in enumerate(names, start=1)}
        found = [0 if value is None else codes[value] for value in values.to_list()]
        return {"names": names, "codes": np.array(found, np.int64)}
    numbers = values.dt.timestamp("ms") if column.kind == "time" else values
    array: npt.NDArray[Any] = numbers.to_numpy()
    return {"values": array if numbers.null_count() == 0 else array.astype(np.float64)}


def _places(column: Column, values: pl.Series) -> int:
    """Places behind the point that show `digits` of the middle number."""
    if column.kind == "percent":
        return 2
    if column.kind != "number" or column.digits == 0:
        return 0
    numbers = np.abs(values.drop_nulls().to_numpy().astype(np.float64))
    numbers = np.sort(numbers[np.isfinite(numbers) & (numbers > 0)])
    if column.fewest == 0 and (numbers == np.rint(numbers)).all():
        return 0
    if numbers.size == 0:
        return column.fewest
    magnitude = math.floor(math.log10(numbers[numbers.size // 2]))
    return min(max(column.digits - 1 - magnitude, column.fewest), 8)


def _whole_days(trades: pl.DataFrame) -> bool:
    """Whether no trade needs a time of day."""
    times = pl.concat([trades["entry_time"], trades["exit_time"]]).drop_nulls()
    return bool((times.dt.timestamp("ms") % 86_400_000 == 0).all())


def _cell(column: Column, value: Any, places: int, whole_days: bool) -> Cell:
    """Html of a value as the page's script writes it, too."""
    is_number = column.kind != "text"
    if value is None:
        return NOTHING, is_number
    if column.kind == "text":
        return escape(value), False
    if column.kind == "time":
        return f"{value:%Y-%m-%d}" if whole_days else f"{value:%Y-%m-%d %H:%M}", True
    unit, value = (" %", value * 100) if column.kind == "percent" else ("", value)
    shown = f"{value:,.{places}f}"
    if value != 0 and not shown.strip("-0."):  # not nothing, though it rounds to that
        shown = np.format_float_positional(float(f"{value:.0e}"), trim="-")
    return shown.replace("-", MINUS) + unit, True
