"""Answers of Schwab's price history for one series, checked.

The client is schwab-py's, with a token that its login script wrote. Schwab lets nobody log in
without a browser, so that a token that has run out (after seven days) ends in a sentence that says
how to log in again. Knows no bars but Schwab's. Start at `SchwabHttp`.
"""

import json
import logging
import os
import tempfile
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl

from trade_pipeline.market.bars import TS
from trade_pipeline.market.sources.base import SourceError, Surroundings
from trade_pipeline.market.sources.transport import BadResponseError, Line
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.settings.sources import SchwabSource

TIMEOUT_S = 60.0
CREDENTIALS = ("SCHWAB_APP_KEY", "SCHWAB_APP_SECRET")
METHODS = {
    "1m": "get_price_history_every_minute",
    "5m": "get_price_history_every_five_minutes",
    "15m": "get_price_history_every_fifteen_minutes",
    "1d": "get_price_history_every_day",
}
_COLUMNS = {
    "datetime": ("ts", pl.Int64()),
    "open": ("open", pl.Float64()),
    "high": ("high", pl.Float64()),
    "low": ("low", pl.Float64()),
    "close": ("close", pl.Float64()),
    "volume": ("volume", pl.Float64()),
}


class SchwabHttp:
    """Asks for the candles of one series' symbol.

    Raises:
        SourceError: schwab-py, the credentials or the token are missing.
    """

    def __init__(self, series: SeriesSettings, around: Surroundings) -> None:
        if not isinstance(series.source, SchwabSource):
            raise TypeError(f"series {series.key} is not of kind schwab")
        self.series, self.settings, self.around = series, series.source, around
        try:
            auth = import_module("schwab.auth")
        except ImportError as error:
            raise SourceError(
                f"series {series.key}: schwab-py cannot be imported ({error}); "
                "pip install trade_pipeline[schwab]."
            ) from error
        key, secret = _credentials(series, around)
        self._secrets = {key, secret}
        self._path = (around.base / self.settings.token_file).resolve()
        token = self._read_token()
        # Not client_from_token_file: it would empty the file before it writes a new token.
        self._client = auth.client_from_access_functions(
            key, secret, lambda: token, self._write_token
        )
        self._client.set_timeout(TIMEOUT_S)
        # schwab-py's own writes whole answers, and a refusal may repeat the token.
        self._client.logger = logging.Logger(__name__, logging.WARNING)
        session = self._client.session
        session.register_compliance_hook("refresh_token_response", self._check_refresh)
        if self.settings.base_url is not None:
            session.event_hooks = {"request": [self._redirect]}
        self._date_ms: int | None = None
        # Schwab counts the requests of an app, whatever they ask for.
        self._line = Line(
            "schwab", "price history", self.settings.calls_per_minute, lambda error: False, around
        )

    @property
    def now_ms(self) -> int:
        """The time, by this machine or by Schwab's last answer, whichever is earlier."""
        now = self.around.now_ms()
        return now if self._date_ms is None else min(now, self._date_ms)

    def bars(self, timeframe: str, start_ms: int) -> pl.DataFrame:
        """All candles that Schwab has, as stamped by Schwab: ts, prices, volume; rising by time.

        Args:
            timeframe: one of `METHODS`.
            start_ms: candles long before it are not asked for.

        Raises:
            SourceError: Schwab refuses, has no candle or does not answer well.
        """
        what = f"series {self.series.key}: {timeframe} bars of {self.settings.symbol}"
        return self._line.ask(what, lambda: self._candles(timeframe, start_ms))

    def _candles(self, timeframe: str, start_ms: int) -> pl.DataFrame:
        symbol = self.settings.symbol
        body = self._get(timeframe, start_ms)
        if not isinstance(body, dict) or not {"candles", "symbol", "empty"} <= set(body):
            raise BadResponseError(f"no price history: {_start(body)}")
        if str(body["symbol"]).upper() != symbol.upper():
            raise BadResponseError(f"{symbol} was asked for and {_start(body['symbol'])} came")
        bars = _table(body["candles"])
        if bars.is_empty() and body["empty"]:
            raise SourceError(
                f"series {self.series.key}: Schwab has no {timeframe} bar of {symbol}; correct the "
                "symbol (an index starts with $)."
            )
        if bars.is_empty() or body["empty"]:
            raise BadResponseError(f"{bars.height} candles in an answer marked {body['empty']!r}")
        return bars

    def _get(self, timeframe: str, start_ms: int) -> Any:
        """The JSON of one answer.

        No exception of a client is kept as a cause: it might tell secrets in a traceback.

        Raises:
            SourceError: refused for good.
            BadResponseError: anything else that is no JSON.
        """
        refused = import_module("authlib.common.errors").AuthlibBaseError
        try:
            response = getattr(self._client, METHODS[timeframe])(
                self.settings.symbol,
                start_datetime=_instant(start_ms),
                end_datetime=_instant(self.around.now_ms()),
                need_extended_hours_data=False,
            )
        except refused as error:
            raise self._login_again(f"Schwab did not renew the token ({error.error})") from None
        except (SourceError, BadResponseError):
            raise
        except Exception as error:
            # By name: authlib brings httpx2 or httpx, and each has errors of its own.
            if not any(base.__name__ == "HTTPError" for base in type(error).__mro__):
                raise
            text = self._redacted(str(error))
            raise BadResponseError(f"{type(error).__name__}: {text}") from None
        self._note_date(response)
        status = response.status_code
        if status == 200:
            try:
                return response.json()
            except ValueError:
                raise BadResponseError(f"no JSON: {_start(response.text)}") from None
        text = self._redacted(_message(response.text))
        if status in (408, 429) or status >= 500:
            raise BadResponseError(f"HTTP {status}: {text}")
        if status in (401, 403):
            raise self._login_again(f"Schwab refuses the token with HTTP {status}: {text!r}")
        raise SourceError(
            f"series {self.series.key}: Schwab refuses {self.settings.symbol} with HTTP {status}: "
            f"{text!r}. Correct the series' source."
        )

    def _check_refresh(self, response: Any) -> Any:
        """Let only a new token pass: authlib would store any JSON object as one."""
        status = response.status_code
        if status in (408, 429) or status >= 500:
            raise BadResponseError(f"HTTP {status} on renewing the token")
        if status >= 400:
            raise self._login_again(f"Schwab refuses to renew the token with HTTP {status}")
        try:
            is_token = bool(response.json()["access_token"])
        except (ValueError, TypeError, KeyError):
            is_token = False
        if not is_token:
            raise BadResponseError("no token came on renewing it")
        return response

    def _redirect(self, request: Any) -> None:
        """Send a request to `base_url`; schwab-py knows no address but Schwab's."""
        base_url = str(self.settings.base_url).rstrip("/")
        request.url = type(request.url)(base_url + request.url.raw_path.decode())
        request.headers["Host"] = request.url.netloc.decode()

    def _read_token(self) -> dict[str, Any]:
        try:
            token = json.loads(self._path.read_bytes())
            self._keep_secret(token["token"])
            int(token["creation_timestamp"])
        except FileNotFoundError:
            raise self._login_again("there is no such token file") from None
        except OSError as error:
            raise self._login_again(f"the token file cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, KeyError):
            raise self._login_again("that is no token file of schwab-py") from None
        return dict(token)

    def _write_token(self, token: dict[str, Any], *_: Any, **__: Any) -> None:
        """Replace the token file, readable by its owner only, whole or not at all."""
        self._keep_secret(token["token"])
        try:
            descriptor, name = tempfile.mkstemp(
                dir=self._path.parent, prefix=f".{self._path.name}."
            )
            temporary = Path(name)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(token, file)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise SourceError(
                f"series {self.series.key}: the renewed token cannot be written to "
                f"{self.settings.token_file} ({error.strerror}); make its folder writable."
            ) from None

    def _keep_secret(self, token: dict[str, Any]) -> None:
        """Let no message tell it. Raises `KeyError` when it is no token."""
        self._secrets |= {str(token[name]) for name in ("access_token", "refresh_token")}

    def _login_again(self, why: str) -> SourceError:
        return SourceError(
            f"series {self.series.key}: {self.settings.token_file}: {self._redacted(why)}. A token "
            "of Schwab lasts seven days; log in again with schwab-py's script: "
            f"schwab-generate-token.py --token_file {self.settings.token_file} --api_key "
            "$SCHWAB_APP_KEY --app_secret $SCHWAB_APP_SECRET --callback_url <the app's>."
        )

    def _note_date(self, response: Any) -> None:
        try:
            stamp = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return  # a proxy may leave it out or spoil it
        self._date_ms = int(stamp.timestamp() * 1000)

    def _redacted(self, text: str) -> str:
        for secret in filter(None, self._secrets):
            text = text.replace(secret, "***")
        return text


def _credentials(series: SeriesSettings, around: Surroundings) -> tuple[str, str]:
    key, secret = (around.environment.get(name, "") for name in CREDENTIALS)
    if not key or not secret:
        raise SourceError(
            f"series {series.key}: {' and '.join(CREDENTIALS)} of the environment must be set to "
            "the key and the secret of an app at Schwab's developer portal."
        )
    return key, secret


def _table(rows: Any) -> pl.DataFrame:
    """Schwab's candles as a frame. Raises `BadResponseError` for anything but whole bars."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BadResponseError(f"no list of candles: {_start(rows)}")
    try:
        table = pl.DataFrame(rows, schema={name: kind for name, (_, kind) in _COLUMNS.items()})
    except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
        raise BadResponseError(f"candles that cannot be read: {error}") from None
    bars = table.select(pl.col(name).alias(ours) for name, (ours, _) in _COLUMNS.items())
    for name, missing in bars.null_count().row(0, named=True).items():
        if missing:
            row = rows[bars[name].is_null().arg_true()[0]]
            raise BadResponseError(f"a candle without {name}: {_start(row)}")
    if not (bars["ts"].diff().drop_nulls() > 0).all():
        raise BadResponseError("candles that are not in order of time")
    return bars.with_columns(pl.col("ts").cast(TS))


def _message(body: str) -> str:
    """Schwab's own words in a refusal, or the start of whatever came."""
    try:
        error = json.loads(body)["errors"][0]
        body = ": ".join(str(error[name]) for name in ("title", "detail") if error.get(name))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        pass
    return body[:200]


def _start(body: Any) -> str:
    return repr(body)[:80]


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)
