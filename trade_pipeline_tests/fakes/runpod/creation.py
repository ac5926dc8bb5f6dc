"""Whether a pod can be made, where, and at what price: what `POST /v2/pods` decides.

Start at `create`; GraphQL comes here too.
"""

from typing import TYPE_CHECKING, Any

from trade_pipeline_tests.fakes.runpod.account import MountRefusedError
from trade_pipeline_tests.fakes.runpod.answers import VAGUE, ProblemError, html, silence
from trade_pipeline_tests.fakes.runpod.bodies import CREATE_POD
from trade_pipeline_tests.fakes.runpod.faults import NO_CAPACITY, NO_MONEY, OF_CREATION, Fault
from trade_pipeline_tests.fakes.runpod.pods import FakePod
from trade_pipeline_tests.fakes.web import HangUpError, Reply

if TYPE_CHECKING:
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

CPU_USD_H = 0.04  # for one vCPU
AFTER_CREATION = frozenset(name for name in OF_CREATION if name.startswith("created_but"))


def create(fake: "FakeRunPod", spec: Any) -> FakePod:
    """Make a pod.

    Raises:
        ProblemError: it is refused; no pod was made, but for a planned `created_but_500`.
        HangUpError: a pod was made, and no answer is to come.
        UnsaidError: a pod was made, and something else is the answer.
    """
    wrong = CREATE_POD(spec)
    if isinstance(spec, dict) and "image" not in spec and "templateId" not in spec:
        wrong.append("/image: property is required")
    if wrong:
        raise ProblemError(422, "Request validation failed.", tuple(wrong))
    _check_rules(spec)
    gpu = spec["gpu"]["id"] if "gpu" in spec else ""
    fault = fake.faults.take(OF_CREATION, "create", gpu=gpu, pod=(spec["name"],))
    if fault is not None and fault.name == "no_capacity":
        raise ProblemError(fault["status"], NO_CAPACITY[fault["wording"]])
    if fault is not None and fault.name == "balance":
        raise ProblemError(fault["status"], NO_MONEY[fault["wording"]])
    with fake.lock:  # two requests at once must not pass the account's limit together
        data_center = _placed(fake, spec)
        cost_usd_h = _priced(fake, spec)
        if fake.account.balance_usd <= 0:
            raise ProblemError(402, NO_MONEY[0])
        if fake.spend_usd_h + cost_usd_h > fake.account.spend_limit_usd_h:
            raise ProblemError(402, NO_MONEY[1])
        try:
            pod = fake.make_pod(spec, data_center, cost_usd_h)
        except MountRefusedError as error:
            raise ProblemError(400, f"fake RunPod: {error}") from error
    if fault is not None:
        _leave_unsaid(fake, fault)
    return pod


class UnsaidError(Exception):
    """The pod was made, and this is the answer."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


def _leave_unsaid(fake: "FakeRunPod", fault: Fault) -> None:
    if fault.name == "created_but_timeout":
        raise silence(fake, fault["seconds"])
    if fault.name == "created_but_reset":
        raise HangUpError(reset=True)
    if fault.name == "created_but_html":
        raise UnsaidError(html(fault["status"]))
    raise ProblemError(fault["status"], VAGUE)


def _check_rules(spec: dict[str, Any]) -> None:
    """Rules between keys, which the service checks after the shape."""
    mounts = spec.get("mounts", {})
    gpu = spec.get("gpu", {})
    if ("gpu" in spec) == ("cpu" in spec):
        raise ProblemError(400, "exactly one of gpu or cpu must be set")
    if "persistent" in mounts and mounts.get("network"):
        raise ProblemError(400, "mounts.persistent and mounts.network are mutually exclusive")
    if "persistent" in mounts and "cpu" in spec:
        raise ProblemError(400, "mounts.persistent is not supported on CPU pods")
    if gpu.get("allowedCudaVersions") and "minCudaVersion" in gpu:
        raise ProblemError(400, "allowedCudaVersions and minCudaVersion are mutually exclusive")
    if "templateId" in spec:
        raise ProblemError(404, "template not found")


def _placed(fake: "FakeRunPod", spec: dict[str, Any]) -> str:
    """The data center; a volume's own where there is one."""
    wanted = spec.get("dataCenterIds") or fake.data_centers
    networks = spec.get("mounts", {}).get("network") or []
    if networks:
        volume = fake.volumes.get(networks[0]["volumeId"])
        if volume is None:
            raise ProblemError(404, "network volume not found")
        named = spec.get("dataCenterIds") or [volume.data_center]
        if spec.get("cloud", "SECURE") != "SECURE" or volume.data_center not in named:
            raise ProblemError(fake.vague_status, VAGUE)
        return volume.data_center
    offered = [one for one in wanted if one in fake.data_centers]
    if not offered:
        raise ProblemError(400, NO_CAPACITY[0])
    return offered[0]


def _priced(fake: "FakeRunPod", spec: dict[str, Any]) -> float:
    """Dollars an hour; a host that does not exist has no capacity."""
    if "cpu" in spec:
        vcpus: int = spec["cpu"]["vcpuCount"]
        return CPU_USD_H * vcpus  # ["cpu"]["vcpuCount"]
    gpu = fake.gpus.get(spec["gpu"]["id"])
    if gpu is None:
        raise ProblemError(400, f"unknown GPU type {spec['gpu']['id']!r}")
    allowed = spec["gpu"].get("allowedCudaVersions") or gpu.cuda
    least = _version(spec["gpu"].get("minCudaVersion", "0.0"))
    if not any(one in allowed and _version(one) >= least for one in gpu.cuda):
        raise ProblemError(400, NO_CAPACITY[0])
    secure = spec.get("cloud", "SECURE") == "SECURE"
    price = gpu.price_usd_h if secure else gpu.community_usd_h
    if price is None:
        raise ProblemError(400, NO_CAPACITY[1])
    count: int = spec["gpu"].get("count", 1)
    return price * count


def _version(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
