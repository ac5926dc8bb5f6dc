"""RunPod on 127.0.0.1: REST v2, GraphQL, a volume's S3, and pods that are local processes.

    with FakeRunPod(forbidden=[store, dagster_home]) as fake:
        volume = fake.add_volume("EU-RO-1")
        settings: rest_url=fake.rest_url, graphql_url=fake.graphql_url, s3_url=fake.s3_url,
                  exchange={"kind": "volume", "id": volume.id, "mount": str(tmp_path / "mount")}
        environment of the host: {**os.environ, **fake.environment}
        fake.faults.plan("no_capacity", gpu="NVIDIA L4", wording=1)
        ...
    assert not fake.live and len(fake.charges) == 1 and not fake.leaks
    assert not fake.unexpected and not fake.faults.unused

Written from RunPod's documentation as an independent judge of our clients: it refuses what the
service refuses, and knows nothing of our code. State is in the process that made it; other
processes talk to it by its URLs.

How it behaves:
- REST v2 (`rest`): shapes as in RunPod's published OpenAPI document. Unknown keys give 422 at
  every level, in the query too. Volumes have `dataCenter`, pods `dataCenterId`. The catalogue's
  `price` has `secure` and `community`; `include=AVAILABILITY` needs `product`. Bills come as
  `records` with `totalAmount` and lag by `timing.billing_lag_s`. A pod that was terminated is 404,
  or TERMINATED for `timing.terminated_visible_s`.
- A network volume with COMMUNITY or another data center gives the vague "Something went wrong"
  with `vague_status`, and nothing is made.
- GraphQL (`graphql`): what the SDK 1.12 sends, parsed by graphql-core. `terminateAfter` is an
  input of creation in RunPod's published schema, and of no mutation for a pod that exists; the
  fake takes it in `podEditJob(input: {podId, terminateAfter})`. RunPod's own documentation
  (August 2026) says that its timers were accepted and acted on by nothing: `timers_work=False`.
- S3 (`objects`): path style, bucket is the volume's id, region its data center (in any case).
  Empty directories are listed as keys that end in a slash. Parts lie in `.s3compat_uploads/`.
- Pods (`pods`): `args` runs again for ever after it ends. Files named by `forbidden`
  cannot be reached from a pod; `barrier` says what stands in the way, `leaks` what was tried. The
  suite's guard keeps pods on this machine. A mount is a link below the system's temporary folder.

Faults are in `faults`. Start at `FakeRunPod`.
"""

import contextlib
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from trade_pipeline_tests.fakes.runpod.account import (
    GB,
    FakeAccount,
    FakeVolume,
    Links,
    Seen,
    catalogue,
)
from trade_pipeline_tests.fakes.runpod.answers import ProblemError
from trade_pipeline_tests.fakes.runpod.barrier import Barrier, is_below
from trade_pipeline_tests.fakes.runpod.faults import OF_POD, Faults
from trade_pipeline_tests.fakes.runpod.graphql import GraphQl
from trade_pipeline_tests.fakes.runpod.objects import Objects
from trade_pipeline_tests.fakes.runpod.pods import PROJECT, Charge, FakePod, Mount, Timing
from trade_pipeline_tests.fakes.runpod.rest import Rest
from trade_pipeline_tests.fakes.web import HangUpError, WebServer

API_KEY = "rpa_FAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKEFAKE"
S3_KEYS = ("user_fakefakefake", "rps_FAKEFAKEFAKEFAKEFAKEFAKE")
SECRET = re.compile(r"\{\{ RUNPOD_SECRET_([A-Za-z0-9_]+) \}\}")


class FakeRunPod:
    """RunPod over loopback, to be used as a context manager.

    Args:
        forbidden: paths of the host that no pod may reach; folders that are not there are made.
        secrets: what `{{ RUNPOD_SECRET_x }}` stands for in a pod's environment, by `x`.
        timing: delays; may be changed while it runs.

    Attributes:
        url: of REST (`rest_url` is `<url>/v2`) and GraphQL (`<url>/graphql`).
        rest_url, graphql_url, s3_url: what a compute settings file calls so.
        api_key, s3_keys: what it accepts; `environment` has them by the names that hosts use.
        faults: what goes wrong, see `faults`.
        gpus: the catalogue by id; may be changed.
        account: balance and spend limit; may be changed.
        data_centers: where pods may be placed.
        volumes: by id.
        pods: every pod that was ever made, oldest first.
        live: those that nobody has terminated yet.
        charges: what each pod has cost, oldest first; one per pod that was made.
        seen: every request; `unexpected`: those that RunPod knows no route for.
        leaks: what pods tried beyond `barrier`.
        put_limit_bytes: of a PUT or a part; stands for RunPod's 500 MB.
        hold_s: how long a "timeout" keeps silent before it hangs up.
        log_repeats: lines that come again when a log stream is resumed.
        log_decimals: digits of a log line's second; with few, several lines share one id.
        vague_status: of "Something went wrong".
        timers_work: whether `terminateAfter` does anything.
    """

    def __init__(
        self,
        *,
        api_key: str = API_KEY,
        s3_keys: tuple[str, str] = S3_KEYS,
        secrets: Mapping[str, str] | None = None,
        forbidden: Iterable[Path] = (),
        timing: Timing | None = None,
    ) -> None:
        self.api_key = api_key
        self.s3_keys = s3_keys
        self.secrets = dict(secrets or {})
        self.timing = timing or Timing()
        self.faults = Faults()
        self.gpus = catalogue()
        self.account = FakeAccount()
        self.data_centers = ["EU-RO-1", "EU-CZ-1", "US-KS-2", "US-TX-3"]
        self.volumes: dict[str, FakeVolume] = {}
        self.put_limit_bytes = 500_000_000
        self.hold_s = 0.5
        self.log_repeats = 2
        self.log_decimals = 9
        self.vague_status = 500
        self.timers_work = True
        self.lock = threading.RLock()
        self.seen: list[Seen] = []
        self._pods: list[FakePod] = []
        self._links = Links()
        paths = tuple(forbidden)
        for needed in (PROJECT, Path(tempfile.gettempdir())):
            if is_below(needed, paths):
                raise ValueError(f"pods need {needed}, so it cannot be forbidden to them")
        for path in paths:
            if not path.exists():
                path.mkdir(parents=True)
        self._folder = Path(tempfile.mkdtemp(prefix="fake-runpod-"))
        self._barrier = Barrier(paths, self._folder)
        self._web = WebServer(Rest(self, GraphQl(self)).answer)
        self._s3 = WebServer(Objects(self).answer)
        self.url = self._web.url
        self.rest_url = f"{self.url}/v2"
        self.graphql_url = self.url
        self.s3_url = self._s3.url

    def __enter__(self) -> Self:
        self._web.start()
        self._s3.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._web.stop()
        self._s3.stop()
        for pod in self.pods:
            pod.close()
            self._unmount(pod)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The secrets, by the names that a host's environment has for them."""
        return {
            "RUNPOD_API_KEY": self.api_key,
            "RUNPOD_S3_ACCESS_KEY_ID": self.s3_keys[0],
            "RUNPOD_S3_SECRET_ACCESS_KEY": self.s3_keys[1],
        }

    @property
    def barrier(self) -> str:
        """What keeps pods away from the host here."""
        return self._barrier.name

    @property
    def leaks(self) -> list[dict[str, Any]]:
        """What pods tried and were refused: pod, pid, event, what."""
        return self._barrier.leaks

    @property
    def pods(self) -> list[FakePod]:
        """Every pod that was ever made, oldest first."""
        with self.lock:
            return list(self._pods)

    @property
    def live(self) -> list[FakePod]:
        """Pods that nobody has terminated yet, stopped ones too."""
        return [pod for pod in self.pods if pod.is_live]

    @property
    def charges(self) -> list[Charge]:
        """What each pod has cost, oldest first."""
        return [pod.charge for pod in self.pods]

    @property
    def spend_usd_h(self) -> float:
        """What all pods together cost in an hour now."""
        return sum(pod.cost_now_usd_h for pod in self.pods)

    @property
    def unexpected(self) -> list[Seen]:
        """Requests for which RunPod has no route."""
        return [one for one in self.seen if one.operation == "unknown"]

    @property
    def stopping(self) -> threading.Event:
        """Set when it ends; streams look at it."""
        return self._web.stopping

    def operations(self, name: str) -> list[Seen]:
        """Requests of one operation, such as "create"."""
        return [one for one in self.seen if one.operation == name]

    def add_volume(
        self,
        data_center: str = "EU-RO-1",
        *,
        size_gb: int = 50,
        name: str = "exchange",
        limit_bytes: int | None = None,
    ) -> FakeVolume:
        """Make a network volume."""
        volume_id = uuid.uuid4().hex[:10]
        path = self._folder / "volumes" / volume_id
        path.mkdir(parents=True)
        limit = size_gb * GB if limit_bytes is None else limit_bytes
        volume = FakeVolume(volume_id, name, size_gb, data_center, path, limit)
        with self.lock:
            self.volumes[volume_id] = volume
        return volume

    def pod(self, name_or_id: str) -> FakePod:
        """The newest pod of this name or id. Raises `LookupError`."""
        for pod in reversed(self.pods):
            if name_or_id in (pod.name, pod.id):
                return pod
        raise LookupError(f"there is no pod {name_or_id}; there are {self.pods}")

    def known(self, pod_id: str) -> FakePod | None:
        """The pod that RunPod answers for, or None (404)."""
        return next((pod for pod in self.pods if pod.id == pod_id and pod.is_known), None)

    def make_pod(self, spec: dict[str, Any], data_center: str, cost_usd_h: float) -> FakePod:
        """Make a pod and begin its life. Raises `MountRefusedError`; `HangUpError` at the end."""
        pod_id = uuid.uuid4().hex[:14]
        gpu = (spec.get("gpu") or {}).get("id", "")
        faults = self.faults.take_all(OF_POD, "create", gpu=gpu, pod=(spec["name"],))
        if "price" in faults:
            cost_usd_h *= faults["price"]["factor"]
        mounts = (spec.get("mounts") or {}).get("network") or []
        with self.lock:
            if self.stopping.is_set():  # nobody would end this one
                raise HangUpError
            mount = None
            if mounts:
                volume = self.volumes[mounts[0]["volumeId"]]
                mount = Mount(Path(mounts[0]["path"]), volume.id, volume.path)
                self._links.add(mount)
            env = {
                name: SECRET.sub(lambda found: self.secrets.get(found[1], found[0]), value)
                for name, value in (spec.get("env") or {}).items()
            }
            pod = FakePod(
                pod_id,
                spec["name"],
                spec,
                data_center,
                cost_usd_h,
                self.timing,
                self._barrier,
                env,
                mount,
                faults,
            )
            self._pods.append(pod)
        pod.begin()
        return pod

    def end(self, pod: FakePod) -> None:
        """End a pod as DELETE does, unless it was planned that this fails.

        Raises:
            ProblemError: it does not end.
        """
        if pod.status == "TERMINATED":
            raise ProblemError(404, "resource not found")
        for name in ("terminate_fails", "terminate_ignored"):
            fault = pod.faults.get(name)
            if fault is None:
                continue
            pod.tries += 1
            if fault["tries"] is None or pod.tries <= fault["tries"]:
                if name == "terminate_ignored":
                    return
                raise ProblemError(fault["status"], "failed to terminate pod")
        pod.terminate()
        threading.Thread(target=self._unmount_later, args=(pod,), daemon=True).start()

    def note(self, operation: str, method: str, path: str, status: int, headers: Any) -> None:
        """Keep what was asked."""
        with self.lock:
            self.seen.append(Seen(operation, method, path, status, headers))

    def _unmount_later(self, pod: FakePod) -> None:
        """The link stays for as long as processes of the pod may write to it."""
        deadline = time.monotonic() + self.timing.grace_s + 5
        while pod.pid is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        self._unmount(pod)

    def _unmount(self, pod: FakePod) -> None:
        with self.lock:
            mount, pod.mount = pod.mount, None
            if mount is not None:
                with contextlib.suppress(OSError):
                    self._links.drop(mount)
