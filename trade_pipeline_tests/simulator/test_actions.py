"""Actions become orders; what is outside the space is refused with its place."""

from typing import Any

import numpy as np
import pytest

from trade_pipeline.settings.environment import (
    BracketActions,
    EnvironmentSettings,
    WeightActions,
)
from trade_pipeline.simulator.actions import (
    BracketMapping,
    WeightMapping,
    draw_orders,
    mapping_for,
)
from trade_pipeline.simulator.orders import Orders
from trade_pipeline.simulator.randomness import streams

BRACKETS = BracketActions(
    kind="brackets", sizes=(0.5, 1.0), stops=(None, 0.02), takes=(None, 0.03, 2.0)
)
EITHER = [BRACKETS, WeightActions(kind="weights", short=True, stop=0.05)]


def weights(instruments: int = 2, largest: float = 1.0, **choices: Any) -> WeightMapping:
    return WeightMapping(WeightActions(kind="weights", **choices), largest, instruments)


def test_every_choice_of_a_bracket_action_reaches_the_order() -> None:
    mapping = BracketMapping(BRACKETS)
    assert mapping.nvec.tolist() == [4, 2, 2, 3]
    actions = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [2, 0, 1, 2], [3, 1, 0, 1]])
    orders = mapping.to_orders(actions)
    assert orders.hold[:, 0].tolist() == [True, False, False, False]
    assert orders.target_weight[1:, 0].tolist() == [0.0, 0.5, -1.0]
    np.testing.assert_array_equal(orders.stop_fraction[:, 0], [0.02, np.nan, 0.02, np.nan])
    np.testing.assert_array_equal(orders.take_fraction[:, 0], [0.03, np.nan, 2.0, 0.03])


def test_without_shorts_there_are_three_directions() -> None:
    mapping = BracketMapping(BRACKETS.model_copy(update={"short": False}))
    assert mapping.nvec[0] == 3
    with pytest.raises(ValueError, match=r"environment 1: direction 3 must lie in \[0, 3\)"):
        mapping.to_orders(np.array([[0, 0, 0, 0], [3, 0, 0, 0]]))


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([[0, 0, 0, -1]]), "take_profit -1"),
        (np.array([[0, 2, 0, 0]]), "size 2"),
        (np.array([[0, 0, 2**63, 0]], np.uint64), f"stop_loss {2**63}"),
        (np.array([[0.0, 0.0, 0.0, 0.0]]), "integers"),
        (np.array([[0.0, np.nan, 0.0, 0.0]]), "integers"),
        (np.array([0, 0, 0, 0]), "shape"),
        (np.zeros((1, 3), int), "shape"),
    ],
)
def test_bad_bracket_actions_are_refused(actions: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BracketMapping(BRACKETS).to_orders(actions)


def test_dict_actions_are_the_same_choices_by_name() -> None:
    mapping = BracketMapping(BRACKETS)
    flat = np.array([3, 1, 0, 2])
    named = mapping.to_dict(flat)
    assert named == {"direction": 3, "size": 1, "stop_loss": 0, "take_profit": 2}
    assert mapping.from_dict(named).tolist() == flat.tolist()
    with pytest.raises(ValueError, match="keys"):
        mapping.from_dict({"direction": 1})
    for value in (float("nan"), 0.7, True, "1", [0, 1]):
        with pytest.raises(ValueError, match="size is"):
            mapping.from_dict({**named, "size": value})


def test_weights_pass_through_and_are_clipped_within_tolerance() -> None:
    orders = weights(short=True).to_orders(np.array([[0.25, -1.0000005]], np.float32))
    assert orders.target_weight.tolist() == [[0.25, -1.0]]
    assert not orders.hold.any()
    assert np.isnan(orders.stop_fraction).all()
    assert np.isnan(orders.take_fraction).all()


def test_every_weight_gets_the_brackets_of_the_settings() -> None:
    orders = weights(stop=0.05, take=0.1).to_orders(np.array([[0.25, 0.0]], np.float32))
    assert orders.stop_fraction.tolist() == [[0.05, 0.05]]
    assert orders.take_fraction.tolist() == [[0.1, 0.1]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.01, -0.01])
def test_weights_outside_the_box_are_refused_with_their_place(value: float) -> None:
    with pytest.raises(ValueError, match=r"environment 1, instrument 0: weight"):
        weights().to_orders(np.array([[0.0, 0.0], [value, 0.0]]))


def test_the_box_of_weights_reaches_as_far_as_the_largest_position() -> None:
    settings = EnvironmentSettings(
        actions=WeightActions(kind="weights", short=True), max_leverage=3, max_position=2.5
    )
    mapping = mapping_for(settings, 2)
    assert isinstance(mapping, WeightMapping)
    assert (mapping.low.tolist(), mapping.high.tolist()) == ([-2.5, -2.5], [2.5, 2.5])
    with pytest.raises(ValueError, match=r"weight 2.6 must be a number in \[-2.5, 2.5\]"):
        mapping.to_orders(np.array([[2.6, 0.0]]))


def test_orders_are_written_where_they_are_wanted() -> None:
    mapping = weights(short=True)
    room = Orders.room(1, 2)
    room.hold[:] = True
    room.stop_fraction[:] = 0.5
    assert mapping.to_orders(np.array([[0.5, -0.5]]), room) is room
    fresh = mapping.to_orders(np.array([[0.5, -0.5]]))
    for written, new in zip(room, fresh, strict=True):
        np.testing.assert_array_equal(written, new)


def test_brackets_refuse_several_instruments() -> None:
    brackets = EnvironmentSettings(actions=BRACKETS)
    with pytest.raises(ValueError, match="the market has 3"):
        mapping_for(brackets, 3)
    assert isinstance(mapping_for(brackets, 1), BracketMapping)
    portfolio = EnvironmentSettings(actions=WeightActions(kind="weights"))
    assert isinstance(mapping_for(portfolio, 3), WeightMapping)


@pytest.mark.parametrize("actions", EITHER)
def test_samples_lie_in_the_space(actions: BracketActions | WeightActions) -> None:
    mapping = mapping_for(EnvironmentSettings(actions=actions), 1)
    for action in mapping.sample(np.random.default_rng(0), 100):
        assert mapping.space.contains(action)


def drawn(actions: BracketActions | WeightActions, count: int, random_position: bool) -> Orders:
    mapping = mapping_for(EnvironmentSettings(actions=actions), 1)
    orders, random = Orders.room(count, 1), streams(0, count)
    for e in range(count):
        draw_orders(mapping.choices, random, orders, e, random_position)
    return orders


@pytest.mark.parametrize("actions", EITHER)
def test_episodes_start_flat_or_half_of_them_may_hold_a_position(
    actions: BracketActions | WeightActions,
) -> None:
    assert drawn(actions, 50, random_position=False).hold.all()
    orders = drawn(actions, 2000, random_position=True)
    held = np.where(orders.hold, 0.0, orders.target_weight)
    # Of the four directions of a bracket action two hold nothing
    share = 0.25 if actions.kind == "brackets" else 0.5
    assert (held != 0).mean() == pytest.approx(share, abs=0.05)
    assert (held > 0).mean() == pytest.approx((held < 0).mean(), abs=0.05)


def test_every_action_is_drawn_as_a_first_position() -> None:
    orders = drawn(BRACKETS, 2000, random_position=True)
    chosen = ~orders.hold[:, 0]
    kinds = np.stack([orders.target_weight, orders.stop_fraction, orders.take_fraction], axis=1)
    assert set(orders.target_weight[chosen, 0].tolist()) == {0.0, 0.5, 1.0, -0.5, -1.0}
    held = chosen & (orders.target_weight[:, 0] != 0)
    found = {tuple(row) for row in np.nan_to_num(kinds[held, :, 0]).tolist()}
    assert len(found) == 4 * 2 * 3
