import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.market.bars import BAR_SCHEMA, PRICES, TS, adjusted, empty_bars, violations
from trade_pipeline.market.calendars import find_calendar
from trade_pipeline.market.quality import GAP_SCHEMA, OUTLIER_SCHEMA, gaps, outliers

from .series import DAY, MINUTE, START, bars_at, crypto, minutes, stock

SERIES = crypto()


# Gaps


def test_a_run_of_unknown_bars_longer_than_a_slice_may_hold_is_a_gap() -> None:
    holes = {*range(10, 15), *range(30, 36), 50, 90}
    found = gaps(bars_at(minutes(*(m for m in range(100) if m not in holes))), [], SERIES)
    first, last = (pl.Series(minutes(m)).cast(TS)[0] for m in (30, 35))
    assert found.rows() == [(first, last, 6)]
    assert found.schema == pl.Schema(GAP_SCHEMA)


def test_the_series_says_how_long_a_run_may_be() -> None:
    bars = bars_at(minutes(0, 1, 4, 5))
    assert gaps(bars, [], crypto(coverage={"max_unknown_run": 1}))["bars"].to_list() == [2]
    assert gaps(bars, [], crypto(coverage={"max_unknown_run": 2})).is_empty()


def test_quiet_bars_are_no_gap_and_end_one() -> None:
    bars = bars_at(minutes(0, 20))
    assert gaps(bars, [(START, START + 21 * MINUTE)], SERIES).is_empty()
    around_ten = [(START + 10 * MINUTE, START + 11 * MINUTE)]
    assert gaps(bars, around_ten, SERIES)["bars"].to_list() == [9, 9]


def test_what_lies_before_the_first_and_after_the_last_bar_is_no_gap() -> None:
    assert gaps(bars_at(minutes(5000, 5001)), [], SERIES).is_empty()
    assert gaps(empty_bars(), [], SERIES).is_empty()
    assert gaps(empty_bars(), [], SERIES).schema == pl.Schema(GAP_SCHEMA)


def test_only_bars_that_the_exchange_expects_are_missing() -> None:
    series = stock("IBM", coverage={"max_unknown_run": 2})
    calendar = find_calendar("XNYS")
    start, end = datetime(2012, 10, 22, tzinfo=UTC), datetime(2012, 11, 3, tzinfo=UTC)
    sessions = calendar.expected(start, end, DAY, daily_session=True).tolist()
    whole = bars_at(sessions)
    assert gaps(whole, [], series).is_empty(), "a weekend, and two days closed by a hurricane"
    without_three = whole.filter(~pl.col("ts").is_in(whole["ts"][2:5].implode()))
    assert gaps(without_three, [], series)["bars"].to_list() == [3]


@given(
    missing=st.sets(st.integers(1, 118), max_size=60),
    quiet=st.lists(st.tuples(st.integers(0, 119), st.integers(0, 30)), max_size=3),
    most=st.integers(0, 6),
)
def test_gaps_are_what_counting_bar_by_bar_finds(
    missing: set[int], quiet: list[tuple[int, int]], most: int
) -> None:
    known = {m for first, count in quiet for m in range(first, first + count)}
    expected, run = [], []
    for minute in range(120):
        if minute in missing and minute not in known:
            run.append(minute)
            continue
        if len(run) > most:
            expected.append((run[0], run[-1], len(run)))
        run = []
    confirmed = [(START + a * MINUTE, START + (a + n) * MINUTE) for a, n in quiet]
    bars = bars_at(minutes(*(m for m in range(120) if m not in missing)))
    found = gaps(bars, confirmed, crypto(coverage={"max_unknown_run": most}))
    lines = found.select(pl.col("first", "last").dt.epoch("ms").sub(START) // MINUTE, "bars")
    assert lines.rows() == expected


# Outliers


def walk(step_ms: int, deviation: float, seed: int, count: int = 600) -> pl.DataFrame:
    """Bars of a random walk with fat tails: deviation of the log return of one bar."""
    rng = np.random.default_rng(seed)
    close = 40_000 * np.exp(np.cumsum(rng.standard_t(4, count) * deviation))
    opened = np.concatenate([close[:1], close[:-1]])
    wick = 1 + np.abs(rng.normal(0, deviation / 2, count))
    columns = {
        "open": opened,
        "high": np.maximum(opened, close) * wick,
        "low": np.minimum(opened, close) / wick,
        "close": close,
        "volume": rng.lognormal(3, 1.2, count),
    }
    bars = bars_at([START + n * step_ms for n in range(count)])
    return bars.with_columns(pl.Series(name, values) for name, values in columns.items())


MINUTES, DAYS = walk(MINUTE, 0.0005, seed=1), walk(DAY, 0.02, seed=2)


def change(bars: pl.DataFrame, row: int, **columns: pl.Expr) -> pl.DataFrame:
    """One row with other values."""
    here = pl.int_range(pl.len()) == row
    return bars.with_columns(
        **{name: pl.when(here).then(value).otherwise(name) for name, value in columns.items()}
    )


def prices(bars: pl.DataFrame, row: int, factor: float) -> pl.DataFrame:
    """One row's prices, all times a factor."""
    return change(bars, row, **{name: pl.col(name) * factor for name in PRICES})


def zeroed(column: str) -> pl.Expr:
    """A price with its first digit lost."""
    return pl.col(column) % pl.lit(10.0).pow(pl.col(column).log10().floor())


BAD_TICKS: dict[str, Callable[[pl.DataFrame, int], pl.DataFrame]] = {
    "ten times the price": lambda bars, row: prices(bars, row, 10),
    "a decimal place too few": lambda bars, row: prices(bars, row, 0.1),
    "the high ten times": lambda bars, row: change(bars, row, high=pl.col("high") * 10),
    "the low with a digit lost": lambda bars, row: change(bars, row, low=zeroed("low")),
    "low and close with a digit lost": lambda bars, row: change(
        bars, row, low=zeroed("close"), close=zeroed("close")
    ),
    "low and volume swapped": lambda bars, row: change(
        bars, row, low=pl.col("volume"), volume=pl.col("low")
    ),
    "high and a large volume swapped": lambda bars, row: change(
        bars, row, high=pl.lit(3e6), volume=pl.col("high")
    ),
    "another symbol's row": lambda bars, row: prices(bars, row, 0.0625),
}


@pytest.mark.parametrize("bad", BAD_TICKS)
@pytest.mark.parametrize("bars", [MINUTES, DAYS], ids=["minutes", "days"])
def test_a_bad_tick_is_found_and_nothing_else(bars: pl.DataFrame, bad: str) -> None:
    assert outliers(bars, SERIES).is_empty()
    for row in (2, 33, 300, 597):
        planted = BAD_TICKS[bad](bars, row)
        assert violations(planted, SERIES, None).is_empty(), "validation lets it through"
        found = outliers(planted, SERIES)
        assert found["ts"].unique().to_list() == [bars["ts"][row]]
        assert found.schema == pl.Schema(OUTLIER_SCHEMA)


def test_an_outlier_is_told_with_what_would_have_been_usual() -> None:
    found = outliers(change(DAYS, 300, low=zeroed("low")), SERIES)
    (line,) = found.rows(named=True)
    around = DAYS["close"][298:303].to_list()
    assert (line["ts"], line["column"]) == (DAYS["ts"][300], "low")
    assert line["value"] == DAYS["low"][300] % 10 ** np.floor(np.log10(DAYS["low"][300]))
    assert min(around) <= line["usual"] <= max(around)
    assert line["times"] > 6


@pytest.mark.parametrize("bars", [MINUTES, DAYS], ids=["minutes", "days"])
def test_two_bad_bars_in_a_row_do_not_hide_each_other(bars: pl.DataFrame) -> None:
    found = outliers(prices(prices(bars, 300, 10), 301, 10), SERIES)
    assert found["ts"].to_list() == bars["ts"][300:302].to_list()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.3, 4.0])
@pytest.mark.parametrize("bars", [MINUTES, DAYS], ids=["minutes", "days"])
def test_a_jump_that_stays_is_no_outlier(bars: pl.DataFrame, factor: float) -> None:
    later = pl.int_range(pl.len()) >= 300
    jumped = bars.with_columns(
        pl.when(later).then(pl.col(name) * factor).otherwise(name) for name in PRICES
    )
    assert outliers(jumped, SERIES).is_empty()


@given(seed=st.integers(0, 2**32 - 1), splits=st.lists(st.integers(0, 599), max_size=6))
def test_prices_are_judged_as_a_reader_adjusts_them(seed: int, splits: list[int]) -> None:
    rng = np.random.default_rng(seed)
    bars = prices(prices(DAYS, int(rng.integers(2, 598)), 10), int(rng.integers(2, 598)), 0.3)
    factor = np.ones(bars.height)
    for day in splits:
        factor[day:] *= rng.choice([2.0, 4.0, 0.125])
    raw = bars.with_columns(
        adj_factor=pl.Series(factor), **{name: pl.col(name) / factor for name in PRICES}
    )
    told = ["ts", "column"]
    assert outliers(raw, SERIES).select(told).equals(outliers(adjusted(raw), SERIES).select(told))
    assert outliers(raw, SERIES).select(told).equals(outliers(bars, SERIES).select(told))


def test_a_volume_beyond_all_proportion_is_found() -> None:
    usual = float(np.sort(MINUTES["volume"].to_numpy())[593])
    found = outliers(change(MINUTES, 7, volume=pl.lit(1e6)), SERIES)
    assert found.select("ts", "column", "value").rows() == [(MINUTES["ts"][7], "volume", 1e6)]
    assert found["usual"][0] == pytest.approx(usual, rel=0.2)
    assert outliers(MINUTES.with_columns(volume=0.0), SERIES).is_empty()


def test_of_few_bars_nothing_is_unusual() -> None:
    assert outliers(empty_bars(), SERIES).schema == pl.Schema(OUTLIER_SCHEMA)
    assert outliers(prices(DAYS.head(19), 9, 10), SERIES).is_empty()
    assert outliers(prices(DAYS.head(20), 9, 10), SERIES).height > 0


def test_prices_that_do_not_move_have_outliers_too() -> None:
    still = DAYS.with_columns(pl.lit(100.0).alias(name) for name in PRICES)
    assert outliers(still, SERIES).is_empty()
    assert outliers(prices(still, 100, 1.01), SERIES).is_empty(), "a tick or two"
    assert outliers(prices(still, 100, 10), SERIES)["ts"].to_list() == [still["ts"][100]]


# Real data


def lean_days(path: Path) -> pl.DataFrame:
    """Daily bars of LEAN, raw prices; a split of theirs is a jump that stays."""
    with zipfile.ZipFile(path) as archive:
        table = pl.read_csv(
            archive.read(archive.namelist()[0]),
            has_header=False,
            new_columns=["ts", *PRICES, "volume"],
        )
    return table.select(
        ts=pl.col("ts").str.to_datetime("%Y%m%d %H:%M", time_unit="ms", time_zone="UTC"),
        **{name: pl.col(name) / 10_000 for name in PRICES},
        volume=pl.col("volume").cast(pl.Float64),
        trades=pl.lit(None, pl.Int32),
        adj_factor=pl.lit(None, pl.Float64),
        source=pl.lit("file", BAR_SCHEMA["source"]),
    )


def outliers_by_year(bars: pl.DataFrame) -> pl.DataFrame:
    """As an import finds them, year by year."""
    year = bars["ts"].dt.year()
    return pl.concat(outliers(bars.filter(year == one), SERIES) for one in year.unique().sort())


def test_the_wrong_ticks_of_real_daily_bars_are_found_and_no_crash(shared_data: Path) -> None:
    found = {}
    for ticker in ("aapl", "bac", "ibm", "spy"):
        bars = lean_days(shared_data / "lean_equity_daily" / f"{ticker}.zip")
        found[ticker] = outliers_by_year(bars).with_columns(day=pl.col("ts").dt.date().cast(str))
    days = {ticker: set(table["day"]) for ticker, table in found.items()}
    assert {"2009-09-21", "2010-08-31"} <= days["aapl"], "lows of 10.59 at 185 and 25.30 at 243"
    assert "2002-12-23" in days["ibm"], "an open of 159.58 at 80"
    assert "2005-09-06" in days["spy"], "a low of 105.68 at 123"
    years = {day[:4] for table in days.values() for day in table}
    assert not years & {"2008", "2020"}
    assert sum(len(table) for table in days.values()) <= 30  # of 23,396


def test_hardly_a_real_minute_is_an_outlier(shared_data: Path) -> None:
    path = shared_data / "crypto_1m" / "ftx_btc_perp_1m_20211231_20220201.csv.gz"
    table = pl.read_csv(path)
    assert table.height == 45_031
    bars = table.select(
        ts=pl.col("timestamp").str.to_datetime(time_unit="ms", time_zone="UTC"),
        **{name: pl.col(name).cast(pl.Float64) for name in (*PRICES, "volume")},
        trades=pl.lit(None, pl.Int32),
        adj_factor=pl.lit(None, pl.Float64),
        source=pl.lit("file", BAR_SCHEMA["source"]),
    )
    assert outliers_by_year(bars).height <= 4  # fewer than one in 10,000
