"""A report shows one market: all its trials and baselines on the same dataset, and what they are.

It says what it was made of, how far figures hang on costs, and how many trials there ever were.
"""

import shutil

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest import contenders
from trade_pipeline.backtest.experiment_report import write_report
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.bundles import BundleReference
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import StorageError, read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.ledger import trials_tried
from trade_pipeline_tests.deployment import Deployment

NAME = "alone"


def written(trained: Deployment, said: list[str] | None = None) -> BundleReference:
    store = trained.places.store
    experiment = read_project(trained.places.configs).experiments[NAME]
    say = (lambda line: None) if said is None else said.append
    return write_report(store, NAME, experiment, bundles.staging(store, "report"), say).reference


def test_backtests_on_another_dataset_are_not_shown_beside_baselines_on_this_one(
    trained: Deployment,
) -> None:
    experiment = read_project(trained.places.configs).experiments[NAME]
    trial = next(iter(experiment.trials()))
    home = layout.experiment_bundle(trained.places.store, NAME, "backtest", trial)
    provenance = bundles.current(home).child("provenance.json")
    write_json(provenance, {**read_json(provenance), "dataset_version": "0" * 32})
    with pytest.raises(StorageError, match=rf"another version of the dataset.*: {trial}\. "):
        written(trained)


def test_a_report_names_what_it_was_made_of_and_is_the_same_again(trained: Deployment) -> None:
    store, said = trained.places.store, list[str]()
    experiment = read_project(trained.places.configs).experiments[NAME]
    report = written(trained, said)
    assert written(trained).version == report.version
    provenance = read_json(report.location.child("provenance.json"))
    assert (
        list(provenance["backtests"]) == list(provenance["policies"]) == list(experiment.trials())
    )
    for one in (
        provenance["dataset"],
        *provenance["backtests"].values(),
        *provenance["policies"].values(),
    ):
        bundles.verify(bundles.stored(ArtifactLocation(store, one["key"]), one["version"]))
    assert provenance["settings"] == experiment.model_dump(mode="json", by_alias=True)
    assert provenance["shown"]["variant"] == next(iter(experiment.variants))

    table = read_frame(report.location.child("leaderboard.parquet"))
    costs = read_frame(report.location.child("sensitivity.parquet"))
    assert set(costs["strategy"]) == set(table["name"])
    as_configured = costs.filter(pl.col("name") == "as configured")
    for row in table.to_dicts():
        again = as_configured.row(by_predicate=pl.col("strategy") == row["name"], named=True)
        if row["name"] == provenance["shown"]["variant"] or row["kind"] == "baseline":
            for figure in ("sharpe", "total_return", "max_drawdown"):
                expected = row[figure]
                if expected is not None:
                    expected = pytest.approx(expected, rel=1e-9)
                assert again[figure] == expected, "the same run again"
    assert len(said) == len(set(costs["strategy"]))
    assert said[-1].endswith("about 0 s left")

    tried = trials_tried(store, experiment=NAME).trials
    significance = read_json(report.location.child("significance.json"))
    policies = table.filter(pl.col("kind") == "policy")
    assert set(significance) == set(policies["name"])
    curves = len(experiment.variants) * len(experiment.seeds)
    for row in policies.to_dicts():
        found = significance[row["name"]]
        assert found["trials_tried"] == row["trials_tried"] == max(tried, curves)
        assert found["deflated_sharpe"] == row["deflated_sharpe"]
        assert (found["reason"] is None) == (found["deflated_sharpe"] is not None)
        assert found["spread"]["sharpe"]["values"]["seeds"] == len(experiment.seeds)


def test_trades_are_in_the_money_of_the_stitched_curve(trained: Deployment) -> None:
    store = trained.places.store
    experiment = read_project(trained.places.configs).experiments[NAME]
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, NAME, "dataset")))
    stored = contenders.stored_trials(store, NAME, experiment, dataset.version)
    assert len(dataset.folds) > 1
    left_open = 0
    for one in contenders.policies(experiment, stored, dataset):
        for seed, curve in one.curves.items():
            trials = contenders.of(stored, one.name, seed)
            trips = contenders.trips_of(trials)
            closed = trips.filter(pl.col("net").is_not_null())
            np.testing.assert_allclose(closed["net"], curve.trade_nets, rtol=1e-12)
            grown = 1.0  # what a part began with, as a multiple of what it was given
            expected = []
            for trial in trials:
                summary = read_json(trial.backtest.child("summary.json"))
                expected += [abs(q) * grown for q in summary["open_positions"].values()]
                grown *= summary["final_equity"] / summary["initial_equity"]
            held = trips.filter(pl.col("net").is_null())["quantity"].sum()
            assert held == pytest.approx(sum(expected), rel=1e-9)
            left_open += len(expected)
    assert left_open, "no position is open at the end of any part: nothing was tried"


def test_a_policy_that_is_gone_is_said_and_the_baselines_stay(trained: Deployment) -> None:
    store = trained.places.store
    provenance = read_json(written(trained).location.child("provenance.json"))
    shown = provenance["shown"]["variant"]
    for trial, one in provenance["policies"].items():
        if trial.startswith(f"{shown}."):
            shutil.rmtree(store / one["key"] / one["version"])
    report = written(trained).location
    costs = read_frame(report.child("sensitivity.parquet"))
    assert shown not in set(costs["strategy"])
    assert costs.height
    assert "is not among the other costs and delays" in report.child("report.html").path.read_text()
