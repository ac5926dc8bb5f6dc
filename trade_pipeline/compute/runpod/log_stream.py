"""A pod's log as RunPod streams it: server-sent events, their resumption, and how to stop.

Knows no routes and no errors. Start at `unseen`.
"""

import math
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import ValidationError

from trade_pipeline.compute.runpod.api import LogLine
from trade_pipeline.compute.runpod.wire import WireLine

STOP_EVERY_S = 0.1  # how often a reader looks whether it should stop


class Position(str):
    """RunPod's id of a line, which is a time; knows which lines of that time came before.

    Lines may share a time, and a stream resumed at a time may repeat some of them, or none.
    """

    _group: list[str]
    _size: int

    @classmethod
    def of(cls, identity: str, group: list[str]) -> Self:
        """After all lines that the group holds now; it may grow later."""
        position = cls(identity)
        position._group, position._size = group, len(group)
        return position

    @property
    def lines(self) -> list[str]:
        """Those of this time up to here."""
        return self._group[: self._size]


def unseen(events: Iterable[tuple[str, WireLine]], after: str | None) -> Iterator[LogLine]:
    """Lines after a position, without those that RunPod repeats when a stream is resumed.

    Args:
        events: id and content, as from `events_of`.
        after: id of a line given earlier. Where it is a mere text, such as one that was stored,
            all lines of its time count as known.
    """
    known = Counter(after.lines) if isinstance(after, Position) else None
    previous = after
    group = after.lines if isinstance(after, Position) else []
    resuming = after is not None
    for identity, found in events:
        if resuming and after is not None:
            if _nanoseconds(identity) < _nanoseconds(after):
                continue
            resuming = identity == after
            if resuming and (known is None or known[found.line]):
                if known is not None:
                    known[found.line] -= 1
                continue
        if identity != previous:
            previous, group = identity, []
        group.append(found.line)
        yield LogLine(
            id=Position.of(identity, group),
            source=found.source,
            ts=found.ts.astimezone(UTC),
            line=found.line,
        )


def events_of(chunks: Iterable[bytes]) -> Iterator[tuple[str, WireLine]]:
    """Id and content of each server-sent event that is a log line.

    Comments, which RunPod sends as heartbeats, and events of another shape are left out; so is
    one that the end of the stream cuts.
    """
    rest, identity = b"", ""
    data: list[str] = []
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for raw in lines:
            line = raw.decode("utf-8", "replace").removesuffix("\r")
            name, _, value = line.partition(":")
            if name == "id":
                identity = value.removeprefix(" ")
            elif name == "data":
                data.append(value.removeprefix(" "))
            elif not line:
                content, data = "\n".join(data), []
                with suppress(ValidationError):
                    found = WireLine.model_validate_json(content)
                    yield identity or found.ts.isoformat(), found


class Connection:
    """The connection of a log, which another thread can end while this one waits on it."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._until = math.inf

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Told by httpx of each step of a request; what was connected last carries the stream."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = info["return_value"].get_extra_info("socket")

    def end_in(self, seconds: float) -> None:
        """Have it end by itself; within the block of `ended_by`."""
        self._until = time.monotonic() + seconds

    @contextmanager
    def ended_by(self, stop: threading.Event) -> Iterator[None]:
        """Within the block, the connection ends soon after `stop` is set."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(STOP_EVERY_S):
                over = stop.is_set() or time.monotonic() > self._until
                if over and self._socket is not None:
                    with suppress(OSError):  # closed already
                        # Not the TLS socket's own shutdown, over which its reader would stumble.
                        socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

        threading.Thread(target=watch, name="stop of a pod's log", daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _nanoseconds(identity: str) -> int:
    """An RFC 3339 time as a number to compare; 0 for an id that is none."""
    found = re.fullmatch(r"([^.]*?)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", identity)
    if found is None:
        return 0
    try:
        whole = datetime.fromisoformat(found[1] + found[3])
    except ValueError:
        return 0
    return int(whole.timestamp()) * 10**9 + int((found[2] or "").ljust(9, "0")[:9])
