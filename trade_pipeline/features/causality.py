"""Proof that a computation over bars does not look ahead.

Knows nothing of indicators: anything that maps a frame with `ts` to a frame with `ts` can be
checked. Start at `prefix_violations`.
"""

from collections.abc import Callable, Sequence

import polars as pl

VIOLATION_SCHEMA = pl.Schema(
    {
        "cut": pl.Int64(),
        "column": pl.String(),
        "ts": pl.Datetime("ms", "UTC"),
        "whole": pl.Float64(),
        "prefix": pl.Float64(),
    }
)


def prefix_violations(
    compute: Callable[[pl.DataFrame], pl.DataFrame], frame: pl.DataFrame, cuts: Sequence[int]
) -> pl.DataFrame:
    """Values that change, appear or vanish when later bars arrive: compute(head) = head(compute).

    Args:
        compute: bars to a frame with unique `ts` and numeric columns; a row for a bar or none.
        frame: bars with `ts`, in order.
        cuts: lengths of the prefixes to try, 1 to `frame.height`.

    Returns:
        One row per cut and column at fault, for its first bad `ts`: `cut` Int64, `column` String,
        `ts`, `whole` and `prefix` Float64 (null where the row is absent). Empty when causal.
        Comparison is exact; NaN equals NaN.

    Raises:
        ValueError: a cut outside the frame.
    """
    whole = compute(frame)
    found = [pl.DataFrame(schema=VIOLATION_SCHEMA)]
    for cut in cuts:
        if not 1 <= cut <= frame.height:
            raise ValueError(f"cut {cut} lies outside the frame; use 1 to {frame.height}")
        last = frame["ts"][cut - 1]
        found.append(
            _differences(whole.filter(pl.col("ts") <= last), compute(frame.head(cut)), cut)
        )
    return pl.concat(found)


def _differences(whole: pl.DataFrame, prefix: pl.DataFrame, cut: int) -> pl.DataFrame:
    """First differing row of each column of two results."""
    # Joined with markers, since a row that is absent differs from one that holds nulls.
    both = (
        whole.with_columns(in_whole=True)
        .join(
            prefix.with_columns(in_prefix=True),
            on="ts",
            how="full",
            coalesce=True,
            suffix=" of prefix",
        )
        .sort("ts")
    )
    absent = pl.col("in_whole").is_null() | pl.col("in_prefix").is_null()
    found = [pl.DataFrame(schema=VIOLATION_SCHEMA)]
    for column in whole.columns:
        if column == "ts":
            continue
        one, other = pl.col(column), pl.col(f"{column} of prefix")
        found.append(
            both.filter(absent | one.ne_missing(other))
            .head(1)
            .select(
                cut=pl.lit(cut, pl.Int64),
                column=pl.lit(column),
                ts=pl.col("ts").cast(VIOLATION_SCHEMA["ts"]),
                whole=one.cast(pl.Float64),
                prefix=other.cast(pl.Float64),
            )
        )
    return pl.concat(found)
