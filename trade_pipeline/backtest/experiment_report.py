"""The report of an experiment: every trial's test curve beside the baselines, after costs.

Start at `write_report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from trade_pipeline.backtest import leaderboard
from trade_pipeline.backtest.bundle import ROLLING_DAYS, notes_of_dataset, prices_of
from trade_pipeline.backtest.contenders import (
    Contender,
    StoredTrial,
    baselines,
    first_environment,
    of,
    policies,
    runs_of,
    stored_trials,
    trips_of,
)
from trade_pipeline.backtest.plugins.installed import strategy_versions
from trade_pipeline.backtest.report import page
from trade_pipeline.backtest.report.content import Curve, Fold, ReportInput
from trade_pipeline.backtest.report.pictures import equity_png
from trade_pipeline.backtest.rules import IMPLEMENTATION as RULES_IMPLEMENTATION
from trade_pipeline.backtest.sensitivity import Run, sensitivity
from trade_pipeline.backtest.trial import implementations
from trade_pipeline.evaluation.growth import day_returns
from trade_pipeline.evaluation.measure import Measure
from trade_pipeline.evaluation.periods import by_month, rolling
from trade_pipeline.evaluation.significance import deflated_sharpe, seed_spread
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleError, BundleReference, seal
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, replacing
from trade_pipeline.training.dataset import Dataset, load_dataset
from trade_pipeline.training.ledger import trials_tried
from trade_pipeline.training.splits import Rows

IMPLEMENTATION = 3
PAGE, METRICS, PROVENANCE = "report.html", "metrics.json", "provenance.json"
SIGNIFICANCE, SENSITIVITY = "significance.json", "sensitivity.parquet"
SPREAD = ("sharpe", "total_return", "max_drawdown", "turnover", "trades")


@dataclass(frozen=True)
class WrittenReport:
    """A sealed report bundle, its leaderboard as markdown, and a picture of the curves."""

    reference: BundleReference
    table: str
    picture: bytes


def write_report(
    store: Path,
    name: str,
    experiment: ExperimentSettings,
    staging: ArtifactLocation,
    say: Callable[[str], None] = lambda line: None,
) -> WrittenReport:
    """Write the report bundle of an experiment.

    Args:
        store: root folder of the store.
        name: of the experiment.
        experiment: its settings.
        staging: empty folder.
        say: takes lines of progress.

    Raises:
        StorageError: a trial has no backtest, or backtests ran on different datasets.
    """
    home = layout.experiment_bundle(store, name, "dataset")
    dataset = load_dataset(bundles.current(home))
    stored = stored_trials(store, name, experiment, dataset.version)
    trained = policies(experiment, stored, dataset)
    rules, runs, idle = baselines(experiment, dataset, name)
    contenders = [*trained, *rules]
    significance = _significance(store, name, trained, dataset)
    shown = trained[0]
    trials = of(stored, shown.name, shown.seed)
    said = [f"Prices and trades show {shown.name}, seed {shown.seed}, its median seed."]
    try:
        mine = runs_of(trials, dataset)
        runs = {shown.name: mine, **runs}
    except BundleError as error:
        mine = []
        said.append(f"{shown.name} is not among the other costs and delays: {error}")
    varied = sensitivity(runs, first_environment(experiment), say)
    table = leaderboard.table(
        [
            leaderboard.row(
                name,
                one.name,
                one.kind,
                one.figures,
                len(dataset.folds),
                significance.get(one.name, {}),
            )
            for one in contenders
        ]
    )
    provenance = _provenance(store, name, experiment, dataset, stored, shown)
    curve = shown.middle
    given = (curve.equity, curve.close_ts)
    yearly = (dataset.days_per_year, curve.risk_free)
    content = ReportInput(
        title=name,
        curves=_page_curves(contenders),
        leaderboard=table.drop("experiment"),
        prices=prices_of(dataset, *_test_rows(dataset)),
        trips=trips_of(trials, dataset),
        financing=curve.financing,
        folds=_folds(dataset, trials),
        metrics={one.name: one.figures[one.seed] for one in contenders},
        provenance=_shown(provenance),
        notes=[*said, *idle, *_deflation_notes(significance), *notes_of_dataset(dataset)],
        months=by_month(*given, *yearly),
        rolling=rolling(*given, ROLLING_DAYS, *yearly),
        exposure=(curve.close_ts[1:], curve.exposure),
        regimes=_regimes(mine),
        learning=_learning(stored),
        sensitivity=varied,
        configuration=yaml_text(provenance["settings"]),
    )
    staging.path.mkdir(parents=True, exist_ok=True)
    write_frame(staging.child(leaderboard.MEMBER), table)
    write_frame(staging.child(SENSITIVITY), varied)
    documents = {
        METRICS: {
            one.name: {str(s): found for s, found in one.figures.items()} for one in contenders
        },
        SIGNIFICANCE: significance,
        PROVENANCE: provenance,
    }
    for member, document in documents.items():
        write_json(staging.child(member), document)
    with replacing(staging.child(PAGE)) as path:
        path.write_text(page.render(content), encoding="utf-8")
    return WrittenReport(
        reference=seal(staging, [leaderboard.MEMBER, SENSITIVITY, *documents, PAGE]),
        table=leaderboard.markdown(table),
        picture=equity_png(
            {one.name: (one.middle.close_ts, one.middle.equity) for one in contenders},
            f"{name}: test parts, after costs",
        ),
    )


def _significance(
    store: Path, name: str, trained: Sequence[Contender], dataset: Dataset
) -> dict[str, dict[str, Any]]:
    """Of each policy: its Sharpe ratio deflated by all that was ever tried, and its seeds' spread.

    Trials that the ledger does not know, such as imported ones, count as well.
    """
    tried = trials_tried(store, experiment=name)
    sharpes = [one.figures[seed]["values"]["sharpe"] for one in trained for seed in one.figures]
    trials = max(tried.trials, len(sharpes))
    found = {}
    for one in trained:
        curve = one.middle
        returns = day_returns(curve.equity, curve.close_ts)
        deflated: Measure = deflated_sharpe(
            returns, dataset.days_per_year, trials, sharpes, curve.risk_free
        )
        found[one.name] = {
            "deflated_sharpe": deflated.value,
            "reason": deflated.reason,
            "trials_tried": trials,
            "configurations_tried": tried.configurations,
            "spread": seed_spread({s: f["values"] for s, f in one.figures.items()}, SPREAD),
        }
    return found


def _deflation_notes(significance: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why a policy has no deflated Sharpe ratio."""
    return [
        f"{name}: no deflated Sharpe ratio: {found['reason']}."
        for name, found in significance.items()
        if found["reason"] is not None
    ]


def _provenance(
    store: Path,
    name: str,
    experiment: ExperimentSettings,
    dataset: Dataset,
    stored: Mapping[str, StoredTrial],
    shown: Contender,
) -> dict[str, Any]:
    """What the report was made of: keys and versions of bundles, settings, implementations."""

    def named(location: ArtifactLocation) -> dict[str, str]:
        key = location.path.parent.relative_to(store).as_posix()
        return {"key": key, "version": location.path.name}

    home = layout.experiment_bundle(store, name, "dataset")
    return {
        "experiment": name,
        "dataset": {"key": home.key, "version": dataset.version},
        "inputs": dict(dataset.input_versions),
        "backtests": {key: named(one.backtest) for key, one in stored.items()},
        "policies": {key: named(one.policy) for key, one in stored.items()},
        "shown": {"variant": shown.name, "seed": shown.seed},
        "settings": experiment.model_dump(mode="json", by_alias=True),
        "implementations": {
            **implementations(),
            "rules": RULES_IMPLEMENTATION,
            "report": IMPLEMENTATION,
        },
        "strategies": strategy_versions(experiment.baselines),
    }


def _shown(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Versions and hashes, a line each."""
    return {
        "dataset": provenance["dataset"]["version"],
        **provenance["inputs"],
        **{f"policy {key}": one["version"] for key, one in provenance["policies"].items()},
        **{f"backtest {key}": one["version"] for key, one in provenance["backtests"].items()},
        **{f"strategy {key}": version for key, version in provenance["strategies"].items()},
        **{f"implementation of {key}": str(n) for key, n in provenance["implementations"].items()},
    }


def _learning(stored: Mapping[str, StoredTrial]) -> dict[str, pl.DataFrame]:
    """Diagnostics of each trial's training, where the policy is still stored."""
    members = {key: one.policy.child("diagnostics.parquet") for key, one in stored.items()}
    return {key: read_frame(member) for key, member in members.items() if member.path.exists()}


def _regimes(runs: Sequence[Run]) -> tuple[Any, Any] | None:
    """Opens of the test parts' bars with the regime known there, each fold by its own model."""
    times, labels = [], []
    for run in runs:
        if run.dataset.regime_labels is None:
            return None
        for a, b in run.part.tolist():
            times.append(run.dataset.ts[a:b])
            labels.append(run.dataset.regime_labels[a:b].astype(np.int64))
    return (np.concatenate(times), np.concatenate(labels)) if times else None


def _page_curves(contenders: Sequence[Contender]) -> list[Curve]:
    curves = []
    for one in contenders:
        curves.append(Curve(one.name, one.kind, one.middle.close_ts, one.middle.equity))
        curves += [
            Curve(f"{one.name} seed {seed}", "trial", curve.close_ts, curve.equity)
            for seed, curve in one.curves.items()
            if seed != one.seed
        ]
    return curves


def _folds(dataset: Dataset, trials: Sequence[StoredTrial]) -> list[Fold]:
    """Times of the folds behind a stitched curve."""

    def ends(rows: Rows) -> tuple[int, int]:
        return int(dataset.ts[rows[0, 0]]), int(dataset.ts[rows[-1, 1] - 1])

    found = []
    for one in trials:
        fold = dataset.folds[one.trial.fold]
        closes = read_frame(one.backtest.child("equity.parquet"))["time"].dt.epoch("ms")
        curve = int(closes[0]), int(closes[-1])
        found.append(Fold(ends(fold.train), ends(fold.validation), ends(fold.test), curve))
    return found


def _test_rows(dataset: Dataset) -> tuple[int, int]:
    """First and last row of all test parts."""
    tests = [fold.test for fold in dataset.folds]
    return min(int(one[0, 0]) for one in tests), max(int(one[-1, 1]) for one in tests) - 1
