"""A task for the tests of compute: does what its spec says. Knows nothing of trade_pipeline."""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OUTLIVES_ANY_TEST_S = 300.0


def run(
    spec: Mapping[str, Any], report: Callable[[object], None], clock: Callable[[], float]
) -> Any:
    """Write this process's id where `pid_file` says, then act."""
    pid_file = Path(spec["pid_file"])
    if spec["act"] == "ignore terminate":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    written = pid_file.with_suffix(".part")
    written.write_text(str(os.getpid()), encoding="utf-8")
    written.rename(pid_file)
    match spec["act"]:
        case "return":
            return spec["result"]
        case "report, then wait for a file":
            report("halfway there")
            given_up = clock() + 60
            while not Path(spec["go_file"]).exists() and clock() < given_up:
                time.sleep(0.02)
            return {"clock": clock()}
        case "fail":
            print("a warning first", file=sys.stderr)
            raise ValueError(f"the spec says {spec['word']}")
        case "leave":
            os._exit(0)
    time.sleep(OUTLIVES_ANY_TEST_S)
    return {}
