"""JSON documents: manifests, pointers and indexes, written atomically.

Knows nothing of what a document means. Start at `write_json` and `read_json`.
"""

import hashlib
import json
from typing import Any

from trade_pipeline.settings.code_version import canonical_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError, replacing


def json_hash(value: Any) -> str:
    """Content hash of a JSON value: 64 hex digits, independent of key order.

    >>> json_hash({"a": 1, "b": 2}) == json_hash({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(location: ArtifactLocation, value: Any) -> str:
    """Write a value as canonical JSON and a newline, atomically.

    Returns:
        `json_hash(value)`.

    Raises:
        StorageError: the value holds NaN, infinity or a type JSON does not have.
    """
    try:
        text = canonical_json(value)
    except (TypeError, ValueError) as error:
        raise StorageError(
            f"{location}: the value cannot be written as JSON ({error}); "
            "use null with a reason for what is undefined, and text for dates."
        ) from error
    with replacing(location) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(location: ArtifactLocation) -> Any:
    """Parse one document.

    Raises:
        StorageError: the file is missing or not JSON.
    """
    try:
        return json.loads(location.path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(
            f"{location}: no such document; materialize the asset that writes it."
        ) from None
    except ValueError as error:
        raise StorageError(
            f"{location}: not valid JSON ({error}); materialize the asset that writes it again."
        ) from error
