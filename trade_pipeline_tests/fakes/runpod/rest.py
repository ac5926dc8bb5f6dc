"""REST v2 of the fake: routes, checks, answers. Start at `Rest.answer`."""

import json
import re
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from trade_pipeline_tests.fakes.runpod import bodies
from trade_pipeline_tests.fakes.runpod.answers import (
    ProblemError,
    instead_of,
    with_unknown_keys,
)
from trade_pipeline_tests.fakes.runpod.bills import bills, timestamp, unix_ns
from trade_pipeline_tests.fakes.runpod.creation import UnsaidError, create
from trade_pipeline_tests.fakes.runpod.faults import Fault
from trade_pipeline_tests.fakes.runpod.graphql import GraphQl
from trade_pipeline_tests.fakes.runpod.pods import NS_PER_S, FakePod, Line
from trade_pipeline_tests.fakes.web import HangUpError, Reply, Request, json_reply

if TYPE_CHECKING:
    from trade_pipeline_tests.fakes.runpod.account import FakeGpu, FakeVolume
    from trade_pipeline_tests.fakes.runpod.server import FakeRunPod

TAIL = 100  # lines that a log stream begins with, where nothing is said
MOST_TAIL = 5000


class _Route(NamedTuple):
    method: str
    path: re.Pattern[str]
    operation: str
    query: bodies.Shape


def _route(method: str, path: str, operation: str, query: bodies.Shape = bodies.NO_QUERY) -> _Route:
    return _Route(method, re.compile(f"/v2{path}/?"), operation, query)


ROUTES = (
    _route("POST", "/pods", "create"),
    _route("GET", "/pods", "list", bodies.POD_QUERY),
    _route("GET", "/pods/([^/]+)", "get"),
    _route("DELETE", "/pods/([^/]+)", "delete"),
    _route("POST", "/pods/([^/]+)/action", "action"),
    _route("GET", "/pods/([^/]+)/logs", "logs", bodies.LOG_QUERY),
    _route("GET", "/network-volumes", "volumes"),
    _route("POST", "/network-volumes", "create_volume"),
    _route("GET", "/network-volumes/([^/]+)", "volume"),
    _route("PATCH", "/network-volumes/([^/]+)", "update_volume"),
    _route("GET", "/catalog/gpus", "gpus", bodies.GPU_QUERY),
    _route("GET", "/catalog/gpus/([^/]+)", "gpu", bodies.GPU_QUERY),
    _route("GET", "/billing/pods", "billing", bodies.BILLING_QUERY),
)


class Rest:
    """Answers what comes to the API's port; GraphQL is handed on."""

    def __init__(self, fake: "FakeRunPod", graphql: GraphQl) -> None:
        self._fake = fake
        self._graphql = graphql

    def answer(self, request: Request) -> Reply:
        """Answer, and keep what was asked. Raises `HangUpError` where no answer is to come."""
        operation, route, arguments = self._routed(request)
        status = 0
        try:
            reply = self._answered(request, operation, route, arguments)
            status = reply.status
        except ProblemError as problem:
            reply, status = problem.reply, problem.status
        except UnsaidError as unsaid:
            reply, status = unsaid.reply, unsaid.reply.status
        finally:
            self._fake.note(operation, request.method, request.path, status, request.headers)
        return reply

    def _routed(self, request: Request) -> tuple[str, _Route | None, tuple[str, ...]]:
        if request.path == "/graphql":
            return "graphql", None, ()
        for route in ROUTES:
            found = route.path.fullmatch(request.path)
            if found and route.method == request.method:
                return route.operation, route, found.groups()
        return "unknown", None, ()

    def _answered(
        self, request: Request, operation: str, route: _Route | None, arguments: tuple[str, ...]
    ) -> Reply:
        if operation == "graphql":
            return self._graphql.answer(request)
        if request.headers.get("authorization") != f"Bearer {self._fake.api_key}":
            raise ProblemError(401, "missing bearer token")
        if route is None:
            known = any(one.path.fullmatch(request.path) for one in ROUTES)
            raise ProblemError(405 if known else 404, "resource not found")
        gpu, pod = self._subject(request, operation, arguments)
        planned = instead_of(self._fake, operation, gpu=gpu, pod=pod)
        if planned is not None:
            return planned
        wrong = route.query(request.query, "query")
        if wrong:
            raise ProblemError(422, "Request validation failed.", tuple(wrong))
        reply = self._handler(operation)(request, *arguments)
        if reply.stream is None and reply.body and self._fake.faults.take("drift", operation):
            content = with_unknown_keys(json.loads(reply.body))
            return json_reply(content, reply.status, reply.content_type)
        return reply

    def _subject(
        self, request: Request, operation: str, arguments: tuple[str, ...]
    ) -> tuple[str, tuple[str, ...]]:
        """GPU type and names of the pod that a request is about, as far as they can be told."""
        if operation == "create":
            try:
                content = json.loads(request.body)
                return str((content.get("gpu") or {}).get("id", "")), (str(content.get("name")),)
            except (ValueError, AttributeError):
                return "", ()
        if arguments and "/pods/" in request.path:
            pod = self._fake.known(arguments[0])
            return "", arguments if pod is None else (pod.id, pod.name)
        return "", ()

    def _handler(self, operation: str) -> Callable[..., Reply]:
        handler: Callable[..., Reply] = getattr(self, f"_{operation}")
        return handler

    # Pods.

    def _create(self, request: Request) -> Reply:
        return json_reply(pod_json(create(self._fake, _content(request))), 201)

    def _list(self, request: Request) -> Reply:
        shown = [pod for pod in self._fake.pods if pod.is_known and not self._is_late(pod)]
        return json_reply({"pods": [pod_json(pod) for pod in shown]})

    def _is_late(self, pod: FakePod) -> bool:
        fault = pod.faults.get("late_listing")
        if fault is None:
            return False
        pod.lists += 1
        return bool(pod.lists <= fault["lists"] or time.time() - pod.created_s < fault["seconds"])

    def _get(self, request: Request, pod_id: str) -> Reply:
        return json_reply(pod_json(self._known(pod_id)))

    def _delete(self, request: Request, pod_id: str) -> Reply:
        self._fake.end(self._known(pod_id))
        return Reply(HTTPStatus.NO_CONTENT, content_type="")

    def _action(self, request: Request, pod_id: str) -> Reply:
        content = _content(request)
        wrong = bodies.ACTION(content)
        if wrong:
            raise ProblemError(422, "Request validation failed.", tuple(wrong))
        pod, action = self._known(pod_id), content["action"]
        if action not in pod.actions:
            raise ProblemError(409, f"cannot {action} a pod in status {pod.status}")
        if action == "terminate":
            self._fake.end(pod)
        else:
            pod.act(action)
        return json_reply(pod_json(pod))

    def _known(self, pod_id: str) -> FakePod:
        pod = self._fake.known(pod_id)
        if pod is None:
            raise ProblemError(404, "The requested Pod does not exist.")
        return pod

    # Logs.

    def _logs(self, request: Request, pod_id: str) -> Reply:
        pod = self._known(pod_id)
        tail = int(request.query.get("tail", TAIL))
        if tail > MOST_TAIL:
            raise ProblemError(422, "Request validation failed.", (f"query/tail: {tail}",))
        resume = request.headers.get("last-event-id")
        if resume is not None and bodies.LOG_QUERY({"since": resume}):
            raise ProblemError(422, "Request validation failed.", ("Last-Event-ID: date-time",))
        cut = self._fake.faults.take("logs_cut", "logs", pod=(pod.id, pod.name))
        with pod.changed:
            start = _first(pod.lines, tail, request.query.get("since"), resume)
        if resume is not None:
            start = max(0, start - self._fake.log_repeats)
        stream = self._follow(pod, start, request.query.get("source"), cut)
        return Reply(200, content_type="text/event-stream", stream=stream)

    def _follow(
        self, pod: FakePod, start: int, source: str | None, cut: Fault | None
    ) -> Iterator[bytes]:
        sent = 0
        yield b": connected\n\n"
        while not self._fake.stopping.is_set():
            with pod.changed:
                if len(pod.lines) == start and pod.is_known and not pod.terminated_s:
                    pod.changed.wait(self._fake.timing.keepalive_s)
                lines = pod.lines[start:]
                start += len(lines)
            for line in lines:
                if source in (None, line.source):
                    if cut is not None and sent >= cut["lines"]:
                        raise HangUpError(reset=True)
                    yield self._event(line)
                    sent += 1
            if not lines:
                if not pod.is_known or pod.terminated_s:
                    return
                yield b": heartbeat\n\n"

    def _event(self, line: Line) -> bytes:
        ts = timestamp(line.ts_ns, self._fake.log_decimals)
        data = json.dumps({"ts": ts, "source": line.source, "line": line.text})
        return f"id: {ts}\ndata: {data}\n\n".encode()

    # Volumes, catalogue, bills.

    def _volumes(self, request: Request) -> Reply:
        shown = [volume_json(volume) for volume in self._fake.volumes.values()]
        return json_reply({"networkVolumes": shown})

    def _volume(self, request: Request, volume_id: str) -> Reply:
        return json_reply(volume_json(self._existing(volume_id)))

    def _create_volume(self, request: Request) -> Reply:
        content = _content(request)
        wrong = bodies.CREATE_VOLUME(content)
        if wrong:
            raise ProblemError(422, "Request validation failed.", tuple(wrong))
        volume = self._fake.add_volume(
            content["dataCenter"], size_gb=content["size"], name=content["name"]
        )
        return json_reply(volume_json(volume), 201)

    def _update_volume(self, request: Request, volume_id: str) -> Reply:
        content = _content(request)
        wrong = bodies.UPDATE_VOLUME(content)
        if wrong or not content:
            raise ProblemError(422, "Request validation failed.", tuple(wrong))
        volume = self._existing(volume_id)
        if content.get("size", volume.size_gb) < volume.size_gb:
            raise ProblemError(400, "network volume storage cannot be reduced")
        volume.name = content.get("name", volume.name)
        volume.size_gb = content.get("size", volume.size_gb)
        return json_reply(volume_json(volume))

    def _existing(self, volume_id: str) -> "FakeVolume":
        if volume_id not in self._fake.volumes:
            raise ProblemError(404, "network volume not found")
        return self._fake.volumes[volume_id]

    def _gpus(self, request: Request) -> Reply:
        return json_reply({"gpus": [self._offer(request, gpu) for gpu in self._fake.gpus.values()]})

    def _gpu(self, request: Request, gpu_id: str) -> Reply:
        if gpu_id not in self._fake.gpus:
            raise ProblemError(404, "GPU type not found")
        return json_reply(self._offer(request, self._fake.gpus[gpu_id]))

    def _offer(self, request: Request, gpu: "FakeGpu") -> dict[str, Any]:
        query = request.query
        if ("include" in query) != ("product" in query):
            raise ProblemError(400, "include=AVAILABILITY and product need each other")
        if "include" not in query and query:
            raise ProblemError(400, "filters are valid only with include=AVAILABILITY")
        offer: dict[str, Any] = {
            "id": gpu.id,
            "name": gpu.id.removeprefix("NVIDIA "),
            "pool": None,
            "manufacturer": "NVIDIA",
            "memory": gpu.memory_gb,
            "secure": True,
            "community": gpu.community_usd_h is not None,
            "price": {"secure": gpu.price_usd_h, "community": gpu.community_usd_h or 0.0},
            "maxCount": {"secure": 8, "community": 4},
        }
        if "include" not in query:
            return offer
        fault = self._fake.faults.take("unavailable", "gpus", gpu=gpu.id)
        offer["availability"] = level = gpu.availability if fault is None else fault["level"]
        if level != "NONE":
            offer["dataCenters"] = [
                {"id": one, "name": one, "availability": level} for one in self._fake.data_centers
            ]
        offer["cudaVersions"] = [
            {"version": version, "available": level != "NONE"} for version in gpu.cuda
        ]
        return offer

    def _billing(self, request: Request) -> Reply:
        until_s = time.time() - self._fake.timing.billing_lag_s
        return json_reply(bills(self._fake.pods, request.query, until_s))


def pod_json(pod: FakePod) -> dict[str, Any]:
    """A pod as v2 shows it."""
    with pod.changed:
        return _pod_json(pod)


def _pod_json(pod: FakePod) -> dict[str, Any]:
    spec, uptime_s = pod.spec, pod.uptime_s
    shown: dict[str, Any] = {
        "id": pod.id,
        "name": pod.name,
        "status": pod.status,
        "actions": list(pod.actions),
        "image": spec.get("image", ""),
        "args": spec.get("args", ""),
        "disk": spec.get("disk", 20),
        "ports": spec.get("ports", []),
        "env": spec.get("env", {}),
        "registry": spec.get("registry"),
        "mounts": spec.get("mounts", {}),
        "cloud": spec.get("cloud", "SECURE"),
        "dataCenterId": None if pod.status == "PROVISIONING" else pod.data_center,
        "cudaVersion": "12.8" if pod.status == "RUNNING" else None,
        "ssh": {"proxy": None, "direct": None},
        "template": None,
        "cost": round(pod.cost_now_usd_h, 6),
        "locked": False,
        "globalNetworking": {"enabled": False},
        "runtime": None,
        "createdAt": timestamp(int(pod.created_s * NS_PER_S), 0),
        "startedAt": None if pod.started_s is None else timestamp(int(pod.started_s * NS_PER_S), 0),
    }
    if "gpu" in spec:
        count = spec["gpu"].get("count", 1)
        shown["gpu"] = {"id": spec["gpu"]["id"], "count": count, "vcpuCount": 8, "memory": 32}
    else:
        shown["cpu"] = {**spec["cpu"], "memory": 2 * spec["cpu"]["vcpuCount"]}
    if uptime_s is not None:
        gpus = [{"util": 0, "memoryUtil": 0}] * (spec.get("gpu") or {}).get("count", 1)
        shown["runtime"] = {
            "uptime": uptime_s,
            "gpus": gpus,
            "cpu": {"util": 1},
            "memory": {"util": 1},
            "ports": [],
        }
    return shown


def volume_json(volume: "FakeVolume") -> dict[str, Any]:
    """A network volume as v2 shows it."""
    return {
        "id": volume.id,
        "name": volume.name,
        "size": volume.size_gb,
        "dataCenter": volume.data_center,
        "type": "STANDARD",
    }


def _content(request: Request) -> Any:
    try:
        return json.loads(request.body)
    except ValueError:
        raise ProblemError(400, "request body is no JSON") from None


def _first(lines: list[Line], tail: int, since: str | None, resume: str | None) -> int:
    """Index of the line that a stream begins with; a cursor's own line comes again."""
    cursor = resume or since
    if cursor is None:
        return max(0, len(lines) - tail)
    cursor_ns = unix_ns(cursor)
    return next((n for n, line in enumerate(lines) if line.ts_ns >= cursor_ns), len(lines))
