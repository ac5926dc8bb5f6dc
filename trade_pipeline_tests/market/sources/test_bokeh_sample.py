import sys
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from trade_pipeline.market.bars import BAR_SCHEMA, adjusted, violations
from trade_pipeline.market.coverage import coverage, grid
from trade_pipeline.market.sources.base import SourceBars, SourceError
from trade_pipeline.market.sources.registry import source_for
from trade_pipeline_tests.market.series import ms, stock


def read(ticker: str, **changes: object) -> SourceBars:
    series = stock(ticker, **changes)
    return source_for(series).read(series, Path("nowhere"))


@pytest.mark.parametrize(
    ("ticker", "first", "sessions"),
    [
        ("AAPL", (2000, 3, 1), 3270),
        ("IBM", (2000, 3, 1), 3270),
        ("MSFT", (2000, 3, 1), 3270),
        ("GOOG", (2004, 8, 19), 2148),
        ("FB", (2012, 5, 18), 196),
    ],
)
def test_each_ticker_is_valid_and_one_slice_of_the_new_york_calendar(
    ticker: str, first: tuple[int, int, int], sessions: int
) -> None:
    series, given = stock(ticker), read(ticker)
    assert violations(given.bars, series, None).is_empty()
    assert given.stored.schema == pl.Schema(BAR_SCHEMA)
    assert given.confirmed == ()
    found = coverage(given.stored, given.confirmed, series)
    (one,) = found.slices
    assert (one.start_ms, one.end_ms) == (ms(*first), ms(2013, 3, 1) + 1)
    assert (one.days, one.rows) == (sessions, sessions)
    assert found.days["good"].all()


def test_bars_are_visible_from_the_sessions_close_half_days_included() -> None:
    series, given = stock("AAPL"), read("AAPL")
    (one,) = coverage(given.stored, [], series).slices
    found = grid(given.stored, one, [], series)
    closes = dict(
        found.select(pl.col("ts").dt.strftime("%F"), pl.col("close_ts").dt.strftime("%R")).rows()
    )
    assert closes["2012-11-21"] == "21:00"
    assert closes["2012-11-23"] == "18:00"  # the day after Thanksgiving
    assert closes["2002-07-05"] == "17:00"
    assert closes["2012-07-02"] == "20:00"
    assert "2001-09-11" not in closes


def test_the_factor_is_one_at_the_first_bar_and_takes_the_split_out() -> None:
    given = read("AAPL")
    assert given.bars["adj_factor"][0] == 1.0
    around = pl.col("ts").dt.strftime("%F").is_in(["2005-02-25", "2005-02-28"])  # 2 for 1
    raw = given.stored.filter(around)["close"]
    even = adjusted(given.stored.filter(around))["close"]
    assert raw[1] / raw[0] == pytest.approx(0.5, abs=0.02)
    assert even[1] / even[0] == pytest.approx(1.0, abs=0.02)
    assert "split part is unknown" in given.notes[0]


def test_rows_are_those_of_the_shipped_file() -> None:
    bars = read("GOOG").bars
    assert bars["row"][0] == 3468
    assert bars["file"].unique().to_list() == ["bokeh_sampledata/stocks.csv.gz"]


def test_an_unknown_ticker_names_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'AAPL', 'FB', 'GOOG', 'IBM' or 'MSFT'"):
        read("GOOGL", key="sample.GOOGL.1d")


def test_bars_before_the_first_year_are_not_dropped_silently() -> None:
    with pytest.raises(SourceError, match=r"row 2 is of 2000-03-01, before first_year 2001 \(212"):
        read("AAPL", first_year=2001)


def test_the_package_is_read_without_its_pandas_face() -> None:
    read("FB")
    assert "bokeh_sampledata.stocks" not in sys.modules
