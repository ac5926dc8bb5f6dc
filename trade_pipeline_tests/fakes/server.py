"""What all fake venues share: an HTTP server on 127.0.0.1, and faults that wait for their answers.

Knows no venue, wire format or clock; those are in the modules of the fakes. Start at `FakeServer`;
a fake is a subclass that gives `answer`, and keeps its faults in `PlannedFaults`.
"""

import json
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

HUNG_UP = ("timeout", "connection reset")


class Answer(NamedTuple):
    """What goes over the wire.

    Attributes:
        content_type: empty: the answer does not say.
        missing: bytes that the answer announces and does not send, before it hangs up.
    """

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    missing: int = 0


class Received(NamedTuple):
    """One request; `query` as pairs, `headers` by their names in small letters."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    headers: dict[str, str]
    form: dict[str, str]

    @property
    def params(self) -> dict[str, str]:
        """The query by name; of a name that came twice, the last."""
        return dict(self.query)


def as_json(content: Any, status: int = 200) -> Answer:
    """An answer with this content."""
    return Answer(json.dumps(content).encode(), status)


class FakeServer:
    """A venue over loopback HTTP, to be used as a context manager.

    Attributes:
        url: address to use instead of the venue's.
        hold_s: how long the fault "timeout" keeps silent before it hangs up.
    """

    keeps_open: ClassVar[bool] = True  # whether a connection may carry more than one request

    def __init__(self) -> None:
        self.hold_s = 0.5
        self._lock = threading.Lock()
        self.stopping = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join()

    def answer(self, received: Received) -> Answer | str:
        """What a request gets; a string is one of `HUNG_UP`. Called by several threads."""
        raise NotImplementedError

    def headers(self) -> Mapping[str, str]:
        """What every answer says beside its type and length, such as the venue's time."""
        return {}


@dataclass
class Plan:
    """Faults still to come on a route: after so many other answers, so many times."""

    route: str
    fault: Any
    times: int
    after: int


class PlannedFaults:
    """Faults in the order in which they were asked for."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []

    def add(self, route: str, fault: Any, times: int, after: int) -> None:
        """Plan a fault for the routes whose path holds this text."""
        self._plans.append(Plan(route, fault, times, after))

    def due(self, path: str) -> Plan | None:
        """The fault for the answer being made, if any; it stays until it is `done`."""
        plan = next((one for one in self._plans if one.route in path), None)
        if plan is not None and plan.after:
            plan.after -= 1
            return None
        return plan

    def done(self, plan: Plan) -> None:
        """The fault has happened once."""
        plan.times -= 1
        if not plan.times:
            self._plans.remove(plan)

    @property
    def unused(self) -> list[tuple[str, Any, int]]:
        """What was asked for and did not happen: route, fault, how many times."""
        return [(plan.route, plan.fault, plan.times) for plan in self._plans]


class _Server(ThreadingHTTPServer):
    """Hands each request to `FakeServer.answer`; its connections end with it."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def hang_up(self) -> None:
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # the client may have been first
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"  # connections stay open, as most venues' do
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with suppress(OSError):  # the connection may have been reset
            super().finish()

    def do_GET(self) -> None:
        fake = self.server.fake
        url = urlsplit(self.path)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        answer = fake.answer(
            Received(
                self.command,
                url.path,
                tuple(parse_qsl(url.query, keep_blank_values=True)),
                {name.lower(): value for name, value in self.headers.items()},
                dict(parse_qsl(sent, keep_blank_values=True)),
            )
        )
        if isinstance(answer, Answer):
            self._send(answer)
            return
        self.close_connection = True
        if answer == "timeout":
            fake.stopping.wait(fake.hold_s)
        elif answer == "connection reset":
            # Closing with no time to linger sends a reset instead of an orderly end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        else:
            raise ValueError(f"no fault {answer!r} without a body; there are {HUNG_UP}")

    def do_POST(self) -> None:
        self.do_GET()

    def _send(self, answer: Answer) -> None:
        fake = self.server.fake
        headers = {**fake.headers(), "Content-Length": str(len(answer.body) + answer.missing)}
        if answer.content_type:
            headers["Content-Type"] = f"{answer.content_type}; charset=utf-8"
        if not fake.keeps_open:
            headers["Connection"] = "close"
        if not fake.keeps_open or answer.missing:
            self.close_connection = True
        reason = self.responses[answer.status][0] if answer.status in self.responses else "?"
        lines = [f"HTTP/1.1 {answer.status} {reason}", *map(": ".join, headers.items())]
        with suppress(OSError):  # the client may have given up
            self.wfile.write("\r\n".join([*lines, "", ""]).encode() + answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: each fake keeps its requests."""
