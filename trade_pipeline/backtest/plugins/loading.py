"""Strategies of plug-ins: imported when they are to decide, and not trusted.

One is made in a process of its own first, which it may end or never leave; then it is audited for
look-ahead, and whatever it answers is checked. Every failure is a sentence that names its
distribution and entry point. Start at `load_strategy`.
"""

import json
import sys
from contextlib import redirect_stdout
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trade_pipeline.backtest.plugins.audit import audit_strategy
from trade_pipeline.backtest.plugins.importing import FAILURES, make_strategy, said
from trade_pipeline.backtest.plugins.installed import (
    InstalledStrategy,
    StrategyError,
    find_strategy,
)
from trade_pipeline.backtest.protocol import Plan, Strategy, newest
from trade_pipeline.features.plugins.process import run_child
from trade_pipeline.settings.baselines import PluginBaseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset

LIMIT_S = 60.0
TRY = "trade_pipeline.backtest.plugins.importing:try_strategy"
DISTANCES = ("stop_fraction", "take_fraction")

_TRIED: dict[tuple[InstalledStrategy, str], str | None] = {}
_AUDITED: set[tuple[str, str, str]] = set()


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


class AuditedStrategy(CheckedStrategy):
    """One that is refused when it looks ahead."""

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Audit it, once for each version of a dataset, and start it.

        Raises:
            StrategyError: it looks ahead, or fails.
        """
        key = (self._origin, self.name, dataset.version)
        if not dataset.version or key not in _AUDITED:
            checked = CheckedStrategy(self.name, self._origin, self._strategy)
            found = audit_strategy(checked, dataset, environment)
            if found:
                raise self._error(f"it looks ahead: {found[0]}")
            _AUDITED.add(key)
        super().start(dataset, environment)


def load_strategy(settings: PluginBaseline) -> AuditedStrategy:
    """The strategy of an entry of an experiment's `baselines`.

    Raises:
        SettingsError: there is no such entry point, or its `Parameters` refuse the parameters.
        StrategyError: several have its name, or it cannot be imported or made.
    """
    found = find_strategy(settings.name)
    attempt = (found, json.dumps(settings.parameters, default=str))
    if attempt not in _TRIED:
        _TRIED[attempt] = _failure(found, settings.parameters)
    problem = _TRIED[attempt]
    if problem is not None:
        raise StrategyError(problem)
    # What it prints would stand among what our commands print.
    with redirect_stdout(sys.stderr):
        strategy = make_strategy(found, settings.parameters)
    return AuditedStrategy(settings.label, str(found), strategy)


def _failure(found: InstalledStrategy, parameters: dict[str, Any]) -> str | None:
    """Why it cannot be made in a process of its own; None where it can."""
    ended = run_child(TRY, {"found": found, "parameters": parameters}, LIMIT_S)
    if ended.reports:
        problem: str | None = ended.reports[0]["error"]
        return problem
    if not ended.ready:
        return f"{found}: it could not be tried ({ended}: {ended.printed[-300:].strip()})."
    if ended.out_of_time:
        return f"{found}: importing and making it does not end within {LIMIT_S:.0f} s."
    return f"{found}: importing and making it {ended}."


def _utc(dataset: Dataset, row: int) -> str:
    return datetime.fromtimestamp(int(dataset.close_ts[row]) / 1000, UTC).isoformat()
