"""Bars rebuilt from single trades, for the time that neither OHLC nor the archive covers.

Pure functions over answers and frames; knows no network, no storage, no clock, so asking for
the next page and keeping the cursor are the caller's. Start at `parse_trades`, put the pages
together with `require_contiguous`, end at `bars_of_trades`.

    TradesError
    ├── TradesBodyError   one answer is not a page of trades: ask again
    └── TradesOrderError  pages do not fit together: trades are missing or contradict each other
"""

import math
import re
from typing import Any, NamedTuple, NoReturn

import numpy as np
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA, TS, empty_bars

IMPLEMENTATION = 1

TRADE_SCHEMA: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "time": pl.Int64(),  # ns since 1970
    "price": pl.Float64(),
    "volume": pl.Float64(),
}
NS_PER_MS = 1_000_000
_CURSOR = re.compile(r"[1-8][0-9]{18}")
_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,18})?")
# Where a trade's fields stand, and their form. Seconds have ten digits (2001 to 2255), so that
# milliseconds are not taken for them and their ns fit in 64 bits.
_FIELDS = {
    "id": (6, re.compile(r"[0-9]{1,18}")),
    "time": (2, re.compile(r"[1-8][0-9]{9}(\.[0-9]{1,9})?")),
    "price": (0, _DECIMAL),
    "volume": (1, _DECIMAL),
}


class TradesError(Exception):
    """No bars can be rebuilt; the message names the pair or the trade ids, and what to do."""


class TradesBodyError(TradesError):
    """An answer is not the page of trades that was asked for; nothing of it may be used."""


class TradesOrderError(TradesError):
    """Trades are missing, contradict each other or run backwards in time."""


class TradePage(NamedTuple):
    """One answer of `/0/public/Trades`."""

    trades: pl.DataFrame  # TRADE_SCHEMA, in the answer's order; empty when nothing traded since
    last: str  # cursor of the next page, in ns: finer than the times that trades come with


class RebuiltBars(NamedTuple):
    """Bars of a run of trades; `confirmed` is None when the trades cover no whole interval."""

    bars: pl.DataFrame  # BAR_SCHEMA, source `trades`, sorted; none for a quiet interval
    confirmed: tuple[int, int] | None  # [start, end) in ms of which every trade is known


def parse_trades(body: object, pair: str) -> TradePage:
    """The trades of one answer, after every check that tells garbage from "no trades".

    Args:
        body: the decoded JSON of `/0/public/Trades`, its fractions left as text
            (`json.loads(text, parse_float=str)`; ccxt's `quoteJsonNumbers` does so): a float
            cannot hold a time in ns.
        pair: the key that the trades must stand under, for example `XXBTZUSD`.

    Raises:
        TradesBodyError: the body is anything but a page of this pair's trades.
    """
    if not isinstance(body, dict):
        _refuse(pair, f"is {_shown(body)} instead of a JSON object")
    if body.get("error") != []:
        _refuse(pair, f"reports error {_shown(body.get('error'))} instead of an empty list")
    result = body.get("result")
    if not isinstance(result, dict):
        _refuse(pair, f"has result {_shown(result)} instead of an object")
    if set(result) - {"last"} != {pair}:
        _refuse(pair, f"holds the keys {_shown(sorted(map(str, result)))}, not {pair} and last")
    last, rows = result.get("last"), result[pair]
    if not isinstance(last, str) or not _CURSOR.fullmatch(last):
        _refuse(pair, f"has last {_shown(last)} instead of text of 19 digits, a time in ns")
    if not isinstance(rows, list):
        _refuse(pair, f"has trades {_shown(rows)} instead of a list")
    parsed = [_trade(row, position, pair) for position, row in enumerate(rows)]
    return TradePage(pl.DataFrame(parsed, schema=TRADE_SCHEMA, orient="row"), last)


def require_contiguous(trades: pl.DataFrame) -> pl.DataFrame:
    """Trades of overlapping pages, any order, by rising `id` and each once (`TRADE_SCHEMA`).

    Two trades are the same when their ids are: equal price, volume and time prove nothing.

    Raises:
        TradesOrderError: an id is missing between two others, or has two contents.
    """
    ordered = trades.select(*TRADE_SCHEMA).unique().sort(*TRADE_SCHEMA)
    ids = ordered["id"].to_numpy()
    twice, gaps = np.flatnonzero(np.diff(ids) == 0), np.flatnonzero(np.diff(ids) > 1)
    if len(twice):
        one, other = ordered[int(twice[0]) :].head(2).rows()
        raise TradesOrderError(
            f"trade {one[0]} comes with two contents (id, ns, price, volume): {one} and {other}; "
            "fetch its pages again, and store none of their bars."
        )
    if len(gaps):
        before, after = ids[gaps[0]], ids[gaps[0] + 1]
        raise TradesOrderError(
            f"trades {before + 1} to {after - 1} are missing between {before} and {after} "
            f"(gaps in all: {len(gaps)}); fetch again from the cursor that gave trade {before}."
        )
    return ordered


def bars_of_trades(trades: pl.DataFrame, timeframe_ms: int) -> RebuiltBars:
    """Bars of every interval that the trades cover wholly; intervals are counted from 1970.

    The first and the last interval are dropped: trades before the first one and after the last
    one may belong to them, even when those stand exactly on an interval's edge. The volume is
    the correctly rounded sum of the trades' volumes, so it does not depend on their order.

    Args:
        trades: `TRADE_SCHEMA`, any order, repeated ids allowed.
        timeframe_ms: length of a bar.

    Raises:
        TradesOrderError: as `require_contiguous`, or a trade is earlier than the one before it,
            so that the next page could still change a finished interval.
    """
    if timeframe_ms <= 0:
        raise ValueError(f"timeframe_ms is {timeframe_ms}; a bar must be longer than 0 ms.")
    ids, time, price, volume = (column.to_numpy() for column in require_contiguous(trades))
    for at in np.flatnonzero(np.diff(time) < 0)[:1]:
        raise TradesOrderError(
            f"trade {ids[at + 1]} at {time[at + 1]} ns is earlier than trade {ids[at]} at "
            f"{time[at]} ns; times must not fall as ids rise. Fetch both again."
        )
    interval = time // (timeframe_ms * NS_PER_MS)
    # Where each interval's trades begin, but the first one's: so the last edge ends the last bar.
    edges = np.flatnonzero(np.diff(interval)) + 1
    if not len(edges) or interval[-1] - interval[0] < 2:
        return RebuiltBars(empty_bars(), None)
    first, after = edges[:-1], edges[1:]
    spans = [slice(*span) for span in zip(first, after, strict=True)]
    bars = pl.DataFrame(
        {
            "ts": pl.Series(interval[first] * timeframe_ms).cast(TS),
            "open": price[first],
            "high": [price[span].max() for span in spans],
            "low": [price[span].min() for span in spans],
            "close": price[after - 1],
            "volume": [math.fsum(volume[span]) for span in spans],
            "trades": after - first,
            "adj_factor": [None] * len(spans),
            "source": ["trades"] * len(spans),
        }
    ).select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items())
    confirmed = (int(interval[0]) + 1) * timeframe_ms, int(interval[-1]) * timeframe_ms
    return RebuiltBars(bars, confirmed)


def _trade(row: object, position: int, pair: str) -> tuple[int, int, float, float]:
    """A row of `TRADE_SCHEMA`."""
    where = f"has at position {position} of its trades"
    if not isinstance(row, list) or len(row) != 7:
        _refuse(pair, f"{where} {_shown(row)} instead of a list of 7 fields")
    texts = []
    for name, (at, form) in _FIELDS.items():
        text = str(row[at]) if type(row[at]) is int else row[at]
        if not isinstance(text, str) or not form.fullmatch(text):
            hint = " (decode the JSON with parse_float=str)" if isinstance(text, float) else ""
            _refuse(pair, f"{where} the {name} {_shown(text)}, which is no {name} in digits{hint}")
        texts.append(text)
    trade_id, time, price, volume = texts
    if float(price) <= 0:
        _refuse(pair, f"{where} the price {price}, which must be above 0")
    seconds, _, fraction = time.partition(".")
    return int(trade_id), int(seconds + fraction.ljust(9, "0")), float(price), float(volume)


def _refuse(pair: str, fault: str) -> NoReturn:
    raise TradesBodyError(
        f"pair {pair}: the answer of /0/public/Trades {fault}; nothing of it is used. "
        "Ask again from the same cursor."
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
