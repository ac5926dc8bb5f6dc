"""Episodes lie within segments; where they start is what the settings say, and their stream."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.settings.environment import BracketActions, EnvironmentSettings
from trade_pipeline.simulator.episodes import (
    EPISODE,
    Segments,
    Starts,
    draw_episode,
    stagger,
    starts_of,
)
from trade_pipeline.simulator.randomness import streams

UNIFORM = {"kind": "uniform"}
STRATIFIED = {"kind": "stratified", "label": "regime"}
# Decisions 2..12, 22..23 and none: 9 starts with 3 decisions ahead, and the short segment's
THREE = ((0, 14), (20, 25), (30, 33))


def segments(*rows: tuple[int, int]) -> Segments:
    return Segments(np.array(rows, np.int64).reshape(-1, 2))


def starts(
    chosen: Segments, window: int, episode_bars: int, kind: Any = UNIFORM, labels: Any = None
) -> Starts:
    settings = EnvironmentSettings(
        window=window,
        episode_bars=episode_bars,
        starts=kind,
        actions=BracketActions(kind="brackets"),
    )
    return starts_of(settings, chosen, labels)


def drawn(listed: Starts, count: int, seed: int = 0, staggered: bool = False) -> np.ndarray:
    """First and last decision row of `count` episodes of one environment, [count, 2]."""
    random, episodes = streams(seed, 1), np.zeros(1, EPISODE)
    rows = []
    for _ in range(count):
        draw_episode(listed, random, episodes[0], 0)
        if staggered:
            stagger(random, episodes[0], 0)
        rows.append((episodes["first"][0], episodes["last"][0]))
    return np.array(rows)


def assert_equally_likely(counts: Sequence[int] | np.ndarray) -> None:
    """Within 4.5 standard deviations of the mean."""
    spread = 4.5 * np.sqrt(np.mean(counts))
    assert np.abs(np.asarray(counts) - np.mean(counts)).max() < spread


def test_decisions_run_from_the_first_full_window_to_the_last_bar_but_one() -> None:
    assert segments((10, 20)).decisions(4).tolist() == [[13, 18]]
    assert segments((0, 5), (10, 14)).decisions(4).tolist() == [[3, 3]]  # 5 rows: one decision


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from(["uniform", "stratified", "sequential"]),
    st.integers(0, 50),
    st.booleans(),
)
def test_an_episode_lies_within_one_segment_and_has_its_length(
    seed: int,
    lengths: list[int],
    window: int,
    episode_bars: int,
    kind: str,
    offset: int,
    staggered: bool,
) -> None:
    ends = np.cumsum(np.array(lengths) + 3)
    chosen = Segments(np.stack([ends - lengths, ends], axis=1))
    bounds = chosen.decisions(window)
    if not len(bounds):
        with pytest.raises(ValueError, match="no segment holds an episode"):
            chosen.check(window, int(ends[-1]))
        return
    chosen.check(window, int(ends[-1]))
    labels = np.random.default_rng(seed).integers(-2, 3, ends[-1])
    more = {"stratified": {"label": "x"}, "sequential": {"start_offset_bars": offset}}
    listed = starts(chosen, window, episode_bars, {"kind": kind, **more.get(kind, {})}, labels)
    for a, b in drawn(listed, 30, seed, staggered):
        ((low, high),) = [(x, y) for x, y in bounds if x <= a and b <= y]
        length = b - a + 1
        assert 1 <= length <= episode_bars
        if kind != "sequential" and not staggered:
            assert length == min(episode_bars, high - low + 1)


def test_every_admissible_start_is_equally_likely() -> None:
    found = drawn(starts(segments(*THREE), 3, 3), 20_000)
    rows, counts = np.unique(found[:, 0], return_counts=True)
    assert rows.tolist() == [*range(2, 11), 22]
    assert_equally_likely(counts)
    assert (found[:, 1] - found[:, 0] == np.where(found[:, 0] == 22, 1, 2)).all()


def test_labels_are_equally_likely_and_so_are_the_rows_of_each() -> None:
    labels = np.full(33, 5.0)
    labels[[3, 4]] = -1.0  # rare
    labels[22] = 7.0  # once, in the short segment
    labels[0] = 9.0  # no episode can begin there
    found = drawn(starts(segments(*THREE), 3, 3, STRATIFIED, labels), 15_000)
    carried = labels[found[:, 0]]
    names, counts = np.unique(carried, return_counts=True)
    assert names.tolist() == [-1.0, 5.0, 7.0]
    assert_equally_likely(counts)
    for name, rows in ((-1.0, [3, 4]), (5.0, [2, 5, 6, 7, 8, 9, 10])):
        first, counts = np.unique(found[carried == name, 0], return_counts=True)
        assert first.tolist() == rows
        assert_equally_likely(counts)
    assert (found[:, 1] - found[:, 0] == np.where(found[:, 0] == 22, 1, 2)).all()


def test_one_label_for_all_rows_is_a_uniform_start() -> None:
    chosen = segments(*THREE)
    stratified = starts(chosen, 3, 3, STRATIFIED, np.ones(33))
    assert drawn(stratified, 50).tolist() == drawn(starts(chosen, 3, 3), 50).tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "starts are stratified by regime, but no labels were given"),
        (np.where(np.arange(33) == 4, 0.5, 1.0), "label regime: row 4 is 0.5; labels are whole"),
        (np.where(np.arange(33) == 7, np.nan, 1.0), "label regime: row 7 is nan"),
        (np.where(np.arange(33) == 7, np.inf, 1.0), "label regime: row 7 is inf"),
        (np.ones(5), r"label regime: labels have shape \(5,\); one a row, for 33"),
        (np.ones((33, 2)), r"label regime: labels have shape \(33, 2\)"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_labels_that_are_missing_or_no_whole_numbers_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        starts(segments(*THREE), 3, 3, STRATIFIED, labels)


def test_sequential_episodes_cover_the_slices_in_order_without_overlap() -> None:
    chosen = segments(*THREE)
    listed = starts(chosen, 3, 4, {"kind": "sequential"})
    found = drawn(listed, 8)
    assert found[:4].tolist() == [[2, 5], [6, 9], [10, 12], [22, 23]]
    assert found[4:].tolist() == found[:4].tolist()  # around at the end


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 25))
def test_sequential_episodes_take_every_decision_once(
    lengths: list[int], window: int, episode_bars: int
) -> None:
    ends = np.cumsum(np.array(lengths) + 1)
    chosen = Segments(np.stack([ends - lengths, ends], axis=1))
    bounds = chosen.decisions(window)
    if not len(bounds):
        return
    listed = starts(chosen, window, episode_bars, {"kind": "sequential"})
    taken = [row for a, b in drawn(listed, len(listed.first)) for row in range(a, b + 1)]
    assert taken == [row for a, b in bounds for row in range(a, b + 1)]


def test_an_offset_moves_a_start_later_and_leaves_a_decision() -> None:
    chosen = segments((0, 14), (20, 25))
    plain = drawn(starts(chosen, 3, 4, {"kind": "sequential"}), 4000)
    moved = drawn(starts(chosen, 3, 4, {"kind": "sequential", "start_offset_bars": 2}), 4000)
    assert moved[:, 1].tolist() == plain[:, 1].tolist()
    offsets = moved[:, 0] - plain[:, 0]
    room = np.minimum(2, plain[:, 1] - plain[:, 0])
    assert ((offsets >= 0) & (offsets <= room)).all()
    assert_equally_likely(np.unique(offsets[room == 2], return_counts=True)[1])
    assert set(offsets[room == 1].tolist()) == {0, 1}
    far = drawn(starts(chosen, 3, 4, {"kind": "sequential", "start_offset_bars": 99}), 400)
    assert (far[:, 0] <= far[:, 1]).all()


def test_a_first_episode_may_be_cut_to_any_length() -> None:
    found = drawn(starts(segments((0, 14)), 3, 5), 10_000, staggered=True)
    lengths, counts = np.unique(found[:, 1] - found[:, 0] + 1, return_counts=True)
    assert lengths.tolist() == [1, 2, 3, 4, 5]
    assert_equally_likely(counts)


def test_the_same_stream_draws_the_same_episodes() -> None:
    listed = starts(segments((0, 500)), 3, 5)
    once, again, other = (drawn(listed, 20, seed).tolist() for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_a_stream_is_the_same_beside_any_number_of_others() -> None:
    many = streams(7, 64)
    assert len(np.unique(many)) == 64
    assert streams(7, 3).tolist() == many[:3].tolist()
    assert streams([7, 8], 2).tolist() == [streams(7, 1)[0], streams(8, 1)[0]]


@pytest.mark.parametrize(
    ("seed", "message"), [([1, 2], "2 seeds for 3 environments"), (-1, "negative")]
)
def test_bad_seeds_are_refused(seed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        streams(seed, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[5, 5]], r"segment 0 is \[5, 5\)"),
        ([[0, 3], [-1, 3]], r"segment 1 is \[-1, 3\)"),
        ([0, 3], "shape"),
    ],
)
def test_bad_segments_are_refused(rows: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segments(np.array(rows))


def test_a_window_longer_than_every_segment_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="longest of 2 has 8 rows, a window of 8 needs 9"):
        segments((0, 5), (10, 18)).check(8, 100)
    with pytest.raises(ValueError, match="longest of 0 has 0 rows"):
        segments().check(8, 100)
    with pytest.raises(ValueError, match="ends at row 18, the market has 17 rows"):
        segments((10, 18)).check(2, 17)
