"""A venue on 127.0.0.1 that speaks Alpaca's market data API, as its reference describes it.

Imitates the venue; knows nothing of our client. Start at `FakeAlpaca`. Where the reference says
little: a symbol that nobody has gives no bars and no error, as users found; an account without a
subscription, as this one, may not ask for SIP bars of the last 15 minutes.
"""

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from trade_pipeline_tests.fakes.brokers import (
    DAY,
    MINUTE,
    NEW_YORK,
    FakeBroker,
    MadeStock,
    OddError,
    at_midnight,
)
from trade_pipeline_tests.fakes.server import Answer, Received, as_json

KEY, SECRET = "PKTESTKEYTESTKEYTEST", "secretSecretSecretSecret0123456789secret"
PAGE_CAP, ACTIONS_CAP = 10_000, 1_000
TIMEFRAMES = {
    "1Min": MINUTE,
    "5Min": 5 * MINUTE,
    "15Min": 15 * MINUTE,
    "1Hour": 60 * MINUTE,
    "4Hour": 240 * MINUTE,
    "1Day": DAY,
}
STOCK_PARAMETERS = {"symbols", "timeframe", "start", "end", "limit", "page_token", "sort"}
STOCK_PARAMETERS |= {"adjustment", "asof", "feed", "currency"}
CRYPTO_PARAMETERS = {"symbols", "timeframe", "start", "end", "limit", "page_token", "sort"}
ACTION_PARAMETERS = {"symbols", "types", "start", "end", "limit", "page_token", "sort"}
Row = dict[str, Any]


@dataclass(frozen=True)
class MadeCoin:
    """A pair whose minutes traded, only had quotes (every 5th), or have no bar at all (every 11th).

    Attributes:
        symbol: BTC/USD.
        first_ms: its first minute.
        day_starts_ms: when its days start, ms after midnight UTC.
    """

    symbol: str
    first_ms: int
    day_starts_ms: int = 0

    def rows(self, timeframe_ms: int, first: int, end: int) -> list[Row]:
        stock = MadeStock(self.symbol)
        step = timeframe_ms
        shift = self.day_starts_ms if step == DAY else 0
        start = -(-(max(first, self.first_ms) - shift) // step) * step + shift
        found = []
        for ts in range(start, end, step):
            nth = ts // step
            if nth % 11 == 0:
                continue
            opens, high, low, close, volume = stock.bar(ts, ts + step)
            traded = nth % 5 != 0
            found.append(row(ts, opens, high, low, close, volume / 1000 * traded, 9 * traded))
        return found


class FakeAlpaca(FakeBroker):
    """Alpaca over loopback HTTP, to be used as a context manager.

    Args:
        listed: stocks and coins.
        now_ms: the venue's time.

    Attributes:
        actions: as Alpaca lists them: kind -> entries.
        page_cap: most bars of an answer.
        actions_cap: most corporate actions of an answer.
        echoes: whether refusals tell the credentials that came.
    """

    def __init__(self, listed: Iterable[MadeStock | MadeCoin], now_ms: int) -> None:
        super().__init__(now_ms)
        self.listed = {one.symbol: one for one in listed}
        self.actions: dict[str, list[Row]] = {}
        self.page_cap, self.actions_cap = PAGE_CAP, ACTIONS_CAP
        self.echoes = False

    def split(self, symbol: str, ex_date: date, new: float, old: float = 1) -> None:
        kind = "forward_splits" if new > old else "reverse_splits"
        self._list(kind, symbol, ex_date, ex_date, new_rate=new, old_rate=old)

    def dividend(self, symbol: str, ex_date: date, rate: float, paid_after_days: int = 20) -> None:
        paid = ex_date + timedelta(days=paid_after_days)
        self._list("cash_dividends", symbol, ex_date, paid, rate=rate, special=False, foreign=False)

    def _list(self, kind: str, symbol: str, ex_date: date, processed: date, **more: Any) -> None:
        listed = self.actions.setdefault(kind, [])
        listed.append(
            {
                "id": f"{kind}-{len(listed)}",
                "symbol": symbol,
                "cusip": "000000000",
                "ex_date": ex_date.isoformat(),
                "process_date": processed.isoformat(),
                **more,
            }
        )

    def respond(self, request: Received) -> Answer:
        if request.method != "GET":
            raise OddError(f"method {request.method}")
        if request.path == "/v2/stocks/bars":
            return self._allowed(request) or self._stocks(_known(request, STOCK_PARAMETERS))
        if request.path == "/v1beta3/crypto/us/bars":
            free = not any(name.startswith("apca-") for name in request.headers)
            refused = None if free else self._allowed(request)
            return refused or self._coins(_known(request, CRYPTO_PARAMETERS))
        if request.path == "/v1/corporate-actions":
            return self._allowed(request) or self._actions(_known(request, ACTION_PARAMETERS))
        raise OddError(f"no route {request.path}")

    def _allowed(self, request: Received) -> Answer | None:
        key = request.headers.get("apca-api-key-id")
        secret = request.headers.get("apca-api-secret-key")
        if (key, secret) == (KEY, SECRET):
            return None
        told = f" {key} {secret}" if self.echoes else ""
        if not key or not secret:
            return as_json({"message": f"unauthorized.{told}"}, 401)
        return as_json({"message": f"forbidden.{told}"}, 403)

    def _stocks(self, params: dict[str, str]) -> Answer:
        if params.get("adjustment", "raw") != "raw":
            raise OddError("adjusted prices")
        start, end = _range(params)
        feed = params.get("feed", "sip")
        if feed == "sip" and end > self.now_ms - 15 * MINUTE:
            message = "subscription does not permit querying recent SIP data"
            return as_json({"message": message}, 403)
        stock = self.listed.get(params["symbols"])
        rows: list[Row] = []
        if isinstance(stock, MadeStock):
            rows = stock_rows(stock, TIMEFRAMES[params["timeframe"]], start, end + 1, self.now_ms)
            if feed == "iex" and params["timeframe"] != "1Day":
                rows = [one for nth, one in enumerate(rows) if nth % 7 != 3]
        return self._page(params, rows)

    def _coins(self, params: dict[str, str]) -> Answer:
        start, end = _range(params)
        coin = self.listed.get(params["symbols"])
        step = TIMEFRAMES[params["timeframe"]]
        rows = (
            coin.rows(step, start, min(end + 1, self.now_ms)) if isinstance(coin, MadeCoin) else []
        )
        return self._page(params, rows)

    def _page(self, params: dict[str, str], rows: list[Row]) -> Answer:
        symbol, timeframe = params["symbols"], params["timeframe"]
        if "page_token" in params:
            try:
                after = base64.b64decode(params["page_token"], validate=True).decode()
                of_symbol, of_timeframe, last = after.split("|")
            except (binascii.Error, ValueError):
                return as_json({"message": "invalid page_token"}, 400)
            if (of_symbol, of_timeframe) != (symbol, timeframe):
                return as_json({"message": "invalid page_token"}, 400)
            rows = [one for one in rows if one["t"] > last]
        cap = min(int(params.get("limit", 1000)), self.page_cap)
        page, rest = rows[:cap], rows[cap:]
        token = f"{symbol}|{timeframe}|{page[-1]['t']}".encode() if rest else None
        return as_json(
            {
                "bars": {symbol: page} if page else {},
                "next_page_token": base64.b64encode(token).decode() if token else None,
            }
        )

    def _actions(self, params: dict[str, str]) -> Answer:
        symbols = params["symbols"].split(",")
        today = datetime.fromtimestamp(self.now_ms / 1000, UTC).date().isoformat()
        start, end = params.get("start", today), params.get("end", today)
        found = sorted(
            (one["process_date"], kind, nth)
            for kind, listed in self.actions.items()
            for nth, one in enumerate(listed)
            if one["symbol"] in symbols and start <= one["process_date"] <= end
        )
        skip = int(base64.b64decode(params.get("page_token", "MA==")))
        cap = min(int(params.get("limit", 100)), self.actions_cap)
        page: dict[str, list[Row]] = {}
        for _, kind, nth in found[skip : skip + cap]:
            page.setdefault(kind, []).append(self.actions[kind][nth])
        more = base64.b64encode(str(skip + cap).encode()).decode()
        token = more if len(found) > skip + cap else None
        return as_json({"corporate_actions": page, "next_page_token": token})


def row(
    ts: int, opens: float, high: float, low: float, close: float, volume: float, trades: int
) -> Row:
    """A bar as Alpaca writes it."""
    at = datetime.fromtimestamp(ts / 1000, UTC)
    return {
        "t": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "o": opens,
        "h": high,
        "l": low,
        "c": close,
        "v": volume,
        "n": trades,
        "vw": (high + low) / 2,
    }


def stock_rows(stock: MadeStock, step: int, first: int, end: int, now_ms: int) -> list[Row]:
    """Bars that open in [first, end), the one that is not over too; hours from the full hour on."""
    if step == DAY:
        return [
            row(midnight, *stock.bar(opens, min(closes, now_ms)), 1000)
            for day, opens, closes in stock.days(first, end)
            if first <= (midnight := at_midnight(day, NEW_YORK)) < end and opens < now_ms
        ]
    found: dict[int, list[int]] = {}
    for ts in stock.minutes(first - step, min(end + step, now_ms)):
        found.setdefault(ts // step * step, []).append(ts)
    return [
        row(ts, *stock.bar(minutes[0], minutes[-1] + MINUTE), 10 * len(minutes))
        for ts, minutes in sorted(found.items())
        if first <= ts < end
    ]


def _known(request: Received, parameters: set[str]) -> dict[str, str]:
    if strange := sorted(set(request.params) - parameters):
        raise OddError(f"parameters {strange}")
    return request.params


def _range(params: dict[str, str]) -> tuple[int, int]:
    """Both ends inclusive, ms since 1970."""
    start, end = (datetime.fromisoformat(params[name]) for name in ("start", "end"))
    if start.tzinfo is None or end.tzinfo is None or end < start:
        raise OddError(f"range {params['start']} to {params['end']}")
    return int(start.timestamp() * 1000), int(end.timestamp() * 1000)
