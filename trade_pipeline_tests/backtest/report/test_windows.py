"""Bars at full resolution lie around the trades that matter most, within a limit."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.backtest.report.windows import MARGIN, WHOLE, around_trades, starts

TS = np.arange(5_000, dtype=np.int64) * 60_000


def at(row, seconds=0):
    return datetime.fromtimestamp(row * 60 + seconds, UTC)


def trips(*rows):
    schema = {"entry_time": pl.Datetime("ms", "UTC"), "exit_time": pl.Datetime("ms", "UTC")}
    return pl.DataFrame(rows, {**schema, "net": pl.Float64}, orient="row")


def test_a_trade_keeps_its_bars_and_a_margin():
    kept = around_trades(TS, trips((at(100), at(120, 30), 5.0)), 1_000)
    assert kept.tolist() == list(range(100 - MARGIN, 121 + MARGIN))


def test_a_long_trade_keeps_both_its_ends():
    kept = around_trades(TS, trips((at(100), at(101 + WHOLE), 5.0)), 1_000)
    assert starts(kept).tolist() == [0, 2 * MARGIN + 1]
    assert (kept[0], kept[-1]) == (100 - MARGIN, 101 + WHOLE + MARGIN)


def test_the_edges_of_the_data_end_a_window():
    kept = around_trades(TS, trips((at(0), at(2), 1.0), (at(4_998), at(4_999), 1.0)), 1_000)
    assert (kept[0], kept[-1]) == (0, 4_999)


def test_the_trades_that_won_or_lost_most_come_first_and_open_ones_before_them():
    several = trips((at(100), at(101), 1.0), (at(1_000), at(1_001), -9.0), (at(2_000), None, None))
    both = around_trades(TS, several, 2 * (2 * MARGIN + 2))
    assert 2_000 in both and 1_000 in both and 100 not in both


@given(
    st.lists(
        st.tuples(st.integers(0, 4_999), st.integers(0, 900), st.floats(-100, 100)), max_size=20
    ),
    st.integers(0, 800),
)
def test_no_more_bars_are_kept_than_allowed_and_each_once(found, most):
    rows = [(at(entry), at(min(entry + held, 4_999)), net) for entry, held, net in found]
    kept = around_trades(TS, trips(*rows), most)
    assert kept.size <= most
    assert (np.diff(kept) > 0).all()
