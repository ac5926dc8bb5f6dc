"""Policies from elsewhere: taken apart as strangers, verified, and only then among our own.

A bundle lies under `quarantine/` until everything about it holds; no asset reads there. Nothing is
unpickled, ever: weights are safetensors, the rest is JSON, or is never interpreted. Start at
`verify_policy` and `import_policy`.
"""

import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from trade_pipeline.storage.archives import LIMITS, Limits, receive
from trade_pipeline.storage.bundles import LIMIT_BYTES, BundleReference, commit, verify
from trade_pipeline.storage.documents import json_hash, read_json
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.training.policy import (
    DETERMINISTIC,
    LEARNER,
    SPEC,
    WEIGHTS,
    PolicyRunner,
)

IMPORTED, QUARANTINE = "imported", "quarantine"
DIAGNOSTICS, LOG = "diagnostics.parquet", "job.log"
MEMBERS = (*DETERMINISTIC, "provenance.json", DIAGNOSTICS, LOG, "tb/events.*")
ANY_BUNDLE = Limits(LIMIT_BYTES, LIMIT_BYTES)  # datasets are larger than policies
LARGEST_TEXT_BYTES = 16 * 2**20
_MADE_AGAIN = "train the policy again, or ask whoever made it for another copy."
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_NUMBERS = ("F16", "F32", "F64", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "BOOL")


class PolicyImportError(StorageError):
    """A policy from elsewhere is not taken; the message names the member and the reason."""


def verify_policy(location: ArtifactLocation) -> dict[str, Any]:
    """Check all of a policy bundle: hashes, members, and that it can act.

    Returns:
        The index: `version` and `members`.

    Raises:
        StorageError: names the bundle, the member and what is wrong.
    """
    index = verify(location)
    counted = sorted(one["name"] for one in index["members"] if one["deterministic"])
    if counted != sorted(DETERMINISTIC):
        raise PolicyImportError(
            f"{location}: its version is made of {', '.join(counted)}, but that of a policy is "
            f"made of {', '.join(sorted(DETERMINISTIC))}; {_MADE_AGAIN}"
        )
    for member in index["members"]:
        name = member["name"]
        problem = _check_of(name)(location.path / name)
        if problem:
            raise PolicyImportError(f"{location}: member {name!r} {problem}; {_MADE_AGAIN}")
    try:
        PolicyRunner.load(location)
    except StorageError:
        raise
    except (ValueError, RecursionError) as error:
        raise PolicyImportError(f"{location}: cannot act: {error}") from error
    return index


def verify_stranger(source: Path, workplace: Path) -> dict[str, Any]:
    """Check a zip or folder that lies anywhere: a policy in all detail, another bundle by hashes.

    Args:
        source: the zip or folder.
        workplace: empty folder to unpack it in.

    Raises:
        StorageError: names the source, or the member, and what is wrong.
    """
    location = ArtifactLocation(workplace, "bundle")
    receive(source, location.path, limits=ANY_BUNDLE)
    try:
        return verify_stored(location)
    except StorageError as error:
        # What it was unpacked to is gone when this is read.
        raise StorageError(str(error).replace(str(location), str(source))) from error


def verify_stored(location: ArtifactLocation) -> dict[str, Any]:
    """Check a bundle of the store: a policy in all detail, another by its hashes."""
    return verify_policy(location) if _is_policy(location) else verify(location)


def import_policy(
    source: Path, key_location: ArtifactLocation, limits: Limits = LIMITS
) -> ArtifactLocation:
    """Take a policy bundle into the store, if everything about it holds.

    Args:
        source: a zip or a folder.
        key_location: where it becomes current: `imported/<name>` of the store.
        limits: what is taken at most.

    Returns:
        The folder of its version.

    Raises:
        StorageError: why it is not taken. What could be unpacked but does not verify stays under
            `quarantine/`, as the message says; of an unsafe archive nothing stays.
    """
    parts = key_location.key.split("/")
    if len(parts) != 2 or parts[0] != IMPORTED:
        raise PolicyImportError(
            f"{key_location.key}: policies from elsewhere are kept as {IMPORTED}/<name>, apart "
            "from those trained here; give such a key."
        )
    store = key_location.store
    arriving = ArtifactLocation(store, f"{QUARANTINE}/arriving-{secrets.token_hex(8)}")
    content = receive(source, arriving.path, MEMBERS, limits)
    quarantined = ArtifactLocation(store, f"{QUARANTINE}/{json_hash(content)[:32]}")
    if quarantined.path.exists():  # the same, refused before; perhaps touched since
        shutil.rmtree(quarantined.path)
    arriving.path.rename(quarantined.path)
    try:
        version = verify_policy(quarantined)["version"]
        return commit(BundleReference(quarantined, version), key_location)
    except StorageError as error:
        raise PolicyImportError(
            f"{source}: not imported. {error} It stays in {quarantined}, where nothing uses it; "
            "remove it when you have looked at it."
        ) from error


def _is_policy(location: ArtifactLocation) -> bool:
    return any((location.path / name).exists() for name in (WEIGHTS, SPEC))


def _check_of(name: str) -> Callable[[Path], str | None]:
    """What is said of a member's content, None where it is what its name says."""
    if name in (WEIGHTS, LEARNER):
        return _tensors
    if name.endswith(".json"):
        return _document
    checks = {DIAGNOSTICS: _parquet, LOG: _text}
    if name in checks:
        return checks[name]
    if name.startswith("tb/events."):
        return _events
    return lambda path: f"is unknown; a policy has {', '.join(MEMBERS)}"


def _tensors(path: Path) -> str | None:
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if (kind := file.get_slice(name).get_dtype()) not in _NUMBERS:
                    return f"holds tensor {name!r} of type {kind}, which is none that we train"
                if not np.isfinite(file.get_tensor(name)).all():
                    return f"holds tensor {name!r} with values that are not finite"
    except (SafetensorError, OSError) as error:
        return f"is no safetensors file ({error})"
    return None


def _document(path: Path) -> str | None:
    if path.stat().st_size > LARGEST_TEXT_BYTES:
        return f"is larger than {LARGEST_TEXT_BYTES} bytes"
    try:
        document = read_json(ArtifactLocation(path.parent, path.name))
    except (StorageError, RecursionError) as error:
        return f"cannot be read as JSON ({error})"
    return None if isinstance(document, dict) else "is JSON, but no object {...}"


def _text(path: Path) -> str | None:
    if path.stat().st_size > LARGEST_TEXT_BYTES:
        return f"is larger than {LARGEST_TEXT_BYTES} bytes"
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        return f"is no UTF-8 text ({error})"
    return "holds control characters" if _UNPRINTABLE.search(text) else None


def _parquet(path: Path) -> str | None:
    """Its frame only by its ends: read by polars when somebody looks at it."""
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(-4, 2) if path.stat().st_size >= 8 else None
        return None if start == file.read(4) == b"PAR1" else "is no parquet file"


def _events(path: Path) -> str | None:
    """TensorBoard's records: length, its checksum, an event that begins with its time, checksum."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            head = file.read(13)
            at += int.from_bytes(head[:8], "little") + 16
            if len(head) < 13 or head[12] != 0x09 or at > size:
                return "is no file of TensorBoard events"
    return None
