"""Runs a strategy over a test part through the simulator's kernel.

The same kernel, observations and rules as the training environments: a policy's backtest equals
its evaluation episodes to the last bit. Policies and rules whose orders can be given ahead run in
compiled code, other strategies are asked bar by bar; the bits are the same. Knows nothing of files
or reports. Start at `backtest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.backtest.planned import trade_plan
from trade_pipeline.backtest.strategies import (
    Plan,
    PlannedStrategy,
    PolicyStrategy,
    Strategy,
    newest,
)
from trade_pipeline.evaluation.trades import FILL_SCHEMA
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import (
    REASONS,
    Account,
    Fills,
    Market,
    Rules,
    close_out,
    step,
)
from trade_pipeline.simulator.recording import Recorder
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows, SplitError, long_enough

IMPLEMENTATION = 4
TIME = pl.Datetime("ms", "UTC")
ORDER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
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

    @property
    def mishaps(self) -> tuple[str, ...]:
        """What a reader must know of how it went: sentences."""
        said = []
        if liquidated := self.summary["fills"]["liquidation"]:
            said.append(
                f"{liquidated} position(s) of {self.name} were liquidated for want of margin. Who "
                "still wants one orders it again on that bar's close: a signal of a rule does, as "
                "long as it stands."
            )
        if self.summary["terminated"]:
            said.append(
                f"The account of {self.name} was ruined: its equity reached zero and trading "
                "stopped."
            )
        return tuple(said)

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
    market, rules = dataset.market, Rules.of(environment, dataset.market.instruments)
    account = Account.start(1, market.instruments, environment.initial_equity)
    fills = Fills.empty(1, market.instruments)
    steps = int((slices[:, 1] - slices[:, 0] - window).sum())
    recorder = Recorder(steps, account)
    strategy.start(dataset, environment)
    plan = plan_of(strategy, dataset, environment)
    made: list[tuple[int, int]] = []
    for number, (a, b) in enumerate(slices.tolist()):
        rows, begun = (a + window - 1, b - 1), recorder.steps
        if plan is not None:
            trade_plan(plan, account, market, rows, rules, recorder)
        elif newest(strategy, "trade") and isinstance(strategy, PolicyStrategy):
            strategy.trade(account, rows, recorder)
        else:
            _bar_by_bar(strategy, account, market, rows, rules, recorder)
        made.append((rows[0] + 1, recorder.steps - begun))
        if account.terminated[0]:
            break
        if number < len(slices) - 1:
            close_out(account, market, np.array([b - 1]), rules, fills)
            recorder.close_out(b - 1, account, fills)
            if account.terminated[0]:
                break
    return _result(strategy.name, dataset, environment, slices, made, recorder, account)


def plan_of(strategy: Strategy, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
    """The strategy's plan, if it has one that says the same as its orders."""
    if newest(strategy, "plan") and isinstance(strategy, PlannedStrategy):
        return strategy.plan(dataset, environment)
    return None


def _bar_by_bar(
    strategy: Strategy,
    account: Account,
    market: Market,
    rows: tuple[int, int],
    rules: Rules,
    recorder: Recorder,
) -> None:
    """Ask the strategy on the close of each row of a range, until the end or ruin."""
    fills = Fills.empty(1, market.instruments)
    for row in range(*rows):
        orders = strategy.orders(row, account)
        recorder.order(row, orders, account)
        step(account, market, np.array([row]), orders, rules, fills)
        recorder.step(row + 1, account, market, fills)
        if account.terminated[0]:
            return


def _result(
    name: str,
    dataset: Dataset,
    environment: EnvironmentSettings,
    slices: Rows,
    made: list[tuple[int, int]],
    recorder: Recorder,
    account: Account,
) -> BacktestResult:
    """Everything that was recorded; `made` are the first bar and the steps of each slice begun."""
    n = recorder.steps
    row, ts = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    slice_number = np.zeros(n + 1, np.int64)
    row[0], at = made[0][0] - 1, 1
    ts[0] = dataset.close_ts[row[0]]
    for number, (first, steps) in enumerate(made):
        row[at : at + steps] = np.arange(first, first + steps)
        ts[at : at + steps] = dataset.close_ts[first : first + steps]
        if number:
            slice_number[at : at + steps] = number
        at += steps
    fills = recorder.fills()
    flows = {key: values[:n] for key, values in recorder.flows.items()}
    positions = zip(dataset.instruments, account.quantity[0].tolist(), strict=True)
    summary = {
        "strategy": name,
        "initial_equity": float(recorder.equity[0]),
        "final_equity": float(recorder.equity[n]),
        "terminated": bool(account.terminated[0]),
        # What idle cash earns is no skill: ratios are of returns beyond it.
        "risk_free": environment.costs.cash_rate,
        "slices": len(slices),
        "steps": n,
        "ambiguous_bars": int(account.ambiguous[0]),
        "fills": _counted(fills["reason"]),
        **{key: float(flows[key].sum()) for key in ("fees", "slippage", "financing")},
        "open_positions": {key: quantity for key, quantity in positions if quantity != 0},
    }
    return BacktestResult(
        name=name,
        row=row,
        ts=ts,
        slice_number=slice_number,
        equity=recorder.equity[: n + 1],
        **flows,
        orders=_order_table(recorder.orders(), dataset),
        fills=_fill_table(fills, dataset),
        summary=summary,
    )


def _counted(reasons: NDArray[np.int8]) -> dict[str, int]:
    """How many fills each of `REASONS` had."""
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    return dict(zip(REASONS, counts, strict=True))


def _order_table(orders: NDArray[np.void], dataset: Dataset) -> pl.DataFrame:
    """`ORDER_SCHEMA` of `recording.ORDERED`; an order is given when its row has closed."""
    return pl.DataFrame(
        {
            "time": _times(np.asarray(dataset.close_ts)[orders["row"]]),
            "row": orders["row"],
            "instrument": _named(dataset.instruments, orders["instrument"]),
            "target_weight": orders["target_weight"],
            "stop_fraction": pl.Series(orders["stop_fraction"], nan_to_null=True),
            "take_fraction": pl.Series(orders["take_fraction"], nan_to_null=True),
        },
        schema=ORDER_SCHEMA,
    )


def _fill_table(fills: NDArray[np.void], dataset: Dataset) -> pl.DataFrame:
    """`FILL_SCHEMA` of `recording.FILLED`."""
    row = fills["row"]
    # An order trades at the bar's open; when the rest happens is known at its close.
    at_open = fills["reason"] == REASONS.index("order")
    times = np.where(at_open, np.asarray(dataset.ts)[row], np.asarray(dataset.close_ts)[row])
    return pl.DataFrame(
        {
            "time": _times(times),
            "row": row,
            "instrument": _named(dataset.instruments, fills["instrument"]),
            **{name: fills[name] for name in ("quantity", "price", "fee", "slippage")},
            "reason": _named(REASONS, fills["reason"]),
            "fill_id": np.arange(len(fills)),
        },
        schema=FILL_SCHEMA,
    )


def _times(ms: NDArray[np.int64]) -> pl.Series:
    return pl.Series(ms, dtype=pl.Int64).cast(TIME)


def _named(names: Sequence[str], numbers: NDArray[Any]) -> pl.Series:
    return pl.Series(names, dtype=pl.String)[numbers]
