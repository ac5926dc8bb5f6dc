"""A report shows one market: all its trials and baselines on the same dataset, and what they are.

It says what it was made of, how far figures hang on costs, and how many trials there ever were.
"""

import re
import shutil
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
import yaml

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
from trade_pipeline_tests.backtest.report.reading import figures_in
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import write_yaml

NAME = "alone"
LOOKBACK = 9  # bars that the features of the small project reach back


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
            trips = contenders.trips_of(trials, dataset)
            closed = trips.filter(pl.col("net").is_not_null())
            still_open = trips.filter(pl.col("net").is_null())
            np.testing.assert_allclose(closed["net"], curve.trade_nets, rtol=1e-12)
            summaries = [read_json(one.backtest.child("summary.json")) for one in trials]
            positions = [name for one in summaries for name in one["open_positions"]]
            assert still_open["instrument"].to_list() == positions, "a row a position"
            assert (still_open["mfe"] >= 0).all()
            earned = trips.select(pl.sum_horizontal(pl.sum("net", "realised", "unrealised"))).item()
            assert earned - curve.financing == pytest.approx(
                curve.equity[-1] - curve.equity[0], rel=1e-9
            )
            left_open += len(positions)
    assert left_open, "no position is open at the end of any part: nothing was tried"


def test_the_page_states_the_days_of_each_fold_and_marks_what_lies_between(
    trained: Deployment,
) -> None:
    page = written(trained).location.child("report.html").path.read_text()
    table = page.split('id="folds-table"')[1].split("</table>")[0]
    plain = re.sub("</?span>", "", table)
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in plain.split("<tr")[2:]]
    first = date(2020, 1, 1)
    assert [row[0] for row in rows] == ["f0", "f1"]
    store = trained.places.store
    days, before = 0, date.min
    for fold, row in enumerate(rows):
        backtest = bundles.current(
            layout.experiment_bundle(store, NAME, "backtest", f"base.f{fold}.s0")
        )
        closes = read_frame(backtest.child("equity.parquet"))["time"].dt.date()
        trained_on, validated, tested, equity, skipped = row[1:]
        end = first + timedelta(days=400 + 120 * fold)
        assert trained_on.endswith(str(end - timedelta(days=1 + LOOKBACK)))
        assert validated.startswith(str(end))
        last = end + timedelta(days=80 + 120 - 1)
        assert tested == f"{end + timedelta(days=80)} to {last}"
        # The close of a day's bar is the next midnight.
        assert equity == f"{closes[0] - timedelta(days=1)} to {closes[-1] - timedelta(days=1)}"
        if fold:
            days = (closes[0] - before).days
            assert skipped.endswith(f"({days} days)")
            assert 0 < days < 30
        before = closes[-1]
    figures = figures_in(page)
    for chart in ("equity-chart", "price-chart-0"):
        (shape,) = figures[chart]["layout"]["shapes"]
        assert shape["x1"] - shape["x0"] == days * 86_400_000
    assert "at the very end" not in page


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


def test_a_baseline_that_never_has_enough_bars_is_named_in_the_notes(trained: Deployment) -> None:
    file = trained.places.configs / "experiments" / f"{NAME}.yaml"
    settings = yaml.safe_load(file.read_text())
    baselines = [{"kind": "momentum", "lookback": bars} for bars in (20, 900)]
    write_yaml(file, {**settings, "baselines": baselines})
    text = written(trained).location.child("report.html").path.read_text()
    notes = text.split('<section id="notes">')[1].split("</section>")[0]
    assert "momentum_900 needs 901 bars without a gap" in notes
    assert "so it stays flat" in notes
    assert "momentum_20 needs" not in text
