"""Whether a function over a data frame looks ahead: the rows of a prefix must stay as they are.

Start at `audit_function`.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from trade_pipeline.features.audit.frames import (
    Values,
    column,
    first_rows,
    is_frame,
    is_polars,
)
from trade_pipeline.features.audit.report import Audit, Finding, Verdict, name_of, shown, told

GOLDEN = (5**0.5 - 1) / 2
SPREAD, CONSECUTIVE = 32, 1_000
ROUNDING = 1e-9  # of a column's largest value


class _FailedError(Exception):
    """The function gave nothing to compare; the message says what."""


class _Result(NamedTuple):
    """What the function gave: its columns, and which row of the frame each of its rows is for.

    Attributes:
        columns: name to [R] values.
        rows: [R] rows of the frame; None where they can only be counted from the first.
    """

    columns: dict[str, Values]
    rows: Values | None


def audit_function(
    function: Callable[[Any], Any],
    frame: Any,
    cuts: Iterable[int] | None = None,
    time: str = "ts",
    rounding: float = ROUNDING,
) -> Audit:
    """Compute prefixes of a frame: what later rows change, add or take away has looked ahead.

    A row of the result belongs to the row of the frame that has the same `time`, else the same
    index label (pandas; an index that only counts tells nothing), else the same position, if there
    are as many. Several rows of one time (one a ticker) count in their order, and are never cut
    apart. If nothing of that fits, rows are counted from the first, and missing ones not judged.

    Args:
        function: data frame to data frame (or series), pandas or polars; gets copies.
        frame: rows in order of time.
        cuts: lengths of the prefixes, each from 1 to one less than the frame's; None: powers of
            two, 32 spread over the frame and 1,000 in a row in its middle.
        time: column of both frames that tells the time of a row.
        rounding: differences up to this fraction of a column's largest value are no finding.

    Returns:
        One finding a column, for its first bad row. A function that gives other values when called
        again is `not deterministic`; one that raises, or gives no frame, on the whole frame or on
        every prefix is `failed`, and so is an audit that tried no prefix.

    Raises:
        ValueError: a cut lies outside the frame, or `time` is no column of it.
    """
    subject = f"function {name_of(function)}"
    rows = len(frame)
    if time != "ts" and time not in frame.columns:
        raise ValueError(f"time {time!r} is no column of the frame; it has {list(frame.columns)}")
    keys = _keys(frame, time)
    wanted = _default(rows) if cuts is None else list(cuts)
    if cuts is not None and (wrong := [cut for cut in wanted if not 0 < cut < rows]):
        raise ValueError(f"cut {wrong[0]} leaves no prefix of {rows} rows; use 1 to {rows - 1}")
    chosen = sorted({_whole_time(keys, cut) for cut in wanted})
    chosen = [cut for cut in chosen if 0 < cut < rows]

    def call(cut: int) -> _Result:
        return _called(function, first_rows(frame, cut), time)

    try:
        whole = call(rows)
        unsteady = _differences(whole, call(rows), rows, rounding)
    except _FailedError as error:
        return Audit(subject, "failed", (), f"On all {rows} rows it {error}.")
    found: dict[str, Finding] = {}
    failed: dict[int, str] = {}
    for cut in chosen:
        try:
            prefix = call(cut)
        except _FailedError as error:
            failed[cut] = str(error)
            continue
        for name, (row, what) in _differences(whole, prefix, cut, rounding).items():
            label = "" if keys is None else f" ({keys[row][0]})"
            sentence = f"at row {row}{label} {what} once rows after the first {cut} arrive"
            if name not in unsteady and (name not in found or row < found[name].row):
                found[name] = Finding(name, row, sentence)
    notes = []
    if failed:
        cut, why = next(iter(failed.items()))
        notes.append(
            f"On {len(failed)} prefixes it gave nothing; on the first {cut} rows it {why}."
        )
    if whole.rows is None:
        notes.append(
            f"Rows of the result could not be matched with the frame's {rows} and were counted "
            f"from the first; keep the index or a column {time!r} to have missing rows judged."
        )
    for name, (row, what) in unsteady.items():
        notes.append(f"{name} is not deterministic: called again, at row {row} it {what}.")
    if not chosen:
        notes.append("No prefix was tried, so that nothing is known: give more rows, or cuts.")
    elif len(chosen) < rows - 1:
        notes.append(
            f"A sample: a leak in rows rarer than one in {CONSECUTIVE:,} may need "
            "cuts=range(1, len(frame))."
        )
    verdict: Verdict = "looks ahead" if found else "not deterministic" if unsteady else "clean"
    if len(failed) == len(chosen):
        verdict = "failed"
    tried = f"{len(chosen) - len(failed)} prefixes of {rows} rows, columns: {len(whole.columns)}."
    return Audit(subject, verdict, tuple(found.values()), tried, tuple(notes))


def _default(rows: int) -> list[int]:
    spread = [int((position * GOLDEN) % 1 * rows) for position in range(1, SPREAD + 1)]
    middle = max(min(rows // 2 - CONSECUTIVE // 2, rows - CONSECUTIVE), 1)
    # Short ones show a warm-up that is filled from later rows.
    short = [2**power for power in range(rows.bit_length())]
    return [*short, *spread, *range(middle, middle + CONSECUTIVE)]


def _keys(frame: Any, time: str) -> list[tuple[Any, int]] | None:
    """What tells a row: its time or label, and which of that time it is; None if nothing does."""
    if time in frame.columns:
        labels = frame[time].to_list()
    elif not is_polars(frame) and type(frame.index).__name__ != "RangeIndex":
        labels = frame.index.to_list()
    else:
        return None
    counts: dict[Any, int] = {}
    keys = []
    for label in labels:
        counts[label] = counts.get(label, -1) + 1
        keys.append((label, counts[label]))
    return keys


def _whole_time(keys: list[tuple[Any, int]] | None, cut: int) -> int:
    """A cut moved on to where a time ends."""
    while keys is not None and 0 < cut < len(keys) and keys[cut][0] == keys[cut - 1][0]:
        cut += 1
    return cut


def _called(function: Callable[[Any], Any], frame: Any, time: str) -> _Result:
    """Call the function on a copy that is its own."""
    keys = _keys(frame, time)
    given = len(frame)
    try:
        result = function(frame)
    except Exception as error:
        raise _FailedError(f"raises {told(error)}") from error
    if hasattr(result, "to_frame") and not is_frame(result):
        result = result.to_frame()
    if not is_frame(result):
        raise _FailedError(f"gives a {type(result).__name__}, not a data frame")
    if len(set(result.columns)) < len(result.columns):
        raise _FailedError(f"gives several columns of one name: {list(result.columns)}")
    own = _keys(result, time)
    rows: Values | None = np.arange(len(result)) if len(result) == given else None
    if keys is not None and own is not None:
        places = {key: row for row, key in enumerate(keys)}
        if all(key in places for key in own):
            rows = np.array([places[key] for key in own], dtype=np.int64)
    names = [name for name in result.columns if name != time]
    return _Result({str(name): column(result, name) for name in names}, rows)


def _differences(
    whole: _Result, other: _Result, cut: int, rounding: float
) -> dict[str, tuple[int, str]]:
    """First row of the first `cut`, and what happens there, of each column that differs."""
    found = {}
    matched = whole.rows is not None and other.rows is not None
    for name in dict.fromkeys([*whole.columns, *other.columns]):
        if name not in whole.columns or name not in other.columns:
            found[name] = (0, "vanishes" if name in other.columns else "appears")
            continue
        one, two = whole.columns[name], other.columns[name]
        if not matched:
            count = min(len(one), len(two))
            first, second = _laid_out(one[:count], None, count), _laid_out(two[:count], None, count)
        else:
            first = _laid_out(one, whole.rows, cut)
            second = _laid_out(two, other.rows, cut)
        row = _first_difference(first, second, rounding)
        if row is not None:
            found[name] = (row, _told_change(first[row], second[row]))
    return found


ABSENT = object()


def _laid_out(values: Values, rows: Values | None, cut: int) -> Values:
    """[cut] values by the frame's rows; `ABSENT` where there is none."""
    if rows is None or (len(rows) >= cut and np.array_equal(rows[:cut], np.arange(cut))):
        return values[:cut]
    laid = np.full(cut, ABSENT, dtype=object)
    inside = rows < cut
    laid[rows[inside]] = values[inside]
    return laid


def _first_difference(one: Values, other: Values, rounding: float) -> int | None:
    if one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        first, second = one.astype(np.float64), other.astype(np.float64)
        finite = np.abs(first[np.isfinite(first)])
        allowed = rounding * (finite.max() if finite.size else 0.0)
        with np.errstate(invalid="ignore"):
            same = (first == second) | (np.abs(first - second) <= allowed)
        differ = ~(same | (np.isnan(first) & np.isnan(second)))
    elif one.dtype.kind == "O" or other.dtype.kind == "O":
        return _first_different_object(list(one), list(other), rounding)
    else:
        missing = np.not_equal(one, one) & np.not_equal(other, other)  # times that are not
        differ = np.not_equal(one, other) & ~missing
    return int(differ.argmax()) if differ.any() else None


def _first_different_object(one: list[Any], other: list[Any], rounding: float) -> int | None:
    numbers = [abs(value) for value in one if isinstance(value, float | int) and value == value]
    allowed = rounding * max([value for value in numbers if value != np.inf], default=0.0)
    for row, (first, second) in enumerate(zip(one, other, strict=True)):
        if first is second or first == second or (first != first and second != second):
            continue
        if (
            not isinstance(first, float | int)
            or not isinstance(second, float | int)
            or not abs(first - second) <= allowed
        ):
            return row
    return None


def _told_change(whole: Any, prefix: Any) -> str:
    if whole is ABSENT:
        return f"vanishes (it was {shown(prefix)})"
    if prefix is ABSENT:
        return f"appears ({shown(whole)})"
    return f"changes from {shown(prefix)} to {shown(whole)}"
