"""What trading costs and what is allowed, as the plain numbers that the kernel reads.

Meanings and units are those of `settings.environment` and docs/simulator.md. Start at `Rules.of`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trade_pipeline.settings.environment import (
    CostSettings,
    EnvironmentSettings,
    FlatFee,
    ImpactSlippage,
    MakerTakerFee,
)
from trade_pipeline.simulator.market import FloatArray

HOUR_MS = 3_600_000
STEPS = np.dtype(
    [(name, np.float64) for name in ("lot_size", "tick_size", "min_notional")], align=True
)
Tier = tuple[float, float, float]


class Rules(NamedTuple):
    """Costs and limits.

    Attributes:
        fee_tiers: float64 [K, 3] from which 30-day volume on, maker rate, taker rate (fractions).
        steps: STEPS [N] lot size, tick size and minimum notional of each instrument.
        slippage: fraction of the price; likewise impact, for a bar's whole volume.
        funding_ms: milliseconds between the constant fundings.
        max_turnover: 0 is no cap.
    """

    fee_tiers: FloatArray
    steps: npt.NDArray[np.void]
    fee_per_share: float
    fee_minimum: float
    fee_maximum_fraction: float
    slippage: float
    impact: float
    borrow_rate: float
    interest_rate: float
    cash_rate: float
    funding_rate: float
    funding_ms: int
    participation: float
    max_leverage: float
    maintenance_margin: float
    no_trade_band: float
    max_turnover: float
    lowest_weight: float
    highest_weight: float

    @classmethod
    def of(cls, settings: EnvironmentSettings, instruments: int) -> "Rules":
        """The rules of an experiment's environment.

        Raises:
            ValueError: if a cost is listed for another number of instruments.
        """
        costs, slippage = settings.costs, settings.costs.slippage
        costs.check_lists(instruments)
        largest = settings.largest_position
        return cls.plain(
            instruments,
            **_fee(costs),
            slippage_bps=slippage.bps,
            impact_bps=slippage.impact_bps if isinstance(slippage, ImpactSlippage) else 0.0,
            borrow_rate=costs.borrow_rate,
            interest_rate=costs.interest_rate,
            cash_rate=costs.cash_rate,
            funding_rate=costs.funding_rate,
            funding_hours=costs.funding_hours,
            lot_size=costs.lot_size,
            tick_size=costs.tick_size,
            min_notional=costs.min_notional,
            participation=costs.participation,
            max_leverage=settings.max_leverage,
            maintenance_margin=settings.maintenance_margin,
            no_trade_band=settings.no_trade_band,
            max_turnover=settings.max_turnover or 0.0,
            lowest_weight=-largest if settings.short else 0.0,
            highest_weight=largest,
        )

    @classmethod
    def plain(
        cls,
        instruments: int = 1,
        *,
        fee_bps: float = 0.0,
        tiers: Sequence[Tier] = (),
        fee_per_share: float = 0.0,
        fee_minimum: float = 0.0,
        fee_maximum_fraction: float = np.inf,
        slippage_bps: float = 0.0,
        impact_bps: float = 0.0,
        borrow_rate: float = 0.0,
        interest_rate: float = 0.0,
        cash_rate: float = 0.0,
        funding_rate: float = 0.0,
        funding_hours: int = 8,
        lot_size: float | Sequence[float] = 0.0,
        tick_size: float | Sequence[float] = 0.0,
        min_notional: float | Sequence[float] = 0.0,
        participation: float = 0.0,
        max_leverage: float = 1.0,
        maintenance_margin: float = 0.0,
        no_trade_band: float = 0.0,
        max_turnover: float = 0.0,
        lowest_weight: float = -np.inf,
        highest_weight: float = np.inf,
    ) -> "Rules":
        """Rules from numbers; what is left out costs nothing and forbids nothing.

        `tiers` (rising volume, maker bps, taker bps) win over `fee_bps`, one rate for makers and
        takers. `lot_size`, `tick_size` and `min_notional` are one number, or one an instrument.
        The others are named as in the settings.
        """
        steps = np.zeros(instruments, STEPS)
        for name, values in zip(
            STEPS.names or (), (lot_size, tick_size, min_notional), strict=True
        ):
            steps[name] = values
        return cls(
            fee_tiers=np.array(tiers or [(0.0, fee_bps, fee_bps)], np.float64) / [1.0, 1e4, 1e4],
            steps=steps,
            fee_per_share=float(fee_per_share),
            fee_minimum=float(fee_minimum),
            fee_maximum_fraction=float(fee_maximum_fraction),
            slippage=slippage_bps / 1e4,
            impact=impact_bps / 1e4,
            borrow_rate=float(borrow_rate),
            interest_rate=float(interest_rate),
            cash_rate=float(cash_rate),
            funding_rate=float(funding_rate),
            funding_ms=int(funding_hours * HOUR_MS),
            participation=float(participation),
            max_leverage=float(max_leverage),
            maintenance_margin=float(maintenance_margin),
            no_trade_band=float(no_trade_band),
            max_turnover=float(max_turnover),
            lowest_weight=float(lowest_weight),
            highest_weight=float(highest_weight),
        )


def _fee(costs: CostSettings) -> dict[str, Any]:
    fee = costs.fee
    if isinstance(fee, FlatFee):
        return {"fee_bps": fee.bps}
    if isinstance(fee, MakerTakerFee):
        return {"tiers": [(tier.volume, tier.maker_bps, tier.taker_bps) for tier in fee.tiers]}
    limit = fee.maximum_fraction
    return {
        "fee_per_share": fee.per_share,
        "fee_minimum": fee.minimum,
        "fee_maximum_fraction": np.inf if limit is None else limit,
    }
