"""Checks whatever a strategy of a plug-in answers. Start at `CheckedStrategy`."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from trade_pipeline.backtest.plugins.importing import FAILURES, said
from trade_pipeline.backtest.plugins.installed import StrategyError
from trade_pipeline.backtest.protocol import Plan, Strategy, newest
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset

DISTANCES = ("stop_fraction", "take_fraction", "band")


class CheckedStrategy:
    """A strategy whose failures and answers are told in sentences that name where it is from."""

    def __init__(self, name: str, origin: str, strategy: Strategy) -> None:
        self.name = name
        self._origin = origin
        self._strategy = strategy
        self._dataset: Dataset

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Start it.

        Raises:
            StrategyError: it fails.
        """
        self._dataset = dataset
        try:
            self._strategy.start(dataset, environment)
        except FAILURES as error:
            raise self._error(f"its start fails: {said(error)}") from error

    def orders(self, row: int, account: Account) -> Orders:
        """Its orders.

        Raises:
            StrategyError: it fails, or gives no orders [1, N].
        """
        try:
            orders = self._strategy.orders(row, account)
        except FAILURES as error:
            raise self._error(f"its orders fail on {self._when(row)}: {said(error)}") from error
        if not isinstance(orders, Orders):
            raise self._error(
                f"its orders of {self._when(row)} are {type(orders).__name__}; give Orders"
            )
        shape = (1, len(self._dataset.instruments))
        wrong = self._problem(orders._asdict(), shape)
        if wrong is not None:
            raise self._error(f"its orders of {self._when(row)}: {wrong[1]}")
        return orders

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
        """Its plan, if it has one that says the same as its orders.

        Raises:
            StrategyError: it fails, or gives no plan [T, N].
        """
        make = getattr(self._strategy, "plan", None)
        if make is None or not newest(self._strategy, "plan"):
            return None
        try:
            plan = make(dataset, environment)
        except FAILURES as error:
            raise self._error(f"its plan fails: {said(error)}") from error
        if plan is None:
            return None
        if not isinstance(plan, Plan):
            raise self._error(f"its plan is {type(plan).__name__}; give a Plan, or None")
        given = {name: array for name, array in plan._asdict().items() if array is not None}
        wrong = self._problem(given, dataset.close.shape)
        if wrong is not None:
            row, why = wrong
            where = "" if row is None else f" of {self._when(row)}"
            raise self._error(f"its plan{where}: {why}")
        return plan

    def _problem(
        self, arrays: dict[str, Any], shape: tuple[int, ...]
    ) -> tuple[int | None, str] | None:
        """The row where one is at fault, and what is wrong with it; None: nothing."""
        for name, array in arrays.items():
            dtype = np.dtype(np.bool_ if name == "hold" else np.float64)
            if not isinstance(array, np.ndarray) or array.shape != shape:
                found = getattr(array, "shape", type(array).__name__)
                return None, f"{name} has shape {found}; {shape} is needed, rows by instruments"
            if array.dtype != dtype:
                return None, f"{name} has dtype {array.dtype}; {dtype} is needed"
            if name == "hold":
                continue
            wrong = array < 0 if name in DISTANCES else ~np.isfinite(array)
            if wrong.any():
                row, instrument = (int(index) for index in np.argwhere(wrong)[0])
                rule = "zero or more, or NaN for none" if name in DISTANCES else "a finite number"
                key = self._dataset.instruments[instrument]
                return row, f"{name} of {key} is {array[row, instrument]}; it must be {rule}"
        return None

    def _when(self, row: int) -> str:
        return f"row {row} ({_utc(self._dataset, row)})"

    def _error(self, what: str) -> StrategyError:
        return StrategyError(f"{self._origin}: {what}.")


def _utc(dataset: Dataset, row: int) -> str:
    return datetime.fromtimestamp(int(dataset.close_ts[row]) / 1000, UTC).isoformat()
