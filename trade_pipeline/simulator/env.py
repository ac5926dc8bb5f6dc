"""Gymnasium environments over the kernel with one account.

`TradingEnv` trades one instrument with brackets, `PortfolioEnv` any number by weights. By default
`reset` draws a training episode; with `options={"segment": (a, b)}` it runs that slice whole, as a
backtest does. They know nothing of where data come from. Start at `reset` and `step` of
`SimulatedEnv`.
"""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding

from trade_pipeline.settings.experiment import EnvironmentSettings
from trade_pipeline.simulator.actions import (
    ActionMapping,
    BracketMapping,
    WeightMapping,
    mapping_for,
)
from trade_pipeline.simulator.episodes import Segments, sample_starts, starting_orders
from trade_pipeline.simulator.kernel import (
    Account,
    Fill,
    Fills,
    IntArray,
    Market,
    Rules,
    close_out,
    restart,
    step,
)
from trade_pipeline.simulator.observation import (
    checked_features,
    observation_space,
    observe,
)
from trade_pipeline.simulator.rewards import reward

Observation = dict[str, Any]


class SimulatedEnv(gymnasium.Env[Observation, Any]):
    """One account over a market; subclasses say how an action looks.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar.
        segments: int64 [S, 2] row ranges [a, b) that training episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        seed: of the episodes drawn until `reset(seed=...)` gives another.

    Attributes:
        account: the account, E = 1; read it, never change it.
        row: int64 [1] the last closed row.
        fills: what the last step traded.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's declaration
    kind: str  # of `settings.actions`
    mapping: ActionMapping

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        seed: int = 0,
    ) -> None:
        if settings.actions.kind != self.kind:
            raise ValueError(
                f"{type(self).__name__} takes actions of kind {self.kind}, the settings have "
                f"{settings.actions.kind}; TradingEnv is for brackets, PortfolioEnv for weights"
            )
        self.market = market
        self.settings = settings
        self.rules = Rules.of(settings)
        self.mapping = mapping_for(settings.actions, market.instruments)
        self._features = checked_features(features, market)
        self._segments = Segments(segments)
        self._segments.check(settings.window, market.rows)
        self._np_random, self._np_random_seed = seeding.np_random(seed)
        self.action_space = (
            self.mapping.dict_space
            if isinstance(self.mapping, BracketMapping)
            else self.mapping.space
        )
        self.observation_space = observation_space(
            settings.window, self._features.shape[1], market.instruments
        )
        self.account = Account.start(1, market.instruments, settings.initial_equity)
        self.fills = Fills.empty(1, market.instruments)
        self.row: IntArray = np.zeros(1, np.int64)
        self._last = -1

    def flat_action(self, action: Any) -> npt.NDArray[Any]:
        """The action as the mapping takes it, one row of `to_orders`."""
        return np.asarray(action)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of this and the following training episodes.
            options: `segment`: (a, b) runs exactly those rows, starting flat, without a cap on
                their number; `account`: an Account with E = 1 to carry on with (copied).

        Returns:
            The first observation, and info as from `step`.

        Raises:
            ValueError: if an option is unknown or does not fit.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        segment = options.pop("segment", None)
        carried = options.pop("account", None)
        if options:
            raise ValueError(f"unknown options {sorted(options)}; segment and account are known")
        if segment is None:
            if carried is not None:
                raise ValueError("an account is carried into a segment; give options['segment']")
            self._start_training_episode()
        else:
            self._start_segment(segment, carried)
        self.fills.count[:] = 0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Act on the closed row and see the next one close.

        Returns:
            Observation, reward, whether the account is ruined, whether the episode's rows are
            used up, and info: `equity` (quote currency), `fills` (list of Fill), `row`.

        Raises:
            ValueError: if the action is outside the action space.
            RuntimeError: if the episode has ended or none has begun.
        """
        if self.row[0] > self._last:
            raise RuntimeError("the episode has ended or none has begun; call reset()")
        orders = self.mapping.to_orders(self.flat_action(action)[np.newaxis])
        equity_before = self.account.equity.copy()
        step(self.account, self.market, self.row, orders, self.rules, self.fills)
        self.row += 1
        gained = reward(self.settings.reward, self.account, equity_before, self.market, self.row)
        terminated = bool(self.account.terminated[0])
        truncated = not terminated and bool(self.row[0] > self._last)
        if terminated:
            self._last = -1
        return self._observe(), float(gained[0]), terminated, truncated, self._info()

    def close_out(self) -> list[Fill]:
        """Close every position at the close of the last row, as at a slice's end."""
        close_out(self.account, self.market, self.row, self.rules, self.fills)
        return self.fills.of(0)

    def _start_training_episode(self) -> None:
        window, rng = self.settings.window, self.np_random
        first, last = sample_starts(rng, self._segments, window, self.settings.episode_bars, 1)
        orders = starting_orders(self.mapping, rng, 1, self.settings.random_start_position)
        equity = self.settings.initial_equity
        restart(self.account, self.market, np.zeros(1, int), first, orders, self.rules, equity)
        self.row, self._last = first, int(last[0])

    def _start_segment(self, segment: tuple[int, int], carried: Account | None) -> None:
        chosen = Segments(np.array([segment]))
        chosen.check(self.settings.window, self.market.rows)
        start = Account.start(1, self.market.instruments, self.settings.initial_equity)
        self.account = start if carried is None else carried.copy()
        if self.account.positions.shape != start.positions.shape:
            raise ValueError(
                f"the account carried has shape {self.account.positions.shape}; "
                f"{start.positions.shape} is expected"
            )
        if self.account.terminated[0]:
            raise ValueError("the account carried is ruined; there is nothing to go on with")
        first, last = chosen.decisions(self.settings.window)[0]
        self.row, self._last = np.array([first], np.int64), int(last)

    def _observe(self) -> Observation:
        observed = observe(
            self.account, self.market, self._features, self.row, self.settings.window
        )
        return {name: values[0] for name, values in observed.items()}

    def _info(self) -> dict[str, Any]:
        return {
            "equity": float(self.account.equity[0]),
            "fills": self.fills.of(0),
            "row": int(self.row[0]),
        }


class TradingEnv(SimulatedEnv):
    """One instrument; Dict action {direction, size, stop_loss, take_profit} of choices."""

    kind = "brackets"
    mapping: BracketMapping

    def flat_action(self, action: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """The four choices, int64 [4]."""
        return self.mapping.from_dict(action)


class PortfolioEnv(SimulatedEnv):
    """Any number of instruments; Box action of target weights, float32 [N]."""

    kind = "weights"
    mapping: WeightMapping
