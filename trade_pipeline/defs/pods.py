"""Pods beside Dagster: whose they are, what became of their runs, and the sensor that reaps them.

What one host may touch is a deployment: every compute file that puts the same name into its pods,
with one ledger and one account. `build_pods` makes all definitions that a project with RunPod
adds; loading them asks nothing of RunPod. `reap_deployment` is one round, also outside the daemon.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition,
)

from trade_pipeline.compute.runpod.api import RunPodApi
from trade_pipeline.compute.runpod.connection import API_KEY, Connection, connect
from trade_pipeline.compute.runpod.errors import ExchangeError, PodMayStillBeBilling, RunPodError
from trade_pipeline.compute.runpod.exchange import heartbeat_at
from trade_pipeline.compute.runpod.ledger import Ledger
from trade_pipeline.compute.runpod.reaper import Reaped, RunState, reap
from trade_pipeline.defs.pod_costs import build_pod_assets
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import is_locked

INTERVAL_S = 60
TICK_S = 40.0  # of waiting for a round; Dagster ends a tick after a minute
ENDED = frozenset(
    {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
)


@dataclass(frozen=True)
class Deployment:
    """All computes whose pods carry one name, since a pod does not tell which of them made it.

    Attributes:
        name: in each pod's name.
        connections: by file of `configs/compute`; they share account and ledger.
    """

    name: str
    connections: Mapping[str, Connection]

    @property
    def api(self) -> RunPodApi:
        """RunPod."""
        return next(iter(self.connections.values())).api

    @property
    def ledger(self) -> Ledger:
        """Leases of this host."""
        return next(iter(self.connections.values())).ledger

    @property
    def store(self) -> Path:
        """Folder of this host's artefacts."""
        return next(iter(self.connections.values())).store


def runpod_computes(project: Project) -> dict[str, RunPodComputeSettings]:
    """The files of `configs/compute` that are of kind runpod, by name."""
    return {
        name: settings
        for name, settings in project.compute.items()
        if isinstance(settings, RunPodComputeSettings)
    }


def deployments(
    computes: Mapping[str, RunPodComputeSettings], store: Path, environment: Mapping[str, str]
) -> list[Deployment]:
    """Computes by the name that their pods carry; nothing is asked of RunPod yet.

    Raises:
        AccessDenied: there is no API key.
        LedgerError: the ledger cannot be used.
    """
    grouped: dict[str, dict[str, Connection]] = defaultdict(dict)
    for name, settings in computes.items():
        grouped[settings.deployment][name] = connect(settings, store, environment)
    return [Deployment(name, connections) for name, connections in grouped.items()]


def run_states(instance: dg.DagsterInstance, runs: Collection[str]) -> dict[str, RunState]:
    """What became of Dagster's runs; a run that the instance does not have is unknown."""
    wanted = sorted(set(runs) - {""})
    known = instance.get_runs(dg.RunsFilter(run_ids=wanted)) if wanted else []
    states: dict[str, RunState] = dict.fromkeys(wanted, "unknown")
    for run in known:
        states[run.run_id] = "ended" if run.status in ENDED else "running"
    return states


class Heartbeats:
    """When a pod last said that it works, by the exchanges of its deployment.

    An exchange that failed is not asked again: each attempt may take half a minute.

    Attributes:
        failures: why an exchange could not be read, by compute.
    """

    def __init__(self, connections: Mapping[str, Connection]) -> None:
        self._connections = connections
        self.failures: dict[str, str] = {}

    def __call__(self, pod: str, job: str) -> datetime | None:
        """The last one of a pod, None where there was none yet.

        Raises:
            ExchangeError: none was found, and not every exchange could be read.
        """
        beats = []
        for name, connection in self._connections.items():
            if name in self.failures:
                continue
            try:
                beat = heartbeat_at(connection.objects, pod, job)
            except RunPodError as error:  # also: no S3 key, or no such volume
                self.failures[name] = str(error)
                continue
            beats += [] if beat is None else [beat]
        if not beats and self.failures:
            raise ExchangeError(
                f"Whether pod {pod} works is not known, since heartbeats could not be read: "
                + " ".join(self.failures.values())
            )
        return max(beats, default=None)


def reap_deployment(
    deployment: Deployment,
    states: Mapping[str, RunState],
    heartbeats: Heartbeats,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Reaped]:
    """One round of the reaper.

    Args:
        deployment: whose pods may be touched.
        states: of the runs of all open leases; a lease that came in meanwhile is running.
        heartbeats: of its pods.
        sleep: waits, in seconds.

    Raises:
        RunPodError: RunPod's pods cannot be listed, or the ledger cannot be used.
    """
    return reap(
        deployment.api,
        deployment.ledger,
        deployment.name,
        lambda run: states.get(run, "running"),
        lambda: datetime.now(UTC),
        heartbeat=heartbeats,
        waited_for=lambda job: is_locked(layout.pod_lock(deployment.store, job)),
        sleep=sleep,
    )


def told(reaped: Reaped) -> str:
    """What was done about a pod, as a line."""
    pod = f" (pod {reaped.pod_id})" if reaped.pod_id else ""
    cost = "" if reaped.cost_usd is None else f"; it cost {reaped.cost_usd:.4f} USD"
    if reaped.error is not None:
        return f"failed: {reaped.name}{pod}: {type(reaped.error).__name__}: {reaped.reason}"
    return f"{reaped.outcome}: {reaped.name}{pod}: {reaped.reason}{cost}"


class PodDefinitions(NamedTuple):
    """What a project with a runpod compute adds; all empty for one without."""

    assets: Sequence[dg.AssetsDefinition] = ()
    checks: Sequence[dg.AssetChecksDefinition] = ()
    jobs: Sequence[UnresolvedAssetJobDefinition] = ()
    schedules: Sequence[dg.ScheduleDefinition] = ()
    sensors: Sequence[dg.SensorDefinition] = ()


def build_pods(project: Project, store: Path) -> PodDefinitions:
    """Assets, check, job, schedule and sensor over the pods of a project."""
    computes = runpod_computes(project)
    if not computes:
        return PodDefinitions()
    built = build_pod_assets(computes, project.experiments)
    return PodDefinitions(
        assets=[built.costs, built.storage],
        checks=[built.check],
        jobs=[built.job],
        schedules=[built.schedule],
        sensors=[build_reaper(computes, store)],
    )


def build_reaper(
    computes: Mapping[str, RunPodComputeSettings],
    store: Path,
    sleep: Callable[[float], None] = time.sleep,
    tick_s: float = TICK_S,
) -> dg.SensorDefinition:
    """The sensor that ends pods which nobody needs.

    A round may take longer than a tick, when RunPod answers slowly or a pod resists: it goes on in
    its thread, and a later tick tells of it.

    Args:
        computes: files of `configs/compute` of kind runpod, by name.
        store: folder of this host's artefacts.
        sleep: waits between attempts to end a pod, in seconds.
        tick_s: how long a tick waits for a round.
    """
    unfinished: list[Future[_Round]] = []

    @dg.sensor(
        name="pods_reaper",
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Ends pods on RunPod whose run has ended, is unknown, or has gone silent.",
    )
    def pods_reaper(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        if not os.environ.get(API_KEY):
            return dg.SkipReason(
                f"{API_KEY} is not set, so no pod can be looked at: set it for the processes of "
                f"Dagster. Without RunPod, remove configs/compute/{min(computes)}.yaml or switch "
                "this sensor off."
            )
        if not unfinished:
            found = deployments(computes, store, os.environ)
            states = run_states(context.instance, _runs(found))
            unfinished.append(_started(lambda: _round(found, states, sleep)))
        wait(unfinished, timeout=tick_s)
        if not unfinished[0].done():
            return dg.SkipReason(
                f"Pods are still being looked at after {tick_s:g} s: RunPod answers slowly, or a "
                "pod resists its end. The next tick tells what came of it."
            )
        done = unfinished.pop().result()
        for line in done.lines:
            context.log.info(line)
        for line in done.failures:
            context.log.error(line)
        if done.failures:  # every pod was looked at before
            text = "\n".join([*done.failures, *done.lines])
            raise (
                RunPodError(text)
                if done.billing is None
                else PodMayStillBeBilling(text, done.billing)
            )
        return dg.SkipReason("\n".join(done.lines) or "No pod lives that nobody needs.")

    return pods_reaper


class _Round(NamedTuple):
    """What a round did to all deployments, what failed, and a pod that may still be billing."""

    lines: list[str]
    failures: list[str]
    billing: str | None


def _round(
    found: Sequence[Deployment], states: Mapping[str, RunState], sleep: Callable[[float], None]
) -> _Round:
    lines: list[str] = []
    failures: list[str] = []
    billing: str | None = None
    for deployment in found:
        heartbeats = Heartbeats(deployment.connections)
        try:
            reaped = reap_deployment(deployment, states, heartbeats, sleep)
        except RunPodError as error:
            failures.append(f"deployment {deployment.name}: {type(error).__name__}: {error}")
            continue
        for one in (one for one in reaped if one.outcome != "young"):  # the next tick is soon
            (lines if one.error is None else failures).append(told(one))
            if isinstance(one.error, PodMayStillBeBilling):
                billing = one.error.pod_id
        lines += [
            f"heartbeats of compute {name} could not be read: {why}"
            for name, why in heartbeats.failures.items()
        ]
    return _Round(lines, failures, billing)


def _runs(found: Sequence[Deployment]) -> set[str]:
    """Runs that open leases wait for."""
    return {lease.run for one in found for lease in one.ledger.open(one.name)}


def _started(work: Callable[[], _Round]) -> "Future[_Round]":
    """Work in a thread that keeps no process alive."""
    future: Future[_Round] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="pods_reaper", daemon=True).start()
    return future
