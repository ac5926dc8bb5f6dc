"""What the tests of RunPod's clients share: a fake, a pod to ask for, and a server out of order."""

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trade_pipeline.compute.runpod.api import PodRequest

IDLE = ("sleep", "60")


def pod_request(name: str = "tp-main-0123abcd-4567cdef-1", **other: Any) -> PodRequest:
    """One that the fake fulfils."""
    asked: dict[str, Any] = {
        "name": name,
        "image": "registry/trade-pipeline@sha256:" + "0" * 64,
        "gpu": "NVIDIA L4",
        "cuda": ("12.8",),
        "cloud": "SECURE",
        "data_centers": ("EU-RO-1",),
        "disk_gb": 20,
        "args": IDLE,
    }
    return PodRequest(**{**asked, **other})


def printing(script: str) -> tuple[str, ...]:
    """A command that runs Python without a buffer."""
    return (sys.executable, "-uc", script)


@contextmanager
def answering(
    body: bytes | str, status: int = 200, headers: Mapping[str, str] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer to everything, which a fake of RunPod never would.

    Yields its URL, and the requests that it got.
    """
    content = body.encode() if isinstance(body, str) else body
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            got.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", got
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def told(error: BaseException) -> str:
    """Everything that an exception, its causes and their attributes would show to anybody."""
    shown, waiting, seen = [], [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        shown += [str(one), repr(one), repr(one.args)]
        for value in vars(one).values():
            shown.append(f"{value!r} {vars(value) if hasattr(value, '__dict__') else ''}")
        waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(shown)
