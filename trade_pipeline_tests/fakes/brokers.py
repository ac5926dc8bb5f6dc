"""What the fake brokers share: HTTP on 127.0.0.1 with credentials and faults, and a made stock.

Knows no wire format; each broker's is in a module of its own. Start at `FakeBroker`; a broker is a
subclass that gives `respond`:

    with FakeAlpaca([MadeStock("ACME")], now_ms=...) as fake:
        source = {"kind": "alpaca", "symbol": "ACME", "base_url": fake.url}
        fake.fail("/stocks/bars", "html", times=2)
        ...
    assert not fake.unexpected and not fake.unused
"""

import json
import math
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

from trade_pipeline.market.calendars import find_calendar

MINUTE, DAY = 60_000, 86_400_000
NEW_YORK = ZoneInfo("America/New_York")


class Answer(NamedTuple):
    """What goes over the wire."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"


class Request(NamedTuple):
    """One request; `headers` by their names in small letters."""

    method: str
    path: str
    params: dict[str, str]
    headers: dict[str, str]
    form: dict[str, str]


def as_json(content: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(content).encode(), status)


class OddError(Exception):
    """No sound client asks so; the text says why."""


_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
# Asking again helps.
FAULTS: dict[str, Answer] = {
    "429": Answer(b'{"message": "too many requests."}', 429),
    "500": Answer(b"Internal Server Error", 500, "text/plain"),
    "502 html": Answer(_HTML, 502, "text/html"),
    "504": Answer(b"upstream request timeout", 504, "text/plain"),
    "empty": Answer(b""),
    "html": Answer(_HTML, content_type="text/html"),
    "null": Answer(b"null"),
    "{}": Answer(b"{}"),
    "[]": Answer(b"[]"),
}
HUNG_UP = ("timeout", "connection reset")
TRANSIENT = (*FAULTS, "truncated json", *HUNG_UP)
Fault = str | Answer | Callable[[Any], Any]


@dataclass
class _Plan:
    """Faults still to come on a route: after so many other answers, so many times."""

    route: str
    fault: Fault
    times: int
    after: int


class FakeBroker:
    """A broker on loopback, to be used as a context manager.

    Attributes:
        url: the `base_url` of a series' source.
        now_ms: the broker's time, which its answers tell.
        requests: every request, in the order of arrival.
        unexpected: what no sound client sends, with the reason.
        hold_s: how long the fault "timeout" keeps silent before it hangs up.
    """

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.hold_s = 1.0
        self.requests: list[Request] = []
        self.unexpected: list[tuple[str, Request]] = []
        self._plans: list[_Plan] = []
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        _sessions()  # slow the first time, and clients have time limits
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def respond(self, request: Request) -> Answer:
        """The broker's answer. Raises `OddError` for what no sound client asks."""
        raise NotImplementedError

    def fail(self, route: str, fault: Fault, times: int = 1, after: int = 0) -> None:
        """Spoil the next answers of the routes whose path holds this text.

        Args:
            route: such as "/bars".
            fault: one of `TRANSIENT`, an answer of its own, or what to do with the good JSON.
            times: how many answers.
            after: how many good answers come before.
        """
        if isinstance(fault, str) and fault not in TRANSIENT:
            raise ValueError(f"no fault {fault!r}; there are {TRANSIENT}")
        self._plans.append(_Plan(route, fault, times, after))

    @property
    def unused(self) -> list[tuple[str, Fault]]:
        """Faults that were asked for and did not happen."""
        return [(plan.route, plan.fault) for plan in self._plans]

    def asked(self, route: str) -> list[dict[str, str]]:
        """The queries of all requests to the routes whose path holds this text."""
        return [one.params for one in self.requests if route in one.path]

    def answer(self, request: Request) -> Answer | str:
        """What a request gets; a string is one of `HUNG_UP`."""
        with self._lock:
            self.requests.append(request)
            try:
                good = self.respond(request)
            except (OddError, KeyError, ValueError) as odd:
                self.unexpected.append((repr(odd), request))
                return as_json({"message": f"endpoint not found: {odd}"}, 404)
            return self._spoiled(request.path, good)

    def _spoiled(self, path: str, good: Answer) -> Answer | str:
        plan = next((one for one in self._plans if one.route in path), None)
        if plan is None:
            return good
        if plan.after:
            plan.after -= 1
            return good
        plan.times -= 1
        if not plan.times:
            self._plans.remove(plan)
        fault = plan.fault
        if isinstance(fault, Answer) or fault in HUNG_UP:
            return fault
        if fault == "truncated json":
            return good._replace(body=good.body[: len(good.body) // 2])
        if isinstance(fault, str):
            return FAULTS[fault]
        return as_json(fault(json.loads(good.body)))


@dataclass(frozen=True)
class MadeStock:
    """A stock whose price is a formula of time; every price is as traded, never adjusted.

    Attributes:
        symbol: its name.
        splits: ex-date -> new shares for one old one.
        quiet: minutes (ms since 1970) in which nothing traded.
        listed: its first session.
    """

    symbol: str
    splits: Mapping[date, float] = field(default_factory=dict)
    quiet: frozenset[int] = frozenset()
    listed: date = date(2000, 1, 3)

    def price(self, ts: int) -> float:
        """Dollars a share at an instant."""
        value = 100 + 8 * math.sin(ts / (37 * DAY)) + 2 * math.sin(ts / (53 * MINUTE))
        for ex_date, ratio in self.splits.items():
            if ts >= at_midnight(ex_date):
                value /= ratio
        return value

    def bar(self, start: int, end: int) -> tuple[float, float, float, float, int]:
        """Open, high, low, close and volume of what traded in [start, end)."""
        opens, closes = round(self.price(start), 2), round(self.price(end - 1), 2)
        high, low = max(opens, closes) + 0.03, min(opens, closes) - 0.02
        return opens, round(high, 2), round(low, 2), closes, 100 + start // MINUTE % 97

    def days(self, first: int, end: int) -> list[tuple[date, int, int]]:
        """Date, opening and closing time of each session that opens in [first, end)."""
        first = max(first, at_midnight(self.listed))
        return [one for one in _sessions() if first <= one[1] < end]

    def minutes(self, first: int, end: int) -> list[int]:
        """Minutes in [first, end) with trades, some before the opening and after the close."""
        found = []
        for _, opens, closes in self.days(first - DAY, end):
            around = range(opens - 10 * MINUTE, closes + 10 * MINUTE, MINUTE)
            found += [ts for ts in around if first <= ts < end and ts not in self.quiet]
        return found


@cache
def _sessions() -> list[tuple[date, int, int]]:
    calendar = find_calendar("XNYS")
    start, end = datetime(2018, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
    dates = calendar.expected(start, end, DAY, True)
    closes = calendar.close_ts(dates, DAY, True)
    found = []
    for midnight, close in zip(dates.tolist(), closes.tolist(), strict=True):
        day = datetime.fromtimestamp(midnight / 1000, UTC).date()
        opens = datetime(day.year, day.month, day.day, 9, 30, tzinfo=NEW_YORK)
        found.append((day, int(opens.timestamp()) * 1000, close))
    return found


def at_midnight(day: date, zone: Any = UTC) -> int:
    """The start of a day, ms since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000


class _Server(ThreadingHTTPServer):
    """Hands each request to `FakeBroker.answer`."""

    daemon_threads = True

    def __init__(self, fake: FakeBroker) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One request a connection, so that none outlives the test."""

    server: _Server

    def do_GET(self) -> None:
        fake = self.server.fake
        url = urlsplit(self.path)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        request = Request(
            self.command,
            url.path,
            dict(parse_qsl(url.query, keep_blank_values=True)),
            {name.lower(): value for name, value in self.headers.items()},
            dict(parse_qsl(sent, keep_blank_values=True)),
        )
        answer = fake.answer(request)
        if answer == "timeout":
            fake.stopping.wait(fake.hold_s)
        elif answer == "connection reset":
            # Closing with no time to linger sends a reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif isinstance(answer, Answer):
            head = (
                f"HTTP/1.1 {answer.status} Status\r\nConnection: close\r\n"
                f"Date: {formatdate(fake.now_ms // 1000, usegmt=True)}\r\n"
                f"Content-Type: {answer.content_type}; charset=utf-8\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n"
            )
            with suppress(OSError):  # the client may have given up
                self.wfile.write(head.encode() + answer.body)

    def do_POST(self) -> None:
        self.do_GET()

    def finish(self) -> None:
        with suppress(OSError):  # the connection may have been reset
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are kept in `FakeBroker.requests`."""
