"""Dagster Pipes messages of a task in a pod, as files that the host reads.

Each file `<n>.json`, n = 1, 2, ..., is a list of messages in their order, whole from the moment
that it is there. Messages of about a second share one. Start at `FolderMessageWriter`; the
supervisor names the root in the environment, the host the folder below it in
`DAGSTER_PIPES_MESSAGES`.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dagster_pipes import (
    DagsterPipesError,
    PipesMessage,
    PipesMessageWriter,
    PipesMessageWriterChannel,
    PipesParams,
)

from trade_pipeline.storage.location import ArtifactLocation, StorageError, replacing

FOLDER = "folder"  # parameter of the host's message reader: a key below the root
EVERY_S = 1.0
LAST_TRIES = 4  # at the end, where the volume takes nothing


class FolderChannel(PipesMessageWriterChannel):
    """Collects messages; `flush` writes them down. Safe to share between threads.

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: ArtifactLocation) -> None:
        self._folder, self._written = folder, 0
        self._waiting: list[str] = []
        self._adding, self._flushing = threading.Lock(), threading.Lock()

    def write_message(self, message: PipesMessage) -> None:
        """Take a message; it is written down within the second."""
        line = json.dumps(message)
        with self._adding:
            self._waiting.append(line)

    def flush(self) -> None:
        """Write down what waits. Raises `OSError` or `StorageError`; nothing is lost then."""
        with self._flushing:
            with self._adding:
                lines = list(self._waiting)
            if not lines:
                return
            file = self._folder.child(f"{self._written + 1}.json")
            with replacing(file) as temporary:
                temporary.write_text(f"[{','.join(lines)}]\n", encoding="utf-8")
            self._written += 1
            with self._adding:
                del self._waiting[: len(lines)]


class FolderMessageWriter(PipesMessageWriter[FolderChannel]):
    """Writes messages into the folder that the host names.

    A volume that takes nothing for a while delays them and ends no task; what it does not take
    at the end either is dropped with a warning, since the result goes another way.

    Args:
        root: where jobs and store lie.
        every_s: seconds between two files.
    """

    def __init__(self, root: Path, every_s: float = EVERY_S) -> None:
        self._root, self._every_s = root, every_s

    @contextmanager
    def open(self, params: PipesParams) -> Iterator[FolderChannel]:
        """A channel into `params["folder"]`, a key below the root."""
        folder = params.get(FOLDER)
        if not isinstance(folder, str):
            raise DagsterPipesError(
                f"DAGSTER_PIPES_MESSAGES holds {dict(params)!r}; {FOLDER!r} must be there and name "
                "the folder of this attempt's messages below the root of the exchange."
            )
        channel = FolderChannel(ArtifactLocation(self._root, folder))
        closing = threading.Event()
        thread = threading.Thread(target=self._flush, args=(channel, closing), daemon=True)
        thread.start()
        try:
            yield channel
        finally:
            closing.set()
            thread.join()

    def _flush(self, channel: FolderChannel, closing: threading.Event) -> None:
        late, tries_left = False, LAST_TRIES
        while True:
            closed = closing.wait(self._every_s)
            try:
                channel.flush()
                late = False
                if closed:
                    return
            except (OSError, StorageError) as error:
                if not late:
                    late = True
                    print(f"Messages to Dagster wait: {error}", file=sys.stderr, flush=True)
                if closed:
                    tries_left -= 1
                    if tries_left == 0:
                        print("The last messages to Dagster are lost.", file=sys.stderr, flush=True)
                        return
                    time.sleep(self._every_s)
