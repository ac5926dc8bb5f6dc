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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from email.utils import formatdate
from functools import cache
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

from trade_pipeline.market.calendars import find_calendar
from trade_pipeline_tests.fakes.server import (
    HUNG_UP,
    Answer,
    FakeServer,
    PlannedFaults,
    Received,
    as_json,
)

MINUTE, DAY = 60_000, 86_400_000
NEW_YORK = ZoneInfo("America/New_York")


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
TRANSIENT = (*FAULTS, "truncated json", *HUNG_UP)
Fault = str | Answer | Callable[[Any], Any]


class FakeBroker(FakeServer):
    """A broker on loopback, to be used as a context manager.

    Attributes:
        url: the `base_url` of a series' source.
        now_ms: the broker's time, which its answers tell.
        requests: every request, in the order of arrival.
        unexpected: what no sound client sends, with the reason.
    """

    keeps_open: ClassVar[bool] = False  # so that no connection outlives the test

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.now_ms = now_ms
        self.hold_s = 1.0
        self.requests: list[Received] = []
        self.unexpected: list[tuple[str, Received]] = []
        self._faults = PlannedFaults()
        _sessions()  # slow the first time, and clients have time limits

    def respond(self, request: Received) -> Answer:
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
        self._faults.add(route, fault, times, after)

    @property
    def unused(self) -> list[tuple[str, Fault, int]]:
        """Faults that were asked for and did not happen."""
        return self._faults.unused

    def asked(self, route: str) -> list[dict[str, str]]:
        """The queries of all requests to the routes whose path holds this text."""
        return [one.params for one in self.requests if route in one.path]

    def headers(self) -> Mapping[str, str]:
        return {"Date": formatdate(self.now_ms // 1000, usegmt=True)}

    def answer(self, received: Received) -> Answer | str:
        with self._lock:
            self.requests.append(received)
            try:
                good = self.respond(received)
            except (OddError, KeyError, ValueError) as odd:
                self.unexpected.append((repr(odd), received))
                return as_json({"message": f"endpoint not found: {odd}"}, 404)
            return self._spoiled(received.path, good)

    def _spoiled(self, path: str, good: Answer) -> Answer | str:
        plan = self._faults.due(path)
        if plan is None:
            return good
        self._faults.done(plan)
        fault: Fault = plan.fault
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
