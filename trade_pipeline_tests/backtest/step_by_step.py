"""The plain way to run a backtest, the oracle of the engine: one bar after the other.

Nothing is compiled but the kernel's `step` and `close_out`; everything is written down in lists.
"""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.backtest.engine import ORDER_SCHEMA, BacktestResult
from trade_pipeline.backtest.strategies import Strategy
from trade_pipeline.evaluation.trades import FILL_SCHEMA
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import REASONS, Account, Fills, Orders, Rules, close_out, step
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows, long_enough

FLOWS = ("turnover", "fees", "slippage", "financing")


class Asked:
    """A strategy without a plan: whatever it wraps is asked on every bar."""

    def __init__(self, strategy: Strategy) -> None:
        self.name = strategy.name
        self.start = strategy.start
        self._strategy = strategy

    def orders(self, row: int, account: Account) -> Orders:
        return self._strategy.orders(row, account)


def run(
    dataset: Dataset, segments: Rows, environment: EnvironmentSettings, strategy: Strategy
) -> BacktestResult:
    """What `backtest` gives."""
    window, slices = environment.window, long_enough(segments, environment.window).tolist()
    rules = Rules.of(environment, len(dataset.instruments))
    account = Account.start(1, len(dataset.instruments), environment.initial_equity)
    fills = Fills.empty(1, len(dataset.instruments))
    strategy.start(dataset, environment)
    rows, numbers = [slices[0][0] + window - 1], [0]
    equity, exposure = [environment.initial_equity], []
    flows: dict[str, list[float]] = {name: [] for name in FLOWS}
    order_rows: list[tuple[Any, ...]] = []
    fill_rows: list[tuple[Any, ...]] = []

    def now(row: int) -> tuple[list[float], float, float]:
        """Flows of the last step, equity and exposure at the close of a row."""
        for fill in fills.of(0):
            times = dataset.ts if fill.reason == "order" else dataset.close_ts
            number = len(fill_rows)
            what = (fill.quantity, fill.price, fill.fee, fill.slippage, fill.reason, number)
            fill_rows.append((int(times[row]), row, dataset.instruments[fill.instrument], *what))
        worth = float(account.equity[0])
        gross = 0.0
        for quantity, price in zip(account.quantity[0], dataset.close[row], strict=True):
            gross += abs(float(quantity)) * float(price)
        paid = [float(account.traded_notional[0])]
        paid += [float(getattr(account, name)[0]) for name in FLOWS[1:]]
        return paid, worth, gross / worth if worth > 0 else 0.0

    for number, (a, b) in enumerate(slices):
        for row in range(a + window - 1, b - 1):
            orders = strategy.orders(row, account)
            for n, instrument in enumerate(dataset.instruments):
                weight = float(orders.target_weight[0, n])
                if not orders.hold[0, n] and (weight != 0 or account.quantity[0, n] != 0):
                    levels = (float(orders.stop_fraction[0, n]), float(orders.take_fraction[0, n]))
                    known = [None if np.isnan(level) else level for level in levels]
                    order_rows.append((int(dataset.close_ts[row]), row, instrument, weight, *known))
            step(account, dataset.market, np.array([row]), orders, rules, fills)
            rows.append(row + 1)
            numbers.append(number)
            paid, worth, share = now(row + 1)
            equity.append(worth)
            exposure.append(share)
            for name, amount in zip(FLOWS, paid, strict=True):
                flows[name].append(amount)
            if account.terminated[0]:
                break
        if account.terminated[0] or number == len(slices) - 1:
            break
        close_out(account, dataset.market, np.array([b - 1]), rules, fills)
        paid, equity[-1], exposure[-1] = now(b - 1)
        for name, amount in zip(FLOWS, paid, strict=True):
            flows[name][-1] += amount
        if account.terminated[0]:
            break
    arrays = {name: np.array(values, np.float64) for name, values in flows.items()}
    reasons = Counter(row[7] for row in fill_rows)
    summary = {
        "strategy": strategy.name,
        "initial_equity": equity[0],
        "final_equity": equity[-1],
        "terminated": bool(account.terminated[0]),
        "risk_free": environment.costs.cash_rate,
        "slices": len(slices),
        "steps": len(exposure),
        "ambiguous_bars": int(account.ambiguous[0]),
        "fills": {reason: reasons[reason] for reason in REASONS},
        **{name: float(arrays[name].sum()) for name in FLOWS[1:]},
        "open_positions": {
            instrument: float(quantity)
            for instrument, quantity in zip(dataset.instruments, account.quantity[0], strict=True)
            if quantity != 0
        },
    }
    return BacktestResult(
        name=strategy.name,
        row=np.array(rows, np.int64),
        ts=np.array([dataset.close_ts[row] for row in rows], np.int64),
        slice_number=np.array(numbers, np.int64),
        equity=np.array(equity),
        exposure=np.array(exposure, np.float64),
        **arrays,
        orders=pl.DataFrame(order_rows, schema=ORDER_SCHEMA, orient="row"),
        fills=pl.DataFrame(fill_rows, schema=FILL_SCHEMA, orient="row"),
        summary=summary,
    )
