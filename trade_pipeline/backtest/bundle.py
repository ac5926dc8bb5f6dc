"""The bundle of one backtest: tables, figures, report. Every member is deterministic.

Start at `write_backtest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.backtest.engine import BacktestResult
from trade_pipeline.backtest.report.page import Curve, ReportInput, render
from trade_pipeline.evaluation.metrics import metrics
from trade_pipeline.evaluation.trades import excursions, match_fills
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation, replacing
from trade_pipeline.training.dataset import UNITS, Dataset

TABLES = ("equity", "orders", "fills", "trades")
DETERMINISTIC = (
    *(f"{table}.{kind}" for table in TABLES for kind in ("parquet", "csv")),
    "metrics.json",
    "summary.json",
    "report.html",
)


@dataclass(frozen=True)
class WrittenBacktest:
    """A sealed backtest bundle and the figures in its `metrics.json`."""

    reference: BundleReference
    metrics: dict[str, Any]


def write_backtest(
    result: BacktestResult,
    dataset: Dataset,
    staging: ArtifactLocation,
    title: str,
    provenance: Mapping[str, str],
    baselines: Sequence[BacktestResult] = (),
) -> WrittenBacktest:
    """Write a backtest's tables, figures and report into a staging folder and seal it.

    Args:
        result: what is reported.
        dataset: what it ran on.
        staging: empty folder.
        title: of the report.
        provenance: shown in the report and part of the version: versions of inputs, no clock.
        baselines: shown beside it; they ran on the same part.
    """
    staging.path.mkdir(parents=True, exist_ok=True)
    tables = match_fills(result.fills)
    high, low = (
        {name: np.asarray(prices)[:, n] for n, name in enumerate(dataset.instruments)}
        for prices in (dataset.high, dataset.low)
    )
    frames = {
        "equity": result.equity_frame(),
        "orders": result.orders,
        "fills": result.fills,
        "trades": _tagged(excursions(tables.trips, high, low), dataset),
    }
    for name, frame in frames.items():
        write_frame(staging.child(f"{name}.parquet"), frame)
        with replacing(staging.child(f"{name}.csv")) as path:
            frame.write_csv(path)
    found = figures(result, dataset)
    write_json(staging.child("metrics.json"), found)
    write_json(staging.child("summary.json"), result.summary)
    page = ReportInput(
        title=title,
        curves=[
            Curve(result.name, "trial", result.ts, result.equity),
            *(Curve(one.name, "baseline", one.ts, one.equity) for one in baselines),
        ],
        leaderboard=pl.DataFrame(),
        prices=prices_of(dataset, int(result.row[0]), int(result.row[-1])),
        trips=pl.concat([tables.trips, tables.open_lots], how="diagonal"),
        metrics={result.name: found} | {one.name: figures(one, dataset) for one in baselines},
        provenance=dict(provenance),
        notes=_notes(result, dataset),
    )
    with replacing(staging.child("report.html")) as path:
        path.write_text(render(page), encoding="utf-8")
    return WrittenBacktest(seal(staging, DETERMINISTIC), found)


def _tagged(trades: pl.DataFrame, dataset: Dataset) -> pl.DataFrame:
    """Trades with the regime known at the bar before the entry fill, where there are regimes."""
    if dataset.regime_labels is None:
        return trades
    before = trades["entry_row"].to_numpy() - 1
    return trades.with_columns(regime=pl.Series(dataset.regime_labels[before], dtype=pl.Int8))


def figures(result: BacktestResult, dataset: Dataset) -> dict[str, Any]:
    """All metrics of a backtest; see `evaluation.metrics.metrics`."""
    return metrics(
        equity=result.equity,
        close_ts=result.ts,
        bars_per_year=dataset.bars_per_year,
        days_per_year=dataset.days_per_year,
        exposure=result.exposure,
        turnover_notional=result.turnover,
        trade_nets=match_fills(result.fills).trips["net"].to_numpy(),
        fees_paid=float(result.fees.sum()),
        slippage_paid=float(result.slippage.sum()),
        financing_paid=float(result.financing.sum()),
        risk_free=float(result.summary["risk_free"]),
    )


def prices_of(dataset: Dataset, first: int, last: int) -> dict[str, Any]:
    """The bars of the rows `first` to `last`, as `ReportInput.prices` has them."""
    rows = slice(first, last + 1)
    return {
        name: (
            np.asarray(dataset.ts)[rows],
            *(
                np.ascontiguousarray(getattr(dataset, column)[rows, n])
                for column in ("open", "high", "low", "close")
            ),
        )
        for n, name in enumerate(dataset.instruments)
    }


def notes_of_dataset(dataset: Dataset) -> list[str]:
    """What a reader must know of the data and the rules to read the figures right."""
    return [
        f"{len(dataset.instruments)} instrument(s) in bars of {dataset.timeframe}; {UNITS}.",
        "Decisions on a bar's close fill at the next open, with fee and slippage. Positions close "
        "with cost where a slice ends, but stay open, marked at the last close, at the very end.",
        "The first decision needs a full window of bars: a curve begins that many bars after its "
        "test part does.",
    ]


def _notes(result: BacktestResult, dataset: Dataset) -> list[str]:
    """The above, and what happened in this backtest."""
    summary = result.summary
    said = [f"{summary['slices']} slice(s) of {summary['steps']} steps together."]
    if summary["ambiguous_bars"]:
        said.append(
            f"In {summary['ambiguous_bars']} bar(s) the order of events inside the bar is "
            "unknown; the worse one is assumed."
        )
    if summary["terminated"]:
        said.append("The account was ruined: its equity reached zero and trading stopped.")
    return [*said, *notes_of_dataset(dataset)]
