"""An HTTP server on 127.0.0.1 for whole bodies, streams and connections that break.

Knows no venue. It has every method, bytes, headers, answers in pieces, and reads a body only when
it is asked for. Start at `WebServer`.
"""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class HangUpError(Exception):
    """No answer: silence for `seconds`, then the connection ends, orderly or by a reset."""

    def __init__(self, seconds: float = 0.0, *, reset: bool = False) -> None:
        super().__init__(seconds)
        self.seconds = seconds
        self.reset = reset


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        stream: instead of a body, pieces that go out as they come.
        cut_after: bytes of the body that go out before the connection is reset.
        length: what the answer says of its length, where that is not the body's (HEAD).
        ends: whether the connection ends, orderly, after it.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Iterator[bytes] | None = None
    cut_after: int | None = None
    length: int | None = None
    ends: bool = False


def json_reply(content: Any, status: int = 200, content_type: str = "application/json") -> Reply:
    """An answer with this content."""
    return Reply(status, json.dumps(content).encode(), content_type)


class Request:
    """One request; `headers` by their names in small letters."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        url = urlsplit(handler.path)
        self.method = handler.command
        self.raw_path = url.path
        self.raw_query = url.query
        self.path = unquote(url.path)
        self.query = dict(parse_qsl(url.query, keep_blank_values=True))
        self.headers = {name.lower(): value for name, value in handler.headers.items()}

    @property
    def length(self) -> int:
        """Bytes of the body, as announced."""
        return int(self.headers.get("content-length") or 0)

    @cached_property
    def body(self) -> bytes:
        """The whole body. Raises `HangUpError` where the client broke off."""
        content = self._handler.rfile.read(self.length)
        if len(content) < self.length:
            raise HangUpError
        return content

    def read_some(self, size: int) -> None:
        """Take a part of the body from the wire, to hang up in its midst."""
        self._handler.rfile.read(min(size, self.length))


class WebServer:
    """Serves `answer` on a free port, each connection in a thread of its own."""

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        self.answer = answer
        self.stopping = threading.Event()
        self._server = _Server(self)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End every connection."""
        self.stopping.set()
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, web: WebServer) -> None:
        self.web = web
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong, unless it is that a client was killed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def hang_up(self) -> None:
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):  # the client may have been first
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
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
        request = Request(self)
        try:
            reply = self.server.web.answer(request)
            if "body" not in vars(request) and request.length:
                self.close_connection = True  # what it sent is still on the wire
            self._send(reply)
        except HangUpError as end:
            self.close_connection = True
            self.server.web.stopping.wait(end.seconds)
            if end.reset:
                self._reset()
        except OSError:  # the client may have given up
            self.close_connection = True

    do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET  # noqa: N815

    def _reset(self) -> None:
        """End with a reset: closing with no time to linger sends one."""
        linger = struct.pack("ii", 1, 0)
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

    def _send(self, reply: Reply) -> None:
        headers = dict(reply.headers)
        if reply.content_type:
            headers.setdefault("Content-Type", reply.content_type)
        if reply.stream is not None:
            headers["Transfer-Encoding"] = "chunked"
        elif reply.status != HTTPStatus.NO_CONTENT:
            length = len(reply.body) if reply.length is None else reply.length
            headers["Content-Length"] = str(length)
        if reply.ends:
            self.close_connection = True
        if self.close_connection:
            headers["Connection"] = "close"
        reason = self.responses[reply.status][0] if reply.status in self.responses else "Unknown"
        lines = [f"HTTP/1.1 {reply.status} {reason}", *map(": ".join, headers.items())]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode())
        if self.command == "HEAD":
            return
        if reply.stream is not None:
            for piece in reply.stream:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        elif reply.cut_after is not None:
            self.wfile.write(reply.body[: reply.cut_after])
            raise HangUpError(reset=True)
        else:
            self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the fake keeps its requests."""
