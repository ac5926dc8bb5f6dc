"""Actions become orders; what is outside the space is refused with its place."""

import numpy as np
import pytest

from trade_pipeline.settings.experiment import BracketActions, WeightActions
from trade_pipeline.simulator.actions import (
    BracketMapping,
    WeightMapping,
    mapping_for,
)

BRACKETS = BracketActions(
    kind="brackets", sizes=(0.5, 1.0), stops=(None, 0.02), takes=(None, 0.03, 2.0)
)


def test_every_choice_of_a_bracket_action_reaches_the_order() -> None:
    mapping = BracketMapping(BRACKETS)
    assert mapping.nvec.tolist() == [4, 2, 2, 3]
    actions = np.array([[0, 1, 1, 1], [1, 1, 0, 0], [2, 0, 1, 2], [3, 1, 0, 1]])
    orders = mapping.to_orders(actions)
    assert orders.hold[:, 0].tolist() == [True, False, False, False]
    assert orders.target_weight[:, 0].tolist() == [0.0, 0.0, 0.5, -1.0]
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
        (np.array([[0.0, 0.0, 0.0, 0.0]]), "integers"),
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
    with pytest.raises(ValueError, match="size is nan"):
        mapping.from_dict({**named, "size": float("nan")})


def test_weights_pass_through_and_are_clipped_within_tolerance() -> None:
    mapping = WeightMapping(WeightActions(kind="weights", short=True), 2)
    orders = mapping.to_orders(np.array([[0.25, -1.0000005]], np.float32))
    assert orders.target_weight.tolist() == [[0.25, -1.0]]
    assert not orders.hold.any()
    assert np.isnan(orders.stop_fraction).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.01, -0.01])
def test_weights_outside_the_box_are_refused_with_their_place(value: float) -> None:
    mapping = WeightMapping(WeightActions(kind="weights"), 2)
    with pytest.raises(ValueError, match=r"environment 1, instrument 0: weight"):
        mapping.to_orders(np.array([[0.0, 0.0], [value, 0.0]]))


def test_brackets_refuse_several_instruments() -> None:
    with pytest.raises(ValueError, match="the market has 3"):
        mapping_for(BRACKETS, 3)
    assert isinstance(mapping_for(BRACKETS, 1), BracketMapping)
    assert isinstance(mapping_for(WeightActions(kind="weights"), 3), WeightMapping)


@pytest.mark.parametrize("actions", [BRACKETS, WeightActions(kind="weights", short=True)])
def test_samples_lie_in_the_space(actions: BracketActions | WeightActions) -> None:
    mapping = mapping_for(actions, 1)
    for action in mapping.sample(np.random.default_rng(0), 100):
        assert mapping.space.contains(action)
