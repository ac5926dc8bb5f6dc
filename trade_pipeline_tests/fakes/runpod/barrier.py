"""What keeps a pod away from files of its host that are named as off limits.

Two barriers. An audit hook, put into each Python of a pod, refuses to open, list or change what
lies below such a path, and writes down what was tried. It is an alarm, not a wall: a program that
is no Python, or `os.stat`, passes it. As root on Linux each container also gets a mount namespace
in which those folders are empty and read-only, and a process namespace in which it is PID 1, as in
a real pod: signals that it does not handle are ignored, and when it ends, all that it started ends.

Other machines are out of reach by `loopback_site`, which every Python of a pod runs too. Start at
`Barrier`.
"""

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOOK = '''"""Keeps this process away from its host; made by the fake RunPod."""
import json, os, sys, threading

FORBIDDEN = {forbidden!r}
REPORT = {report!r}
POD = {pod!r}
busy = threading.local()


def refuse(event, what):
    line = json.dumps({{"pod": POD, "pid": os.getpid(), "event": event, "what": str(what)}})
    file = os.open(REPORT, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, (line + "\\n").encode())
    finally:
        os.close(file)
    raise PermissionError(f"{{event}}: {{what}} is off limits in a pod")


def check_path(event, path):
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or not path or "\\0" in path:
        return
    for one in (os.path.abspath(path), os.path.realpath(path)):
        if any(one == folder or one.startswith(folder + os.sep) for folder in FORBIDDEN):
            refuse(event, path)


def hook(event, values):
    kind = event.partition(".")[0]
    if kind not in ("open", "os", "shutil", "sqlite3", "glob", "pathlib", "subprocess"):
        return
    if getattr(busy, "now", False):
        return
    busy.now = True
    try:
        if event not in ("os.putenv", "os.unsetenv"):
            for value in values[:2]:
                check_path(event, value)
    finally:
        busy.now = False


sys.addaudithook(hook)
'''

# Hides each path and becomes the command; "$0" counts the paths, which come before the command.
_HIDE = """
count=$0
while [ "$count" -gt 0 ]; do
  if [ -d "$1" ]; then mount -t tmpfs -o ro,size=4k,mode=755 tmpfs "$1" || exit 125
  elif [ -e "$1" ]; then mount --bind /dev/null "$1" || exit 125
  fi
  shift; count=$((count - 1))
done
exec "$@"
"""
_NAMESPACES = (
    *("unshare", "--mount", "--propagation", "private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
)


@functools.cache
def has_namespaces() -> bool:
    """Whether this machine lets us make mount and process namespaces, and mount in them."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    tried = [*_NAMESPACES, "sh", "-c", "mount -t tmpfs -o ro,size=4k tmpfs /mnt"]
    done = subprocess.run(tried, capture_output=True, check=False, timeout=10)
    return done.returncode == 0


def is_below(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path is one of these, or lies below one."""
    resolved = [path.resolve(), *path.resolve().parents]
    return any(folder.resolve() in resolved for folder in folders)


class Barrier:
    """Paths that pods must not reach.

    Attributes:
        name: which barriers hold on this machine.
        isolated: whether containers have namespaces of their own.
    """

    def __init__(self, forbidden: Sequence[Path], folder: Path) -> None:
        self.forbidden = tuple(path.resolve() for path in forbidden)
        self._report = folder / "leaks.jsonl"
        self._report.touch()
        self.isolated = has_namespaces()
        self.name = "namespaces and audit hook" if self.isolated else "audit hook"

    def install(self, pod: str, folder: Path) -> None:
        """Put the hook into a folder that comes first on a pod's PYTHONPATH."""
        paths = [str(path) for path in self.forbidden]
        text = HOOK.format(forbidden=paths, report=str(self._report), pod=pod)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(text, encoding="utf-8")

    def wrap(self, command: Sequence[str]) -> list[str]:
        """The command, behind this machine's own barriers where there are any."""
        if not self.isolated:
            return list(command)
        hidden = [str(path) for path in self.forbidden]
        return [*_NAMESPACES, "sh", "-c", _HIDE, str(len(hidden)), *hidden, *command]

    @property
    def leaks(self) -> list[dict[str, Any]]:
        """What pods tried that is off limits: pod, pid, event, what."""
        lines = self._report.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]
