"""Proof that a computation over bars does not look ahead.

Three questions: do values change when later bars arrive (`prefix_violations`), do they rest on
more history than declared (`warm_up_violations`), and does what they foretell vanish one bar later
(`lag_decay`)? Knows nothing of indicators and feature sets: those are checked by
`causality_check.check_feature_set`. Start at `prefix_violations`.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from trade_pipeline.features.indicator import Array

Columns = Mapping[str, Array]
Compute = Callable[[Columns], Mapping[str, Array]]

# What weighs 1e-6 beyond the lookback, in standard deviations of the column: see `indicator`.
WARM_UP_TOLERANCE = 1e-4
# Honest columns of liquid markets foretell the next bar far worse than this rank correlation.
SUSPECT_CORRELATION = 0.2
DECAY_ROWS = 50_000  # their noise is 0.005

VIOLATION_SCHEMA = pl.Schema(
    {
        "cut": pl.Int64(),
        "column": pl.String(),
        "ts": pl.Datetime("ms", "UTC"),
        "whole": pl.Float64(),
        "prefix": pl.Float64(),
    }
)
WARM_UP_SCHEMA = pl.Schema(
    {
        "start": pl.Int64(),
        "column": pl.String(),
        "ts": pl.Datetime("ms", "UTC"),
        "whole": pl.Float64(),
        "excerpt": pl.Float64(),
        "deviations": pl.Float64(),
    }
)
DECAY_SCHEMA = pl.Schema(
    {"column": pl.String(), "now": pl.Float64(), "later": pl.Float64(), "suspect": pl.Boolean()}
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


def columns_of(frame: pl.DataFrame) -> dict[str, Array]:
    """A frame's numbers and times as read-only float64 [T]: ms since 1970; null becomes NaN."""
    columns = {}
    for column in frame:
        if isinstance(column.dtype, pl.Datetime):
            column = column.dt.epoch("ms")
        if not column.dtype.is_numeric():
            continue
        values = np.array(column.cast(pl.Float64).fill_null(np.nan).to_numpy())
        values.flags.writeable = False
        columns[column.name] = values
    return columns


def warm_up_violations(
    compute: Compute,
    frame: pl.DataFrame,
    lookback: int,
    starts: Sequence[int],
    tolerance: float = WARM_UP_TOLERANCE,
) -> pl.DataFrame:
    """Values that differ when computed from `lookback` bars before their own, not from all history.

    Args:
        compute: columns [T] float64 to columns [T] float64.
        frame: bars with `ts`, in order; `compute` gets its `columns_of`.
        lookback: what the computation declares, in bars.
        starts: first rows of excerpts of `lookback` + 1 bars, whose last value is compared.
        tolerance: highest error, in standard deviations of the column over the frame.

    Returns:
        One row per start and column at fault: `start` Int64, `column`, `ts` of the value, `whole`
        and `excerpt` Float64 (the two values), `deviations` Float64 (infinite where only one is a
        number). Empty when the lookback is honest.

    Raises:
        ValueError: an excerpt that does not fit into the frame.
    """
    columns = columns_of(frame)
    whole = compute(columns)
    scales = {name: scale_of(values) for name, values in whole.items()}
    found = []
    for start in starts:
        row = start + lookback
        if not 0 <= start <= row < frame.height:
            raise ValueError(
                f"start {start} lies outside the frame; use 0 to {frame.height - lookback - 1}"
            )
        excerpt = compute({name: values[start : row + 1] for name, values in columns.items()})
        for name, values in whole.items():
            one, other = float(values[row]), float(excerpt[name][lookback])
            deviations = distance(one, other, scales[name])
            if deviations > tolerance:
                found.append((start, name, frame["ts"][row], one, other, deviations))
    return pl.DataFrame(found, schema=WARM_UP_SCHEMA, orient="row")


def scale_of(values: Array) -> float:
    """Standard deviation of what is finite; of a constant column, its rounding."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 1.0
    return float(max(finite.std(), 1e-9 * abs(finite).max())) or 1.0


def distance(one: float, other: float, scale: float) -> float:
    """How far two values lie apart in units of `scale`; 0 if neither is a number."""
    if (np.isnan(one) and np.isnan(other)) or one == other:
        return 0.0
    apart = abs(one - other) / scale
    return apart if np.isfinite(apart) else float("inf")


def lag_decay(values: Columns, close: Array, rows: int = DECAY_ROWS) -> pl.DataFrame:
    """How well columns rank the next bar's return, now and when they come one bar later.

    What truly foretells fades slowly; what has read the next bar is worthless one bar later. No
    proof: where prices bounce between bid and ask, an honest last return does the same, weakly.

    Args:
        values: columns [T] float64.
        close: [T] float64, positive.
        rows: at most so many are used, spread evenly.

    Returns:
        `column`, `now` and `later` Float64 (rank correlations; null where fewer than 30 rows are
        finite or the column is constant), `suspect` Boolean: |now| is at least 0.2 and |later| at
        most a quarter of it.
    """
    chosen = np.unique(np.linspace(1, close.size - 2, min(rows, max(close.size - 2, 0)), dtype=int))
    following = close[chosen + 1] / close[chosen] - 1
    found = []
    for name, column in values.items():
        now = _rank_correlation(column[chosen], following)
        later = _rank_correlation(column[chosen - 1], following)
        suspect = (
            now is not None
            and later is not None
            and abs(now) >= SUSPECT_CORRELATION
            and abs(later) <= abs(now) / 4
        )
        found.append((name, now, later, suspect))
    return pl.DataFrame(found, schema=DECAY_SCHEMA, orient="row")


def _rank_correlation(one: Array, other: Array) -> float | None:
    """Spearman's correlation over the rows where both are finite."""
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 30:
        return None
    first, second = _ranks(one[both]), _ranks(other[both])
    spread = first.std() * second.std()
    if spread == 0:
        return None
    return float(((first - first.mean()) * (second - second.mean())).mean() / spread)


def _ranks(values: Array) -> Array:
    """Ranks from 0; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Array = (last - (counts + 1) / 2)[places]
    return ranks
