"""The little that audits ask of a data frame, pandas' or polars'. Start at `first_rows`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
TIME_NAMES = ("ts", "close_ts", "date", "datetime", "time", "timestamp")


def is_polars(frame: Any) -> bool:
    """Whether it is of polars, else it is taken for pandas."""
    return type(frame).__module__.startswith("polars")


def is_frame(frame: Any) -> bool:
    """Whether it has rows and named columns."""
    return hasattr(frame, "columns") and hasattr(frame, "shape") and len(frame.shape) == 2


def first_rows(frame: Any, rows: int) -> Any:
    """A copy of the first rows."""
    return frame.head(rows).clone() if is_polars(frame) else frame.iloc[:rows].copy()


def column(frame: Any, name: str) -> Values:
    """One column as an array that `==` compares: what has no numpy type as its text."""
    values = np.asarray(frame[name].to_numpy())
    if values.dtype.kind == "O":
        return np.array([_text(value) for value in values], dtype=object)
    return values


def _text(value: Any) -> Any:
    """Numbers among objects stay numbers; None and NaN are the same."""
    if value is None or isinstance(value, float | int):
        return np.nan if value is None else value
    return repr(value)


def changed_rows(
    frame: Any, first: int, end: int, unchanged: Sequence[str] = (), seed: int = 0
) -> Any:
    """A copy whose numbers differ in rows `first` to `end`, the same way for the same arguments.

    Each of those rows takes the numbers of another row, all at once and floats multiplied by one
    factor between 0.7 and 1.4, so that a high stays the highest of its row. Times, texts and
    integers that never fall (counters, dates) stay.
    """
    rows = len(frame)
    generator = np.random.default_rng(seed)
    factors = np.exp(generator.uniform(np.log(0.7), np.log(1.4), rows))[first:end]
    taken = (np.arange(rows) + generator.integers(1, max(rows, 2), rows))[first:end] % rows
    new = {}
    for name in frame.columns:
        if name in unchanged or str(name).lower() in TIME_NAMES:
            continue
        values = np.array(frame[name].to_numpy())
        counts = values.dtype.kind in "iu" and bool((np.diff(values.astype(np.int64)) >= 0).all())
        if values.dtype.kind in "fiub" and not counts:
            scaled = values.dtype.kind == "f"
            others = values[taken]
            values[first:end] = (others * factors).astype(values.dtype) if scaled else others
            new[name] = values
    return _with_columns(frame, new)


def _with_columns(frame: Any, columns: dict[Any, Values]) -> Any:
    if is_polars(frame):
        import polars as pl

        return frame.with_columns(
            pl.Series(name, values).cast(frame.schema[name], strict=False)
            for name, values in columns.items()
        )
    copy = frame.copy()
    for name, values in columns.items():
        copy[name] = values
    return copy
