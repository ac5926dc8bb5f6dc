import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trade_pipeline.storage.documents import json_hash, read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(value=JSON)
def test_a_document_reads_back_with_its_hash(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    location = ArtifactLocation(tmp_path_factory.getbasetemp(), "documents/x.json")
    digest = write_json(location, value)
    assert location.path.read_text().endswith("\n")
    assert read_json(location) == value
    assert json_hash(read_json(location)) == digest == json_hash(value)


def test_the_order_of_keys_does_not_change_the_bytes(tmp_path: Path) -> None:
    first, second = ArtifactLocation(tmp_path, "a.json"), ArtifactLocation(tmp_path, "b.json")
    write_json(first, {"a": 1, "b": [2]})
    write_json(second, {"b": [2], "a": 1})
    assert first.path.read_bytes() == second.path.read_bytes() == b'{"a":1,"b":[2]}\n'


@pytest.mark.parametrize("value", [math.nan, {"x": math.inf}, {"x": {1}}, Path("x")], ids=str)
def test_a_value_json_does_not_have_is_refused_and_the_old_file_stays(
    tmp_path: Path, value: Any
) -> None:
    location = ArtifactLocation(tmp_path, "x.json")
    write_json(location, "old")
    with pytest.raises(StorageError, match=r"x\.json: the value cannot be written as JSON"):
        write_json(location, value)
    assert read_json(location) == "old"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1] [2]"])
def test_a_damaged_or_missing_document_is_named(tmp_path: Path, content: bytes) -> None:
    location = ArtifactLocation(tmp_path, "x.json")
    with pytest.raises(StorageError, match=r"x\.json: no such document"):
        read_json(location)
    location.path.write_bytes(content)
    with pytest.raises(StorageError, match=r"x\.json: not valid JSON"):
        read_json(location)
