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

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import ActionMapping, BracketMapping, WeightMapping
from trade_pipeline.simulator.episodes import Segments
from trade_pipeline.simulator.kernel import close_out
from trade_pipeline.simulator.market import IntArray, Market
from trade_pipeline.simulator.picture import EpisodeRecord, episode_picture
from trade_pipeline.simulator.simulation import Simulation
from trade_pipeline.simulator.state import Account, Fill, Fills

Observation = dict[str, Any]


class SimulatedEnv(gymnasium.Env[Observation, Any]):
    """One account over a market; subclasses say how an action looks.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar.
        segments: int64 [S, 2] row ranges [a, b) that training episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        seed: of the episodes drawn until `reset(seed=...)` gives another.
        flat_actions: whether `TradingEnv` takes four choices in an array, MultiDiscrete, as
            algorithms do, rather than a Dict.
        render_mode: "rgb_array" keeps the episode, so that `render` can draw it.
        others: `observe`, `labels` and `training_rows` of `Simulation`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    kind: str  # of `settings.actions`
    mapping: ActionMapping

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        seed: int = 0,
        render_mode: str | None = None,
        flat_actions: bool = False,
        **others: Any,
    ) -> None:
        if settings.actions.kind != self.kind:
            raise ValueError(
                f"{type(self).__name__} takes actions of kind {self.kind}, the settings have "
                f"{settings.actions.kind}; TradingEnv is for brackets, PortfolioEnv for weights"
            )
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r} is unknown; None and 'rgb_array' are")
        self.simulation = Simulation(market, features, segments, settings, 1, seed, **others)
        self.market = market
        self.settings = settings
        self.mapping = self.simulation.mapping
        self.render_mode = render_mode
        self._np_random, self._np_random_seed = seeding.np_random(int(seed))
        self.action_space = (
            self.mapping.dict_space
            if isinstance(self.mapping, BracketMapping) and not flat_actions
            else self.mapping.space
        )
        self.observation_space = self.simulation.observation_space
        self._record = EpisodeRecord() if render_mode else None
        self._running = False

    @property
    def account(self) -> Account:
        """The account, E = 1; read it, never change it."""
        return self.simulation.account

    @property
    def row(self) -> IntArray:
        """Int64 [1] the last closed row."""
        return self.simulation.row

    @property
    def fills(self) -> Fills:
        """What the last step traded."""
        return self.simulation.fills

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
        if seed is not None:
            self.simulation.seed(seed)
        options = dict(options or {})
        segment = options.pop("segment", None)
        carried = options.pop("account", None)
        if options:
            raise ValueError(f"unknown options {sorted(options)}; segment and account are known")
        if segment is None:
            if carried is not None:
                raise ValueError("an account is carried into a segment; give options['segment']")
            self.simulation.begin()
        else:
            self._start_segment(segment, carried)
        self._running = True
        if self._record is not None:
            self._record.begin(int(self.row[0]), self.account)
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
        if not self._running:
            raise RuntimeError("the episode has ended or none has begun; call reset()")
        simulation = self.simulation
        try:
            self.mapping.to_orders(self.flat_action(action)[np.newaxis], simulation.orders)
        except ValueError as error:
            raise ValueError(f"row {self.row[0]}: {error}") from None
        self._running = False  # a step that breaks off, in a term of yours, ends the episode
        rewards, dones = simulation.act()
        terminated = bool(self.account.terminated[0])
        truncated = bool(dones[0]) and not terminated
        self._running = not dones[0]
        info = self._info()
        if self._record is not None:
            self._record.add(info["equity"], info["fills"])
        return self._observe(), float(rewards[0]), terminated, truncated, info

    def close_out(self) -> list[Fill]:
        """Close every position at the close of the last row, as at a slice's end."""
        close_out(self.account, self.market, self.row, self.simulation.rules, self.fills)
        return self.fills.of(0)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The episode so far, uint8 [H, W, 3]: prices with fills, and equity; None without mode."""
        if self._record is None:
            return None
        return episode_picture(self.market, self._record)

    def _start_segment(self, segment: tuple[int, int], carried: Account | None) -> None:
        simulation = self.simulation
        window = self.settings.window
        chosen = Segments(np.array([segment]))
        chosen.check(window, self.market.rows)
        account = carried
        if account is None:
            account = Account.start(1, self.market.instruments, self.settings.initial_equity)
        if not isinstance(account, Account):
            raise ValueError(f"options['account'] is a {type(account).__name__}, not an Account")
        account.check()
        if account.terminated.any():
            raise ValueError("the account carried is ruined; there is nothing to go on with")
        first, last = chosen.decisions(window)[0]
        simulation.go_on(account, int(first), int(last))

    def _observe(self) -> Observation:
        return {name: values[0] for name, values in self.simulation.observe().items()}

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

    def flat_action(self, action: Any) -> npt.NDArray[Any]:
        """The four choices, int64 [4], of a Dict action, or as they are."""
        return self.mapping.from_dict(action) if isinstance(action, Mapping) else np.asarray(action)


class PortfolioEnv(SimulatedEnv):
    """Any number of instruments; Box action of target weights, float32 [N]."""

    kind = "weights"
    mapping: WeightMapping
