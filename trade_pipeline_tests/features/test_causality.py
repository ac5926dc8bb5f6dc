import polars as pl
import pytest

from trade_pipeline.features.causality import VIOLATION_SCHEMA, prefix_violations


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
