"""A regime model as a document: exact, closed and checked."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trade_pipeline.features.regimes.fit import fit_regimes
from trade_pipeline.features.regimes.model import RegimeError, RegimeModel
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline_tests.features.regimes.markets import INPUTS, known_model, one_segment, planted

ARRAYS = ("center", "scale", "start", "transition", "means", "covariances")


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_fitted_model_survives_json_to_the_last_bit(covariance: str) -> None:
    _, observations = planted(1_000, 4)
    chosen = RegimeSettings(inputs=INPUTS, states=3, restarts=2, covariance=covariance)
    model = fit_regimes(observations, one_segment(1_000), INPUTS, chosen).model
    again = RegimeModel.parse(json.loads(json.dumps(model.document(), allow_nan=False)))
    assert again.inputs == model.inputs
    for name in ARRAYS:
        before, after = getattr(model, name), getattr(again, name)
        assert after.dtype == np.float64
        assert after.shape == before.shape
        assert after.tobytes() == before.tobytes()


def put(key: str, value: Any, *path: int) -> Callable[[dict[str, Any]], None]:
    """Replace a value inside a document."""

    def damage(document: dict[str, Any]) -> None:
        inside: Any = document
        for step in (key, *path)[:-1]:
            inside = inside[step]
        inside[(key, *path)[-1]] = value

    return damage


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a key is missing": (lambda document: document.pop("scale"), "scale: Field required"),
    "a key is unknown": (put("pickle", "gASV"), "pickle: Extra inputs"),
    "not a number": (put("means", float("nan"), 1, 0), "means.1.0: Input should be a finite"),
    "infinite": (put("center", float("inf"), 0), "center.0: Input should be a finite"),
    "text": (put("center", "0.001", 0), "center.0: Input should be a valid number"),
    "a truth value": (put("center", True, 0), "center.0: Input should be a valid number"),
    "null": (put("start", None), "start: Input should be a valid tuple"),
    "huge": (put("means", 1e300, 0, 0), "means.0.0: Input should be less than"),
    "scale of 0": (put("scale", 0.0, 1), "scale.1: Input should be greater than"),
    "negative scale": (put("scale", -1.0, 1), "scale.1: Input should be greater than"),
    "a negative chance": (put("start", [-0.1, 0.5, 0.6]), "start.0: Input should be greater than"),
    "start is not normalised": (put("start", 0.51, 0), "start, row 0, sums to 1.01"),
    "transition is not normalised": (put("transition", 0.9801, 0, 0), "transition, row 0, sums to"),
    "an input is listed twice": (put("inputs", ["a", "a"]), "inputs: a name is listed twice"),
    "an input has no name": (put("inputs", "", 0), "inputs.0: String should have at least"),
    "an input's name is too long": (put("inputs", "x" * 201, 0), "inputs.0: String should have"),
    "another number of inputs": (
        put("inputs", ["a", "b", "c"]),
        r"center has shape \[2\]; \[3\] is needed for 3 input",
    ),
    "a state's mean is missing": (
        lambda document: document["means"].pop(),
        r"means has shape \[2, 2\]; \[3, 2\]",
    ),
    "rows of different lengths": (
        lambda document: document["covariances"][1][0].pop(),
        "covariances has shape of uneven rows",
    ),
    "a transition too few": (
        put("transition", [[0.5, 0.5]] * 3),
        r"transition has shape \[3, 2\]; \[3, 3\]",
    ),
    "a single state": (put("start", [1.0]), "start: Tuple should have at least 2"),
    "too many states": (put("start", [0.1] * 10), "start: Tuple should have at most 8"),
    "oversized": (put("center", [0.0] * 100_000), "center: Tuple should have at most 16"),
    "not symmetric": (
        put("covariances", 0.051, 0, 0, 1),
        "covariances, state 0, is not symmetric",
    ),
    "not positive definite": (
        put("covariances", [[0.1, 0.9], [0.9, 0.2]], 0),
        "covariances, state 0, is not positive definite",
    ),
    "no variance": (put("covariances", 0.0, 0, 1, 1), "state 0, is not positive definite"),
    "states in another order": (
        lambda document: document["covariances"].reverse(),
        "states are not ordered",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_document_is_refused_with_a_sentence(case: str) -> None:
    damage, said = DAMAGES[case]
    document = json.loads(json.dumps(known_model().document()))
    RegimeModel.parse(document)  # it was sound
    damage(document)
    with pytest.raises(RegimeError, match=said) as refused:
        RegimeModel.parse(document)
    assert str(refused.value).startswith("regime model: ")
    assert str(refused.value).endswith("fit the regimes again with this version.")
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("document", [None, [], "model", 3])
def test_what_is_no_document_is_refused(document: Any) -> None:
    with pytest.raises(RegimeError, match="regime model: the document: "):
        RegimeModel.parse(document)
