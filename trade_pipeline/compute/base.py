"""What a machine must be able to do: run a task and hand back what it says that it made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import dagster as dg

from trade_pipeline.storage.location import ArtifactLocation


class TaskError(RuntimeError):
    """A task ended without a result; the message says why and where to look."""


@dataclass(frozen=True)
class Task:
    """A unit of work that does not know where it runs.

    Attributes:
        module: dotted module with `run(spec, report)`, such as `trade_pipeline.training.task`.
        spec: JSON-able input of `run`.
        folder: staging folder of the task; the spec is written there and the log is kept there.
        inputs: bundles that it reads.
        checkpoint: where it keeps its state, to go on from after it was killed.
    """

    module: str
    spec: dict[str, Any]
    folder: Path
    inputs: tuple[ArtifactLocation, ...] = ()
    checkpoint: ArtifactLocation | None = None

    def write_spec(self) -> Path:
        """Write module and spec beside the staging folder's members and return the file."""
        path = self.folder.with_name(self.folder.name + ".task.json")
        path.write_text(json.dumps({"module": self.module, "spec": self.spec}), encoding="utf-8")
        return path


class ComputeResource(Protocol):
    """Runs tasks; local and remote machines give the same result for the same task."""

    def run_task(self, context: dg.AssetExecutionContext, task: Task) -> dict[str, Any]:
        """Run to the end, stream logs into Dagster, return the task's result.

        Raises:
            TaskError: the task gave no result.
        """
        ...
