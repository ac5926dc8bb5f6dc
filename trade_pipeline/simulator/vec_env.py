"""The Stable-Baselines3 vector environment: E accounts stepped by one compiled call.

Same rules, observations and rewards as `env`, no Python loop over accounts but for the few whose
episode ended. Start at `step_wait`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.market import IntArray, Market
from trade_pipeline.simulator.observation import View
from trade_pipeline.simulator.picture import EpisodeRecord, episode_picture
from trade_pipeline.simulator.simulation import Simulation
from trade_pipeline.simulator.state import Account, Fill, Fills

RENDER_MODES = (None, "rgb_array")


class TradingVecEnv(VecEnv):
    """E accounts over one market, for training.

    Actions are MultiDiscrete (brackets) or Box (weights). An ended episode is replaced at once;
    its info holds `terminal_observation`, `TimeLimit.truncated` and `episode` {r, l}, r without
    `reward_scale`. The other infos are the same empty dictionaries at each step: write nothing
    there. After `reset` the first episodes are cut at random, so that ends are staggered.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar.
        segments: int64 [S, 2] row ranges [a, b) that episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        environments: E.
        seed: of everything random here, or one for each environment.
        reward_scale: rewards are multiplied by this.
        observe: "window" gives windows of features, "index" the row where a window ends: int32
            [1], for a policy that has the features itself.
        threads: that step the accounts; more than one pays from some hundred accounts on.
        render_mode: "rgb_array" keeps each episode, so that `get_images` can draw it.
        others: `labels` and `training_rows` of `Simulation`.
    """

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        environments: int,
        seed: int | Sequence[int],
        reward_scale: float = 1.0,
        observe: View = "window",
        threads: int = 1,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        if render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode {render_mode!r} is unknown; None and 'rgb_array' are")
        self.simulation = Simulation(
            market,
            features,
            segments,
            settings,
            environments,
            seed,
            observe=observe,
            threads=threads,
            **others,
        )
        self.market = market
        self.settings = settings
        self.mapping = self.simulation.mapping
        self.reward_scale = _finite("reward_scale", reward_scale)
        self.metadata = {"render_modes": ["rgb_array"]}
        self.render_mode = render_mode
        self._records = [EpisodeRecord() for _ in range(environments)] if render_mode else []
        self._begun = self._ordered = False
        # Most steps have nothing to say of most environments, and a thousand new dictionaries a
        # step would cost more than the step.
        self._no_infos: list[dict[str, Any]] = [{} for _ in range(environments)]
        super().__init__(environments, self.simulation.observation_space, self.mapping.space)

    @property
    def account(self) -> Account:
        """E accounts; read them, never change them."""
        return self.simulation.account

    @property
    def row(self) -> IntArray:
        """Int64 [E] the last closed row of each."""
        return self.simulation.row

    @property
    def last(self) -> IntArray:
        """Int64 [E] the last decision row of each episode."""
        return self.simulation.episodes["last"]

    @property
    def fills(self) -> Fills:
        """What the last step traded, in episodes that it ended too."""
        return self.simulation.fills

    def reset(self) -> dict[str, npt.NDArray[Any]]:
        """Begin all episodes, the first ones cut to random lengths.

        Raises:
            ValueError: if `set_options` gave options; there are none to give.
        """
        if any(self._options):
            self._reset_options()
            raise ValueError("a vector environment knows no options; TradingEnv takes a segment")
        self.simulation.begin(staggered=True)
        self._begun = True
        for e in range(len(self._records)):
            self._records[e].begin(int(self.row[e]), self.account, e)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self.simulation.observe()

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Take the actions, int64 [E, 4] or float32 [E, N]; refuse those outside the space."""
        if not self._begun:
            raise RuntimeError("no episode has begun; call reset()")
        self._ordered = False  # a refused action leaves orders half written
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} environments")
        self.simulation.order(actions)
        self._ordered = True

    def step_wait(self) -> VecEnvStepReturn:
        """Step every account; accounts whose episode ended are observed in their next one."""
        if not self._ordered:
            raise RuntimeError("step_wait() without actions; call step_async(actions) first")
        self._ordered = self._begun = False  # a step that breaks off ends all episodes
        scaled = np.empty(self.num_envs, np.float32)
        _, dones, seen = self.simulation.advance(scaled, self.reward_scale)
        self._begun = True
        infos = self._no_infos.copy()
        for e in dones.nonzero()[0].tolist():
            infos[e] = self._ended(e)
        if self._records:
            self._remember(dones)
        return seen, scaled, dones, infos

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from where `simulation.arrays()` was read, without a reset."""
        self.simulation.restore(arrays)
        self._begun = True

    def close(self) -> None:
        """Nothing to release."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed all that is drawn from now on; None changes nothing."""
        if seed is not None:
            self.simulation.seed(seed)
        return [seed] * self.num_envs

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """A picture of each environment's episode so far, uint8 [H, W, 3]."""
        if not self._records:
            return [None] * self.num_envs
        return [episode_picture(self.market, record) for record in self._records]

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each `OneAccount` asked for; what it lacks is shared by all."""
        return [getattr(OneAccount(self, e), attr_name) for e in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set `reward_scale` of all, or the fee or slippage scale of some, until an episode ends.

        Raises:
            AttributeError: if it cannot be set, or the environments share it and only some were
                named.
            ValueError: if the value is no number that fits.
        """
        chosen = list(self._get_indices(indices))
        if attr_name in OneAccount.SETTABLE:
            for e in chosen:
                setattr(OneAccount(self, e), attr_name, value)
        elif attr_name != "reward_scale":
            raise AttributeError(
                f"{attr_name} can only be read; reward_scale and {sorted(OneAccount.SETTABLE)} "
                "can be set"
            )
        elif len(chosen) < self.num_envs:
            raise AttributeError("all environments share reward_scale; set it for all of them")
        else:
            self.reward_scale = _finite(attr_name, value)

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Call a method of each `OneAccount` asked for.

        Raises:
            AttributeError: if a single environment has no such method.
        """
        if not callable(getattr(OneAccount, method_name, None)):
            raise AttributeError(
                f"a single environment has no method {method_name}; it has `fills` and `render`"
            )
        return [
            getattr(OneAccount(self, e), method_name)(*method_args, **method_kwargs)
            for e in self._get_indices(indices)
        ]

    def env_is_wrapped(
        self,
        wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]],
        indices: VecEnvIndices = None,
    ) -> list[bool]:
        """No environment is wrapped: there are none to wrap."""
        return [False] * len(list(self._get_indices(indices)))

    def _ended(self, e: int) -> dict[str, Any]:
        """What there is to say of an episode that ended."""
        ended, seen = self.simulation.ended(e)
        return {
            "terminal_observation": seen,
            "TimeLimit.truncated": not ended.terminated,
            "episode": {"r": ended.reward, "l": ended.length},
        }

    def _remember(self, dones: npt.NDArray[np.bool_]) -> None:
        for e, record in enumerate(self._records):
            if dones[e]:  # the account has already begun anew
                record.begin(int(self.row[e]), self.account, e)
            else:
                record.add(float(self.account.equity[e]), self.fills.of(e))


class OneAccount:
    """One environment of a `TradingVecEnv`, for `get_attr`, `set_attr` and `env_method`.

    Attributes that it does not have are those of the vector environment.
    """

    SETTABLE = frozenset({"fee_scale", "slippage_scale"})

    def __init__(self, environments: TradingVecEnv, number: int) -> None:
        self._environments = environments
        self.number = number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"an environment has no attribute {name}")
        return getattr(self._environments, name)

    @property
    def row(self) -> int:
        """The last closed row."""
        return int(self._environments.row[self.number])

    @property
    def last(self) -> int:
        """The last decision row of the running episode."""
        return int(self._environments.last[self.number])

    @property
    def equity(self) -> float:
        """Quote currency, as last marked."""
        return float(self._environments.account.equity[self.number])

    @property
    def account(self) -> Account:
        """A copy of the account, E = 1."""
        return self._environments.account.chosen(np.array([self.number]))

    @property
    def fee_scale(self) -> float:
        """What the fees of the running episode are multiplied by."""
        return float(self._environments.account.fee_scale[self.number])

    @fee_scale.setter
    def fee_scale(self, scale: float) -> None:
        self._environments.account.fee_scale[self.number] = _positive("fee_scale", scale)

    @property
    def slippage_scale(self) -> float:
        """What the slippage of the running episode is multiplied by."""
        return float(self._environments.account.slippage_scale[self.number])

    @slippage_scale.setter
    def slippage_scale(self, scale: float) -> None:
        scale = _positive("slippage_scale", scale)
        rules = self._environments.simulation.rules
        if (rules.slippage + rules.impact) * scale >= 1:
            raise ValueError(f"slippage_scale {scale} leaves a sale no price; keep it smaller")
        self._environments.account.slippage_scale[self.number] = scale

    def fills(self) -> list[Fill]:
        """What the last step traded."""
        return self._environments.fills.of(self.number)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The episode so far; see `TradingVecEnv.get_images`."""
        records = self._environments._records
        return episode_picture(self._environments.market, records[self.number]) if records else None


def _finite(name: str, value: Any) -> float:
    if not isinstance(value, int | float | np.number) or not np.isfinite(value):
        raise ValueError(f"{name} is {value!r}; a finite number is needed")
    return float(value)


def _positive(name: str, scale: Any) -> float:
    if _finite(name, scale) < 0:
        raise ValueError(f"{name} is {scale}; a number of zero or more is needed")
    return float(scale)
