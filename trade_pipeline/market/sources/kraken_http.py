"""Asking Kraken, through ccxt's implicit endpoints and a guard that takes no garbage for "no data".

ccxt's own `fetch_ohlcv` and `fetch_trades` turn HTML, cut JSON or another pair's rows into an empty
list, and times into floats. Here an answer is what the venue documents, or it is asked for again.
Knows the wire, not what to ask for; imports ccxt, so import it on first use. Start at `Venue`.
"""

import itertools
import json
import math
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn

import ccxt  # type: ignore[import-untyped]
import polars as pl

from trade_pipeline.market.bars import BAR_SCHEMA
from trade_pipeline.market.rebuild import (
    TradePage,
    TradesError,
    parse_trades,
    require_contiguous,
)
from trade_pipeline.market.sources.base import SourceError, Surroundings
from trade_pipeline.market.sources.transport import BadResponseError, Line
from trade_pipeline.settings.base import closest
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import KrakenSource

TIMEOUT_MS = 30_000
# Kraken says these of itself, and ccxt has no class of its own for most of them.
PASSING = ("EService:", "EAPI:Rate limit exceeded", "EGeneral:Too many requests")
CANDLE_FIELDS = 8  # time, open, high, low, close, vwap, volume, count
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SECONDS = re.compile(r"[1-8][0-9]{9}")
_pair_ids: dict[tuple[str | None, str], str] = {}  # by base_url and symbol, for this process


class Candles(NamedTuple):
    """One answer of `/0/public/OHLC`.

    Attributes:
        bars: committed candles in which something traded; `BAR_SCHEMA`, source `rest`.
        first_ms: open of the oldest candle that came, traded or not.
        last_ms: open of the newest committed candle of the venue.
    """

    bars: pl.DataFrame
    first_ms: int
    last_ms: int


class Venue:
    """Kraken, as far as one series needs it.

    Args:
        series: names the pair, and where and how often to ask.
        around: clock, sleep and log.

    Raises:
        SourceError: the venue does not answer, or does not have the pair.
    """

    def __init__(self, series: SeriesSettings, around: Surroundings) -> None:
        settings = series.source
        if not isinstance(settings, KrakenSource):
            raise TypeError(f"series {series.key} is not of kind kraken")
        self._client = _Client({"enableRateLimit": False, "timeout": TIMEOUT_MS})
        self._client.options["maxRetriesOnFailure"] = 0
        # Kraken's list of currencies says nothing that is needed here: one request less.
        self._client.has["fetchCurrencies"] = False
        name = "kraken"
        if settings.base_url is not None:
            name = f"kraken at {settings.base_url}"
            self._client.urls["api"] = dict.fromkeys(
                self._client.urls["api"], settings.base_url.rstrip("/")
            )
        self._line = Line(name, settings.symbol, settings.calls_per_minute, may_pass, around)
        self.pair = self._find_pair(series.key, settings)

    def candles(self, start_ms: int, timeframe_ms: int) -> Candles:
        """Candles from the one that opens at `start_ms` on, or the newest ones, if that is older.

        Kraken's `since` leaves out a candle that opens right then, so one candle more is asked for.
        """
        asked = {
            "pair": self.pair,
            "interval": timeframe_ms // 60_000,
            "since": (start_ms - timeframe_ms) // 1000,
        }
        return self._line.ask(
            f"OHLC since {_utc(start_ms)}",
            lambda: read_candles(
                self._client.publicGetOHLC(asked)["result"], self.pair, timeframe_ms
            ),
        )

    def trades(self, cursor: str, newest_id: int | None) -> TradePage:
        """The page of trades after a cursor, by rising id; none is missing in it or before it.

        Args:
            cursor: ns since 1970 as text: `last` of the page before.
            newest_id: of the page before; None for the first page.
        """
        return self._line.ask(
            f"Trades since {_utc(int(cursor) // 1_000_000)}",
            lambda: next_page(
                self._client.publicGetTrades({"pair": self.pair, "since": cursor}),
                self.pair,
                cursor,
                newest_id,
            ),
        )

    def has_ended(self, newest_id: int | None, start_ns: int) -> bool:
        """Whether the venue's newest trade is the one known: an empty page alone proves nothing.

        Args:
            newest_id: of the newest trade that came; None when none did.
            start_ns: where the crawl began, in ns since 1970.
        """
        newest = self._line.ask(
            "newest Trades",
            lambda: next_page(
                self._client.publicGetTrades({"pair": self.pair}), self.pair, "0", None
            ),
        ).trades
        if newest.is_empty():
            return False
        if newest_id is None:
            return int(newest["time"][-1]) < start_ns
        return int(newest["id"][-1]) <= newest_id

    def now_ms(self) -> int:
        """The venue's own clock, cut off to seconds."""
        return self._line.ask("Time", lambda: read_time(self._client.publicGetTime()["result"]))

    def _find_pair(self, key: str, settings: KrakenSource) -> str:
        """The venue's id of the pair, such as XXBTZUSD for BTC/USD."""
        found = _pair_ids.get((settings.base_url, settings.symbol))
        if found is None:
            ids = self._line.ask("AssetPairs", self._load)
            if settings.symbol not in ids:
                hint = closest(settings.symbol, list(ids))
                raise SourceError(
                    f"series {key}: Kraken has no symbol {settings.symbol!r}."
                    # There are more than a thousand, should none be close.
                    f"{hint if len(hint) <= 200 else f'{hint[:197]}...'} Correct source.symbol; it "
                    "is written as ccxt does, BTC/USD."
                )
            found = _pair_ids[(settings.base_url, settings.symbol)] = ids[settings.symbol]
        return found

    def _load(self) -> dict[str, str]:
        """The venue's id of each symbol."""
        try:
            markets = self._client.load_markets(reload=True)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise BadResponseError(f"the list of pairs cannot be read ({error!r})") from error
        if not markets:
            raise BadResponseError("the list of pairs is empty")
        return {symbol: market["id"] for symbol, market in markets.items()}


class _Client(ccxt.kraken):  # type: ignore[misc]
    """ccxt's Kraken, with fractions left as text and every answer checked."""

    def on_json_response(self, response_body: str) -> Any:
        """Decode JSON; a float would round times, and their order with them."""
        return json.loads(response_body, parse_float=str)

    def fetch(self, url: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The decoded answer, whose `result` is an object. Raises `BadResponseError`."""
        try:
            body = super().fetch(url, *args, **kwargs)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            # ccxt looks for errors in the body before anyone has checked its shape.
            raise BadResponseError(f"the answer cannot be read ({error!r})") from error
        return require_result(body)


def require_result(body: object) -> dict[str, Any]:
    """An answer as Kraken sends it when all is well. Raises `BadResponseError`."""
    if not isinstance(body, dict):
        _refuse(f"is {_shown(body)} instead of a JSON object")
    if body.get("error") != []:
        _refuse(f"reports error {_shown(body.get('error'))} instead of an empty list")
    if not isinstance(body.get("result"), dict):
        _refuse(f"has result {_shown(body.get('result'))} instead of an object")
    return body


def may_pass(error: BaseException) -> bool:
    """Whether asking again may help, though ccxt or Kraken refused."""
    if isinstance(error, ccxt.OperationFailed):
        return True
    refused = (ccxt.BadRequest, ccxt.AuthenticationError, ccxt.NotSupported)
    if not isinstance(error, ccxt.ExchangeError) or isinstance(error, refused):
        return False
    cause = error.__cause__
    if isinstance(cause, OSError):  # of the connection, and ccxt has no class for it
        status = getattr(getattr(cause, "response", None), "status_code", None)
        return status is None or status >= 500
    return any(text in str(error) for text in PASSING)


def read_candles(result: dict[str, Any], pair: str, timeframe_ms: int) -> Candles:
    """The candles of one answer, after every check that tells garbage from "no data".

    A candle is committed when it opens at `last` or before, wherever it stands. One without a trade
    is a filler that repeats the close before it, and no bar.

    Args:
        result: of `/0/public/OHLC`.
        pair: the key that the candles must stand under, for example `XXBTZUSD`.
        timeframe_ms: length of a candle.

    Raises:
        BadResponseError: it is anything but this pair's candles.
    """
    last, step = _last_and_pair(result, pair), timeframe_ms // 1000
    rows = result[pair]
    if not isinstance(rows, list) or not rows:
        _refuse(
            f"has candles {_shown(rows)}; at least the one that is not committed is always there"
        )
    candles = [_candle(row) for row in rows]
    opens = [candle[0] for candle in candles]
    for before, at in itertools.pairwise(opens):
        if at <= before:
            _refuse(f"has a candle at {at} after the one at {before}; they must rise")
    for at in (*opens, last):
        if at * 1000 % timeframe_ms:
            _refuse(
                f"names the time {at}, which is not on the grid of {timeframe_ms // 60_000} min"
            )
    for before, at in itertools.pairwise(opens):
        if at - before != step and at <= last:
            _refuse(f"lacks the candles between {before} and {at}, though quiet ones are given too")
    if last >= opens[0] and last not in opens:
        _refuse(f"says that the candle at {last} is the newest committed one, and does not have it")
    bars = pl.DataFrame(
        [
            (at * 1000, *prices, volume, count, None, "rest")
            for at, *prices, _, volume, count in candles
            if at <= last and count
        ],
        schema={**BAR_SCHEMA, "ts": pl.Int64()},
        orient="row",
    )
    return Candles(bars.cast({"ts": BAR_SCHEMA["ts"]}), opens[0] * 1000, last * 1000)


def next_page(body: object, pair: str, cursor: str, newest_id: int | None) -> TradePage:
    """The trades of one answer by rising id, which follow those of the page before.

    Args:
        body: of `/0/public/Trades`.
        pair: as in `rebuild.parse_trades`.
        cursor: what was asked for, ns as text.
        newest_id: of the page before; None for the first page.

    Raises:
        BadResponseError: the answer is garbage, a trade is missing in it or before it, or its own
            cursor does not move on.
    """
    try:
        page = parse_trades(body, pair)
        trades = require_contiguous(page.trades)
    except TradesError as error:
        raise BadResponseError(str(error)) from error
    if trades.is_empty():
        if int(page.last) < int(cursor):
            _refuse(f"has last {page.last}, which is before {cursor} that was asked for")
    elif int(page.last) <= int(cursor):
        _refuse(f"has {trades.height} trades, but its last {page.last} is not after {cursor}")
    elif newest_id is not None and trades["id"][0] > newest_id + 1:
        _refuse(f"starts with trade {trades['id'][0]}, but the page before ended with {newest_id}")
    return TradePage(trades, page.last)


def read_time(result: dict[str, Any]) -> int:
    """The venue's time in ms. Raises `BadResponseError`."""
    seconds = result.get("unixtime")
    if type(seconds) is not int or not _SECONDS.fullmatch(str(seconds)):
        _refuse(f"has unixtime {_shown(seconds)} instead of seconds since 1970")
    return seconds * 1000


def _last_and_pair(result: dict[str, Any], pair: str) -> int:
    """`last` in seconds, of a result that holds it and this pair alone."""
    if set(result) != {pair, "last"}:
        _refuse(f"holds the keys {_shown(sorted(map(str, result)))}, not {pair} and last")
    last = result["last"]
    # Kraken sometimes writes it as text; 0 when no candle is committed yet.
    if type(last) not in (int, str) or not re.fullmatch("0|" + _SECONDS.pattern, str(last)):
        _refuse(f"has last {_shown(last)} instead of seconds since 1970")
    return int(last)


def _candle(row: object) -> tuple[Any, ...]:
    """Time in s, open, high, low, close, vwap, volume and count of a row."""
    if not isinstance(row, list) or len(row) != CANDLE_FIELDS:
        _refuse(f"has the candle {_shown(row)} instead of a list of {CANDLE_FIELDS} fields")
    at, *numbers, count = row
    if type(at) is not int or not _SECONDS.fullmatch(str(at)):
        _refuse(f"has a candle at {_shown(at)} instead of seconds since 1970")
    if type(count) is not int or not 0 <= count < 2**31:
        _refuse(f"has a candle with count {_shown(count)} instead of a number of trades")
    floats = [_number(number) for number in numbers]
    return (at, *floats, count)


def _number(text: object) -> float:
    text = str(text) if type(text) is int else text
    if not isinstance(text, str) or not _NUMBER.fullmatch(text) or not math.isfinite(float(text)):
        _refuse(f"has {_shown(text)} in a candle where a number must be")
    return float(text)


def _refuse(fault: str) -> NoReturn:
    raise BadResponseError(f"the answer {fault}")


def _shown(value: object) -> str:
    """A value for a message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
