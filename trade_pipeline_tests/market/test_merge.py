import random

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from trade_pipeline.market.bars import BAR_SCHEMA, SOURCES, empty_bars, merge

from .series import bars_at, minutes

SPAN = 24
# What each source would answer about each minute; no two agree.
TRUTH = {
    source: bars_at(minutes(*range(SPAN)), source=source, volume=float(rank))
    for rank, source in enumerate(SOURCES)
}
window = st.tuples(
    st.sampled_from(SOURCES), st.integers(0, SPAN), st.integers(0, SPAN), st.integers(0, 2**32)
)


def answer(one: tuple[str, int, int, int]) -> pl.DataFrame:
    """A source's bars of a window, in any order."""
    source, a, b, seed = one
    bars = TRUTH[source][min(a, b) : max(a, b)]
    order = list(range(bars.height))
    random.Random(seed).shuffle(order)
    return bars[order]


def merged(answers: list[pl.DataFrame]) -> pl.DataFrame:
    stored = empty_bars()
    for incoming in answers:
        stored = merge(stored, incoming)
    return stored


@settings(max_examples=40, deadline=None)
@given(windows=st.lists(window, max_size=6), data=st.data())
def test_overlapping_windows_give_the_same_bars_in_any_order(
    windows: list[tuple[str, int, int, int]], data: st.DataObject
) -> None:
    answers = [answer(one) for one in windows]
    whole = merged(answers)
    assert_frame_equal(merged(data.draw(st.permutations(answers))), whole, check_exact=True)
    # The oracle: of each minute, the bar of the best source that answered about it.
    best = {}
    for source in reversed(SOURCES):
        for one, bars in zip(windows, answers, strict=True):
            if one[0] == source:
                best.update({row[0]: row for row in bars.iter_rows()})
    assert whole.rows() == [best[ts] for ts in sorted(best)]


@settings(max_examples=30, deadline=None)
@given(windows=st.lists(window, min_size=1, max_size=5))
def test_merging_again_changes_nothing(windows: list[tuple[str, int, int, int]]) -> None:
    answers = [answer(one) for one in windows]
    whole = merged(answers)
    for again in (*answers[-1:], whole):
        assert_frame_equal(merge(whole, again), whole, check_exact=True)


@settings(max_examples=30, deadline=None)
@given(stops=st.lists(st.integers(0, SPAN), min_size=1, max_size=5))
def test_the_later_answer_of_a_source_wins(stops: list[int]) -> None:
    answers = [TRUTH["rest"].head(n).with_columns(volume=float(i)) for i, n in enumerate(stops)]
    expected = [
        max((i for i, n in enumerate(stops) if n > minute), default=None) for minute in range(SPAN)
    ]
    assert merged(answers)["volume"].to_list() == [float(i) for i in expected if i is not None]


def test_two_bars_of_one_answer_are_decided_whatever_their_order() -> None:
    bars = pl.concat([TRUTH["rest"].with_columns(volume=float(n)) for n in range(3)])
    forward, backward = merge(empty_bars(), bars), merge(empty_bars(), bars.reverse())
    assert_frame_equal(forward, backward, check_exact=True)
    assert forward.height == SPAN
    assert merge(forward, bars).equals(forward)


def test_the_result_is_canonical() -> None:
    incoming = TRUTH["ws"].with_columns(row=pl.lit(1), file=pl.lit("x"))
    assert merge(empty_bars(), incoming).schema == pl.Schema(BAR_SCHEMA)
    assert merge(empty_bars(), empty_bars()).schema == pl.Schema(BAR_SCHEMA)
