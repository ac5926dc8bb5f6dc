"""What decides in a backtest: a trained policy, or a rule that a policy should beat.

A strategy sees rows up to the one it decides on and its account, and answers with orders; fills
and costs are the simulator's. Start at `Strategy`; `baseline` makes the configured rules.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
from trade_pipeline.simulator.kernel import Account, Market, Orders
from trade_pipeline.simulator.observation import observe
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


class BuyAndHold(EqualWeight):
    """Buys equal weights once and holds; what a slice's end closed is bought again."""

    name = "buy_and_hold"

    def orders(self, row: int, account: Account) -> Orders:
        """Buy what is not held yet: an order expires on a bar without trades."""
        return _orders(self._weights, account.quantity[0] != 0)


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
        self._above = np.zeros(dataset.close.shape, np.bool_)
        for a, b in dataset.segments:
            if b - a < self._slow:
                continue
            # Sums may wrap around; their differences over a window are still exact.
            sums = np.zeros((b - a + 1, ticks.shape[1]), np.int64)
            np.cumsum(ticks[a:b], axis=0, out=sums[1:])
            last = np.arange(self._slow, b - a + 1)
            fast = sums[last] - sums[last - self._fast]
            slow = sums[last] - sums[last - self._slow]
            self._above[a + self._slow - 1 : b] = _above(fast, self._fast, slow, self._slow)

    def orders(self, row: int, account: Account) -> Orders:
        """Enter with the equal weight, keep what is held, leave to flat."""
        above = self._above[row]
        return _orders(np.where(above, self._weights, 0.0), above & (account.quantity[0] > 0))


class RandomActions:
    """Draws a uniform action of the environment each bar."""

    def __init__(self, seed: int) -> None:
        self.name = f"random_{seed}"
        self._seed = seed

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Seed again, so that each backtest draws the same actions."""
        self._generator = np.random.default_rng(self._seed)
        self._mapping = mapping_for(environment, len(dataset.instruments))

    def orders(self, row: int, account: Account) -> Orders:
        """Each choice, or each weight, uniform over what the environment allows."""
        return self._mapping.to_orders(self._mapping.sample(self._generator, 1))


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


def _above(
    fast: NDArray[np.int64], fast_bars: int, slow: NDArray[np.int64], slow_bars: int
) -> NDArray[np.bool_]:
    """Whether `fast / fast_bars > slow / slow_bars`, in whole numbers: no ties by rounding."""
    fast_mean, fast_rest = np.divmod(fast, fast_bars)
    slow_mean, slow_rest = np.divmod(slow, slow_bars)
    nearer: NDArray[np.bool_] = fast_rest * slow_bars > slow_rest * fast_bars
    return np.where(fast_mean == slow_mean, nearer, fast_mean > slow_mean)


def _orders(weights: NDArray[np.float64], hold: NDArray[np.bool_]) -> Orders:
    """Orders [1, N] without brackets."""
    none = np.full((1, len(weights)), np.nan)
    return Orders(weights[None], hold[None], none, none)
