"""A host whose compute is RunPod's stand-in, whatever it has run there.

Start at `RemoteHost`; `errands` has it run a small task, `remotes` a training.
"""

import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.connection import utc_now
from trade_pipeline.compute.runpod.lease import imbalances
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.storage import layout
from trade_pipeline_tests.fakes.runpod import FakeRunPod


@contextmanager
def served(root: Path) -> Iterator[FakeRunPod]:
    """RunPod with this process as its customer; no pod may look into the customer's folders."""
    forbidden = [root / "project", root / "host"]
    with FakeRunPod(forbidden=forbidden) as fake, pytest.MonkeyPatch.context() as environment:
        for name, value in fake.environment.items():
            environment.setenv(name, value)
        yield fake
        assert fake.leaks == []
        assert fake.unexpected == []
        assert fake.faults.unused == []


class RemoteHost(ABC):
    """A host with its store and ledger, and the RunPod that it talks to.

    Attributes:
        settings: of the compute.
        local_version: of the result as this machine makes it.
    """

    local_version: str | None

    def __init__(self, fake: FakeRunPod, store: Path, settings: dict[str, Any]) -> None:
        self.fake, self.store, self.settings = fake, store, settings

    @abstractmethod
    def run(self, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
        """Have it run, in this process."""

    @abstractmethod
    def started(self, home: Path) -> "subprocess.Popen[str]":
        """A run in a process of its own, which may be killed."""

    @property
    @abstractmethod
    def version(self) -> str | None:
        """Of the result that was committed last."""

    def failure_of(self, instance: dg.DagsterInstance) -> str:
        """The sentence that a run fails with."""
        outcome = self.run(instance)
        assert not outcome.success
        (failed,) = [event for event in outcome.all_events if event.is_step_failure]
        said = failed.step_failure_data.user_failure_data
        assert said is not None
        return str(said.description)

    @property
    def ledger(self) -> Ledger:
        """Of this host."""
        return Ledger(layout.leases(self.store), utc_now)

    @property
    def volume_folder(self) -> Path:
        """Files of the volume."""
        (volume,) = self.fake.volumes.values()
        return volume.path

    def beats(self) -> bool:
        """Whether a pod has begun its task."""
        return bool(self.on_volume("jobs/*/*/heartbeat.json"))

    def has_result(self) -> bool:
        """Whether a pod has left its exit record."""
        return bool(self.on_volume("jobs/*/*/exit.json"))

    def on_volume(self, pattern: str) -> list[Path]:
        """Files below the exchange's root, while pods and S3 make and remove others."""
        try:
            return list((self.volume_folder / "trade_pipeline").glob(pattern))
        except FileNotFoundError:  # of a folder that went while it was looked at
            return []

    def require_balance(self) -> None:
        """No pod is left, and the ledger says what RunPod would."""
        assert self.fake.live == []
        leases = self.ledger.leases()
        assert imbalances(leases, []) == []
        known = {lease.pod_id for lease in leases if lease.pod_id}
        assert known == {charge.pod_id for charge in self.fake.charges}
        assert not [lease for lease in leases if lease.is_open]

    def when(self, holds: Callable[[], bool], do: Callable[[], None]) -> None:
        """Do something, once, as soon as something holds; from a thread of its own."""

        def wait() -> None:
            while not holds():
                time.sleep(0.02)
            do()

        threading.Thread(target=wait, daemon=True).start()
