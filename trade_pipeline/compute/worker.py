"""Entry point of a task's own process: opens Pipes, runs the task, reports its result.

Run as `python -m trade_pipeline.compute.worker <task file>`. Also runs without Pipes, then the
messages are dropped and the result is printed.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

from dagster_pipes import open_dagster_pipes


def main(path: Path) -> None:
    """Run the task described in a JSON file with the keys `module` and `spec`."""
    described = json.loads(path.read_text(encoding="utf-8"))
    run = importlib.import_module(described["module"]).run
    with open_dagster_pipes() as pipes:
        pipes.log.info(f"Task runs in process {os.getpid()}.")
        result = run(
            described["spec"], lambda progress: pipes.log.info(str(progress)), time.monotonic
        )
        pipes.report_custom_message(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
