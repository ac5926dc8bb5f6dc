"""What a failing, killed or competing writer leaves behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError

OLD, NEW = pl.DataFrame({"x": [1]}), pl.DataFrame({"x": [2]})

IMPORTS = """
import os, signal, sys
from pathlib import Path
import polars as pl
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import frame_lock, write_frame
from trade_pipeline.storage.location import ArtifactLocation
location = ArtifactLocation(Path(sys.argv[1]), "folder/x")
"""


def python(script: str, store: Path) -> subprocess.Popen[str]:
    """Start a script in another process; it finds `location` and the store's functions."""
    return subprocess.Popen(
        [sys.executable, "-c", IMPORTS + script, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def location(tmp_path: Path) -> ArtifactLocation:
    return ArtifactLocation(tmp_path, "folder/x")


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def write_half(file: Path, content: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(bytes(content[: len(content) // 2]))
    fail()


def names(location: ArtifactLocation) -> list[str]:
    """Everything in the folder of a location, hidden files too."""
    return [path.name for path in location.path.parent.iterdir()]


FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "replace": lambda patch: patch.setattr(os, "replace", fail),
    "fsync": lambda patch: patch.setattr(os, "fsync", fail),
    "half a write": lambda patch: patch.setattr(Path, "write_bytes", write_half),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_frame_write_keeps_the_old_bytes_and_leaves_nothing(
    location: ArtifactLocation, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    write_frame(location, OLD)
    old = location.path.read_bytes()
    FAULTS[fault](monkeypatch)
    with pytest.raises(StorageError, match=r"disk is full .*No space left"):
        write_frame(location, NEW)
    assert location.path.read_bytes() == old
    assert names(location) == ["x"]


@pytest.mark.parametrize("fault", ["replace", "fsync"])
def test_a_failing_document_write_keeps_the_old_bytes_and_leaves_nothing(
    location: ArtifactLocation, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    write_json(location, "old")
    FAULTS[fault](monkeypatch)
    with pytest.raises(StorageError, match=r"disk is full .*No space left"):
        write_json(location, "new")
    assert read_json(location) == "old"
    assert names(location) == ["x"]


def test_a_first_write_that_fails_leaves_no_file(
    location: ArtifactLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"disk is full .*No space left"):
        write_frame(location, NEW)
    assert names(location) == []


@pytest.mark.parametrize(
    "write", ["write_frame(location, pl.DataFrame({'x': [2]}))", "write_json(location, 'new')"]
)
def test_a_writer_killed_before_the_replace_leaves_the_old_file(
    location: ArtifactLocation, write: str
) -> None:
    write_frame(location, OLD)
    old = location.path.read_bytes()
    killed = python(
        f"os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n{write}",
        location.store,
    )
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    # Its temporary file proves that it died between the write and the replace.
    (temporary,) = set(names(location)) - {"x"}
    assert temporary.startswith(".x.") and temporary.endswith(".tmp")
    assert location.path.read_bytes() == old
    assert read_frame(location).equals(OLD)
    write_frame(location, NEW)
    assert read_frame(location).equals(NEW)


def test_two_processes_under_the_lock_lose_no_update(location: ArtifactLocation) -> None:
    write_json(location, 0)
    script = """
for _ in range(100):
    with frame_lock(location):
        write_json(location, read_json(location) + 1)
"""
    for process in [python(script, location.store) for _ in range(2)]:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert read_json(location) == 200


@pytest.mark.parametrize("end", ["release", "kill"])
def test_a_second_writer_waits_until_the_first_has_released_or_died(
    location: ArtifactLocation, end: str
) -> None:
    hold = "with frame_lock(location):\n    print('held', flush=True)\n    sys.stdin.readline()"
    wait = (
        "print('ready', flush=True)\nwith frame_lock(location):\n    write_json(location, 'mine')"
    )
    holder = python(hold, location.store)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiter = python(wait, location.store)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(timeout=0.5)
    assert not location.path.exists()
    if end == "kill":
        holder.kill()
    holder.communicate(input="\n" if end == "release" else None)
    waiter.communicate()
    assert waiter.returncode == 0
    assert read_json(location) == "mine"
