"""One table of text or Parquet, turned into bars as `FileSource` settings describe it.

What cannot be read at all (a column, a time, a number) is an error that names the row; what
reads well and is wrong (order, repetition, NaN, prices that contradict) stays in the frame, for
`bars.violations` to name. Start at `read_table`; `anchored` then looks at all tables together, and
`continued` at what is stored as well.
"""

import csv
import io
import re
from collections.abc import Sequence
from datetime import datetime

import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, PRICES, TS
from trade_pipeline.market.sources.base import SourceError
from trade_pipeline.settings.base import closest
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import FileSource

SPLIT_PART_UNKNOWN = (
    "adj_factor comes from an adjusted close, so its split part is unknown: volume is not "
    "adjusted, and simulation is in adjusted units"
)
_ISO_TIME = (
    r"^(?P<day>\d{4}-\d{2}-\d{2})"
    r"(?:[T ](?P<minute>\d{2}:\d{2})(?P<second>:\d{2}(?:\.\d+)?)?)?"
    r" ?(?P<zone>Z|(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2}))?$"
)
# Of two adjusted closes of 5 dollars, each rounded to a cent.
_FACTORS_AGREE = 2e-3
_LONGEST_LINE = 1 << 16  # bytes; a line of bars has about a hundred
_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FIRST_US = 0
_LAST_US = 7_289_654_400_000_000  # 2201-01-01; settings allow years 1970 to 2200


def read_table(
    label: str, content: bytes, settings: FileSource, series: SeriesSettings
) -> pl.DataFrame:
    """Bars of one table, in its order: canonical columns, then `file` and `row`.

    `adj_factor` is still the plain ratio of adjusted close to close.

    Args:
        label: file name for errors and for the `file` column.
        content: the table's bytes, unpacked.
        settings: how the table is laid out.
        series: key for errors; a daily session series keeps local dates.

    Raises:
        SourceError: the table, a column, a time or a number cannot be read.
    """
    about = f"{label}: series {series.key}"
    table, rows = _table(content, settings, about)
    chosen = _row_filter(table, settings, about)
    table, rows = table.filter(chosen), rows.filter(chosen)
    raw = {
        role: table[_column(table, column, f"columns.{role}", about)]
        for role, column in settings.columns
        if column is not None
    }
    columns = {
        role: _numbers(values, rows, role, about) for role, values in raw.items() if role != "ts"
    }
    for price in (*PRICES, "adj_close"):
        if price in columns and settings.price_scale != 1.0:
            columns[price] = _divided(columns[price], settings.price_scale)
    if "adj_close" in columns:
        columns["adj_factor"] = columns.pop("adj_close") / columns["close"]
    if "trades" in columns:
        columns["trades"] = _whole_numbers(columns["trades"], raw["trades"], rows, about)
    bars = pl.DataFrame({"ts": _times(raw["ts"], rows, label, settings, series), **columns})
    absent = [pl.lit(None).alias(name) for name in ("trades", "adj_factor") if name not in columns]
    bars = bars.with_columns(*absent, source=pl.lit("file"))
    return bars.select(
        *(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()),
        file=pl.lit(label),
        row=rows,
    )


def whole_history(bars: pl.DataFrame, series: SeriesSettings) -> pl.DataFrame:
    """As `anchored`, of a history that is one table."""
    return anchored([bars], series)[0]


def anchored(tables: Sequence[pl.DataFrame], series: SeriesSettings) -> list[pl.DataFrame]:
    """The tables of one history with `adj_factor` anchored at 1 on the earliest bar of all.

    Of several tables with that bar the last one counts, as it does when they are merged.

    Raises:
        SourceError: a bar lies before `first_year`, or the anchor's factor is no number.
    """
    for bars in tables:
        early = bars.filter(pl.col("ts").dt.year() < series.first_year)
        if early.height:
            first = early.row(0, named=True)
            raise SourceError(
                f"{first['file']}: series {series.key}: row {first['row']} is of "
                f"{first['ts']:%Y-%m-%d}, before first_year {series.first_year} "
                f"({early.height} such rows); correct the row, or set first_year to the first "
                "year of the data."
            )
    if all(bars["adj_factor"].null_count() == bars.height for bars in tables):
        return list(tables)
    earliest = [bars.bottom_k(1, by="ts").item(0, "ts") for bars in tables]
    holder = tables[max(at for at, ts in enumerate(earliest) if ts == min(earliest))]
    anchor = holder.filter(pl.col("ts") == min(earliest)).row(0, named=True)
    ratio = anchor["adj_factor"]
    if ratio is None or not 0 < ratio < float("inf"):
        raise SourceError(
            f"{anchor['file']}: series {series.key}: row {anchor['row']}, the series' first bar, "
            "has no positive close and adjusted close, which adj_factor starts from; correct it."
        )
    return [bars.with_columns(_divided(bars["adj_factor"], ratio)) for bars in tables]


def continued(
    tables: Sequence[pl.DataFrame], stored: pl.DataFrame, series: SeriesSettings
) -> list[pl.DataFrame]:
    """Anchored tables whose `adj_factor` goes on from stored bars that stand in none of them.

    Where such bars come before the tables, the first bar that is stored and in a table with the
    same close keeps its stored factor, and the others follow by the tables' own ratios. Where
    none comes before, the factor starts at 1 in the tables and must fit what is stored.

    Args:
        tables: as `anchored` gives them.
        stored: all stored bars of the series.
        series: key for errors.

    Raises:
        SourceError: no bar ties the tables to the stored bars, or factors contradict each other.
    """
    factors = stored.drop_nulls("adj_factor").select("ts", "close", kept="adj_factor").sort("ts")
    offered = pl.concat(table.select("ts", "close", "adj_factor") for table in tables)
    offered = offered.unique("ts", keep="last", maintain_order=True).sort("ts")
    alone = factors.join(offered, on="ts", how="anti", maintain_order="left")
    if alone.is_empty():
        return list(tables)
    first, last = alone.item(0, "ts"), alone.item(-1, "ts")
    about = (
        f"series {series.key}: {alone.height} stored bars from {first:%Y-%m-%d} to "
        f"{last:%Y-%m-%d} stand in no file any more, and adj_factor must go on from them, but "
    )
    way_out = (
        "Put the files back that were imported, or prune the whole series (job prune_bars) and "
        "import all of its files again."
    )
    factor = pl.col("adj_factor")
    usable = offered.filter(factor.is_finite() & (factor > 0))
    shared = factors.join(usable, on=["ts", "close"], maintain_order="left")
    if shared.is_empty():
        raise SourceError(f"{about}no file has one of the stored bars with its close. {way_out}")
    is_before = first < offered.item(0, "ts")
    anchor = shared.item(0, "adj_factor") if is_before else 1.0
    level = shared.item(0, "kept") if is_before else 1.0
    tied = shared.with_columns(becomes=_divided(shared["adj_factor"], anchor) * level)
    apart = tied.filter((pl.col("becomes") / pl.col("kept") - 1).abs() > _FACTORS_AGREE)
    if apart.height:
        one = apart.row(0, named=True)
        raise SourceError(
            f"{about}the files contradict them: at {one['ts']:%Y-%m-%d %H:%M} UTC it is stored as "
            f"{one['kept']:.6g} and would become {one['becomes']:.6g}. {way_out}"
        )
    return [table.with_columns(_divided(table["adj_factor"], anchor) * level) for table in tables]


def _divided(values: pl.Series, divisor: float) -> pl.Series:
    """Correctly rounded, nulls kept: polars multiplies by the reciprocal, often one bit off."""
    quotients = pl.Series(values.name, values.to_numpy() / divisor)
    return quotients.set(values.is_null(), None)


def _table(content: bytes, settings: FileSource, about: str) -> tuple[pl.DataFrame, pl.Series]:
    """The table, CSV values as text, and the 1-based line of each row."""
    if settings.format == "csv":
        _refuse_cut_off(content, settings, about)
    try:
        if settings.format == "parquet":
            table = pl.read_parquet(content)
        else:
            table = pl.read_csv(
                content,
                has_header=settings.header,
                separator=settings.delimiter,
                infer_schema=False,
            )
    except (pl.exceptions.PolarsError, OSError) as error:
        detail = _ragged_row(content, settings) or str(error).splitlines()[0]
        raise SourceError(
            f"{about}: not readable as {settings.format}: {detail}. The file may be damaged, or "
            "its format, delimiter or header be set wrongly."
        ) from error
    first = 2 if settings.format == "csv" and settings.header else 1
    rows = pl.Series("row", range(first, first + table.height), dtype=pl.Int64)
    written = ~table.select(pl.all_horizontal(pl.all().is_null())).to_series()
    if not written.any():
        raise SourceError(f"{about}: the file has no rows.")
    return table.filter(written), rows.filter(written)


def _refuse_cut_off(content: bytes, settings: FileSource, about: str) -> None:
    """Raise when the last line has fewer fields than the first one and than the one above it."""

    def fields(line: bytes) -> int:
        text = line.decode(errors="replace").rstrip("\r")
        return len(next(csv.reader([text], delimiter=settings.delimiter), []))

    written = len(content)
    while written and content[written - 1] in b"\r\n":
        written -= 1
    # Its ends are enough: a copy of the whole would double a large file.
    first = content[:_LONGEST_LINE].lstrip(b"\r\n").split(b"\n", 1)[0]
    *_, above, last = b"", *content[max(0, written - 2 * _LONGEST_LINE) : written].split(b"\n")
    if not above.strip() or fields(last) >= min(fields(first), fields(above)):
        return
    row = content.count(b"\n", 0, written) + 1
    raise SourceError(
        f"{about}: row {row}, the last one, has {fields(last)} fields and the first row "
        f"{fields(first)}; the file may still be being written, or its download was cut off. "
        "Import it again once it is whole."
    )


def _ragged_row(content: bytes, settings: FileSource) -> str | None:
    """The first CSV row that has more fields than the first one, in words."""
    if settings.format != "csv":
        return None
    text = io.StringIO(content.decode(errors="replace"))
    width = None
    for number, fields in enumerate(csv.reader(text, delimiter=settings.delimiter), start=1):
        width = width or len(fields)
        if len(fields) > width:
            return f"row {number} has {len(fields)} fields and the first row {width}"
    return None


def _column(table: pl.DataFrame, column: str | int, key: str, about: str) -> str:
    """The table's own name of a column given by header name or 0-based position."""
    if isinstance(column, int):
        if not 0 <= column < table.width:
            raise SourceError(
                f"{about}: {key} is position {column}, but the file has "
                f"{table.width} columns, counted from 0."
            )
        return table.columns[column]
    if column not in table.columns:
        raise SourceError(
            f"{about}: no column {column!r}, which {key} asks for."
            f"{closest(column, table.columns)} A file without a header takes positions."
        )
    return column


def _row_filter(table: pl.DataFrame, settings: FileSource, about: str) -> pl.Series:
    """Mask [n] of the rows that the settings keep."""
    mask = pl.repeat(True, table.height, eager=True)
    for name, value in settings.row_filter.items():
        values = table[_column(table, name, "row_filter", about)].cast(pl.String)
        mask = mask & (values == value).fill_null(False)
        if not mask.any():
            known = values.drop_nulls().unique().sort().to_list()
            raise SourceError(
                f"{about}: no row has {name} = {value!r} as row_filter asks."
                f"{closest(value, known[:50])}"
            )
    return mask


def _numbers(raw: pl.Series, rows: pl.Series, role: str, about: str) -> pl.Series:
    """Float64 [n]; empty cells become null."""
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
        raw = raw.set(raw == "", None)
    numbers = raw.cast(pl.Float64, strict=False)
    _refuse(raw, rows, raw.is_not_null() & numbers.is_null(), f"{about}: {role}", "is no number")
    return numbers


def _whole_numbers(numbers: pl.Series, raw: pl.Series, rows: pl.Series, about: str) -> pl.Series:
    whole = numbers.cast(pl.Int32, strict=False)
    wrong = numbers.is_not_null() & (whole.is_null() | (whole != numbers)).fill_null(True)
    _refuse(raw, rows, wrong, f"{about}: trades", "is no count (a whole number below 2^31)")
    return whole


def _times(
    raw: pl.Series, rows: pl.Series, label: str, settings: FileSource, series: SeriesSettings
) -> pl.Series:
    """Datetime ms UTC [n], never null."""
    about = f"{label}: series {series.key}"
    try:
        us = _microseconds(raw, label, settings, series)
    except pl.exceptions.PolarsError as error:
        raise SourceError(
            f"{about}: time cannot be read with time_format {settings.time_format!r} in timezone "
            f"{settings.timezone!r}: {str(error).splitlines()[0]}; correct the settings."
        ) from error
    readable = us.is_between(_FIRST_US, _LAST_US, closed="left") & (us % 1000 == 0)
    _refuse(
        raw,
        rows,
        ~readable.fill_null(False),
        f"{about}: ts",
        f"is no whole millisecond of 1970 to 2200 that exists once in {settings.timezone}, "
        f"read as {settings.time_unit}; check time_unit, time_format and timezone",
    )
    return (us // 1000).cast(TS)


def _microseconds(
    raw: pl.Series, label: str, settings: FileSource, series: SeriesSettings
) -> pl.Series:
    """Microseconds since 1970 UTC [n], Int64; null where a time cannot be read."""
    unit = settings.time_unit
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        if getattr(raw.dtype, "time_zone", None) and not series.is_daily_session:
            return raw.dt.epoch("us")
        local = (
            raw.cast(pl.Datetime("us")) if raw.dtype == pl.Date else raw.dt.replace_time_zone(None)
        )
        return _utc(local.dt.cast_time_unit("us"), settings, series)
    if unit == "text":
        return _text_times(raw.cast(pl.String).str.strip_chars(), settings, series)
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
    count = raw.cast(pl.Int64, strict=False)
    if unit == "ms_of_day":
        midnight = _named_midnight(label, settings, series)
        within = count.is_between(0, 86_399_999)
        local = (count.set(~within, None) * 1000).cast(pl.Duration("us")) + midnight
        return _utc(local, settings, series)
    if settings.timezone != "UTC":
        raise SourceError(
            f"{label}: series {series.key}: time_unit {unit} counts from 1970 in UTC, so timezone "
            f"{settings.timezone} cannot apply; remove it."
        )
    if unit == "ns":
        # A rest below a microsecond must not vanish, or an off-grid time would look right.
        return (count // 1000).set(count % 1000 != 0, None)
    # Outside this bound the product could wrap around into a plausible year.
    return count.set(~count.is_between(0, _LAST_US // _US[unit]), None) * _US[unit]


def _text_times(text: pl.Series, settings: FileSource, series: SeriesSettings) -> pl.Series:
    if settings.time_format is not None:
        parsed = text.str.strptime(pl.Datetime("us"), settings.time_format, strict=False)
        if parsed.dtype != pl.Datetime("us"):  # the format has an offset
            return parsed.dt.epoch("us")
        return _utc(parsed, settings, series)
    part = text.str.extract_groups(_ISO_TIME).struct
    clock = part.field("minute").fill_null("00:00") + part.field("second").fill_null(":00")
    local = (part.field("day") + " " + clock).str.strptime(
        pl.Datetime("us"), "%Y-%m-%d %H:%M:%S%.f", strict=False
    )
    if series.is_daily_session:
        return local.dt.epoch("us")
    minutes = part.field("hours").cast(pl.Int64) * 60 + part.field("minutes").cast(pl.Int64)
    ahead = minutes.zip_with((part.field("sign") == "+").fill_null(False), -minutes)
    absolute = local.dt.epoch("us") - ahead.fill_null(0) * 60_000_000
    return absolute.zip_with(part.field("zone").is_not_null(), _utc(local, settings, series))


def _utc(local: pl.Series, settings: FileSource, series: SeriesSettings) -> pl.Series:
    """Microseconds UTC of local times; a daily session keeps its local date."""
    if series.is_daily_session or settings.timezone == "UTC":
        return local.dt.epoch("us")
    # An hour that summer time skips or repeats names no single instant.
    return local.dt.replace_time_zone(
        settings.timezone, ambiguous="null", non_existent="null"
    ).dt.epoch("us")


def _named_midnight(label: str, settings: FileSource, series: SeriesSettings) -> datetime:
    try:
        found = re.search(settings.date_in_name or "", label.rsplit("/", 1)[-1])
        return datetime.strptime(found.group(1) if found else "", "%Y%m%d")
    except (ValueError, IndexError, re.error) as error:
        raise SourceError(
            f"{label}: series {series.key}: date_in_name {settings.date_in_name!r} finds no "
            "YYYYMMDD in the file's name; give it one group, such as (\\d{8})."
        ) from error


def _refuse(raw: pl.Series, rows: pl.Series, wrong: pl.Series, about: str, fault: str) -> None:
    """Raise about the first wrong row, if there is one."""
    if not wrong.any():
        return
    first = int(wrong.to_numpy().argmax())
    count = int(wrong.sum())
    more = f"; {count} such rows, the first of them" if count > 1 else ""
    raise SourceError(f"{about} {fault}: found {raw[first]!r} in row {rows[first]}{more}.")
