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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from fractions import Fraction
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np

from trade_pipeline.market.actions import Action
from trade_pipeline_tests.fakes.server import Answer, FakeServer, Received

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


class FakeYahoo(FakeServer):
    """Serves the stocks it is given, after the faults it is told.

    Attributes:
        url: address to use instead of Yahoo's hosts.
        stocks: by symbol.
        changes: made to the next charts' first result, one each.
        charts: query of every chart asked for, with its `symbol`.
        unexpected: requests that this venue does not know.
        date: what the venue's clock says, as its answers tell it; None: this machine's.
    """

    keeps_open: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.stocks: dict[str, Listed] = {}
        self.changes: list[Change] = []
        self.faults: list[tuple[int, bytes]] = []
        self.charts: list[dict[str, str]] = []
        self.unexpected: list[str] = []
        self.date: str | None = None

    @property
    def unused(self) -> list[object]:
        """Faults and changes that no request met."""
        return [*self.faults, *self.changes]

    def fail(self, status: int, body: bytes, times: int = 1) -> None:
        """Answer the next charts with this; yfinance asks twice when the status is 400 or more."""
        self.faults += [(status, body)] * times

    def headers(self) -> Mapping[str, str]:
        return {"Date": formatdate(usegmt=True) if self.date is None else self.date}

    def answer(self, received: Received) -> Answer:
        path, query = received.path, received.params
        if received.method != "GET":
            return _plain(b"", 501)
        if path in ("", "/"):
            return _plain(b"", 404)  # fc.yahoo.com: a cookie comes with it
        if path == "/v1/test/getcrumb":
            return _plain(b"crumb")
        if path in ("/consent", "/copyConsent"):
            return _plain(b"<html>no form here</html>")
        if not path.startswith(CHART) or query.get("interval") != "1d":
            self.unexpected.append(f"{path} {query}")
            return _plain(b"", 501)
        symbol = unquote(path.removeprefix(CHART))
        with self._lock:
            self.charts.append(query | {"symbol": symbol})
            if self.faults:
                status, body = self.faults.pop(0)
                return _plain(body, status)
            change = self.changes.pop(0) if self.changes else None
        if symbol not in self.stocks:
            return _plain(json.dumps(NOT_FOUND).encode(), 404)
        chart = self.stocks[symbol].chart(int(query["period1"]), int(query["period2"]))
        if change:
            change(chart["chart"]["result"][0])
        return _plain(json.dumps(chart).encode())


def _plain(body: bytes, status: int = 200) -> Answer:
    return Answer(body, status, content_type="")


def seconds(*moment: int) -> int:
    """Seconds since 1970 of a UTC moment."""
    return int(datetime(*moment, tzinfo=UTC).timestamp())  # type: ignore[misc]
