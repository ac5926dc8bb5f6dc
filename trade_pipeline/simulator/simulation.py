"""E accounts over one market: episodes drawn, orders carried out, rewards and observations given.

The environments of all frameworks are thin faces of this. One compiled call steps all accounts,
on one thread or several; an account's course depends on its own orders and its own random stream
alone, so the number of accounts and of threads never changes it. Start at `Simulation`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import ActionError, Choices, mapping_for
from trade_pipeline.simulator.compiled import config, resolved
from trade_pipeline.simulator.episodes import EPISODE, Segments, Starts, starts_of
from trade_pipeline.simulator.kernel import check_account
from trade_pipeline.simulator.lanes import room
from trade_pipeline.simulator.market import BoolArray, FloatArray, IntArray, Market
from trade_pipeline.simulator.observation import (
    MOST_ROWS,
    Float32Array,
    View,
    account_columns,
    checked_features,
    observation_space,
)
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.randomness import streams
from trade_pipeline.simulator.rewards import MEMORY, Reward
from trade_pipeline.simulator.rules import Rules
from trade_pipeline.simulator.state import Account, Fills
from trade_pipeline.simulator.stepping import (
    Seen,
    State,
    World,
    act_all,
    advance_all,
    advance_all_on_threads,
    begin_all,
    observe_all,
    renew_all,
)


class Ended(NamedTuple):
    """An episode that ended: sum of rewards, number of steps, whether the account was ruined."""

    reward: float
    length: int
    terminated: bool


class Simulation:
    """E accounts over one market.

    Args:
        market: the bars, N instruments.
        features: float32 [T, N*F], finite, one row a bar; shared, so leave them as they are.
        segments: int64 [S, 2] row ranges [a, b) that training episodes are drawn from.
        settings: window, costs, limits, actions, reward.
        environments: E.
        seed: of everything random here, or one for each environment.
        observe: whether an observation holds the window of features or the index of its last row.
        threads: that step the accounts; more than one pays from some hundred accounts on.
        labels: [T] whole numbers, for stratified starts.
        training_rows: int64 [K, 2] rows that the reward's statistics are fitted on; by default
            `segments`.

    Attributes:
        account: E accounts; read them, never change them.
        row: int64 [E] the last closed row of each.
        fills: what the last step traded, in episodes that it ended too.
        orders: room for what the accounts want; `mapping.to_orders` writes it.
    """

    def __init__(
        self,
        market: Market,
        features: npt.NDArray[np.float32],
        segments: npt.NDArray[np.int64],
        settings: EnvironmentSettings,
        environments: int = 1,
        seed: int | Sequence[int] = 0,
        observe: View = "window",
        threads: int = 1,
        labels: npt.NDArray[Any] | None = None,
        training_rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        for name, number in (("environments", environments), ("threads", threads)):
            if not isinstance(number, int | np.integer) or number < 1:
                raise ValueError(f"{name} is {number!r}; a whole number of at least 1 is needed")
        if not 1 <= threads <= config.NUMBA_NUM_THREADS:
            raise ValueError(f"{threads} threads; this machine has 1 to {config.NUMBA_NUM_THREADS}")
        if observe not in get_args(View):
            raise ValueError(f"observe is {observe!r}; it is one of {', '.join(get_args(View))}")
        if observe == "index" and market.rows > MOST_ROWS:
            raise ValueError(
                f"the market has {market.rows} rows; index observations hold at most {MOST_ROWS}, "
                "use windows"
            )
        instruments = market.instruments
        self.market = market
        self.settings = settings
        self.features = checked_features(features, market)
        self.segments = Segments(segments)
        self.segments.check(settings.window, market.rows)
        self.rules = Rules.of(settings, instruments)
        self.mapping = mapping_for(settings, instruments)
        self.view = observe
        self.threads = threads
        self.labels = labels
        columns = self.features.shape[1]
        self.observation_space: spaces.Space[Any] = observation_space(
            settings.window, columns, instruments, market.rows if observe == "index" else 0
        )
        training = self.segments if training_rows is None else Segments(training_rows)
        self.reward = Reward(settings.reward, market, training.rows)
        randomised = settings.randomisation
        self._world = World(
            bars=market.bars,
            features=self.features.reshape(-1),
            columns=columns,
            turbulent=self.reward.turbulent,
            scales=np.array([randomised.fee, randomised.slippage, randomised.price]),
            random_position=settings.random_start_position,
            initial_equity=settings.initial_equity,
        )
        self._starts = starts_of(settings, self.segments, labels)
        self.fills = Fills.empty(environments, instruments)
        self.orders = Orders.room(environments, instruments)
        self.account = Account.start(
            environments,
            instruments,
            settings.initial_equity,
            fee_tiers=len(self.rules.fee_tiers) > 1,
        )
        self.row: IntArray = np.zeros(environments, np.int64)
        self.episodes = np.zeros(environments, EPISODE)
        self.episodes["last"] = -1
        self._resolved: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._lanes = room(threads, instruments)
        self._memories = np.zeros(environments, MEMORY)
        self._ended_account = np.zeros((environments, account_columns(instruments)), np.float32)
        self.seed(seed)

    @property
    def environments(self) -> int:
        """E."""
        return int(self.row.shape[0])

    def seed(self, seed: int | Sequence[int]) -> None:
        """Seed all that is drawn from now on."""
        self._random = streams(seed, self.environments)
        starts = len(self._starts.first)
        self.episodes["number"] = np.arange(self.environments) * starts // self.environments
        self._gather()

    def go_on(self, account: Account, first: int, last: int) -> None:
        """Carry accounts through the decision rows `first` to `last`, both included."""
        check_account(account, self.market.instruments, self.rules)
        if len(account.balances) != self.environments:
            raise ValueError(f"{len(account.balances)} accounts for {self.environments}; one each")
        self.account = account.copy()
        self.row[:] = first
        self.episodes["first"] = first
        self.episodes["last"] = last
        self.episodes["reward"] = 0.0
        self._memories[:] = np.zeros(1, MEMORY)
        self.fills.count[:] = 0
        self._gather()

    def begin(self, staggered: bool = False) -> None:
        """Draw a training episode for every account, cut to a random length if `staggered`."""
        self._run(begin_all, *self._drawn_from(), staggered)
        self.fills.count[:] = 0

    def order(self, actions: npt.NDArray[Any]) -> None:
        """Write what each account wants into `orders`.

        Raises:
            ValueError: if an action is outside the space; names the environment and its row.
        """
        try:
            self.mapping.to_orders(actions, self.orders)
        except ActionError as error:
            at = "" if error.environment is None else f" (market row {self.row[error.environment]})"
            raise ValueError(f"{error}{at}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Everything but compiled code, which is found again when it is needed."""
        return {**self.__dict__, "_resolved": {}}

    def act(self) -> tuple[FloatArray, BoolArray]:
        """Carry out `orders` without beginning new episodes.

        Returns:
            float64 [E] rewards and bool [E] whether the episode has ended.
        """
        rewards, dones = np.empty(self.environments), np.empty(self.environments, np.bool_)
        equity_before = self.account.equity.copy()
        self._run(
            act_all,
            self._world,
            self.rules,
            self.reward.weights,
            self._state,
            self.orders,
            rewards,
            dones,
            *self._lanes,
        )
        self._add_custom(rewards, equity_before)
        return rewards, dones

    def advance(
        self, scaled: Float32Array | None = None, scale: float = 1.0
    ) -> tuple[FloatArray, BoolArray, dict[str, npt.NDArray[Any]]]:
        """Carry out `orders`; accounts whose episode ended begin their next one.

        Args:
            scaled: float32 [E], becomes the rewards times `scale`.
            scale: a number.

        Returns:
            As `act`, and the observations that follow.
        """
        seen = self._room()
        if scaled is None:
            scaled = np.empty(0, np.float32)
        if self.reward.custom:
            rewards, dones = self.act()
            self._run(renew_all, *self._drawn_from(), dones, seen)
            if len(scaled):
                np.multiply(rewards, scale, out=scaled, casting="same_kind")
            return rewards, dones, self._handed_out(seen)
        rewards, dones = np.empty(self.environments), np.empty(self.environments, np.bool_)
        self._run(
            advance_all_on_threads if self.threads > 1 else advance_all,
            *self._drawn_from(),
            self.reward.weights,
            rewards,
            scaled,
            scale,
            dones,
            seen,
            *self._lanes,
        )
        return rewards, dones, self._handed_out(seen)

    def observe(self) -> dict[str, npt.NDArray[Any]]:
        """What every account sees, in fresh arrays."""
        seen = self._room()
        self._run(observe_all, self._world, self._state, seen)
        return self._handed_out(seen)

    def ended(self, environment: int) -> tuple[Ended, dict[str, npt.NDArray[Any]]]:
        """The episode that ended last, and the last thing seen in it."""
        _, _, _, _, first, row, reward, terminated = self.episodes[environment].item()
        seen = {"account": self._ended_account[environment].copy()}
        if self.view == "index":
            seen["row"] = np.array([row], np.int32)
        else:
            seen["window"] = self.features[row + 1 - self.settings.window : row + 1].copy()
        return Ended(reward, row - first, terminated), seen

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that changes while accounts are stepped, by name: enough to go on from here."""
        return self._state._asdict()

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from where `arrays` was read.

        Raises:
            ValueError: if they are those of another simulation.
        """
        for name, own in self.arrays().items():
            given = arrays.get(name)
            if given is None or (given.shape, given.dtype) != (own.shape, own.dtype):
                raise ValueError(f"{name} is not that of such a simulation; begin anew")
            own[...] = given

    def _add_custom(self, rewards: FloatArray, equity_before: FloatArray) -> None:
        if self.reward.custom:
            before = rewards.copy()
            self.reward.add_custom(rewards, self.account, equity_before, self.market, self.row)
            self.episodes["reward"] += rewards - before

    def _run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call compiled code on arrays that are ours, whose types therefore never change."""
        if function not in self._resolved:
            self._resolved[function] = resolved(function, *arguments)
        self._resolved[function](*arguments)

    def _drawn_from(self) -> tuple[World, Rules, Choices, Starts, State, Orders]:
        """What beginning an episode needs."""
        return (
            self._world,
            self.rules,
            self.mapping.choices,
            self._starts,
            self._state,
            self.orders,
        )

    def _gather(self) -> None:
        """The arrays as compiled code takes them; whatever replaces one must call this."""
        self._state = State(
            balances=self.account.balances,
            positions=self.account.positions,
            daily_volume=self.account.daily_volume,
            fill_counts=self.fills.count,
            records=self.fills.records,
            row=self.row,
            episodes=self.episodes,
            memories=self._memories,
            random=self._random,
            ended_account=self._ended_account,
        )

    def _room(self) -> Seen:
        """Fresh arrays, so that nobody's observation changes later."""
        count, index = self.environments, self.view == "index"
        length = 0 if index else self.settings.window * self.features.shape[1]
        return Seen(
            account=np.empty((count, self._ended_account.shape[1]), np.float32),
            window=np.empty((count, length), np.float32),
            row=np.empty((count, int(index)), np.int32),
        )

    def _handed_out(self, seen: Seen) -> dict[str, npt.NDArray[Any]]:
        """Observations as agents take them."""
        if self.view == "index":
            return {"row": seen.row, "account": seen.account}
        shape = (len(seen.window), self.settings.window, self.features.shape[1])
        return {"window": seen.window.reshape(shape), "account": seen.account}
