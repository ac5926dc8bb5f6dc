"""A loopback port for a server in a process of its own, which binds it some seconds later."""

import os
import socket

# Below what systems give to whoever asks for any port, so that none of those takes it meanwhile.
FIRST, OF_EACH_WORKER = 20_000, 100


def free_port() -> int:
    """A port that nobody listens on; two workers of xdist never get the same."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST + OF_EACH_WORKER * worker
    for port in range(first, first + OF_EACH_WORKER):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {first} to {first + OF_EACH_WORKER - 1} is free")
