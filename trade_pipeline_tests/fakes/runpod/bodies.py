"""Which bodies and queries REST v2 takes: every key it does not know is refused, at every level.

Pure; the shapes are those of RunPod's OpenAPI document. Start at `Shape`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Check = Callable[[Any, str], list[str]]  # value and where it is, to what is wrong with it


def text(pattern: str = "", choices: tuple[str, ...] = (), least: int = 0) -> Check:
    """A string."""

    def check(value: Any, where: str) -> list[str]:
        if not isinstance(value, str):
            return [f"{where}: got {_name(value)}, want string"]
        if choices and value not in choices:
            return [f"{where}: value must be one of {', '.join(choices)}"]
        if len(value) < least:
            return [f"{where}: length must be >= {least}"]
        if pattern and not re.search(pattern, value):
            return [f"{where}: {value!r} does not match pattern {pattern!r}"]
        return []

    return check


def whole(least: int, most: int | None = None) -> Check:
    """An integer; true and false are none."""

    def check(value: Any, where: str) -> list[str]:
        if isinstance(value, bool) or not isinstance(value, int):
            return [f"{where}: got {_name(value)}, want integer"]
        if value < least or (most is not None and value > most):
            return [f"{where}: must be between {least} and {most}"]
        return []

    return check


def flag(value: Any, where: str) -> list[str]:
    """A boolean."""
    return [] if isinstance(value, bool) else [f"{where}: got {_name(value)}, want boolean"]


def optional(inner: Check) -> Check:
    """The same, or null."""
    return lambda value, where: [] if value is None else inner(value, where)


def many(item: Check, most: int | None = None) -> Check:
    """An array."""

    def check(value: Any, where: str) -> list[str]:
        if not isinstance(value, list):
            return [f"{where}: got {_name(value)}, want array"]
        if most is not None and len(value) > most:
            return [f"{where}: maxItems: got {len(value)}, want {most}"]
        return [wrong for n, one in enumerate(value) for wrong in item(one, f"{where}/{n}")]

    return check


def strings(value: Any, where: str) -> list[str]:
    """An object of any keys whose values are strings."""
    if not isinstance(value, dict):
        return [f"{where}: got {_name(value)}, want object"]
    return [wrong for key, one in value.items() for wrong in text()(one, f"{where}/{key}")]


@dataclass(frozen=True)
class Shape:
    """An object that has these keys and no others."""

    keys: Mapping[str, Check]
    required: frozenset[str] = field(default_factory=frozenset)

    def __call__(self, value: Any, where: str = "") -> list[str]:
        """What is wrong with a value."""
        if not isinstance(value, dict):
            return [f"{where or '/'}: got {_name(value)}, want object"]
        wrong = [f"{where}/{key}: property is required" for key in self.required - value.keys()]
        for key, one in value.items():
            if key in self.keys:
                wrong += self.keys[key](one, f"{where}/{key}")
            else:
                wrong.append(f"{where}: property {key!r} is not allowed")
        return sorted(wrong)


def shape(required: str = "", **keys: Check) -> Shape:
    """An object; `required` names its required keys, apart by spaces."""
    return Shape(keys, frozenset(required.split()))


def _name(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


_CUDA = text(r"^\d+\.\d+$")

CREATE_POD = shape(
    "name",
    name=text(least=1),
    image=text(),
    args=text(),
    disk=whole(1),
    ports=many(text()),
    env=strings,
    registry=optional(text()),
    cloud=text(choices=("SECURE", "COMMUNITY")),
    cpu=shape("id vcpuCount", id=text(least=1), vcpuCount=whole(2)),
    gpu=shape(
        "id",
        id=text(),
        count=whole(1),
        allowedCudaVersions=many(_CUDA),
        minCudaVersion=_CUDA,
        minRamPerGpu=whole(1),
        minVcpuCountPerGpu=whole(1),
    ),
    dataCenterIds=many(text()),
    globalNetworking=flag,
    mounts=shape(
        network=many(shape("volumeId path", volumeId=text(), path=text()), most=1),
        persistent=shape("size path", size=whole(10), path=text()),
    ),
    startJupyter=flag,
    startSsh=flag,
    templateId=text(least=1),
)
ACTION = shape("action", action=text(choices=("start", "stop", "restart", "terminate")))
CREATE_VOLUME = shape(
    "name size dataCenter",
    name=text(least=1),
    size=whole(10, 4096),
    dataCenter=text(least=1),
    type=text(choices=("STANDARD", "HIGH_PERFORMANCE")),
)
UPDATE_VOLUME = shape(name=text(least=1), size=whole(10, 4096))

_WHEN = text(r"^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$")
_NUMBER = text(r"^\d+$")
NO_QUERY = shape()
POD_QUERY = shape(includeClusterPods=text(choices=("true", "false")))
LOG_QUERY = shape(source=text(choices=("container", "system")), tail=_NUMBER, since=_WHEN)
GPU_QUERY = shape(
    include=text(choices=("AVAILABILITY",)),
    product=text(r"^(POD|CLUSTER|SERVERLESS)(,(POD|CLUSTER|SERVERLESS))*$"),
    count=_NUMBER,
    cloud=text(choices=("SECURE", "COMMUNITY")),
    countryCodes=text(r"^[A-Z]{2}(,[A-Z]{2})*$"),
    cudaVersions=text(r"^\d+\.\d+(,\d+\.\d+)*$"),
    minCudaVersion=text(r"^\d+(\.\d+)?$"),
)
BILLING_QUERY = shape(
    startTime=_WHEN,
    endTime=_WHEN,
    bucketSize=text(choices=("hour", "day", "week", "month", "year")),
    lastN=text(r"^[1-9]\d*$"),
    podId=text(least=1),
)
