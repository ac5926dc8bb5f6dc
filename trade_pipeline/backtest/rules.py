"""Rules that a policy should beat; their settings and meanings are in `settings.baselines`.

A rule looks at rows up to the one it decides on, back to the last gap of the data, also before a
test part begins; where that is less than it needs, it is flat. All equity, or the leverage cap
where that is lower, is spread evenly over the instruments where nothing else is said. Start at
`RULES`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.crossing import find_above
from trade_pipeline.backtest.plugins.installed import StrategyError
from trade_pipeline.backtest.protocol import Plan, PlannedRule
from trade_pipeline.backtest.signals import (
    find_breakouts,
    find_reversals,
    find_rsi,
    find_volatility,
    follow,
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

IMPLEMENTATION = 1
# Averages are compared in whole ticks of this part of a price: sums of floats tie by accident.
TICKS_PER_UNIT = 1e8


class Rule(PlannedRule):
    """A rule with settings, by whose label reports call it."""

    def __init__(self, settings: Baseline) -> None:
        self.name = settings.label
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
        super().__init__(settings)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The equal weight while above, kept as it is, otherwise none."""
        ticks = np.rint(dataset.close * TICKS_PER_UNIT).astype(np.int64)
        above = np.zeros(ticks.shape, np.bool_)
        for a, b in dataset.segments.tolist():
            find_above(ticks[a:b], self._settings.fast, self._settings.slow, above[a:b])
        return _held_sides(above, dataset, environment)


class Donchian(Rule):
    """Follows breaks of the range of earlier bars (Donchian's channel, closes against extremes)."""

    def __init__(self, settings: DonchianBaseline) -> None:
        super().__init__(settings)
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
        super().__init__(settings)
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
        super().__init__(settings)
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
        super().__init__(settings)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The weight of each row where the one held is too far off."""
        chosen, count = self._settings, len(dataset.instruments)
        deviation = _volatility(dataset, chosen.window, 1)
        annual = deviation * np.sqrt(dataset.bars_per_year)
        most = min(chosen.max_leverage, environment.max_leverage)
        with np.errstate(divide="ignore"):
            scaled = np.minimum(chosen.target / annual, most) / count
        wanted = np.where(deviation > 0, np.minimum(scaled, environment.largest_position), np.nan)
        return _followed(wanted, dataset, chosen.band)


class InverseVolatility(Rule):
    """Weights proportional to one over volatility, set anew every so many bars.

    They add up to all equity, or the leverage cap where that is lower. Where an instrument did not
    move in the window, all weights stay as they are until the next rebalancing.
    """

    def __init__(self, settings: InverseVolatilityBaseline) -> None:
        super().__init__(settings)
        self._settings = settings

    def decide(self, dataset: Dataset, environment: EnvironmentSettings) -> Plan:
        """The weights of rows on which they are set."""
        chosen = self._settings
        deviation = _volatility(dataset, chosen.window, chosen.rebalance)
        moved = (deviation > 0).all(axis=1)
        inverse = np.full(deviation.shape, np.nan)
        inverse[moved] = 1.0 / deviation[moved]
        total = np.zeros(len(dataset.ts))
        for n in range(len(dataset.instruments)):  # in this order, whatever numpy's own would be
            total += inverse[:, n]
        wanted = inverse / total[:, None] * min(1.0, environment.max_leverage)
        return _followed(np.minimum(wanted, environment.largest_position), dataset, 0.0)


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


def _volatility(dataset: Dataset, window: int, every: int) -> NDArray[np.float64]:
    """Standard deviation [T, N] of returns a bar; NaN on rows that have none."""
    close = _loaded(dataset.close)
    returns = np.zeros(close.shape[::-1])
    returns[:, 1:] = (close[1:] / close[:-1] - 1.0).T
    deviation = np.full(close.shape, np.nan)
    for a, b in dataset.segments.tolist():
        find_volatility(returns[:, a:b], window, every, deviation[a:b])
    return deviation


def _followed(wanted: NDArray[np.float64], dataset: Dataset, band: float) -> Plan:
    """Orders [T, N] that follow weights within each gap-free stretch, flat before the first."""
    close, traded = _loaded(dataset.close), np.array(dataset.traded, np.bool_)
    weights, hold = np.zeros(close.shape), np.zeros(close.shape, np.bool_)
    for a, b in dataset.segments.tolist():
        held = np.zeros(close.shape[1])
        follow(wanted[a:b], close[a:b], traded[a:b], band, held, weights[a:b], hold[a:b])
    return Plan(weights, hold)


def _loaded(prices: NDArray[np.float64]) -> NDArray[np.float64]:
    """An array of its own: compiled code takes no memory-mapped ones."""
    return np.array(prices, np.float64)
