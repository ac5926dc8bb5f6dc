"""Episodes lie within segments, start uniformly and follow their generator."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.settings.experiment import BracketActions, WeightActions
from trade_pipeline.simulator.actions import mapping_for
from trade_pipeline.simulator.episodes import Segments, sample_starts, starting_orders


def segments(*rows: tuple[int, int]) -> Segments:
    return Segments(np.array(rows, np.int64).reshape(-1, 2))


def test_decisions_run_from_the_first_full_window_to_the_last_bar_but_one() -> None:
    assert segments((10, 20)).decisions(4).tolist() == [[13, 18]]
    assert segments((0, 5), (10, 14)).decisions(4).tolist() == [[3, 3]]  # 5 rows: one decision


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(1, 30),
)
def test_an_episode_lies_within_one_segment_and_has_its_length(
    seed: int, lengths: list[int], window: int, episode_bars: int
) -> None:
    ends = np.cumsum(np.array(lengths) + 3)
    chosen = Segments(np.stack([ends - lengths, ends], axis=1))
    bounds = chosen.decisions(window)
    rng = np.random.default_rng(seed)
    if not len(bounds):
        with pytest.raises(ValueError, match="none of"):
            sample_starts(rng, chosen, window, episode_bars, 1)
        return
    first, last = sample_starts(rng, chosen, window, episode_bars, 50)
    for a, b in zip(first, last, strict=True):
        ((low, high),) = [(x, y) for x, y in bounds if x <= a and b <= y]
        assert b - a + 1 == min(episode_bars, high - low + 1)


def test_every_admissible_start_is_equally_likely() -> None:
    # Decisions 2..12, 22..23 and none: 9 starts with 3 decisions ahead, and the short segment's
    chosen = segments((0, 14), (20, 25), (30, 33))
    first, last = sample_starts(np.random.default_rng(0), chosen, 3, 3, 20_000)
    rows, counts = np.unique(first, return_counts=True)
    assert rows.tolist() == [*range(2, 11), 22]
    assert counts.min() > 0.85 * counts.mean()
    assert counts.max() < 1.15 * counts.mean()
    assert (last - first == np.where(first == 22, 1, 2)).all()


def test_the_same_generator_draws_the_same_episodes() -> None:
    chosen = segments((0, 500))
    drawn = [sample_starts(np.random.default_rng(seed), chosen, 3, 5, 20) for seed in (1, 1, 2)]
    assert drawn[0][0].tolist() == drawn[1][0].tolist() != drawn[2][0].tolist()


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


@pytest.mark.parametrize(
    "actions", [BracketActions(kind="brackets"), WeightActions(kind="weights", short=True)]
)
def test_episodes_start_flat_or_half_of_them_may_hold_a_position(
    actions: BracketActions | WeightActions,
) -> None:
    mapping = mapping_for(actions, 1)
    rng = np.random.default_rng(0)
    assert starting_orders(mapping, rng, 50, random_position=False).hold.all()
    orders = starting_orders(mapping, rng, 2000, random_position=True)
    held = np.where(orders.hold, 0.0, orders.target_weight)
    assert 0.2 < (held != 0).mean() < 0.6
    assert (held > 0).any() and (held < 0).any()
