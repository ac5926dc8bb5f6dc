"""Pods for tests: the real supervisor in a process of its own, on a folder or a bucket."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation

JOB = "0123456789abcdef"
NAME = "tp-main-01234567-5d3f9a1c-1"
MODULE = "trade_pipeline_tests.compute.runpod.pod_tasks"
SUPERVISOR = "trade_pipeline.compute.runpod.supervisor"
PROJECT = Path(__file__).resolve().parents[3]
STAGING = "staging/policy-0011"
LIMIT_S = 120.0
ENVIRONMENT = {
    "TRADE_PIPELINE_HEARTBEAT_S": "0.2",
    "TRADE_PIPELINE_GRACE_S": "1",
    "TRADE_PIPELINE_AGAIN_S": "0.5",
    "TRADE_PIPELINE_DELIVER_S": "5",
}


@dataclass
class Pod:
    """What the host wrote for a pod, and what can be done with the pod."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    place: tuple[str, ...] = ()
    name: str = NAME
    prefix: tuple[str, ...] = ()  # before the command
    processes: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.root / "store"

    @property
    def folder(self) -> Path:
        return self.root / "jobs" / JOB / self.name

    def told(self, act: str, spec: dict[str, Any] | None = None, **changes: Any) -> "Pod":
        """Write `task.json`; `changes` are keys of it."""
        self.store.mkdir(parents=True, exist_ok=True)
        (self.root / "jobs" / JOB).mkdir(parents=True, exist_ok=True)
        content = json.dumps(described(act, spec, **changes))
        (self.root / "jobs" / JOB / "task.json").write_text(content, encoding="utf-8")
        return self

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        place = self.place or ("--root", str(self.root))
        given = arguments or (*place, "--job", JOB, "--attempt", self.name)
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("AWS_", "RUNPOD_", "DAGSTER_PIPES_", "TRADE_PIPELINE_"))
        }
        paths = [str(PROJECT), inherited.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", SUPERVISOR, *given],
            cwd=self.root.parent,
            env={
                **inherited,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **ENVIRONMENT,
                **self.environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def exit(self) -> dict[str, Any]:
        """Start it, and wait for its exit record; the pod sleeps then."""
        self.start()
        return self.record()

    def record(self) -> dict[str, Any]:
        """The exit record, once it is there."""
        found: dict[str, Any] = json.loads(self.appears(self.folder / "exit.json").read_bytes())
        return found

    def heartbeat(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "heartbeat.json").read_bytes())
        return found

    def messages(self) -> list[dict[str, Any]]:
        """All so far, in the order of the files."""
        files = sorted(self.folder.glob("messages/*.json"), key=lambda path: int(path.stem))
        assert [path.name for path in files] == [f"{n}.json" for n in range(1, len(files) + 1)]
        return [message for path in files for message in json.loads(path.read_bytes())]

    def runs(self) -> list[int]:
        """Process ids of the tasks that ran, in order."""
        file = self.store / "runs"
        return [int(line) for line in file.read_text("utf-8").split()] if file.exists() else []

    def appears(self, path: Path) -> Path:
        self.wait(path.exists, f"{path} does not appear")
        return path

    def wait(self, until: Callable[[], bool], said: str) -> None:
        limit = time.monotonic() + LIMIT_S
        while not until():
            last = self.processes[-1]
            if time.monotonic() > limit or (last.poll() is not None and not until()):
                last.kill()
                raise AssertionError(f"{said}; pod ended with {last.poll()}: {last.communicate()}")
            time.sleep(0.05)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
        """Send the last process a signal; its exit code, output and errors."""
        process = self.processes[-1]
        process.send_signal(number)
        output, errors = process.communicate(timeout=LIMIT_S)
        return process.returncode, output, errors

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.communicate(timeout=10)
            if process.poll() is None:
                process.kill()
                process.communicate()


def described(act: str, spec: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """The content of a `task.json`."""
    return {
        "module": MODULE,
        "spec": {"act": act, "store": "/of/the/host", **(spec or {})},
        "inputs": {},
        "wheel": None,
        "max_runtime_s": 60,
        "checkpoint": None,
        **changes,
    }


def an_input(pod: Pod) -> tuple[str, str]:
    """Key and version of a bundle in the pod's store."""
    staging = bundles.staging(pod.store, "dataset")
    (staging.path / "rows").write_text("1, 2, 3", encoding="utf-8")
    reference = bundles.seal(staging, ("rows",))
    location = bundles.commit(reference, ArtifactLocation(pod.store, "demo/dataset"))
    return location.key, reference.version


def a_wheel(root: Path) -> dict[str, str]:
    """A wheel that brings a task of its own."""
    key = "wheels/0123456789abcdef/brought-0.1-py3-none-any.whl"
    file = root / key
    file.parent.mkdir(parents=True)
    code = "def run(spec, report, clock):\n    return {'brought': __file__}\n"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("brought_task.py", code)
        info = "brought-0.1.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 0.1\n")
        wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")
    return {"key": key, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def pipes_environment(name: str = NAME) -> dict[str, str]:
    """What a host puts into a pod's environment for Dagster Pipes."""
    captured: dict[str, str] = {}

    class Reader(dg.PipesMessageReader):
        @contextlib.contextmanager
        def read_messages(self, handler: Any) -> Iterator[dict[str, str]]:
            yield {"folder": f"jobs/{JOB}/{name}/messages"}

        def no_messages_debug_text(self) -> str:
            return "nobody looks"

    @dg.asset
    def asked(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=Reader(),
        ) as session:
            captured.update(session.get_bootstrap_env_vars())
        return dg.MaterializeResult()

    dg.materialize([asked], instance=dg.DagsterInstance.ephemeral())
    return captured
