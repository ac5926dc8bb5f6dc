"""Fixtures every test may use."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytest_plugins = ["trade_pipeline_tests.deployment", "trade_pipeline_tests.loopback"]

# No deadline: a busy machine is no bug. In CI the same examples every time, elsewhere new ones.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("suite")

SHARED_DATA = Path(
    os.environ.get(
        "TRADE_PIPELINE_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"
    )
)
# Chromium as root, and without the connections that it opens on its own.
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # No page reaches further than the machine, whatever it links to.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever comes first builds the templates for all, and compiles: no hung test."""
    for item in items:
        if "templates" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1_800))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data at {SHARED_DATA}; set TRADE_PIPELINE_TEST_DATA to its folder")
    return SHARED_DATA


@pytest.fixture
def browser() -> Iterator["Browser"]:
    """Headless chromium; skips where there is none, fails instead where CI requires it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail("no chromium on the path, and REQUIRE_BROWSER is set")
        pytest.skip("no chromium on the path; apt-get install chromium")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=list(BROWSER_OPTIONS))
        yield opened
        opened.close()
