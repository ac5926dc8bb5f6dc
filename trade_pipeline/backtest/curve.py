"""An equity curve with what happened under it, and folds' curves stitched into one.

Start at `Curve.of`, `Curve.stored` and `stitch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.backtest.engine import BacktestResult
from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline.evaluation.trip_nets import trip_nets
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation

TOTALS = ("fees", "slippage", "financing", "risk_free")  # as a backtest's summary has them


@dataclass(frozen=True)
class Curve:
    """An equity curve with what happened under it; n steps.

    Attributes:
        close_ts: int64 [n + 1] ms UTC.
        equity: float64 [n + 1] quote currency.
        exposure: float64 [n] gross exposure / equity.
        turnover: float64 [n] traded notional, quote currency.
        trade_nets: float64 [trades] net result of closed trips, quote currency.
        fees, slippage, financing: totals, quote currency.
        risk_free: annual rate that idle cash earned.
    """

    close_ts: NDArray[np.int64]
    equity: NDArray[np.float64]
    exposure: NDArray[np.float64]
    turnover: NDArray[np.float64]
    trade_nets: NDArray[np.float64]
    fees: float
    slippage: float
    financing: float
    risk_free: float = 0.0

    @classmethod
    def of(cls, result: BacktestResult) -> "Curve":
        """The curve of a backtest."""
        return cls(
            close_ts=result.ts,
            equity=result.equity,
            exposure=result.exposure,
            turnover=result.turnover,
            trade_nets=trip_nets(result.fills),
            **{name: float(result.summary[name]) for name in TOTALS},
        )

    @classmethod
    def stored(cls, backtest: ArtifactLocation) -> "Curve":
        """The curve of a backtest bundle; its totals are those of its summary.

        Raises:
            StorageError: a member is missing or damaged.
        """
        equity = read_frame(backtest.child("equity.parquet"))
        summary = read_json(backtest.child("summary.json"))
        return cls(
            close_ts=equity["time"].dt.epoch("ms").to_numpy(),
            equity=equity["equity"].to_numpy(),
            exposure=equity["exposure"].to_numpy()[1:],
            turnover=equity["turnover"].to_numpy()[1:],
            trade_nets=read_frame(backtest.child("trades.parquet"))["net"].to_numpy(),
            **{name: float(summary[name]) for name in TOTALS},
        )

    def figures(self, bars_per_year: float, days_per_year: float) -> dict[str, Any]:
        """All metrics of the curve; see `evaluation.metrics.metrics`."""
        return metrics(
            self.equity,
            self.close_ts,
            bars_per_year,
            days_per_year,
            self.exposure,
            self.turnover,
            self.trade_nets,
            self.fees,
            self.slippage,
            self.financing,
            self.risk_free,
        )


def part_scales(curves: Sequence[Curve]) -> list[float]:
    """Factor of each part's money when parts are chained: each begins where the one before ended.

    Raises:
        ValueError: parts overlap in time.
    """
    scales = [1.0]
    for number, (before, curve) in enumerate(pairwise(curves), 1):
        if curve.close_ts[1] <= before.close_ts[-1]:
            raise ValueError(f"the test part of fold {number} starts before the one before ends")
        scales.append(float(before.equity[-1] * scales[-1] / curve.equity[0]))
    return scales


def stitch(curves: Sequence[Curve]) -> Curve:
    """Chain the test parts of folds, in time order, into one out-of-sample curve.

    Every part starts from the same equity; each is scaled to start where the one before ended, so
    that its returns are kept, and money (turnover, nets, costs) is scaled with it.

    Raises:
        ValueError: test parts overlap in time.
    """
    parts = [
        Curve(
            curve.close_ts[bool(number) :],
            curve.equity[bool(number) :] * scale,
            curve.exposure,
            curve.turnover * scale,
            curve.trade_nets * scale,
            curve.fees * scale,
            curve.slippage * scale,
            curve.financing * scale,
            curve.risk_free,
        )
        for number, (curve, scale) in enumerate(zip(curves, part_scales(curves), strict=True))
    ]
    return Curve(
        close_ts=np.concatenate([part.close_ts for part in parts]),
        equity=np.concatenate([part.equity for part in parts]),
        exposure=np.concatenate([part.exposure for part in parts]),
        turnover=np.concatenate([part.turnover for part in parts]),
        trade_nets=np.concatenate([part.trade_nets for part in parts]),
        fees=sum(part.fees for part in parts),
        slippage=sum(part.slippage for part in parts),
        financing=sum(part.financing for part in parts),
        risk_free=parts[0].risk_free,
    )
