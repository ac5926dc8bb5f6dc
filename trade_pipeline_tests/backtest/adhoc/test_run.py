"""Backtests that somebody asks for: an experiment's own bits over its own test part."""

import csv
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from trade_pipeline.backtest.adhoc.run import series_versions, write
from trade_pipeline.cli import app
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline_tests.backtest.adhoc.asking import (
    FIRST_TEST,
    HOLD,
    LOOKBACK,
    POLICY,
    ask,
    dates,
)
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import (
    ALPHA,
    BETA,
    materialize,
    series_entry,
    write_project,
    write_yaml,
    years,
)


@pytest.fixture(scope="module")
def gapped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """ALPHA without 10 to 12 May 2021, and with three lonely days; bars, manifest, features."""
    root = tmp_path_factory.mktemp("gapped") / "project"
    places = write_project(root)
    path = root / "data" / "alpha.csv"
    day = pl.col("ts").str.slice(0, 10)
    missing = day.is_in(["2021-05-10", "2021-05-11", "2021-05-12", "2021-06-01", "2021-06-05"])
    pl.read_csv(path).filter(~missing).write_csv(path)
    write_yaml(
        places.configs / "series.yaml",
        {
            "series": [
                {**series_entry(ALPHA, "alpha.csv", 2020), "coverage": {"min_slice_days": 1}},
                series_entry(BETA, "beta.csv", 2021),
            ]
        },
    )
    deployment = Deployment(root)
    first, last = years(places)
    for select, ends in (
        (["ohlcv"], (f"{ALPHA}|{first}", f"{ALPHA}|{last}")),
        (["manifest", "features/tiny"], (ALPHA, ALPHA)),
    ):
        done = materialize(places, deployment.instance, *select, first=ends[0], last=ends[1])
        assert done.success
    yield deployment
    deployment.instance.dispose()


@pytest.mark.parametrize(
    ("experiment", "trial"),
    [("alone", "base.f0.s0"), ("alone", "base.f1.s1"), ("pair", "base.f0.s0")],
)
def test_over_an_experiments_test_part_the_bits_are_those_of_its_backtest(
    project: Deployment, experiment: str, trial: str
) -> None:
    store = project.places.store
    dataset = load_dataset(bundles.current(layout.experiment_bundle(store, experiment, "dataset")))
    fold = int(trial.split(".")[1][1:])
    asked = dates(dataset, dataset.folds[fold].test)
    done = ask(project, policy=f"{experiment}/policy/{trial}", **asked)
    home = bundles.current(layout.experiment_bundle(store, experiment, "backtest", trial))
    assert_frame_equal(done.result.equity_frame(), read_frame(home.child("equity.parquet")))
    assert_frame_equal(done.result.fills, read_frame(home.child("fills.parquet")))
    assert done.result.summary == read_json(home.child("summary.json"))
    assert done.result.fills.height > 0
    assert done.seen.label == ""
    assert done.notes == ()


def test_nothing_after_the_range_is_even_loaded(project: Deployment) -> None:
    done = ask(project, policy=POLICY, **FIRST_TEST)
    last = datetime.fromtimestamp(int(done.dataset.ts[-1]) / 1000, UTC)
    assert last == datetime(2021, 8, 22, tzinfo=UTC)
    assert done.result.row[-1] == len(done.dataset.ts) - 1


def test_costs_of_the_request_are_those_that_are_paid(project: Deployment) -> None:
    usual = ask(project, policy=POLICY, **FIRST_TEST).result
    free = ask(
        project,
        policy=POLICY,
        costs={"fee": {"kind": "flat", "bps": 0}, "slippage": {"bps": 0}},
        **FIRST_TEST,
    ).result
    assert usual.fees.sum() > 0
    assert free.fees.sum() == 0
    assert free.slippage.sum() == 0
    assert free.fills["fee"].to_list() == [0.0] * free.fills.height
    dear = ask(project, policy=POLICY, costs={"fee": {"bps": 50}}, **FIRST_TEST).result
    notional = (dear.fills["quantity"] * dear.fills["price"]).abs()
    np.testing.assert_allclose(dear.fills["fee"], notional * 50e-4, rtol=1e-12)


def test_start_equity_scales_an_account_without_minimum_orders(project: Deployment) -> None:
    small = ask(project, **HOLD, initial_equity=1_000, **FIRST_TEST).result.equity
    large = ask(project, **HOLD, initial_equity=1_000_000, **FIRST_TEST).result.equity
    assert (small[0], large[0]) == (1_000, 1_000_000)
    np.testing.assert_allclose(large / small, 1_000, rtol=1e-12)


def test_a_baseline_earns_what_its_formula_says_from_the_first_day_on(project: Deployment) -> None:
    """Buy and hold without costs: from the second open to the last close."""
    free = {"fee": {"bps": 0}, "slippage": {"bps": 0}}
    result = ask(project, **HOLD, costs=free, **FIRST_TEST).result
    with (project.root / "data" / "alpha.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "2021-04-25" <= row["ts"] < "2021-08-23"]
    assert len(result.equity) == len(rows) == 120
    # Quantity is fixed at the first close, filled at the next open.
    quantity = 100_000 / float(rows[0]["close"])
    opened, closed = float(rows[1]["open"]), float(rows[-1]["close"])
    scale = min(1.0, 100_000 / (quantity * opened))  # never more than equity
    expected = 100_000 + quantity * scale * (closed - opened)
    assert result.equity[-1] == pytest.approx(expected, rel=1e-9)


def test_a_rules_averages_reach_back_to_before_the_range(project: Deployment) -> None:
    closes = pl.read_csv(project.root / "data" / "alpha.csv")["close"].to_numpy()
    above = np.array(
        [
            n >= 50 and closes[n - 4 : n + 1].mean() > closes[n - 49 : n + 1].mean()
            for n in range(900)
        ]
    )
    first = int(np.flatnonzero(above[200:] & above[199:-1])[0]) + 200  # above before, too
    start = date(2020, 1, 1) + timedelta(days=first)
    fills = ask(
        project,
        baseline={"kind": "sma_cross", "fast": 5, "slow": 50},
        series=[ALPHA],
        start=str(start),
        end=str(start + timedelta(days=10)),
    ).result.fills
    assert fills["time"][0] == datetime(start.year, start.month, start.day, tzinfo=UTC) + timedelta(
        1
    )


def test_buy_and_hold_and_flat_stand_beside(project: Deployment) -> None:
    done = ask(project, policy=POLICY, **FIRST_TEST)
    assert [one.name for one in done.beside] == ["buy_and_hold", "flat"]
    assert [one.name for one in ask(project, **HOLD, **FIRST_TEST).beside] == ["flat"]
    for one in done.beside:
        np.testing.assert_array_equal(one.row, done.result.row)


def test_a_gap_is_named_and_the_range_runs_slice_by_slice(gapped: Deployment) -> None:
    done = ask(gapped, **HOLD, start="2021-05-01", end="2021-05-20")
    (note,) = done.notes
    assert "no slice between 2021-05-09 and 2021-05-13" in note
    assert all(f"2021-05-{day} (1 of 1 bars are unknown" in note for day in (10, 11, 12))
    assert done.result.equity_frame()["slice"].to_list() == [0] * 9 + [1] * 6
    closing = done.result.fills.filter(pl.col("reason") == "slice_end")
    assert closing["time"].dt.date().to_list() == [date(2021, 5, 10)]  # 9 May's close
    assert not (closing["quantity"] > 0).any()


def test_slices_too_short_for_the_window_are_named(gapped: Deployment) -> None:
    done = ask(gapped, **HOLD, start="2021-05-20", end="2021-06-20", environment={"window": 5})
    assert "2021-06-02 to 2021-06-04" in done.notes[-1]
    assert "fewer rows than the 7 that a window of 5 needs" in done.notes[-1]


def test_bars_without_features_are_no_rows_and_that_is_said(gapped: Deployment) -> None:
    asked: dict[str, Any] = {**HOLD, "features": "tiny", "start": "2021-05-13"}
    done = ask(gapped, **asked, end="2021-05-25")
    assert f"first {LOOKBACK} bars of a slice have no features" in done.notes[-1]
    assert "rows begin on 2021-05-22" in done.notes[-1]
    assert len(done.result.equity) == 3
    with pytest.raises(SettingsError) as refused:
        ask(gapped, **asked, end="2021-05-24")
    said = str(refused.value)
    assert f"The first {LOOKBACK} bars of a slice have no features" in said
    assert "2 rows in 1 slice(s), the longest of 2, but a window of 1 needs 3" in said


def test_a_liquidation_and_a_leverage_that_is_none_are_said(
    project: Deployment, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {
        "baseline": {"kind": "volatility_target", "window": 5, "target": 10, "max_leverage": 30},
        "series": [ALPHA],
        **FIRST_TEST,
    }
    limits = {"max_leverage": 30, "max_position": 30, "maintenance_margin": 0.02}
    done = ask(project, **asked, environment=limits)
    count = done.result.summary["fills"]["liquidation"]
    assert count > 0
    note = done.notes[0]
    assert note.startswith(f"{count} position(s) of volatility_target_10_5_max_leverage_30 were")
    staging = bundles.staging(tmp_path / "store", "adhoc")
    write(done, staging)
    page = staging.child("report.html").path.read_text(encoding="utf-8")
    assert page.count("were liquidated for want of margin") == 1

    (note,) = ask(project, **asked).notes
    assert "may take 30 times equity, but the environment caps it at 1;" in note


def test_keys_differ_by_what_is_asked_and_not_by_how(project: Deployment) -> None:
    def key(**content: Any) -> str:
        return ask(project, **{**FIRST_TEST, **content}).request.key

    usual = key(policy=POLICY)
    assert re.fullmatch(r"[0-9a-f]{16}", usual)
    version = bundles.current(ArtifactLocation(project.places.store, POLICY)).path.name
    for same in (
        {"version": version},
        {"series": [ALPHA], "features": "tiny"},
        {"from": "2021-04-25T02:00+02:00"},
        {"costs": {"fee": {"kind": "flat"}}},
        {"initial_equity": 100_000},
    ):
        assert key(policy=POLICY, **same) == usual, same
    others = [
        key(policy=POLICY, **other)
        for other in ({"costs": {"fee": {"bps": 11}}}, {"to": "2021-08-22"}, {"series": [BETA]})
    ]
    others += [key(policy="alone/policy/base.f0.s1"), key(**HOLD), key(**HOLD, features="tiny")]
    assert len({usual, *others}) == len(others) + 1


def test_rows_make_the_data_version_of_a_series(project: Deployment) -> None:
    done = ask(project, **HOLD, **FIRST_TEST)
    wider = ask(project, **HOLD, start="2021-04-25", end="2021-08-24")
    assert series_versions(done.dataset) == series_versions(
        ask(project, **HOLD, **FIRST_TEST).dataset
    )
    assert series_versions(done.dataset) != series_versions(wider.dataset)


def test_the_bundle_is_verified_pruned_and_refused_by_reproduce(
    project: Deployment, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    done = ask(project, **HOLD, **FIRST_TEST)
    home = layout.adhoc_backtest(store, done.request.key)
    versions = []
    for shown in (done, ask(project, **HOLD, initial_equity=5, **FIRST_TEST), done):
        written = write(shown, bundles.staging(store, "adhoc"))
        versions.append(bundles.commit(written.reference, home).path.name)
    assert versions[0] == versions[2] != versions[1]
    assert len(list(home.path.glob("*/bundle.json"))) == 2
    cli = CliRunner()
    key = f"adhoc_backtest/{done.request.key}"
    where = ["--store", str(store)]
    assert cli.invoke(app, ["bundle", "verify", key, *where]).exit_code == 0
    refused = cli.invoke(app, ["reproduce", key, *where])
    assert refused.exit_code == 1
    assert "ad-hoc backtests are no kind that is rebuilt" in refused.output
    assert cli.invoke(app, ["bundle", "prune", key, "--keep", "1", *where]).exit_code == 0
    assert bundles.current(home).path.name == versions[0]
    assert len(list(home.path.glob("*/bundle.json"))) == 1
