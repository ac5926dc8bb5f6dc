"""Small markets and one-line steps for the simulator's tests."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from trade_pipeline.simulator.kernel import Account, Fill, Fills, Market, Orders, Rules, step

MINUTE_MS = 60_000
DAY_MS = 86_400_000
NAN = float("nan")

Bar = tuple[float, float, float, float]


def market(bars: Sequence[Any], *, volume: Any = 1e9, traded: Any = True, **times: Any) -> Market:
    """`bars` is [T] of (open, high, low, close), or [T] of [N] such tuples."""
    prices = np.array(bars, np.float64)
    if prices.ndim == 2:
        prices = prices[:, np.newaxis, :]
    shape = prices.shape[:2]
    ts = np.asarray(times.get("ts", np.arange(shape[0]) * MINUTE_MS))
    close_ts = np.asarray(times.get("close_ts", ts + MINUTE_MS))
    full = {
        name: np.broadcast_to(
            np.array(value).reshape(shape[0], -1) if np.ndim(value) else value, shape
        )
        for name, value in (("volume", volume), ("traded", traded))
    }
    funding = times.get("funding")
    column = None if funding is None else np.array(funding, np.float64).reshape(shape)
    return Market(ts, close_ts, *np.moveaxis(prices, -1, 0), **full, funding=column)


def flat_bar(price: float) -> Bar:
    return (price, price, price, price)


def random_market(rows: int, instruments: int, seed: int, volatility: float = 0.01) -> Market:
    rng = np.random.default_rng(seed)
    shape = (rows, instruments)
    close = 100 * np.exp(np.cumsum(rng.normal(0, volatility, shape), axis=0))
    gap = np.exp(rng.normal(0, volatility / 2, shape))
    open_ = np.vstack([close[:1], close[:-1]]) * gap
    high = np.maximum(open_, close) * (1 + np.abs(rng.normal(0, volatility / 2, shape)))
    low = np.minimum(open_, close) / (1 + np.abs(rng.normal(0, volatility / 2, shape)))
    traded = rng.random(shape) < 0.9
    traded[0] = traded[-1] = True
    for t in range(1, rows):  # fillers are flat at the previous close
        still = ~traded[t]
        for prices in (open_, high, low, close):
            prices[t, still] = close[t - 1, still]
    volume = np.where(traded, rng.uniform(10, 1000, shape), 0.0)
    ts = np.cumsum(rng.integers(1, 5, rows)) * MINUTE_MS
    return Market(ts, ts + MINUTE_MS, open_, high, low, close, volume, traded)


def orders(
    weight: Any, stop: Any = NAN, take: Any = NAN, hold: Any = False, instruments: int | None = None
) -> Orders:
    """Orders of one account; scalars go to every instrument."""
    count = instruments or np.size(weight)
    return Orders(
        np.full((1, count), weight, np.float64),
        np.full((1, count), hold, np.bool_),
        np.full((1, count), stop, np.float64),
        np.full((1, count), take, np.float64),
    )


def hold(instruments: int = 1) -> Orders:
    return orders(0.0, hold=True, instruments=instruments)


class Run:
    """One account driven by hand, row by row."""

    def __init__(self, market: Market, equity: float = 1000.0, **numbers: Any) -> None:
        self.market = market
        self.account = Account.start(1, market.instruments, equity)
        self.fills = Fills.empty(1, market.instruments)
        self.row = np.zeros(1, np.int64)
        self.numbers: dict[str, Any] = {"max_leverage": 10.0}
        self.change(**numbers)

    def change(self, **numbers: Any) -> None:
        """Other rules from here on."""
        self.numbers.update(numbers)
        self.rules = Rules.plain(self.market.instruments, **self.numbers)

    def step(self, wanted: Orders) -> list[Fill]:
        step(self.account, self.market, self.row, wanted, self.rules, self.fills)
        self.row += 1
        return self.fills.of(0)

    @property
    def cash(self) -> float:
        return float(self.account.cash[0])

    @property
    def equity(self) -> float:
        return float(self.account.equity[0])

    def quantity(self, instrument: int = 0) -> float:
        return float(self.account.quantity[0, instrument])

    def stop(self, instrument: int = 0) -> float:
        return float(self.account.stop_price[0, instrument])

    def take(self, instrument: int = 0) -> float:
        return float(self.account.take_price[0, instrument])
