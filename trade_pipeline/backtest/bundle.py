"""The bundle of one backtest: tables, figures, report. Every member is deterministic.

Start at `write_backtest`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.backtest.curve import Curve
from trade_pipeline.backtest.engine import BacktestResult
from trade_pipeline.backtest.open_trips import open_trips
from trade_pipeline.backtest.report import content
from trade_pipeline.backtest.report.page import render
from trade_pipeline.evaluation.by_regime import by_regime
from trade_pipeline.evaluation.costs import capacity
from trade_pipeline.evaluation.excursions import excursions
from trade_pipeline.evaluation.measure import FloatArray, IntArray, as_json
from trade_pipeline.evaluation.periods import by_month, by_year, rolling
from trade_pipeline.evaluation.relative import relative
from trade_pipeline.evaluation.trades import match_fills
from trade_pipeline.evaluation.walks import grow_equally
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation, replacing
from trade_pipeline.training.dataset import Dataset

TABLES = ("equity", "orders", "fills", "trades")
PERIOD_TABLES = ("years", "months", "rolling")
ROLLING_DAYS = 60  # fewer tell little of a Sharpe ratio
CAPACITY_SHARE = 0.01  # of a bar's volume: what an order may take without moving much
DETERMINISTIC = (
    *(f"{table}.{kind}" for table in TABLES + PERIOD_TABLES for kind in ("parquet", "csv")),
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
    configuration: str = "",
    notes: Sequence[str] = (),
) -> WrittenBacktest:
    """Write a backtest's tables, figures and report into a staging folder and seal it.

    Args:
        result: what is reported.
        dataset: what it ran on.
        staging: empty folder.
        title: of the report.
        provenance: shown in the report and part of the version: versions of inputs, no clock.
        baselines: shown beside it; they ran on the same part.
        configuration: YAML text that the report shows.
        notes: what a reader must know first.
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
        "trades": _tagged(excursions(tables.trips, high, low, tables.matches), dataset),
        **period_tables(result, dataset),
    }
    for name, frame in frames.items():
        write_frame(staging.child(f"{name}.parquet"), frame)
        with replacing(staging.child(f"{name}.csv")) as path:
            frame.write_csv(path)
    still_open = _tagged(open_trips(tables, dataset, int(result.row[-1])), dataset)
    found = figures(result, dataset)
    write_json(staging.child("metrics.json"), found)
    write_json(staging.child("summary.json"), result.summary)
    page = content.ReportInput(
        title=title,
        curves=[
            content.Curve(result.name, "policy", result.ts, result.equity),
            *(content.Curve(one.name, "baseline", one.ts, one.equity) for one in baselines),
        ],
        leaderboard=pl.DataFrame(),
        prices=prices_of(dataset, int(result.row[0]), int(result.row[-1])),
        trips=pl.concat([frames["trades"], still_open], how="diagonal"),
        financing=float(result.summary["financing"]),
        metrics={result.name: found} | {one.name: figures(one, dataset) for one in baselines},
        provenance=dict(provenance),
        notes=list(dict.fromkeys([*notes, *_notes(result, dataset)])),
        months=frames["months"],
        rolling=frames["rolling"],
        exposure=(result.ts[1:], result.exposure),
        regimes=_regimes(result, dataset),
        configuration=configuration,
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


def _regimes(result: BacktestResult, dataset: Dataset) -> tuple[IntArray, IntArray] | None:
    """Opens of the bars that were stepped through, and the regime known there."""
    if dataset.regime_labels is None:
        return None
    return np.asarray(dataset.ts)[result.row], dataset.regime_labels[result.row].astype(np.int64)


def figures(result: BacktestResult, dataset: Dataset) -> dict[str, Any]:
    """What `metrics.json` holds.

    `evaluation.metrics.metrics` of the curve and, each with `values` and `undefined`: `market`,
    beside an equal weight of all instruments without costs; `capacity`, at `CAPACITY_SHARE` of
    volume; and, where the dataset has regimes, `regimes` by the label known at the decision.
    """
    found = figures_of(Curve.of(result), result.row, dataset)
    found["capacity"] = _capacity(result, dataset)
    if dataset.regime_labels is not None:
        found["regimes"] = by_regime(
            result.equity,
            dataset.regime_labels[result.row[1:] - 1],
            result.exposure,
            dataset.bars_per_year,
            float(result.summary["risk_free"]),
        )
    return found


def figures_of(curve: Curve, row: IntArray, dataset: Dataset) -> dict[str, Any]:
    """`evaluation.metrics.metrics` of a curve, and `market`: beside an equal weight, without costs.

    Args:
        curve: n steps.
        row: int64 [n + 1] of the dataset, which each value of the curve is the close of.
        dataset: what it ran on.
    """
    beside = relative(
        curve.equity,
        curve.close_ts,
        market_curve(row, dataset),
        curve.close_ts,
        dataset.days_per_year,
        curve.risk_free,
    )
    found = curve.figures(dataset.bars_per_year, dataset.days_per_year)
    return found | {"market": as_json(beside)}


def market_curve(row: IntArray, dataset: Dataset) -> FloatArray:
    """[n + 1] worth of one unit in all instruments of the dataset, over the steps of a backtest.

    Equal weights again at each close, no costs. What happened between two slices is left out, as
    no strategy can hold anything there.

    Args:
        row: int64 [n + 1] as of `BacktestResult`.
        dataset: whose closes they are.
    """
    curve = np.empty(len(row))
    grow_equally(np.ascontiguousarray(dataset.close), row, curve)
    return curve


def period_tables(result: BacktestResult, dataset: Dataset) -> dict[str, pl.DataFrame]:
    """`PERIOD_TABLES`: figures by year and month, and over the last `ROLLING_DAYS` days."""
    risk_free = float(result.summary["risk_free"])
    given = (result.equity, result.ts)
    return {
        "years": by_year(*given, dataset.days_per_year, risk_free),
        "months": by_month(*given, dataset.days_per_year, risk_free),
        "rolling": rolling(*given, ROLLING_DAYS, dataset.days_per_year, risk_free),
    }


def _capacity(result: BacktestResult, dataset: Dataset) -> dict[str, Any]:
    """Capacity, without the closing at slice ends, which only our data asked for."""
    fills = result.fills.filter(pl.col("reason") != "slice_end")
    row = fills["row"].to_numpy()
    instruments = len(dataset.instruments)
    instrument = (
        fills["instrument"]
        .replace_strict(dataset.instruments, range(instruments), return_dtype=pl.Int64)
        .to_numpy()
    )
    found = capacity(
        row * instruments + instrument,
        fills["quantity"].to_numpy(),
        np.asarray(dataset.volume)[row, instrument],
        float(result.equity[0]),
        CAPACITY_SHARE,
    )
    bar = found.pop("bar")
    at = None if bar.value is None else divmod(int(bar.value), instruments)
    described = as_json(found)
    if at is not None:
        described["binding"] = {
            "close_ts": int(dataset.close_ts[at[0]]),
            "instrument": dataset.instruments[at[1]],
        }
    return described


def prices_of(dataset: Dataset, first: int, last: int) -> dict[str, Any]:
    """The bars of the rows `first` to `last`, as `content.ReportInput.prices` has them."""
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
    units = f"; {dataset.units}" if dataset.units else ""
    return [
        f"{len(dataset.instruments)} instrument(s) in bars of {dataset.timeframe}{units}.",
        "Decisions on a bar's close fill at the next open, with fee and slippage. Positions close "
        "with cost where a slice ends before a gap in the data; at the end of each test part, or "
        "of the range asked for, they stay open, marked at its last close without exit costs.",
        "The first decision needs a full window of bars: a curve begins that many bars after its "
        "test part does.",
    ]


def _notes(result: BacktestResult, dataset: Dataset) -> list[str]:
    """The above, and what happened in this backtest."""
    summary = result.summary
    said = [f"{summary['slices']} slice(s) of {summary['steps']} steps together."]
    if result.fills.is_empty():
        said.append("Nothing was traded: no order was given, or none could fill.")
    if summary["ambiguous_bars"]:
        said.append(
            f"In {summary['ambiguous_bars']} bar(s) the order of events inside the bar is "
            "unknown; the worse one is assumed."
        )
    return [*said, *result.mishaps, *notes_of_dataset(dataset)]
