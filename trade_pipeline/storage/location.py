"""Where an artefact lives, and the one way to put a file there.

Knows paths and bytes, not what they mean. Errors of this floor:

    StorageError            a key, file or frame that cannot be stored or read
      BundleError           a bundle that is not what its index says (`bundles`)

Start at `ArtifactLocation`; every file of the store is written inside `replacing(location)`.
"""

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PART = re.compile(r"[A-Za-z0-9._=-]+")


class StorageError(Exception):
    """Something cannot be stored or read; the message names it and says what to do."""


@dataclass(frozen=True)
class ArtifactLocation:
    """A relative key inside a store.

    Args:
        store: root folder of the store.
        key: parts of `A-Z a-z 0-9 . _ = -` joined by `/`, never `.` or `..`.

    Raises:
        StorageError: the key is empty, absolute, leaves the store or has another character.
    """

    store: Path
    key: str

    def __post_init__(self) -> None:
        for part in self.key.split("/"):
            if part in (".", "..") or not _PART.fullmatch(part):
                raise StorageError(
                    f"storage key {self.key!r}: part {part!r} is not allowed; use relative keys "
                    "of letters, digits and . _ = - joined by /, without empty parts, . or .."
                )

    def __str__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """Where the file or folder is on this machine."""
        return self.store / self.key

    def child(self, *parts: str) -> "ArtifactLocation":
        """The location below this one; each part is checked like a key."""
        return ArtifactLocation(self.store, "/".join((self.key, *parts)))


@contextmanager
def replacing(location: ArtifactLocation) -> Iterator[Path]:
    """A temporary path to write; a clean exit makes it the file of `location`, atomically.

    An error inside keeps the old bytes and removes the temporary file. After a kill or power loss
    the old file or the new one is there, whole; a killed writer may leave `.<name>.<hex>.tmp`.
    """
    path = location.path
    # The same folder, because a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    with writable(location):
        make_folder(path.parent)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)  # noqa: PTH105 - the call that fault injection patches
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writable(location: ArtifactLocation) -> Iterator[None]:
    """Turn a refusal to write into a sentence. Raises `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{location}: cannot be written, the disk is full ({error}); make room there, or "
                "choose another disk with TRADE_PIPELINE_STORE. What was stored is unchanged."
            ) from error
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise StorageError(
            f"{location}: cannot be written ({error}); make the store's folder writable, or choose "
            "another with TRADE_PIPELINE_STORE."
        ) from error


def make_folder(folder: Path) -> None:
    """Create a folder and its missing parents so that they outlive a power loss."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
