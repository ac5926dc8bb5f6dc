"""A pod that meets its host in a bucket: inputs come from there, words and results go there.

Below the bucket's prefix lies what would lie below the root of a volume. Start at `PodBucket`.
"""

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trade_pipeline.compute.runpod.pod_task import Attempt
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation, StorageError, make_folder
from trade_pipeline.storage.objects import ObjectStore, ObjectStoreError, ObjectStoreFull
from trade_pipeline.storage.s3 import pull_bundle, push_bundle

LOOK_S = 1.0  # between looks for what is new
SMALL_BYTES = 2**22
URI = "s3://"


def connect(uri: str, url: str | None, region: str | None) -> ObjectStore:
    """The bucket and prefix of `s3://bucket/prefix`, with the environment's credentials."""
    bucket, _, prefix = uri.removeprefix(URI).partition("/")
    return ObjectStore.connect(
        bucket,
        prefix.strip("/"),
        url=url,
        region=region or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
    )


def fetch_bundle(objects: ObjectStore, location: ArtifactLocation) -> None:
    """Have a bundle of the bucket's store here. Raises as `pull_bundle` does."""
    if not location.path.exists():
        pull_bundle(objects.below("store"), location.key, location)


def fetch_checkpoint(objects: ObjectStore, key_location: ArtifactLocation) -> bool:
    """Have the current version of a checkpoint here; whether there is a usable one.

    Raises:
        ObjectStoreError: the bucket cannot be read.
    """
    pointer = key_location.child(bundles.POINTER)
    content = objects.below("store").get_bytes(pointer.key, SMALL_BYTES)
    if content is None:
        return False
    try:
        version = str(json.loads(content)["version"])
        fetch_bundle(objects, key_location.child(version))
        write_json(pointer, {"version": version})
        bundles.current(key_location)
    except ObjectStoreError:
        raise
    except (StorageError, ValueError, KeyError, TypeError) as error:
        # The task then begins anew, as with a damaged checkpoint on a volume.
        print(f"The checkpoint is left out: {error}", file=sys.stderr, flush=True)
        shutil.rmtree(key_location.path, ignore_errors=True)
        return False
    return True


class PodBucket:
    """The bucket's side of one attempt.

    Args:
        objects: bucket and prefix.
        attempt: its files on this machine.
        again_s: before what failed is tried again.
        deliver_s: for so long, at the end.
        stopped: whether this pod is being ended, so that nothing is tried again.
    """

    def __init__(
        self,
        objects: ObjectStore,
        attempt: Attempt,
        again_s: float,
        deliver_s: float,
        stopped: Callable[[], bool],
    ) -> None:
        self._objects, self._attempt = objects, attempt
        self._again_s, self._deliver_s, self._stopped = again_s, deliver_s, stopped
        self._message, self._beat = 1, b""
        self._saved: tuple[str, tuple[str, ...]] | None = None  # checkpoint: version and members

    def has(self, location: ArtifactLocation) -> bool:
        """Whether the bucket has this file. Raises `ObjectStoreError`."""
        return self._objects.size(location.key) is not None

    def fetch(self, location: ArtifactLocation) -> None:
        """Have a small file of the bucket here, where it has it. Raises `ObjectStoreError`."""
        if self.has(location):
            self._objects.get_file(location.key, location.path, SMALL_BYTES)

    def put(self, location: ArtifactLocation) -> None:
        """Put a file there, once. Raises `ObjectStoreError`."""
        self._objects.put_file(location.key, location.path)

    def deliver(self, location: ArtifactLocation) -> None:
        """Put a file there, trying for minutes. Raises `ObjectStoreError`."""
        self._insist(lambda: self.put(location))

    def deliver_bundle(self, location: ArtifactLocation) -> None:
        """Put a sealed bundle there, trying for minutes; a full bucket is not tried again.

        Raises:
            ObjectStoreError: it could not be put there; no index of it is there then.
            BundleError: it is not what its index says.
        """
        self._insist(lambda: push_bundle(self._objects.below("store"), location))

    @contextmanager
    def following(self, checkpoint: Callable[[], str | None]) -> Iterator[None]:
        """Put messages, heartbeat and checkpoint there as they change; the last ones at the end.

        Args:
            checkpoint: key of the task's state, once it is known.
        """
        over = threading.Event()
        works = [self._follow_words, lambda: self._follow_checkpoint(checkpoint())]
        threads = [
            threading.Thread(target=_repeat, args=(work, over, self._again_s), daemon=True)
            for work in works
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            until = time.monotonic() + (self._again_s if self._stopped() else self._deliver_s)
            for thread in threads:
                thread.join(max(0.0, until - time.monotonic()))

    def _follow_words(self) -> None:
        while (file := self._attempt.messages.child(f"{self._message}.json")).path.exists():
            self.put(file)
            self._message += 1
        heartbeat = self._attempt.heartbeat
        if heartbeat.path.exists() and (content := heartbeat.path.read_bytes()) != self._beat:
            self._objects.put_bytes(heartbeat.key, content)
            self._beat = content

    def _follow_checkpoint(self, key: str | None) -> None:
        """Put a new version there, then its pointer; remove the old one, or all where it is gone.

        The version is held by links: the task replaces it while it is on its way.
        """
        if key is None:
            return
        here, there = ArtifactLocation(self._attempt.store, key), self._objects.below("store")
        with frame_lock(here):
            version = bundles.current_version(here)
            before = self._saved
            if version == (before[0] if before else None):
                return
            held = self._attempt.root / "held" / self._attempt.name
            shutil.rmtree(held, ignore_errors=True)
            if version is not None:
                make_folder((held / key).parent)
                shutil.copytree(here.child(version).path, held / key / version, copy_function=_link)
        if version is not None:
            copy = ArtifactLocation(held, f"{key}/{version}")
            index = bundles.parse_index((copy.path / bundles.INDEX).read_bytes(), str(copy))
            push_bundle(there, copy)
            pointer = ArtifactLocation(held, f"{key}/{bundles.POINTER}")
            write_json(pointer, {"version": version})
            there.put_file(pointer.key, pointer.path)
            shutil.rmtree(held, ignore_errors=True)
            self._saved = version, tuple(member.name for member in index.members)
        else:
            there.delete(f"{key}/{bundles.POINTER}")
            self._saved = None
        if before is not None:
            old, members = before
            for name in (bundles.INDEX, *members):  # the index first: no half bundle looks whole
                there.delete(f"{key}/{old}/{name}")

    def came_with(self, key: str) -> None:
        """Take what `fetch_checkpoint` brought for what the bucket has."""
        here = ArtifactLocation(self._attempt.store, key)
        version = bundles.current_version(here)
        if version is not None:
            content = here.child(version, bundles.INDEX).path.read_bytes()
            index = bundles.parse_index(content, str(here))
            self._saved = version, tuple(member.name for member in index.members)

    def _insist(self, action: Callable[[], None]) -> None:
        until = time.monotonic() + self._deliver_s
        while True:
            try:
                return action()
            except (ObjectStoreFull, bundles.BundleError):
                raise
            except StorageError as error:
                if self._stopped() or time.monotonic() + self._again_s > until:
                    raise
                print(f"Tried again in {self._again_s:g} s: {error}", file=sys.stderr, flush=True)
                time.sleep(self._again_s)


def _repeat(work: Callable[[], None], over: threading.Event, again_s: float) -> None:
    """Do it again and again, once more at the end; what fails is said once and done again."""
    said = False
    wait_s = LOOK_S
    while True:
        last = over.wait(wait_s)
        try:
            work()
            said, wait_s = False, LOOK_S
        except (OSError, StorageError) as error:
            wait_s = again_s
            if not said:
                said = True
                print(f"The bucket lags behind: {error}", file=sys.stderr, flush=True)
        if last:
            return


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
