"""Web server and daemon of a project, as `make dev` starts them, on a free loopback port."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.ports import free_port

START_LIMIT_S = 120
LAUNCHES = "QUEUED_RUN_COORDINATOR"  # the daemon that launches what waits in the queue
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
    port = free_port()
    workspace = ["-w", str(ROOT / "workspace.yaml")]
    commands = [
        ["dagster_webserver", "-h", "127.0.0.1", "-p", str(port), *workspace],
        ["dagster._daemon", "run", *workspace],
    ]
    started: list[subprocess.Popen[bytes]] = []
    # Two processes that both find no databases both write them, and the second of them dies.
    with (
        (home / "servers.log").open("w") as log,
        dg.DagsterInstance.from_config(str(home)) as known,
    ):
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

            def ready() -> bool:
                return (
                    _answers(f"{address}/server_info") and LAUNCHES in known.get_daemon_heartbeats()
                )

            _wait_until(ready, started, home / "servers.log")
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


def _wait_until(
    ready: Callable[[], bool], started: list[subprocess.Popen[bytes]], log: Path
) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while not ready():
        assert time.monotonic() < limit, f"not ready in {START_LIMIT_S} s:\n{log.read_text()}"
        for process in started:
            assert process.poll() is None, f"{process.args} ended:\n{log.read_text()}"
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True
