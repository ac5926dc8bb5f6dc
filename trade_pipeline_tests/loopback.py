"""Fails a test that tries to reach any address but loopback, also one that swallows the error.

A try of a process that outlives its test fails the test that runs then, or at last the whole run.
A pytest plug-in; what is refused, and how, is in `loopback_site.only_loopback`.
"""

import json
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from trade_pipeline_tests.loopback_site import only_loopback

RECORDS = pytest.StashKey[Path]()


class Record:
    """What one file says was tried, and how much of it somebody was told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = 0

    def news(self) -> str:
        """What was tried since the last call; empty where nothing was."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(self._told)
            lines = file.read()
            self._told = file.tell()
        tries = [json.loads(line) for line in lines.splitlines()]
        return "\n".join(f"{one['said']}\n{one['process']}\n{one['stack']}" for one in tries)


RECORD = pytest.StashKey[Record]()


def pytest_configure(config: pytest.Config) -> None:
    """Guard this process; xdist's workers write into their controller's folder, a file each."""
    worker = getattr(config, "workerinput", None)
    if worker is None:
        folder = Path(mkdtemp(prefix="only-loopback-"))
        config.stash[RECORDS] = folder
        path = folder / "main.jsonl"
    else:
        path = Path(os.environ[only_loopback.RECORD]).with_name(f"{worker['workerid']}.jsonl")
    os.environ[only_loopback.RECORD] = str(path)
    config.stash[RECORD] = Record(path)
    # A worker is a Python process that its controller's hook has guarded already.
    if "only_loopback" not in sys.modules:
        only_loopback.install()


def _watched(item: pytest.Item) -> Generator[None, Any, Any]:
    """Run one phase of a test, and fail it for what it tried."""
    __tracebackhide__ = True
    try:
        return (yield)
    finally:
        if news := item.config.stash[RECORD].news():
            pytest.fail(f"A test, or a process that a test started, left loopback:\n{news}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch fixtures."""
    __tracebackhide__ = True
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch the test."""
    __tracebackhide__ = True
    return (yield from _watched(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Watch what ends."""
    __tracebackhide__ = True
    return (yield from _watched(item))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for a try that failed no test, such as one while tests were collected."""
    ended_well = session.exitstatus == pytest.ExitCode.OK
    if RECORDS in session.config.stash and ended_well and _all_tries(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name every try of the run once more: an expected failure may have hidden one."""
    if tried := _all_tries(config):
        terminalreporter.section("left loopback")
        terminalreporter.write_line(tried)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind."""
    if RECORDS in config.stash:
        shutil.rmtree(config.stash[RECORDS], ignore_errors=True)


def _all_tries(config: pytest.Config) -> str:
    files = sorted(config.stash[RECORDS].glob("*.jsonl"))
    return "\n".join(Record(path).news() for path in files)
