"""Entry point of a task's own process: opens Pipes, runs the task, reports its result.

Run as `python -m trade_pipeline.compute.worker <task file> [--result <file>] [--parent <process>]`.
Also runs without Pipes, then the messages are dropped. In a pod messages go into files, and the
result as well.
"""

import argparse
import importlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from dagster_pipes import PipesMessageWriter, open_dagster_pipes

from trade_pipeline.compute.runpod.pod_task import POD_ROOT
from trade_pipeline.storage.location import ArtifactLocation, replacing

PARENT_CHECK_S = 1.0


def main(path: Path, result_file: Path | None = None) -> None:
    """Run the task described in a JSON file with the keys `module` and `spec`.

    Args:
        path: the file.
        result_file: receives the result as JSON, whole or not at all.
    """
    described = json.loads(path.read_text(encoding="utf-8"))
    run = importlib.import_module(described["module"]).run
    with open_dagster_pipes(message_writer=_message_writer()) as pipes:
        pipes.log.info(f"Task runs in process {os.getpid()}.")
        result = run(
            described["spec"], lambda progress: pipes.log.info(str(progress)), time.monotonic
        )
        pipes.report_custom_message(result)
        if result_file is not None:
            file = ArtifactLocation(result_file.parent, result_file.name)
            with replacing(file) as temporary:
                temporary.write_text(json.dumps(result), encoding="utf-8")


def _message_writer() -> PipesMessageWriter[Any] | None:
    """Into files in a pod; None for what Dagster's own bootstrap says."""
    root = os.environ.get(POD_ROOT)
    if root is None:
        return None
    from trade_pipeline.compute.runpod.pod_messages import FolderMessageWriter

    return FolderMessageWriter(Path(root))


def _end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone: nobody would take its result."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Runs one task in this process.")
    parser.add_argument("task", type=Path)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--parent", type=int, default=os.getppid(), help="process to end with")
    options = parser.parse_args()
    # Before a task's module is imported, which takes seconds.
    threading.Thread(target=_end_with_parent, args=(options.parent,), daemon=True).start()
    main(options.task, options.result)
