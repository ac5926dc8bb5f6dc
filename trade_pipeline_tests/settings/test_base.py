"""Reading YAML: nothing is dropped silently, and each wrong key is named with its file."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from trade_pipeline.settings.base import (
    Settings,
    SettingsError,
    closest,
    parse_settings,
    parse_yaml,
    read_settings,
    read_yaml,
    yaml_text,
)

# Text that looks like what it is not: a volume's identifier of RunPod's may be 1875956e71.
TEXT = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" ")) | st.from_regex(
    r"[-+0-9.e]{1,10}", fullmatch=True
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.dates() | TEXT,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(TEXT, inside, max_size=4),
    max_leaves=8,
)


class Inner(Settings):
    period: int
    scale: float = 1.0


class Outer(Settings):
    name: str
    inner: Inner
    several: tuple[Inner, ...] = ()


class Cross(Settings):
    kind: Literal["cross"]
    fast: int = 20
    rate: float | Inner = 0.5
    short: bool = False
    since: date | None = None


class Hold(Settings):
    kind: Literal["hold"]


class Rules(Settings):
    rules: tuple[Annotated[Cross | Hold, Field(discriminator="kind")], ...] = ()
    shares: dict[str, tuple[float, ...]] = Field(default_factory=dict)


def written(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: a\nname: b\n", "name"),
        ("inner:\n  period: 1\n  period: 2\n", "period"),
        ("several:\n  - {period: 1, scale: 2, scale: 3}\n", "scale"),
        ("1: a\n1: b\n", "1"),
    ],
)
def test_a_key_written_twice_is_named_with_its_line(tmp_path: Path, text: str, key: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError, match=rf"some\.yaml.*'?{key}'? is written twice") as caught:
        read_yaml(path)
    assert "line" in str(caught.value)


def test_the_same_key_in_two_mappings_is_fine(tmp_path: Path) -> None:
    path = written(tmp_path, "inner: {period: 1}\nseveral: [{period: 2}, {period: 3}]\nname: a\n")
    assert [one.period for one in read_settings(path, Outer).several] == [2, 3]


def test_an_impossible_date_is_named_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"some\.yaml: holds an impossible date"):
        read_yaml(written(tmp_path, "from: 2000-02-31\n"))


@given(st.dictionaries(TEXT, PLAIN, max_size=3), st.booleans())
def test_what_is_written_is_read_again_with_each_value_of_its_kind(
    content: object, one_line: bool
) -> None:
    text = yaml_text(content, one_line=one_line)
    again = parse_yaml(text)
    assert repr(again) == repr(content)
    assert not one_line or "\n" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"name": "a", "iner": {"period": 1}}, ["'iner'", "Did you mean 'inner'", "'inner' is mi"]),
        ({"name": "a", "inner": {"perod": 1}}, ["'inner.perod'", "Did you mean 'period'"]),
        ({"name": "a", "inner": {"period": "x"}}, ["'inner.period'", "'x'"]),
        ({"name": "a", "inner": {"period": 1}, "several": [{}]}, ["'several.0.period' is missing"]),
        ({"name": "a", "inner": {"period": 1, "scale": float("nan")}}, ["'inner.scale'"]),
        ({"name": 3, "inner": {"period": 1}}, ["'name' is 3: text is needed; put it in quotes."]),
        (["a"], ["the whole file"]),
        (None, ["the whole file is None"]),
    ],
)
def test_every_wrong_key_is_named_with_its_file(content: object, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings(content, Outer, "some.yaml")
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert all(line.startswith("some.yaml: ") for line in text.splitlines()), text


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kind": "cross", "fast": True}, "key 'rules.0.fast' is True: a number is needed"),
        ({"kind": "cross", "fast": "20"}, "key 'rules.0.fast' is '20': a number is needed"),
        ({"kind": "cross", "rate": "0.1"}, "key 'rules.0.rate"),
        ({"kind": "cross", "rate": True}, "key 'rules.0.rate' is True: a number is needed"),
        (
            {"kind": "cross", "rate": {"period": False}},
            "key 'rules.0.rate.period' is False: a number is needed",
        ),
        ({"kind": "cross", "short": "no"}, "key 'rules.0.short' is 'no': true or false is needed"),
        ({"kind": "cross", "short": 1}, "key 'rules.0.short' is 1: true or false is needed"),
        ({"kind": "cross", "since": 0}, "key 'rules.0.since' is 0: a date is needed"),
    ],
)
def test_what_is_of_another_kind_than_the_key_is_refused(rule: object, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"rules": [rule]}, Rules, "some.yaml")
    assert said in str(caught.value)
    with pytest.raises(SettingsError, match=r"key 'shares\.a\.1' is True"):
        parse_settings({"shares": {"a": [0.5, True]}}, Rules, "some.yaml")


def test_whole_numbers_small_ones_and_dates_as_people_write_them_are_taken(tmp_path: Path) -> None:
    text = "rules: [{kind: cross, fast: 1.0, rate: 1, since: 2020-01-31}]\nshares: {a: [1e-3, 2]}"
    read = read_settings(written(tmp_path, text), Rules)
    assert read.rules == (Cross(kind="cross", fast=1, rate=1.0, since=date(2020, 1, 31)),)
    assert read.shares == {"a": (0.001, 2.0)}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kind": "cross", "fst": 3}, "unknown key 'rules.0.fst'. Did you mean 'fast'?"),
        ({"kind": "hold", "fast": 3}, "unknown key 'rules.0.fast'. Known: kind."),
        (
            {"kind": "cross", "rate": {"perod": 3}},
            "unknown key 'rules.0.rate.perod'. Did you mean 'period'?",
        ),
        ({"kind": "cros"}, "key 'rules.0.kind' is 'cros'. Did you mean 'cross'?"),
        ({"fast": 3}, "key 'rules.0.kind' is missing; add one of cross, hold."),
    ],
)
def test_what_is_near_is_looked_for_in_that_very_place(rule: object, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_settings({"rules": [rule]}, Rules, "some.yaml")
    assert f"some.yaml: {said}" in str(caught.value).splitlines()


def test_a_missing_file_and_broken_yaml_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(SettingsError, match=r"some\.yaml: not valid YAML"):
        read_yaml(written(tmp_path, "name: [unclosed\n"))
    (tmp_path / "some.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(SettingsError, match=r"some\.yaml: cannot be read as UTF-8"):
        read_yaml(tmp_path / "some.yaml")


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    path = written(tmp_path, "name: !!python/object/apply:os.getpid []\n")
    with pytest.raises(SettingsError, match=r"some\.yaml: not valid YAML"):
        read_yaml(path)


def test_settings_cannot_be_changed() -> None:
    settings = parse_settings({"period": 1}, Inner, "some.yaml")
    with pytest.raises(ValidationError):
        settings.period = 2  # type: ignore[misc]


def test_the_closest_name_is_offered_or_all_that_exist() -> None:
    assert closest("dayly", ["daily", "minute"]) == " Did you mean 'daily'?"
    assert closest("xyz", ["minute", "daily"]) == " Known: daily, minute."
    assert closest("xyz", []) == " Known: none."
