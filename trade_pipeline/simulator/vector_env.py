"""Gymnasium's vector environment over the same simulation as `vec_env`.

Start at `TradingVectorEnv.step`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.market import Market
from trade_pipeline.simulator.simulation import Simulation

Observations = dict[str, npt.NDArray[Any]]


class TradingVectorEnv(VectorEnv[Observations, npt.NDArray[Any], npt.NDArray[Any]]):
    """E accounts over one market; an ended episode is replaced in the same step.

    Actions, observations and rewards are those of `TradingVecEnv`. Infos of a step in which
    episodes ended hold `final_obs` and `final_info`, with masks `_final_obs` and `_final_info`.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar.
        segments: int64 [S, 2] row ranges [a, b) that episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        environments: E.
        seed: of the episodes drawn until `reset(seed=...)` gives another.
        others: `observe`, `threads`, `labels` and `training_rows` of `Simulation`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        environments: int,
        seed: int | Sequence[int] = 0,
        **others: Any,
    ) -> None:
        self.simulation = Simulation(
            market, features, segments, settings, environments, seed, **others
        )
        self._begun = False
        self.num_envs = environments
        self.single_observation_space = self.simulation.observation_space
        self.single_action_space = self.simulation.mapping.space
        self.observation_space = batch_space(self.single_observation_space, environments)
        self.action_space = batch_space(self.single_action_space, environments)

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin all episodes, the first ones cut to random lengths.

        Raises:
            ValueError: if there are options; there are none to give.
        """
        if options:
            raise ValueError(f"unknown options {sorted(options)}; none are known")
        if seed is not None:
            self.simulation.seed(seed)
            first = seed if isinstance(seed, int | np.integer) else seed[0]
            super().reset(seed=int(first))
        self.simulation.begin(staggered=True)
        self._begun = True
        return self.simulation.observe(), {}

    def step(
        self, actions: npt.NDArray[Any]
    ) -> tuple[Observations, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Step every account; accounts whose episode ended are observed in their next one.

        Raises:
            ValueError: if an action is outside the space.
            RuntimeError: if no episode has begun.
        """
        if not self._begun:
            raise RuntimeError("no episode has begun; call reset()")
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments")
        simulation = self.simulation
        simulation.order(actions)
        self._begun = False  # a step that breaks off ends all episodes
        rewards, dones, seen = simulation.advance()
        self._begun = True
        terminated = dones & simulation.episodes["ended_terminated"]
        infos = self._final(dones) if dones.any() else {}
        return seen, rewards, terminated, dones & ~terminated, infos

    def _final(self, dones: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """What there is to say of the episodes that ended."""
        seen = np.full(self.num_envs, None, object)
        episodes = self.simulation.episodes
        for e in np.flatnonzero(dones).tolist():
            _, seen[e] = self.simulation.ended(e)
        length = episodes["ended_row"] - episodes["ended_first"]
        return {
            "final_obs": seen,
            "_final_obs": dones.copy(),
            "final_info": {
                "episode": {
                    "r": np.where(dones, episodes["ended_reward"], 0.0),
                    "l": np.where(dones, length, 0),
                },
                "_episode": dones.copy(),
            },
            "_final_info": dones.copy(),
        }
