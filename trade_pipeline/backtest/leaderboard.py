"""Leaderboard rows: the median seed of each policy's stitched test curve, beside the baselines.

The median, never the best: a row carries the seed in the middle with the worst and the best one
beside it. Start at `stitch`, `policy_row`, `baseline_row`; `combine` reads finished reports.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline.evaluation.trades import match_fills
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.frames import read_frame

if TYPE_CHECKING:  # the engine brings torch along, which the code location does not need to load
    from trade_pipeline.backtest.engine import BacktestResult

IMPLEMENTATION = 1
MEMBER = "leaderboard.parquet"
SCHEMA: dict[str, Any] = {
    "experiment": pl.String(),
    "name": pl.String(),
    "kind": pl.String(),
    "seeds": pl.Int64(),
    "median_seed": pl.Int64(),
    "folds": pl.Int64(),
    "sharpe": pl.Float64(),
    "sharpe_min": pl.Float64(),
    "sharpe_max": pl.Float64(),
    "sharpe_low": pl.Float64(),
    "sharpe_high": pl.Float64(),
    "total_return": pl.Float64(),
    "total_return_min": pl.Float64(),
    "total_return_max": pl.Float64(),
    "max_drawdown": pl.Float64(),
    "turnover": pl.Float64(),
    "trades": pl.Int64(),
}
# Of the median seed; `low` and `high` bound its Sharpe ratio with 95 % (block bootstrap).
PLAIN = ("sharpe", "sharpe_low", "sharpe_high", "total_return", "max_drawdown", "turnover")


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
    def of(cls, result: "BacktestResult") -> "Curve":
        """The curve of a backtest."""
        return cls(
            close_ts=result.ts,
            equity=result.equity,
            exposure=result.exposure,
            turnover=result.turnover,
            trade_nets=match_fills(result.fills).trips["net"].to_numpy(),
            fees=float(result.fees.sum()),
            slippage=float(result.slippage.sum()),
            financing=float(result.financing.sum()),
            risk_free=float(result.summary["risk_free"]),
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


def stitch(curves: Sequence[Curve]) -> Curve:
    """Chain the test parts of folds, in time order, into one out-of-sample curve.

    Every part starts from the same equity; each is scaled to start where the one before ended, so
    that its returns are kept, and money (turnover, nets, costs) is scaled with it.

    Raises:
        ValueError: test parts overlap in time.
    """
    scale = 1.0
    parts: list[Curve] = []
    for number, curve in enumerate(curves):
        if number and curve.close_ts[1] <= curves[number - 1].close_ts[-1]:
            raise ValueError(f"the test part of fold {number} starts before the one before ends")
        if number:
            scale = parts[-1].equity[-1] / curve.equity[0]
        parts.append(
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
        )
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


def median_seed(figures: Mapping[int, Mapping[str, Any]]) -> int:
    """The seed in the middle by Sharpe ratio; of an even number the lower of the two.

    A seed without a Sharpe ratio counts as worse than any that has one.
    """

    def order(seed: int) -> tuple[bool, float, float, int]:
        values = figures[seed]["values"]
        ratio = values["sharpe"]
        return (ratio is not None, ratio or 0.0, values["total_return"] or 0.0, seed)

    ranked = sorted(figures, key=order)
    return ranked[(len(ranked) - 1) // 2]


def row(
    experiment: str, name: str, kind: str, figures: Mapping[int, Mapping[str, Any]], folds: int
) -> dict[str, Any]:
    """One row of the leaderboard.

    Args:
        experiment: its name.
        name: variant or baseline.
        kind: policy or baseline.
        figures: metrics of the stitched curve by seed; a baseline has the one seed 0.
        folds: number of test parts in each curve.
    """
    seed = median_seed(figures)
    values = figures[seed]["values"]
    spread = {}
    for key in ("sharpe", "total_return"):
        found = [one["values"][key] for one in figures.values()]
        known = [value for value in found if value is not None]
        if kind == "baseline":  # it has one seed, and a range of one says nothing
            known = []
        spread[f"{key}_min"] = min(known) if known else None
        spread[f"{key}_max"] = max(known) if known else None
    return {
        "experiment": experiment,
        "name": name,
        "kind": kind,
        "seeds": len(figures),
        "median_seed": seed if kind == "policy" else None,
        "folds": folds,
        **{key: values[key] for key in PLAIN},
        **spread,
        "trades": values["trades"],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as a frame of `SCHEMA`, best Sharpe ratio of each experiment first."""
    frame = pl.DataFrame(list(rows), schema=SCHEMA, orient="row")
    return frame.sort(
        ["experiment", "sharpe", "name"], descending=[False, True, False], nulls_last=True
    )


def combine(store: Path, experiments: Sequence[str]) -> pl.DataFrame:
    """Rows of every experiment that has a report."""
    frames = [pl.DataFrame(schema=SCHEMA)]
    for name in experiments:
        home = layout.experiment_bundle(store, name, "report")
        if bundles.current_version(home) is not None:
            frames.append(read_frame(bundles.current(home).child(MEMBER)))
    return table(pl.concat(frames).to_dicts())


def markdown(frame: pl.DataFrame) -> str:
    """The leaderboard as a markdown table; an undefined figure is an en dash."""
    head = [
        "experiment",
        "policy",
        "Sharpe (min to max)",
        "return (min to max)",
        "drawdown",
        "trades",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for one in frame.to_dicts():
        lines.append(
            " | ".join(
                [
                    one["experiment"],
                    one["name"] if one["kind"] == "policy" else f"{one['name']} (baseline)",
                    _ranged(one, "sharpe", "{:.2f}"),
                    _ranged(one, "total_return", "{:.1%}"),
                    _text(one["max_drawdown"], "{:.1%}"),
                    _text(one["trades"], "{}"),
                ]
            )
        )
    return "\n".join(f"| {line} |" for line in lines)


def _ranged(one: Mapping[str, Any], key: str, form: str) -> str:
    middle = _text(one[key], form)
    if one["kind"] != "policy":
        return middle
    return f"{middle} ({_text(one[f'{key}_min'], form)} to {_text(one[f'{key}_max'], form)})"


def _text(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)
