"""Answers of RunPod's REST v2 as they come over the wire, and as the project knows them.

Knows no HTTP and no errors. Start at `read`.
"""

import json
from datetime import UTC
from typing import Any, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from trade_pipeline.compute.runpod.api import Charge, GpuOffer, Pod, Status, Volume


class Wire(BaseModel):
    """Part of an answer; keys that nobody here needs may come and go."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class WireRuntime(Wire):
    """What runs in a pod."""

    uptime: float | None = None


class WirePod(Wire):
    """A pod."""

    id: str = Field(min_length=1)
    name: str
    status: Status
    cost: float = Field(ge=0)
    data_center: str | None = Field(default=None, alias="dataCenterId")
    created_at: AwareDatetime = Field(alias="createdAt")
    started_at: AwareDatetime | None = Field(default=None, alias="startedAt")
    runtime: WireRuntime | None = None

    def plain(self) -> Pod:
        """The pod in the project's words."""
        return Pod(
            id=self.id,
            name=self.name,
            status=self.status,
            cost_usd_h=self.cost,
            data_center=self.data_center,
            created_at=self.created_at.astimezone(UTC),
            started_at=self.started_at.astimezone(UTC) if self.started_at else None,
            uptime_s=self.runtime.uptime if self.runtime else None,
        )


class WirePods(Wire):
    """The list of pods."""

    pods: list[WirePod]


class WireVolume(Wire):
    """A network volume."""

    id: str
    name: str
    size: int
    data_center: str = Field(alias="dataCenter")

    def plain(self) -> Volume:
        """The volume in the project's words."""
        return Volume(self.id, self.name, self.size, self.data_center)


class WireVolumes(Wire):
    """The list of network volumes."""

    volumes: list[WireVolume] = Field(alias="networkVolumes")


class WirePrice(Wire):
    """Dollars an hour for one GPU, by cloud."""

    secure: float | None = None
    community: float | None = None


class WireGpu(Wire):
    """A GPU type, asked for with its availability."""

    id: str
    price: WirePrice
    availability: Literal["NONE", "LOW", "MEDIUM", "HIGH"]

    def plain(self) -> GpuOffer | None:
        """At the secure cloud's price, or the community's; None where neither has it."""
        price = self.price.secure or self.price.community
        return GpuOffer(self.id, price, self.availability) if price else None


class WireGpus(Wire):
    """The catalogue of GPU types."""

    gpus: list[WireGpu]


class WireBill(Wire):
    """A pod's bill for one period."""

    pod_id: str = Field(alias="podId")
    amount: float = Field(alias="totalAmount")
    start: AwareDatetime = Field(alias="startTime")
    end: AwareDatetime = Field(alias="endTime")

    def plain(self) -> Charge:
        """The charge in the project's words."""
        start, end = self.start.astimezone(UTC), self.end.astimezone(UTC)
        return Charge(self.pod_id, self.amount, start, end)


class WireBills(Wire):
    """Bills of pods."""

    records: list[WireBill]


class WireLine(Wire):
    """A line of a log."""

    ts: AwareDatetime
    source: Literal["container", "system"]
    line: str


T = TypeVar("T", bound=Wire)


def read(content: Any, model: type[T]) -> T | str:
    """The answer, or a phrase that names the key that is not as expected.

    Without the values, since those of a pod hold its environment.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        about = f"key {key!r} of the answer" if key else "the answer"
        return f"{about} is not as expected: {first['msg']}"


def parse(body: bytes) -> Any:
    """The content of a body; None where it is no JSON."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
