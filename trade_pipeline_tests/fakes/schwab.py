"""A broker on 127.0.0.1 that speaks Schwab's price history and renews tokens, as users recorded it.

Imitates the broker; knows nothing of our client. Start at `FakeSchwab`. Where little is written: a
symbol that nobody has is status 404 with `errors`; minute bars begin a fixed time ago, whatever
start was asked; splits are taken out of every price before them.
"""

import base64
from collections.abc import Iterable
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

KEY, SECRET = "AppKeyAppKeyAppKeyAppKey", "AppSecretAppSecret"
REFRESH = "refresh-token-of-the-login"
PARAMETERS = {"symbol", "periodType", "period", "frequencyType", "frequency", "startDate"}
PARAMETERS |= {"endDate", "needExtendedHoursData", "needPreviousClose"}
# Days of history by minutes of a bar.
REACH = {1: 48, 5: 270, 10: 270, 15: 270, 30: 270}
UNAUTHORIZED = {
    "errors": [{"status": 401, "title": "Unauthorized", "detail": "Client not authorized"}]
}
Row = dict[str, Any]


class FakeSchwab(FakeBroker):
    """Schwab over loopback HTTP, to be used as a context manager.

    Args:
        listed: stocks and indices; an index's symbol starts with $.
        now_ms: the broker's time.

    Attributes:
        access: access tokens that are good.
        refresh: the refresh token that is good; None when the login has run out.
        day_starts: the time of day, in hours of New York, that days are stamped with.
        echoes: whether refusals tell the token that came.
    """

    def __init__(self, listed: Iterable[MadeStock], now_ms: int) -> None:
        super().__init__(now_ms)
        self.listed = {one.symbol: one for one in listed}
        self.access = {"access-token-of-the-login"}
        self.refresh: str | None = REFRESH
        self.day_starts = 1
        self.echoes = False

    def respond(self, request: Received) -> Answer:
        if request.path == "/v1/oauth/token" and request.method == "POST":
            return self._renewed(request)
        if request.path == "/marketdata/v1/pricehistory" and request.method == "GET":
            return self._history(request)
        raise OddError(f"no route {request.method} {request.path}")

    def _renewed(self, request: Received) -> Answer:
        if request.form.get("grant_type") != "refresh_token":
            raise OddError(f"grant type of {sorted(request.form)}")
        basic = base64.b64encode(f"{KEY}:{SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}":
            return as_json({"error": "invalid_client", "error_description": "Unauthorized"}, 401)
        if request.form.get("refresh_token") != self.refresh:
            told = request.form.get("refresh_token") if self.echoes else "failed"
            error = {"error": "unsupported_token_type", "error_description": f"refresh {told}"}
            return as_json(error, 400)
        access = f"access-token-{len(self.access)}"
        self.access.add(access)
        return as_json(
            {
                "expires_in": 1800,
                "token_type": "Bearer",
                "scope": "api",
                "refresh_token": self.refresh,
                "access_token": access,
                "id_token": "eyJ.id.token",
            }
        )

    def _history(self, request: Received) -> Answer:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer" or token not in self.access:
            told = {**UNAUTHORIZED["errors"][0], "detail": token}
            return as_json({"errors": [told]} if self.echoes else UNAUTHORIZED, 401)
        params = request.params
        if strange := sorted(set(params) - PARAMETERS):
            raise OddError(f"parameters {strange}")
        if params.get("needExtendedHoursData", "true") != "false":
            raise OddError("hours outside of the session")
        stock = self.listed.get(params["symbol"])
        if stock is None:
            return as_json({"errors": [{"status": "404", "title": "Not Found"}]}, 404)
        start, end = int(params["startDate"]), min(int(params["endDate"]), self.now_ms)
        asked = (params["periodType"], params["frequencyType"], int(params["frequency"]))
        if asked == ("year", "daily", 1):
            candles = self._days(stock, start, end)
        elif asked[:2] == ("day", "minute"):
            candles = self._minutes(stock, asked[2], end)
        else:
            raise OddError(f"frequency {asked}")
        return as_json({"candles": candles, "symbol": stock.symbol, "empty": not candles})

    def _days(self, stock: MadeStock, start: int, end: int) -> list[Row]:
        return [
            self._candle(
                stock, opens, min(closes, self.now_ms), at_midnight(day, NEW_YORK) + self._stamp
            )
            for day, opens, closes in stock.days(start, end)
            if opens < self.now_ms
        ]

    @property
    def _stamp(self) -> int:
        return self.day_starts * 60 * MINUTE

    def _minutes(self, stock: MadeStock, minutes: int, end: int) -> list[Row]:
        step = minutes * MINUTE
        first = self.now_ms - REACH[minutes] * DAY
        return [
            self._candle(stock, ts, ts + step, ts)
            for _, opens, closes in stock.days(first, end)
            for ts in range(opens, min(closes, self.now_ms), step)
            if ts not in stock.quiet
        ]

    def _candle(self, stock: MadeStock, start: int, end: int, stamp: int) -> Row:
        divisor = 1.0
        for ex_date, ratio in stock.splits.items():
            if start < at_midnight(ex_date) <= self.now_ms:
                divisor *= ratio
        *prices, volume = stock.bar(start, end)
        named = zip(("open", "high", "low", "close"), prices, strict=True)
        candle: Row = {name: round(price / divisor, 4) for name, price in named}
        index = stock.symbol.startswith("$")
        return {**candle, "volume": 0 if index else round(volume * divisor), "datetime": stamp}
