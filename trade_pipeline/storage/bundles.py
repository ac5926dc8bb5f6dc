"""Bundles: folders of files that belong together, immutable once committed.

A task fills a folder made by `staging`, `seal` lists and hashes what lies there, and `commit`
verifies it, moves it to `<key>/<version>/` and swaps `<key>/current.json`. Only the members that
a rerun gives again, byte for byte, make the version; the others are hashed for integrity.

    bundle.json   {"version": 32 hex, "members": [{"name", "sha256", "size", "deterministic"}]}
    current.json  {"version": 32 hex}

Knows nothing of datasets, policies or reports, and believes nothing a bundle says of itself: a
staged one may come from another machine.
"""

import difflib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from trade_pipeline.settings.base import Settings, SettingsError, parse_settings
from trade_pipeline.storage.documents import json_hash, read_json, write_json
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation, StorageError, flush, make_folder

INDEX = "bundle.json"
POINTER = "current.json"
LIMIT_BYTES = 4 * 2**30
MOST_NAMED = 10  # keys in one sentence
_VERSION = re.compile(r"[0-9a-f]{32}")
_AGAIN = "run the task that made it again."


class BundleError(StorageError):
    """A bundle is not what its index says; the message names the bundle and the member."""


@dataclass(frozen=True)
class BundleReference:
    """What a task hands over: the folder it sealed and the version it claims."""

    location: ArtifactLocation
    version: str


class Member(Settings):
    """A file of a bundle, as its index has it."""

    name: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, strict=True)]
    deterministic: Annotated[bool, Field(strict=True)]


class Index(Settings):
    """What a bundle says of itself."""

    version: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    members: tuple[Member, ...]


class _Pointer(Settings):
    version: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


def version_of(deterministic: Mapping[str, str]) -> str:
    """Version of a bundle: first 32 hex digits of a SHA-256 over its deterministic members.

    Args:
        deterministic: member name to the 64 hex digits of its SHA-256.
    """
    return json_hash(dict(deterministic))[:32]


def staging(store: Path, name: str) -> ArtifactLocation:
    """Create a fresh, empty folder `staging/<name>-<random hex>` in a store."""
    location = ArtifactLocation(store, f"staging/{name}-{secrets.token_hex(8)}")
    make_folder(location.path)
    return location


def seal(staging: ArtifactLocation, deterministic: Collection[str]) -> BundleReference:
    """Hash every member of a staging folder and write its index. May be repeated.

    Args:
        staging: folder holding the members, at any depth.
        deterministic: names (posix, relative to the folder) of members that make the version.

    Raises:
        BundleError: a named member is absent, none is named, or the folder holds something that
            is not a plain file with a name fit for a key.
    """
    found = _files(staging)
    if absent := sorted(set(deterministic) - set(found)):
        raise BundleError(
            f"{staging}: deterministic member {absent[0]!r} is not there; "
            f"write it before sealing. There are: {', '.join(found) or 'no files'}."
        )
    members = []
    for name, path in found.items():
        members.append(
            Member(
                name=name,
                sha256=_sha256(path),
                size=path.stat().st_size,
                deterministic=name in deterministic,
            )
        )
    for path in staging.path.rglob("*"):  # folders too: names must outlive a power loss
        flush(path)
    version = _version_of(staging, members)
    index = Index(version=version, members=tuple(members))
    write_json(staging.child(INDEX), index.model_dump(mode="json"))
    return BundleReference(staging, version)


def verify(location: ArtifactLocation, limit_bytes: int = LIMIT_BYTES) -> dict[str, Any]:
    """Hash every member of a bundle again and compare with its index.

    Args:
        location: a sealed or committed folder.
        limit_bytes: most its members may hold together.

    Returns:
        The index: `version` and `members`.

    Raises:
        BundleError: a member is changed, missing, not in the index, named twice, outside the
            folder, a link or no plain file, the bundle is too large, or its version is wrong.
    """
    found = _files(location)
    if not location.child(INDEX).path.is_file():
        raise BundleError(
            f"{location}: there is no {INDEX}, so this is no bundle. What `bundle export` makes of "
            "a report holds several: unzip it, run `sha256sum --check SHA256SUMS` there, and "
            "verify its folders report and policies/<trial>."
        )
    index = parse_index(location.child(INDEX).path.read_bytes(), str(location))
    listed = {member.name: member for member in index.members}
    for name in sorted(listed.keys() - found.keys()):
        raise BundleError(f"{location}: member {name!r} is missing; {_AGAIN}")
    for name in sorted(found.keys() - listed.keys()):
        raise BundleError(
            f"{location}: file {name!r} is not in {INDEX}; remove it or seal the folder again."
        )
    total = 0
    for name, path in found.items():
        total += path.stat().st_size
        if total > limit_bytes:
            raise BundleError(
                f"{location}: with member {name!r} the bundle holds {total} bytes, more than "
                f"{limit_bytes}; write less or raise the limit."
            )
    for name, member in listed.items():
        if (found[name].stat().st_size, _sha256(found[name])) != (member.size, member.sha256):
            raise BundleError(
                f"{location}: member {name!r} is not the file that was sealed (its size or "
                f"SHA-256 differs from {INDEX}); {_AGAIN}"
            )
    if _version_of(location, index.members) != index.version:
        raise BundleError(
            f"{location}: version {index.version} in {INDEX} is not that of its deterministic "
            f"members; {_AGAIN}"
        )
    return index.model_dump(mode="json")


def parse_index(content: bytes, where: str) -> Index:
    """What a bundle says of itself, its names checked; its members need not be there.

    Args:
        content: of its `bundle.json`.
        where: the bundle, for messages.

    Raises:
        BundleError: it cannot be read, or names a member twice or outside the folder.
    """
    try:
        index = parse_settings(json.loads(content), Index, f"{where}/{INDEX}")
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}/{INDEX}: not valid JSON ({error}); {_AGAIN}") from error
    except SettingsError as error:
        raise BundleError(f"{error} It must be written again: {_AGAIN}") from error
    listed = set()
    for member in index.members:
        _check_name(where, member.name)
        if member.name in listed:
            raise BundleError(f"{where}: {INDEX} lists member {member.name!r} twice; {_AGAIN}")
        listed.add(member.name)
    return index


def commit(reference: BundleReference, key_location: ArtifactLocation) -> ArtifactLocation:
    """Verify a sealed bundle, move it to its version and make that version current.

    May be repeated, also after a kill at any point. A version that exists already is kept and the
    staged copy removed, so provenance names the first run that made it.

    Returns:
        `<key>/<version>/`.

    Raises:
        BundleError: the staged bundle does not verify, is not of the version claimed or lies in
            another store, or the version exists but is damaged. Nothing moved then.
    """
    source = reference.location
    if source.store.resolve() != key_location.store.resolve():
        raise BundleError(
            f"{source}: staged outside the store {key_location.store}; "
            "make the staging folder in that store, so that it can be moved in one step."
        )
    if not _VERSION.fullmatch(reference.version):
        raise BundleError(f"{source}: version {reference.version!r} is not 32 hex digits.")
    target = key_location.child(reference.version)
    with frame_lock(key_location):
        # A repeated commit finds its staging folder moved already.
        if source.path.exists() or not target.path.exists():
            _require_version(source, reference.version)
        if target.path.exists():
            _require_version(target, reference.version)
            if source.path.exists():
                shutil.rmtree(source.path)
        else:
            make_folder(target.path.parent)
            source.path.rename(target.path)
            flush(target.path.parent)
        os.utime(target.path)  # prune keeps what was committed last
        write_json(key_location.child(POINTER), {"version": reference.version})
    return target


def current_version(key_location: ArtifactLocation) -> str | None:
    """The version that is current, or None when nothing was committed."""
    pointer = key_location.child(POINTER)
    if not pointer.path.exists():
        return None
    return _parse_pointer(pointer).version


def current(key_location: ArtifactLocation) -> ArtifactLocation:
    """The folder of the current version.

    Raises:
        BundleError: nothing was committed, or the pointer names a version that is not there.
    """
    version = current_version(key_location)
    if version is None:
        raise BundleError(f"{key_location}: no version is current; materialize the asset first.")
    location = key_location.child(version)
    if not location.path.is_dir():
        raise BundleError(
            f"{key_location}: {POINTER} names version {version}, which is not there; "
            "materialize the asset again."
        )
    return location


def stored(key_location: ArtifactLocation, version: str | None = None) -> ArtifactLocation:
    """The folder of a version, of the current one when none is given.

    Raises:
        BundleError: it is not there, or `version` is not 32 hex digits.
    """
    if version is None:
        return current(key_location)
    if not _VERSION.fullmatch(version):
        raise BundleError(f"{key_location}: version {version!r} is not 32 hex digits.")
    location = key_location.child(version)
    if not location.path.is_dir():
        raise BundleError(f"{key_location}: version {version} is not there.")
    return location


def find(store: Path, key: str, version: str | None = None) -> ArtifactLocation:
    """The folder of a version of the bundle that somebody names, of the current one by default.

    Raises:
        BundleError: no such bundle is stored, and which is near; or the version is not there.
        StorageError: it cannot be a key.
    """
    location = ArtifactLocation(store, key)
    if current_version(location) is None:
        raise BundleError(f"{key}: no such bundle is stored in {store}.{near(key, keys(store))}")
    return stored(location, version)


def keys(store: Path) -> list[str]:
    """Keys of all bundles of a store that have a current version, in order."""
    found = []
    for folder, inside, files in os.walk(store):
        if POINTER in files:
            found.append(Path(folder).relative_to(store).as_posix())
            inside.clear()
    return sorted(found)


def near(key: str, known: list[str], kind: str = "bundles") -> str:
    """A hint " Did you mean 'x'?" for a misspelt key, or which there are."""
    if close := difflib.get_close_matches(key, known, n=1):
        return f" Did you mean {close[0]!r}?"
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return f" Stored {kind}: {', '.join(known[:MOST_NAMED]) or 'none'}{more}."


def prune(key_location: ArtifactLocation, keep: int, pinned: Collection[str] = ()) -> list[str]:
    """Remove old versions; the `keep` committed last, the current one and `pinned` ones stay.

    Returns:
        The versions removed, oldest first.
    """
    if keep < 0:
        raise BundleError(f"{key_location}: keep is {keep}; it must be 0 or more.")
    if not key_location.path.is_dir():
        return []
    with frame_lock(key_location):
        folders = [p for p in key_location.path.iterdir() if _VERSION.fullmatch(p.name)]
        folders.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        held = {current_version(key_location), *pinned}
        removed = [p for p in folders[: max(len(folders) - keep, 0)] if p.name not in held]
        for folder in removed:
            # Moved away first: a kill must not leave half a version where a whole one was.
            doomed = staging(key_location.store, f"pruned-{folder.name}").path
            folder.rename(doomed / folder.name)
            shutil.rmtree(doomed)
    return [folder.name for folder in removed]


def _files(location: ArtifactLocation) -> dict[str, Path]:
    """Every file below a folder but its index, by posix name in order; refuses links."""
    root = location.path
    if not root.is_dir() or root.is_symlink():
        raise BundleError(f"{location}: no such bundle folder; {_AGAIN}")

    def refuse(error: OSError) -> None:
        raise BundleError(f"{location}: cannot be listed ({error}); {_AGAIN}") from error

    found = {}
    for folder, folders, files in os.walk(root, onerror=refuse):
        for entry in sorted(folders + files):
            path = Path(folder, entry)
            name = path.relative_to(root).as_posix()
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                continue
            if not stat.S_ISREG(mode):
                raise BundleError(
                    f"{location}: member {name!r} is a link or no plain file; copy its content."
                )
            if name != INDEX:
                _check_name(str(location), name)
                found[name] = path
    return dict(sorted(found.items()))


def _check_name(where: str, name: str) -> None:
    try:
        ArtifactLocation(Path(), name)
    except StorageError as error:
        raise BundleError(f"{where}: member {name!r} cannot be a member: {error}") from None


def _parse_pointer(location: ArtifactLocation) -> _Pointer:
    try:
        return parse_settings(read_json(location), _Pointer, str(location))
    except (StorageError, SettingsError) as error:
        raise BundleError(f"{error} It must be written again: {_AGAIN}") from error


def _version_of(location: ArtifactLocation, members: Iterable[Member]) -> str:
    made_of = {member.name: member.sha256 for member in members if member.deterministic}
    if not made_of:  # all such bundles would have one version
        raise BundleError(
            f"{location}: there is no deterministic member; name those that make the version."
        )
    return version_of(made_of)


def _require_version(location: ArtifactLocation, version: str) -> None:
    found = verify(location)["version"]
    if found != version:
        raise BundleError(f"{location}: holds version {found}, not {version} as claimed; {_AGAIN}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
