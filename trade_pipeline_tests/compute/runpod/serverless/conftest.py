"""A volume, the SDK's local server and the platform, with a real handler behind each."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from trade_pipeline.compute.runpod.serverless import ROOT_VARIABLE
from trade_pipeline.storage.bundles import BundleReference, commit, verify
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.compute.runpod.pods import PROJECT
from trade_pipeline_tests.compute.runpod.serverless.jobs import KINDS, made_bars
from trade_pipeline_tests.compute.runpod.serverless.platform import Platform
from trade_pipeline_tests.ports import free_port
from trade_pipeline_tests.training import policies

START_S = 60.0


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with bars and a policy of each kind of action."""
    root = tmp_path_factory.mktemp("volume") / "trade_pipeline"
    write_frame(ArtifactLocation(root / "store", "bars/demo.parquet"), made_bars())
    for name, made_as in KINDS.items():
        staged = policies.write_bundle(root / "store", f"staging/{name}", *made_as)
        version = verify(staged)["version"]
        key = ArtifactLocation(root / "store", f"demo/policy/{name}")
        commit(BundleReference(staged, version), key)
    return root


@contextmanager
def process(root: Path, environment: dict[str, str], *options: str) -> Iterator[None]:
    """The handler as RunPod starts it."""
    module = "trade_pipeline.compute.runpod.serverless"
    started = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        cwd=PROJECT,
        env={**os.environ, ROOT_VARIABLE: str(root), **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@pytest.fixture(scope="session")
def local_url(root: Path) -> Iterator[str]:
    """The SDK's local test server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    with process(root, {}, *options):
        for _ in range(int(START_S / 0.1)):
            try:
                httpx.get(f"{url}/openapi.json")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise TimeoutError("the test server never answered")
        yield url


@pytest.fixture(scope="session")
def served(root: Path) -> Iterator[Platform]:
    """The platform with one real worker."""
    with Platform() as platform, process(root, platform.worker_environment):
        platform.wait_for_worker()
        yield platform
        assert not platform.unexpected


@pytest.fixture
def platform(served: Platform) -> Iterator[Platform]:
    yield served
    served.updates, served.arrange = 0, list
    assert not served.failures, "failures that no request met"
    served.received.clear()


@pytest.fixture
def idle() -> Iterator[Platform]:
    """The platform without any worker."""
    with Platform() as platform:
        yield platform
