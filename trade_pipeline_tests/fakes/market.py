"""A made-up market: every trade there ever was, so that tests know what is true.

Deterministic: the same arguments give the same trades. Knows no venue and no wire format; those are
`fakes/kraken.py`. Start at `MadeMarket`; `MadeMarket.of` takes trades written down by hand.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
FIRST_ID = 61_000_000
PRICE_DECIMALS, VOLUME_DECIMALS = 1, 8
TRADES: dict[str, pl.DataType] = {
    "id": pl.Int64(),
    "time_ns": pl.Int64(),
    "price": pl.Float64(),
    "volume": pl.Float64(),
}
BARS: dict[str, pl.DataType] = {
    "ts": pl.Datetime("ms", "UTC"),
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Float64(),
    "trades": pl.Int32(),
}


class MadeMarket:
    """Trades of one pair over [start_ms, end_ms), and what its bars must be.

    Orders arrive at random; one order may fill against several others, which makes trades a single
    nanosecond apart: equal once their time is written as a float of seconds, as venues do.

    Args:
        seed: of all randomness.
        start_ms: first possible trade, ms since 1970 UTC.
        end_ms: no trade at or after it.
        trades_per_minute: on average, outside of halts and busy seconds.
        halts: [start, end) in ms without any trade.
        busy_seconds: start of a second in ms -> exactly how many trades are in it.

    Attributes:
        trades: id (rising by one), time_ns (strictly rising), price (one decimal), volume (eight).
    """

    def __init__(
        self,
        seed: int,
        start_ms: int,
        end_ms: int,
        trades_per_minute: float = 3.0,
        halts: Sequence[tuple[int, int]] = (),
        busy_seconds: Mapping[int, int] | None = None,
    ) -> None:
        busy_seconds = busy_seconds or {}
        for second in busy_seconds:
            if second % 1000 or not start_ms <= second < end_ms:
                raise ValueError(
                    f"busy second {second} is not the start of a second, in ms since 1970, within "
                    f"[{start_ms}, {end_ms})"
                )
        rng = np.random.default_rng(seed)
        fills_of_an_order = np.array([1, 1, 1, 2, 3])
        orders = rng.poisson(
            trades_per_minute / fills_of_an_order.mean() * (end_ms - start_ms) / 60_000
        )
        at = np.unique(rng.integers(start_ms * NS_PER_MS, end_ms * NS_PER_MS, orders))
        fills = rng.choice(fills_of_an_order, len(at))
        ends = np.cumsum(fills)
        nth = np.arange(fills.sum()) - np.repeat(ends - fills, fills)
        time_ns = np.repeat(at, fills) + nth
        still = [*halts, *((second, second + 1000) for second in busy_seconds)]
        for start, end in still:
            time_ns = time_ns[(time_ns < start * NS_PER_MS) | (time_ns >= end * NS_PER_MS)]
        busy = [
            second * NS_PER_MS + rng.choice(NS_PER_S, count, replace=False)
            for second, count in busy_seconds.items()
        ]
        time_ns = np.unique(np.concatenate([time_ns, *busy]))
        time_ns = time_ns[time_ns < end_ms * NS_PER_MS]
        # Whole ticks and lots, so that sums of them are exact.
        ticks = 600_000 + np.cumsum(rng.integers(-9, 10, len(time_ns)))
        lots = np.ceil(rng.lognormal(13, 2, len(time_ns)))
        self.trades = pl.DataFrame(
            {
                "id": FIRST_ID + np.arange(len(time_ns)),
                "time_ns": time_ns,
                "price": np.maximum(ticks, 1) / 10**PRICE_DECIMALS,
                "volume": lots / 10**VOLUME_DECIMALS,
            },
            schema=TRADES,
        )

    @classmethod
    def of(cls, trades: pl.DataFrame) -> "MadeMarket":
        """A market of these trades: id, time_ns, price, volume."""
        market = cls.__new__(cls)
        market.trades = trades.select(pl.col(name).cast(dtype) for name, dtype in TRADES.items())
        return market

    def bars(self, timeframe_ms: int, start_ms: int, end_ms: int) -> pl.DataFrame:
        """The bars that open in [start_ms, end_ms), none where nothing traded: slow and obvious.

        Volumes are added up as whole numbers of 1e-8, so each is the float nearest to the true
        sum; adding floats in any other way may differ in the last bits.

        Returns:
            ts, open, high, low, close, volume, trades; sorted by ts.
        """
        found: dict[int, list[tuple[float, int]]] = {}
        for _, time_ns, price, volume in self.trades.iter_rows():
            opens = time_ns // NS_PER_MS // timeframe_ms * timeframe_ms
            if start_ms <= opens < end_ms:
                found.setdefault(opens, []).append((price, round(volume * 10**VOLUME_DECIMALS)))
        rows = []
        for opens, trades in sorted(found.items()):
            prices = [price for price, _ in trades]
            volume = sum(lots for _, lots in trades) / 10**VOLUME_DECIMALS
            rows.append(
                (opens, prices[0], max(prices), min(prices), prices[-1], volume, len(trades))
            )
        columns = {**BARS, "ts": pl.Int64()}
        return pl.DataFrame(rows, schema=columns, orient="row").cast({"ts": BARS["ts"]})
