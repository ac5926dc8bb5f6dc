"""What a backtest's bundle says of it: market, capacity, regimes, years, months, moving windows."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.backtest.bundle import (
    CAPACITY_SHARE,
    PERIOD_TABLES,
    figures,
    market_curve,
    write_backtest,
)
from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.settings.baselines import (
    BuyAndHoldBaseline,
    FlatBaseline,
    RandomBaseline,
)
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.training import synthetic

RANDOM = RandomBaseline(kind="random", seed=0)
FLAT = FlatBaseline(kind="flat")
HOLD = BuyAndHoldBaseline(kind="buy_and_hold")


@pytest.fixture(scope="module")
def dataset():
    made = synthetic.dataset()
    labels = np.random.default_rng(0).integers(-1, 2, len(made.ts)).astype(np.int8)
    return replace(made, regime_labels=labels)


def run(dataset, strategy, keys=("demo.A.1h",)):
    environment = synthetic.experiment(keys).environment
    return backtest(dataset, dataset.folds[0].test, environment, baseline(strategy))


def test_a_bundle_holds_years_months_and_windows_as_they_are_in_the_curve(tmp_path, dataset):
    result = run(dataset, RANDOM)
    location = ArtifactLocation(tmp_path, "a")
    write_backtest(result, dataset, location, "demo", {})
    equity = result.equity
    for name in PERIOD_TABLES:
        table = read_frame(location.child(f"{name}.parquet"))
        text = pl.read_csv(location.path / f"{name}.csv", schema_overrides={"reason": pl.String})
        numbers = [column for column in table.columns if column != "time"]
        cast = {column: table.schema[column] for column in numbers}
        assert_frame_equal(text.select(numbers).cast(cast), table.select(numbers))
        assert table.height
        if name != "rolling":
            assert np.prod(table["return"].to_numpy() + 1) == pytest.approx(equity[-1] / equity[0])
    found = json.loads((location.path / "metrics.json").read_text())
    assert found == figures(result, dataset)
    for section in (found["market"], found["capacity"], *found["regimes"].values()):
        nulls = {name for name, value in section["values"].items() if value is None}
        assert nulls == set(section["undefined"])


def test_the_market_beside_a_backtest_moves_as_closes_do_inside_its_slices():
    keys = ("demo.A.1h", "demo.B.1h")
    dataset = synthetic.dataset(keys)
    result = run(dataset, HOLD, keys)
    curve = market_curve(result.row, dataset)
    assert curve[0] == 1.0 and curve.size == result.equity.size
    level = 1.0
    for step, row in enumerate(result.row[1:].tolist()):
        moves = [dataset.close[row, n] / dataset.close[row - 1, n] - 1 for n in range(2)]
        level *= 1 + sum(moves) / 2
        assert curve[step + 1] == pytest.approx(level)
    # Buying and holding both is the market less costs, and being filled at the open.
    assert figures(result, dataset)["market"]["values"]["beta"] == pytest.approx(1.0, abs=0.2)


def test_regimes_are_those_known_when_the_bar_was_decided(dataset):
    result = run(dataset, RANDOM)
    found = figures(result, dataset)["regimes"]
    returns = result.equity[1:] / result.equity[:-1] - 1
    decided = [int(dataset.regime_labels[row - 1]) for row in result.row[1:]]
    assert set(found) == {"none", "0", "1"}
    for label in (-1, 0, 1):
        rows = [step for step, one in enumerate(decided) if one == label]
        values = found["none" if label == -1 else str(label)]["values"]
        assert values["bars"] == len(rows)
        assert values["return"] == pytest.approx(np.prod(returns[rows] + 1) - 1)
        assert values["exposure"] == pytest.approx(result.exposure[rows].mean())
    assert "regimes" not in figures(result, replace(dataset, regime_labels=None))


def test_capacity_is_bound_by_the_bar_that_was_traded_most_for_its_volume(dataset):
    thin = dataset.volume + 7.0 * np.arange(len(dataset.ts))[:, None]
    thinned = replace(dataset, volume=thin)
    result = run(thinned, RANDOM)
    shares = {}
    for fill in result.fills.iter_rows(named=True):
        if fill["reason"] != "slice_end":
            row = fill["row"]
            shares[row] = shares.get(row, 0.0) + abs(fill["quantity"]) / thin[row, 0]
    binding = max(shares, key=shares.get)
    found = figures(result, thinned)["capacity"]
    assert found["values"]["largest_share"] == pytest.approx(shares[binding])
    expected = result.equity[0] * CAPACITY_SHARE / shares[binding]
    assert found["values"]["equity"] == pytest.approx(expected)
    assert found["binding"] == {
        "close_ts": int(thinned.close_ts[binding]),
        "instrument": "demo.A.1h",
    }


def test_closings_at_slice_ends_do_not_bind_the_capacity(dataset):
    result = run(dataset, HOLD)
    forced = result.fills.filter(pl.col("reason") == "slice_end")
    assert forced.height
    volume = dataset.volume.copy()
    volume[forced["row"].to_numpy()] = 0.0
    assert figures(result, replace(dataset, volume=volume))["capacity"]["values"]["equity"] > 0


def test_a_strategy_that_never_trades_has_no_capacity_and_nothing_in_common_with_the_market(
    dataset,
):
    found = figures(run(dataset, FLAT), dataset)
    assert found["capacity"]["undefined"]["equity"] == "nothing was traded"
    assert "binding" not in found["capacity"]
    assert found["market"]["values"]["beta"] == 0.0
    assert "correlation" in found["market"]["undefined"]
    assert found["undefined"]["costs_share"].startswith("the gross result is not above zero")
