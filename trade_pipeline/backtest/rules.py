"""Rules that a policy should beat; their settings and meanings are in `settings.baselines`.

A rule looks at rows up to the one it decides on, back to the last gap of the data, also before a
test part begins; where that is less than it needs, it is flat. All equity, or the leverage cap
where that is lower, is spread evenly over the instruments where nothing else is said. Start at
`RULES`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.crossing import find_above
from trade_pipeline.backtest.plugins.installed import StrategyError
from trade_pipeline.backtest.protocol import Plan, PlannedRule, Strategy
from trade_pipeline.backtest.signals import (
    find_breakouts,
    find_reversals,
    find_rsi,
    find_volatility,
)
from trade_pipeline.settings.baselines import (
    Baseline,
    BuyAndHoldBaseline,
    DonchianBaseline,
    EqualWeightBaseline,
    FlatBaseline,
    InverseVolatilityBaseline,
    MomentumBaseline,
    RandomBaseline,
    RsiReversionBaseline,
    SmaCrossBaseline,
    VolatilityTargetBaseline,
)
from trade_pipeline.settings.environment import EnvironmentSettings
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.training.dataset import Dataset
from trade_pipeline.training.splits import Rows, long_enough

IMPLEMENTATION = 3


class Rule(PlannedRule):
    """A rule with settings, by whose label reports call it.

    Args:
        settings: its parameters.
        bars_needed: gap-free bars up to the one it decides on; with fewer it is flat.
    """

    def __init__(self, settings: Baseline, bars_needed: int = 1) -> None:
        self.name = settings.label
        self.bars_needed = bars_needed
        self._short = getattr(settings, "short", False)

    def start(self, dataset: Dataset, environment: EnvironmentSettings) -> None:
        """Decide on every row.

        Raises:
            StrategyError: it sells short, which the environment does not allow.
        """
        if self._short and not environment.short:
            raise StrategyError(
                f"baseline {self.name} sells short, but environment.actions.short is false; set "
                "it, or drop `short` of the baseline."
            )
        super().start(dataset, environment)


class Flat(Rule):
    """Never trades."""

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """No weight anywhere."""
        return _every_row(dataset, 0.0, hold=True)


class EqualWeight(Rule):
    """Rebalances to equal weights each bar."""

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The same weights on every row."""
        return _every_row(dataset, _share(dataset, environment), hold=False)


class BuyAndHold(Rule):
    """Buys equal weights once and holds; what a slice's end closed is bought again."""

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The same weights on every row, for what is not held: an order may expire."""
        return _every_row(dataset, _share(dataset, environment), hold=True)


class RandomActions(Rule):
    """Draws a uniform action of the environment each bar: a choice, or weights."""

    def __init__(self, settings: RandomBaseline) -> None:
        super().__init__(settings)
        self._seed = settings.seed

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """An action for every row: each backtest, whatever its part, sees the same ones."""
        mapping = mapping_for(environment, len(dataset.instruments))
        generator = np.random.default_rng(self._seed)
        drawn = mapping.to_orders(mapping.sample(generator, len(dataset.ts)))
        # The weight of an action to hold is 0, which leaves what is flat flat.
        return Plan(*drawn)


class SmaCross(Rule):
    """Long while the fast average of closes is above the slow one, otherwise flat."""

    def __init__(self, settings: SmaCrossBaseline) -> None:
        super().__init__(settings, bars_needed=settings.slow)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The equal weight while above, kept as it is, otherwise none."""
        close = _loaded(dataset.close)
        above = np.zeros(close.shape, np.bool_)
        for a, b in dataset.segments.tolist():
            find_above(close[a:b], self._settings.fast, self._settings.slow, above[a:b])
        return _held_sides(above, dataset, environment)


class Donchian(Rule):
    """Follows breaks of the range of earlier bars (Donchian's channel, closes against extremes)."""

    def __init__(self, settings: DonchianBaseline) -> None:
        super().__init__(settings, bars_needed=max(settings.entry, settings.exit) + 1)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The side of the last break."""
        chosen = self._settings
        close, high, low = (_loaded(one) for one in (dataset.close, dataset.high, dataset.low))
        side = np.zeros(close.shape, np.int8)
        for a, b in dataset.segments.tolist():
            find_breakouts(
                close[a:b],
                high[a:b],
                low[a:b],
                chosen.entry,
                chosen.exit,
                chosen.short,
                side[a:b],
            )
        return _held_sides(side, dataset, environment)


class RsiReversion(Rule):
    """Buys what fell and sells what rose, by Wilder's relative strength index."""

    def __init__(self, settings: RsiReversionBaseline) -> None:
        super().__init__(settings, bars_needed=settings.period + 1)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The side of the last extreme."""
        chosen, close = self._settings, _loaded(dataset.close)
        side = np.zeros(close.shape, np.int8)
        rsi = np.full(close.shape, np.nan)
        for a, b in dataset.segments.tolist():
            find_rsi(close[a:b], chosen.period, rsi[a:b])
            find_reversals(rsi[a:b], chosen.low, chosen.high, chosen.short, side[a:b])
        return _held_sides(side, dataset, environment)


class Momentum(Rule):
    """Goes with the sign of the past return (Moskowitz, Ooi and Pedersen 2012).

    Each bar decides anew, and positions are not scaled by volatility, which the paper does.
    """

    def __init__(self, settings: MomentumBaseline) -> None:
        super().__init__(settings, bars_needed=settings.lookback + settings.skip + 1)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The sign of the return over `lookback` rows, `skip` rows ago; flat without a change."""
        chosen, close = self._settings, np.asarray(dataset.close)
        side = np.zeros(close.shape, np.int8)
        reach = chosen.lookback + chosen.skip
        for a, b in dataset.segments.tolist():
            if b - a > reach:
                earlier, later = close[a : b - reach], close[a + chosen.lookback : b - chosen.skip]
                side[a + reach : b] = (later > earlier) - 1 * (later < earlier) * chosen.short
        return _held_sides(side, dataset, environment)


class VolatilityTarget(Rule):
    """Long, each instrument's even share scaled to a target volatility.

    The weight is share x min(target / annual volatility of the window, the lowest of the caps). A
    window without a move gives no volatility: what is held stays.
    """

    def __init__(self, settings: VolatilityTargetBaseline) -> None:
        super().__init__(settings, bars_needed=settings.window + 1)
        self._settings = settings
        self.max_leverage = settings.max_leverage

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The weight of each row, which a position may be off by the band."""
        chosen, count = self._settings, len(dataset.instruments)
        deviation = _volatility(dataset, chosen.window)
        annual = deviation * np.sqrt(dataset.bars_per_year)
        most = min(chosen.max_leverage, environment.max_leverage)
        with np.errstate(divide="ignore"):
            scaled = np.minimum(chosen.target / annual, most) / count
        moved = deviation > 0
        wanted = np.where(moved, np.minimum(scaled, environment.largest_position), 0.0)
        return Plan(wanted, np.ones_like(moved), band=np.where(moved, chosen.band, np.nan))


class InverseVolatility(Rule):
    """Weights proportional to one over volatility, set anew every so many bars.

    They add up to all equity, or the leverage cap where that is lower. What is flat is bought on
    any row. Where an instrument did not move in the window, all positions stay as they are.
    """

    def __init__(self, settings: InverseVolatilityBaseline) -> None:
        super().__init__(settings, bars_needed=settings.window + 1)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The weights of each row; what is held is kept but for rows on which they are set."""
        chosen = self._settings
        deviation = _volatility(dataset, chosen.window)
        moved = np.asarray((deviation > 0).all(axis=1))
        inverse = np.zeros(deviation.shape)
        inverse[moved] = 1.0 / deviation[moved]
        total = np.where(moved, 0.0, 1.0)
        for n in range(len(dataset.instruments)):  # in this order, whatever numpy's own would be
            total += inverse[:, n]
        wanted = inverse / total[:, None] * min(1.0, environment.max_leverage)
        keeps = ~_set_anew(dataset, moved, chosen.window, chosen.rebalance) | ~moved[:, None]
        return Plan(np.minimum(wanted, environment.largest_position), keeps)


RULES: Mapping[type[Baseline], Any] = {
    FlatBaseline: Flat,
    BuyAndHoldBaseline: BuyAndHold,
    RandomBaseline: RandomActions,
    SmaCrossBaseline: SmaCross,
    DonchianBaseline: Donchian,
    RsiReversionBaseline: RsiReversion,
    MomentumBaseline: Momentum,
    VolatilityTargetBaseline: VolatilityTarget,
    EqualWeightBaseline: EqualWeight,
    InverseVolatilityBaseline: InverseVolatility,
}


def too_few_bars(
    strategy: Strategy, dataset: Dataset, parts: Iterable[Rows], window: int
) -> str | None:
    """Why a rule that ships can never decide on some rows; None where it can, or is no rule.

    Args:
        strategy: who would decide.
        dataset: its segments say how far back a decision may look.
        parts: int64 [K, 2] rows [a, b) each, that are traded.
        window: rows of an observation; shorter slices are left out.
    """
    if not isinstance(strategy, Rule):
        return None
    starts = dataset.segments[:, 0]
    seen = [
        # The last decision is on the close of the bar before the last one, which fills it.
        int(b) - 1 - int(starts[np.searchsorted(starts, a, side="right") - 1])
        for part in parts
        for a, b in long_enough(part, window)
    ]
    most = max(seen, default=0)
    if most >= strategy.bars_needed:
        return None
    return (
        f"{strategy.name} needs {strategy.bars_needed:,} bars without a gap up to the one it "
        f"decides on, but there are {most:,} at most, so it stays flat."
    )


def lowered_leverage(
    strategy: Strategy, instruments: int, environment: EnvironmentSettings
) -> str | None:
    """That a rule asks for more leverage than it can get; None where it does not."""
    if not isinstance(strategy, VolatilityTarget):
        return None
    most = min(environment.max_leverage, environment.largest_position * instruments)
    if strategy.max_leverage <= max(1.0, most):
        return None
    return (
        f"{strategy.name} may take {strategy.max_leverage:g} times equity, but the environment "
        f"caps it at {most:g}; raise environment.max_leverage and max_position."
    )


def _share(dataset: Dataset, environment: EnvironmentSettings) -> float:
    """One instrument's part of all equity, or of the leverage cap where that is lower."""
    return min(1.0, environment.max_leverage) / len(dataset.instruments)


def _every_row(dataset: Dataset, weight: float, hold: bool) -> Plan:
    """The same order on all rows, stored once."""
    shape = dataset.close.shape
    return Plan(np.broadcast_to(weight, shape), np.broadcast_to(hold, shape))


def _held_sides(side: NDArray[Any], dataset: Dataset, environment: EnvironmentSettings) -> Plan:
    """The even share on the side of each row (1, 0, -1), kept as it is while that stays."""
    return Plan(side * _share(dataset, environment), side != 0)


def _volatility(dataset: Dataset, window: int) -> NDArray[np.float64]:
    """Standard deviation [T, N] of returns a bar; NaN on rows that have none."""
    close = _loaded(dataset.close)
    returns = np.zeros(close.shape[::-1])
    returns[:, 1:] = (close[1:] / close[:-1] - 1.0).T
    deviation = np.full(close.shape, np.nan)
    for a, b in dataset.segments.tolist():
        find_volatility(returns[:, a:b], window, deviation[a:b])
    return deviation


def _set_anew(
    dataset: Dataset, moved: NDArray[np.bool_], window: int, every: int
) -> NDArray[np.bool_]:
    """Rows [T, N] of every so many, and those after until a bar trades on which it could fill."""
    traded = np.cumsum(dataset.traded, axis=0)
    found = np.zeros(traded.shape, np.bool_)
    for a, b in dataset.segments.tolist():
        due = np.arange(a + window, b, every)
        due = due[moved[due]]
        if len(due):
            rows = np.arange(due[0], b)
            last = due[np.searchsorted(due, rows, side="right") - 1]
            found[rows] = traded[rows] == traded[last]
    return found


def _loaded(prices: NDArray[np.float64]) -> NDArray[np.float64]:
    """An array of its own: compiled code takes no memory-mapped ones."""
    return np.array(prices, np.float64)
