"""Web server and daemon of a project, as `make dev` starts them, on a free loopback port."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trade_pipeline_tests.deployment import Deployment

START_LIMIT_S = 120
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(deployment: Deployment) -> Iterator[str]:
    """Yields the address; ends both processes."""
    home = deployment.root / "home"
    home.mkdir()
    shutil.copy(ROOT / "configs" / "deploy" / "development.yaml", home / "dagster.yaml")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "TRADE_PIPELINE_CONFIGS": str(deployment.places.configs),
        "TRADE_PIPELINE_STORE": str(deployment.places.store),
    }
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    commands = [
        ["dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *workspace],
        ["dagster._daemon", "run", *workspace],
    ]
    started = []
    with (home / "servers.log").open("w") as log:
        try:
            for module, *options in commands:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", module, *options],
                        cwd=ROOT,
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
            address = f"http://127.0.0.1:{port}"
            _wait_for(f"{address}/server_info", started[0], home / "servers.log")
            yield address
        finally:
            for process in started:
                process.send_signal(signal.SIGINT)
            for process in started:
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {url} in {START_LIMIT_S} s:\n{log.read_text()}")
