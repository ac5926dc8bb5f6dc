"""Tasks in a subprocess of this machine, reported through Dagster Pipes."""

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.compute.base import Task, TaskError

LINES_KEPT = 40  # of standard error, for the message of a failure
END_GRACE_S = 10.0  # between SIGTERM and SIGKILL


class LocalCompute(dg.ConfigurableResource[Any]):
    """A subprocess per task; cancelling the run ends it, and so does the time limit."""

    timeout_s: float

    def run_task(self, context: dg.AssetExecutionContext, task: Task) -> dict[str, Any]:
        """See `ComputeResource.run_task`."""
        spec_path = task.write_spec()
        try:
            return self._run(context, spec_path)
        finally:
            spec_path.unlink(missing_ok=True)

    def _run(self, context: dg.AssetExecutionContext, spec_path: Path) -> dict[str, Any]:
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            module, parent = "trade_pipeline.compute.worker", str(os.getpid())
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(spec_path), "--parent", parent],
                env={**os.environ, **session.get_bootstrap_env_vars()},
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            last_lines: deque[str] = deque(maxlen=LINES_KEPT)
            with _ended_after(process, self.timeout_s) as late:
                assert process.stderr is not None
                for line in process.stderr:
                    sys.stderr.write(line)
                    last_lines.append(line)
                return_code = process.wait()
        if late.is_set():
            raise TaskError(f"The task was ended after its limit of {self.timeout_s:g} s.")
        if return_code != 0:
            said = "".join(last_lines) or "nothing on its standard error"
            raise TaskError(f"The task's process ended with code {return_code} and said:\n{said}")
        results = session.get_custom_messages()
        if len(results) != 1 or not isinstance(results[0], dict):
            raise TaskError(f"The task reported {len(results)} results; exactly 1 is expected.")
        return results[0]


@contextmanager
def _ended_after(process: "subprocess.Popen[str]", limit_s: float) -> Iterator[threading.Event]:
    """End the process at the limit, and in any case when the block is left by an exception."""
    late = threading.Event()

    def end_late() -> None:
        late.set()
        _end(process)

    timer = threading.Timer(limit_s, end_late)
    timer.daemon = True
    try:
        timer.start()
        yield late
    finally:  # a cancelled run raises a BaseException here
        timer.cancel()
        if process.poll() is None:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    """Ask the process to end; kill it when it has not after a grace."""
    process.terminate()
    try:
        process.wait(END_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
