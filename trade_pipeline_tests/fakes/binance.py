"""Binance's public REST on loopback: spot and USD-margined futures (Binance docs, Market data).

Candles count from `startTime` (inclusive), at most `limit` of them, oldest first; without a start
they are the newest. A minute without a trade has a flat candle of volume 0; while the venue itself
was away there is none. The open candle is the last one. Start at `FakeBinance`.
"""

from typing import Any, ClassVar

from trade_pipeline_tests.fakes.server import Answer
from trade_pipeline_tests.fakes.venue import FakeVenue, Params, RefusedError, refusal, whole

INTERVALS_MS = {
    "1m": 60_000,
    "5m": 300_000,
    "15m": 900_000,
    "1h": 3_600_000,
    "4h": 14_400_000,
    "1d": 86_400_000,
}
CANDLES = frozenset({"symbol", "interval", "startTime", "endTime", "limit"})
NOTHING: frozenset[str] = frozenset()
PERPETUAL_END_MS = 4_133_404_800_000
MOST_UNASKED = 1440
DELIVERY_MS = 1_790_294_400_000  # 2026-09-25

WEIGHT_USED = Answer(
    b'{"code":-1003,"msg":"Too much request weight used; current limit is 6000 request weight per 1'
    b' MINUTE. Please use WebSocket Streams for live updates to avoid polling the API."}',
    429,
)
BANNED = Answer(
    b'{"code":-1003,"msg":"Way too much request weight used; IP banned until 1735689600000. Please'
    b' use WebSocket Streams for live updates to avoid bans."}',
    418,
)
OVERLOADED = refusal(503, {"code": -1008, "msg": "Request throttled by system-level protection."})
RESTRICTED = refusal(451, {"code": 0, "msg": "Service unavailable from a restricted location."})


class FakeBinance(FakeVenue):
    """BTC/USDT and ETH/USDT spot, BTC/USDT:USDT swap and one dated future, all of one market."""

    routes: ClassVar = {
        "/api/v3/exchangeInfo": NOTHING,
        "/api/v3/time": NOTHING,
        "/api/v3/klines": CANDLES,
        "/fapi/v1/exchangeInfo": NOTHING,
        "/fapi/v1/time": NOTHING,
        "/fapi/v1/klines": CANDLES,
        "/dapi/v1/exchangeInfo": NOTHING,
    }

    def not_found(self) -> Answer:
        return refusal(400, {"code": -1104, "msg": "Not all sent parameters were read."})

    def content(self, path: str, tail: str, params: Params) -> Any:
        if path.endswith("time"):
            return {"serverTime": self.now_ms}
        contracts = [_symbol(*one) for one in CONTRACTS] if path.startswith("/fapi") else []
        spots = [_symbol(*one) for one in SPOTS] if path.startswith("/api") else []
        symbols = [*spots, *contracts]
        if path.endswith("exchangeInfo"):
            return {"timezone": "UTC", "serverTime": self.now_ms, "symbols": symbols}
        if params.get("symbol") not in [one["symbol"] for one in symbols]:
            raise RefusedError(400, {"code": -1121, "msg": "Invalid symbol."})
        if params.get("interval") not in INTERVALS_MS:
            raise RefusedError(400, {"code": -1120, "msg": "Invalid interval."}, odd=True)
        most = 1000 if spots else 1500
        return self._klines(params, most if self.heeds_limit else MOST_UNASKED)

    def _klines(self, params: Params, most: int) -> list[list[Any]]:
        bar_ms = INTERVALS_MS[params["interval"]]
        limit = min(whole(params, "limit", 500, _illegal), most) if self.heeds_limit else most
        start = whole(params, "startTime", None, _illegal)
        end = whole(params, "endTime", self.now_ms, _illegal)
        found = [one for one in self.with_fillers(bar_ms) if one.ts <= end]
        if start is None or not self.heeds_start:
            found = found[-limit:]
        else:
            found = [one for one in found if one.ts >= start][:limit]
        return [
            [
                one.ts,
                *(one.open, one.high, one.low, one.close, one.volume),
                one.ts + bar_ms - 1,
                "0.0",
                one.trades,
                "0.0",
                "0.0",
                "0",
            ]
            for one in found
        ]


def _illegal() -> Exception:
    message = {"code": -1100, "msg": "Illegal characters found in a parameter."}
    return RefusedError(400, message, odd=True)


SPOTS = (("BTC", "USDT", None, None), ("ETH", "USDT", None, None))
CONTRACTS = (
    ("BTC", "USDT", "PERPETUAL", PERPETUAL_END_MS),
    ("BTC", "USDT", "CURRENT_QUARTER", DELIVERY_MS),
)


def _symbol(base: str, quote: str, contract: str | None, delivery_ms: int | None) -> dict[str, Any]:
    symbol: dict[str, Any] = {
        "symbol": base + quote + ("_260925" if contract == "CURRENT_QUARTER" else ""),
        "status": "TRADING",
        "baseAsset": base,
        "quoteAsset": quote,
        "filters": [],
        "permissions": [],
    }
    if contract is not None:
        symbol |= {"contractType": contract, "deliveryDate": delivery_ms, "marginAsset": quote}
    return symbol
