"""ccxt's client of one exchange, kept from retrying, from hiding garbage and from cutting answers.

Left alone, ccxt turns many broken answers into "no bars", and drops rows that it thinks were not
asked for, which hides that a venue ignored the question. Knows no bars and no plan. Start at
`opened`, whose result gives `bars` and `server_ms`.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from trade_pipeline.market.sources.base import SourceError
from trade_pipeline.market.sources.transport import BadResponseError, Line
from trade_pipeline.settings.base import closest
from trade_pipeline.settings.sources import CcxtSource

TIMEOUT_MS = 30_000
MOST_SHOWN = 200  # characters of a venue's answer in a message

# Clients with loaded markets, by exchange and address: loading them takes seconds.
_loaded: dict[tuple[str, str | None], Any] = {}


def _ccxt() -> Any:
    return import_module("ccxt")  # on first use: it takes a second


@cache
def described(exchange_id: str) -> Any:
    """The exchange as ccxt describes it; never sends a request."""
    return getattr(_ccxt(), exchange_id)()


def may_pass(error: BaseException) -> bool:
    """Whether ccxt says that an error is the venue's or the network's, and not the question's."""
    return isinstance(error, _ccxt().OperationFailed)


def opened(settings: CcxtSource, line: Line) -> Any:
    """A client of the exchange with its markets loaded, once per process.

    Raises:
        SourceError: the markets cannot be loaded.
    """
    exchange = _client(settings, line)
    key = (settings.exchange, settings.base_url)
    # Loaded again for a symbol that is not there: it may be new.
    if key not in _loaded or settings.symbol not in _loaded[key].markets:
        line.ask("markets", lambda: exchange.load(settings.market))
        _loaded[key] = exchange
    exchange.set_markets_from_exchange(_loaded[key])
    return exchange


def find_market(exchange: Any, settings: CcxtSource, key: str) -> None:
    """Require that the symbol exists and is of the wanted kind. Raises `SourceError`."""
    found, kind = exchange.markets.get(settings.symbol), settings.market
    about = f"series {key}: {settings.exchange}"
    if found is None:
        known = [one["symbol"] for one in exchange.markets.values() if one["type"] == kind]
        raise SourceError(
            f"{about} has no market {settings.symbol!r}.{closest(settings.symbol, known)}"
        )
    if found["type"] != kind:
        raise SourceError(
            f"{about}: {settings.symbol} is a {found['type']} market, and the source asks for "
            f"market: {kind}. Set one to fit the other; ccxt writes BTC/USDT for spot, "
            "BTC/USDT:USDT for swap and BTC/USDT:USDT-261225 for future."
        )


def _client(settings: CcxtSource, line: Line) -> Any:
    exchange = _guarded(settings.exchange)(
        {
            "timeout": TIMEOUT_MS,
            "enableRateLimit": True,  # has ccxt call `throttle`, which is ours
            "options": {"defaultType": settings.market, "maxRetriesOnFailure": 0},
        }
    )
    exchange.has["fetchCurrencies"] = False  # more requests, for what bars do not need
    if settings.base_url is not None:
        exchange.urls["api"] = _moved(exchange.urls["api"], settings.base_url.rstrip("/"))
    if settings.calls_per_minute is None:
        exchange.sleep_s = line.around.sleep
    return exchange


def _moved(urls: Any, base_url: str) -> Any:
    """The client's table of addresses, each with its path but at `base_url`."""
    if isinstance(urls, dict):
        return {name: _moved(one, base_url) for name, one in urls.items()}
    if isinstance(urls, str) and urls.startswith("http"):
        return base_url + urlsplit(urls).path
    return urls


@cache
def _guarded(exchange_id: str) -> Any:
    """The class that ccxt has of an exchange, with what a careful reader of its answers needs."""
    ccxt = _ccxt()
    known: Any = getattr(ccxt, exchange_id)

    class Guarded(known):  # type: ignore[misc]
        """Overrides what ccxt documents as overridable, and calls it."""

        body: Any = None  # the last answer, decoded
        taken: Any = None  # the part of it that ccxt took for the rows
        sleep_s: Callable[[float], None] | None = None

        def bars(self, symbol: str, timeframe: str, since: int, most: int) -> list[list[Any]]:
            """All rows of one answer, rising; raises `BadResponseError` for what is no answer."""
            rows: list[list[Any]] = self._read(self.fetch_ohlcv, symbol, timeframe, since, most)
            if not rows and self.body is not self.taken and not _holds_empty_list(self.body):
                raise BadResponseError(f"the answer is {_short(self.body)}, not a list of bars")
            return rows

        def server_ms(self) -> int:
            """The venue's time; raises `BadResponseError` when the answer holds none."""
            now = self._read(self.fetch_time)
            if not isinstance(now, int | float) or not now > 0:
                raise BadResponseError(f"the answer is {_short(self.body)}, not a time")
            return int(now)

        def load(self, kind: str) -> None:
            """Load the markets; raises `BadResponseError` when there are none of a kind."""
            markets = self._read(self.load_markets, True)
            if not any(one["type"] == kind for one in markets.values()):
                raise BadResponseError(f"the venue's list holds no {kind} market")

        def _read(self, method: Callable[..., Any], *args: Any) -> Any:
            """Call ccxt, and tell its stumbling over an unexpected answer from our mistakes."""
            try:
                return method(*args)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise BadResponseError(
                    f"ccxt cannot read the answer {_short(self.body)} "
                    f"({type(error).__name__}: {error})"
                ) from error

        def throttle(self, cost: float | None = None) -> None:
            """Wait for what a request costs above one: `Line` paces, but knows no costs."""
            if self.sleep_s is not None and cost is not None and cost > 1:
                self.sleep_s((cost - 1) * self.rateLimit / 1000)

        def fetch(self, *args: Any, **kwargs: Any) -> Any:
            """The decoded answer; ccxt hands undecodable text on, and nobody looks at it."""
            self.body = self.taken = None
            self.body = super().fetch(*args, **kwargs)
            if not isinstance(self.body, dict | list) and not _is_bare_number(self.body):
                raise BadResponseError(f"the answer is {_short(self.body)}, not JSON")
            return self.body

        def parse_ohlcvs(
            self, ohlcvs: Any, market: Any = None, timeframe: str = "1m", *_: Any, **__: Any
        ) -> Any:
            """Every row: ccxt would drop those before `since` or beyond `limit`."""
            self.taken = ohlcvs
            return super().parse_ohlcvs(ohlcvs, market, timeframe)

        def handle_errors(
            self, code: int, reason: str, url: str, method: str, headers: Any, body: str, *rest: Any
        ) -> Any:
            """Some venues' error texts become permanent errors in ccxt whatever the status is."""
            shown = f"{self.id} {code} {reason} {_short(body)}"
            if code == 429:
                raise ccxt.RateLimitExceeded(shown)
            if code >= 500:
                raise ccxt.ExchangeNotAvailable(shown)
            try:
                return super().handle_errors(code, reason, url, method, headers, body, *rest)
            except ccxt.ExchangeError as error:
                if body in ("[]", "{}"):  # holds no error text either: garbage, not a refusal
                    raise BadResponseError(f"the answer is {body}") from error
                raise

        def handle_http_status_code(
            self, code: int, reason: str, url: str, method: str, body: str
        ) -> None:
            """As ccxt, without a whole HTML page in the message."""
            super().handle_http_status_code(code, reason, url, method, _short(body))

    return Guarded


def _holds_empty_list(body: Any) -> bool:
    """Whether an object from which ccxt took no row says itself that there is none.

    Where ccxt misses the key that it looks for, it makes up an empty list of its own; so the answer
    must hold one. A list of errors does not count.
    """
    return isinstance(body, dict) and any(
        part == [] or _holds_empty_list(part)
        for name, part in body.items()
        if "error" not in name.lower()
    )


def _is_bare_number(text: Any) -> bool:
    # The time of some venues.
    return isinstance(text, str) and text.strip().replace(".", "", 1).isdecimal()


def _short(body: Any) -> str:
    text = repr(body)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
