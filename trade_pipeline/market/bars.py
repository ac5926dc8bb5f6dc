"""Bars in their canonical form: the schema, what a valid bar is, and how two batches merge.

Pure functions over frames; knows no source, no storage, no clock (so a source itself must
leave out a bar that has not closed yet). Start at `BAR_SCHEMA` and `violations`.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandera.polars as pa
import polars as pl
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaErrors

from trade_pipeline.market.actions import Action, split_part
from trade_pipeline.market.calendars import ALWAYS, find_calendar
from trade_pipeline.settings.series import SeriesSettings

IMPLEMENTATION = 1

TS = pl.Datetime("ms", "UTC")
# A smaller position wins when two sources disagree about a bar.
SOURCES = ("file", "zip", "trades", "rest", "ws")
BAR_SCHEMA: dict[str, pl.DataType] = {
    "ts": TS,
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Float64(),
    "trades": pl.Int32(),
    "adj_factor": pl.Float64(),
    "source": pl.Enum(SOURCES),
}
PRICES = ("open", "high", "low", "close")
NULLABLE = frozenset({"trades", "adj_factor"})
# Where a bar stood in its source: in a source's frames, never in stored ones.
POSITION = ("file", "row")
MOST_LOCATED = 1_000  # nobody reads more rows, and a wrong file may have millions
VIOLATION_SCHEMA: dict[str, pl.DataType] = {
    "file": pl.String(),
    "row": pl.Int64(),
    "ts": TS,
    "column": pl.String(),
    "rule": pl.String(),
    "value": pl.String(),
}
# Names that pandera gives to the checks it brings itself.
NOT_NULLABLE = "not_nullable"
_PANDERA_RULES = {
    NOT_NULLABLE: "must not be null or NaN",
    "column_in_dataframe": "column must be present",
    "column_in_schema": "column is not one of a bar",
    "column_ordered": "columns must stand in the canonical order",
}


def empty_bars() -> pl.DataFrame:
    """No bars, all columns: what a year before a series' first bar holds."""
    return pl.DataFrame(schema=BAR_SCHEMA)


def adjusted(bars: pl.DataFrame, actions: Iterable[Action] = ()) -> pl.DataFrame:
    """All four prices times `adj_factor`, where it is not null; works on bars and on grids.

    With known splits volume is divided by their part of the factor, so that what was traded in
    dollars stays comparable. Without any it stays as it is: a factor taken from an adjusted close
    does not tell its split part. The result's factor is 1, so that adjusting prices twice changes
    nothing; volume would change, so give the actions once.

    Args:
        bars: with splits, from the series' first bar on, where the factor is anchored. A bar
            within a day has the shares of its UTC date.
        actions: splits and dividends of the series; dividends are in the factor already.
    """
    factor = pl.col("adj_factor").fill_null(1.0)
    result = bars.with_columns(
        *(pl.col(price) * factor for price in PRICES),
        adj_factor=pl.when(pl.col("adj_factor").is_not_null()).then(1.0),
    )
    splits = [one for one in actions if one.kind == "split"]
    if not splits:
        return result
    parts = split_part(bars["ts"].dt.epoch("ms").to_numpy(), splits)
    return result.with_columns(pl.col("volume") / pl.Series(parts))


def merge(stored: pl.DataFrame, incoming: pl.DataFrame) -> pl.DataFrame:
    """One bar per `ts`: the best source's, then the incoming one's, then the greater row hash.

    Args:
        stored: bars of earlier merges: canonical columns, sorted by `ts`, each once.
        incoming: bars of a later answer; any order, repeated `ts` allowed.

    Returns:
        Bars sorted by `ts`, canonical columns. Deterministic; merging the same bars again
        changes nothing.
    """
    stored, incoming = stored.select(*BAR_SCHEMA), incoming.select(*BAR_SCHEMA)
    if incoming.is_empty():
        return stored
    # Only the stored bars among the incoming ones can be in question: mostly few, of a long year.
    times = stored["ts"].dt.epoch("ms").to_numpy()
    arriving = incoming["ts"].dt.epoch("ms").to_numpy()
    first = int(np.searchsorted(times, arriving.min()))
    stop = int(np.searchsorted(times, arriving.max(), side="right"))
    among = stored[first:stop]
    sorted_alone = among.is_empty() and bool((np.diff(arriving) > 0).all())
    resolved = incoming if sorted_alone else _resolved(among, incoming)
    return pl.concat([stored[:first], resolved, stored[stop:]], rechunk=True)


def _resolved(stored: pl.DataFrame, incoming: pl.DataFrame) -> pl.DataFrame:
    """The merge of bars that lie among each other."""
    both = pl.concat(
        frame.with_columns(_late=pl.lit(late)) for late, frame in enumerate((stored, incoming))
    ).with_row_index("_at")
    # Rarely does one answer hold two bars of one time, so only those are hashed.
    tied = both.filter(pl.struct("ts", "source", "_late").is_duplicated())
    hashes = [
        hashlib.sha256(repr(bar).encode()).hexdigest()
        for bar in tied.select(*BAR_SCHEMA).iter_rows()
    ]
    both = both.join(
        pl.DataFrame({"_at": tied["_at"], "_hash": pl.Series(hashes, dtype=pl.String)}),
        on="_at",
        how="left",
    )
    return (
        both.sort(
            "ts",
            pl.col("source").to_physical(),
            "_late",
            "_hash",
            descending=[False, False, True, True],
        )
        .unique("ts", keep="first", maintain_order=True)
        .select(*BAR_SCHEMA)
    )


def compared(stored: pl.DataFrame, incoming: pl.DataFrame) -> pl.DataFrame:
    """Bars that two sources gave: stored columns, and the incoming ones with `_incoming` behind."""
    return stored.join(incoming.select(*BAR_SCHEMA), on="ts", suffix="_incoming").filter(
        pl.col("source") != pl.col("source_incoming")
    )


def differences(stored: pl.DataFrame, incoming: pl.DataFrame) -> pl.DataFrame:
    """Bars on which two sources do not agree, one line per `ts` and column; merging keeps one.

    Prices must be equal, volumes within a relative 1e-9 (sums of trades in another order).

    Args:
        stored: canonical columns, each `ts` once.
        incoming: canonical columns, each `ts` once.

    Returns:
        ts, column, stored_source, stored, incoming_source, incoming; sorted by ts.
    """
    both = compared(stored, incoming)
    found = []
    for name in (*PRICES, "volume"):
        one, other = pl.col(name), pl.col(f"{name}_incoming")
        allowed = 1e-9 * pl.max_horizontal(one.abs(), other.abs()) if name == "volume" else 0.0
        found.append(
            both.filter((one - other).abs() > allowed).select(
                "ts",
                column=pl.lit(name),
                stored_source="source",
                stored=one,
                incoming_source="source_incoming",
                incoming=other,
            )
        )
    return pl.concat(found).sort("ts", maintain_order=True)


@dataclass(frozen=True)
class _Rule:
    """One invariant of a bar: true, or null where it does not apply, for each good row."""

    text: str
    columns: tuple[str, ...]
    holds: pl.Expr


def violations(
    bars: pl.DataFrame, series: SeriesSettings, year: int | None, latest_ms: int | None = None
) -> pl.DataFrame:
    """Rows that break an invariant, one line per row and rule, in the order of the rows.

    Args:
        bars: canonical columns; a source's `file` and `row` may stand beside them.
        series: timeframe and calendar give the grid.
        year: the partition's year, which every `ts` must lie in; None for a whole history.
        latest_ms: no bar may open later than this (ms since 1970); None: any may.

    Returns:
        `VIOLATION_SCHEMA`, the first `MOST_LOCATED`; empty when all is well. `row` is the
        source's, or else the position in the frame from 0; it is null where a whole column is
        missing or has a wrong type.
    """
    rules = _rules(bars, series, year, latest_ms) if bars.schema.get("ts") == TS else []
    schema = pa.DataFrameSchema(
        {
            name: pa.Column(
                dtype,
                nullable=name in NULLABLE,  # NaN counts as null here
                # On a column, and not on the frame, where pandera writes each failing row as
                # JSON: minutes for a file that is wrong throughout.
                checks=[
                    pa.Check(_check(rule.holds), name=rule.text)
                    for rule in rules
                    if rule.columns[0] == name
                ],
            )
            for name, dtype in BAR_SCHEMA.items()
        },
        strict=True,
        ordered=True,
    )
    # An eager frame, since of a lazy one pandera checks names and types only; and all of it,
    # whatever pandera's environment variables say.
    depth = ValidationDepth.SCHEMA_AND_DATA
    try:
        with config_context(validation_enabled=True, validation_depth=depth):
            schema.validate(bars.drop(POSITION, strict=False), lazy=True)
    except SchemaErrors as error:
        return _located(error.failure_cases, bars, rules)
    return pl.DataFrame(schema=VIOLATION_SCHEMA)


def explain(found: pl.DataFrame, key: str, origin: str, most: int = 5) -> str:
    """Sentences naming series, file and first bad rows of a `violations` table."""
    lines = []
    for line in found.head(most).iter_rows(named=True):
        where = "whole column" if line["row"] is None else f"row {line['row']}"
        when = f" ({line['ts']:%Y-%m-%d %H:%M:%S} UTC)" if line["ts"] else ""
        lines.append(
            f"{line['file'] or origin}, {where}{when}: {line['rule']}, "
            f"found {line['column']} {line['value']}"
        )
    if found.height > most:
        lines.append(f"and {found.height - most} more")
    count = f"{found.height}{' or more' if found.height == MOST_LOCATED else ''}"
    return f"series {key}: {count} violations; " + "; ".join(lines) + "."


def _check(holds: pl.Expr) -> Callable[[pa.PolarsData], pl.LazyFrame]:
    return lambda data: data.lazyframe.select(holds)


def _rules(
    bars: pl.DataFrame, series: SeriesSettings, year: int | None, latest_ms: int | None
) -> list[_Rule]:
    ts = pl.col("ts")
    rules = [
        _Rule("ts must be unique", ("ts",), ts.is_first_distinct()),
        _Rule("ts must not be before the row above", ("ts",), ts >= ts.shift(1)),
        _Rule(
            f"ts must lie on the {series.timeframe} grid of calendar {series.calendar}",
            ("ts",),
            _on_grid(bars, series),
        ),
    ]
    if year is not None:
        rules.append(_Rule(f"ts must lie in {year}", ("ts",), ts.dt.year() == year))
    if latest_ms is not None:
        latest = ts.dt.epoch("ms") <= latest_ms
        rules.append(_Rule("ts must not lie in the future", ("ts",), latest))
    for price in PRICES:
        rules.append(_Rule(f"{price} must be positive", (price,), pl.col(price) > 0))
    for name in (*PRICES, "volume"):
        rules.append(_Rule(f"{name} must be finite", (name,), ~pl.col(name).is_infinite()))
    for low, high in (("low", "open"), ("low", "close"), ("open", "high"), ("close", "high")):
        # A NaN is reported once, as missing, and not again by each comparison.
        missing = pl.col(low).is_nan() | pl.col(high).is_nan()
        rules.append(
            _Rule(
                f"{low} must not be above {high}",
                (low, high),
                missing | (pl.col(low) <= pl.col(high)),
            )
        )
    factor = pl.col("adj_factor")
    none_or_all = (factor.null_count() == 0) | (factor.null_count() == pl.len())
    return [
        *rules,
        _Rule("volume must not be negative", ("volume",), pl.col("volume") >= 0),
        _Rule("trades must not be negative", ("trades",), pl.col("trades") >= 0),
        _Rule(
            "adj_factor must be positive and finite",
            ("adj_factor",),
            (factor > 0) & factor.is_finite(),
        ),
        _Rule(
            "adj_factor must be null in all rows or in none",
            ("adj_factor",),
            factor.is_not_null() | none_or_all,
        ),
    ]


def _on_grid(bars: pl.DataFrame, series: SeriesSettings) -> pl.Expr:
    ms = pl.col("ts").dt.epoch("ms")
    if series.calendar == ALWAYS:
        return ms % series.timeframe_ms == 0
    first, last = bars["ts"].min(), bars["ts"].max()
    if not isinstance(first, datetime) or not isinstance(last, datetime):
        return pl.lit(True)
    expected = find_calendar(series.calendar).expected(
        first, last + timedelta(milliseconds=1), series.timeframe_ms, series.is_daily_session
    )
    return ms.is_in(pl.Series(expected).implode())


def _located(failures: pl.DataFrame, bars: pl.DataFrame, rules: list[_Rule]) -> pl.DataFrame:
    """Pandera's failure cases as a table of `VIOLATION_SCHEMA`."""
    texts = [rule.text for rule in rules]
    whole = failures.filter(pl.col("index").is_null())
    if whole.height:
        # A rule that could not run because a column is missing says nothing of its own.
        named = whole.filter(~pl.col("check").is_in(texts))
        check = pl.col("check")
        wrong_type = check.str.starts_with("dtype(")
        return (named if named.height else whole).select(
            file=pl.lit(None, pl.String),
            row=pl.lit(None, pl.Int64),
            ts=pl.lit(None, TS),
            column=pl.coalesce("column", "failure_case"),
            rule=pl.when(wrong_type)
            .then(pl.format("must have {}", check))
            .otherwise(check.replace(_PANDERA_RULES)),
            value=pl.col("failure_case"),
        )
    missing = [_Rule(NOT_NULLABLE, (name,), pl.lit(True)) for name in BAR_SCHEMA]
    every = [*missing, *rules]
    hits = []
    for order, rule in enumerate(every):
        of_rule = failures.filter(pl.col("check") == rule.text)
        if rule.text == NOT_NULLABLE:
            of_rule = of_rule.filter(pl.col("column") == rule.columns[0])
        hits.append(of_rule.select(pl.col("index").cast(pl.Int64), order=pl.lit(order)))
    first = pl.concat(hits).sort("index", "order").head(MOST_LOCATED)
    lines = [
        _line(every[order], bars.row(index, named=True), index) for index, order in first.rows()
    ]
    return pl.DataFrame(lines, schema=VIOLATION_SCHEMA, orient="row")


def _line(rule: _Rule, bar: dict[str, Any], index: int) -> tuple[Any, ...]:
    """A row of `VIOLATION_SCHEMA`."""
    # In Python: polars 2.1 panics when it puts such texts together for some frames.
    first, *others = ("null" if bar[name] is None else str(bar[name]) for name in rule.columns)
    beside = (f" ({name} {other})" for name, other in zip(rule.columns[1:], others, strict=True))
    return (
        bar.get("file"),
        bar.get("row", index),
        bar["ts"],
        rule.columns[0],
        _PANDERA_RULES.get(rule.text, rule.text),
        "".join([first, *beside]),
    )
