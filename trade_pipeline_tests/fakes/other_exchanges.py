"""Small fakes of more exchanges, each with one spot market: how their pages and clocks differ.

- Bybit (V5 docs, Market): `limit` candles from `start` on, newest first, flat where quiet.
- OKX (V5 docs, Public data): those after `before` and before `after`, both excluded; where there
  are more than `limit`, the newest of them; newest first.
- Bitstamp (API docs, Market info): those in [`start`, `end`]; tells no time but the HTTP Date.

Start at the class named after the venue.
"""

from typing import Any, ClassVar

from trade_pipeline_tests.fakes.venue import (
    Candle,
    FakeVenue,
    Params,
    RefusedError,
    whole,
)

MINUTE_MS = 60_000


class FakeBybit(FakeVenue):
    """BTC/USDT."""

    routes: ClassVar = {
        "/v5/market/time": frozenset(),
        "/v5/market/instruments-info": frozenset({"category", "baseCoin", "limit", "status"}),
        "/v5/market/kline": frozenset({"category", "symbol", "interval", "start", "end", "limit"}),
    }

    def content(self, path: str, tail: str, params: Params) -> Any:
        category = params.get("category")
        found: list[Any] = []
        if path.endswith("instruments-info") and category == "spot":
            found = [{"symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT"}]
        if path.endswith("kline"):
            wanted = (category, params.get("symbol"), params.get("interval"))
            if wanted != ("spot", "BTCUSDT", "1"):
                raise _bybit_refuses()
            start, limit = (whole(params, one, None, _bybit_refuses) for one in ("start", "limit"))
            rows = [one for one in self.with_fillers(MINUTE_MS) if one.ts >= start][
                : min(limit, 1000)
            ]
            found = [[str(one.ts), *_prices(one), one.volume, "0"] for one in reversed(rows)]
        return {
            "retCode": 0,
            "retMsg": "OK",
            "result": {"category": category, "list": found},
            "retExtInfo": {},
            "time": self.now_ms,
        }


def _bybit_refuses() -> Exception:
    return RefusedError(200, {"retCode": 10001, "retMsg": "params error", "result": {}}, odd=True)


class FakeOkx(FakeVenue):
    """BTC/USDT.

    Attributes:
        most: candles of an answer.
    """

    most = 300
    routes: ClassVar = {
        "/api/v5/public/time": frozenset(),
        "/api/v5/public/instruments": frozenset({"instType", "uly"}),
        "/api/v5/market/candles": frozenset({"instId", "bar", "before", "after", "limit"}),
        "/api/v5/market/history-candles": frozenset({"instId", "bar", "before", "after", "limit"}),
    }

    def content(self, path: str, tail: str, params: Params) -> Any:
        found: list[Any] = []
        if path.endswith("time"):
            found = [{"ts": str(self.now_ms)}]
        elif path.endswith("instruments") and params.get("instType") == "SPOT":
            pair = {"baseCcy": "BTC", "quoteCcy": "USDT", "state": "live", "instType": "SPOT"}
            found = [{"instId": "BTC-USDT", **pair}]
        elif path.endswith("candles"):
            if (params.get("instId"), params.get("bar")) != ("BTC-USDT", "1m"):
                raise _okx_refuses()
            names = ("before", "after", "limit")
            before, after, limit = (whole(params, one, None, _okx_refuses) for one in names)
            rows = [one for one in self.with_fillers(MINUTE_MS) if before < one.ts < after]
            found = [
                [str(one.ts), *_prices(one), one.volume, "0", "0", "1"]
                for one in rows[-min(limit, self.most) :][::-1]
            ]
        return {"code": "0", "msg": "", "data": found}


def _okx_refuses() -> Exception:
    return RefusedError(200, {"code": "51000", "msg": "Parameter error", "data": []}, odd=True)


class FakeBitstamp(FakeVenue):
    """BTC/USD."""

    routes: ClassVar = {
        "/api/v2/markets/": frozenset(),
        "/api/v2/ohlc/*/": frozenset({"step", "limit", "start", "end"}),
    }

    def content(self, path: str, tail: str, params: Params) -> Any:
        if path.endswith("markets/"):
            pair = {"base_currency": "BTC", "counter_currency": "USD", "market_type": "SPOT"}
            return [{**pair, "market_symbol": "btcusd", "trading": "Enabled"}]
        if (tail, params.get("step")) != ("btcusd", "60"):
            raise _bitstamp_refuses()
        names = ("start", "end", "limit")
        start, end, limit = (whole(params, one, None, _bitstamp_refuses) for one in names)
        rows = [
            {
                "timestamp": str(one.ts // 1000),
                **dict(zip(("open", "high", "low", "close"), _prices(one), strict=True)),
                "volume": one.volume,
            }
            for one in self.with_fillers(MINUTE_MS)
            if start * 1000 <= one.ts <= end * 1000
        ]
        return {"data": {"pair": "BTC/USD", "ohlc": rows[: min(limit, 1000)]}}


def _bitstamp_refuses() -> Exception:
    return RefusedError(400, {"status": "error", "reason": "invalid", "code": "x"}, odd=True)


def _prices(candle: Candle) -> tuple[str, str, str, str]:
    return candle.open, candle.high, candle.low, candle.close
