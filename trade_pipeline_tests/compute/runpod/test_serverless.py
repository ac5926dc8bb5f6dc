"""The serverless handler and its client, against the SDK's test server and its real worker."""

import asyncio
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from trade_pipeline.compute.runpod.endpoint import Endpoint, JobFailed, JobTimedOut
from trade_pipeline.compute.runpod.errors import (
    AccessDenied,
    ExchangeError,
    RateLimited,
    RequestRefused,
    ResultRefused,
    RunPodUnavailable,
)
from trade_pipeline.compute.runpod.serverless import ROOT_VARIABLE, Worker, answer
from trade_pipeline.features.registry import resolve
from trade_pipeline.features.table import feature_table
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.storage.bundles import BundleReference, commit, verify
from trade_pipeline.storage.frames import write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import PolicyRunner
from trade_pipeline_tests.compute.runpod.serverless_platform import KEY, Platform
from trade_pipeline_tests.training import policies

PROJECT = Path(__file__).resolve().parents[3]
START_S = 60.0
INDICATORS = [
    {"name": "returns", "params": {"horizons": [1, 5]}},
    {"name": "rsi"},
    {"name": "macd"},
    {"name": "stochastic"},
    {"name": "atr", "params": {"period": 5}},
    {"name": "volume_zscore"},
]
BAR_COLUMNS = ("ts", "open", "high", "low", "close", "volume")
KINDS = {
    "choices": ("ppo", "mlp", policies.ONE),
    "memory": ("recurrent_ppo", "lstm", policies.ONE),
    "weights": ("ppo", "cnn", policies.TWO),
}


def silent(_: dict[str, Any]) -> None: ...


def made_bars(rows: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 0.01, rows)))
    opened = np.concatenate([[100.0], close[:-1]])
    times = 1_704_067_200_000 + np.arange(rows) * 60_000
    return pl.DataFrame(
        {
            "ts": pl.Series(times).cast(pl.Datetime("ms", "UTC")),
            "open": opened,
            "high": np.maximum(opened, close) * 1.001,
            "low": np.minimum(opened, close) * 0.999,
            "close": close,
            "volume": rng.exponential(5.0, rows),
        }
    )


def inline(bars: pl.DataFrame) -> dict[str, Any]:
    return {name: bars[name].to_physical().to_list() for name in BAR_COLUMNS}


def sweep(bars: Any, **others: Any) -> dict[str, Any]:
    return {"kind": "indicators", "bars": bars, "indicators": INDICATORS, **others}


def local_sweep(bars: pl.DataFrame) -> pl.DataFrame:
    settings = FeatureSetSettings.model_validate({"indicators": INDICATORS})
    return feature_table([bars], resolve(settings, "test"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with bars and a policy of each kind of action."""
    root = tmp_path_factory.mktemp("volume") / "trade_pipeline"
    write_frame(ArtifactLocation(root / "store", "bars/demo.parquet"), made_bars())
    for name, made_as in KINDS.items():
        staged = policies.write_bundle(root / "store", f"staging/{name}", *made_as)
        version = verify(staged)["version"]
        key = ArtifactLocation(root / "store", f"demo/policy/{name}")
        commit(BundleReference(staged, version), key)
    return root


def reference(root: Path, name: str) -> dict[str, str]:
    pointer = root / "store" / "demo" / "policy" / name / "current.json"
    version = json.loads(pointer.read_text(encoding="utf-8"))["version"]
    return {"key": f"demo/policy/{name}", "version": version}


def seen(name: str, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Unscaled rows float32 [count + 3, N, 2], and account vectors."""
    rng, instruments = np.random.default_rng(8), len(KINDS[name][2])
    rows = rng.normal(0, 0.02, (count + 3, instruments, 2)).astype(np.float32)
    return rows, rng.normal(size=(count, 5 * instruments + 1)).astype(np.float32)


def infer(root: Path, name: str, by: str = "rows", **others: Any) -> dict[str, Any]:
    rows, accounts = seen(name)
    flat = rows.reshape(len(rows), -1).tolist()
    windows = [flat[k : k + 4] for k in range(len(accounts))]
    given = {"rows": flat} if by == "rows" else {"windows": windows}
    asked = {"kind": "infer", "policy": reference(root, name), "accounts": accounts.tolist()}
    return {**asked, **given, **others}


def local_actions(root: Path, name: str) -> np.ndarray:
    where = reference(root, name)
    location = ArtifactLocation(root / "store", f"{where['key']}/{where['version']}")
    runner = PolicyRunner.load(location)
    rows, accounts = seen(name)
    scaled = runner.normalizer.transform(rows)
    acted = [
        runner.act({"window": scaled[k : k + 4], "account": account})
        for k, account in enumerate(accounts)
    ]
    return np.stack(acted)


@contextmanager
def process(root: Path, environment: dict[str, str], *options: str) -> Iterator[None]:
    """The handler as RunPod starts it."""
    module = "trade_pipeline.compute.runpod.serverless"
    started = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        cwd=PROJECT,
        env={**os.environ, ROOT_VARIABLE: str(root), **environment},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        started.terminate()
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


@pytest.fixture(scope="module")
def local_url(root: Path) -> Iterator[str]:
    """The SDK's local test server."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    options = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    with process(root, {}, *options):
        for _ in range(int(START_S / 0.1)):
            try:
                httpx.get(f"{url}/openapi.json")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            raise TimeoutError("the test server never answered")
        yield url


@pytest.fixture(scope="module")
def served(root: Path) -> Iterator[Platform]:
    """The platform with one real worker."""
    with Platform() as platform, process(root, platform.worker_environment):
        yield platform
        assert not platform.unexpected


@pytest.fixture
def platform(served: Platform) -> Iterator[Platform]:
    yield served
    served.updates, served.arrange = 0, list
    assert not served.failures, "failures that no request met"
    served.received.clear()


@pytest.fixture
def idle() -> Iterator[Platform]:
    """The platform without any worker."""
    with Platform() as platform:
        yield platform


def fetching(root: Path) -> Callable[[str], bytes | None]:
    def fetch(key: str) -> bytes | None:
        path = ArtifactLocation(root, key).path
        return path.read_bytes() if path.exists() else None

    return fetch


def endpoint(url: str, **options: Any) -> Endpoint:
    return Endpoint(url, options.pop("key", KEY), **{"poll_s": 0.01, "timeout_s": 60.0, **options})


@pytest.mark.parametrize("method", ["run", "run_sync"])
@pytest.mark.parametrize("where", ["local_url", "platform"])
def test_a_sweep_gives_the_feature_table(
    request: pytest.FixtureRequest, where: str, method: str
) -> None:
    found = request.getfixturevalue(where)
    asked = endpoint(found if isinstance(found, str) else found.url)
    bars = made_bars()
    table = getattr(asked, method)(sweep(inline(bars)))
    assert_frame_equal(table, local_sweep(bars), check_exact=True)
    assert table.height > 100


def test_bars_on_the_volume_give_the_same_as_inline_ones(local_url: str) -> None:
    table = endpoint(local_url).run_sync(sweep({"key": "bars/demo.parquet"}))
    assert_frame_equal(table, local_sweep(made_bars()), check_exact=True)


def test_too_few_bars_give_an_empty_table_with_its_columns(root: Path) -> None:
    bars = made_bars(20)
    given = answer(sweep(inline(bars)), "job", root, silent)
    assert list(given["columns"]) == local_sweep(bars).columns
    assert set(map(len, given["columns"].values())) == {0}


@pytest.mark.parametrize("by", ["rows", "windows"])
@pytest.mark.parametrize("name", KINDS)
def test_a_policy_acts_as_it_does_here_to_the_last_bit(
    root: Path, local_url: str, name: str, by: str
) -> None:
    table = endpoint(local_url).run_sync(infer(root, name, by))
    wanted = local_actions(root, name)
    given = np.ascontiguousarray(table.to_numpy())
    assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
    assert given.tobytes() == wanted.tobytes()
    assert table.columns[0] == ("weight_0" if name == "weights" else "choice_0")
    assert len(np.unique(given)) > 1


@pytest.mark.parametrize("job", ["sweep", "infer"])
def test_a_result_over_its_cap_goes_to_the_volume(root: Path, local_url: str, job: str) -> None:
    asked = sweep(inline(made_bars())) if job == "sweep" else infer(root, "weights")
    whole = endpoint(local_url).run(asked)
    reached = []

    def fetch(key: str) -> bytes | None:
        reached.append(key)
        return fetching(root)(key)

    stored = endpoint(local_url, fetch=fetch).run({**asked, "output_bytes": 100})
    assert_frame_equal(stored, whole, check_exact=True)
    (key,) = reached
    assert key.startswith("jobs/serverless/")
    assert [path.name for path in (root / key).parent.iterdir()] == ["table.parquet"]


def test_a_result_changed_or_gone_on_the_volume_is_refused(root: Path, local_url: str) -> None:
    asked = {**infer(root, "weights"), "output_bytes": 100}
    with pytest.raises(ResultRefused, match=r"SHA-256 differs\); run the job again"):
        endpoint(local_url, fetch=lambda key: b"other").run(asked)
    with pytest.raises(ExchangeError, match="is not on the volume at jobs/serverless/"):
        endpoint(local_url, fetch=lambda key: None).run(asked)
    with pytest.raises(ExchangeError, match="give `fetch`"):
        endpoint(local_url).run(asked)


def test_without_a_volume_a_large_result_is_an_error(tmp_path: Path) -> None:
    given = answer(sweep(inline(made_bars()), output_bytes=100), "job", tmp_path / "none", silent)
    assert "attach a network volume" in given["error"]
    assert not (tmp_path / "none").exists()


def test_a_result_at_its_cap_is_returned(root: Path) -> None:
    asked = infer(root, "choices")
    size = len(json.dumps(answer(asked, "job", root, silent)).encode())
    assert "columns" in answer({**asked, "output_bytes": size}, "job", root, silent)
    assert "key" in answer({**asked, "output_bytes": size - 1}, "job", root, silent)


def without(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in asked.items() if key != name}


BARS = inline(made_bars(30))
ACCOUNTS = seen("choices")[1].tolist()
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda root: None, "job input"),
    "no kind": (lambda root: {"bars": BARS}, "kind"),
    "another kind": (lambda root: {"kind": "train"}, "'indicators', 'infer'"),
    "unknown key": (lambda root: sweep(BARS, extra=1), "unknown key 'indicators.extra'"),
    "misspelt key": (
        lambda root: {**without(sweep(BARS), "bars"), "bar": BARS},
        "Did you mean 'bars'",
    ),
    "unknown column": (lambda root: sweep({**BARS, "vwap": []}), "vwap"),
    "missing column": (lambda root: sweep(without(BARS, "low")), "low' is missing; add it"),
    "ragged columns": (lambda root: sweep({**BARS, "low": [1.0]}), "'low': 1"),
    "text for a number": (lambda root: sweep({**BARS, "low": ["1.0"] * 30}), "valid number"),
    "not a number": (lambda root: sweep({**BARS, "low": [math.nan] * 30}), "finite number"),
    "time too far": (lambda root: sweep({**BARS, "ts": [2**70] * 30}), "ts"),
    "unordered": (lambda root: sweep({**BARS, "ts": BARS["ts"][::-1]}), "sort the bars"),
    "no indicator": (lambda root: {**sweep(BARS), "indicators": []}, "at least 1"),
    "unknown indicator": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsy"}]},
        "Did you mean 'rsi'",
    ),
    "wrong parameter": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsi", "params": {"period": 1}}]},
        "greater than or equal to 2",
    ),
    "two of one name": (
        lambda root: {**sweep(BARS), "indicators": [{"name": "rsi"}] * 2},
        "remove one or change its parameters",
    ),
    "no such bars": (lambda root: sweep({"key": "bars/none.parquet"}), "no such frame"),
    "bars outside": (lambda root: sweep({"key": "../secret.parquet"}), "part '..' is not allowed"),
    "bars at the root": (lambda root: sweep({"key": "/etc/passwd"}), "part '' is not allowed"),
    "policy outside": (
        lambda root: infer(root, "choices", policy={"key": "../x", "version": "0" * 32}),
        "part '..' is not allowed",
    ),
    "version outside": (
        lambda root: infer(root, "choices", policy={"key": "demo", "version": "../.."}),
        "is not 32 hex digits",
    ),
    "no such version": (
        lambda root: infer(root, "choices", policy={"key": "demo", "version": "0" * 32}),
        "is not there",
    ),
    "neither": (lambda root: without(infer(root, "choices"), "rows"), "either 'windows' or 'rows'"),
    "both": (lambda root: infer(root, "choices", windows=[[[1.0]]]), "either 'windows' or 'rows'"),
    "short rows": (lambda root: infer(root, "choices", rows=[[1.0, 2.0]]), "needs (15, 2)"),
    "narrow rows": (lambda root: infer(root, "choices", rows=[[1.0]] * 15), "needs (15, 2)"),
    "ragged rows": (
        lambda root: infer(root, "choices", rows=[[1.0]] + [[1.0, 2.0]] * 14),
        "not all have the same length",
    ),
    "wide accounts": (
        lambda root: infer(root, "choices", accounts=[[*row, 0.0] for row in ACCOUNTS]),
        "needs (12, 6)",
    ),
    "no accounts": (lambda root: infer(root, "choices", accounts=[]), "at least 1"),
    "infinite": (lambda root: infer(root, "choices", rows=[[math.inf] * 2] * 15), "finite"),
    "beyond a float32": (lambda root: infer(root, "choices", rows=[[1e39] * 2] * 15), "float32"),
    "cap too high": (lambda root: infer(root, "choices", output_bytes=10**9), "output_bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_job_is_refused_in_a_sentence(root: Path, name: str) -> None:
    made, said = WRONG[name]
    given = answer(made(root), "job", root, silent)
    assert list(given) == ["error"]
    assert said in given["error"]
    assert len(given["error"]) <= 4_000


def test_a_damaged_policy_is_not_asked(root: Path, tmp_path: Path) -> None:
    """Neither one with a changed byte, nor another version in the place of the one named."""
    for name in ("changed", "moved"):
        store = tmp_path / name / "store"
        staged = policies.write_bundle(store, "staging/p")
        version = verify(staged)["version"]
        target = commit(BundleReference(staged, version), ArtifactLocation(store, "demo"))
        if name == "changed":
            with (target.path / "policy.safetensors").open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
        else:
            target.path.rename(target.path.with_name("0" * 32))
            version = "0" * 32
        asked = infer(root, "choices", policy={"key": "demo", "version": version})
        given = answer(asked, "job", tmp_path / name, silent)
        expected = {"changed": "is not the file that was sealed", "moved": "holds version"}[name]
        assert expected in given["error"]


@pytest.mark.parametrize("method", ["run", "run_sync"])
@pytest.mark.parametrize("where", ["local_url", "platform"])
def test_what_the_handler_refuses_comes_back_in_its_words(
    request: pytest.FixtureRequest, where: str, method: str
) -> None:
    found = request.getfixturevalue(where)
    asked = endpoint(found if isinstance(found, str) else found.url)
    with pytest.raises(JobFailed, match=r"unknown key 'indicators.extra'") as caught:
        getattr(asked, method)(sweep(BARS, extra=1))
    assert KEY not in str(caught.value)


def test_of_an_error_in_the_handler_the_traceback_stays_there(
    root: Path, platform: Platform
) -> None:
    text = made_bars().with_columns(close=pl.lit("dear"))
    write_frame(ArtifactLocation(root / "store", "bars/text.parquet"), text)
    with pytest.raises(JobFailed, match="conversion from `str` to `f64` failed") as caught:
        endpoint(platform.url).run(sweep({"key": "bars/text.parquet"}))
    assert "Traceback" not in str(caught.value)


def test_progress_comes_in_order_though_updates_overtake_each_other(platform: Platform) -> None:
    platform.updates = len(INDICATORS) - 1
    told: list[dict[str, Any]] = []
    platform.arrange = lambda updates: sorted(updates, key=lambda one: one["seq"])
    endpoint(platform.url).run(sweep(BARS), told.append)
    assert [one["seq"] for one in told] == [1, 2, 3, 4, 5]
    assert [one["what"] for one in told] == [one["name"] for one in INDICATORS[:-1]]
    assert {one["of"] for one in told} == {6}
    told.clear()

    def swapped(updates: list[Any]) -> list[Any]:
        by_number = {one["seq"]: one for one in updates}
        return [by_number[number] for number in (2, 1, 3, 5, 4)]

    platform.arrange = swapped
    endpoint(platform.url).run(sweep(BARS), told.append)
    assert [one["seq"] for one in told] == [2, 3, 5]


def test_a_long_job_tells_its_progress_a_hundred_times_at_most(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows, accounts = rng.normal(size=(1_003, 2)).tolist(), rng.normal(size=(1_000, 6)).tolist()
    told: list[dict[str, Any]] = []
    given = answer(infer(root, "choices", rows=rows, accounts=accounts), "job", root, told.append)
    assert len(given["columns"]["choice_0"]) == 1_000
    assert [one["seq"] for one in told] == list(range(1, 100))
    assert told[-1] == {"seq": 99, "done": 990, "of": 1_000, "what": "observations"}


def test_a_job_that_takes_too_long_is_cancelled(idle: Platform) -> None:
    with pytest.raises(JobTimedOut, match=r"not done after 0.05 s and was cancelled"):
        endpoint(idle.url, timeout_s=0.05).run(sweep(BARS))
    assert idle.jobs["job-0"].status == "CANCELLED"


def test_a_job_that_nobody_waits_for_is_cancelled(idle: Platform) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endpoint(idle.url, sleep=interrupted).run(sweep(BARS))
    assert idle.jobs["job-0"].status == "CANCELLED"


def test_a_cancelled_job_is_an_error_for_who_waits(idle: Platform) -> None:
    asked = endpoint(idle.url)
    job_id = asked.submit(sweep(BARS))
    asked.cancel(job_id)
    with pytest.raises(JobFailed, match="it was cancelled"):
        asked.result(job_id)


def test_a_stopped_job_stops_working(root: Path) -> None:
    first, going_on = threading.Event(), threading.Event()
    told: list[Any] = []

    def update(job: dict[str, Any], progress: Any) -> None:
        told.append((job["id"], progress["seq"]))
        first.set()
        going_on.wait(START_S)

    async def stopped() -> None:
        job = {"id": "job", "input": sweep(BARS)}
        task = asyncio.create_task(Worker(root, update)(job))
        await asyncio.to_thread(first.wait, START_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        going_on.set()

    asyncio.run(stopped())  # ends when the thread has
    assert told == [("job", 1)]


@pytest.mark.parametrize(("method", "most"), [("run", 10_000_000), ("run_sync", 20_000_000)])
def test_an_input_over_its_limit_is_not_sent(idle: Platform, method: str, most: int) -> None:
    envelope = {"input": {"output_bytes": most, "kind": ""}}
    room = most - len(json.dumps(envelope).encode())
    asked = endpoint(idle.url, timeout_s=0.01)
    with pytest.raises(RequestRefused, match="Put bars into the store on the volume"):
        getattr(asked, method)({"kind": "é" * (room // 6 + 1)})  # six bytes each, encoded
    assert not idle.received
    if method == "run":
        asked.submit({"kind": "x" * room})
        assert idle.received == ["POST run"]


@pytest.mark.parametrize(("method", "most"), [("run", 10_000_000), ("run_sync", 20_000_000)])
def test_a_cap_that_runpod_does_not_keep_is_not_sent(
    idle: Platform, method: str, most: int
) -> None:
    with pytest.raises(RequestRefused, match="a larger result goes to the volume"):
        getattr(endpoint(idle.url), method)(sweep(BARS, output_bytes=most + 1))
    assert not idle.received
    endpoint(idle.url).submit(sweep(BARS))
    assert idle.jobs["job-0"].input["output_bytes"] == 10_000_000


def test_what_json_does_not_have_is_not_sent(idle: Platform) -> None:
    for value in (math.nan, np.zeros(2)):
        with pytest.raises(RequestRefused, match="cannot be written as JSON"):
            endpoint(idle.url).run({"kind": value})
    assert not idle.received


def test_a_passing_failure_while_waiting_does_no_harm(platform: Platform) -> None:
    slept: list[float] = []
    asked = endpoint(platform.url, sleep=lambda pause_s: (slept.append(pause_s), time.sleep(0.01)))
    job_id = asked.submit(sweep(BARS))
    platform.failures = [(502, {}), (429, {"Retry-After": "7"}), (500, {})]
    assert asked.result(job_id).columns[0] == "ts"
    assert 7.0 in slept


@pytest.mark.parametrize(
    ("failure", "raised", "said", "requests"),
    [
        (500, RunPodUnavailable, "may run all the same", 1),
        (403, AccessDenied, "give the API key access", 1),
        (404, RequestRefused, "correct the endpoint", 1),
        (400, RequestRefused, "answered 400", 1),
        (429, RateLimited, "send fewer jobs at once", 5),
    ],
)
def test_a_job_that_cannot_be_sent_is_sent_once(
    idle: Platform, failure: int, raised: type[Exception], said: str, requests: int
) -> None:
    """Again only after 429, which says that there is no job."""
    idle.failures = [(failure, {})] * requests
    with pytest.raises(raised, match=said) as caught:
        endpoint(idle.url).run(sweep(BARS))
    assert idle.received == ["POST run"] * requests
    assert KEY not in str(caught.value)


def test_a_key_that_is_not_accepted_is_not_shown(idle: Platform) -> None:
    with pytest.raises(AccessDenied, match="set RUNPOD_API_KEY") as caught:
        endpoint(idle.url, key="rpa_wrong").run(sweep(BARS))
    assert "rpa_wrong" not in str(caught.value)
    with pytest.raises(AccessDenied, match="no API key was given"):
        Endpoint(idle.url, "")


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RunPodUnavailable, match=f"127.0.0.1:{port}/v2/demo/run: no usable answer"):
        endpoint(f"http://127.0.0.1:{port}/v2/demo").run(sweep(BARS))
