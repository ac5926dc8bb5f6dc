"""Whether a process that a test started, or had started, is still there."""

from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether a process is there and is no zombie that nobody has collected."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    return "State:\tZ" not in status
