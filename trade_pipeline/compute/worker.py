"""Entry point of a task's own process: opens Pipes, runs the task, reports its result.

Run as `python -m trade_pipeline.compute.worker <task file>`. Also runs without Pipes, then the
messages are dropped and the result is printed.
"""

import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes

PARENT_CHECK_S = 1.0


def main(path: Path) -> None:
    """Run the task described in a JSON file with the keys `module` and `spec`."""
    described = json.loads(path.read_text(encoding="utf-8"))
    run = importlib.import_module(described["module"]).run
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with open_dagster_pipes() as pipes:
        pipes.log.info(f"Task runs in process {os.getpid()}.")
        result = run(
            described["spec"], lambda progress: pipes.log.info(str(progress)), time.monotonic
        )
        pipes.report_custom_message(result)


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone: nobody would take its result."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
