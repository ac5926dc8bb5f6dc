"""Folds of an experiment: which rows train, validate and test, with an embargo between them.

Works on row numbers and times alone; knows nothing of prices, features or policies.
Start at `folds` and `final_period`.
"""

from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trade_pipeline.settings.experiment import CalendarHoldout, FractionHoldout, SplitSettings

Rows = NDArray[np.int64]


class SplitError(ValueError):
    """The data cannot be split as asked; the message holds the numbers."""


class Fold(NamedTuple):
    """Row segments [K, 2] of each part: a segment [a, b) lies within one slice."""

    train: Rows
    validation: Rows
    test: Rows


class Span(NamedTuple):
    """What is to be split. `ts` [T] is in ms, `segments` [S, 2] ascending row pairs [a, b)."""

    ts: NDArray[np.int64]
    segments: Rows
    start: date
    end: date
    final_from: date | None
    origin: str

    @property
    def limit(self) -> date:
        """The first day that no fold may touch."""
        return self.final_from or self.end


def folds(splits: SplitSettings, span: Span, lookback: int, window: int) -> list[Fold]:
    """Cut the rows before `final_from` (or `end`) into folds.

    Rows are counted over the segments in time order. The embargo drops the last rows of train and
    of validation, so that no feature of a later part was computed from rows of the one before.
    Test parts stay whole: those of a walk-forward follow one another without a hole.

    Args:
        splits: how to cut.
        span: times and segments of the dataset, and the experiment's dates.
        lookback: rows a feature looks back; the embargo's default and its least value.
        window: rows of an observation; each part needs a slice of `window + 2` rows.

    Raises:
        SplitError: the embargo is too short, a fold ends after the span, or a part is too short.
    """
    embargo = _embargo(splits, lookback, span.origin)
    found = []
    for number, cuts in enumerate(_cuts(splits, span)):
        begin, validation, test, end = cuts
        fold = Fold(
            train=rows_of_ranks(span.segments, begin, validation - embargo),
            validation=rows_of_ranks(span.segments, validation, test - embargo),
            test=rows_of_ranks(span.segments, test, end),
        )
        for at, (name, part) in enumerate(zip(Fold._fields, fold, strict=True)):
            rows, dropped = cuts[at + 1] - cuts[at], 0 if name == "test" else embargo
            label = f"{span.origin}: fold {number}'s {name} part"
            _check_length(part, window, label, rows, dropped)
        found.append(fold)
    return found


def final_period(span: Span, window: int) -> Rows:
    """Segments [K, 2] from `final_from` to `end`; empty without `final_from`.

    It needs no embargo: a test part lies before it, and nothing is fitted or chosen on one.

    Raises:
        SplitError: the period has no slice of `window + 2` rows.
    """
    if span.final_from is None:
        return np.empty((0, 2), np.int64)
    begin, end = _rank(span, span.final_from), _rank(span, span.end)
    part = rows_of_ranks(span.segments, begin, end)
    _check_length(part, window, f"{span.origin}: the final period", end - begin, 0)
    return part


def rows_of_ranks(segments: Rows, first: int, last: int) -> Rows:
    """Segments [K, 2] of the rows ranked `first` to `last - 1`, counted over all segments.

    >>> rows_of_ranks(np.array([[0, 10], [20, 30]]), 8, 13)
    array([[ 8, 10],
           [20, 23]])
    """
    lengths = segments[:, 1] - segments[:, 0]
    before = np.cumsum(lengths) - lengths
    low = segments[:, 0] + np.clip(first - before, 0, lengths)
    high = segments[:, 0] + np.clip(last - before, 0, lengths)
    part: Rows = np.stack([low, high], axis=1).astype(np.int64)
    return np.ascontiguousarray(part[high > low])


def long_enough(segments: Rows, window: int) -> Rows:
    """The segments that hold an episode: `window` rows to see and two to trade between."""
    return np.ascontiguousarray(segments[segments[:, 1] - segments[:, 0] >= window + 2])


def _embargo(splits: SplitSettings, lookback: int, origin: str) -> int:
    embargo = lookback if splits.embargo_bars is None else splits.embargo_bars
    if embargo < lookback:
        raise SplitError(
            f"{origin}: embargo_bars {embargo} is shorter than the features' lookback of "
            f"{lookback} bars, so test features would hold training rows; set at least "
            f"{lookback} or leave embargo_bars out."
        )
    return embargo


def _cuts(splits: SplitSettings, span: Span) -> list[tuple[int, int, int, int]]:
    """Per fold the ranks where train, validation and test begin and where test ends."""
    begin, end = _rank(span, span.start), _rank(span, span.limit)
    if isinstance(splits, FractionHoldout):
        rows = end - begin
        validation = begin + round(rows * splits.train)
        test = begin + round(rows * (splits.train + splits.validation))
        return [(begin, validation, test, end)]
    if isinstance(splits, CalendarHoldout):
        for name, day in (
            ("validation_from", splits.validation_from),
            ("test_from", splits.test_from),
        ):
            if not span.start < day < span.limit:
                raise SplitError(
                    f"{span.origin}: {name} {day} lies outside the span {span.start} to "
                    f"{span.limit} that folds may use; move it inside."
                )
        validation, test = _rank(span, splits.validation_from), _rank(span, splits.test_from)
        return [(begin, validation, test, end)]
    cuts = []
    for number in range(splits.folds):
        shift = timedelta(days=number * splits.test_days)
        validation_from = span.start + shift + timedelta(days=splits.train_days)
        test_from = validation_from + timedelta(days=splits.validation_days)
        test_to = test_from + timedelta(days=splits.test_days)
        if test_to > span.limit:
            raise SplitError(
                f"{span.origin}: fold {number} of {splits.folds} tests from {test_from} to "
                f"{test_to}, but folds may use data only before {span.limit}; {number} fold(s) "
                "fit. Lower `folds` or the day counts."
            )
        train_from = span.start + (shift if splits.mode == "rolling" else timedelta(0))
        days = (train_from, validation_from, test_from, test_to)
        first, second, third, fourth = (_rank(span, day) for day in days)
        cuts.append((first, second, third, fourth))
    return cuts


def _rank(span: Span, day: date) -> int:
    """How many rows of the segments come before a day (00:00 UTC)."""
    at_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    row = int(np.searchsorted(span.ts, at_ms, side="left"))
    first, last = span.segments[:, 0], span.segments[:, 1]
    return int(np.clip(row - first, 0, last - first).sum())


def _check_length(part: Rows, window: int, name: str, rows: int, embargo: int) -> None:
    longest = int((part[:, 1] - part[:, 0]).max(initial=0))
    if longest < window + 2:
        raise SplitError(
            f"{name} is too short for its window: of its {rows} rows the last {embargo} are "
            f"embargo, and the longest slice of the rest has {longest} rows, but a window of "
            f"{window} needs {window + 2} for two decisions. Widen the part, or shorten the window "
            "or the features' lookback."
        )
