"""Adjustment runs forward: it agrees with an independent source, and the future changes nothing."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.market.actions import Action, adjustment, split_part, unsplit
from trade_pipeline.market.bars import adjusted
from trade_pipeline.market.stored import partition_metadata, read_partition
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation

from . import lean
from .series import DAY, MINUTE, START, bars_at, ms


def days(*numbers: int) -> np.ndarray:
    return np.array([START + number * DAY for number in numbers], dtype=np.int64)


def split(day: int, ratio: float) -> Action:
    return Action(START + day * DAY, "split", ratio)


def dividend(day: int, dollars: float) -> Action:
    return Action(START + day * DAY, "dividend", dollars)


@pytest.mark.parametrize("ticker", ["aapl", "ibm", "spy", "bac"])
def test_the_factor_between_any_two_dates_is_that_of_lean(shared_data: Path, ticker: str) -> None:
    bars = lean.daily(shared_data, ticker)
    actions = lean.actions(shared_data, ticker, bars)
    sessions, close = bars["ts"].dt.epoch("ms").to_numpy(), bars["close"].to_numpy()
    ours, theirs = (
        adjustment(sessions, close, actions),
        lean.factors(shared_data, ticker, bars["ts"]),
    )
    assert len(actions) > 30
    assert ours[0] == 1.0
    # All pairs at once: the quotient of two series is constant iff all their ratios are equal.
    # Their files have seven decimals, which of AAPL's split factor of 1/112 are five digits.
    quotient = ours / theirs
    assert np.ptp(quotient) / quotient[0] < 5e-6
    splits = {"aapl": 112.0, "ibm": 2.0, "spy": 1.0, "bac": 2.0}
    assert split_part(sessions, actions)[-1] == splits[ticker]


def test_what_happened_to_apple_is_what_the_company_says(shared_data: Path) -> None:
    bars = lean.daily(shared_data, "aapl")
    found = lean.actions(shared_data, "aapl", bars)
    assert Action(ms(2014, 6, 9), "split", 7.0) in found
    assert Action(ms(2020, 8, 31), "split", 4.0) in found
    assert Action(ms(2014, 5, 8), "dividend", 3.29) in found
    assert Action(ms(2020, 11, 6), "dividend", 0.205) in found


# The hand-worked cases have sessions on days 0, 1, 2 and 5.
SESSIONS = days(0, 1, 2, 5)
CLOSE = np.array([100.0, 50.0, 40.0, 20.0])


def factor(*actions: Action) -> list[float]:
    return adjustment(SESSIONS, CLOSE, actions).tolist()


def test_without_actions_it_is_one() -> None:
    assert factor() == [1, 1, 1, 1]


def test_a_split_multiplies_from_its_session_on() -> None:
    assert factor(split(1, 2.0)) == [1, 2, 2, 2]


def test_a_reverse_split_divides() -> None:
    assert factor(split(2, 0.125)) == [1, 1, 0.125, 0.125]


def test_a_dividend_is_measured_by_the_close_before() -> None:
    assert factor(dividend(2, 10.0)) == [1, 1, 1 / (1 - 10 / 50), 1.25]


def test_a_date_without_a_session_takes_effect_at_the_next() -> None:
    assert factor(split(3, 4.0)) == factor(split(5, 4.0)) == [1, 1, 1, 4]
    assert factor(dividend(4, 8.0)) == [1, 1, 1, 1.25]


def test_at_or_before_the_first_session_nothing_changes() -> None:
    assert factor(split(0, 2.0), split(-3, 2.0), dividend(0, 99.0)) == [1, 1, 1, 1]


def test_behind_the_last_session_nothing_changes_yet() -> None:
    assert factor(split(6, 2.0), dividend(6, 500.0)) == [1, 1, 1, 1]


def test_of_one_date_the_split_comes_first() -> None:
    # 50 becomes 25 in new shares, each of which is paid 5.
    assert factor(dividend(2, 5.0), split(2, 2.0)) == [1, 1, 2 * 25 / 20, 2.5]


def test_a_dividend_before_a_split_is_in_old_shares() -> None:
    # Both before one session: of 40, 8 are paid; the rest is split.
    assert factor(dividend(3, 8.0), split(4, 2.0)) == [1, 1, 1, 1.25 * 2]


def test_two_dividends_between_two_sessions_are_as_one_of_both() -> None:
    several, one = (
        factor(dividend(3, 3.0), dividend(4, 5.0)),
        factor(dividend(5, 8.0)),
    )
    assert several == pytest.approx(one, rel=1e-15)


def test_a_repeated_action_counts_once() -> None:
    assert factor(split(1, 2.0), split(1, 2.0)) == [1, 2, 2, 2]


def test_split_part_leaves_dividends_out() -> None:
    given_ = (split(1, 2.0), dividend(2, 10.0), split(5, 3.0), split(0, 9.0))
    assert split_part(SESSIONS, given_).tolist() == [1, 2, 2, 6]


def test_unsplit_multiplies_by_all_later_splits_and_by_those_to_come() -> None:
    given_ = (split(1, 2.0), dividend(2, 10.0), split(4, 3.0), split(9, 5.0))
    assert unsplit(SESSIONS, np.ones(4), given_).tolist() == [30, 15, 15, 5]


def test_no_session_is_no_factor() -> None:
    none = np.array([], dtype=np.int64)
    assert adjustment(none, np.array([]), [split(1, 2.0)]).tolist() == []
    assert split_part(none, [split(1, 2.0)]).tolist() == []
    assert unsplit(none, np.array([]), [split(1, 2.0)]).tolist() == []


@pytest.mark.parametrize("value", [0.0, -2.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", ["split", "dividend"])
def test_a_value_that_is_none_is_refused(kind: Any, value: float) -> None:
    with pytest.raises(ValueError, match=f"the {kind} of 2018-01-02 has the value"):
        factor(Action(START + DAY, kind, value))


@pytest.mark.parametrize("dollars", [50.0, 51.0])
def test_a_dividend_that_takes_the_whole_price_is_refused(dollars: float) -> None:
    with pytest.raises(ValueError, match=r"2018-01-03 is 5\d a share, which is not below .* 50;"):
        factor(dividend(2, dollars))


SPAN = 30
some_actions = st.lists(
    st.one_of(
        st.builds(split, st.integers(-2, SPAN + 2), st.sampled_from([2.0, 4.0, 1.5, 0.125, 7.0])),
        st.builds(dividend, st.integers(-2, SPAN + 2), st.floats(0.01, 0.5)),
    ),
    max_size=8,
)
some_sessions = st.sets(st.integers(0, SPAN), min_size=1).map(lambda found: days(*sorted(found)))


@given(some_sessions, some_actions, st.integers(1, SPAN), st.randoms())
def test_the_future_changes_no_factor_before_it(
    sessions: np.ndarray, actions: list[Action], cut: int, random: Any
) -> None:
    close = np.array([random.uniform(50, 900) for _ in sessions])
    whole = adjustment(sessions, close, actions)
    parts = split_part(sessions, actions)
    early = sessions[:cut]
    known = [one for one in actions if one.ts_ms <= early[-1]]
    assert adjustment(early, close[:cut], known).tobytes() == whole[:cut].tobytes()
    assert split_part(early, known).tobytes() == parts[:cut].tobytes()


@given(some_sessions, some_actions)
def test_split_part_is_the_factor_of_the_splits_alone(
    sessions: np.ndarray, actions: list[Action]
) -> None:
    splits = [one for one in actions if one.kind == "split"]
    close = np.full(len(sessions), 100.0)
    assert split_part(sessions, actions).tolist() == adjustment(sessions, close, splits).tolist()


@given(some_sessions, some_actions)
def test_unsplit_undoes_what_a_venue_did_split_by_split(
    sessions: np.ndarray, actions: list[Action]
) -> None:
    raw = 100.0 + np.arange(len(sessions))
    venue = raw.copy()
    for one in {one for one in actions if one.kind == "split"}:
        venue[sessions < one.ts_ms] /= one.value
    assert unsplit(sessions, venue, actions) == pytest.approx(raw, rel=1e-12)


@given(some_sessions, some_actions)
def test_buying_one_share_and_reinvesting_earns_what_the_adjusted_close_says(
    sessions: np.ndarray, actions: list[Action]
) -> None:
    """The oracle is a portfolio, walked day by day; reinvested at the theoretical ex-price."""
    actions = list(dict.fromkeys(actions))
    close = 100.0 + 7 * (np.arange(len(sessions)) % 5)
    shares, price = 1.0, close[0]
    at = {int(session): row for row, session in enumerate(sessions)}
    worth = [close[0]]
    for day in range(int(sessions[0]) + DAY, int(sessions[-1]) + DAY, DAY):
        for one in sorted((a for a in actions if a.ts_ms == day), key=lambda a: a.kind != "split"):
            if one.kind == "split":
                shares, price = shares * one.value, price / one.value
            else:
                cash = shares * one.value
                price -= one.value
                shares += cash / price
        if day in at:
            price = close[at[day]]
            worth.append(shares * price)
    assert close * adjustment(sessions, close, actions) == pytest.approx(np.array(worth), rel=1e-9)


def test_adjusted_divides_volume_by_the_splits_so_that_dollars_stay() -> None:
    actions = (split(1, 4.0), dividend(2, 5.0))
    sessions, close = days(0, 1, 2), np.array([100.0, 25.0, 24.0])
    bars = bars_at(
        sessions.tolist(),
        **{name: [100.0, 25.0, 24.0] for name in ("open", "high", "low", "close")},
        volume=[10.0, 40.0, 40.0],
        adj_factor=adjustment(sessions, close, actions).tolist(),
    )
    found = adjusted(bars, actions)
    assert found["close"].to_list() == [100.0, 100.0, 24.0 * 5.0]
    assert found["volume"].to_list() == [10.0, 10.0, 10.0]
    assert found["adj_factor"].to_list() == [1.0, 1.0, 1.0]
    assert adjusted(bars)["volume"].to_list() == [10.0, 40.0, 40.0]
    assert adjusted(bars, [dividend(2, 5.0)]).equals(adjusted(bars))


def test_bars_within_a_day_have_the_shares_of_their_date() -> None:
    opens = [START + at for at in (14 * 60 * MINUTE, DAY - MINUTE, DAY, DAY + 14 * 60 * MINUTE)]
    bars = bars_at(opens, volume=8.0, adj_factor=[1.0, 1.0, 2.0, 2.0])
    assert adjusted(bars, [split(1, 2.0)])["volume"].to_list() == [8.0, 8.0, 4.0, 4.0]


def test_a_market_without_a_factor_is_as_it_was() -> None:
    bars = bars_at(days(0, 1, 2).tolist())
    assert adjusted(bars).equals(bars)


def test_actions_come_back_from_a_partition_as_they_were(tmp_path: Path) -> None:
    actions = (
        Action(ms(2018, 1, 2), "split", 1 / 3),
        Action(ms(2018, 1, 3), "dividend", 0.1 + 0.2),
    )
    location = ArtifactLocation(tmp_path, "2018.parquet")
    write_frame(location, bars_at(days(0, 1, 2).tolist()), partition_metadata((), actions))
    assert read_partition(location).actions == actions
