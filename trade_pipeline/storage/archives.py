"""Bundles as one file, and files from elsewhere on their way in.

`pack` writes the same bytes for the same bundle. `receive` takes a zip or a folder that anybody
may have made: it reads names before content, counts bytes instead of believing headers, and leaves
nothing behind when it refuses. Knows nothing of what a member means.

    BundleError
      ArchiveError          a zip or folder that is not taken in; the message says why
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, NamedTuple

from trade_pipeline.storage.bundles import INDEX, BundleError, verify
from trade_pipeline.storage.location import ArtifactLocation, StorageError, flush, make_folder

_ALWAYS = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can name
_CHUNK_BYTES = 2**20
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # bits of a member's flags
_LISTED_BYTES = 512  # at most, of one member in a zip's list
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_PRINTED = re.compile(r"[ -~]{1,200}")
# How a file starts that hides Python objects, or may; torch and numpy put pickles into zips.
_STARTS = {
    rb"\x80[\x01-\x05]": "a pickle",
    rb"\(*c[A-Za-z_][\w.]*\n[A-Za-z_][\w.]*\n|\([SVIildt(]": "a pickle",
    rb"PK[\x01-\x08][\x02-\x08]": "a zip inside",
    rb"\x1f\x8b|BZh\d|\xfd7zXZ\x00|x[\x01\x5e\x9c\xda]|\x04\x22M\x18|\x28\xb5\x2f\xfd|ZF": (
        "compressed once more"
    ),
}


class ArchiveError(BundleError):
    """A zip or folder is not taken in, or a file cannot be written; the message says why."""


class Limits(NamedTuple):
    """What is taken in at most.

    Attributes:
        member_bytes: of one member, unpacked.
        total_bytes: of all members, unpacked.
        members: how many.
        ratio: unpacked bytes for each packed one, counted beyond the first MiB of a member.
    """

    member_bytes: int = 256 * 2**20
    total_bytes: int = 2**30
    members: int = 1_000
    ratio: int = 100


LIMITS = Limits()


@contextmanager
def new_file(path: Path, force: bool) -> Iterator[Path]:
    """A temporary path to write; a clean exit makes it the file `path`, atomically.

    Raises:
        ArchiveError: something is there already and `force` is false, or it cannot be written.
    """
    there = ArchiveError(f"{path}: is there already; choose another name or give --force.")
    if path.is_dir():
        raise ArchiveError(f"{path}: is a folder; name the file to write.")
    if path.exists() and not force:
        raise there
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        make_folder(path.parent)
        yield temporary
        flush(temporary)
        if force:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename, it never replaces what came meanwhile
        flush(path.parent)
    except FileExistsError:
        raise there from None
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written ({error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def pack(location: ArtifactLocation, archive: Path) -> None:
    """Write a whole bundle as one zip, with its index: the same bytes each time.

    Args:
        location: a sealed or committed folder; it is verified first.
        archive: the file to write.
    """
    names = [INDEX, *(member["name"] for member in verify(location)["members"])]
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(names):
            path = location.path / name
            entry = timeless(name, path.stat().st_size)
            with path.open("rb") as source, packed.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)


def timeless(name: str, size: int, method: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    """How a member of `size` bytes is listed in a zip: nothing of when or where it was packed."""
    entry = zipfile.ZipInfo(name, _ALWAYS)
    entry.create_system = 3  # as on Linux, wherever it is packed
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.compress_type = method
    entry.file_size = size
    return entry


def receive(
    source: Path, folder: Path, known: Sequence[str] = ("*",), limits: Limits = LIMITS
) -> dict[str, str]:
    """Copy a bundle from a zip or a folder into a new folder; nothing of it is interpreted.

    Args:
        source: the zip or folder.
        folder: where to; it must not exist, and does not after a refusal.
        known: names of members, with `*` for any text, that are taken besides `bundle.json`.
        limits: what is taken at most.

    Returns:
        Member name to the SHA-256 of what was copied.

    Raises:
        ArchiveError: names the member and what is wrong with it.
    """
    if not source.is_dir() and not source.is_file():
        raise ArchiveError(
            f"{source}: cannot be read as a zip or folder; name a plain file or a bundle's folder."
        )
    make_folder(folder)
    try:
        if source.is_dir():
            return _copy(source, _in_folder(source), folder, known, limits)
        with _opened(source, limits) as archive:
            return _copy(source, _in_zip(source, archive), folder, known, limits)
    except BaseException:
        shutil.rmtree(folder)
        raise


@dataclass(frozen=True)
class _Entry:
    """A file offered: `size` and `packed` bytes are what its header claims."""

    name: str
    size: int
    packed: int
    open: Callable[[], IO[bytes]]


def _copy(
    source: Path, entries: Iterable[_Entry], folder: Path, known: Sequence[str], limits: Limits
) -> dict[str, str]:
    offered = list(entries)
    if len(offered) > limits.members:
        raise ArchiveError(f"{source}: holds more than {limits.members} members; pack fewer.")
    _check_names(source, [entry.name for entry in offered], known)
    for entry in offered:  # what says itself that it is too large is not even opened
        _check_size(source, entry, entry.size, limits)
    left, hashes = limits.total_bytes, {}
    for entry in sorted(offered, key=lambda entry: entry.name):
        path = folder / entry.name
        make_folder(path.parent)
        taken, digest = 0, hashlib.sha256()
        try:
            with entry.open() as packed, path.open("xb") as target:
                while chunk := packed.read(_CHUNK_BYTES):
                    if not taken:
                        _refuse_objects(source, entry.name, chunk)
                    taken += len(chunk)
                    _check_size(source, entry, taken, limits)
                    if taken > left:
                        raise ArchiveError(
                            f"{source}: with member {entry.name!r} it unpacks to more than "
                            f"{limits.total_bytes} bytes; no bundle is that large."
                        )
                    digest.update(chunk)
                    target.write(chunk)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise ArchiveError(
                f"{source}: member {entry.name!r} cannot be unpacked ({error}); the file is "
                "damaged. Fetch it again."
            ) from error
        left -= taken
        hashes[entry.name] = digest.hexdigest()
    return hashes


def _check_size(source: Path, entry: _Entry, size: int, limits: Limits) -> None:
    if size > limits.member_bytes:
        raise ArchiveError(
            f"{source}: member {entry.name!r} is larger than {limits.member_bytes} bytes; no "
            "member of a bundle is that large."
        )
    if size > max(_CHUNK_BYTES, limits.ratio * entry.packed):
        raise ArchiveError(
            f"{source}: member {entry.name!r} unpacks to more than {limits.ratio} times its "
            "packed size, as a zip bomb does; pack it without compression."
        )


def _check_names(source: Path, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse what could land outside, on top of another, or is not known."""
    spelt: dict[str, str] = {}  # lower case to the spelling seen, of files and folders
    files: set[str] = set()
    for name in names:
        try:
            ArtifactLocation(Path(), name)
        except StorageError:
            raise ArchiveError(
                f"{source}: member {_shown(name)} cannot be a member: names are relative, of "
                "letters, digits and . _ = - joined by /, without .. and folders of their own."
            ) from None
        if name in files:
            raise ArchiveError(f"{source}: member {name!r} is there twice; pack it once.")
        files.add(name)
        parts = name.split("/")
        for k in range(len(parts)):
            path = "/".join(parts[: k + 1])
            if spelt.setdefault(path.lower(), path) != path:
                raise ArchiveError(
                    f"{source}: members {name!r} and {spelt[path.lower()]!r} differ only in case; "
                    "on some machines one would replace the other."
                )
    for name in names:
        if any(parent.as_posix() in files for parent in Path(name).parents):
            raise ArchiveError(f"{source}: member {name!r} lies below another member, a file.")
        if name != INDEX and not any(fnmatchcase(name, pattern) for pattern in known):
            raise ArchiveError(
                f"{source}: member {name!r} is unknown; taken are {INDEX}, {', '.join(known)}."
            )


def _refuse_objects(source: Path, name: str, start: bytes) -> None:
    for pattern, what in _STARTS.items():
        if re.match(pattern, start):
            raise ArchiveError(
                f"{source}: member {name!r} is {what}; Python objects could hide in it, and "
                "opening those runs code. Only plain numbers, JSON and text are taken."
            )


@contextmanager
def _opened(source: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    try:
        with source.open("rb") as file:
            _check_frame(source, file, limits)
            with zipfile.ZipFile(file) as archive:
                yield archive
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise ArchiveError(
            f"{source}: cannot be read as a zip or folder ({error}); give a bundle's folder or "
            "what `trade-pipeline bundle export` wrote."
        ) from error


def _check_frame(source: Path, file: IO[bytes], limits: Limits) -> None:
    """Refuse a zip whose list of members is too long to read, or that is something else as well.

    With neither comment nor zip64 there is one list, and its size stands in the last 22 bytes.
    """
    size = file.seek(0, os.SEEK_END)
    if size > limits.total_bytes:
        raise ArchiveError(f"{source}: has {size} bytes, more than {limits.total_bytes}.")
    file.seek(0)
    start = file.read(4)
    file.seek(max(size - 42, 0))
    end = file.read()
    if start != b"PK\x03\x04" or end[-22:-18] != b"PK\x05\x06" or end[:4] == b"PK\x06\x07":
        raise ArchiveError(
            f"{source}: is no plain zip (something stands before or behind it, or it is zip64); "
            "give a bundle's folder or what `trade-pipeline bundle export` wrote."
        )
    if int.from_bytes(end[-10:-6], "little") > limits.members * _LISTED_BYTES:
        raise ArchiveError(f"{source}: holds more than {limits.members} members; pack fewer.")


def _in_zip(source: Path, archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for entry in archive.infolist():
        name = entry.orig_filename  # `filename` ends at a zero byte
        kind = stat.S_IFMT(entry.external_attr >> 16)
        wrong = None
        if entry.is_dir() or kind not in (0, stat.S_IFREG):
            wrong = "is a folder, link or no plain file; pack files only"
        elif entry.flag_bits & _ENCRYPTED:
            wrong = "is encrypted; pack it without a password"
        elif entry.compress_type not in _METHODS:
            wrong = f"is compressed by method {entry.compress_type}; store or deflate it"
        if wrong:
            raise ArchiveError(f"{source}: member {_shown(name)} {wrong}.")

        def opened(entry: zipfile.ZipInfo = entry) -> IO[bytes]:
            return archive.open(entry)

        yield _Entry(name, entry.file_size, entry.compress_size, opened)


def _in_folder(source: Path) -> Iterator[_Entry]:
    for path in sorted(source.rglob("*")):
        name, status = path.relative_to(source).as_posix(), path.lstat()
        if stat.S_ISDIR(status.st_mode):
            continue
        if not stat.S_ISREG(status.st_mode):
            raise ArchiveError(f"{source}: member {_shown(name)} is a link or no plain file.")

        def opened(path: Path = path) -> IO[bytes]:
            return path.open("rb")

        yield _Entry(name, status.st_size, status.st_size, opened)


def _shown(name: str) -> str:
    """A name that a terminal can be shown."""
    return repr(name) if _PRINTED.fullmatch(name) else ascii(name[:200])
