"""RunPod as a place where tasks run: one pod a task, and none left behind.

A task is sent to the exchange, a pod is asked for within the budget, followed, terminated, and its
bundle is fetched and compared with what the pod sealed. A run that was killed leaves a lease: the
next one takes its pod over, or its result, instead of paying twice. Start at
`RunPodCompute.run_task`; `launch` asks for pods, `follow` watches one.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from trade_pipeline.compute.base import Task
from trade_pipeline.compute.runpod.connection import Connection, connect, utc_now
from trade_pipeline.compute.runpod.errors import PodLost, RemoteTaskFailed, RunPodError
from trade_pipeline.compute.runpod.exchange import Exchange, ExitRecord, code_of
from trade_pipeline.compute.runpod.follow import Watch
from trade_pipeline.compute.runpod.launch import Launch
from trade_pipeline.compute.runpod.lease import Lease
from trade_pipeline.compute.runpod.ledger import LedgerError
from trade_pipeline.compute.runpod.pipes_reader import PodMessages
from trade_pipeline.compute.runpod.plan import identity
from trade_pipeline.compute.runpod.reaper import end_pod
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation

INTERRUPTED_WAITS_S = (0.5, 1.0, 2.0)  # a cancelled run has little time
REASON_CHARACTERS = 4000


class RunPodCompute(dg.ConfigurableResource[Any]):
    """A GPU pod for each task.

    Attributes:
        settings: `RunPodComputeSettings` as JSON.
        store: folder of this host's artefacts.
        base: folder that a wheel's path is relative to.
    """

    settings: str
    store: str
    base: str

    def run_task(self, context: dg.AssetExecutionContext, task: Task) -> dict[str, Any]:
        """See `ComputeResource.run_task`; `pod` of the result says what it cost.

        Raises:
            Failure: of Dagster, for the `RunPodError` that it names.
        """
        try:
            return self._run_task(context, task)
        except RunPodError as error:
            raise dg.Failure(
                description=f"{type(error).__name__}: {error}",
                metadata={"failure": type(error).__name__},
                allow_retries=error.allow_retries,
            ) from error

    def _run_task(self, context: dg.AssetExecutionContext, task: Task) -> dict[str, Any]:
        settings = RunPodComputeSettings.model_validate_json(self.settings)
        store = Path(self.store)
        wheel = None if settings.wheel is None else Path(self.base) / settings.wheel
        connection = connect(settings, store, os.environ)
        code = code_of(settings.image, wheel)
        job = identity(task.module, {**task.spec, "code": code})

        def waits() -> None:
            context.log.info(f"Waits: another run has a pod for this task (job {job}).")

        with frame_lock(layout.pod_lock(store, job), waits):
            exchange = Exchange(connection.objects, job)
            run = _Run(context, connection, exchange, task, wheel, store)
            target = ArtifactLocation(store, task.folder.relative_to(store).as_posix())
            result, lease = run.result(target)
        result["pod"] = run.figures(lease)
        return result


@dataclass
class _Run:
    """A task on its way through one pod, or through more where pods are lost."""

    context: dg.AssetExecutionContext
    connection: Connection
    exchange: Exchange
    task: Task
    wheel: Path | None
    store: Path

    def result(self, target: ArtifactLocation) -> tuple[dict[str, Any], Lease]:
        """What the task returned, its bundle in `target`, and the lease of its pod."""
        launch = Launch(self.connection, self.exchange.job, self._run_id, self._root_run)
        asked = self.task.spec["staging"]
        for record, lease in launch.finished_before(self.exchange, self._did_not_succeed):
            try:
                result = self.exchange.collect(record, target, asked)
            except RunPodError as error:
                self._say(f"Pod {lease.name} left a result that is not taken: {error}")
                continue
            self._say(
                f"Pod {lease.pod_id} ({lease.name}) had finished this very task for run "
                f"{lease.run[:8]}, which has not committed it; its result is taken and no new pod "
                "is asked for."
            )
            return result, lease
        record, lease = self.until_exit(launch)
        return self.exchange.collect(record, target, asked), lease

    def until_exit(self, launch: Launch) -> tuple[ExitRecord, Lease]:
        """The record of a task that ended well, and the lease of its pod."""
        lease = launch.left_behind()
        lost = 0
        while True:
            try:
                return self._one_pod(launch, lease)
            except PodLost as error:
                lost += 1
                if lost > self.connection.settings.resumes:
                    raise
                self._say(
                    f"{error}\nAsks for another pod ({lost} of {self.connection.settings.resumes})."
                )
                lease = None

    def figures(self, lease: Lease) -> dict[str, Any]:
        """What the run's pods cost, for the materialization."""
        paid = [
            one
            for one in self.connection.ledger.of_run(self._run_id)
            if one.job == self.exchange.job
        ]
        return {
            "pod": lease.pod_id,
            "gpu": lease.gpu,
            "pods": len([one for one in paid if one.pod_id is not None]),
            "cost_usd": round(sum(one.cost_usd or 0.0 for one in paid), 6),
        }

    def _one_pod(self, launch: Launch, lease: Lease | None) -> tuple[ExitRecord, Lease]:
        """Follow a pod, the given one or a new one, to its record."""
        settings = self.connection.settings
        name = launch.next_name() if lease is None else lease.name
        reader = PodMessages(self.exchange, name, settings.poll_s)
        with (
            dg.open_pipes_session(
                context=self.context,
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=reader,
            ) as session,
            self._ended(name, lease) as ended,
        ):
            if lease is None:
                self.exchange.send(self.task, 3600 * settings.hours, self.wheel)
                lease = launch.ask(name, session.get_bootstrap_env_vars(), self._say)
            else:
                self._say(f"Takes over pod {lease.pod_id} ({name}) of run {lease.run[:8]}.")
            assert lease.pod_id is not None
            ended.lease = lease
            self.context.log.info(
                f"Pod {lease.pod_id} ({name}) on {lease.gpu}, {lease.burn_usd_h:.4f} USD/h."
            )
            watch = Watch(
                self.connection.api, self.exchange, settings, name, lease.pod_id, self._line
            )
            record = watch.until_exit()
        if record.rc != 0:
            raise RemoteTaskFailed(
                f"The task ended in pod {lease.pod_id} ({name}) with code {record.rc}:\n"
                f"{record.reason[-REASON_CHARACTERS:]}{self._kept(record, name)}"
            )
        return record, ended.lease or lease

    def _kept(self, record: ExitRecord, name: str) -> str:
        """Fetch what a task had sealed before it failed, for people to look at."""
        if record.bundle_sha256 is None:
            return ""
        kept = layout.failed_bundle(self.store, name)
        try:
            self.exchange.collect(record, kept, self.task.spec["staging"])
        except RunPodError as error:
            return f"\nThe bundle that it had sealed cannot be fetched: {error}"
        return f"\nThe bundle that it had sealed is in {kept}."

    @contextmanager
    def _ended(self, name: str, lease: Lease | None) -> Iterator["_Ended"]:
        """However the block is left, no pod of this name goes on."""
        ended = _Ended(lease)
        try:
            yield ended
        except Exception as error:
            ended.lease = self._end(name, ended.lease, type(error).__name__)
            raise
        except BaseException:  # a cancelled run raises no Exception
            self._end(name, ended.lease, "the run was cancelled", INTERRUPTED_WAITS_S)
            raise
        else:
            ended.lease = self._end(name, ended.lease, "its task has ended")

    def _end(
        self, name: str, known: Lease | None, reason: str, waits_s: Sequence[float] | None = None
    ) -> Lease | None:
        try:
            lease = self.connection.ledger.lease(name)
            if lease is None and known is not None:
                raise LedgerError(
                    f"{self.connection.ledger.path}: knows nothing of pod {name}, which this run "
                    "has asked for; put the file back that was there when the run began."
                )
        except LedgerError:  # the pod must end whatever became of the ledger
            if known is not None and known.pod_id is not None:
                self.connection.api.terminate(known.pod_id)
                self._say(f"Pod {known.pod_id} ({name}) was asked to terminate.")
            raise
        if lease is None or not lease.is_open:
            return lease
        ended = end_pod(
            self.connection.api,
            self.connection.ledger,
            lease,
            reason,
            time.sleep,
            utc_now,
            waits_s=waits_s,
        )
        if ended.cost_usd is not None:
            self._say(
                f"Pod {ended.pod_id} ({name}) is terminated; it cost {ended.cost_usd:.4f} USD."
            )
        return ended

    def _did_not_succeed(self, run: str) -> bool:
        found = self.context.instance.get_run_by_id(run)
        return found is None or found.status != dg.DagsterRunStatus.SUCCESS

    def _line(self, line: str) -> None:
        self.context.log.info(f"pod: {line}")

    def _say(self, sentence: str) -> None:
        self.context.log.info(sentence)

    @property
    def _run_id(self) -> str:
        return self.context.run.run_id

    @property
    def _root_run(self) -> str:
        return self.context.run.root_run_id or self.context.run.run_id


@dataclass
class _Ended:
    """The lease of a pod after it was ended."""

    lease: Lease | None = None
