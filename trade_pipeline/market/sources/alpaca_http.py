"""Answers of Alpaca's market data API for one series, page by page, checked.

The requests are those of alpaca-py, whose clients give addresses, credentials and parameters. Their
own methods are left aside: they gather every page of a range in memory, retry by themselves and
have no time limit. Knows no bars but Alpaca's. Start at `AlpacaHttp`.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import polars as pl

from trade_pipeline.market.actions import Action
from trade_pipeline.market.bars import TS
from trade_pipeline.market.sources.base import SourceError, Surroundings
from trade_pipeline.market.sources.transport import BadResponseError, Line
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import AlpacaSource

PAGE_CAP = 10_000  # bars, the most that Alpaca gives at once
ACTIONS_CAP = 1_000
TIMEOUT_S = 60.0
CREDENTIALS = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY")
TIMEFRAMES = {
    "1m": (1, "Minute"),
    "5m": (5, "Minute"),
    "15m": (15, "Minute"),
    "1h": (1, "Hour"),
    "4h": (4, "Hour"),
    "1d": (1, "Day"),
}
# Alpaca may begin with the bar that contains the start; a day there may have 25 hours.
EARLIEST_MS = 25 * 3_600_000
# Dividends are listed under the day that they are paid on, which may be months ahead.
ACTIONS_AHEAD = timedelta(days=366)
_COLUMNS = {
    "t": ("ts", pl.String()),
    "o": ("open", pl.Float64()),
    "h": ("high", pl.Float64()),
    "l": ("low", pl.Float64()),
    "c": ("close", pl.Float64()),
    "v": ("volume", pl.Float64()),
    "n": ("trades", pl.Int64()),
}


class Page(NamedTuple):
    """Bars of one answer, as stamped by Alpaca: ts, prices, volume, trades; rising by time.

    Attributes:
        bars: may be empty even where more follows.
        more: whether Alpaca has more bars of the range.
    """

    bars: pl.DataFrame
    more: bool


class ListedActions(NamedTuple):
    """What Alpaca lists of one symbol.

    Attributes:
        actions: splits and cash dividends, rising by ex-date.
        others: how many of each kind that has no rule here, such as spin_offs.
        answers: how many answers it took.
    """

    actions: tuple[Action, ...]
    others: dict[str, int]
    answers: int


class AlpacaHttp:
    """Asks for bars and corporate actions of one series' symbol.

    Raises:
        SourceError: alpaca-py or the credentials are missing.
    """

    def __init__(self, series: SeriesSettings, around: Surroundings) -> None:
        if not isinstance(series.source, AlpacaSource):
            raise TypeError(f"series {series.key} is not of kind alpaca")
        self.series, self.settings, self.around = series, series.source, around
        self._data = _package(series)
        key, secret = _credentials(series, self.settings, around)
        self._secrets = [one for one in (key, secret) if one]
        self._date_ms: int | None = None
        # Alpaca counts the requests of an account, whatever they ask for.
        self._line = Line(
            "alpaca", "market data", self.settings.calls_per_minute, lambda error: False, around
        )
        base_url = self.settings.base_url
        options = {
            "api_key": key,
            "secret_key": secret,
            "url_override": None if base_url is None else base_url.rstrip("/"),
        }
        self._stocks = self.settings.asset_class == "stocks"
        if self._stocks:
            self._bars_client = self._tamed(self._data.StockHistoricalDataClient(**options))
            self._actions_client = self._tamed(
                import_module("alpaca.data.historical.corporate_actions").CorporateActionsClient(
                    **options
                )
            )
        else:
            self._bars_client = self._tamed(self._data.CryptoHistoricalDataClient(**options))

    @property
    def now_ms(self) -> int:
        """The time, by this machine or by Alpaca's last answer, whichever is earlier."""
        now = self.around.now_ms()
        return now if self._date_ms is None else min(now, self._date_ms)

    def bars(self, timeframe: str, start_ms: int, until_ms: int) -> Iterator[Page]:
        """Pages of bars that open in [start, until), the first one maybe a bar earlier.

        Args:
            timeframe: which bars, "1d" for those that factors are made of.
            start_ms: ms since 1970.
            until_ms: likewise, exclusive.

        Raises:
            SourceError: Alpaca refuses, or does not answer well.
        """
        settings = self.settings
        requests, unit = import_module("alpaca.data.requests"), import_module("alpaca.data")
        amount, name = TIMEFRAMES[timeframe]
        wanted = {
            "symbol_or_symbols": settings.symbol,
            "timeframe": unit.TimeFrame(amount, unit.TimeFrameUnit[name]),
            "start": _instant(start_ms),
            "end": _instant(until_ms - 1),  # Alpaca's end is inclusive
            "limit": PAGE_CAP,
        }
        if self._stocks:
            path = "/stocks/bars"
            request = requests.StockBarsRequest(
                **wanted,
                adjustment="raw",
                feed=settings.feed,
                asof=None if settings.asof is None else settings.asof.isoformat(),
            )
        else:
            path = "/crypto/us/bars"
            request = requests.CryptoBarsRequest(**wanted)
        params = request.to_request_fields()
        after_ms = start_ms - EARLIEST_MS
        seen: set[str] = set()
        token: str | None = None
        while True:
            what = f"series {self.series.key}: {timeframe} bars of {settings.symbol} from "
            what += f"{_instant(max(start_ms, after_ms)):%Y-%m-%d %H:%M} UTC"
            ask = partial(self._bars, path, params | {"page_token": token}, after_ms, seen)
            bars, token = self._line.ask(what, ask)
            yield Page(bars, token is not None)
            if token is None:
                return
            seen.add(token)
            if bars.height:
                after_ms = _last_ms(bars)

    def actions(self) -> ListedActions:
        """All corporate actions of the symbol since `first_year`, announced ones too.

        Raises:
            SourceError: Alpaca refuses, or does not answer well.
        """
        symbol = self.settings.symbol
        now = _instant(self.around.now_ms())
        request = import_module("alpaca.data.requests").CorporateActionsRequest(
            symbols=[symbol],
            start=date(self.series.first_year, 1, 1),
            end=now.date() + ACTIONS_AHEAD,
            limit=ACTIONS_CAP,
        )
        params = request.to_request_fields() | {"symbols": symbol}
        what = f"series {self.series.key}: corporate actions of {symbol}"
        found: set[Action] = set()
        others: Counter[str] = Counter()
        seen: set[str] = set()
        token: str | None = None
        while True:
            ask = partial(self._actions, params | {"page_token": token}, seen)
            (actions, kinds), token = self._line.ask(what, ask)
            found |= actions
            others += kinds
            if token is None:
                listed = tuple(sorted(found))
                return ListedActions(listed, dict(sorted(others.items())), len(seen) + 1)
            seen.add(token)

    def _bars(
        self, path: str, params: dict[str, Any], after_ms: int, seen: set[str]
    ) -> tuple[pl.DataFrame, str | None]:
        """One page and the token of the next. Raises `BadResponseError` or `SourceError`."""
        body, token = self._page(self._bars_client, path, params, "bars", seen)
        symbol = self.settings.symbol
        if not set(body) <= {symbol}:
            raise BadResponseError(f"{symbol} was asked for and {', '.join(body)} came")
        bars = _table(body.get(symbol, []))
        ms = bars["ts"].dt.epoch("ms")
        if bars.height and not (ms[0] > after_ms and (ms.diff().drop_nulls() > 0).all()):
            raise BadResponseError(
                f"bars from {bars['ts'][0]} on, which do not follow what came before or what was "
                "asked for, in order of time"
            )
        return bars, token

    def _actions(
        self, params: dict[str, Any], seen: set[str]
    ) -> tuple[tuple[set[Action], Counter[str]], str | None]:
        body, token = self._page(
            self._actions_client, "/corporate-actions", params, "corporate_actions", seen
        )
        found: set[Action] = set()
        others: Counter[str] = Counter()
        try:
            for kind, listed in body.items():
                for one in listed:
                    if kind in ("forward_splits", "reverse_splits"):
                        ratio = float(one["new_rate"]) / float(one["old_rate"])
                        found.add(Action(_midnight(one["ex_date"]), "split", ratio))
                    elif kind == "cash_dividends":
                        amount = float(one["rate"])
                        found.add(Action(_midnight(one["ex_date"]), "dividend", amount))
                    else:
                        others[kind] += 1
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise BadResponseError(
                f"a corporate action that cannot be read ({type(error).__name__}: {error})"
            ) from error
        return (found, others), token

    def _page(
        self, client: Any, path: str, params: dict[str, Any], key: str, seen: set[str]
    ) -> tuple[dict[str, Any], str | None]:
        """What stands under `key` of one answer, and the token of the next page."""
        body = self._get(client, path, params)
        if not isinstance(body, dict) or "next_page_token" not in body:
            raise BadResponseError(f"no page of {key}: {_start(body)}")
        content, token = body.get(key), body["next_page_token"]
        if not isinstance(content, dict) or not isinstance(token, str | None):
            raise BadResponseError(f"no page of {key}: {_start(body)}")
        if token in seen:
            raise BadResponseError("the page token came before, so that pages would never end")
        return content, token

    def _get(self, client: Any, path: str, params: dict[str, Any]) -> Any:
        """The JSON of one answer.

        No exception of a client is kept as a cause: it might tell the credentials in a traceback.

        Raises:
            SourceError: refused for good.
            BadResponseError: anything else that is no JSON.
        """
        refused = import_module("alpaca.common.exceptions").APIError
        failed = import_module("requests").RequestException
        try:
            return client.get(path, params)
        except refused as error:
            status, text = error.status_code, self._redacted(_message(str(error)))
        except failed as error:
            text = self._redacted(str(error))
            raise BadResponseError(f"{type(error).__name__}: {text}") from None
        if status in (408, 429) or status >= 500:
            raise BadResponseError(f"HTTP {status}: {text}")
        about = (
            f"series {self.series.key}: Alpaca refuses {self.settings.symbol} with HTTP {status}"
        )
        if status in (401, 403):
            raise SourceError(
                f"{about}: {text!r}. Check {' and '.join(CREDENTIALS)} of the environment, and "
                f"that the account's plan has the data (feed {self.settings.feed})."
            )
        raise SourceError(f"{about}: {text!r}. Correct the series' source.")

    def _tamed(self, client: Any) -> Any:
        """A client of alpaca-py with a time limit and without retries of its own.

        There is no public way to any of it.
        """
        client._retry = 0
        session = client._session
        session.request = partial(session.request, timeout=TIMEOUT_S)
        session.hooks["response"].append(self._note_date)
        return client

    def _note_date(self, response: Any, *_: Any, **__: Any) -> None:
        try:
            stamp = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return  # a proxy may leave it out or spoil it
        self._date_ms = int(stamp.timestamp() * 1000)

    def _redacted(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _package(series: SeriesSettings) -> Any:
    try:
        return import_module("alpaca.data.historical")
    except ImportError as error:
        raise SourceError(
            f"series {series.key}: alpaca-py cannot be imported ({error}); "
            "pip install trade_pipeline[alpaca]."
        ) from error


def _credentials(
    series: SeriesSettings, settings: AlpacaSource, around: Surroundings
) -> tuple[str | None, str | None]:
    """Key and secret. Crypto needs none, but half of them is a mistake."""
    key, secret = (around.environment.get(name) or None for name in CREDENTIALS)
    absent = [name for name, value in zip(CREDENTIALS, (key, secret), strict=True) if not value]
    if absent and (len(absent) == 1 or settings.asset_class == "stocks"):
        raise SourceError(
            f"series {series.key}: {' and '.join(absent)} of the environment "
            f"{'is' if len(absent) == 1 else 'are'} not set; create an API key at Alpaca and set "
            f"{' and '.join(CREDENTIALS)}."
        )
    return key, secret


def _table(rows: Any) -> pl.DataFrame:
    """Alpaca's rows as a frame. Raises `BadResponseError` for anything but whole bars."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadResponseError(f"no list of bars: {_start(rows)}")
    try:
        table = pl.DataFrame(rows, schema={name: kind for name, (_, kind) in _COLUMNS.items()})
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise BadResponseError(f"bars that cannot be read: {error}") from None
    bars = table.select(pl.col(name).alias(ours) for name, (ours, _) in _COLUMNS.items())
    bars = bars.with_columns(
        pl.col("ts")
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="ms", time_zone="UTC", strict=False)
        .cast(TS)
    )
    for name, missing in bars.null_count().row(0, named=True).items():
        if missing:
            row = rows[bars[name].is_null().arg_true()[0]]
            raise BadResponseError(f"a bar without {name}: {_start(row)}")
    return bars


def _message(body: str) -> str:
    """Alpaca's own words in a refusal, or the start of whatever came."""
    with suppress(ValueError, TypeError, KeyError):
        body = json.loads(body)["message"]
    return str(body)[:200]


def _start(body: Any) -> str:
    return repr(body)[:80]


def _midnight(day: str) -> int:
    """00:00Z of YYYY-MM-DD in ms."""
    found = datetime.combine(date.fromisoformat(day), datetime.min.time(), UTC)
    return int(found.timestamp()) * 1000


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _last_ms(bars: pl.DataFrame) -> int:
    return int(bars["ts"].dt.epoch("ms")[-1])
