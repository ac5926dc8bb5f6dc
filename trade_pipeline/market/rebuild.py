"""Bars rebuilt from single trades, for the time that neither OHLC nor the archive covers.

Pure functions over answers and frames; knows no network, no storage, no clock, so asking for
the next page and keeping the cursor are the caller's. Start at `parse_trades`, put the pages
together with `require_contiguous`, end at `bars_of_trades`.

    TradesError
    ├── TradesBodyError   one answer is not a page of trades: ask again
    └── TradesOrderError  pages do not fit together: trades are missing or contradict each other
"""

import re
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit

from trade_pipeline.market.bars import BAR_SCHEMA, TS, empty_bars

IMPLEMENTATION = 1

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
TRADE_SCHEMA: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "time": pl.Int64(),  # ns since 1970
    "price": pl.Float64(),
    "volume": pl.Float64(),
}
NS_PER_MS = 1_000_000
LOTS = 1e8  # of which volumes with eight decimals are whole numbers
EXACT = 2.0**53  # up to here floats hold every whole number
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
    """Bars of a run of trades; `confirmed` is None when no whole interval is known."""

    bars: pl.DataFrame  # BAR_SCHEMA, source `trades`, sorted; none for a quiet interval
    confirmed: tuple[int, int] | None  # [start, end) in ms of which every trade is known


def parse_trades(body: object, pair: str) -> TradePage:
    """The trades of one answer, after every check that tells garbage from "no trades".

    Args:
        body: the decoded JSON of `/0/public/Trades`, its fractions left as text
            (`json.loads(text, parse_float=str)`; in Python ccxt's `quoteJsonNumbers` does
            nothing): a float cannot hold a time in ns.
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
    trades = trades.select(*TRADE_SCHEMA)
    if _contiguous(trades["id"].to_numpy()) == trades.height:
        return trades
    ordered = trades.unique().sort(*TRADE_SCHEMA)
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


def bars_of_trades(
    trades: pl.DataFrame,
    timeframe_ms: int,
    known_from_ns: int | None = None,
    known_until_ns: int | None = None,
) -> RebuiltBars:
    """Bars of every interval of which all trades are known; intervals are counted from 1970.

    A bar's volume is the float nearest to the sum of its trades' when these have at most eight
    decimals, as Kraken's lots do: the number that the venue itself writes. Otherwise it is a
    compensated sum in the order of ids. Either way the same trades give the same bits, whatever
    pages they came in.

    Args:
        trades: `TRADE_SCHEMA`, any order, repeated ids allowed.
        timeframe_ms: length of a bar.
        known_from_ns: every trade from this time on is among them, until `known_until_ns`. None:
            the first trade may have others before it in its interval, even when it stands
            exactly on the interval's edge, so that interval is dropped.
        known_until_ns: every trade before this time is among them; later ones are left out. None:
            the last trade may have others after it, so its interval is dropped.

    Returns:
        The bars, and the whole intervals between the two bounds; quiet ones have no bar.

    Raises:
        TradesOrderError: as `require_contiguous`, or a trade is earlier than the one before it,
            so that the next page could still change a finished interval.
    """
    if timeframe_ms <= 0:
        raise ValueError(f"timeframe_ms is {timeframe_ms}; a bar must be longer than 0 ms.")
    ids, time, price, volume = (column.to_numpy() for column in require_contiguous(trades))
    if (at := int(_first_fall(time))) >= 0:
        raise TradesOrderError(
            f"trade {ids[at]} at {time[at]} ns is earlier than trade {ids[at - 1]} at "
            f"{time[at - 1]} ns; times must not fall as ids rise. Fetch both again."
        )
    length = timeframe_ms * NS_PER_MS
    if not len(time) and (known_from_ns is None or known_until_ns is None):
        return RebuiltBars(empty_bars(), None)
    start = -(-known_from_ns // length) if known_from_ns is not None else time[0] // length + 1
    end = (known_until_ns if known_until_ns is not None else time[-1]) // length
    if start >= end:
        return RebuiltBars(empty_bars(), None)
    whole = slice(*np.searchsorted(time, (start * length, end * length)))
    opens, *columns, counts = _bars(time[whole], price[whole], volume[whole], length)
    bars = pl.DataFrame(
        {
            "ts": pl.Series(opens // NS_PER_MS).cast(TS),
            **dict(zip(("open", "high", "low", "close", "volume"), columns, strict=True)),
            "trades": counts,
        }
    ).with_columns(adj_factor=None, source=pl.lit("trades"))
    return RebuiltBars(
        bars.select(pl.col(name).cast(dtype) for name, dtype in BAR_SCHEMA.items()),
        (int(start) * timeframe_ms, int(end) * timeframe_ms),
    )


@njit(cache=True)
def _contiguous(ids: IntArray) -> int:
    """How many of them rise by exactly one, from the first on."""
    at = min(1, len(ids))
    while at < len(ids) and ids[at] == ids[at - 1] + 1:
        at += 1
    return at


@njit(cache=True)
def _first_fall(time: IntArray) -> int:
    """Where a time is earlier than the one before it; -1 when nowhere."""
    for at in range(1, len(time)):
        if time[at] < time[at - 1]:
            return at
    return -1


@njit(cache=True)
def _bars(
    time: IntArray, price: FloatArray, volume: FloatArray, length: int
) -> tuple[IntArray, FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, IntArray]:
    """One bar an interval that traded; no fastmath, so that the same trades give the same bits.

    Args:
        time: [T] ns, not falling.
        price: [T].
        volume: [T], not negative.
        length: of an interval, ns.

    Returns:
        [B] each: open time in ns, open, high, low, close, volume, number of trades.
    """
    most = 0 if len(time) == 0 else min(len(time), (time[-1] - time[0]) // length + 2)
    opens, counts = np.empty(most, np.int64), np.empty(most, np.int64)
    open_, high, low = np.empty(most), np.empty(most), np.empty(most)
    close, total = np.empty(most), np.empty(most)
    bar, at = 0, 0
    while at < len(time):
        first = at
        opens[bar] = time[at] // length * length
        end = opens[bar] + length
        highest = lowest = price[at]
        sum_, lost, lots, whole_lots = 0.0, 0.0, 0.0, True
        while at < len(time) and time[at] < end:
            highest, lowest = max(highest, price[at]), min(lowest, price[at])
            amount = volume[at]
            # Neumaier: what each addition rounds off is kept and added at the end.
            grown = sum_ + amount
            if sum_ >= amount:
                lost += (sum_ - grown) + amount
            else:
                lost += (amount - grown) + sum_
            sum_ = grown
            of_lots = np.rint(amount * LOTS)
            whole_lots &= of_lots / LOTS == amount
            lots += of_lots
            at += 1
        open_[bar], close[bar] = price[first], price[at - 1]
        high[bar], low[bar], counts[bar] = highest, lowest, at - first
        total[bar] = lots / LOTS if whole_lots and lots < EXACT else sum_ + lost
        bar += 1
    return (opens[:bar], open_[:bar], high[:bar], low[:bar], close[:bar], total[:bar], counts[:bar])


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
