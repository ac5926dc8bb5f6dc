"""RunPod's GraphQL, as far as the SDK 1.12 uses it for pods and accounts.

Documents are parsed and checked by graphql-core against a schema, so what is not escaped fails as
it does at RunPod. `terminateAfter` in `PodEditJobInput` is the fake's own; see `server`. Start at
`GraphQl.answer`.
"""

import functools
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import graphql as core

from trade_pipeline_tests.fakes.runpod.answers import ProblemError, instead_of
from trade_pipeline_tests.fakes.runpod.creation import UnsaidError, create
from trade_pipeline_tests.fakes.runpod.pods import FakePod
from trade_pipeline_tests.fakes.web import Reply, Request, json_reply

if TYPE_CHECKING:
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

SCHEMA = """
scalar DateTime
scalar Void
enum CloudTypeEnum { ALL SECURE COMMUNITY }
enum PodStatus { CREATED RUNNING RESTARTING EXITED PAUSED DEAD TERMINATED }

type Query {
  myself: User
  pod(input: PodFilter): Pod
  gpuTypes(input: GpuTypeFilter): [GpuType]
}
type Mutation {
  podFindAndDeployOnDemand(input: PodFindAndDeployOnDemandInput): Pod
  podStop(input: PodStopInput!): Pod
  podResume(input: PodResumeInput!): Pod
  podTerminate(input: PodTerminateInput!): Void
  podEditJob(input: PodEditJobInput!): Pod
}
type User {
  id: ID
  email: String
  pubKey: String
  clientBalance: Float
  currentSpendPerHr: Float
  spendLimit: Float
  minBalance: Float
  underBalance: Boolean
  networkVolumes: [NetworkVolume]
  pods: [Pod]
}
type NetworkVolume { id: String name: String size: Int dataCenterId: String }
type Pod {
  id: String!
  name: String
  containerDiskInGb: Int
  costPerHr: Float!
  adjustedCostPerHr: Float
  desiredStatus: PodStatus!
  dockerArgs: String
  dockerId: String
  env: [String]
  gpuCount: Int!
  imageName: String!
  lastStatusChange: String
  machineId: String
  memoryInGb: Float!
  networkVolumeId: String
  podType: String
  port: Int
  ports: String
  templateId: String
  uptimeSeconds: Int
  vcpuCount: Float!
  volumeInGb: Float
  volumeMountPath: String
  createdAt: DateTime
  terminateAfter: DateTime
  runtime: PodRuntime
  machine: PodMachineInfo
}
type PodRuntime { uptimeInSeconds: Int ports: [PodRuntimePorts] gpus: [PodRuntimeGpus] }
type PodRuntimePorts {
  ip: String
  isIpPublic: Boolean
  privatePort: Int
  publicPort: Int
  type: String
}
type PodRuntimeGpus { id: String gpuUtilPercent: Float memoryUtilPercent: Float }
type PodMachineInfo {
  podHostId: String
  gpuDisplayName: String
  gpuTypeId: String
  dataCenterId: String
}
type GpuType {
  id: String
  displayName: String
  manufacturer: String
  memoryInGb: Int
  cudaCores: Int
  maxGpuCount: Int
  secureCloud: Boolean
  communityCloud: Boolean
  securePrice: Float
  communityPrice: Float
  oneWeekPrice: Float
  oneMonthPrice: Float
  threeMonthPrice: Float
  communitySpotPrice: Float
  secureSpotPrice: Float
  lowestPrice(input: GpuLowestPriceInput): LowestPrice
}
type LowestPrice { minimumBidPrice: Float uninterruptablePrice: Float stockStatus: String }

input PodFilter { podId: String! }
input GpuTypeFilter { id: String ids: [String] }
input GpuLowestPriceInput { gpuCount: Int! secureCloud: Boolean dataCenterId: String }
input EnvironmentVariableInput { key: String! value: String! }
input PodStopInput { podId: String! incrementVersion: Boolean }
input PodResumeInput { podId: String! gpuCount: Int! }
input PodTerminateInput { podId: String! }
input PodEditJobInput { podId: String! terminateAfter: DateTime }
input PodFindAndDeployOnDemandInput {
  name: String
  imageName: String
  cloudType: CloudTypeEnum
  gpuTypeId: String
  gpuCount: Int
  dataCenterId: String
  countryCode: String
  containerDiskInGb: Int
  volumeInGb: Int
  volumeMountPath: String
  networkVolumeId: String
  minVcpuCount: Int
  minMemoryInGb: Int
  minDownload: Int
  minUpload: Int
  dockerArgs: String
  ports: String
  env: [EnvironmentVariableInput]
  templateId: String
  allowedCudaVersions: [String]
  startSsh: Boolean
  startJupyter: Boolean
  supportPublicIp: Boolean
  stopAfter: DateTime
  terminateAfter: DateTime
}
"""
# GraphQL knows no provisioning: a pod is wanted to run, whatever it does.
DESIRED = {"EXITED": "EXITED", "ERROR": "DEAD", "TERMINATED": "TERMINATED"}


def _when(value: Any) -> datetime:
    """A DateTime: RFC 3339 with an offset; a duration such as `1h` is none."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise core.GraphQLError(f"DateTime cannot represent an invalid date-time {value}") from None
    if found.tzinfo is None:
        raise core.GraphQLError(f"DateTime cannot represent a time without an offset {value}")
    return found.astimezone(UTC)


@functools.cache
def _schema() -> core.GraphQLSchema:
    schema = core.build_schema(SCHEMA)
    overrides: Any = schema.type_map["DateTime"]
    overrides.parse_value = _when
    overrides.parse_literal = lambda node, _=None: _when(getattr(node, "value", node))
    overrides.serialize = lambda value: value.isoformat()
    return schema


class GraphQl:
    """Answers documents."""

    def __init__(self, fake: "FakeRunPod") -> None:
        self._fake = fake
        self._schema = _schema()

    def answer(self, request: Request) -> Reply:
        """Answer one document. Raises `ProblemError` and `HangUpError` as REST does."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._fake.api_key not in (given, request.query.get("api_key")):
            raise ProblemError(401, "missing bearer token")
        planned = instead_of(self._fake, "graphql")
        if planned is not None:
            return planned
        if request.method != "POST":
            raise ProblemError(405, "POST a document")
        try:
            content = json.loads(request.body)
            document, values = content["query"], content.get("variables")
        except (ValueError, KeyError, TypeError):
            raise ProblemError(400, "POST body missing or no JSON object with a query") from None
        roots: dict[str, Callable[..., Any]] = {
            "myself": self._myself,
            "pod": lambda _, input=None: self._shown(self._known(input)),
            "gpuTypes": self._gpu_types,
            "podFindAndDeployOnDemand": self._deploy,
            "podStop": lambda _, input: self._act(input, "stop"),
            "podResume": lambda _, input: self._act(input, "start"),
            "podTerminate": self._terminate,
            "podEditJob": self._edit,
        }
        result = core.graphql_sync(self._schema, document, roots, variable_values=values)
        is_bad = bool(result.errors) and result.data is None
        return json_reply(result.formatted, 400 if is_bad else 200)

    def _myself(self, _: Any) -> dict[str, Any]:
        fake = self._fake
        volumes = [
            {"id": one.id, "name": one.name, "size": one.size_gb, "dataCenterId": one.data_center}
            for one in fake.volumes.values()
        ]
        return {
            "id": "user_fake",
            "email": "user@example.com",
            "pubKey": "",
            "clientBalance": fake.account.balance_usd,
            "currentSpendPerHr": fake.spend_usd_h,
            "spendLimit": fake.account.spend_limit_usd_h,
            "minBalance": 0.0,
            "underBalance": fake.account.balance_usd <= 0,
            "networkVolumes": volumes,
            "pods": [self._shown(pod) for pod in fake.pods if pod.is_known],
        }

    def _gpu_types(self, _: Any, input: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        wanted = (input or {}).get("id")
        return [
            {
                "id": gpu.id,
                "displayName": gpu.id.removeprefix("NVIDIA "),
                "manufacturer": "Nvidia",
                "memoryInGb": gpu.memory_gb,
                "maxGpuCount": 8,
                "secureCloud": True,
                "communityCloud": gpu.community_usd_h is not None,
                "securePrice": gpu.price_usd_h,
                "communityPrice": gpu.community_usd_h,
                "lowestPrice": lambda _, input=None, gpu=gpu: {
                    "uninterruptablePrice": gpu.price_usd_h,
                    "stockStatus": gpu.availability.title(),
                },
            }
            for gpu in self._fake.gpus.values()
            if wanted in (None, gpu.id)
        ]

    def _deploy(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "name": input.get("name"),
            "image": input.get("imageName"),
            "cloud": "COMMUNITY" if input.get("cloudType") == "COMMUNITY" else "SECURE",
            "gpu": {
                "id": input.get("gpuTypeId"),
                "count": input.get("gpuCount") or 1,
                "allowedCudaVersions": input.get("allowedCudaVersions") or [],
            },
            "args": input.get("dockerArgs") or "",
            "env": {one["key"]: one["value"] for one in input.get("env") or []},
            "disk": input.get("containerDiskInGb") or 20,
        }
        if input.get("dataCenterId"):
            spec["dataCenterIds"] = [input["dataCenterId"]]
        if input.get("networkVolumeId"):
            path = input.get("volumeMountPath") or "/workspace"
            spec["mounts"] = {"network": [{"volumeId": input["networkVolumeId"], "path": path}]}
        try:
            pod = create(self._fake, spec)
        except ProblemError as problem:  # GraphQL says so with status 200
            raise core.GraphQLError(problem.detail) from problem
        except UnsaidError as unsaid:
            raise core.GraphQLError("unexpected answer from upstream") from unsaid
        if input.get("terminateAfter"):
            pod.set_terminate_after(input["terminateAfter"], enforced=self._fake.timers_work)
        return self._shown(pod)

    def _edit(self, _: Any, input: dict[str, Any]) -> dict[str, Any]:
        pod = self._known(input)
        if input.get("terminateAfter"):
            pod.set_terminate_after(input["terminateAfter"], enforced=self._fake.timers_work)
        return self._shown(pod)

    def _act(self, input: dict[str, Any], action: str) -> dict[str, Any]:
        pod = self._known(input)
        if action not in pod.actions:
            raise core.GraphQLError(f"cannot {action} a pod in status {pod.status}")
        pod.act(action)
        return self._shown(pod)

    def _terminate(self, _: Any, input: dict[str, Any]) -> None:
        try:
            self._fake.end(self._known(input))
        except ProblemError as problem:
            raise core.GraphQLError(problem.detail) from problem

    def _known(self, input: dict[str, Any] | None) -> FakePod:
        pod = self._fake.known((input or {}).get("podId", ""))
        if pod is None:
            raise core.GraphQLError("pod not found to terminate")
        return pod

    def _shown(self, pod: FakePod) -> dict[str, Any]:
        spec = pod.spec
        gpu = spec.get("gpu") or {"id": "", "count": 0}
        mounts = spec.get("mounts", {}).get("network") or [{}]
        uptime_s = pod.uptime_s
        return {
            "id": pod.id,
            "name": pod.name,
            "containerDiskInGb": spec.get("disk", 20),
            "costPerHr": pod.cost_usd_h,
            "adjustedCostPerHr": pod.cost_now_usd_h,
            "desiredStatus": DESIRED.get(pod.status, "RUNNING"),
            "dockerArgs": spec.get("args", ""),
            "env": [f"{key}={value}" for key, value in spec.get("env", {}).items()],
            "gpuCount": gpu.get("count", 1),
            "imageName": spec.get("image", ""),
            "machineId": "machine",
            "memoryInGb": 32,
            "networkVolumeId": mounts[0].get("volumeId"),
            "podType": "RESERVED",
            "uptimeSeconds": uptime_s or 0,
            "vcpuCount": 8,
            "volumeInGb": 0,
            "volumeMountPath": mounts[0].get("path"),
            "createdAt": datetime.fromtimestamp(pod.created_s, UTC),
            "terminateAfter": pod.terminate_after,
            "runtime": None if uptime_s is None else {"uptimeInSeconds": uptime_s, "ports": []},
            "machine": {
                "podHostId": f"{pod.id}-host",
                "gpuDisplayName": gpu["id"],
                "gpuTypeId": gpu["id"],
                "dataCenterId": pod.data_center,
            },
        }
