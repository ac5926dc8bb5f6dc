"""Runs a strategy over a test part, bar by bar, through the simulator's kernel.

The same kernel, observations and rules as the training environments: a policy's backtest equals
its evaluation episodes to the last bit. Knows nothing of files or reports. Start at `backtest`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.backtest.strategies import Strategy
from trade_pipeline.evaluation.trades import FILL_SCHEMA
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import REASONS, Account, Fills, Orders, Rules, close_out, step
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows, SplitError, long_enough

IMPLEMENTATION = 2
TIME = pl.Datetime("ms", "UTC")
ORDER_SCHEMA = {
    "time": TIME,
    "row": pl.Int64,
    "instrument": pl.String,
    "target_weight": pl.Float64,
    "stop_fraction": pl.Float64,
    "take_fraction": pl.Float64,
}


@dataclass(frozen=True)
class BacktestResult:
    """What a strategy did in n steps, over slices of a test part in time order.

    Attributes:
        name: the strategy's.
        row: int64 [n + 1] dataset row of each value of `equity`.
        ts: int64 [n + 1] ms UTC, when that row closed.
        slice_number: int64 [n + 1] which slice of the test part it lies in.
        equity: float64 [n + 1] quote currency, before the first step and after each.
        exposure: float64 [n] gross exposure / equity after each step.
        turnover, fees, slippage, financing: float64 [n] quote currency, of each step.
        orders: `ORDER_SCHEMA`: each decision that was not to hold or to stay flat.
        fills: `FILL_SCHEMA`, in the order they happened.
        summary: totals and counts, JSON-able.
    """

    name: str
    row: NDArray[np.int64]
    ts: NDArray[np.int64]
    slice_number: NDArray[np.int64]
    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    turnover: NDArray[np.float64]
    fees: NDArray[np.float64]
    slippage: NDArray[np.float64]
    financing: NDArray[np.float64]
    orders: pl.DataFrame
    fills: pl.DataFrame
    summary: dict[str, Any]

    def equity_frame(self) -> pl.DataFrame:
        """One row a value of `equity`; the first has traded nothing."""
        return pl.DataFrame(
            {
                "time": pl.Series(self.ts, dtype=pl.Int64).cast(TIME),
                "row": self.row,
                "slice": self.slice_number,
                "equity": self.equity,
                **{
                    name: np.concatenate([[0.0], getattr(self, name)])
                    for name in ("exposure", "turnover", "fees", "slippage", "financing")
                },
            }
        )


def backtest(
    dataset: Dataset,
    segments: Rows,
    environment: EnvironmentSettings,
    strategy: Strategy,
    origin: str = "backtest",
) -> BacktestResult:
    """Run each slice as one episode, equity carried over.

    Positions close with cost at every slice end but the last; at the very end they stay open,
    marked. Ruin ends the backtest.

    Args:
        dataset: market, features, instruments.
        segments: int64 [K, 2] rows [a, b) of a test part, a slice each.
        environment: window, costs, limits and initial equity.
        strategy: what decides.
        origin: the experiment, as errors name it.

    Raises:
        SplitError: no slice holds `window + 2` rows.
    """
    window = environment.window
    slices = long_enough(segments, window)
    if not len(slices):
        lengths = [int(b - a) for a, b in segments]
        raise SplitError(
            f"{origin}: no slice is long enough to trade: slices have {lengths} rows, but a window "
            f"of {window} needs {window + 2}. Shorten the window or widen the part."
        )
    steps = int((slices[:, 1] - slices[:, 0] - window).sum())
    record = _Record(dataset, steps, environment.costs.cash_rate)
    market, rules = dataset.market, Rules.of(environment, dataset.market.instruments)
    account = Account.start(1, market.instruments, environment.initial_equity)
    fills = Fills.empty(1, market.instruments)
    strategy.start(dataset, environment)
    record.begin(int(slices[0, 0]) + window - 1, account)
    for number, (a, b) in enumerate(slices.tolist()):
        for row in range(a + window - 1, b - 1):
            orders = strategy.orders(row, account)
            record.decision(row, orders, account)
            step(account, market, np.array([row]), orders, rules, fills)
            record.step(row + 1, number, account, fills)
            if account.terminated[0]:
                return record.result(strategy.name, slices, account)
        if number < len(slices) - 1:
            close_out(account, market, np.array([b - 1]), rules, fills)
            record.closing(account, fills)
            if account.terminated[0]:
                break
    return record.result(strategy.name, slices, account)


class _Record:
    """Collects what happens, in arrays as long as the backtest can become."""

    def __init__(self, dataset: Dataset, steps: int, risk_free: float) -> None:
        self._dataset = dataset
        self._risk_free = risk_free
        self._close = np.asarray(dataset.close)
        self._steps = 0
        self._row = np.zeros(steps + 1, np.int64)
        self._slice = np.zeros(steps + 1, np.int64)
        self._equity = np.zeros(steps + 1)
        self._flows = {
            name: np.zeros(steps)
            for name in ("exposure", "turnover", "fees", "slippage", "financing")
        }
        self._orders: list[tuple[Any, ...]] = []
        self._fills: list[tuple[Any, ...]] = []

    def begin(self, row: int, account: Account) -> None:
        """The account before its first decision, on `row`."""
        self._row[0] = row
        self._equity[0] = account.equity[0]

    def decision(self, row: int, orders: Orders, account: Account) -> None:
        """Orders given on the close of `row`, but for those that ask for nothing."""
        asked = ~orders.hold[0] & ((orders.target_weight[0] != 0) | (account.quantity[0] != 0))
        for n in np.flatnonzero(asked).tolist():
            self._orders.append(
                (
                    int(self._dataset.close_ts[row]),
                    row,
                    self._dataset.instruments[n],
                    float(orders.target_weight[0, n]),
                    _or_none(orders.stop_fraction[0, n]),
                    _or_none(orders.take_fraction[0, n]),
                )
            )

    def step(self, row: int, slice_number: int, account: Account, fills: Fills) -> None:
        """The account after the bar `row`."""
        self._steps += 1
        self._row[self._steps] = row
        self._slice[self._steps] = slice_number
        self._add(account, fills)

    def closing(self, account: Account, fills: Fills) -> None:
        """The account after a slice end closed it, on the row of the last step."""
        self._add(account, fills)

    def _add(self, account: Account, fills: Fills) -> None:
        """Put the account's state and flows into the last step's row, and its fills."""
        at, row = self._steps - 1, int(self._row[self._steps])
        equity = float(account.equity[0])
        self._equity[self._steps] = equity
        gross = float((np.abs(account.quantity[0]) * self._close[row]).sum())
        self._flows["exposure"][at] = gross / equity if equity > 0 else 0.0
        self._flows["turnover"][at] += account.traded_notional[0]
        for name in ("fees", "slippage", "financing"):
            self._flows[name][at] += getattr(account, name)[0]
        for fill in fills.of(0):
            # An order trades at the bar's open; when the rest happens is known at its close.
            times = self._dataset.ts if fill.reason == "order" else self._dataset.close_ts
            self._fills.append(
                (
                    int(times[row]),
                    row,
                    self._dataset.instruments[fill.instrument],
                    fill.quantity,
                    fill.price,
                    fill.fee,
                    fill.slippage,
                    fill.reason,
                    len(self._fills),
                )
            )

    def result(self, name: str, slices: Rows, account: Account) -> BacktestResult:
        """Everything so far."""
        n = self._steps
        rows = self._row[: n + 1].copy()
        flows = {key: values[:n].copy() for key, values in self._flows.items()}
        reasons = Counter(fill[7] for fill in self._fills)
        summary = {
            "strategy": name,
            "initial_equity": float(self._equity[0]),
            "final_equity": float(self._equity[n]),
            "terminated": bool(account.terminated[0]),
            # What idle cash earns is no skill: ratios are of returns beyond it.
            "risk_free": self._risk_free,
            "slices": len(slices),
            "steps": n,
            "ambiguous_bars": int(account.ambiguous[0]),
            "fills": {reason: reasons[reason] for reason in REASONS},
            **{key: float(flows[key].sum()) for key in ("fees", "slippage", "financing")},
            "open_positions": {
                instrument: float(quantity)
                for instrument, quantity in zip(
                    self._dataset.instruments, account.quantity[0], strict=True
                )
                if quantity != 0
            },
        }
        return BacktestResult(
            name=name,
            row=rows,
            ts=np.asarray(self._dataset.close_ts)[rows],
            slice_number=self._slice[: n + 1].copy(),
            equity=self._equity[: n + 1].copy(),
            **flows,
            orders=_frame(self._orders, ORDER_SCHEMA),
            fills=_frame(self._fills, FILL_SCHEMA),
            summary=summary,
        )


def _frame(rows: list[tuple[Any, ...]], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema, orient="row")


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
