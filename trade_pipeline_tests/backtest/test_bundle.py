import json
import re
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.backtest.bundle import DETERMINISTIC, TABLES, write_backtest
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.settings.baselines import (
    BuyAndHoldBaseline,
    FlatBaseline,
    RandomBaseline,
)
from trade_pipeline.storage.bundles import BundleReference, verify
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.backtest.report.reading import figures_in
from trade_pipeline_tests.training import synthetic


def write(store: Path, folder: str, seed: int = 0, flat: bool = False) -> BundleReference:
    dataset = synthetic.dataset()
    environment = synthetic.experiment().environment
    test = dataset.folds[0].test
    shown = FlatBaseline(kind="flat") if flat else RandomBaseline(kind="random", seed=seed)
    beside = backtest(dataset, test, environment, baseline(BuyAndHoldBaseline(kind="buy_and_hold")))
    result = backtest(dataset, test, environment, baseline(shown))
    return write_backtest(
        result,
        dataset,
        ArtifactLocation(store, folder),
        "demo base.f0.s0",
        {"dataset": "0" * 32},
        [beside],
    ).reference


def test_every_member_is_deterministic_and_the_same_backtest_has_the_same_version(
    tmp_path: Path,
) -> None:
    first, again, other = write(tmp_path, "a"), write(tmp_path, "b"), write(tmp_path, "c", seed=1)
    assert first.version == again.version != other.version
    index = verify(first.location)
    assert {member["name"] for member in index["members"]} == set(DETERMINISTIC)
    assert all(member["deterministic"] for member in index["members"])


def test_tables_are_there_as_parquet_and_the_same_as_csv(tmp_path: Path) -> None:
    location = write(tmp_path, "a").location
    for name in TABLES:
        table = read_frame(location.child(f"{name}.parquet"))
        assert table.height > 1
        text = pl.read_csv(location.path / f"{name}.csv", infer_schema_length=None)
        times = [column for column, dtype in table.schema.items() if dtype == pl.Datetime]
        numbers = [column for column in table.columns if column not in times]
        assert_frame_equal(text.select(numbers), table.select(numbers), check_exact=True)


def test_metrics_and_summary_agree_with_the_tables(tmp_path: Path) -> None:
    location = write(tmp_path, "a").location
    equity = read_frame(location.child("equity.parquet"))
    fills = read_frame(location.child("fills.parquet"))
    trades = read_frame(location.child("trades.parquet"))
    found = json.loads((location.path / "metrics.json").read_text())
    summary = json.loads((location.path / "summary.json").read_text())
    assert summary["final_equity"] == equity["equity"][-1]
    assert summary["ambiguous_bars"] >= 0
    assert not summary["terminated"]
    counts = fills["reason"].value_counts()
    assert {k: v for k, v in summary["fills"].items() if v} == dict(counts.iter_rows())
    assert found["values"]["trades"] == trades.height
    assert found["values"]["total_return"] == pytest.approx(
        equity["equity"][-1] / equity["equity"][0] - 1
    )
    assert found["values"]["fees_paid"] == pytest.approx(fills["fee"].sum())
    assert (trades["mae"] >= 0).all()
    report = (location.path / "report.html").read_text()
    assert "demo base.f0.s0" in report
    assert "buy_and_hold" in report


def test_what_the_page_is_about_is_its_strongest_line_and_its_trades_make_its_equity(
    tmp_path: Path,
) -> None:
    location = write(tmp_path, "a").location
    page = (location.path / "report.html").read_text()
    lines = {
        trace["name"]: (trace["line"]["width"], trace.get("opacity", 1.0))
        for trace in figures_in(page)["equity-chart"]["data"]
        if trace["yaxis"] == "y"
    }
    assert max(lines, key=lambda name: lines[name]) == "random_0"
    assert lines["random_0"] > lines["buy_and_hold"]
    equity = read_frame(location.child("equity.parquet"))["equity"]
    table = page.split('id="reconciled-table"')[1].split("</table>")[0]
    *parts, change = [
        float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))
        for text in re.findall(r'<td class="number">([^<]+)</td>', table)
    ]
    assert change == pytest.approx(equity[-1] - equity[0], abs=0.01)
    assert sum(parts) == pytest.approx(change, abs=0.01 * len(parts))


def test_a_strategy_that_never_trades_still_makes_a_bundle(tmp_path: Path) -> None:
    location = write(tmp_path, "a", flat=True).location
    found = json.loads((location.path / "metrics.json").read_text())
    assert found["values"]["sharpe"] is None
    assert found["undefined"]["sharpe"]
    assert read_frame(location.child("trades.parquet")).is_empty()
