"""`trade-pipeline pods`: what lives on RunPod, what would be asked for, what nobody needs.

Secrets come from the environment and are never printed. Start at `pods`.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer

from trade_pipeline.settings.base import SettingsError, closest
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Places, Project, read_project
from trade_pipeline.storage.location import ArtifactLocation, StorageError

if TYPE_CHECKING:
    from trade_pipeline.compute.runpod.api import Pod
    from trade_pipeline.compute.runpod.connection import Connection
    from trade_pipeline.compute.runpod.lease import Lease
    from trade_pipeline.compute.runpod.plan import Plan
    from trade_pipeline.compute.runpod.reaper import Reaped, RunState
    from trade_pipeline.defs.pods import Deployment

DRY_RUN = "dryrun"  # stands for the id of the Dagster run, which a dry run has not
PIPES = ("DAGSTER_PIPES_CONTEXT", "DAGSTER_PIPES_MESSAGES")  # set for each run, and not shown
HEADER = ("pod", "name", "status", "lease", "run", "GPU", "up", "USD/h", "USD so far")

pods = typer.Typer(no_args_is_help=True, help="Pods on RunPod.")

ComputeOption = Annotated[
    str | None,
    typer.Option(help="File of configs/compute of kind runpod, without .yaml; default: all."),
]


class Row(NamedTuple):
    """A living pod beside its lease; a lease is None where the ledger knows none."""

    pod: "Pod"
    lease: "Lease | None"

    def up(self, now: datetime) -> timedelta:
        """For how long it has been paid."""
        return max(now - self.pod.created_at, timedelta())

    def usd(self, now: datetime) -> float:
        """Dollars until now."""
        if self.lease is not None:
            return self.lease.accrued_usd(now)
        return self.pod.cost_usd_h * (self.up(now) / timedelta(hours=1))


@pods.command("list")
def list_pods(compute: ComputeOption = None) -> None:
    """Pods of this deployment that live, what they cost, and leases whose pod is not there."""
    with _sentences():
        places, project = _project()
        now = datetime.now(UTC)
        for deployment in _deployments(places, project, compute):
            print(f"Deployment {deployment.name}, {now:%Y-%m-%d %H:%M} UTC")
            _show(deployment, now)


@pods.command()
def plan(
    experiment: Annotated[str, typer.Argument(help="Name of a file of configs/experiments.")],
    trial: Annotated[
        str | None, typer.Option(help="Such as base.f0.s0; default: the first.")
    ] = None,
    compute: Annotated[
        str | None,
        typer.Option(
            help="File of configs/compute of kind runpod, without .yaml; default: the "
            "experiment's, else the only one."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File for the JSON; default: printed.")] = None,
) -> None:
    """Show which pods a training would ask for, and what they would cost; asks for none.

    RunPod is asked for its catalogue and the account's volumes only. The JSON holds each
    candidate's exact request, in the order in which they are tried, without secrets.
    """
    with _sentences():
        places, project = _project()
        settings = project.experiments.get(experiment)
        if settings is None:
            known = closest(experiment, list(project.experiments))
            raise SettingsError(f"There is no experiment {experiment!r}.{known}")
        trials = list(settings.trials())
        chosen = trials[0] if trial is None else trial
        if chosen not in trials:
            raise SettingsError(f"{experiment} has no trial {chosen!r}.{closest(chosen, trials)}")
        name = _compute_of(project, settings, compute)
        document = dry_run(places, project, name, experiment, chosen)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if out is None:
        print(text)
    else:
        _write(out, text + "\n")
    print(_summary(document, None if out is None else str(out)), file=None if out else sys.stderr)
    if all(one["budget"] for one in document["candidates"]):
        raise typer.Exit(1)


@pods.command("reap")
def reap_pods(compute: ComputeOption = None) -> None:
    """End pods whose run has ended, is unknown, or has gone silent; exit code 1 if one resists."""
    from trade_pipeline.compute.runpod.errors import RunPodError
    from trade_pipeline.defs.pods import Heartbeats, reap_deployment, told

    failed = False
    with _sentences():
        places, project = _project()
        found = _deployments(places, project, compute)
        states = _states({one.run for each in found for one in each.ledger.open(each.name)})
    for deployment in found:
        heartbeats = Heartbeats(deployment.connections)
        try:
            reaped = reap_deployment(deployment, states, heartbeats)
        except RunPodError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            failed = True
            continue
        for name, why in heartbeats.failures.items():
            print(f"Heartbeats of compute {name} could not be read: {why}", file=sys.stderr)
        young = [one for one in reaped if one.outcome == "young"]
        for one in (one for one in reaped if one.outcome != "young"):
            print(told(one), file=None if one.error is None else sys.stderr)
            failed = failed or one.error is not None
        if young:
            print(f"Deployment {deployment.name}: {_left(young)}")
        if not reaped:
            print(f"Deployment {deployment.name}: no pod lives that nobody needs.")
    if failed:
        raise typer.Exit(code=1)


def dry_run(
    places: Places, project: Project, compute: str, experiment: str, trial: str
) -> dict[str, Any]:
    """What would be asked for to train a trial; enters nothing in the ledger.

    Args:
        places: of the deployment.
        project: what lies in its configs.
        compute: name of a file of kind runpod.
        experiment: name of the experiment.
        trial: one of its trials.

    Raises:
        RunPodError: RunPod has no such GPU or volume, or cannot be asked.
        SettingsError: the compute is none of RunPod's, or its wheel is not there.
        StorageError: the experiment has no dataset, which is part of what is trained.
    """
    from trade_pipeline.compute.runpod.connection import connect
    from trade_pipeline.compute.runpod.exchange import Exchange, code_of
    from trade_pipeline.compute.runpod.launch import Launch
    from trade_pipeline.compute.runpod.plan import identity
    from trade_pipeline.defs.trials import TRAINING_TASK, current_regime_model
    from trade_pipeline.storage import bundles, layout
    from trade_pipeline.training.specification import specification

    settings = _settings(project, compute)
    # As it would be asked for: where an experiment runs is part of its settings.
    asked = project.experiments[experiment].model_copy(update={"compute": compute})
    wheel = None if settings.wheel is None else project.base / settings.wheel
    if wheel is not None and not wheel.is_file():
        file = project.configs / "compute" / f"{compute}.yaml"
        raise SettingsError(f"{file}: key 'wheel': there is no file {wheel}; build it first.")
    dataset = bundles.current(layout.experiment_bundle(places.store, experiment, "dataset"))
    staging = ArtifactLocation(places.store, "staging/dry-run")  # is no part of what a task is
    regimes = current_regime_model(places.store, experiment, asked, asked.trials()[trial])
    spec = specification(experiment, asked, trial, dataset, staging, {}, regimes)
    job = identity(TRAINING_TASK, {**spec, "code": code_of(settings.image, wheel)})
    connection = connect(settings, places.store, os.environ)
    launch = Launch(connection, job, DRY_RUN, DRY_RUN)
    plans = launch.plans(launch.next_name(), dict.fromkeys(PIPES, ""))
    Exchange(connection.objects, job).heartbeat(launch.next_name())  # that it can be read at all
    return {
        "experiment": experiment,
        "trial": trial,
        "trials": len(asked.trials()),
        "compute": compute,
        "job": job,
        "volume": _volume(connection),
        "candidates": [_candidate(one, connection, job) for one in plans],
    }


def _volume(connection: "Connection") -> dict[str, Any] | None:
    """The network volume and its price, which is there whether a pod runs or not."""
    from trade_pipeline.compute.runpod.plan import volume_of, volume_usd_month

    volume = volume_of(connection.settings, connection.volumes)
    if volume is None:
        return None
    return {
        "id": volume.id,
        "data_center": volume.data_center,
        "size_gb": volume.size_gb,
        "usd_month": round(volume_usd_month(volume.size_gb), 2),
    }


def _candidate(plan: "Plan", connection: "Connection", job: str) -> dict[str, Any]:
    intent = plan.intent(connection.settings.deployment, job, DRY_RUN)
    return {
        "gpu": plan.request.gpu,
        "usd_h": round(plan.usd_h, 8),
        "hours": plan.hours,
        "disk_gb": plan.request.disk_gb,
        "estimate_usd": round(plan.estimate_usd, 8),
        "note": plan.note,
        "budget": connection.budget.examine(intent),
        "payload": plan.payload,
    }


def _summary(document: Mapping[str, Any], out: str | None) -> str:
    """The dry run in lines for people."""
    lines = [
        f"Job {document['job']}: {document['experiment']} {document['trial']} on compute "
        f"{document['compute']}. No pod was asked for, and the ledger is as it was."
    ]
    for number, one in enumerate(document["candidates"], start=1):
        lines.append(
            f"{number}. {one['gpu']}: {one['usd_h']:.4f} USD/h with {one['disk_gb']} GB of disk, "
            f"{one['estimate_usd']:.2f} USD for {one['hours']:g} h planned"
        )
        lines += [f"   {text}" for text in (one["note"], *one["budget"]) if text]
        if not one["budget"]:
            lines.append("   The budget allows it.")
    if document["volume"] is not None:
        volume = document["volume"]
        lines.append(
            f"Volume {volume['id']} ({volume['data_center']}, {volume['size_gb']} GB) costs "
            f"{volume['usd_month']:.2f} USD a month beside that."
        )
    if document["trials"] > 1:
        lines.append(f"{document['experiment']} has {document['trials']} trials, a pod each.")
    if out is not None:
        lines.append(f"The exact requests: {out}")
    return "\n".join(lines)


def _show(deployment: "Deployment", now: datetime) -> None:
    """One deployment's pods, leases without a pod, and totals."""
    from trade_pipeline.compute.runpod.plan import is_ours

    ledger = deployment.ledger
    listed = deployment.api.pods()
    ours = [pod for pod in listed if is_ours(pod.name, deployment.name)]
    rows = [Row(pod, ledger.of_pod(pod.id) or _intent(ledger.lease(pod.name))) for pod in ours]
    if rows:
        print(aligned([HEADER, *(_cells(row, now) for row in rows)]))
    known = {pod.id for pod in ours} | {pod.name for pod in ours}
    for lease in ledger.open(deployment.name):
        if lease.pod_id not in known and lease.name not in known:
            print(
                f"{lease.name}: {lease.state} since {lease.asked_at:%Y-%m-%d %H:%M} UTC, and "
                f"RunPod lists no pod of it{f' ({lease.pod_id})' if lease.pod_id else ''}; "
                "`trade-pipeline pods reap` settles that."
            )
    hourly = sum(row.pod.cost_usd_h for row in rows)
    costs = sum(row.usd(now) for row in rows)
    today = ledger.spent_of_day(deployment.name, now.date())
    print(
        f"{_counted(len(rows), 'pod')}, {hourly:.2f} USD/h, {costs:.4f} USD so far; counted for "
        f"today (UTC) with planned hours: {today:.2f} USD"
    )
    if len(listed) > len(ours):
        others = _counted(len(listed) - len(ours), "other pod")
        print(f"{others} of the account: not this deployment's, and never touched.")


def _left(young: Sequence["Reaped"]) -> str:
    """What was not reaped yet, and when it will be."""
    last = max(one.grace_until for one in young if one.grace_until is not None)
    are = "is" if len(young) == 1 else "are"
    return (
        f"left {_counted(len(young), 'pod')} that no known run waits for and that {are} younger "
        f"than ten minutes; reap again after {last:%H:%M:%S} UTC."
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _intent(lease: "Lease | None") -> "Lease | None":
    """A lease by its pod's name counts only while it waits to hear of a pod."""
    return lease if lease is not None and lease.pod_id is None else None


def _cells(row: Row, now: datetime) -> tuple[str, ...]:
    pod, lease = row
    minutes = int(row.up(now) / timedelta(minutes=1))
    return (
        *(pod.id, pod.name, pod.status),
        *((lease.state, lease.run or "none", lease.gpu or "?") if lease else ("none", "?", "?")),
        f"{minutes // 60}:{minutes % 60:02d}",
        f"{pod.cost_usd_h:.4f}",
        f"{row.usd(now):.4f}",
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, two spaces between columns.

    >>> print(aligned([("pod", "USD"), ("a", "0.5")]))
    pod  USD
    a    0.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _states(runs: set[str]) -> "dict[str, RunState]":
    """What became of the runs by Dagster's instance; all unknown where it cannot be reached."""
    import dagster as dg

    from trade_pipeline.defs.pods import run_states

    try:
        return run_states(dg.DagsterInstance.get(), runs)
    except Exception as error:  # whatever its storage raises
        print(
            "Dagster's instance cannot be reached, so every run counts as unknown, and pods older "
            f"than ten minutes are ended; DAGSTER_HOME says where it is ({error}).",
            file=sys.stderr,
        )
        return dict.fromkeys(runs, "unknown")


def _project() -> tuple[Places, Project]:
    places = Places.from_environment(os.environ)
    return places, read_project(places.configs)


def _deployments(places: Places, project: Project, compute: str | None) -> "list[Deployment]":
    """All deployments, or that of one compute. Raises `SettingsError` where there is none."""
    from trade_pipeline.defs.pods import deployments, runpod_computes

    computes = runpod_computes(project)
    if not computes:
        raise SettingsError(
            f"{project.configs / 'compute'}: no file is of kind runpod; write one, as in "
            "docs/runpod.md."
        )
    if compute is not None:
        name = _settings(project, compute).deployment
        computes = {key: one for key, one in computes.items() if one.deployment == name}
    return deployments(computes, places.store, os.environ)


def _compute_of(project: Project, experiment: ExperimentSettings, compute: str | None) -> str:
    """The compute of a dry run. Raises `SettingsError` where it is not clear."""
    from trade_pipeline.defs.pods import runpod_computes

    known = list(runpod_computes(project))
    if compute is not None:
        return compute
    if experiment.compute in known or len(known) == 1:
        return experiment.compute if experiment.compute in known else known[0]
    raise SettingsError(
        f"{project.configs / 'compute'}: {len(known)} files are of kind runpod {known}, and the "
        f"experiment has compute {experiment.compute}; name one with --compute."
    )


def _settings(project: Project, compute: str) -> RunPodComputeSettings:
    """One compute by name. Raises `SettingsError` where it is none of RunPod's."""
    from trade_pipeline.defs.pods import runpod_computes

    found = project.compute.get(compute)
    if isinstance(found, RunPodComputeSettings):
        return found
    known = closest(compute, list(runpod_computes(project)))
    raise SettingsError(
        f"{project.configs / 'compute'}: {compute!r} is no file of kind runpod.{known}"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        _stop(f"{path}: cannot be written ({error}); name another file with --out.")


@contextmanager
def _sentences() -> Iterator[None]:
    """Print what is wrong and exit with 1."""
    from trade_pipeline.compute.runpod.errors import RunPodError

    try:
        yield
    except (RunPodError, SettingsError, StorageError) as error:
        _stop(error)


def _stop(error: Exception | str) -> NoReturn:
    print(error, file=sys.stderr)
    raise typer.Exit(code=1)
