"""The Stable-Baselines3 vector environment: E accounts stepped by one kernel call.

Same rules, observations and rewards as `env`, no Python loop over accounts but for the few whose
episode ended. Start at `step_wait`.
"""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from trade_pipeline.settings.experiment import EnvironmentSettings
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.episodes import Segments, sample_starts, starting_orders
from trade_pipeline.simulator.kernel import (
    Account,
    Fills,
    FloatArray,
    IntArray,
    Market,
    Orders,
    Rules,
    restart,
    step,
)
from trade_pipeline.simulator.observation import (
    Float32Array,
    checked_features,
    observation_space,
    observe,
)
from trade_pipeline.simulator.rewards import reward


class TradingVecEnv(VecEnv):
    """E accounts over one market, for training.

    Actions are MultiDiscrete (brackets) or Box (weights). An ended episode is replaced at once;
    its info holds `terminal_observation`, `TimeLimit.truncated` and `episode` {r, l}, r without
    `reward_scale`. After `reset` the first episodes are cut at random, so that ends are staggered.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar.
        segments: int64 [S, 2] row ranges [a, b) that episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        environments: E.
        seed: of everything random here.
        reward_scale: rewards are multiplied by this.

    Attributes:
        account: E accounts; read them, never change them.
        row: int64 [E] the last closed row of each.
        fills: what the last step traded, in episodes that it ended too.
    """

    render_mode: str | None = None

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        environments: int,
        seed: int,
        reward_scale: float = 1.0,
    ) -> None:
        self.market = market
        self.settings = settings
        self.rules = Rules.of(settings)
        self.mapping = mapping_for(settings.actions, market.instruments)
        self.reward_scale = reward_scale
        self._features = checked_features(features, market)
        self._segments = Segments(segments)
        self._segments.check(settings.window, market.rows)
        self._rng = np.random.default_rng(seed)
        self.account = Account.start(environments, market.instruments, settings.initial_equity)
        self.fills = Fills.empty(environments, market.instruments)
        self.row: IntArray = np.zeros(environments, np.int64)
        self.last: IntArray = np.zeros(environments, np.int64)
        self._first: IntArray = np.zeros(environments, np.int64)
        self._returns: FloatArray = np.zeros(environments)
        self._orders: Orders | None = None
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(environments)]
        super().__init__(
            environments,
            observation_space(settings.window, self._features.shape[1], market.instruments),
            self.mapping.space,
        )

    def reset(self) -> dict[str, Float32Array]:
        """Begin all episodes, the first ones cut to random lengths."""
        everyone = np.arange(self.num_envs)
        self._begin(everyone)
        self.last = self._rng.integers(self.row, self.last + 1)
        self.fills.count[:] = 0
        return self._observe(everyone)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take the actions, int64 [E, 4] or float32 [E, N]; refuse those outside the space."""
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments")
        self._orders = self.mapping.to_orders(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Step every account; accounts whose episode ended are observed in their next one."""
        if self._orders is None:
            raise RuntimeError("step_wait() without actions; call step_async(actions) first")
        equity_before = self.account.equity.copy()
        step(self.account, self.market, self.row, self._orders, self.rules, self.fills)
        self._orders = None
        self.row += 1
        rewards = reward(self.settings.reward, self.account, equity_before, self.market, self.row)
        self._returns += rewards
        dones = self.account.terminated | (self.row > self.last)
        infos = list(self._no_infos)
        ended = np.flatnonzero(dones)
        if ended.size:
            self._end(ended, infos)
            self._begin(ended)
        scaled = (rewards * self.reward_scale).astype(np.float32)
        return self._observe(np.arange(self.num_envs)), scaled, dones, infos

    def close(self) -> None:
        """Nothing to release."""

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seed what follows, from the next reset on; None changes nothing."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of this object, once for each environment asked."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of this object, which all environments share."""
        setattr(self, attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of this object once; its result for each environment asked."""
        result = getattr(self, method_name)(*method_args, **method_kwargs)
        return [result] * len(list(self._get_indices(indices)))

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """No environment is wrapped: there are none to wrap."""
        return [False] * len(list(self._get_indices(indices)))

    def _begin(self, index: IntArray) -> None:
        """Draw new episodes for some accounts."""
        settings, count = self.settings, len(index)
        first, last = sample_starts(
            self._rng, self._segments, settings.window, settings.episode_bars, count
        )
        orders = starting_orders(self.mapping, self._rng, count, settings.random_start_position)
        equity = settings.initial_equity
        restart(self.account, self.market, index, first, orders, self.rules, equity)
        self.row[index] = self._first[index] = first
        self.last[index] = last
        self._returns[index] = 0.0

    def _end(self, index: IntArray, infos: list[dict[str, Any]]) -> None:
        """Tell what ended, before the accounts begin anew."""
        final = self._observe(index)
        for k, e in enumerate(index.tolist()):
            infos[e] = {
                "terminal_observation": {name: values[k] for name, values in final.items()},
                "TimeLimit.truncated": not bool(self.account.terminated[e]),
                "episode": {
                    "r": float(self._returns[e]),
                    "l": int(self.row[e] - self._first[e]),
                },
            }

    def _observe(self, index: IntArray) -> dict[str, Float32Array]:
        account = self.account
        if len(index) < self.num_envs:
            account = Account(account.balances[index], account.positions[index])
        return observe(account, self.market, self._features, self.row[index], self.settings.window)
