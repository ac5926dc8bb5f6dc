"""S3 on loopback: moto as AWS's, and a front before any S3 that breaks single answers.

Start at `moto_url()` and `Front`; `Front.break_next` scripts a fault, and one that was scripted but
never met fails the test at the end.
"""

import functools
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

from moto.server import ThreadedMotoServer

Kind = Literal["refuse", "answer_wrongly", "swallow", "cut"]
_HOP = {
    "connection",
    "transfer-encoding",
    "content-length",
    "server",
    "date",
    "keep-alive",
    "expect",
}


@functools.cache
def moto_url() -> str:
    """Endpoint of one moto server for this process; it ends with it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@dataclass
class Fault:
    """What becomes of the requests it matches.

    `refuse`: answered with the status, and not done. `answer_wrongly`: done, and answered with the
    status all the same. `swallow`: not done, and answered as if it were. `cut`: done, and the
    connection breaks within the answer's body, or before the answer where it has none.
    """

    kind: Kind
    method: str
    part: str  # of path and query
    status: int
    times: int

    def matches(self, method: str, target: str) -> bool:
        return self.times > 0 and method == self.method and self.part in target


class _Stop:
    """Where a request is held up, before or after it was done."""

    def __init__(self, number: int, before: bool) -> None:
        self.left_over, self.before = number, before
        self.reached, self.left = threading.Event(), threading.Event()
        self.done = threading.Event()

    @contextmanager
    def around(self) -> Iterator[None]:
        """The doing of one request."""
        self.left_over -= 1
        mine = self.left_over == 0
        if mine and self.before:
            self._hold()
        yield
        if mine:
            self.done.set()
            if not self.before:
                self._hold()

    def _hold(self) -> None:
        self.reached.set()
        self.left.wait(60)


class Front(ThreadingHTTPServer):
    """Passes requests on to an S3; remembers them, and breaks those that it was told to."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        split = urlsplit(behind)
        assert split.hostname is not None
        self.behind = (split.hostname, split.port)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.seen: list[tuple[str, str, dict[str, str]]] = []  # method, target, headers
        self.faults: list[Fault] = []
        self.stop: _Stop | None = None
        self.lock = threading.Lock()

    def break_next(
        self, kind: Kind, method: str, part: str, status: int = 502, times: int = 1
    ) -> None:
        self.faults.append(Fault(kind, method, part, status, times))

    @contextmanager
    def at(self, number: int) -> Iterator[threading.Event]:
        """An event set at the nth request from now, which goes on when the block is left.

        Odd ones have been done then but not answered, even ones have only come; these are done
        when the block has been left.
        """
        stop = _Stop(number, before=number % 2 == 0)
        self.stop = stop
        try:
            yield stop.reached
        finally:
            self.stop = None
            stop.left.set()
            assert not stop.reached.is_set() or stop.done.wait(60), "a held request never ended"

    def targets(self, method: str) -> list[str]:
        return [target for one, target, _ in self.seen if one == method]

    def fault(self, method: str, target: str, headers: dict[str, str]) -> Fault | None:
        with self.lock:
            self.seen.append((method, target, headers))
            for fault in self.faults:
                if fault.matches(method, target):
                    fault.times -= 1
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no error of the front."""


@contextmanager
def front(behind: str) -> Iterator[Front]:
    server = Front(behind)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
    left = [fault for fault in server.faults if fault.times]
    assert not left, f"scripted but never met: {left}"


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Front

    def _pass(self) -> None:
        headers = dict(self.headers.items())
        fault = self.server.fault(self.command, self.path, headers)
        body = self._body()
        if fault is not None and fault.kind == "refuse":
            return self._answer(fault.status, {}, b"<html>bad gateway</html>")
        if fault is not None and fault.kind == "swallow":
            return self._answer(fault.status, {"ETag": '"0"'}, b"")
        with self.server.stop.around() if self.server.stop else nullcontext():
            came, content = self._forward(headers, body)
        sent = {key: value for key, value in came.getheaders() if key.lower() not in _HOP}
        length = came.getheader("Content-Length") if self.command == "HEAD" else None
        if fault is not None and fault.kind == "answer_wrongly":
            return self._answer(fault.status, {}, b"<html>bad gateway</html>")
        if fault is not None:
            self.close_connection = True
            if content:
                self._start(came.status, sent, len(content))
                self.wfile.write(content[: len(content) // 2])
            return None
        return self._answer(came.status, sent, content, length)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815

    def _forward(
        self, headers: dict[str, str], body: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        behind = http.client.HTTPConnection(*self.server.behind, timeout=30)
        kept = {key: value for key, value in headers.items() if key.lower() not in _HOP}
        behind.request(self.command, self.path, body, {**kept, "Content-Length": str(len(body))})
        came = behind.getresponse()
        content = came.read()
        behind.close()
        return came, content

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _start(self, status: int, headers: dict[str, str], length: int | str) -> None:
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, length: str | None = None
    ) -> None:
        self._start(status, headers, len(content) if length is None else length)
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the test says what it saw."""
