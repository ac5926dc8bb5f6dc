"""What the fake exchanges beside this share: HTTP on 127.0.0.1, a clock, candles and faults.

Knows no wire format; each exchange's is in a module of its own. Start at `FakeVenue`; an exchange
is a subclass that gives `routes`:

    with FakeBinance(MadeMarket(seed=1, start_ms=..., end_ms=...), now_ms=...) as fake:
        source = {"kind": "ccxt", "exchange": "binance", ..., "base_url": fake.url}
        fake.fail("klines", "null", times=2)
        ...
    assert not fake.unexpected and not fake.unused
"""

from collections.abc import Callable, Mapping
from email.utils import formatdate
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import polars as pl

from trade_pipeline_tests.fakes.market import NS_PER_MS, MadeMarket
from trade_pipeline_tests.fakes.server import (
    HUNG_UP,
    Answer,
    FakeServer,
    PlannedFaults,
    Received,
    as_json,
)

Params = dict[str, str]


class RefusedError(Exception):
    """What the venue answers to a question that it does not like.

    Args:
        status: of HTTP.
        content: becomes JSON.
        odd: whether no sound client would ask so.
    """

    def __init__(self, status: int, content: Any, odd: bool = False) -> None:
        super().__init__(status, content)
        self.answer, self.odd = refusal(status, content), odd


class Candle(NamedTuple):
    """One bar; prices and volume as text, as venues write them."""

    ts: int
    open: str
    high: str
    low: str
    close: str
    volume: str
    trades: int


class Request(NamedTuple):
    """One request, and the fault that was injected into its answer."""

    path: str
    params: Params
    fault: str | None = None


def refusal(status: int, content: Any) -> Answer:
    """An error as JSON."""
    return as_json(content, status)


_HTML = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"
# Asking again helps: nothing of these is the question's fault.
FAULTS: dict[str, Answer] = {
    "": Answer(b""),
    "html": Answer(_HTML, content_type="text/html"),
    "null": Answer(b"null"),
    "{}": Answer(b"{}"),
    "[]": Answer(b"[]"),
    '{"error":[]}': Answer(b'{"error":[]}'),
    "500": Answer(b"Internal Server Error", 500, "text/plain"),
    "502 html": Answer(_HTML, 502, "text/html"),
    "429": Answer(b"error code: 1015", 429, "text/plain"),
}
# These are made from the good answer, or are no answer at all.
SPOILED = ("truncated json", "cut short", *HUNG_UP)


class FakeVenue(FakeServer):
    """An exchange on loopback, to be used as a context manager.

    Args:
        market: what is traded; its first trade is the listing.
        now_ms: the venue's time, stands still until set.

    Attributes:
        url: the `base_url` of a series' source.
        now_ms: the venue's time.
        requests: every request, in the order of arrival.
        unexpected: those that no sound client sends: unknown route, method or parameter.
        halts: [start, end) in ms in which the venue itself was away.
        tick_ms: how far `now_ms` moves with each answer.
        tells_date: whether answers have the HTTP header Date.
        heeds_start: false: every answer is the newest bars, whatever was asked.
        heeds_limit: false: every answer has as many as the venue can give.
    """

    routes: ClassVar[
        Mapping[str, frozenset[str]]
    ]  # path, which may hold one *, -> parameters it knows

    def __init__(
        self, market: MadeMarket, now_ms: int, halts: tuple[tuple[int, int], ...] = ()
    ) -> None:
        super().__init__()
        self.market, self.now_ms, self.halts = market, now_ms, halts
        self.heeds_start = self.heeds_limit = self.tells_date = True
        self.tick_ms = 0
        self.requests: list[Request] = []
        self.unexpected: list[Request] = []
        self._faults = PlannedFaults()
        self._known: dict[tuple[int, int], list[Candle]] = {}

    # What a venue must say.

    def content(self, path: str, tail: str, params: Params) -> Any:
        """What a known route answers, to become JSON; raises `RefusedError`.

        Args:
            path: as in `routes`.
            tail: what stood for the * in it.
            params: the query; no unknown ones.
        """
        raise NotImplementedError

    def not_found(self) -> Answer:
        """What the venue answers to a route or parameter that it does not have."""
        return refusal(404, {"error": "NOT_FOUND"})

    # What tests do.

    def fail(self, route: str, fault: str | Answer, times: int = 1, after: int = 0) -> None:
        """Spoil the next answers of the routes whose path holds this text.

        Args:
            route: such as "klines".
            fault: of `FAULTS` or `SPOILED`, or an answer of its own.
            times: how many answers.
            after: how many good answers come before.
        """
        if isinstance(fault, str) and fault not in (*FAULTS, *SPOILED):
            raise ValueError(f"no fault {fault!r}; there are {(*FAULTS, *SPOILED)}")
        self._faults.add(route, fault, times, after)

    @property
    def unused(self) -> list[tuple[str, str | Answer, int]]:
        """Faults that were asked for and did not happen."""
        return self._faults.unused

    def asked(self, route: str) -> list[Params]:
        """The queries of all requests to the routes whose path holds this text."""
        return [one.params for one in self.requests if route in one.path]

    # What venues are made of.

    def candles(self, bar_ms: int) -> list[Candle]:
        """Every candle up to now that has a trade, the open one included; rising."""
        return [one for one in self.with_fillers(bar_ms) if one.trades]

    def with_fillers(self, bar_ms: int) -> list[Candle]:
        """The same, and a flat one with volume 0 where nothing traded while the venue was open."""
        key = (bar_ms, self.now_ms)
        if key not in self._known:
            self._known[key] = _candles(self.market, *key)
        return [
            one
            for one in self._known[key]
            if not any(start <= one.ts < end for start, end in self.halts)
        ]

    def headers(self) -> Mapping[str, str]:
        return {"Date": formatdate(self.now_ms // 1000, usegmt=True)} if self.tells_date else {}

    def answer(self, received: Received) -> Answer | str:
        path, params = received.path, received.params
        with self._lock:
            good, is_odd = self._good(received.method, path, params)
            bad, fault = self._spoiled(path, good)
            request = Request(path, params, fault)
            self.requests.append(request)
            self.now_ms += self.tick_ms
            if is_odd:
                self.unexpected.append(request)
        return bad

    def _good(self, method: str, path: str, params: Params) -> tuple[Answer, bool]:
        """The right answer, and whether the question is a wrong one."""
        for pattern, known in self.routes.items():
            head, star, end = pattern.partition("*")
            if path == pattern or (star and path.startswith(head) and path.endswith(end)):
                if method != "GET" or not set(params) <= known:
                    break
                tail = path[len(head) : len(path) - len(end)] if star else ""
                try:
                    content = self.content(pattern, tail, params)
                except RefusedError as refused:
                    return refused.answer, refused.odd
                return as_json(content), False
        return self.not_found(), True

    def _spoiled(self, path: str, good: Answer) -> tuple[Answer | str, str | None]:
        plan = self._faults.due(path)
        if plan is None:
            return good, None
        self._faults.done(plan)
        if isinstance(plan.fault, Answer):
            return plan.fault, f"{plan.fault.status}"
        if plan.fault == "truncated json":
            return good._replace(body=good.body[: len(good.body) // 2]), plan.fault
        if plan.fault == "cut short":
            return Answer(b'[[1,"2"', missing=1000), plan.fault
        if plan.fault in HUNG_UP:
            return plan.fault, plan.fault
        return FAULTS[plan.fault], plan.fault


def _candles(market: MadeMarket, bar_ms: int, now_ms: int) -> list[Candle]:
    open_ms = now_ms // bar_ms * bar_ms
    time_ns = pl.col("time_ns")
    so_far = MadeMarket.of(
        market.trades.filter(time_ns >= open_ms * NS_PER_MS, time_ns < now_ms * NS_PER_MS)
    )
    traded = [one for one in _traded(market, bar_ms) if one.ts < open_ms]
    found: list[Candle] = []
    for one in (*traded, *_traded(so_far, bar_ms)):
        while found and found[-1].ts + bar_ms < one.ts:
            found.append(_flat(found[-1], bar_ms))
        found.append(one)
    while found and found[-1].ts < open_ms:
        found.append(_flat(found[-1], bar_ms))
    return found


@lru_cache(maxsize=20)
def _traded(market: MadeMarket, bar_ms: int) -> list[Candle]:
    bars = market.bars(bar_ms, 0, 10**15)
    return [
        Candle(ts, *(f"{price:.1f}" for price in prices), f"{volume:.8f}", trades)
        for ts, *prices, volume, trades in bars.select(
            pl.col("ts").dt.epoch("ms"), *Candle._fields[1:]
        ).iter_rows()
    ]


def _flat(before: Candle, bar_ms: int) -> Candle:
    close = before.close
    return Candle(before.ts + bar_ms, close, close, close, close, "0.00000000", 0)


def whole(params: Params, name: str, otherwise: int | None, refuse: Callable[[], Exception]) -> Any:
    """A parameter that must be a whole number, or what it is when absent."""
    text = params.get(name)
    if text is None:
        return otherwise
    if not text.isdecimal():
        raise refuse()
    return int(text)
