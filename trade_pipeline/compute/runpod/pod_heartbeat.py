"""A file that says that a pod lives and what it does. Knows the standard library alone."""

import sys
import threading
import time
from types import TracebackType

from trade_pipeline.compute.runpod.pod_task import write
from trade_pipeline.storage.location import ArtifactLocation, StorageError


class Heartbeat:
    """Replaces a file every so many seconds while its block lasts, and with each new phase.

    Phases are preparing, running, uploading and done. A file that cannot be written for a while
    ends nothing.

    Args:
        location: the file.
        every_s: seconds between two beats.
    """

    def __init__(self, location: ArtifactLocation, every_s: float) -> None:
        self._location, self._every_s = location, every_s
        self._phase, self._seq, self._said = "preparing", 0, False
        self._over, self._writing = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)

    @property
    def phase(self) -> str:
        """What the pod does."""
        return self._phase

    @phase.setter
    def phase(self, phase: str) -> None:
        self._phase = phase
        self._beat()

    def __enter__(self) -> "Heartbeat":
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._over.wait(self._every_s):
            self._beat()

    def _beat(self) -> None:
        with self._writing:
            self._seq += 1
            beat = {"seq": self._seq, "ts_ms": int(time.time() * 1000), "phase": self._phase}
            try:
                write(self._location, beat)
                self._said = False
            except (OSError, StorageError) as failure:
                if not self._said:
                    self._said = True
                    print(f"A heartbeat is missing: {failure}", file=sys.stderr, flush=True)
