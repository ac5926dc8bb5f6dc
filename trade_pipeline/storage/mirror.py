"""A local store as the cache of a bucket; the bucket holds the truth.

What is written is committed locally and then pushed; a bundle's members go first and its pointer
last, so that an interruption leaves the old version current in the bucket. What is read is pulled
first, where the bucket has another one.

Beside each file, `.<name>.pushed` notes on which bytes both sides agreed last: a file that only
the bucket has changed is fetched, one that only this machine has changed (its push failed) stays
until it is pushed, and one that both have changed is refused. The bucket's side is compared by
its ETag, whatever that is made of. One machine at a time may write a key: S3 has no lock.

Knows nothing of Dagster. Start at `Mirror.pull` and `Mirror.push`.
"""

import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from trade_pipeline.storage import bundles
from trade_pipeline.storage.bundles import INDEX, POINTER, BundleError
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import frame_lock, read_whole
from trade_pipeline.storage.location import ArtifactLocation, StorageError, replacing
from trade_pipeline.storage.objects import ObjectStore, Stored
from trade_pipeline.storage.s3 import pull_bundle, push_bundle, scratch

POINTER_LIMIT_BYTES = 2**16
_OF_A_VERSION = re.compile(r"(?:^|/)[0-9a-f]{32}/")
# Of one machine: what runs there or for it, and verdicts, which are removed when done with.
_UNSHARED = ("staging/", "checkpoints/", "verdicts/", "pods/")


class _Agreed(NamedTuple):
    """The bytes that both sides had last: their hash here, their ETag there."""

    sha256: str
    etag: str


class Mirror:
    """The store folder of this machine and the bucket that it is a cache of."""

    def __init__(self, objects: ObjectStore, store: Path) -> None:
        self.objects, self.store = objects, store

    def push(self, location: ArtifactLocation) -> None:
        """Put a committed frame or document into the bucket, in place of the one that is there.

        Raises:
            StorageError: the local file is missing or damaged.
            ObjectStoreError: the bucket could not take it and holds the old one; push again.
        """
        with frame_lock(location):
            _check(location, location.path.suffix)
            if not self.objects.holds(location.key, location.path):
                self.objects.put_file(location.key, location.path)
            stored = self.objects.head(location.key)
            if stored is not None:
                _agree(location, stored)

    def pull(self, location: ArtifactLocation) -> bool:
        """Make a frame or document what the bucket has. Takes the location's `frame_lock`.

        Returns:
            Whether the bucket has one; where it has none, the local one stays.

        Raises:
            ObjectStoreError: the bucket cannot be read.
            StorageError: both sides were changed, or what came is damaged; nothing is replaced.
        """
        with frame_lock(location):
            stored = self.objects.head(location.key)
            if stored is None:
                return False
            self._take(location, stored)
            return True

    def push_bundle(self, key_location: ArtifactLocation) -> None:
        """Put the current version of a bundle into the bucket, then the pointer that names it.

        Raises:
            BundleError: nothing was committed, or it is damaged.
            ObjectStoreError: the bucket could not take it; the old version is current there.
        """
        while True:
            pushed = bundles.current(key_location)
            push_bundle(self.objects, pushed)
            with frame_lock(key_location):
                # Another run may have committed meanwhile, and its members are not there yet.
                if bundles.current_version(key_location) == pushed.path.name:
                    return self.push(key_location.child(POINTER))

    def pull_bundle(self, key_location: ArtifactLocation, version: str | None = None) -> bool:
        """Have a version of a bundle here, whole and verified; the bucket's current one by default.

        A version that is here already is not hashed again: `bundles.verify` does that.

        Returns:
            Whether the bucket has it; where it has not, what is here stays.

        Raises:
            BundleError: what the bucket has is not whole or not what its index says.
            ObjectStoreError: the bucket cannot be read.
            StorageError: another version became current both here and there.
        """
        if version is not None:
            with frame_lock(key_location):
                return self._have(key_location, version)
        pointer = key_location.child(POINTER)
        with frame_lock(key_location), frame_lock(pointer):
            stored = self.objects.head(pointer.key)
            if stored is None:
                return False
            if self._newer(pointer, stored) == "there":
                self._follow(key_location, pointer, stored)
            else:
                current = bundles.current_version(key_location)
                assert current is not None
                self._have(key_location, current)
        return True

    def pull_folder(self, key: str) -> None:
        """Pull all below a key, or all: files, and bundles' current versions.

        For code that reads the store's folder itself. Lists the bucket, which takes long on a
        RunPod volume.
        """
        for found, stored in self.objects.listed(key).items():
            if not _is_shared(found):
                continue
            location = ArtifactLocation(self.store, found)
            if location.path.name == POINTER:
                self.pull_bundle(_bundle_of(location))
            else:
                with frame_lock(location):
                    self._take(location, stored)

    def push_folder(self, key: str) -> None:
        """Push all below a key of the local store, or all: files, and bundles' current versions.

        For code that writes into the store's folder itself; what the bucket has is not sent again.
        """
        root = ArtifactLocation(self.store, key).path if key else self.store
        for path in [root] if root.is_file() else _files(root):
            found = path.relative_to(self.store).as_posix()
            if not path.is_file() or not _is_shared(found):
                continue
            location = ArtifactLocation(self.store, found)
            if path.name == POINTER:
                self.push_bundle(_bundle_of(location))
            else:
                self.push(location)

    def _newer(
        self, location: ArtifactLocation, stored: Stored
    ) -> Literal["here", "there", "same"]:
        """Which side has what the other has not; where both have, `StorageError`."""
        if not location.path.is_file():
            return "there"
        agreed = _agreed(location)
        same_there = agreed is not None and stored.etag == agreed.etag
        if agreed is not None and _sha256(location.path) == agreed.sha256:
            return "same" if same_there else "there"
        if not _is_sound(location):
            return "there"
        if same_there:
            return "here"
        if self.objects.holds(location.key, location.path):
            _agree(location, stored)
            return "same"
        raise StorageError(
            f"{location}: holds something else than {self.objects.uri(location.key)}, and both "
            "were written since they were last the same, or nobody noted when that was. Remove the "
            "local file to take the bucket's, or materialize here again to replace the bucket's."
        )

    def _take(self, location: ArtifactLocation, stored: Stored) -> None:
        """Fetch a file where the bucket's is newer; the caller holds its lock."""
        if self._newer(location, stored) != "there":
            return
        with replacing(location) as temporary:
            self.objects.get_file(location.key, temporary)
            came = ArtifactLocation(temporary.parent, temporary.name)
            try:
                _check(came, location.path.suffix)
            except StorageError as error:
                raise StorageError(
                    f"{self.objects.uri(location.key)}: {error} {location} stays as it is."
                ) from error
        _agree(location, stored)

    def _follow(
        self, key_location: ArtifactLocation, pointer: ArtifactLocation, stored: Stored
    ) -> None:
        """Fetch the version that the bucket's pointer names, then that pointer."""
        with scratch(self.store) as staged:
            came = staged.child(POINTER)
            self.objects.get_file(pointer.key, came.path, POINTER_LIMIT_BYTES)
            try:
                version = bundles.current_version(staged)
            except BundleError as error:
                raise BundleError(f"{self.objects.uri(pointer.key)}: {error}") from error
            if version is None or not self._have(key_location, version):
                raise BundleError(
                    f"{self.objects.uri(pointer.key)}: names version {version}, which is not in "
                    "the bucket; materialize the asset again."
                )
            with replacing(pointer) as temporary:
                temporary.write_bytes(came.path.read_bytes())
        _agree(pointer, stored)

    def _have(self, key_location: ArtifactLocation, version: str) -> bool:
        """Fetch a version unless it is here; the caller holds the bundle's lock."""
        location = key_location.child(version)
        if _is_complete(location):
            return True
        if self.objects.head(location.child(INDEX).key) is None:
            return False
        if location.path.exists():
            damaged = bundles.staging(self.store, f"damaged-{version}").path
            location.path.rename(damaged / version)
            shutil.rmtree(damaged)
        pull_bundle(self.objects, location.key, location)
        return True


def _files(folder: Path) -> list[Path]:
    """All below a folder, in order; other runs may remove folders meanwhile."""
    return sorted(Path(at, name) for at, _, names in os.walk(folder) for name in names)


def _is_shared(key: str) -> bool:
    """Whether a key is a frame, a document or a bundle's pointer that other machines may read."""
    path = PurePosixPath(key)
    return (
        path.suffix in (".parquet", ".json")
        and not path.name.startswith(".")
        and not key.startswith(_UNSHARED)
        and not _OF_A_VERSION.search(key)
    )


def _bundle_of(pointer: ArtifactLocation) -> ArtifactLocation:
    return ArtifactLocation(pointer.store, pointer.key.removesuffix(f"/{POINTER}"))


def _check(location: ArtifactLocation, suffix: str) -> None:
    """Read a file as what its name says. Raises `StorageError`."""
    if suffix == ".parquet":
        read_whole(location)
    else:
        read_json(location)


def _is_sound(location: ArtifactLocation) -> bool:
    try:
        _check(location, location.path.suffix)
    except StorageError:
        return False
    return True


def _is_complete(location: ArtifactLocation) -> bool:
    """Whether a version's folder has its index, and members of the sizes that it lists."""
    index = location.child(INDEX).path
    if not index.is_file():
        return False
    try:
        members = bundles.parse_index(index.read_bytes(), str(location)).members
        return all(
            location.child(member.name).path.stat().st_size == member.size for member in members
        )
    except (BundleError, OSError):
        return False


def _note(location: ArtifactLocation) -> ArtifactLocation:
    path = PurePosixPath(location.key)
    return ArtifactLocation(location.store, str(path.with_name(f".{path.name}.pushed")))


def _agreed(location: ArtifactLocation) -> _Agreed | None:
    """What both sides had last; None where nobody noted it, or the note is damaged."""
    try:
        return _Agreed(**read_json(_note(location)))
    except (StorageError, TypeError):
        return None


def _agree(location: ArtifactLocation, stored: Stored) -> None:
    write_json(_note(location), _Agreed(_sha256(location.path), stored.etag)._asdict())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
