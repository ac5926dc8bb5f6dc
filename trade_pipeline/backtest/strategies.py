"""What decides in a backtest: a trained policy, or a rule that a policy should beat.

A strategy sees rows up to the one it decides on and its account, and answers with orders; fills
and costs are the simulator's. Start at `Strategy`; `baseline` makes the configured rules.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.crossing import find_above
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.settings.experiment import (
    BaselineSettings,
    BuyAndHoldBaseline,
    EqualWeightBaseline,
    FlatBaseline,
    RandomBaseline,
    SmaCrossBaseline,
)
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.kernel import Account, Market, Orders, Rules
from trade_pipeline.simulator.observation import observe
from trade_pipeline.simulator.recording import Recorder
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyError, PolicyRunner

# Averages are compared in whole ticks of this part of a price: sums of floats tie by accident.
TICKS_PER_UNIT = 1e8


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
        hold: bool [T, N] keep a position as it is; what is not held is traded to its weight, which
            is 0 where nothing is to be bought.
        stop_fraction: float64 [T, N] stop distance as a fraction of the entry, NaN for none; None
            is no stop at all.
        take_fraction: float64 [T, N] likewise for the take-profit.
    """

    weights: NDArray[np.float64]
    hold: NDArray[np.bool_]
    stop_fraction: NDArray[np.float64] | None = None
    take_fraction: NDArray[np.float64] | None = None


@runtime_checkable
class PlannedStrategy(Strategy, Protocol):
    """A rule whose orders can be given ahead: its backtest runs in compiled code.

    Both ways give the same backtest, bit for bit. Who overrides `orders` overrides `plan`, too;
    a plan that is older than the orders is not used.
    """

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan | None:
        """The orders of every row; None to be asked bar by bar. Called after `start`."""


class PolicyStrategy:
    """A trained policy, through the one inference path."""

    def __init__(self, runner: PolicyRunner, name: str = "policy") -> None:
        self.name = name
        self._runner = runner
        self._market: Market
        self._features: NDArray[np.float32]

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Scale the dataset's features once.

        Raises:
            PolicyError: the policy was trained on other features, window or actions.
        """
        trained = self._runner.specification
        for name, here, there in (
            ("window", environment.window, trained["observation"]["window"]),
            (
                "actions",
                environment.actions.model_dump(mode="json"),
                trained["configuration"]["environment"]["actions"],
            ),
        ):
            if here != there:
                raise PolicyError(
                    f"the policy was trained with {name} {there}, but the environment has {here}; "
                    "backtest it in an environment with its own."
                )
        self._features = self._runner.features(dataset)
        self._last_row = -2  # before any row that follows another
        self._market = dataset.market
        self._rules = Rules.of(environment, len(dataset.instruments))
        self._mapping = mapping_for(environment, len(dataset.instruments))
        self._window = environment.window

    def orders(self, row: int, account: Account) -> Orders:
        """The policy's best action."""
        # No slice begins on the row after another one's last decision: a window lies between.
        if row != self._last_row + 1:
            self._runner.reset()
        self._last_row = row
        seen = observe(account, self._market, self._features, np.array([row]), self._window)
        action = self._runner.act({name: values[0] for name, values in seen.items()})
        return self._mapping.to_orders(action[None])

    def trade(self, account: Account, rows: tuple[int, int], recorder: Recorder) -> None:
        """All decisions of a slice, from the first row to before the last, in compiled code."""
        self._runner.reset()
        self._runner.trade(
            account, self._market, self._features, rows, self._rules, self._mapping, recorder
        )


class Flat:
    """Never trades."""

    name = "flat"

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Remember how many instruments there are."""
        self._instruments = len(dataset.instruments)

    def orders(self, row: int, account: Account) -> Orders:
        """Hold nothing."""
        nothing = np.zeros(self._instruments)
        return _orders(nothing, nothing == 0)

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """No weight anywhere."""
        nothing = np.zeros(self._instruments)
        return _every_row(dataset, nothing, nothing == 0)


class EqualWeight:
    """Rebalances to equal weights each bar."""

    name = "equal_weight"

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Weights add up to all equity, or to the leverage cap where that is lower."""
        instruments = len(dataset.instruments)
        self._weights = np.full(instruments, min(1.0, environment.max_leverage) / instruments)

    def orders(self, row: int, account: Account) -> Orders:
        """The same weights on every bar."""
        return _orders(self._weights, np.zeros(len(self._weights), np.bool_))

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The same weights on every row."""
        return _every_row(dataset, self._weights, np.zeros(len(self._weights), np.bool_))


class BuyAndHold(EqualWeight):
    """Buys equal weights once and holds; what a slice's end closed is bought again."""

    name = "buy_and_hold"

    def orders(self, row: int, account: Account) -> Orders:
        """Buy what is not held yet: an order expires on a bar without trades."""
        return _orders(self._weights, account.quantity[0] != 0)

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The same weights on every row, for what is not held."""
        return _every_row(dataset, self._weights, np.ones(len(self._weights), np.bool_))


class SmaCross(EqualWeight):
    """Long while the fast average of closes is above the slow one, otherwise flat.

    Averages reach back as far as the data has no gap, also before the test part begins; where
    that is less than the slow average needs, the position is flat.
    """

    def __init__(self, fast: int, slow: int) -> None:
        self.name = f"sma_cross_{fast}_{slow}"
        self._fast, self._slow = fast, slow

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Find the bars on which each instrument is to be held, from closes up to each bar."""
        super().start(dataset, environment)
        ticks = np.rint(dataset.close * TICKS_PER_UNIT).astype(np.int64)
        self._above = np.zeros(ticks.shape, np.bool_)
        for a, b in dataset.segments.tolist():
            find_above(ticks[a:b], self._fast, self._slow, self._above[a:b])

    def orders(self, row: int, account: Account) -> Orders:
        """Enter with the equal weight, keep what is held, leave to flat."""
        above = self._above[row]
        return _orders(np.where(above, self._weights, 0.0), above & (account.quantity[0] > 0))

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The equal weight while above, kept as it is, otherwise none."""
        return Plan(np.where(self._above, self._weights, 0.0), self._above)


class RandomActions:
    """Draws a uniform action of the environment each bar."""

    def __init__(self, seed: int) -> None:
        self.name = f"random_{seed}"
        self._seed = seed

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Draw an action for every row: each backtest, whatever its part, sees the same ones."""
        mapping = mapping_for(environment, len(dataset.instruments))
        generator = np.random.default_rng(self._seed)
        self._drawn = mapping.to_orders(mapping.sample(generator, len(dataset.ts)))

    def orders(self, row: int, account: Account) -> Orders:
        """Each choice, or each weight, uniform over what the environment allows."""
        return Orders._make(array[row : row + 1] for array in self._drawn)

    def plan(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """What was drawn; the weight of an action to hold is 0, which leaves what is flat flat."""
        return Plan(*self._drawn)


def baseline(settings: BaselineSettings) -> Strategy:
    """The strategy of one entry of an experiment's `baselines`."""
    match settings:
        case FlatBaseline():
            return Flat()
        case BuyAndHoldBaseline():
            return BuyAndHold()
        case EqualWeightBaseline():
            return EqualWeight()
        case RandomBaseline():
            return RandomActions(settings.seed)
        case SmaCrossBaseline():
            return SmaCross(settings.fast, settings.slow)


def _every_row(dataset: Dataset, weights: NDArray[np.float64], hold: NDArray[np.bool_]) -> Plan:
    """The same orders [N] on all rows, stored once."""
    shape = dataset.close.shape
    return Plan(np.broadcast_to(weights, shape), np.broadcast_to(hold, shape))


def _orders(weights: NDArray[np.float64], hold: NDArray[np.bool_]) -> Orders:
    """Orders [1, N] without brackets."""
    none = np.full((1, len(weights)), np.nan)
    return Orders(weights[None], hold[None], none, none)
