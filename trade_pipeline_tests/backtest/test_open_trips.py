"""A position still open is one row that says what it earned so far, counted here by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from trade_pipeline.backtest.engine import backtest
from trade_pipeline.backtest.open_trips import SCHEMA, open_trips
from trade_pipeline.backtest.strategies import baseline
from trade_pipeline.evaluation.trades import FILL_SCHEMA, match_fills
from trade_pipeline.settings.baselines import RandomBaseline
from trade_pipeline.training.dataset import Dataset
from trade_pipeline_tests.training import synthetic

DATASET = synthetic.dataset()
(NAME,) = DATASET.instruments
TIME = datetime(2024, 1, 1, tzinfo=UTC)


def fills(*given: tuple[int, float, float, float]) -> pl.DataFrame:
    """Of rows, signed quantities, prices and fees."""
    rows = [
        (TIME, row, NAME, quantity, price, fee, 0.0, "order", number)
        for number, (row, quantity, price, fee) in enumerate(given)
    ]
    return pl.DataFrame(rows, schema=FILL_SCHEMA, orient="row")


def priced(**prices: list[float]) -> Dataset:
    """The made-up dataset with these prices from its first row on."""
    changed: dict[str, Any] = {}
    for name, values in prices.items():
        column = np.array(getattr(DATASET, name))
        column[: len(values), 0] = values
        changed[name] = column
    return replace(DATASET, **changed)


def test_a_position_built_up_and_sold_in_parts_is_one_row_with_both_results() -> None:
    dataset = priced(
        high=[100.0, 105.0, 130.0, 125.0, 123.0, 999.0],
        low=[99.0, 99.0, 108.0, 106.0, 118.0, 1.0],
        close=[100.0, 104.0, 112.0, 118.0, 121.0, 500.0],
    )
    bought = ((1, 10.0, 100.0, 1.0), (2, 10.0, 110.0, 2.0))
    tables = match_fills(fills(*bought, (3, -5.0, 120.0, 0.5)))
    assert tables.open_lots.height == 2
    (row,) = open_trips(tables, dataset, last=4).to_dicts()
    assert (row["instrument"], row["side"], row["entry_row"], row["bars"]) == (NAME, "long", 1, 3)
    assert (row["quantity"], row["entry_price"], row["first_price"]) == (20.0, 105.0, 100.0)
    assert (row["exit_time"], row["exit_price"], row["net"]) == (None, None, None)
    assert row["fee"] == pytest.approx(3.5)
    # Five of the first ten at 120, with half of the first fee and all of the exit's.
    assert row["realised"] == pytest.approx(5 * 20 - 0.5 - 0.5)
    # At the close of row 4, not of any later one.
    assert row["unrealised"] == pytest.approx(5 * 21 + 10 * 11 - 0.5 - 2.0)
    # Above 105, the mean of both, on row 2; below 100 on row 1, before the second was bought.
    assert (row["mfe"], row["mae"]) == pytest.approx((25.0, 1.0))


def test_a_short_position_earns_what_prices_fall() -> None:
    dataset = priced(high=[50.0, 51.0, 52.0], low=[49.0, 47.0, 48.0], close=[50.0, 48.0, 49.0])
    (row,) = open_trips(match_fills(fills((1, -4.0, 50.0, 0.25))), dataset, last=2).to_dicts()
    assert (row["side"], row["realised"]) == ("short", 0.0)
    assert row["unrealised"] == pytest.approx(4 * 1 - 0.25)
    assert (row["mfe"], row["mae"]) == (3.0, 2.0)


def test_without_a_position_there_is_no_row() -> None:
    closed = fills((1, 2.0, 50.0, 0.0), (2, -2.0, 51.0, 0.0))
    assert open_trips(match_fills(closed), DATASET, last=3).schema == pl.Schema(SCHEMA)
    assert open_trips(match_fills(closed), DATASET, last=3).is_empty()


@pytest.mark.parametrize("seed", range(4))
def test_closed_and_open_trades_and_financing_make_the_change_of_equity(seed: int) -> None:
    environment = synthetic.experiment().environment
    costs = environment.costs.model_copy(update={"borrow_rate": 0.1, "interest_rate": 0.08})
    environment = environment.model_copy(update={"costs": costs, "max_leverage": 2.0})
    strategy = baseline(RandomBaseline(kind="random", seed=seed))
    found = backtest(DATASET, DATASET.folds[0].test, environment, strategy)
    tables = match_fills(found.fills)
    held = open_trips(tables, DATASET, int(found.row[-1]))
    assert held["instrument"].to_list() == list(found.summary["open_positions"])
    earned = sum([*tables.trips["net"], *held["realised"], *held["unrealised"]])
    assert found.financing.sum() != 0
    assert earned - found.financing.sum() == pytest.approx(
        found.equity[-1] - found.equity[0], rel=1e-9, abs=1e-6
    )
