"""Who decides in a backtest: a trained policy, a rule, or a strategy of a plug-in.

A strategy sees rows up to the one it decides on and its account, and answers with orders; fills
and costs are the simulator's. What it must offer stands in `protocol`. Start at `baseline`, which
makes what an experiment lists beside its policies.
"""

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.plugins.installed import StrategyError
from trade_pipeline.backtest.plugins.loading import load_strategy
from trade_pipeline.backtest.protocol import Plan, PlannedRule, PlannedStrategy, Strategy, newest
from trade_pipeline.backtest.rules import RULES
from trade_pipeline.settings.baselines import BaselineSettings, PluginBaseline
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.kernel import Account, Market, Orders, Rules
from trade_pipeline.simulator.observation import observe
from trade_pipeline.simulator.recording import Recorder
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.policy import PolicyError, PolicyRunner

__all__ = [
    "Plan",
    "PlannedRule",
    "PlannedStrategy",
    "PolicyStrategy",
    "Strategy",
    "StrategyError",
    "baseline",
    "newest",
]


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


def baseline(settings: BaselineSettings) -> Strategy:
    """The strategy of one entry of an experiment's `baselines`.

    Raises:
        StrategyError: it is a plug-in that cannot be used.
        SettingsError: there is no plug-in of that name, or it refuses the parameters.
    """
    if isinstance(settings, PluginBaseline):
        return load_strategy(settings)
    rule: Strategy = RULES[type(settings)](settings)
    return rule
