"""Bundles and frames on their way to a bucket and back; what comes from there is not believed.

Start at `push_bundle` and `pull_bundle`; `ObjectStore` is what they go through.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from trade_pipeline.storage import bundles
from trade_pipeline.storage.bundles import INDEX, LIMIT_BYTES, BundleError
from trade_pipeline.storage.frames import read_whole
from trade_pipeline.storage.location import (
    ArtifactLocation,
    StorageError,
    flush,
    make_folder,
    replacing,
    writable,
)
from trade_pipeline.storage.objects import ObjectStore as ObjectStore
from trade_pipeline.storage.objects import ObjectStoreError as ObjectStoreError
from trade_pipeline.storage.objects import ObjectStoreFull as ObjectStoreFull

INDEX_LIMIT_BYTES = 2**22


def push_bundle(store: ObjectStore, location: ArtifactLocation) -> None:
    """Put a sealed bundle below its own key, `bundle.json` last: an index there means all is there.

    May be repeated after an interruption: members that are known to be there are not sent again.
    A whole bundle of the same version stays as it is, as `bundles.commit` keeps the first one.

    Args:
        store: where to.
        location: a sealed or committed folder.

    Raises:
        BundleError: the folder is not what its index says.
        ObjectStoreError: the bucket could not take it; no index of it is there then.
    """
    members = bundles.verify(location)["members"]
    index = location.child(INDEX)
    there = store.get_bytes(index.key, INDEX_LIMIT_BYTES)
    if there is not None:
        if _is_whole(store, location, there):
            return
        # Gone before a member changes, so that it never stands beside members of another bundle.
        store.delete(index.key)
    for member in members:
        part = location.child(member["name"])
        if not store.holds(part.key, part.path):
            store.put_file(part.key, part.path)
    store.put_bytes(index.key, index.path.read_bytes())


def pull_bundle(
    store: ObjectStore,
    key: str,
    location: ArtifactLocation,
    *,
    limit_bytes: int = LIMIT_BYTES,
    known: Sequence[str] = ("*",),
) -> str:
    """Fetch a bundle into a folder that is absent or empty; all of it, or nothing.

    Args:
        store: where from.
        key: of the bundle's folder in the bucket.
        location: the folder to fill.
        limit_bytes: most that its members may hold together.
        known: names of members that are taken, with `*` for any text.

    Returns:
        Its version.

    Raises:
        BundleError: there is no whole bundle, or it is not what its index says.
        ObjectStoreError: the bucket cannot be read.
        StorageError: the folder holds something already.
    """
    there = store.get_bytes(f"{key}/{INDEX}", INDEX_LIMIT_BYTES)
    if there is None:
        raise BundleError(
            f"{store.uri(key)}: there is no {INDEX}, so the bundle was never put there whole; put "
            "it there again."
        )
    index = bundles.parse_index(there, store.uri(key))
    _check_members(store.uri(key), index, limit_bytes, known)
    with scratch(location.store) as staged:
        with writable(staged):
            (staged.path / INDEX).write_bytes(there)
        for member in index.members:
            part = staged.child(member.name)
            store.get_file(f"{key}/{member.name}", part.path, member.size)
        try:
            bundles.verify(staged, limit_bytes)
        except BundleError as error:
            raise BundleError(
                f"{store.uri(key)}: refused, nothing of it was kept: {error}"
            ) from error
        try:
            make_folder(location.path.parent)
            staged.path.rename(location.path)
        except OSError as error:
            raise StorageError(
                f"{location}: cannot become the bundle of {store.uri(key)} ({error}); name a "
                "folder that is absent or empty."
            ) from error
        flush(location.path.parent)
    return index.version


def push_frame(store: ObjectStore, location: ArtifactLocation) -> None:
    """Put one parquet file of the local store below its own key, unless it is known to be there.

    Raises:
        StorageError: the file is damaged.
        ObjectStoreError: the bucket could not take it; the old one is there then.
    """
    read_whole(location)
    if not store.holds(location.key, location.path):
        store.put_file(location.key, location.path)


def pull_frame(store: ObjectStore, location: ArtifactLocation) -> bool:
    """Fetch one parquet file into the local store, unless it is known to be the same.

    Returns:
        Whether the bucket has one; where it has none, the local file stays as it is.

    Raises:
        StorageError: what came is no frame of the store; the local file stays as it is.
    """
    if location.path.is_file() and store.holds(location.key, location.path):
        return True
    if store.head(location.key) is None:
        return False
    with replacing(location) as temporary:
        store.get_file(location.key, temporary)
        try:
            read_whole(ArtifactLocation(temporary.parent, temporary.name))
        except StorageError as error:
            raise StorageError(f"{store.uri(location.key)}: {error}") from error
    return True


def _is_whole(store: ObjectStore, location: ArtifactLocation, index: bytes) -> bool:
    """Whether an index in the bucket is of the same version and its members are there."""
    try:
        far = bundles.parse_index(index, store.uri(location.key))
    except BundleError:
        return False
    near = bundles.parse_index((location.path / INDEX).read_bytes(), str(location))
    if far.version != near.version:
        return False
    return all(store.size(f"{location.key}/{member.name}") == member.size for member in far.members)


def _check_members(uri: str, index: bundles.Index, limit_bytes: int, known: Sequence[str]) -> None:
    """Refuse before anything is fetched what could land on another member, or is too much."""
    names = {member.name for member in index.members}
    for name in sorted(names):
        if not any(fnmatchcase(name, pattern) for pattern in known):
            raise BundleError(f"{uri}: member {name!r} is unknown; taken are {', '.join(known)}.")
        if name == INDEX or any(above.as_posix() in names for above in Path(name).parents):
            raise BundleError(f"{uri}: member {name!r} lies on or below another file.")
    if (total := sum(member.size for member in index.members)) > limit_bytes:
        raise BundleError(
            f"{uri}: its members hold {total} bytes, more than {limit_bytes}; write less or raise "
            "the limit."
        )


@contextmanager
def scratch(store: Path) -> Iterator[ArtifactLocation]:
    """A fresh folder in a store, gone afterwards unless it was moved away."""
    staged = bundles.staging(store, "s3")
    try:
        yield staged
    finally:
        shutil.rmtree(staged.path, ignore_errors=True)
