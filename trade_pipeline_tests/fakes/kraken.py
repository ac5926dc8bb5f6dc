"""A venue on 127.0.0.1 that speaks Kraken's public REST, for tests of whoever talks to Kraken.

Imitates the venue, as documented (Kraken REST API, Market Data) and as recorded; knows nothing of
our client. Start at `FakeKraken`:

    clock = Clock(now_ms)
    with FakeKraken(MadeMarket(seed=1, start_ms=..., end_ms=...), clock) as fake:
        exchange = ccxt.kraken()
        exchange.urls["api"]["public"] = fake.url  # ccxt itself appends /0/public/OHLC
        fake.fail("OHLC", "429", times=2)
        ...
    assert not fake.unexpected and not fake.unused

How it behaves where the documentation says little:
- OHLC: `since` is in seconds and exclusive, as users found: a candle that opens at `since` is left
  out (ccxt asks one candle earlier for that reason). The uncommitted candle is always there. vwap
  is cut off, not rounded, and the volume is the exact sum: so the recorded rows are, all of them.
- Trades: `since` is in seconds (at most 10 digits) or ns (at least 18), exclusive; without it come
  the newest trades. `last` is the ns of the last trade given, which its row shows only rounded.
- A pair is found by id, altname or wsname, in any case; the key in the answer is its id.
- What Kraken refuses comes with status 200. A parameter that an endpoint does not have is ignored.
"""

import json
import re
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from trade_pipeline_tests.fakes.kraken_faults import (
    GARBAGE,
    INSTEAD,
    INVALID,
    KINDS,
    NEEDS_IDS,
    NEEDS_ROWS,
    PERMANENT,
    RATE_LIMIT,
    SILENT,
    TRANSIENT,
    UNKNOWN_PAIR,
    error,
    spoiled,
)
from trade_pipeline_tests.fakes.kraken_tapes import (
    ASSETS,
    PAIRS,
    MadeTape,
    Pair,
    RecordedTape,
    RefusedError,
    Tape,
)
from trade_pipeline_tests.fakes.market import NS_PER_MS, NS_PER_S, MadeMarket
from trade_pipeline_tests.fakes.server import (
    HUNG_UP,
    Answer,
    FakeServer,
    PlannedFaults,
    Received,
)

__all__ = [
    "GARBAGE",
    "PAIRS",
    "PERMANENT",
    "SILENT",
    "TRANSIENT",
    "Clock",
    "FakeKraken",
    "MadeMarket",
    "Pair",
    "Request",
]

INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10080, 21600)  # minutes
PAGE = 1000  # trades of an answer, at most
# What each endpoint understands.
PARAMETERS = {
    "Assets": {"asset"},
    "AssetPairs": {"pair"},
    "Time": set(),
    "SystemStatus": set(),
    "OHLC": {"pair", "interval", "since"},
    "Trades": {"pair", "since", "count"},
}
WITH_ROWS = ("OHLC", "Trades")


class Clock:
    """A clock that stands still until it is set or slept on.

    Attributes:
        now_ms: ms since 1970 UTC.
    """

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self._lock = threading.Lock()

    def sleep(self, seconds: float) -> None:
        """Return at once, `seconds` later."""
        with self._lock:
            self.now_ms += round(seconds * 1000)


class Request(NamedTuple):
    """One request; `at_ms` is the `Clock`'s time, `fault` what was injected into the answer."""

    endpoint: str
    params: dict[str, str]
    at_ms: int
    fault: str | None = None


class FakeKraken(FakeServer):
    """Kraken's public REST over loopback HTTP, to be used as a context manager.

    Args:
        market_or_markets: one market that all pairs trade on, or a market by pair (any of its
            names); pairs without a market are listed and never traded.
        clock: gives the venue's time, together with `skew_ms`.
        pairs: what the venue lists.

    Attributes:
        url: for ccxt: `exchange.urls["api"]["public"] = fake.url`.
        requests: every request, in the order of arrival.
        unexpected: those among them that no sound client sends: unknown route, unknown or
            unreadable parameter.
        skew_ms: how far the venue's clock is ahead of `clock`.
        last_is_text: whether OHLC gives `last` as text; Kraken sometimes does.
        rate_limited: how many requests were too fast for `limit`.
    """

    def __init__(
        self,
        market_or_markets: MadeMarket | Mapping[str, MadeMarket],
        clock: Clock,
        pairs: tuple[Pair, ...] = PAIRS,
    ) -> None:
        super().__init__()
        self.clock = clock
        self.requests: list[Request] = []
        self.unexpected: list[Request] = []
        self.skew_ms = 0
        self.last_is_text = False
        self.rate_limited = 0
        self._pairs = {
            name.upper(): pair for pair in pairs for name in (pair.id, pair.altname, pair.wsname)
        }
        self._infos = {pair.id: pair.info for pair in pairs}
        self._tapes: dict[str, Tape] = {}
        if isinstance(market_or_markets, MadeMarket):
            market_or_markets = dict.fromkeys(self._infos, market_or_markets)
        by_name = self._pairs | {pair.symbol: pair for pair in pairs}
        for name, market in market_or_markets.items():
            pair = by_name[name.upper()]
            self._tapes[pair.id] = MadeTape(market, pair)
        self._recorded: dict[str, bytes] = {}
        self._faults = PlannedFaults()
        self._interval_ms: float = 0
        self._answered_ms: dict[str, int] = {}

    @classmethod
    def recorded(cls, folder: Path, clock: Clock) -> Self:
        """The venue as it was recorded: XBTUSDT only, one-minute candles only, its time frozen.

        Bodies are served byte for byte, unless a request leaves some of their rows out.
        """
        bodies = {
            endpoint: (folder / f"http_{name}.json").read_bytes()
            for endpoint, name in (
                ("AssetPairs", "asset_pairs"),
                ("Time", "server_time"),
                ("SystemStatus", "system_status"),
                ("OHLC", "ohlc"),
                ("Trades", "trades"),
            )
        }
        pair = next(pair for pair in PAIRS if pair.id == "XBTUSDT")
        fake = cls({}, clock, (pair,))
        results = {endpoint: json.loads(body)["result"] for endpoint, body in bodies.items()}
        fake._infos = results["AssetPairs"]
        fake._tapes = {pair.id: RecordedTape(results["Trades"], results["OHLC"], pair)}
        fake._recorded = bodies
        return fake

    @property
    def now_ms(self) -> int:
        """The venue's time."""
        if "Time" in self._recorded:
            return int(json.loads(self._recorded["Time"])["result"]["unixtime"]) * 1000
        return self.clock.now_ms + self.skew_ms

    @property
    def unused(self) -> list[tuple[str, str, int]]:
        """Faults that were asked for and did not happen: endpoint, kind, how many times."""
        return self._faults.unused

    def fail(self, endpoint: str, kind: str, times: int = 1, after: int = 0) -> None:
        """Spoil the next answers of an endpoint, once the faults asked for earlier have happened.

        A fault that needs rows waits for an answer that has enough of them.

        Args:
            endpoint: such as "OHLC".
            kind: one of `TRANSIENT`, `PERMANENT` or `GARBAGE`.
            times: how many answers.
            after: how many good answers come before.
        """
        if endpoint not in PARAMETERS:
            raise ValueError(f"no endpoint {endpoint!r}; there are {', '.join(PARAMETERS)}")
        if kind not in KINDS:
            raise ValueError(f"no fault {kind!r}; there are {KINDS}")
        needs = ("Trades",) if kind in NEEDS_IDS else WITH_ROWS if kind in NEEDS_ROWS else ()
        if needs and endpoint not in needs:
            raise ValueError(f"{endpoint} cannot show the fault {kind!r}, only {needs} can")
        if times < 1 or after < 0:
            raise ValueError(f"times is {times}, at least 1, and after is {after}, at least 0")
        with self._lock:
            self._faults.add(endpoint, kind, times, after)

    def limit(self, calls_per_minute: float | None) -> None:
        """Refuse OHLC and Trades of a pair when asked faster than this, by `clock`; None: never."""
        self._interval_ms = 60_000 // calls_per_minute if calls_per_minute else 0

    def answer(self, received: Received) -> Answer | str:
        path, params = received.path, received.params
        endpoint = path.removeprefix("/0/public/")
        asked = (received.method, path)
        known = asked == ("GET", f"/0/public/{endpoint}") and endpoint in PARAMETERS
        with self._lock:
            request = Request(endpoint if known else path, params, self.clock.now_ms)
            reply, fault, odd = self._reply(request) if known else (_NO_ROUTE, None, True)
            request = request._replace(fault=fault)
            self.requests.append(request)
            strange = set(params) - PARAMETERS.get(endpoint, set())
            if odd or strange or len(received.query) > len(params):
                self.unexpected.append(request)
            return reply

    def _reply(self, request: Request) -> tuple[Answer | str, str | None, bool]:
        """The answer, the fault in it, and whether no sound client would have asked so."""
        if self._is_too_fast(request):
            self.rate_limited += 1
            return error(RATE_LIMIT), None, False
        odd = False
        try:
            good = self._good(request.endpoint, self._result(request))
        except RefusedError as refused:
            good, odd = error(refused.text), refused.odd
        plan = self._faults.due(request.endpoint)
        if plan is None:
            return good, None, odd
        bad: Answer | str | None = INSTEAD.get(plan.fault)
        if plan.fault in HUNG_UP:
            bad = plan.fault
        elif bad is None:
            bad = spoiled(plan.fault, good)
        if bad is None:
            return good, None, odd
        self._faults.done(plan)
        return bad, plan.fault, odd

    def _is_too_fast(self, request: Request) -> bool:
        if not self._interval_ms or request.endpoint not in WITH_ROWS:
            return False
        pair = self._pairs.get(request.params.get("pair", "").upper())
        before = self._answered_ms.get(pair.id) if pair else None
        if before is not None and request.at_ms - before < self._interval_ms:
            return True
        if pair:
            self._answered_ms[pair.id] = request.at_ms
        return False

    def _good(self, endpoint: str, result: dict[str, Any]) -> Answer:
        recorded = self._recorded.get(endpoint)
        if recorded is not None and json.loads(recorded)["result"] == result:
            return Answer(recorded)
        return Answer(json.dumps({"error": [], "result": result}, separators=(",", ":")).encode())

    def _result(self, request: Request) -> dict[str, Any]:
        endpoint, params = request.endpoint, request.params
        now = datetime.fromtimestamp(self.now_ms / 1000, UTC)
        if endpoint in ("Time", "SystemStatus") and endpoint in self._recorded:
            return dict(json.loads(self._recorded[endpoint])["result"])
        if endpoint == "Time":
            text = f"{now:%a}, {now.day:2d} {now:%b %y %H:%M:%S} +0000"
            return {"unixtime": self.now_ms // 1000, "rfc1123": text}
        if endpoint == "SystemStatus":
            return {"status": "online", "timestamp": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
        if endpoint == "Assets":
            return _assets(params)
        if endpoint == "AssetPairs":
            names = params["pair"].split(",") if "pair" in params else list(self._infos)
            return {(found := self._find(name).id): self._infos[found] for name in names}
        pair = self._find(params["pair"]) if "pair" in params else None
        if pair is None:
            raise RefusedError(INVALID, odd=True)
        return self._ohlc(pair, params) if endpoint == "OHLC" else self._trades(pair, params)

    def _find(self, name: str) -> Pair:
        if name.upper() not in self._pairs:
            raise RefusedError(UNKNOWN_PAIR)
        return self._pairs[name.upper()]

    def _ohlc(self, pair: Pair, params: dict[str, str]) -> dict[str, Any]:
        interval = _whole(params.get("interval", "1"))
        if interval not in INTERVALS:
            raise RefusedError(INVALID, odd=True)
        since = _whole(params["since"]) if "since" in params else None
        tape = self._tapes.get(pair.id)
        rows = tape.candles(interval * 60, self.now_ms * NS_PER_MS) if tape else []
        last = rows[-2][0] if len(rows) > 1 else 0
        if since is not None:
            rows = [row for row in rows[:-1] if row[0] > since] + rows[-1:]
        return {pair.id: rows, "last": str(last) if self.last_is_text else last}

    def _trades(self, pair: Pair, params: dict[str, str]) -> dict[str, Any]:
        count = _whole(params.get("count", str(PAGE)))
        if count < 1:
            raise RefusedError(INVALID, odd=True)
        count = min(count, PAGE)
        since_ns = _since_ns(params["since"]) if "since" in params else None
        tape = self._tapes.get(pair.id)
        if tape is None:
            return {pair.id: [], "last": str(since_ns or 0)}
        known = int(np.searchsorted(tape.times_ns, self.now_ms * NS_PER_MS, "right"))
        if since_ns is None:
            first = max(known - count, 0)
        else:
            first = min(int(np.searchsorted(tape.times_ns, since_ns, "right")), known)
        stop = min(first + count, known)
        last = tape.times_ns[stop - 1] if first < stop else since_ns or 0
        return {pair.id: tape.trades(first, stop), "last": str(last)}


_NO_ROUTE = error("EGeneral:Unknown method")


def _assets(params: dict[str, str]) -> dict[str, Any]:
    altnames = {altname: asset for asset, (altname, _, _) in ASSETS.items()}
    names = params["asset"].split(",") if "asset" in params else list(ASSETS)
    found = [altnames.get(name, name) for name in names]
    if not set(found) <= set(ASSETS):
        raise RefusedError("EQuery:Unknown asset")
    keys = ("altname", "decimals", "display_decimals")
    return {
        asset: {
            "aclass": "currency",
            **dict(zip(keys, ASSETS[asset], strict=True)),
            "status": "enabled",
        }
        for asset in found
    }


def _whole(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,10}", text):
        raise RefusedError(INVALID, odd=True)
    return int(text)


def _since_ns(text: str) -> int:
    if re.fullmatch(r"[0-9]{18,19}", text):
        return int(text)
    return max(_whole(text), 0) * NS_PER_S
