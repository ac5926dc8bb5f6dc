"""From what an agent emits to the kernel's orders, one mapping for each kind of action.

Knows nothing of bars or accounts. Start at `mapping_for`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trade_pipeline.settings.environment import (
    BracketActions,
    EnvironmentSettings,
    WeightActions,
)
from trade_pipeline.simulator.compiled import SameTypes, compiled
from trade_pipeline.simulator.market import FloatArray, IntArray
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.randomness import Streams, next_below, next_unit

HOLD, FLAT, LONG, SHORT = range(4)
DIRECTIONS = ("hold", "flat", "long", "short")
ACTION_KEYS = ("direction", "size", "stop_loss", "take_profit")
BOX_TOLERANCE = 1e-6


class ActionError(ValueError):
    """An action is outside its space; `environment` is whose, where it is one alone."""

    def __init__(self, message: str, environment: int | None = None) -> None:
        super().__init__(message)
        self.environment = environment


class Choices(NamedTuple):
    """What an action can ask for, as compiled code reads it.

    Attributes:
        counts: int64 [4] choices of `ACTION_KEYS`; empty where an action is weights.
        sizes: float64 positions as fractions of equity.
        stops: float64 distances from the entry, NaN for none; likewise takes.
        takes: as stops.
        low: float64 [N] bounds of the weights; likewise high.
        high: as low.
    """

    counts: IntArray
    sizes: FloatArray
    stops: FloatArray
    takes: FloatArray
    low: FloatArray
    high: FloatArray


class BracketMapping:
    """Direction, size, stop-loss and take-profit of one instrument as four choices.

    Attributes:
        nvec: int64 [4] number of choices of `ACTION_KEYS`; directions are hold, flat, long and,
            where allowed, short.
        choices: the same for compiled code.
        space: MultiDiscrete over `nvec`, for algorithms.
        dict_space: the same as a Dict of Discrete, for people.
    """

    def __init__(self, actions: BracketActions) -> None:
        directions = len(DIRECTIONS) if actions.short else len(DIRECTIONS) - 1
        lists = (actions.sizes, actions.stops, actions.takes)
        self.nvec = np.array([directions, *(len(listed) for listed in lists)], np.int64)
        sizes, stops, takes = (_fractions(listed) for listed in lists)
        self._decode = SameTypes(_decode_choices)
        self.choices = Choices(self.nvec, sizes, stops, takes, np.zeros(0), np.zeros(0))
        self.space: spaces.Space[Any] = spaces.MultiDiscrete(self.nvec)
        self.dict_space: spaces.Space[Any] = spaces.Dict(
            {key: spaces.Discrete(int(n)) for key, n in zip(ACTION_KEYS, self.nvec, strict=True)}
        )

    def to_orders(self, actions: npt.NDArray[Any], orders: Orders | None = None) -> Orders:
        """Orders of E accounts.

        Args:
            actions: int [E, 4], choices in the order of `ACTION_KEYS`.
            orders: arrays to write into; by default new ones.

        Returns:
            Orders [E, 1].

        Raises:
            ActionError: if a choice is no integer or out of range.
        """
        actions = np.asarray(actions)
        if actions.ndim != 2 or actions.shape[1] != len(ACTION_KEYS):
            raise ActionError(f"actions have shape {actions.shape}; [E, {len(ACTION_KEYS)}] needed")
        if actions.dtype.kind not in "iu":
            raise ActionError(f"actions have dtype {actions.dtype}; choices are integers")
        orders = orders or Orders.room(len(actions), 1)
        wrong = self._decode(self.choices, np.ascontiguousarray(actions, np.int64), orders)
        if wrong >= 0:
            environment, key = divmod(int(wrong), len(ACTION_KEYS))
            raise ActionError(
                f"environment {environment}: {ACTION_KEYS[key]} {actions[environment, key]} must "
                f"lie in [0, {self.nvec[key]})",
                environment,
            )
        return orders

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
    """One target weight an instrument, all with the same brackets or none.

    Attributes:
        low, high: float32 [N] bounds of a weight.
        choices: the same for compiled code.
        space: Box float32 [N] between them.
    """

    def __init__(self, actions: WeightActions, largest: float, instruments: int) -> None:
        lowest = -largest if actions.short else 0.0
        self.low = np.full(instruments, lowest, np.float32)
        self.high = np.full(instruments, largest, np.float32)
        self._decode = SameTypes(_decode_weights)
        self.choices = Choices(
            np.zeros(0, np.int64),
            np.zeros(0),
            _fractions((actions.stop,)),
            _fractions((actions.take,)),
            self.low.astype(np.float64),
            self.high.astype(np.float64),
        )
        self.space: spaces.Space[Any] = spaces.Box(self.low, self.high, dtype=np.float32)

    def to_orders(self, actions: npt.NDArray[Any], orders: Orders | None = None) -> Orders:
        """Orders of E accounts.

        Args:
            actions: float32 [E, N] target weights, signed fractions of equity.
            orders: arrays to write into; by default new ones.

        Returns:
            Orders [E, N].

        Raises:
            ActionError: if a weight is NaN or outside the box by more than 1e-6.
        """
        actions = np.asarray(actions)
        if actions.dtype.kind not in "fiu":
            raise ActionError(f"actions have dtype {actions.dtype}; weights are numbers")
        if actions.ndim != 2 or actions.shape[1] != len(self.low):
            raise ActionError(f"actions have shape {actions.shape}; [E, {len(self.low)}] needed")
        orders = orders or Orders.room(*actions.shape)
        wrong = self._decode(self.choices, np.ascontiguousarray(actions, np.float64), orders)
        if wrong >= 0:
            environment, instrument = divmod(int(wrong), len(self.low))
            raise ActionError(
                f"environment {environment}, instrument {instrument}: weight "
                f"{actions[environment, instrument]} must be a number in "
                f"[{self.low[0]:g}, {self.high[0]:g}]",
                environment,
            )
        return orders

    def sample(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
        """Uniform actions, float32 [count, N]."""
        shape = (count, len(self.low))
        return rng.uniform(self.low, self.high, shape).astype(np.float32)


ActionMapping = BracketMapping | WeightMapping


def mapping_for(settings: EnvironmentSettings, instruments: int) -> ActionMapping:
    """The mapping of an environment's kind of action over N instruments.

    Raises:
        ValueError: if brackets are asked for several instruments.
    """
    if isinstance(settings.actions, WeightActions):
        return WeightMapping(settings.actions, settings.largest_position, instruments)
    if instruments != 1:
        raise ValueError(
            f"actions of kind brackets trade one instrument, the market has {instruments}; "
            "use kind weights"
        )
    return BracketMapping(settings.actions)


@compiled
def order_choice(
    choices: Choices, orders: Orders, e: int, direction: int, size: int, stop: int, take: int
) -> None:
    """The order of account e for four choices."""
    side = 1.0 if direction == LONG else (-1.0 if direction == SHORT else 0.0)
    orders.hold[e, 0] = direction == HOLD
    orders.target_weight[e, 0] = side * choices.sizes[size]
    orders.stop_fraction[e, 0] = choices.stops[stop]
    orders.take_fraction[e, 0] = choices.takes[take]


@compiled
def order_weight(choices: Choices, orders: Orders, e: int, n: int, weight: float) -> None:
    """The order of account e for one instrument's weight, cut to its bounds."""
    orders.hold[e, n] = False
    orders.target_weight[e, n] = min(max(weight, choices.low[n]), choices.high[n])
    orders.stop_fraction[e, n] = choices.stops[0]
    orders.take_fraction[e, n] = choices.takes[0]


@compiled
def _decode_choices(choices: Choices, actions: IntArray, orders: Orders) -> int:
    """Write the orders; the flat index of the first choice out of range, or -1."""
    for e in range(actions.shape[0]):
        wrong = False  # one branch for four choices
        for k in range(len(ACTION_KEYS)):
            wrong |= (actions[e, k] < 0) | (actions[e, k] >= choices.counts[k])
        if wrong:
            for k in range(len(ACTION_KEYS)):
                if actions[e, k] < 0 or actions[e, k] >= choices.counts[k]:
                    return int(e * len(ACTION_KEYS) + k)
        order_choice(choices, orders, e, actions[e, 0], actions[e, 1], actions[e, 2], actions[e, 3])
    return -1


@compiled
def _decode_weights(choices: Choices, actions: FloatArray, orders: Orders) -> int:
    """Write the orders; the flat index of the first weight out of bounds, or -1."""
    for e in range(actions.shape[0]):
        for n in range(actions.shape[1]):
            weight = actions[e, n]
            above = weight >= choices.low[n] - BOX_TOLERANCE  # false for NaN
            if not (above and weight <= choices.high[n] + BOX_TOLERANCE):
                return int(e * actions.shape[1] + n)
            order_weight(choices, orders, e, n, weight)
    return -1


@compiled
def draw_orders(
    choices: Choices, streams: Streams, orders: Orders, e: int, random_position: bool
) -> None:
    """The position that account e begins an episode in: flat, or half of the time at random.

    The other half is a uniformly random action, brackets included.
    """
    if not random_position or next_unit(streams, e) < 0.5:
        orders.hold[e, :] = True
        return
    if choices.counts.shape[0] > 0:
        direction = next_below(streams, e, choices.counts[0])
        size = next_below(streams, e, choices.counts[1])
        stop = next_below(streams, e, choices.counts[2])
        take = next_below(streams, e, choices.counts[3])
        order_choice(choices, orders, e, direction, size, stop, take)
    else:
        for n in range(choices.low.shape[0]):
            span = choices.high[n] - choices.low[n]
            weight = choices.low[n] + span * next_unit(streams, e)
            order_weight(choices, orders, e, n, weight)


def _fractions(choices: tuple[float | None, ...]) -> FloatArray:
    return np.array([np.nan if choice is None else choice for choice in choices], np.float64)


def _choice(key: str, value: Any) -> int:
    """One choice as an integer; 0.7 must not pass as 0, nor NaN as anything."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    choice = np.asarray(value)
    if choice.size != 1 or not np.issubdtype(choice.dtype, np.integer):
        raise ValueError(f"{key} is {value!r}; a choice is one integer")
    return cast(int, choice.item())
