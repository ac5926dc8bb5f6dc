"""The report of an experiment: every trial's test curve beside the baselines, after costs.

Reads the trials' backtest bundles, stitches the folds, runs the baselines on the same test parts.
Start at `write_report`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from trade_pipeline.backtest import leaderboard
from trade_pipeline.backtest.bundle import notes_of_dataset, prices_of
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.leaderboard import Curve
from trade_pipeline.backtest.report import page
from trade_pipeline.backtest.report.pictures import equity_png
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.backtest.trial import PROVENANCE
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference, seal
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import StorageError, read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, replacing
from trade_pipeline.training.dataset import Dataset, load_dataset

IMPLEMENTATION = 1
PAGE, METRICS = "report.html", "metrics.json"


@dataclass(frozen=True)
class WrittenReport:
    """A sealed report bundle, its leaderboard as markdown, and a picture of the curves."""

    reference: BundleReference
    table: str
    picture: bytes


@dataclass(frozen=True)
class _Contender:
    """A policy or baseline: stitched curve and figures of each seed; a baseline has seed 0."""

    name: str
    kind: Literal["policy", "baseline"]
    curves: dict[int, Curve]
    figures: dict[int, dict[str, Any]]

    @property
    def seed(self) -> int:
        return leaderboard.median_seed(self.figures)

    @property
    def middle(self) -> Curve:
        return self.curves[self.seed]


def write_report(
    store: Path, name: str, experiment: ExperimentSettings, staging: ArtifactLocation
) -> WrittenReport:
    """Write the report bundle of an experiment.

    Raises:
        StorageError: a trial has no backtest, or backtests ran on different datasets.
    """
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, name, "dataset")))
    tested = _tested(store, name, experiment, dataset.version)
    contenders = [
        *(_policy(experiment, variant, tested, dataset) for variant in experiment.variants),
        *_baselines(experiment, dataset, name),
    ]
    table = leaderboard.table(
        [
            leaderboard.row(name, one.name, one.kind, one.figures, len(dataset.folds))
            for one in contenders
        ]
    )
    shown = contenders[0]
    trips = [
        read_frame(tested[trial.key].child("trades.parquet"))
        for trial in experiment.trials().values()
        if trial.variant == shown.name and trial.seed == shown.seed
    ]
    content = page.ReportInput(
        title=name,
        curves=_page_curves(contenders),
        leaderboard=table.drop("experiment"),
        prices=prices_of(dataset, *_test_rows(dataset)),
        trips=pl.concat(trips),
        metrics={one.name: one.figures[one.seed] for one in contenders},
        provenance={
            "dataset": dataset.version,
            **{f"backtest {key}": location.path.name for key, location in tested.items()},
        },
        notes=[
            f"Prices and trades show {shown.name}, seed {shown.seed}, its median seed.",
            *notes_of_dataset(dataset),
        ],
    )
    staging.path.mkdir(parents=True, exist_ok=True)
    write_frame(staging.child(leaderboard.MEMBER), table)
    write_json(
        staging.child(METRICS),
        {one.name: {str(seed): found for seed, found in one.figures.items()} for one in contenders},
    )
    with replacing(staging.child(PAGE)) as path:
        path.write_text(page.render(content), encoding="utf-8")
    return WrittenReport(
        reference=seal(staging, [leaderboard.MEMBER, METRICS, PAGE]),
        table=leaderboard.markdown(table),
        picture=equity_png(
            {one.name: (one.middle.close_ts, one.middle.equity) for one in contenders},
            f"{name}: test parts, after costs",
        ),
    )


def _tested(
    store: Path, name: str, experiment: ExperimentSettings, dataset_version: str
) -> dict[str, ArtifactLocation]:
    """The current backtest bundle of every trial, all on the dataset of that version."""
    found = {}
    missing = []
    others = []
    for key in experiment.trials():
        home = layout.experiment_bundle(store, name, "backtest", key)
        if bundles.current_version(home) is None:
            missing.append(key)
        else:
            found[key] = bundles.current(home)
            if read_json(found[key].child(PROVENANCE))["dataset_version"] != dataset_version:
                others.append(key)
    if others:
        raise StorageError(
            f"{name}/report shows one market, but these backtests ran on another version of the "
            f"dataset than the current {dataset_version}: {', '.join(others)}. Materialize "
            f"{name}/policy and {name}/backtest of these partitions again."
        )
    if missing:
        raise StorageError(
            f"{name}/report needs a backtest of every trial; missing: {', '.join(missing)}. "
            f"Materialize {name}/policy and {name}/backtest of these partitions."
        )
    return found


def _policy(
    experiment: ExperimentSettings,
    variant: str,
    tested: dict[str, ArtifactLocation],
    dataset: Dataset,
) -> _Contender:
    curves = {}
    for seed in experiment.seeds:
        parts = [
            _stored_curve(tested[trial.key])
            for trial in experiment.trials().values()
            if trial.variant == variant and trial.seed == seed
        ]
        curves[seed] = leaderboard.stitch(parts)
    return _Contender(variant, "policy", curves, _figures(curves, dataset))


def _baselines(experiment: ExperimentSettings, dataset: Dataset, origin: str) -> list[_Contender]:
    """Baselines on the same test parts, window and costs as the first variant."""
    environment, _ = experiment.variant(next(iter(experiment.variants)))
    contenders = []
    for settings in experiment.baselines:
        parts = [
            Curve.of(backtest(dataset, fold.test, environment, baseline(settings), origin))
            for fold in dataset.folds
        ]
        curves = {0: leaderboard.stitch(parts)}
        name = baseline(settings).name
        contenders.append(_Contender(name, "baseline", curves, _figures(curves, dataset)))
    return contenders


def _figures(curves: dict[int, Curve], dataset: Dataset) -> dict[int, dict[str, Any]]:
    return {
        seed: curve.figures(dataset.bars_per_year, dataset.days_per_year)
        for seed, curve in curves.items()
    }


def _stored_curve(location: ArtifactLocation) -> Curve:
    """The curve of a backtest bundle; its money totals are those of its summary."""
    equity = read_frame(location.child("equity.parquet"))
    summary = read_json(location.child("summary.json"))
    return Curve(
        close_ts=equity["time"].dt.epoch("ms").to_numpy(),
        equity=equity["equity"].to_numpy(),
        exposure=equity["exposure"].to_numpy()[1:],
        turnover=equity["turnover"].to_numpy()[1:],
        trade_nets=read_frame(location.child("trades.parquet"))["net"].to_numpy(),
        **{name: float(summary[name]) for name in ("fees", "slippage", "financing", "risk_free")},
    )


def _page_curves(contenders: Sequence[_Contender]) -> list[page.Curve]:
    curves = []
    for one in contenders:
        curves.append(page.Curve(one.name, one.kind, one.middle.close_ts, one.middle.equity))
        curves += [
            page.Curve(f"{one.name} seed {seed}", "trial", curve.close_ts, curve.equity)
            for seed, curve in one.curves.items()
            if seed != one.seed
        ]
    return curves


def _test_rows(dataset: Dataset) -> tuple[int, int]:
    """First and last row of all test parts."""
    tests = [fold.test for fold in dataset.folds]
    return min(int(one[0, 0]) for one in tests), max(int(one[-1, 1]) for one in tests) - 1
