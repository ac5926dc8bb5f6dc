"""Coinbase's public REST on loopback (Advanced Trade API docs, Public market data).

Candles are those that open in [start, end], both ends included, newest first; a window of 350 bars
or more is refused. Minutes without a trade are left out. Times are in seconds, as text. Start at
`FakeCoinbase`.
"""

from datetime import UTC, datetime
from typing import Any, ClassVar

from trade_pipeline_tests.fakes.venue import FakeVenue, Params, RefusedError, refusal, whole

GRANULARITIES_MS = {
    "ONE_MINUTE": 60_000,
    "FIVE_MINUTE": 300_000,
    "FIFTEEN_MINUTE": 900_000,
    "ONE_HOUR": 3_600_000,
    "ONE_DAY": 86_400_000,
}
MOST_BARS = 350
PRODUCTS = ("BTC-USD", "ETH-USD", "BTC-USDC")

RATE_LIMITED = refusal(429, {"error": "rate_limit_exceeded", "message": "Too many requests"})
UNKNOWN_429 = refusal(429, {"error": "UNKNOWN", "error_details": "too many requests"})
INTERNAL = refusal(500, {"error": "INTERNAL", "error_details": "", "message": "internal error"})
NO_PRODUCT = {"error": "NOT_FOUND", "error_details": "valid product_id is required"}


class FakeCoinbase(FakeVenue):
    """Three spot products, all of one market, and no futures."""

    routes: ClassVar = {
        "/v2/time": frozenset(),
        "/api/v3/brokerage/market/products": frozenset({"product_type"}),
        "/api/v3/brokerage/market/products/*/candles": frozenset({"granularity", "start", "end"}),
    }

    def content(self, path: str, tail: str, params: Params) -> Any:
        if path.endswith("time"):
            now_s = self.now_ms // 1000
            return {"data": {"iso": f"{datetime.fromtimestamp(now_s, UTC):%FT%TZ}", "epoch": now_s}}
        if path.endswith("products"):
            products = [] if params.get("product_type") == "FUTURE" else [*map(_product, PRODUCTS)]
            return {"products": products, "num_products": len(products)}
        if tail not in PRODUCTS:
            raise RefusedError(404, NO_PRODUCT)
        bar_ms = GRANULARITIES_MS.get(params.get("granularity", ""))
        if bar_ms is None:
            raise _invalid()
        start, end = (whole(params, name, None, _invalid) for name in ("start", "end"))
        if start is None or end is None or (end - start) * 1000 >= MOST_BARS * bar_ms:
            raise _invalid()
        rows = [
            {
                "start": str(one.ts // 1000),
                "low": one.low,
                "high": one.high,
                "open": one.open,
                "close": one.close,
                "volume": one.volume,
            }
            for one in self.candles(bar_ms)
            if start * 1000 <= one.ts <= end * 1000
        ]
        return {"candles": rows[::-1]}


def _invalid() -> Exception:
    message = "start and end argument is invalid - number of candles requested must be below 350"
    return RefusedError(400, {"error": "INVALID_ARGUMENT", "error_details": message}, odd=True)


def _product(product: str) -> dict[str, Any]:
    base, _, quote = product.partition("-")
    return {
        "product_id": product,
        "product_type": "SPOT",
        "status": "online",
        "base_currency_id": base,
        "quote_currency_id": quote,
        "base_increment": "0.00000001",
        "price_increment": "0.01",
        "is_disabled": False,
        "trading_disabled": False,
        "alias_to": [],
    }
