"""A venue on 127.0.0.1 that speaks Yahoo Finance's chart and the hand-shake yfinance makes first.

Imitates the venue as users recorded it; knows nothing of our client. Bodies are made from a stock
as it traded: split-adjusted, rounded to six decimals, stored as float32. Start at `FakeYahoo`:

    with FakeYahoo() as fake:
        fake.stocks["AAPL"] = Listed("AAPL", opens, prices, volume)
        fake.fail(429, b"Too Many Requests", times=2)
        ...
    assert not fake.unexpected and not fake.unused
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from trade_pipeline.market.actions import Action

CHART = "/v8/finance/chart/"
NOT_FOUND = {
    "chart": {
        "result": None,
        "error": {"code": "Not Found", "description": "No data found, symbol may be delisted"},
    }
}
Change = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class Listed:
    """What traded, as it traded.

    Attributes:
        opens: [n] when each session opened, seconds since 1970.
        prices: [n, 4] open, high, low, close; NaN is written as null.
        volume: [n] shares.
        actions: ex-dates as dates at 00:00Z, dividends in money of their day.
    """

    symbol: str
    opens: list[int]
    prices: np.ndarray
    volume: np.ndarray
    actions: tuple[Action, ...] = ()
    zone: str = "America/New_York"
    currency: str = "USD"
    instrument: str = "EQUITY"

    def chart(self, start: int, end: int) -> dict[str, Any]:
        """The body for bars that open in [start, end), all later splits taken out."""
        at = [row for row, open_ in enumerate(self.opens) if start <= open_ < end]
        # An event is at the opening time of its date, as its session is. East of Greenwich that
        # may be late on the day before in UTC.
        clock = (self.opens[0] + 4 * 3600) % 86_400 - 4 * 3600
        moments = [one.ts_ms // 1000 + clock for one in self.actions]
        within = [
            (one, moment)
            for one, moment in zip(self.actions, moments, strict=True)
            if start <= moment < end
        ]
        divisor = [self._later_splits((self.opens[row] - clock) * 1000) for row in at]
        columns: dict[str, list[Any]] = {}
        for column, name in enumerate(("open", "high", "low", "close")):
            values = (self.prices[row, column] for row in at)
            columns[name] = [_stored(v, by) for v, by in zip(values, divisor, strict=True)]
        volume = [
            None if np.isnan(self.prices[row]).all() else int(self.volume[row] * by + 0.5)
            for row, by in zip(at, divisor, strict=True)
        ]
        result: dict[str, Any] = {
            "meta": {
                "currency": self.currency,
                "symbol": self.symbol,
                "instrumentType": self.instrument,
                "firstTradeDate": self.opens[0],
                "regularMarketTime": self.opens[-1] + 3600,
                "exchangeTimezoneName": self.zone,
                "dataGranularity": "1d",
                "priceHint": 2,
                "validRanges": ["1d", "5d", "max"],
            },
            "indicators": {
                "quote": [{**columns, "volume": volume}],
                "adjclose": [{"adjclose": columns["close"]}],
            },
        }
        if at:
            result["timestamp"] = [self.opens[row] for row in at]
        events: dict[str, dict[str, Any]] = {}
        for one, moment in within:
            if one.kind == "split":
                ratio = Fraction(one.value).limit_denominator(1000)
                event = {
                    "numerator": ratio.numerator,
                    "denominator": ratio.denominator,
                    "splitRatio": f"{ratio.numerator}:{ratio.denominator}",
                }
            else:
                event = {"amount": round(one.value / self._later_splits(one.ts_ms), 6)}
            known = events.setdefault(one.kind + "s", {})
            known[str(moment + len(known))] = {"date": moment} | event
        if events:
            result["events"] = events
        return {"chart": {"result": [result], "error": None}}

    def _later_splits(self, date_ms: int) -> float:
        product = 1.0
        for one in self.actions:
            if one.kind == "split" and one.ts_ms > date_ms:
                product *= one.value
        return product


def _stored(value: float, divisor: float) -> float | None:
    if np.isnan(value):
        return None
    return float(np.float32(value if divisor == 1 else round(value / divisor, 6)))


class FakeYahoo:
    """Serves the stocks it is given, after the faults it is told.

    Attributes:
        url: address to use instead of Yahoo's hosts.
        stocks: by symbol.
        changes: made to the next charts' first result, one each.
        charts: query of every chart asked for, with its `symbol`.
        unexpected: requests that this venue does not know.
    """

    def __init__(self) -> None:
        self.stocks: dict[str, Listed] = {}
        self.changes: list[Change] = []
        self.faults: list[tuple[int, bytes]] = []
        self.charts: list[dict[str, str]] = []
        self.unexpected: list[str] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def unused(self) -> list[object]:
        """Faults and changes that no request met."""
        return [*self.faults, *self.changes]

    def fail(self, status: int, body: bytes, times: int = 1) -> None:
        """Answer the next charts with this; yfinance asks twice when the status is 400 or more."""
        self.faults += [(status, body)] * times

    def answer(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        address = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        if address.path in ("", "/"):
            return 404, b""  # fc.yahoo.com: a cookie comes with it
        if address.path == "/v1/test/getcrumb":
            return 200, b"crumb"
        if address.path in ("/consent", "/copyConsent"):
            return 200, b"<html>no form here</html>"
        if not address.path.startswith(CHART) or query.get("interval") != "1d":
            self.unexpected.append(path)
            return 501, b""
        symbol = unquote(address.path.removeprefix(CHART))
        with self._lock:
            self.charts.append(query | {"symbol": symbol})
            if self.faults:
                return self.faults.pop(0)
            change = self.changes.pop(0) if self.changes else None
        if symbol not in self.stocks:
            return 404, json.dumps(NOT_FOUND).encode()
        body = self.stocks[symbol].chart(int(query["period1"]), int(query["period2"]))
        if change:
            change(body["chart"]["result"][0])
        return 200, json.dumps(body).encode()


def _handler(fake: FakeYahoo) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = fake.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Quiet: the test reads what was asked from the fake."""

    return Handler


def seconds(*moment: int) -> int:
    """Seconds since 1970 of a UTC moment."""
    return int(datetime(*moment, tzinfo=UTC).timestamp())  # type: ignore[misc]
