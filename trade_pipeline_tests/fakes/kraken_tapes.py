"""What Kraken lists, and what happened on a pair in Kraken's words: rows of Trades and of OHLC.

Knows no server and no request; `fakes/kraken.py` serves it. Start at `PAIRS` and `Tape`.
"""

from decimal import Decimal
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trade_pipeline_tests.fakes.market import NS_PER_S, VOLUME_DECIMALS, MadeMarket

WINDOW = 720  # committed candles of an answer, at most
VOLUME_UNIT = 10**VOLUME_DECIMALS

Row = list[Any]


class Pair(NamedTuple):
    """A pair under all its names; `symbol` is ccxt's."""

    symbol: str
    id: str
    altname: str
    wsname: str
    base: str
    quote: str
    price_decimals: int

    @property
    def info(self) -> dict[str, Any]:
        """Its entry in AssetPairs."""
        return {
            "altname": self.altname,
            "wsname": self.wsname,
            "aclass_base": "currency",
            "base": self.base,
            "aclass_quote": "currency",
            "quote": self.quote,
            "lot": "unit",
            "cost_decimals": 5,
            "pair_decimals": self.price_decimals,
            "lot_decimals": VOLUME_DECIMALS,
            "lot_multiplier": 1,
            "leverage_buy": [2, 3],
            "leverage_sell": [2, 3],
            "fees": [[0, 0.4], [10000, 0.35]],
            "fees_maker": [[0, 0.25], [10000, 0.2]],
            "fee_volume_currency": "ZUSD",
            "margin_call": 80,
            "margin_stop": 40,
            "ordermin": "0.00005",
            "costmin": "0.5",
            "tick_size": f"{10**-self.price_decimals:.{self.price_decimals}f}",
            "status": "online",
        }


PAIRS = (
    Pair("BTC/USD", "XXBTZUSD", "XBTUSD", "XBT/USD", "XXBT", "ZUSD", 1),
    Pair("ETH/USD", "XETHZUSD", "ETHUSD", "ETH/USD", "XETH", "ZUSD", 2),
    Pair("DOGE/USD", "XDGUSD", "XDGUSD", "XDG/USD", "XXDG", "ZUSD", 7),
    Pair("BTC/USDT", "XBTUSDT", "XBTUSDT", "XBT/USDT", "XXBT", "USDT", 1),
)
# id: altname, decimals, decimals shown.
ASSETS = {
    "XXBT": ("XBT", 10, 5),
    "XETH": ("ETH", 10, 5),
    "XXDG": ("XDG", 8, 2),
    "ZUSD": ("USD", 4, 2),
    "USDT": ("USDT", 8, 4),
}


class RefusedError(Exception):
    """Kraken's error text; `odd` when no sound client would have asked so."""

    def __init__(self, text: str, odd: bool = False) -> None:
        super().__init__(text)
        self.text, self.odd = text, odd


class Tape(Protocol):
    """What happened on one pair."""

    times_ns: NDArray[np.int64]  # strictly rising

    def trades(self, first: int, stop: int) -> list[Row]:
        """Rows of Trades, by position."""
        ...

    def candles(self, interval_s: int, now_ns: int) -> list[Row]:
        """Rows of OHLC: the newest committed ones, then the uncommitted one."""
        ...


class MadeTape:
    """Trades of a `MadeMarket`, and candles made of them."""

    def __init__(self, market: MadeMarket, pair: Pair) -> None:
        self.ids, self.times_ns, self.prices, self.volumes = (
            market.trades[name].to_numpy() for name in ("id", "time_ns", "price", "volume")
        )
        self.decimals = pair.price_decimals

    def trades(self, first: int, stop: int) -> list[Row]:
        columns = (self.prices, self.volumes, self.times_ns, self.ids)
        return [
            [
                f"{price:.{max(5, self.decimals)}f}",
                f"{volume:.{VOLUME_DECIMALS}f}",
                time_ns / NS_PER_S,
                "b" if trade_id % 2 else "s",
                "m" if trade_id % 3 else "l",
                "",
                trade_id,
            ]
            for price, volume, time_ns, trade_id in zip(
                *(column[first:stop].tolist() for column in columns), strict=True
            )
        ]

    def candles(self, interval_s: int, now_ns: int) -> list[Row]:
        known = int(np.searchsorted(self.times_ns, now_ns, "right"))
        if not known:
            return []
        uncommitted = now_ns // NS_PER_S // interval_s * interval_s
        first = int(self.times_ns[0]) // NS_PER_S // interval_s * interval_s
        opens = range(max(first, uncommitted - WINDOW * interval_s), uncommitted + 1, interval_s)
        edges = np.searchsorted(self.times_ns[:known], np.array(opens) * NS_PER_S).tolist()
        stops = [*edges[1:], known]
        return [self._candle(*candle) for candle in zip(opens, edges, stops, strict=True)]

    def _candle(self, opens: int, first: int, stop: int) -> Row:
        if first == stop:
            close = self._text(self._ticks(first - 1, first)[0])
            return [opens, close, close, close, close, self._text(0), "0.00000000", 0]
        ticks = self._ticks(first, stop)
        lots = [round(volume * VOLUME_UNIT) for volume in self.volumes[first:stop].tolist()]
        volume = sum(lots)
        vwap = sum(tick * lot for tick, lot in zip(ticks, lots, strict=True)) // volume
        prices = (ticks[0], max(ticks), min(ticks), ticks[-1], vwap)
        whole, rest = divmod(volume, VOLUME_UNIT)
        return [
            opens,
            *map(self._text, prices),
            f"{whole}.{rest:0{VOLUME_DECIMALS}d}",
            len(ticks),
        ]

    def _ticks(self, first: int, stop: int) -> list[int]:
        return [round(price * 10**self.decimals) for price in self.prices[first:stop].tolist()]

    def _text(self, ticks: int) -> str:
        whole, rest = divmod(ticks, 10**self.decimals)
        return f"{whole}.{rest:0{self.decimals}d}"


class RecordedTape:
    """Rows as Kraken once sent them."""

    def __init__(self, trades: dict[str, Any], candles: dict[str, Any], pair: Pair) -> None:
        self.rows, self.candle_rows = trades[pair.id], candles[pair.id]
        times = [int(Decimal(repr(row[2])) * NS_PER_S) for row in self.rows]
        times[-1] = int(trades["last"])  # the one time that is known to the ns
        # Fills of one order show the same rounded time, but a cursor must tell them apart.
        nth = np.arange(len(times))
        self.times_ns = np.maximum.accumulate(np.array(times) - nth) + nth

    def trades(self, first: int, stop: int) -> list[Row]:
        return list(self.rows[first:stop])

    def candles(self, interval_s: int, now_ns: int) -> list[Row]:
        if interval_s != 60:
            raise RefusedError("EGeneral:Only one-minute candles were recorded", odd=True)
        return list(self.candle_rows)
