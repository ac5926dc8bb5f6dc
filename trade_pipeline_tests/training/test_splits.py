from datetime import UTC, date, datetime
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.settings.experiment import (
    CalendarHoldout,
    FractionHoldout,
    SplitSettings,
    WalkForward,
)
from trade_pipeline.training.splits import (
    Fold,
    Span,
    SplitError,
    final_period,
    folds,
    rows_of_ranks,
)

DAY_MS = 86_400_000


def daily_span(
    segments: list[tuple[int, int]], final_from: date | None = None, end: date = date(2022, 1, 1)
) -> Span:
    """One row a day from 1 January 2020."""
    start = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()) * 1000
    rows = max(b for _, b in segments)
    return Span(
        ts=start + np.arange(rows) * DAY_MS,
        segments=np.array(segments, np.int64),
        start=date(2020, 1, 1),
        end=end,
        final_from=final_from,
        origin="experiment demo",
    )


def rows(part: np.ndarray) -> list[int]:
    return [row for a, b in part for row in range(a, b)]


def fraction(**changes: object) -> FractionHoldout:
    values = {"kind": "fraction", "train": 0.6, "validation": 0.2, "test": 0.2}
    return FractionHoldout.model_validate({**values, **changes})


def test_a_fraction_holdout_counts_rows_over_the_slices_and_drops_the_embargo() -> None:
    (fold,) = folds(fraction(), daily_span([(0, 50), (50, 100)]), lookback=3, window=4)
    assert fold.train.tolist() == [[0, 50], [50, 57]]
    assert rows(fold.validation) == list(range(60, 77))
    assert rows(fold.test) == list(range(80, 100))


def test_a_calendar_holdout_cuts_at_midnight_of_its_dates() -> None:
    splits = CalendarHoldout(
        kind="calendar", validation_from=date(2020, 3, 1), test_from=date(2020, 4, 1)
    )
    (fold,) = folds(splits, daily_span([(0, 150)]), lookback=0, window=4)
    assert (fold.train[-1, 1], fold.validation[-1, 1], fold.test[-1, 1]) == (60, 91, 150)


@pytest.mark.parametrize(("mode", "second_start"), [("expanding", 0), ("rolling", 20)])
def test_walk_forward_moves_by_the_test_part(mode: str, second_start: int) -> None:
    splits = WalkForward.model_validate(
        {
            "kind": "walk_forward",
            "folds": 2,
            "mode": mode,
            "train_days": 60,
            "validation_days": 20,
            "test_days": 20,
        }
    )
    first, second = folds(splits, daily_span([(0, 200)]), lookback=2, window=4)
    assert first.train.tolist() == [[0, 58]]
    assert first.validation.tolist() == [[60, 78]]
    assert first.test.tolist() == [[80, 100]]
    assert second.train.tolist() == [[second_start, 78]]
    assert second.test.tolist() == [[100, 120]], "test parts follow one another without a hole"


def test_no_fold_touches_the_final_period() -> None:
    span = daily_span([(0, 200)], final_from=date(2020, 5, 30))
    (fold,) = folds(fraction(), span, lookback=5, window=4)
    assert max(rows(fold.test)) == 149
    assert final_period(span, window=4).tolist() == [[150, 200]]
    assert len(final_period(daily_span([(0, 200)]), window=4)) == 0


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    lookback=st.integers(0, 8),
    train=st.sampled_from([0.4, 0.5, 0.6]),
)
def test_parts_never_overlap_and_lie_an_embargo_apart(
    lengths: list[int], lookback: int, train: float
) -> None:
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    segments = list(pairwise(edges))
    splits = fraction(train=train, validation=(1 - train) / 2, test=(1 - train) / 2)
    try:
        found = folds(splits, daily_span(segments), lookback, window=3)
    except SplitError as error:
        assert "too short" in str(error)
        return
    for fold in found:
        train_rows, validation, test = (rows(part) for part in fold)
        assert validation[0] - train_rows[-1] > lookback
        assert test[0] - validation[-1] > lookback
        for part in fold:
            for a, b in part:
                assert any(first <= a < b <= last for first, last in segments)


def test_ranks_count_rows_over_segments() -> None:
    segments = np.array([[2, 5], [10, 14]])
    assert rows_of_ranks(segments, 0, 7).tolist() == [[2, 5], [10, 14]]
    assert rows_of_ranks(segments, 2, 4).tolist() == [[4, 5], [10, 11]]
    assert rows_of_ranks(segments, 7, 9).tolist() == []


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (fraction(embargo_bars=4), "embargo_bars 4 is shorter .* lookback of 5"),
        (
            fraction(train=0.97, validation=0.02, test=0.01),
            "experiment demo: fold 0's validation part is too short .* of its 4 rows the last 5 "
            "are embargo, and the longest slice of the rest has 0 rows, but a window "
            "of 4 needs 6",
        ),
        (
            CalendarHoldout(
                kind="calendar", validation_from=date(2019, 3, 1), test_from=date(2020, 4, 1)
            ),
            "validation_from 2019-03-01 lies outside",
        ),
        (
            WalkForward(
                kind="walk_forward", folds=9, train_days=300, validation_days=60, test_days=200
            ),
            "fold 1 of 9 tests from .* 1 fold",
        ),
    ],
)
def test_what_cannot_be_split_is_said_with_the_numbers(splits: SplitSettings, message: str) -> None:
    with pytest.raises(SplitError, match=message):
        folds(splits, daily_span([(0, 200)]), lookback=5, window=4)


def test_a_window_longer_than_every_slice_names_experiment_slice_window_and_need() -> None:
    with pytest.raises(
        SplitError, match=r"experiment demo.*train part.*40 rows.*window of 64 needs 66"
    ):
        folds(fraction(), daily_span([(0, 40), (40, 80), (80, 120)]), lookback=0, window=64)


def test_a_fold_is_train_validation_test_in_that_order() -> None:
    assert Fold._fields == ("train", "validation", "test")
