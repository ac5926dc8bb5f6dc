"""Other series beside a series: each row has what had closed by then, and gaps end segments."""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from trade_pipeline.features.references import Reference, with_references

HOUR_MS = 3_600_000


def bars(closes: dict[int, float], length: int = HOUR_MS) -> pl.DataFrame:
    """Bars by the hour at which they close."""
    ends = pl.Series(list(closes)) * HOUR_MS
    return pl.DataFrame(
        {
            "ts": (ends - length).cast(pl.Datetime("ms", "UTC")),
            "close_ts": ends.cast(pl.Datetime("ms", "UTC")),
            "close": list(closes.values()),
        }
    )


def beside(
    own: list[pl.DataFrame], *grids: pl.DataFrame, timeframe_ms: int = HOUR_MS
) -> list[list[tuple[int, float]]]:
    """Hour and the other's close, of each segment that comes out."""
    found = with_references(own, {"a.B": Reference(grids, timeframe_ms)}, ["close"])
    return [
        [
            (int(close.timestamp() * 1000) // HOUR_MS, other)
            for close, other in zip(one["close_ts"], one["close@a.B"], strict=True)
        ]
        for one in found
    ]


def test_a_row_takes_the_bar_that_closed_last() -> None:
    own = bars({1: 1.0, 2: 1.0, 3: 1.0})
    assert beside([own], bars({1: 10.0, 2: 20.0, 3: 30.0})) == [[(1, 10.0), (2, 20.0), (3, 30.0)]]


def test_a_bar_that_closes_a_moment_later_is_not_seen() -> None:
    own = bars({5: 1.0, 6: 1.0})
    later = bars({4: 10.0, 5: 20.0, 6: 30.0}).with_columns(
        pl.col("close_ts") + pl.duration(milliseconds=1)
    )
    assert beside([own], later) == [[(5, 10.0), (6, 20.0)]]


def test_a_coarser_series_stays_until_its_next_bar() -> None:
    own = bars({hour: 1.0 for hour in range(3, 10)})
    days = bars({4: 10.0, 8: 20.0}, length=4 * HOUR_MS)
    assert beside([own], days, timeframe_ms=4 * HOUR_MS) == [
        [(4, 10.0), (5, 10.0), (6, 10.0), (7, 10.0), (8, 20.0), (9, 20.0)]
    ]


def test_a_gap_of_the_other_series_ends_the_segment() -> None:
    own = bars({hour: 1.0 for hour in range(1, 9)})
    assert beside([own], bars({1: 10.0, 2: 20.0}), bars({6: 60.0, 7: 70.0})) == [
        [(1, 10.0), (2, 20.0)],
        [(6, 60.0), (7, 70.0)],
    ]


def test_without_any_bar_of_the_other_series_nothing_is_left() -> None:
    own = bars({1: 1.0, 2: 1.0})
    assert beside([own]) == []
    assert beside([own], bars({5: 1.0})) == []
    assert beside([], bars({5: 1.0})) == []


def test_inside_a_slice_a_bar_stays_over_a_weekend() -> None:
    own = bars({hour: 1.0 for hour in range(1, 6)})
    assert beside([own], bars({1: 10.0, 5: 50.0})) == [
        [(1, 10.0), (2, 10.0), (3, 10.0), (4, 10.0), (5, 50.0)]
    ]


def test_a_series_beside_itself_changes_nothing() -> None:
    own = bars({hour: float(hour) for hour in range(1, 40)})
    found = with_references([own], {"a.B": Reference([own], HOUR_MS)}, ["close"])
    assert len(found) == 1
    np.testing.assert_array_equal(found[0]["close@a.B"], own["close"])
    assert found[0]["ts"][0] == datetime(1970, 1, 1, tzinfo=UTC)
