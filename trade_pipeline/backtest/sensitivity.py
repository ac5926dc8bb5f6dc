"""How far a result hangs on costs and on speed: the same backtests at other costs, and a bar late.

A result that only holds at the configured costs, or only when nothing is a bar late, is none.
Start at `sensitivity`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.backtest.curve import Curve, stitch
from trade_pipeline.backtest.engine import backtest, plan_of
from trade_pipeline.backtest.protocol import Plan, Strategy
from trade_pipeline.backtest.strategies import PolicyStrategy
from trade_pipeline.settings.base import SettingsError, parse_settings
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows

AS_CONFIGURED, NO_COSTS, DOUBLE_COSTS = "as configured", "no costs", "costs x2"
BAR_LATER = "one bar later"
COST_FACTORS = {AS_CONFIGURED: 1.0, NO_COSTS: 0.0, DOUBLE_COSTS: 2.0}
FIGURES = ("sharpe", "total_return", "max_drawdown", "trades")
SCHEMA: dict[str, Any] = {
    "name": pl.String(),
    "strategy": pl.String(),
    "sharpe": pl.Float64(),
    "total_return": pl.Float64(),
    "max_drawdown": pl.Float64(),
    "trades": pl.Int64(),
}
# What a fill costs; what holding costs is left as it is.
_PER_FILL = frozenset({"bps", "impact_bps", "maker_bps", "taker_bps", "per_share", "minimum"})


class Run(NamedTuple):
    """A strategy on a part of a dataset."""

    dataset: Dataset
    part: Rows
    strategy: Strategy


class BarLater:
    """Another strategy, decided on what was known one bar earlier and the account as it is now."""

    def __init__(self, strategy: Strategy) -> None:
        self.name = strategy.name
        self._strategy = strategy

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Start the other one."""
        self._strategy.start(dataset, environment)
        plan = plan_of(self._strategy, dataset, environment)
        # Each row where the next one was; the first row is decided twice.
        self._plan = None if plan is None else Plan(*(_row_later(array) for array in plan))
        self._close = dataset.close

    def orders(self, row: int, account: Account) -> Orders:
        """The other one's orders of the row before."""
        if self._plan is None:
            return self._strategy.orders(row - 1, account)
        return self._plan.orders(row, account, self._close[row])

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
        """The other one's plan, a row later."""
        return self._plan


def sensitivity(
    runs: Mapping[str, Sequence[Run]],
    environment: EnvironmentSettings,
    say: Callable[[str], None] = lambda line: None,
    clock: Callable[[], float] = time.monotonic,
) -> pl.DataFrame:
    """Stitched figures of each strategy at no, the configured and double costs, and a bar late.

    Costs are fees and slippage. A bar late leaves out the first row of each slice, whose earlier
    bar is in no slice; it is asked at the configured costs.

    Args:
        runs: name to the parts of the folds, in time order.
        environment: as configured.
        say: takes a line each time that another strategy was run everywhere.
        clock: seconds, for the time that is left.

    Returns:
        `SCHEMA`; a figure is null where it is undefined, or double costs are no valid settings.

    Raises:
        SplitError: a part has no slice that is long enough.
    """
    began = clock()
    rows: list[dict[str, Any]] = []
    for number, (strategy, parts) in enumerate(runs.items(), 1):
        for name, factor in COST_FACTORS.items():
            costly = with_costs(environment, factor)
            found = {} if costly is None else _figures(parts, costly)
            rows.append({"name": name, "strategy": strategy, **found})
        found = _figures([_late(part) for part in parts], environment)
        rows.append({"name": BAR_LATER, "strategy": strategy, **found})
        left = (clock() - began) / number * (len(runs) - number)
        say(
            f"other costs and delays: {number} of {len(runs)} strategies run, about {left:.0f} s "
            "left"
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def with_costs(environment: EnvironmentSettings, factor: float) -> EnvironmentSettings | None:
    """Fees and slippage times a factor; None where nobody could trade at such costs."""
    content = environment.model_dump(mode="json")
    for part in ("fee", "slippage"):
        content["costs"][part] = _scaled(content["costs"][part], factor)
    try:
        return parse_settings(content, EnvironmentSettings, f"costs x{factor:g}")
    except SettingsError:
        return None


def _scaled(content: Any, factor: float, key: str = "") -> Any:
    """Every number under a key of `_PER_FILL`, times the factor."""
    if isinstance(content, dict):
        return {name: _scaled(value, factor, name) for name, value in content.items()}
    if isinstance(content, list):
        return [_scaled(value, factor) for value in content]
    return content * factor if key in _PER_FILL else content


def _figures(parts: Sequence[Run], environment: EnvironmentSettings) -> dict[str, Any]:
    curve = stitch(
        [
            Curve.of(backtest(run.dataset, run.part, environment, run.strategy, "sensitivity"))
            for run in parts
        ]
    )
    dataset = parts[0].dataset
    values = curve.figures(dataset.bars_per_year, dataset.days_per_year)["values"]
    return {name: values[name] for name in FIGURES}


def _late(run: Run) -> Run:
    part = run.part + np.array([1, 0])
    if isinstance(run.strategy, PolicyStrategy):
        # It runs in compiled code, on features of its own: they come a row later.
        seen = replace(run.dataset, features=_row_later(run.dataset.features))
        return Run(seen, part, run.strategy)
    return Run(run.dataset, part, BarLater(run.strategy))


def _row_later(array: NDArray[Any] | None) -> Any:
    """[T, ...] with row t - 1 at row t."""
    if array is None:
        return None
    later = np.empty_like(array)
    later[0] = array[0]
    later[1:] = array[:-1]
    return later
