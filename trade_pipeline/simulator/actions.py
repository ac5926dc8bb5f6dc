"""From what an agent emits to the kernel's orders, one mapping for each kind of action.

Knows nothing of bars or accounts. Start at `mapping_for`.
"""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trade_pipeline.settings.experiment import ActionSettings, BracketActions, WeightActions
from trade_pipeline.simulator.kernel import Orders

HOLD, FLAT, LONG, SHORT = range(4)
DIRECTIONS = ("hold", "flat", "long", "short")
ACTION_KEYS = ("direction", "size", "stop_loss", "take_profit")
BOX_TOLERANCE = 1e-6


class BracketMapping:
    """Direction, size, stop-loss and take-profit of one instrument as four choices.

    Attributes:
        nvec: int64 [4] number of choices of `ACTION_KEYS`; directions are hold, flat, long and,
            where allowed, short.
        space: MultiDiscrete over `nvec`, for algorithms.
        dict_space: the same as a Dict of Discrete, for people.
    """

    def __init__(self, actions: BracketActions) -> None:
        self._sizes = np.array(actions.sizes, np.float64)
        self._stops = _fractions(actions.stops)
        self._takes = _fractions(actions.takes)
        directions = len(DIRECTIONS) if actions.short else len(DIRECTIONS) - 1
        self.nvec = np.array(
            [directions, len(self._sizes), len(self._stops), len(self._takes)], np.int64
        )
        self.space: spaces.Space[Any] = spaces.MultiDiscrete(self.nvec)
        self.dict_space: spaces.Space[Any] = spaces.Dict(
            {key: spaces.Discrete(int(n)) for key, n in zip(ACTION_KEYS, self.nvec, strict=True)}
        )

    def to_orders(self, actions: npt.NDArray[Any]) -> Orders:
        """Orders of E accounts.

        Args:
            actions: int [E, 4], choices in the order of `ACTION_KEYS`.

        Returns:
            Orders [E, 1].

        Raises:
            ValueError: if a choice is no integer or out of range.
        """
        actions = np.asarray(actions)
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_KEYS):
            raise ValueError(f"actions have shape {actions.shape}; [E, {len(ACTION_KEYS)}] needed")
        if not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions have dtype {actions.dtype}; choices are integers")
        wrong = (actions < 0) | (actions >= self.nvec)
        if wrong.any():
            environment, key = (int(index) for index in np.argwhere(wrong)[0])
            raise ValueError(
                f"environment {environment}: {ACTION_KEYS[key]} {actions[environment, key]} must "
                f"lie in [0, {self.nvec[key]})"
            )
        direction = actions[:, :1]
        side = (direction == LONG) * 1.0 - (direction == SHORT) * 1.0
        return Orders(
            target_weight=side * self._sizes[actions[:, 1:2]],
            hold=direction == HOLD,
            stop_fraction=self._stops[actions[:, 2:3]],
            take_fraction=self._takes[actions[:, 3:4]],
        )

    def sample(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        """Uniform actions, int64 [count, 4]."""
        return rng.integers(0, self.nvec, (count, len(self.nvec)))

    def from_dict(self, action: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """The flat action, int64 [4], of a Dict action."""
        if set(action) != set(ACTION_KEYS):
            raise ValueError(f"the action has keys {sorted(action)}; {ACTION_KEYS} are needed")
        return np.array([_choice(key, action[key]) for key in ACTION_KEYS], np.int64)

    def to_dict(self, action: npt.NDArray[np.int64]) -> dict[str, np.int64]:
        """The Dict action of a flat one, int64 [4]."""
        return dict(zip(ACTION_KEYS, np.asarray(action, np.int64), strict=True))


class WeightMapping:
    """One target weight an instrument, without brackets.

    Attributes:
        space: Box float32 [N], [0, 1] or with shorts [-1, 1].
    """

    def __init__(self, actions: WeightActions, instruments: int) -> None:
        self._instruments = instruments
        self.low = np.full(instruments, -1.0 if actions.short else 0.0, np.float32)
        self.high = np.ones(instruments, np.float32)
        self.space: spaces.Space[Any] = spaces.Box(self.low, self.high, dtype=np.float32)

    def to_orders(self, actions: npt.NDArray[Any]) -> Orders:
        """Orders of E accounts.

        Args:
            actions: float32 [E, N] target weights, signed fractions of equity.

        Returns:
            Orders [E, N].

        Raises:
            ValueError: if a weight is NaN or outside the box by more than 1e-6.
        """
        weights = np.array(actions, np.float64)
        if weights.ndim != 2 or weights.shape[1] != self._instruments:
            raise ValueError(f"actions have shape {weights.shape}; [E, {self._instruments}] needed")
        inside = (weights >= self.low - BOX_TOLERANCE) & (weights <= self.high + BOX_TOLERANCE)
        if not inside.all():
            environment, instrument = (int(index) for index in np.argwhere(~inside)[0])
            raise ValueError(
                f"environment {environment}, instrument {instrument}: weight "
                f"{weights[environment, instrument]} must be a number in "
                f"[{self.low[0]:g}, {self.high[0]:g}]"
            )
        none = np.full(weights.shape, np.nan)
        return Orders(
            target_weight=np.clip(weights, self.low, self.high),
            hold=np.zeros(weights.shape, np.bool_),
            stop_fraction=none,
            take_fraction=none,
        )

    def sample(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
        """Uniform actions, float32 [count, N]."""
        shape = (count, self._instruments)
        return rng.uniform(self.low, self.high, shape).astype(np.float32)


ActionMapping = BracketMapping | WeightMapping


def mapping_for(actions: ActionSettings, instruments: int) -> ActionMapping:
    """The mapping of a kind of action over N instruments.

    Raises:
        ValueError: if brackets are asked for several instruments.
    """
    if isinstance(actions, WeightActions):
        return WeightMapping(actions, instruments)
    if instruments != 1:
        raise ValueError(
            f"actions of kind brackets trade one instrument, the market has {instruments}; "
            "use kind weights"
        )
    return BracketMapping(actions)


def _fractions(choices: tuple[float | None, ...]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if choice is None else choice for choice in choices], np.float64)


def _choice(key: str, value: Any) -> int:
    """One choice as an integer; 0.7 must not pass as 0, nor NaN as anything."""
    choice = np.asarray(value)
    if choice.size != 1 or not np.issubdtype(choice.dtype, np.integer):
        raise ValueError(f"{key} is {value!r}; a choice is one integer")
    return cast(int, choice.item())
