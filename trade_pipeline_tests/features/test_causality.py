import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from trade_pipeline.features.causality import (
    DECAY_SCHEMA,
    VIOLATION_SCHEMA,
    WARM_UP_SCHEMA,
    Columns,
    columns_of,
    lag_decay,
    prefix_violations,
    warm_up_violations,
)
from trade_pipeline.features.indicator import Array


def features(bars: pl.DataFrame) -> pl.DataFrame:
    """A causal column beside leaks of three kinds: centred window, whole-sample mean, shift."""
    return bars.select(
        "ts",
        causal=pl.col("close").diff(),
        centred=pl.col("close").rolling_max(5, center=True, min_samples=1),
        demeaned=pl.col("close") - pl.col("close").mean(),
        tomorrow=pl.col("close").shift(-1),
    )


def test_a_planted_leak_is_caught_with_its_column_and_first_bad_row(apple: pl.DataFrame) -> None:
    bars = apple.head(50).with_columns(close=pl.int_range(50).cast(pl.Float64))
    found = prefix_violations(features, bars, [20, 50])
    assert found.schema == VIOLATION_SCHEMA
    # Rows 18 and 19 of the first 20 see rows 20 and 21; every mean moves; row 19 lacks row 20.
    assert found.rows() == [
        (20, "centred", bars["ts"][18], 20.0, 19.0),
        (20, "demeaned", bars["ts"][0], -24.5, -9.5),
        (20, "tomorrow", bars["ts"][19], 20.0, None),
    ]


def test_a_leak_hidden_by_dropping_rows_is_caught(apple: pl.DataFrame) -> None:
    def hidden(bars: pl.DataFrame) -> pl.DataFrame:
        return features(bars).select("ts", "tomorrow").drop_nulls()

    found = prefix_violations(hidden, apple, [10])
    assert found.rows() == [(10, "tomorrow", apple["ts"][9], apple["close"][10], None)]


def test_rows_that_vanish_later_are_caught(apple: pl.DataFrame) -> None:
    found = prefix_violations(lambda bars: bars.select("ts", "close").tail(5), apple, [10])
    assert found.rows() == [(10, "close", apple["ts"][5], None, apple["close"][5])]


def test_causal_columns_and_nan_pass(apple: pl.DataFrame) -> None:
    def causal(bars: pl.DataFrame) -> pl.DataFrame:
        return bars.select("ts", step=pl.col("close").diff(), nan=pl.lit(float("nan")))

    assert prefix_violations(causal, apple, [1, 2, 1_000, apple.height]).is_empty()


@pytest.mark.parametrize("cut", [0, 3_271])
def test_a_cut_outside_the_frame_is_refused(apple: pl.DataFrame, cut: int) -> None:
    with pytest.raises(ValueError, match=f"cut {cut} lies outside the frame; use 1 to 3270"):
        prefix_violations(features, apple, [cut])


def test_columns_are_floats_that_nobody_writes_to(apple: pl.DataFrame) -> None:
    frame = apple.head(3).with_columns(
        name=pl.lit("x"), volume=pl.Series([1, None, 3]), close_ts=pl.col("ts")
    )
    columns = columns_of(frame)
    assert set(columns) == set(frame.columns) - {"name"}
    np.testing.assert_array_equal(columns["volume"], [1.0, np.nan, 3.0])
    assert columns["ts"][0] == frame["ts"][0].timestamp() * 1_000
    for values in columns.values():
        assert values.dtype == np.float64
        assert not values.flags.writeable


def average(columns: Columns) -> dict[str, Array]:
    """Half of each close and half of what was before, and the close itself."""
    column = columns["close"].copy()
    for row in range(1, column.size):
        column[row] = (column[row - 1] + column[row]) / 2
    return {"average": column, "close": columns["close"]}


def test_a_lookback_that_is_too_short_is_named_with_its_error(apple: pl.DataFrame) -> None:
    bars = apple.head(200)
    found = warm_up_violations(average, bars, 3, [0, 50, 196])
    assert found.schema == WARM_UP_SCHEMA
    # Started at row 50, its close counts for an eighth; with all history, its average does.
    assert found.select("start", "column", "ts").rows() == [
        (50, "average", bars["ts"][53]),
        (196, "average", bars["ts"][199]),
    ]
    history = average({"close": bars["close"].to_numpy()})["average"]
    error = (bars["close"][50] - history[50]) / 8
    row = found.row(0, named=True)
    assert row["whole"] == history[53]
    assert row["excerpt"] == pytest.approx(history[53] + error)
    assert row["deviations"] == pytest.approx(abs(error) / history.std())
    assert warm_up_violations(average, bars, 40, [0, 50, 159]).is_empty()


def test_a_value_that_one_side_lacks_is_infinitely_far(apple: pl.DataFrame) -> None:
    def needs_three(columns: Columns) -> dict[str, Array]:
        return {"third": np.where(np.arange(columns["close"].size) < 2, np.nan, 1.0)}

    found = warm_up_violations(needs_three, apple, 1, [0, 7])
    assert found.select("start", "deviations").rows() == [(7, float("inf"))]
    assert warm_up_violations(needs_three, apple, 2, [0, 7]).is_empty()


def test_an_excerpt_outside_the_frame_is_refused(apple: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match="start 8 lies outside the frame; use 0 to 6"):
        warm_up_violations(average, apple.head(10), 3, [8])


def test_power_that_is_gone_one_bar_later_is_suspect() -> None:
    generator = np.random.default_rng(1)
    # Returns that persist: what foretells the next bar foretells the one after it, too.
    returns = np.zeros(5_000)
    for row in range(1, returns.size):
        returns[row] = 0.7 * returns[row - 1] + generator.normal(0, 1e-3)
    noise = generator.normal(0, 1e-3, returns.size)
    close, noisy = (100 * np.exp(np.cumsum(one)) for one in (returns, noise))
    honest = lag_decay({"return": returns}, close).row(0, named=True)
    assert honest["now"] == pytest.approx(0.68, abs=0.03)
    assert honest["later"] == pytest.approx(0.47, abs=0.04)
    assert not honest["suspect"]
    tomorrow = np.append(noise[1:], np.nan)
    found = lag_decay({"noise": noise, "tomorrow": tomorrow, "still": 0 * noise}, noisy)
    assert found.schema == DECAY_SCHEMA
    assert found["suspect"].to_list() == [False, True, False]
    assert found["now"][1] == pytest.approx(1.0)
    assert abs(found["later"][1]) < 0.05
    assert found.row(2) == ("still", None, None, False)


def test_rank_correlations_equal_scipys() -> None:
    generator = np.random.default_rng(2)
    close = 100 * np.exp(np.cumsum(generator.normal(0, 1e-2, 500)))
    column = np.round(generator.normal(size=500), 1)  # with ties
    column[:40] = np.nan
    found = lag_decay({"column": column}, close).row(0, named=True)
    following = close[2:] / close[1:-1] - 1
    for got, lagged in ((found["now"], column[1:-1]), (found["later"], column[:-2])):
        known = np.isfinite(lagged)
        assert got == pytest.approx(spearmanr(lagged[known], following[known]).statistic)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 20])
def test_too_few_rows_have_no_decay(rows: int) -> None:
    values = np.arange(1.0, rows + 1)
    assert lag_decay({"column": values}, values).rows() == [("column", None, None, False)]
