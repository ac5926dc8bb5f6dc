"""The plan: which pods would be asked for, in which order, and what each would cost.

Pure: prices, volumes and environment come in, requests go out; nothing is asked of RunPod. Start
at `plan`. Names of jobs and pods are made here too, and nowhere else.
"""

import difflib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trade_pipeline.compute.runpod.api import GpuOffer, PodRequest, Volume
from trade_pipeline.compute.runpod.errors import RunPodError
from trade_pipeline.compute.runpod.lease import Intent
from trade_pipeline.settings.compute import (
    SECRET_REFERENCE,
    RunPodComputeSettings,
    S3Exchange,
    VolumeExchange,
)
from trade_pipeline.storage.documents import json_hash

# What a task is does not depend on where it stages, on who asked for it, or on how often it saves.
NOT_IDENTITY = ("staging", "provenance", "store", "save_every_s")
DISK_USD_GB_MONTH = 0.10  # of a running pod's container disk, by RunPod's price list
HOURS_A_MONTH = 730.0
VOLUME_STEP_GB = 1000  # the price of a network volume falls above
VOLUME_ALERT_GB = 900
REDACTED = "<redacted>"
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|AUTH|^DAGSTER_PIPES_", re.I)
_LOGIN_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")


class PlanError(RunPodError):
    """The settings ask for something that cannot be had from RunPod; nothing was asked for."""


@dataclass(frozen=True)
class Plan:
    """One candidate: a pod that may be asked for.

    Attributes:
        usd_h: dollars an hour, GPU and disk: more than this is not approved.
        hours: planned.
        payload: what would be sent, without secrets.
        note: what is known against the candidate; empty where nothing is.
    """

    request: PodRequest
    usd_h: float
    hours: float
    payload: dict[str, Any]
    note: str

    @property
    def estimate_usd(self) -> float:
        """Dollars for the planned hours."""
        return self.usd_h * self.hours

    def intent(self, deployment: str, job: str, run: str, root_run: str = "") -> Intent:
        """What a budget has to approve before the pod is asked for."""
        return Intent(
            name=self.request.name,
            job=job,
            run=run,
            deployment=deployment,
            gpu=self.request.gpu,
            approved_usd_h=self.usd_h,
            hours=self.hours,
            root_run=root_run,
        )


def plan(
    settings: RunPodComputeSettings,
    *,
    name: str,
    args: Sequence[str],
    env: Mapping[str, str],
    offers: Sequence[GpuOffer],
    volumes: Sequence[Volume],
    payload: Callable[[PodRequest], dict[str, Any]],
    secrets: Collection[str] = (),
) -> list[Plan]:
    """Candidates in the order in which they are tried: as in the settings, unavailable ones last.

    The catalogue lags, so what it says is not to be had is tried all the same: it costs nothing.

    Args:
        settings: of the compute.
        name: of the pod, by `pod_name`.
        args: the command, such as `supervisor_command`'s.
        env: environment beside that of the settings, and before it.
        offers: the GPU catalogue.
        volumes: of the account.
        payload: what is sent for a request, such as `RunPodApi.payload`.
        secrets: values of the host that no pod may get, such as the API key.

    Raises:
        PlanError: a GPU or volume that RunPod does not have, a data center that is not the
            volume's, or a secret in environment or command.
    """
    volume = volume_of(settings, volumes)
    data_center = volume.data_center if volume else settings.data_center
    environment = {**settings.pod_environment, **env}
    _refuse_secrets(environment, args, secrets)
    plans = []
    for gpu in settings.gpus:
        offer = _offer(gpu, offers)
        request = PodRequest(
            name=name,
            image=settings.image,
            gpu=offer.id,
            cuda=settings.cuda,
            cloud=settings.cloud,
            data_centers=(data_center,) if data_center else (),
            disk_gb=settings.disk_gb,
            args=tuple(args),
            env=environment,
            volume=_mount(settings),
        )
        usd_h = offer.price_usd_h + disk_usd_h(settings.disk_gb)
        gone = offer.availability == "NONE"
        plans.append(
            Plan(
                request=request,
                usd_h=usd_h,
                hours=settings.hours,
                payload=redacted(payload(request), secrets),
                note="RunPod's catalogue says that none is available; tried last." if gone else "",
            )
        )
    return sorted(plans, key=lambda one: bool(one.note))  # which keeps the order otherwise


def supervisor_command(settings: RunPodComputeSettings, job: str, name: str) -> tuple[str, ...]:
    """What a pod runs for a job, from an image that has the package."""
    exchange = settings.exchange
    place: tuple[str, ...]
    if isinstance(exchange, S3Exchange):
        uri = "/".join(filter(None, (f"s3://{exchange.bucket}", exchange.prefix)))
        place = ("--s3", uri, "--s3-region", exchange.region)
        place += () if exchange.url is None else ("--s3-url", exchange.url)
    else:
        place = ("--root", f"{exchange.mount.rstrip('/')}/trade_pipeline")
    module = "trade_pipeline.compute.runpod.supervisor"
    return ("python", "-m", module, *place, "--job", job, "--attempt", name)


def identity(module: str, spec: Mapping[str, Any]) -> str:
    """What a task is, whoever runs it where: 16 hex digits; its checkpoints and pods carry them."""
    kept = {key: value for key, value in spec.items() if key not in NOT_IDENTITY}
    return json_hash({"module": module, "spec": kept})[:16]


def pod_name(deployment: str, job: str, run: str, attempt: int) -> str:
    """Name of a pod, nobody else's: `tp-<deployment>-<job, 8>-<run, 8>-<attempt>`."""
    return f"tp-{deployment}-{job[:8]}-{run[:8]}-{attempt}"


def is_ours(name: str, deployment: str) -> bool:
    """Whether `pod_name` made this name for this deployment; nobody may touch another pod.

    >>> is_ours(pod_name("main", "0123456789abcdef", "5d3f9a1c-aaaa", 1), "main")
    True
    >>> is_ours("tp-main-notebook", "main")
    False
    """
    pattern = rf"tp-{re.escape(deployment)}-[0-9a-f]{{8}}-[0-9A-Za-z]{{1,8}}-[0-9]+"
    return re.fullmatch(pattern, name) is not None


def redacted(payload: Any, secrets: Collection[str] = ()) -> Any:
    """A copy of a JSON value without secrets, for files, logs and metadata.

    Hidden are values whose name looks secret, the bootstrap of Dagster Pipes, logins in URLs, and
    the given secrets wherever they stand, also in JSON inside a string. References to RunPod's own
    secrets stay: they are names.
    """
    known = [secret for secret in secrets if secret]
    if isinstance(payload, Mapping):
        named: dict[str, str] = {}
        label = "key" if "key" in payload else "name"
        if label in payload and "value" in payload:  # a pair, as GraphQL has environments
            named = {label: "", "value": str(payload[label])}
        return {
            _text(str(key), known): _hidden(named.get(str(key), str(key)), value, known)
            for key, value in payload.items()
        }
    if isinstance(payload, list | tuple):
        return [redacted(value, known) for value in payload]
    return _text(payload, known) if isinstance(payload, str) else payload


def _hidden(name: str, value: Any, secrets: list[str]) -> Any:
    """A value by the name that it has."""
    if isinstance(value, str) and SECRET_REFERENCE.fullmatch(value):
        return value
    if _SECRET_NAME.search(name) and not (value is None or isinstance(value, bool)):
        return REDACTED
    return redacted(value, secrets)


def _text(text: str, secrets: list[str]) -> str:
    if text[:1] in ("{", "["):
        with suppress(ValueError):  # no JSON after all
            found = json.loads(text)
            shown = redacted(found, secrets)
            if shown != found:
                return json.dumps(shown)
    for secret in secrets:
        text = text.replace(secret, REDACTED)
    return _LOGIN_IN_URL.sub(REDACTED, text)


def disk_usd_h(disk_gb: float) -> float:
    """Dollars an hour for the container disk of a running pod."""
    return DISK_USD_GB_MONTH * disk_gb / HOURS_A_MONTH


def volume_usd_month(size_gb: float) -> float:
    """Dollars a month for a network volume, by its allocated size.

    >>> volume_usd_month(1500)
    95.0
    """
    return 0.07 * min(size_gb, VOLUME_STEP_GB) + 0.05 * max(size_gb - VOLUME_STEP_GB, 0)


def volume_alert(volume: Volume) -> str | None:
    """A warning where a volume comes near 1 TB; None below."""
    if volume.size_gb < VOLUME_ALERT_GB:
        return None
    return (
        f"Network volume {volume.name} ({volume.id}) has {volume.size_gb} GB allocated, "
        f"{volume_usd_month(volume.size_gb):.2f} USD a month whether it is full or not. "
        "A volume can only grow: to pay less, copy what is needed to a smaller one and delete it."
    )


def _offer(gpu: str, offers: Sequence[GpuOffer]) -> GpuOffer:
    by_id = {offer.id: offer for offer in offers}
    if gpu in by_id:
        return by_id[gpu]
    lower = {known.lower(): known for known in by_id}
    close = [lower[one] for one in difflib.get_close_matches(gpu.lower(), lower, n=3, cutoff=0.3)]
    raise PlanError(
        f"Key 'gpus': RunPod's catalogue has no GPU type {gpu!r} with a price. "
        + (f"The closest are {', '.join(map(repr, close))}." if close else f"It has {list(by_id)}.")
    )


def volume_of(settings: RunPodComputeSettings, volumes: Sequence[Volume]) -> Volume | None:
    """The volume that the settings name, or None where the exchange is none. Raises `PlanError`."""
    exchange = settings.exchange
    if not isinstance(exchange, VolumeExchange):
        return None
    for volume in volumes:
        if volume.id != exchange.id:
            continue
        wanted = settings.data_center
        if wanted and wanted.lower() != volume.data_center.lower():
            raise PlanError(
                f"Key 'data_center' is {wanted}, but volume {volume.id} lies in "
                f"{volume.data_center}, and a pod mounts volumes of its own data center only; "
                "leave the key out, or name a volume that lies there."
            )
        return volume
    known = ", ".join(f"{one.id} ({one.name}, {one.data_center})" for one in volumes)
    raise PlanError(
        f"Key 'exchange.id': the account has no network volume {exchange.id}; "
        + (f"it has {known}." if known else "it has none at all; make one in RunPod's console.")
    )


def _mount(settings: RunPodComputeSettings) -> tuple[str, str] | None:
    exchange = settings.exchange
    return (exchange.id, exchange.mount) if isinstance(exchange, VolumeExchange) else None


def _refuse_secrets(
    environment: Mapping[str, str], args: Sequence[str], secrets: Collection[str]
) -> None:
    known = [secret for secret in secrets if secret]
    for where, text in [*environment.items(), *(("the command", arg) for arg in args)]:
        if any(secret in text for secret in known):
            raise PlanError(
                f"A secret of this machine stands in {where} of the pod, where others can read it; "
                "store it as a RunPod secret and refer to it by '{{ RUNPOD_SECRET_name }}'."
            )
