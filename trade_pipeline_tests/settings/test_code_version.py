"""Code versions: the same for the same values, another for any other value."""

import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.settings.code_version import canonical_json, code_version, implementation_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip
CONFIGURATIONS = st.dictionaries(st.text(max_size=3), VALUES, min_size=2, max_size=4)


def backwards(value: object) -> object:
    """The same value with the keys of every mapping in reverse."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(one) for one in value] if isinstance(value, list) else value


@given(CONFIGURATIONS)
def test_the_order_of_keys_does_not_matter(configuration: dict[str, object]) -> None:
    turned = backwards(configuration)
    assert isinstance(turned, dict)
    assert code_version(turned, {"b": 1, "a": 2}) == code_version(configuration, {"a": 2, "b": 1})


@given(CONFIGURATIONS, CONFIGURATIONS)
def test_different_values_have_different_versions(
    one: dict[str, object], other: dict[str, object]
) -> None:
    same = canonical_json(one) == canonical_json(other)
    assert (code_version(one, {}) == code_version(other, {})) == same


@pytest.mark.parametrize(
    ("configuration", "implementations"),
    [
        ({"window": 5, "list": [1, 2]}, {"kernel": 1}),
        ({"window": "4", "list": [1, 2]}, {"kernel": 1}),
        ({"window": 4, "list": [2, 1]}, {"kernel": 1}),
        ({"window": 4}, {"kernel": 1}),
        ({"window": 4, "list": [1, 2], "more": None}, {"kernel": 1}),
        ({"window": 4, "list": [1, 2]}, {"kernel": 2}),
        ({"window": 4, "list": [1, 2]}, {"trainer": 1}),
        ({"window": 4, "list": [1, 2]}, {}),
    ],
)
def test_every_value_and_every_implementation_counts(
    configuration: dict[str, object], implementations: dict[str, int]
) -> None:
    base = code_version({"window": 4, "list": [1, 2]}, {"kernel": 1})
    assert re.fullmatch("[0-9a-f]{16}", base)
    assert code_version(configuration, implementations) != base


def test_a_version_never_changes_between_releases() -> None:
    # Stored versions are compared with this function's: another value marks everything stale.
    assert code_version({"window": 4}, {"kernel": 1}) == "dbeff71ff037fdfe"


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        code_version({"window": float("nan")}, {})


def test_the_number_is_read_without_importing_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '"""A module."""\n\nraise RuntimeError("imported")\n\nIMPLEMENTATION = 17\n'
    (tmp_path / "heavy_part.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert implementation_of("heavy_part") == 17
    assert "heavy_part" not in sys.modules


def test_a_module_without_a_number_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "light_part.py").write_text("IMPLEMENTATION = str(1)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LookupError, match="light_part has no line"):
        implementation_of("light_part")
    with pytest.raises(LookupError, match="no_such_part"):
        implementation_of("no_such_part")


@pytest.mark.parametrize(
    "part",
    [
        "training.dataset",
        "simulator.kernel",
        "training.trainer",
        "backtest.engine",
        "evaluation.metrics",
        "backtest.experiment_report",
        "backtest.leaderboard",
    ],
)
def test_every_part_of_an_experiment_has_a_number(part: str) -> None:
    assert implementation_of(f"trade_pipeline.{part}") >= 1
