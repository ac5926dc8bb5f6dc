"""RunPod's serverless platform on loopback: a queue between clients and the SDK's real worker.

Clients see `/v2/<endpoint>/run|runsync|status|cancel`, workers `/job-take`, `/job-stop` and
`/job-done`, as the SDK asks for them. Status shows one update of progress an answer, in the order
of `arrange`, and then the result. Anything else is answered 404 and listed in `unexpected`.
"""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

KEY = "rpa_a-key-that-nobody-may-see"
HOLD_S = 0.3  # a worker's question for a job, while there is none


@dataclass
class Job:
    """One job and what became of it."""

    id: str
    input: Any
    status: str = "IN_QUEUE"
    updates: list[Any] = field(default_factory=list)
    shown: int = 0
    result: dict[str, Any] | None = None


class Platform:
    """Serves on 127.0.0.1 while it is entered.

    Attributes:
        updates: how many updates a job sends before its end is shown.
        arrange: gives the order in which a client sees them.
        failures: statuses to answer clients with, first to last, before serving again.
        unexpected: requests that the platform does not know.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.waiting: list[Job] = []
        self.changed = threading.Condition()
        self.updates = 0
        self.arrange: Callable[[list[Any]], list[Any]] = list
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.received: list[str] = []
        self.unexpected: list[str] = []
        self._worker_came = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.home = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.url = f"{self.home}/v2/demo"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def worker_environment(self) -> dict[str, str]:
        """What RunPod sets for a worker."""
        return {
            "RUNPOD_POD_ID": "worker",
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.home}/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.home}/job-done/$ID?gpu=none",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",  # one of them asks 8.8.8.8
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def wait_for_worker(self) -> None:
        """Until a worker has asked for a job: it takes seconds to start."""
        self._worker_came.wait()

    def answer(self, method: str, path: str, body: bytes, key: str) -> tuple[int, Any]:
        """Status and JSON of one request."""
        parts = path.strip("/").split("/")
        with self.changed:
            match (method, *parts):
                case (_, "v2", "demo", *rest):
                    return self._for_client(method, rest, body, key)
                case ("GET", "job-take", "worker"):
                    self._worker_came.set()
                    self.changed.wait_for(lambda: bool(self.waiting), HOLD_S)
                    if not self.waiting:
                        return 204, None
                    job = self.waiting.pop(0)
                    job.status = "IN_PROGRESS"
                    return 200, {"id": job.id, "input": job.input}
                case ("GET", "job-stop", "worker"):
                    return 204, None
                case ("POST", "job-done", job_id) if job_id in self.jobs:
                    self._done(self.jobs[job_id], json.loads(body))
                    return 200, {}
            self.unexpected.append(f"{method} {path}")
            return 404, {"error": "no such thing"}

    def _for_client(self, method: str, rest: list[str], body: bytes, key: str) -> tuple[int, Any]:
        self.received.append(f"{method} {'/'.join(rest)}")
        if self.failures:
            status, headers = self.failures.pop(0)
            return status, {"headers": headers, "error": f"said {key} and {status}"}
        if key != f"Bearer {KEY}":
            return 401, {}
        match (method, *rest):
            case ("POST", "run" | "runsync"):
                job = Job(f"job-{len(self.jobs)}", json.loads(body)["input"])
                self.jobs[job.id] = job
                self.waiting.append(job)
                self.changed.notify_all()
                if rest[0] == "runsync":
                    self.changed.wait_for(lambda: job.result is not None, 60)
                return 200, self._seen(job)
            case ("GET", "status", job_id) if job_id in self.jobs:
                return 200, self._seen(self.jobs[job_id])
            case ("POST", "cancel", job_id) if job_id in self.jobs:
                self.jobs[job_id].status = "CANCELLED"
                return 200, self._seen(self.jobs[job_id])
        self.unexpected.append(f"{method} {'/'.join(rest)}")
        return 404, {"error": "no such thing"}

    def _seen(self, job: Job) -> dict[str, Any]:
        whole = job.result is not None and len(job.updates) >= self.updates
        if whole and job.shown < self.updates:
            update = self.arrange(job.updates)[job.shown]
            job.shown += 1
            return {"id": job.id, "status": "IN_PROGRESS", "output": update}
        if whole and job.status == "IN_PROGRESS":
            assert job.result is not None
            job.status = "FAILED" if "error" in job.result else "COMPLETED"
        if job.status in ("COMPLETED", "FAILED"):
            return {"id": job.id, "status": job.status, **(job.result or {})}
        return {"id": job.id, "status": job.status}

    def _done(self, job: Job, posted: dict[str, Any]) -> None:
        if posted.get("status") == "IN_PROGRESS":
            job.updates.append(posted["output"])
        else:
            job.result = posted
        self.changed.notify_all()


def _handler(platform: Platform) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path, key = urlsplit(self.path).path, self.headers.get("Authorization", "")
            status, content = platform.answer(self.command, path, body, key)
            sent = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (content or {}).get("headers", {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler
