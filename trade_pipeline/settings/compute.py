"""Where tasks run: `configs/compute/<name>.yaml`, `kind: local` or `kind: runpod`.

Secrets are no settings: `RUNPOD_API_KEY` and the S3 key pair come from the environment.
"""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from trade_pipeline.settings.base import (
    Settings,
    SettingsError,
    closest,
    parse_settings,
    read_yaml,
)

SECRET_REFERENCE = re.compile(r"\{\{ RUNPOD_SECRET_[A-Za-z0-9_]+ \}\}")
_DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")

Positive = Annotated[float, Field(gt=0)]


class LocalComputeSettings(Settings):
    """A subprocess on the machine that runs Dagster."""

    remote: ClassVar[bool] = False

    kind: Literal["local"]
    timeout_s: Positive = Field(
        default=86_400, description="A task that runs longer is ended and fails."
    )


class VolumeExchange(Settings):
    """Host and pod meet on a RunPod network volume: the pod mounts it, the host uses its S3."""

    kind: Literal["volume"]
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = Field(
        description="Network volume; its data center is the pod's."
    )
    mount: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+/?$")] = Field(
        default="/workspace", description="Where the pod sees the volume."
    )


class S3Exchange(Settings):
    """Host and pod meet in a bucket of any S3; both need credentials of their own for it."""

    kind: Literal["s3"]
    bucket: Annotated[str, Field(min_length=1)]
    prefix: str = "trade-pipeline"
    region: str = "us-east-1"
    url: str | None = Field(default=None, description="Endpoint of an S3 that is not AWS's.")


class BudgetSettings(Settings):
    """What all pods of one deployment may cost; checked before each pod is asked for."""

    run_usd: Positive = Field(description="One run, with its resumed pods.")
    day_usd: Positive = Field(description="All runs of one UTC day, planned hours included.")
    hourly_usd: Positive = Field(description="All live pods together, in an hour.")
    pods: Annotated[int, Field(ge=1)] = Field(description="Live pods at once.")


class RunPodComputeSettings(Settings):
    """A GPU pod on RunPod for each task; it is terminated when the task has ended."""

    remote: ClassVar[bool] = True

    kind: Literal["runpod"]
    image: Annotated[str, Field(min_length=1)] = Field(
        description="Container image, pinned by digest unless a wheel is given."
    )
    wheel: str | None = Field(
        default=None,
        description="Development: this wheel is put on the exchange and installed in the pod "
        "after its SHA-256 was compared. Relative to the folder that holds `configs`.",
    )
    gpus: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="GPU types, tried in this order."
    )
    cuda: tuple[Annotated[str, Field(pattern=r"^\d+\.\d+$")], ...] = Field(
        min_length=1, description="CUDA versions that a host may have; the image needs one."
    )
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    data_center: str | None = Field(
        default=None, description="Of the pod; a volume's own where the exchange is a volume."
    )
    exchange: Annotated[VolumeExchange | S3Exchange, Field(discriminator="kind")]
    disk_gb: Annotated[int, Field(ge=5)] = 20
    hours: Positive = Field(description="Planned; a pod ends its task itself after so long.")
    start_minutes: Positive = Field(default=15, description="A pod that needs longer is given up.")
    idle_minutes: Positive = Field(
        default=10, description="Without heartbeat or log for so long, a pod counts as hung."
    )
    resumes: Annotated[int, Field(ge=0)] = Field(
        default=2, description="New pods after one was lost; they continue from its checkpoint."
    )
    budget: BudgetSettings
    deployment: Annotated[str, Field(pattern=r"^[a-z0-9]{1,12}$")] = Field(
        default="main", description="In each pod's name: what the reaper may touch."
    )
    pod_environment: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")], str] = Field(
        default_factory=dict,
        description="Environment of the pod. Secrets only as RunPod's own references, such as "
        "'{{ RUNPOD_SECRET_aws_key }}'.",
    )
    poll_s: Positive = Field(default=5, description="Seconds between looks at pod and exchange.")
    rest_url: str = "https://api.runpod.io/v2"
    graphql_url: str = "https://api.runpod.io"
    s3_url: str = Field(
        default="https://s3api-{data_center}.runpod.io/",
        description="S3 of a network volume; {data_center} in lower case.",
    )

    @field_validator("pod_environment")
    @classmethod
    def _only_references(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            looks_secret = re.search(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", name)
            if looks_secret and not SECRET_REFERENCE.fullmatch(value):
                raise ValueError(
                    f"{name} holds a secret in plain text; store it as a RunPod secret and write "
                    "'{{ RUNPOD_SECRET_name }}'"
                )
        return environment

    @field_validator("s3_url")
    @classmethod
    def _one_placeholder(cls, url: str) -> str:
        if re.search(r"[{}]", url.replace("{data_center}", "")):
            raise ValueError(f"{url!r} holds braces; only {{data_center}} is replaced")
        return url

    @model_validator(mode="after")
    def _fits(self) -> "RunPodComputeSettings":
        if self.wheel is None and not _DIGEST.search(self.image):
            raise ValueError(
                "key 'image' has no digest, so its content could change; write it as "
                "name@sha256:<64 hex digits>, or give a wheel while developing"
            )
        if isinstance(self.exchange, VolumeExchange) and self.cloud != "SECURE":
            raise ValueError("a network volume needs cloud: SECURE; community hosts mount none")
        return self


ComputeSettings = LocalComputeSettings | RunPodComputeSettings
_KINDS: dict[str, type[ComputeSettings]] = {
    "local": LocalComputeSettings,
    "runpod": RunPodComputeSettings,
}


def read_compute(path: Path) -> ComputeSettings:
    """Read one file of `configs/compute`. Raises `SettingsError`."""
    content = read_yaml(path)
    if not isinstance(content, dict) or "kind" not in content:
        raise SettingsError(f"{path}: key 'kind' is missing; add it: {' or '.join(_KINDS)}.")
    kind = str(content["kind"])
    if kind not in _KINDS:
        raise SettingsError(f"{path}: key 'kind' is {kind!r}.{closest(kind, list(_KINDS))}")
    # By its kind, not as a union: pydantic would put the kind before each key that it names.
    return parse_settings(content, _KINDS[kind], str(path))
