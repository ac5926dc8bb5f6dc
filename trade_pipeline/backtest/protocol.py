"""What a strategy is: who decides in a backtest has these methods, wherever it comes from.

Knows no rule and no policy. Start at `Strategy`, and derive from `PlannedRule` to write a rule.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.kernel import Account, Orders
from trade_pipeline.training.dataset import Dataset


class Strategy(Protocol):
    """Decides on the close of a row. `name` is how reports call it."""

    name: str

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Called once before each backtest; forgets what an earlier one left."""

    def orders(self, row: int, account: Account) -> Orders:
        """Orders [1, N] on the close of `row`; `account` holds one account and is only read."""


class Plan(NamedTuple):
    """What a rule wants on the close of every row of a dataset, known ahead of any fill.

    Attributes:
        weights: float64 [T, N] signed fraction of equity to trade to, finite.
        hold: bool [T, N] keep a position as it is, unless the weight is of the other sign; what is
            not held is traded to its weight, which is 0 where nothing is to be bought.
        stop_fraction: float64 [T, N] stop distance as a fraction of the entry, NaN for none; None
            is no stop at all.
        take_fraction: float64 [T, N] likewise for the take-profit.
        band: float64 [T, N] a position is only kept while its weight, at the close, is off by at
            most this share of the row's weight; NaN, or None at all: however far off it is.
    """

    weights: NDArray[np.float64]
    hold: NDArray[np.bool_]
    stop_fraction: NDArray[np.float64] | None = None
    take_fraction: NDArray[np.float64] | None = None
    band: NDArray[np.float64] | None = None

    def orders(self, row: int, account: Account, close: NDArray[np.float64]) -> Orders:
        """The orders [1, N] of a row for what one account holds, at closes [N]."""
        weights, held = self.weights[row], account.quantity[0]
        keeps = self.hold[row] & (held != 0) & (weights * held >= 0)
        if self.band is not None:
            off = np.abs(weights - held * close / account.equity[0])
            keeps &= ~(off > self.band[row] * np.abs(weights))  # kept where the band is NaN
        none = np.full((1, len(held)), np.nan)
        stop, take = self.stop_fraction, self.take_fraction
        return Orders(
            weights[None],
            keeps[None],
            none if stop is None else stop[row][None],
            none if take is None else take[row][None],
        )


@runtime_checkable
class PlannedStrategy(Strategy, Protocol):
    """A rule whose orders can be given ahead: its backtest runs in compiled code.

    Both ways give the same backtest, bit for bit. Who overrides `orders` overrides `plan`, too;
    a plan that is older than the orders is not used.
    """

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
        """The orders of every row; None to be asked bar by bar. Called after `start`."""


class PlannedRule(ABC):
    """A rule that is written as one function, `decide`; its orders are those of its plan."""

    name: str

    @abstractmethod
    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """What is wanted on the close of each row, from rows up to it alone."""

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Decide on every row."""
        self._plan = self.decide(dataset, environment)
        self._close = dataset.close

    def orders(self, row: int, account: Account) -> Orders:
        """The plan's orders."""
        return self._plan.orders(row, account, self._close[row])

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """What was decided."""
        return self._plan


def newest(strategy: Strategy, name: str) -> bool:
    """Whether a class that defines `orders` anew defines the method of that name, too."""
    for one in type(strategy).__mro__:
        if name in vars(one):
            return True
        if "orders" in vars(one):
            return False
    return False
