"""Remembers across processes, for an hour, which content of a plug-in did not end in time.

Only that: other failures cost no more than a good import does, and their cause may be mended
outside the file. Nothing here fails: without a folder to write to, nothing is remembered. Start at
`recall` and `remember`.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

KEPT_S = 3_600.0
FILE = "plugins_out_of_time.json"


def recall(attempt: Any, limit_s: float) -> float | None:
    """When an attempt ran out of time within the last hour, in seconds since 1970; else None.

    Args:
        attempt: JSON that holds a hash of the content.
        limit_s: seconds that it would get.
    """
    key = _key(attempt, limit_s)
    found = [times[key] for file in _files() if key in (times := _read(file))]
    return max(found, default=None)


def remember(attempt: Any, limit_s: float) -> None:
    """Note that an attempt has just run out of its `limit_s` seconds."""
    key = _key(attempt, limit_s)
    for file in _files():
        text = json.dumps({**_read(file), key: time.time()})
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            # Written beside and moved: another process may read at the same time.
            with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as beside:
                beside.write(text)
            Path(beside.name).replace(file)
            return


def _files() -> Iterator[Path]:
    """Where it may lie, the best place first."""
    with suppress(RuntimeError):  # a user without a home
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        yield Path(cache) / "trade_pipeline" / FILE
    yield Path(__file__).parent / "__pycache__" / FILE


def _read(file: Path) -> dict[str, float]:
    """Time by key, of the last hour; empty where the file is damaged or not there."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    now = time.time()
    return {
        key: float(when)
        for key, when in entries
        if isinstance(when, int | float) and now - KEPT_S < when <= now
    }


def _key(attempt: Any, limit_s: float) -> str:
    """Hash of what is tried, of Python and of what is installed: by names with versions."""
    installed = set()
    for folder in sys.path:
        with suppress(OSError):
            names = (one.name for one in Path(folder).iterdir())
            installed |= {name for name in names if name.endswith("-info")}
    said = json.dumps([attempt, limit_s, sys.version, sorted(installed)])
    return hashlib.sha256(said.encode()).hexdigest()
