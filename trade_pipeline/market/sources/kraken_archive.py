"""Bars of Kraken's downloadable archives: of the OHLCVT ones, and of the time-and-sales ones.

Knows no request and nothing that is stored; a pair goes by Kraken's `altname`. Start at
`ohlcvt_bars` and `time_and_sales_bars`; `covered` says which time they can give.
"""

from collections.abc import Iterator

import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, TS, empty_bars, explain, violations
from trade_pipeline.market.coverage import joined
from trade_pipeline.market.rebuild import NS_PER_MS, TRADE_SCHEMA, bars_of_trades
from trade_pipeline.market.resample import resample_ms
from trade_pipeline.market.sources.archive import Member, bounds_ns, find_members, refuse, rows
from trade_pipeline.market.sources.base import Interval, SourceBars, SourceError, Surroundings
from trade_pipeline.market.sources.unpack import matching
from trade_pipeline.settings.series import TIMEFRAME_MS, SeriesSettings
from trade_pipeline.settings.sources import KrakenSource

MINUTE_MS = TIMEFRAME_MS["1m"]
# ccxt's codes that are others in an altname (its kraken `commonCurrencies`, read backwards).
ALTNAME_CODES = {
    "BTC": "XBT",
    "DOGE": "XDG",
    "LUNA": "LUNA2",
    "LUNC": "LUNA",
    "REP": "REPV2",
    "REPV1": "REP",
    "USTC": "UST",
}
_OHLCVT: dict[str, pl.DataType] = {
    "unix_s": pl.Int64(),
    **{name: pl.Float64() for name in ("open", "high", "low", "close", "volume")},
    "trades": pl.Int32(),
}
# Seconds may have a fraction, which a float does not hold to its last digit.
_SALES: dict[str, pl.DataType] = {
    "unix_s": pl.Decimal(38, 9),
    "price": pl.Float64(),
    "volume": pl.Float64(),
}
# Of 2001 to 2255, so that milliseconds are not taken for them.
_FIRST_S, _LAST_S = 10**9, 9 * 10**9 - 1
_NO_TIME = "has no time in seconds since 1970"


def ohlcvt_bars(
    pattern: str, altname: str, series: SeriesSettings, around: Surroundings
) -> Iterator[SourceBars]:
    """The pair's bars of each OHLCVT archive, in the order of the archives' names.

    Members are `<altname>_<minutes>.csv`: unix_s,open,high,low,close,volume,trades without a
    header, and without rows for minutes that did not trade. Every timeframe is made of the
    one-minute member, since the longer ones inside have missing days. Source: Kraken's support
    page "Downloadable historical OHLCVT data".

    Args:
        pattern: path or glob of the archives, relative to `around.base`.
        altname: the pair as Kraken's AssetPairs names it: XBTUSD.
        series: whose bars are asked for.
        around: folder and log.

    Yields:
        One batch an archive, confirmed from its first bar to the end of its last one. At 1m, rows
        repeated or out of order stay, with `file` and `row`, for `bars.violations` to name.

    Raises:
        SourceError: no archive, no ZIP, damaged, encrypted, without the pair, or with a row that
            cannot be read. All archives are opened before the first batch.
    """
    for member in find_members(pattern, f"{altname}_1.csv", f"pair {altname}", series.key, around):
        yield _ohlcvt(member, series)


def time_and_sales_bars(
    pattern: str, altname: str, series: SeriesSettings, around: Surroundings
) -> Iterator[SourceBars]:
    """Bars made of the single trades of each time-and-sales archive; else as `ohlcvt_bars`.

    Members are `<altname>.csv`: unix_s,price,volume without a header, in order of time and without
    ids, so trades that look the same are all kept. The first and the last interval of a member
    are dropped: trades outside of it may belong to them. Source: Kraken's support page
    "Downloadable historical market data (time and sales)".
    """
    for member in find_members(pattern, f"{altname}.csv", f"pair {altname}", series.key, around):
        yield _time_and_sales(member, series)


def covered(
    series: SeriesSettings, around: Surroundings, altname: str | None = None
) -> tuple[Interval, ...]:
    """The time that the archives of the series' source can give bars of; () when none is there.

    Reads each member once in a process, until its archive changes.

    Args:
        series: of a Kraken source.
        around: folder and log.
        altname: the pair; None: as `altname_of` the source's symbol.

    Raises:
        SourceError: as `ohlcvt_bars`, but for rows between the first and the last one.
    """
    source = series.source
    if not isinstance(source, KrakenSource):
        raise TypeError(f"series {series.key} is not of kind kraken")
    altname = altname or altname_of(source.symbol)
    found = []
    for pattern, suffix, span in (
        (source.ohlcvt_zip, "_1.csv", _of_minutes),
        (source.trades_zip, ".csv", _of_trades),
    ):
        if pattern is not None and matching(pattern, around.base):
            wanted, about = f"{altname}{suffix}", f"pair {altname}"
            for member in find_members(pattern, wanted, about, series.key, around):
                found.append(span(*bounds_ns(member), series.timeframe_ms))
    return joined(found)


def altname_of(symbol: str) -> str:
    """Kraken's altname of a spot symbol that is written as ccxt does.

    >>> altname_of("BTC/USD")
    'XBTUSD'
    """
    return "".join(ALTNAME_CODES.get(code, code) for code in symbol.split("/"))


def _of_minutes(first_ns: int, last_ns: int, length_ms: int) -> Interval:
    """Whole intervals of so many ms from the first minute to the end of the last one."""
    start, end = first_ns // NS_PER_MS, last_ns // NS_PER_MS + MINUTE_MS
    return -(-start // length_ms) * length_ms, end // length_ms * length_ms


def _of_trades(first_ns: int, last_ns: int, length_ms: int) -> Interval:
    """Whole intervals between those that the first and the last trade stand in."""
    first, last = (time // NS_PER_MS // length_ms for time in (first_ns, last_ns))
    return (first + 1) * length_ms, last * length_ms


def _ohlcvt(member: Member, series: SeriesSettings) -> SourceBars:
    bars = pl.concat(_minutes(member, first, table) for first, table in rows(member, _OHLCVT))
    # Within a year `violations` names such a row; cut into years, it could look well.
    year = bars["ts"].dt.year()
    _require(member, bars["row"], year >= year.shift(1), bars["ts"], "is of a year before the last")
    ms = bars["ts"].dt.epoch("ms")
    first, last = ms.to_numpy().min(), ms.to_numpy().max()
    confirmed = ((int(first), int(last) + MINUTE_MS),)
    if series.timeframe_ms == MINUTE_MS:
        return SourceBars(bars, confirmed, member.label)
    bad = violations(bars, series.model_copy(update={"timeframe": "1m"}), None)
    if bad.height:
        raise SourceError(explain(bad, series.key, member.label))
    derived, complete = resample_ms(
        bars, confirmed, series.key, series.calendar, MINUTE_MS, series.timeframe_ms
    )
    note = (
        f"{series.timeframe} bars are made of the one-minute bars of {member.label}, complete ones "
        "only: the archive's own longer timeframes have missing days"
    )
    return SourceBars(derived, tuple(complete), member.label, notes=(note,))


def _minutes(member: Member, first_row: int, table: pl.DataFrame) -> pl.DataFrame:
    """A block of an OHLCVT member in canonical columns, then `file` and `row`."""
    at = pl.Series(range(first_row, first_row + table.height), dtype=pl.Int64)
    second = table["unix_s"]
    _require(member, at, second.is_between(_FIRST_S, _LAST_S), second, _NO_TIME)
    bars = table.with_columns(
        ts=(pl.col("unix_s") * 1000).cast(TS), adj_factor=None, source=pl.lit("zip")
    )
    return bars.select(
        *(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()),
        # One name for millions of rows: so it takes a byte each.
        file=pl.lit(member.label, pl.Enum([member.label])),
        row=at,
    )


def _time_and_sales(member: Member, series: SeriesSettings) -> SourceBars:
    length = series.timeframe_ms * NS_PER_MS
    bars = [empty_bars()]
    # Trades of the interval that the last block ended in. So each interval is built in one go,
    # and how the member is cut into blocks changes no bit.
    waiting = pl.DataFrame(schema=TRADE_SCHEMA)
    first_ns = last_ns = 0
    known_from: int | None = None  # None as long as only the first interval was seen
    for first_row, table in rows(member, _SALES):
        trades = pl.concat([waiting, _trades(member, first_row, table)])
        time = trades["time"]
        _require(
            member,
            trades["id"],
            time >= time.shift(1),
            time,
            "is earlier, in ns, than the row above",
        )
        first_ns, last_ns = first_ns or time[0], time[-1]
        until = last_ns // length * length
        bars.append(bars_of_trades(trades, series.timeframe_ms, known_from, until).bars)
        if until > first_ns:
            known_from = until
        waiting = trades.filter(time >= until)
    start, end = _of_trades(first_ns, last_ns, series.timeframe_ms)
    return SourceBars(
        pl.concat(bars).with_columns(source=pl.lit("zip", BAR_SCHEMA["source"])),
        confirmed=((start, end),) if start < end else (),
        origin=member.label,
    )


def _trades(member: Member, first_row: int, table: pl.DataFrame) -> pl.DataFrame:
    """A block of a time-and-sales member as trades; their ids are the rows."""
    at = pl.Series(range(first_row, first_row + table.height), dtype=pl.Int64)
    time = table["unix_s"].to_physical().cast(pl.Int64, strict=False)
    price, volume = table["price"], table["volume"]
    known = time.is_between(_FIRST_S * 10**9, _LAST_S * 10**9).fill_null(False)
    _require(member, at, known, table["unix_s"], _NO_TIME)
    _require(member, at, (price > 0) & price.is_finite(), price, "has no positive price")
    _require(member, at, (volume >= 0) & volume.is_finite(), volume, "has no volume of 0 or more")
    return pl.DataFrame({"id": at, "time": time, "price": price, "volume": volume})


def _require(
    member: Member, row: pl.Series, holds: pl.Series, found: pl.Series, fault: str
) -> None:
    """Raise about the first row of which something does not hold; null means that it does."""
    wrong = (~holds).fill_null(False)
    if wrong.any():
        at = int(wrong.to_numpy().argmax())
        raise refuse(member, row[at], str(found[at]), fault)
