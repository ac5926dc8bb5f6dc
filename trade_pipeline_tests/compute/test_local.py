"""A task in a process of its own: its result and words come back, and it never outlives its run."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError

from trade_pipeline.compute import local
from trade_pipeline.compute.base import Task, TaskError
from trade_pipeline.compute.local import LocalCompute
from trade_pipeline_tests.processes import is_running

MODULE = "trade_pipeline_tests.compute.tasks"
LONG_S = 60.0
ROOT = Path(__file__).resolve().parents[2]


class Tried:
    """What became of one task that an asset ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid_file = folder / "pid"
        self.result: Any = None
        self.error: BaseException | None = None
        # In files: one in memory refuses a reader while it is written to.
        home = folder.parent / f"{folder.name}-dagster"
        home.mkdir()
        self.instance = dg.DagsterInstance.local_temp(
            str(home), overrides={"telemetry": {"enabled": False}}
        )

    def run(
        self,
        act: str,
        timeout_s: float = LONG_S,
        interrupted_by: type[BaseException] | None = None,
        **spec: Any,
    ) -> None:
        """Run the task inside a real asset; what `run_task` raises is kept, not raised on."""
        described = {"act": act, "pid_file": str(self.pid_file), **spec}

        @dg.asset
        def asset(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
            task = Task(MODULE, described, self.folder / "staging")
            compute = LocalCompute(timeout_s=timeout_s)
            try:
                if interrupted_by is None:
                    self.result = compute.run_task(context, task)
                else:
                    with _raised_once_it_runs(interrupted_by, self.pid_file):
                        self.result = compute.run_task(context, task)
            except BaseException as error:
                self.error = error
            return dg.MaterializeResult()

        dg.materialize([asset], instance=self.instance)

    @property
    def failure(self) -> str:
        """Message of the `TaskError` that must have come."""
        assert isinstance(self.error, TaskError), repr(self.error)
        return str(self.error)

    def process_is_gone(self) -> bool:
        """Whether the task had started and its process is no more."""
        try:
            os.kill(int(self.pid_file.read_text(encoding="utf-8")), 0)
        except ProcessLookupError:
            return True
        return False

    def log(self) -> list[str]:
        """Messages in the event log."""
        runs = self.instance.get_runs()
        return [one.user_message for run in runs for one in self.instance.all_logs(run.run_id)]


@contextlib.contextmanager
def _raised_once_it_runs(exception: type[BaseException], pid_file: Path) -> Any:
    """A signal whose handler raises in the waiting thread, as Dagster cancels a run."""

    def interrupt(number: int, frame: object) -> None:
        raise exception()

    def send() -> None:
        _wait_for(pid_file)
        os.kill(os.getpid(), signal.SIGUSR1)

    previous = signal.signal(signal.SIGUSR1, interrupt)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, previous)


def _wait_for(path: Path) -> None:
    for _ in range(int(LONG_S / 0.02)):
        if path.exists():
            return
        time.sleep(0.02)
    raise TimeoutError(f"{path} never came")


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tried:
    # The task's process must find the tests' folder wherever pytest was started.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    return Tried(tmp_path)


def test_the_result_comes_back_from_another_process(tried: Tried) -> None:
    result = {"version": "abc", "metrics": {"sharpe": 0.1, "sortino": None}, "list": [1, 2]}
    tried.run("return", result=result)
    assert tried.result == result
    assert int(tried.pid_file.read_text(encoding="utf-8")) != os.getpid()
    assert tried.process_is_gone()


def test_nothing_of_the_task_file_is_left(tried: Tried) -> None:
    tried.run("return", result={})
    tried.run("fail", word="no")
    assert tried.error is not None
    assert [path.name for path in tried.folder.iterdir()] == ["pid"]


def test_what_a_task_reports_is_in_the_event_log_while_it_runs(tried: Tried) -> None:
    go_file = tried.folder / "go"
    seen_while_running = threading.Event()

    def watch() -> None:
        for _ in range(int(LONG_S / 0.05)):
            if any("halfway there" in line for line in tried.log()):
                seen_while_running.set()
                break
            time.sleep(0.05)
        go_file.touch()

    watcher = threading.Thread(target=watch)
    watcher.start()
    tried.run("report, then wait for a file", go_file=str(go_file))
    watcher.join()
    assert seen_while_running.is_set()
    assert tried.result["clock"] > 0


def test_a_failing_tasks_last_words_are_in_the_error(
    tried: Tried, capfd: pytest.CaptureFixture[str]
) -> None:
    tried.run("fail", word="no")
    assert "code 1" in tried.failure
    assert "a warning first" in tried.failure
    assert tried.failure.rstrip().endswith("ValueError: the spec says no")
    assert "a warning first" in capfd.readouterr().err, "it is shown as it comes, too"


def test_a_task_is_ended_at_its_time_limit(tried: Tried) -> None:
    started = time.monotonic()
    tried.run("sleep", timeout_s=3.0)
    assert "limit of 3 s" in tried.failure
    assert time.monotonic() - started < LONG_S / 2
    assert tried.process_is_gone()


def test_a_task_that_will_not_end_is_killed_at_its_time_limit(
    tried: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "END_GRACE_S", 0.2)
    tried.run("ignore terminate", timeout_s=3.0)
    assert "limit of 3 s" in tried.failure
    assert tried.process_is_gone()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, DagsterExecutionInterruptedError])
@pytest.mark.parametrize("act", ["sleep", "ignore terminate"])
def test_a_cancelled_run_ends_its_task(
    tried: Tried, exception: type[BaseException], act: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "END_GRACE_S", 0.2)
    tried.run(act, interrupted_by=exception)
    assert isinstance(tried.error, exception)
    assert tried.process_is_gone()


def test_a_task_that_leaves_without_a_result_is_an_error(tried: Tried) -> None:
    tried.run("leave")
    assert "0 results" in tried.failure


@pytest.mark.parametrize("result", [None, [1], "done"])
def test_a_result_that_is_no_object_is_an_error(tried: Tried, result: object) -> None:
    tried.run("return", result=result)
    assert "results" in tried.failure


def test_a_task_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    spec = {"act": "sleep", "pid_file": str(pid_file)}
    task = Task(MODULE, spec, tmp_path / "staging").write_spec()
    worker = [sys.executable, "-m", "trade_pipeline.compute.worker", str(task)]
    starter = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({worker!r})"], cwd=ROOT
    )
    try:
        _wait_for(pid_file)
    finally:
        starter.kill()
        starter.wait()
    child = int(pid_file.read_text(encoding="utf-8"))
    limit = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < limit, f"process {child} outlives its parent"
        time.sleep(0.1)


def test_a_task_whose_module_is_still_imported_ends_as_well(tmp_path: Path) -> None:
    (tmp_path / "imported_for_long.py").write_text(f"import time; time.sleep({10 * LONG_S})")
    task = Task("imported_for_long", {}, tmp_path / "staging").write_spec()
    gone = subprocess.Popen(["true"])
    gone.wait()
    worker = [sys.executable, "-m", "trade_pipeline.compute.worker", str(task)]
    done = subprocess.run(
        [*worker, "--parent", str(gone.pid)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        check=False,
    )
    assert done.returncode == 1
