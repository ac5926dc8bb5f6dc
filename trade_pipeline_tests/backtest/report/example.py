"""A report with everything in it, of any size, out of one seed."""

import numpy as np
import polars as pl

from trade_pipeline.backtest.report.page import Curve, ReportInput
from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline.evaluation.periods import by_month, rolling

START_MS = 1_672_531_200_000  # 2023-01-01
MINUTE_MS = 60_000
INSTRUMENT = "kraken.BTC-USD.1m"
REASONS = ("order", "stop", "take")
TIME = pl.Datetime("ms", "UTC")


def full_report(bars, trades, curves=8):
    """Minute bars in ticks of a cent, trades that do not know of each other, three regimes."""
    chance = np.random.default_rng(7)
    ts = START_MS + np.arange(bars, dtype=np.int64) * MINUTE_MS
    labels = np.repeat(chance.integers(0, 3, bars // 600 + 1), 600)[:bars]
    moves = chance.normal(0, 1, bars) * np.array([3e-4, 6e-4, 12e-4])[labels]
    prices = _prices(chance, 20_000 * np.exp(np.cumsum(moves)))
    trips = _trips(chance, ts, prices, labels, trades)
    drawn = [Curve("base", "policy", ts, _equity(0, bars))]
    drawn += [Curve(f"base seed {n}", "trial", ts, _equity(n, bars)) for n in range(1, 4)]
    drawn += [Curve(f"rule {n}", "baseline", ts, _equity(n, bars)) for n in range(4, curves)]
    equity = drawn[0].equity
    exposure = np.repeat(chance.integers(0, 2, bars // 60 + 1), 60)[:bars] * 0.5
    found = metrics(
        equity, ts, 525_600, 365, exposure[1:], np.zeros(bars - 1), trips["net"].to_numpy()
    )
    return ReportInput(
        title="btc_ppo",
        curves=drawn,
        leaderboard=pl.DataFrame({"name": ["base"], "kind": ["policy"], "sharpe": [1.2]}),
        prices={INSTRUMENT: (ts, *prices)},
        trips=trips,
        metrics={"base": found | _beside(int(ts[10])), "rule 4": found},
        provenance={"dataset": "3f" * 16, "numpy": "2.2.1"},
        notes=["Costs are in."],
        months=by_month(equity, ts, 365),
        rolling=rolling(equity, ts, 2, 365),
        exposure=(ts, exposure),
        regimes=(ts, labels),
        learning={f"base.f0.s{seed}": _diagnostics(seed) for seed in range(2)},
        sensitivity=pl.DataFrame(
            {
                "name": ["as configured", "no costs", "costs x2", "one bar later"],
                "strategy": ["base"] * 4,
                "sharpe": [1.2, 1.9, 0.4, None],
                "total_return": [0.22, 0.4, 0.1, 0.15],
            }
        ),
        configuration="algorithm:\n  name: ppo\n  learning_rate: 0.0003\n",
    )


def _equity(seed, bars):
    return 1e5 * np.exp(np.cumsum(np.random.default_rng(seed).normal(1e-6, 4e-4, bars)))


def _prices(chance, close):
    close = np.round(close, 2)
    open_ = np.append(close[0], close[:-1])
    above, below = (np.abs(chance.normal(0, 3e-4, close.size)) for _ in range(2))
    high = np.round(np.maximum(open_, close) * (1 + above), 2)
    low = np.round(np.minimum(open_, close) * (1 - below), 2)
    return open_, high, low, close


def _trips(chance, ts, prices, labels, count):
    open_, high, low, _ = prices
    entry = np.sort(chance.choice(np.arange(1, ts.size - 130), count, replace=False))
    leaving = entry + chance.integers(1, 120, count)
    side = chance.integers(0, 2, count) * 2 - 1
    entry_price = open_[entry] * (1 + side * 1e-4)  # slippage
    exit_price = open_[leaving] * (1 - side * 1e-4)
    quantity = 1_000 / entry_price
    gross = side * (exit_price - entry_price) * quantity
    fee = (entry_price + exit_price) * quantity * 2e-4
    top = np.array([high[a:b].max() for a, b in zip(entry, leaving, strict=True)])
    bottom = np.array([low[a:b].min() for a, b in zip(entry, leaving, strict=True)])
    best, worst = (np.where(side > 0, *pair) for pair in ((top, bottom), (bottom, top)))
    mfe = np.maximum(side * (best - entry_price), 0)
    return pl.DataFrame(
        {
            "instrument": [INSTRUMENT] * count,
            "side": np.where(side > 0, "long", "short"),
            "quantity": quantity,
            "entry_row": entry,
            "entry_time": pl.Series(ts[entry]).cast(TIME),
            "entry_price": entry_price,
            "entry_reason": ["order"] * count,
            "exit_row": leaving,
            "exit_time": pl.Series(ts[leaving]).cast(TIME),
            "exit_price": exit_price,
            "exit_reason": np.array(REASONS)[chance.integers(0, 3, count)],
            "gross": gross,
            "fee": fee,
            "net": gross - fee,
            "mfe": mfe,
            "mae": np.maximum(-side * (worst - entry_price), 0),
            "mfe_hi": mfe,
            "regime": pl.Series(labels[entry - 1], dtype=pl.Int8),
        }
    )


def _diagnostics(seed):
    frames = np.arange(1, 41) * 2_048
    reward = np.cumsum(np.random.default_rng(seed).normal(0.1, 1, 40))
    score = [value / 1_000 if n % 5 == 4 else None for n, value in enumerate(reward)]
    return pl.DataFrame({"frames": frames, "ep_rew_mean": reward, "validation_return": score})


def _beside(close_ts):
    """What `bundle.figures` adds to the figures of a curve."""
    labels = ("none", "0", "1", "2")
    part = {"return": 0.1, "sharpe": 1.0, "exposure": 0.5, "share_of_time": 0.25, "bars": 100}
    return {
        "market": {
            "values": {"alpha": 0.123, "beta": 0.8, "information_ratio": None},
            "undefined": {"information_ratio": "the difference does not vary"},
        },
        "capacity": {
            "values": {"share": 0.01, "equity": 1.25e6, "largest_share": 0.08},
            "undefined": {},
            "binding": {"close_ts": close_ts, "instrument": INSTRUMENT},
        },
        "regimes": {label: {"values": part, "undefined": {}} for label in labels},
    }
