"""A pod's log, live: every line once, whatever breaks, and an end when one is wanted."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.compute.runpod.api import LogLine
from trade_pipeline.compute.runpod.errors import RateLimited, RunPodUnavailable
from trade_pipeline.compute.runpod.log_stream import events_of, unseen
from trade_pipeline.compute.runpod.rest import MOST_ATTEMPTS, RestApi
from trade_pipeline.compute.runpod.wire import WireLine
from trade_pipeline_tests.compute.runpod.conversations import answering, pod_request, printing
from trade_pipeline_tests.fakes.runpod import FakeRunPod

COUNTING = "for n in range({}): print('line', n // 2)\nimport time; time.sleep(60)"
STOPPED_WITHIN_S = 15.0


@pytest.fixture
def fake() -> Iterator[FakeRunPod]:
    with FakeRunPod() as fake:
        yield fake
    assert not fake.unexpected
    assert not fake.faults.unused


@pytest.fixture
def api(fake: FakeRunPod) -> RestApi:
    return RestApi(fake.rest_url, fake.api_key, sleep=lambda _: None)


def started(fake: FakeRunPod, api: RestApi, script: str, lines: int = 0) -> str:
    """Id of a pod that has printed so many lines."""
    pod_id = api.create_pod(pod_request(args=printing(script))).id
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if sum(line.source == "container" for line in fake.pods[-1].lines) >= lines:
            return pod_id
        time.sleep(0.02)
    raise AssertionError(f"the pod printed only {fake.pods[-1].lines}")


def first(lines: Iterator[LogLine], count: int) -> list[LogLine]:
    return [next(lines) for _ in range(count)]


def test_lines_come_while_the_pod_runs_and_end_with_it(api: RestApi, fake: FakeRunPod) -> None:
    script = "import sys, time\nprint('early')\ntime.sleep(0.3)\nprint('late')\ntime.sleep(60)"
    before = datetime.now(UTC)
    pod_id = started(fake, api, script)
    lines = api.logs(pod_id, "container")
    early, late = first(lines, 2)
    assert (early.line, late.line, early.source) == ("early", "late", "container")
    assert before < early.ts < late.ts and early.ts.tzinfo is UTC
    api.terminate(pod_id)
    assert [line.line for line in lines] == []


def test_each_source_has_its_own_lines(api: RestApi, fake: FakeRunPod) -> None:
    pod_id = started(fake, api, COUNTING.format(2), 2)
    assert {line.source for line in first(api.logs(pod_id, "system"), 2)} == {"system"}
    assert {line.source for line in first(api.logs(pod_id, "container"), 2)} == {"container"}


def test_a_log_is_given_from_its_beginning(api: RestApi, fake: FakeRunPod) -> None:
    pod_id = started(fake, api, COUNTING.format(300), 300)
    lines = first(api.logs(pod_id, "container"), 300)
    assert [line.line for line in lines] == [f"line {n // 2}" for n in range(300)]


@pytest.mark.parametrize("decimals", [0, 9])  # with none, many lines share a time
def test_a_stream_that_breaks_ends_and_is_resumed_without_a_line_twice_or_lost(
    api: RestApi, fake: FakeRunPod, decimals: int
) -> None:
    fake.log_decimals, fake.log_repeats = decimals, 3
    pod_id = started(fake, api, COUNTING.format(40), 40)
    fake.faults.plan("logs_cut", lines=3)
    fake.faults.plan("logs_cut", lines=10)
    fake.faults.plan("logs_cut", lines=17)
    got: list[LogLine] = []
    for _ in range(3):
        got += api.logs(pod_id, "container", got[-1].id if got else None)
    last = got[-1].id
    got += first(api.logs(pod_id, "container", last), 40 - len(got))
    assert fake.operations("logs")[-1].headers["last-event-id"] == last
    assert [line.line for line in got] == [f"line {n // 2}" for n in range(40)]


def test_an_id_that_was_stored_as_text_leaves_out_all_of_its_time(
    api: RestApi, fake: FakeRunPod
) -> None:
    pod_id = started(fake, api, COUNTING.format(6), 6)
    lines = first(api.logs(pod_id, "container"), 6)
    after = str.__str__(lines[2].id)
    assert type(after) is str
    assert first(api.logs(pod_id, "container", after), 3) == lines[3:]


def test_heartbeats_give_no_line_and_keep_the_stream_alive(fake: FakeRunPod) -> None:
    fake.timing.keepalive_s = 0.1
    api = RestApi(fake.rest_url, fake.api_key, log_timeout_s=2.0)
    pod_id = started(fake, api, "import time; time.sleep(3); print('at last'); time.sleep(60)")
    assert next(api.logs(pod_id, "container")).line == "at last"
    assert len([one for one in fake.pods[0].lines if one.source == "container"]) == 1


def test_a_stream_without_heartbeats_counts_as_broken(fake: FakeRunPod) -> None:
    fake.timing.keepalive_s = 60
    api = RestApi(fake.rest_url, fake.api_key, log_timeout_s=0.3)
    pod_id = started(fake, api, COUNTING.format(2), 2)
    begun = time.monotonic()
    assert len(list(api.logs(pod_id, "container"))) == 2
    assert time.monotonic() - begun < 10


def test_a_log_that_cannot_be_opened_is_asked_for_again(api: RestApi, fake: FakeRunPod) -> None:
    pod_id = started(fake, api, COUNTING.format(2), 2)
    fake.faults.plan("html", on="logs", status=503, times=3)
    assert next(api.logs(pod_id, "container")).line == "line 0"
    fake.faults.plan("rate_limited", on="logs", times=MOST_ATTEMPTS)
    with pytest.raises(RateLimited, match=pod_id):
        next(api.logs(pod_id, "container"))


def test_a_page_instead_of_a_log_is_told() -> None:
    with (
        answering("<title>Hello</title>", headers={"Content-Type": "text/html"}) as (url, _),
        pytest.raises(RunPodUnavailable, match="a page titled 'Hello'"),
    ):
        next(RestApi(url, "rpa_key").logs("abc", "container"))


# Following can be stopped, from another thread.

WAITING: dict[str, Callable[[FakeRunPod], object]] = {
    "for a line": lambda fake: None,
    "for the answer": lambda fake: fake.faults.plan("timeout", on="logs", seconds=30),
    "between attempts": lambda fake: fake.faults.plan("rate_limited", on="logs", retry_after=30),
}


@pytest.mark.parametrize("waits", WAITING)
def test_a_reader_that_waits_is_stopped_at_once(fake: FakeRunPod, waits: str) -> None:
    fake.timing.keepalive_s = 60  # no heartbeat wakes it
    api = RestApi(fake.rest_url, fake.api_key)
    pod_id = started(fake, api, COUNTING.format(1), 1)
    WAITING[waits](fake)
    stop, got = threading.Event(), list[LogLine]()
    reader = threading.Thread(
        target=lambda: got.extend(api.logs(pod_id, "container", stop=stop)), daemon=True
    )
    reader.start()
    reader.join(1)
    assert reader.is_alive()
    stop.set()
    reader.join(STOPPED_WITHIN_S)  # what it waits for comes after 30 s
    assert not reader.is_alive()


def test_what_a_log_holds_now_may_be_asked_for(fake: FakeRunPod) -> None:
    fake.timing.keepalive_s = 60
    api = RestApi(fake.rest_url, fake.api_key)
    pod_id = started(fake, api, COUNTING.format(3), 3)
    assert len(list(api.logs(pod_id, "container", for_s=1.0))) == 3


def test_a_reader_that_is_stopped_before_it_began_asks_nothing_of_the_pod(
    api: RestApi, fake: FakeRunPod
) -> None:
    pod_id = started(fake, api, COUNTING.format(1), 1)
    stop = threading.Event()
    stop.set()
    assert list(api.logs(pod_id, "container", stop=stop)) == []


def test_a_reader_that_is_given_up_leaves_no_thread(api: RestApi, fake: FakeRunPod) -> None:
    pod_id = started(fake, api, COUNTING.format(1), 1)
    lines = api.logs(pod_id, "container", stop=threading.Event())
    next(lines)
    name = "stop of a pod's log"
    assert name in [thread.name for thread in threading.enumerate()]
    lines.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 5
    while name in [thread.name for thread in threading.enumerate()]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# What comes over the wire.

STREAM = (
    ": connected\n\n"
    'id: 2026-11-21T10:00:00.5Z\ndata: {"ts": "2026-11-21T10:00:00.5Z", "source": "container",\n'
    'data:  "line": "caf\u00e9 \u0085 \u2028 end"}\n\n'
    ": heartbeat\n\n"
    "event: message\r\n"
    'data:{"ts":"2026-11-21T10:00:01Z","source":"system","line":"","new":1}\r\n\r\n'
    "data: no JSON\n\n"
    'data: {"ts": "never", "source": "container", "line": "x"}\n\n'
    "id: 2026-11-21T10:00:03Z\n\n"
    'data: {"ts": "2026-11-21T10:00:02Z", "source": "container", "line": "cut of'
).encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_events_are_read_however_the_stream_is_cut_into_pieces(size: int) -> None:
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    assert [(one, line.source, line.line) for one, line in events_of(pieces)] == [
        ("2026-11-21T10:00:00.5Z", "container", "caf\u00e9 \u0085 \u2028 end"),
        ("2026-11-21T10:00:00.5Z", "system", ""),
    ]


@given(
    times=st.lists(st.integers(0, 3), min_size=1, max_size=14).map(sorted),
    texts=st.lists(st.sampled_from("ab"), min_size=14, max_size=14),
    cuts=st.lists(st.integers(0, 9), max_size=8),
    repeats=st.integers(0, 3),
)
def test_every_line_comes_once_and_in_order_however_often_a_stream_breaks(
    times: list[int], texts: list[str], cuts: list[int], repeats: int
) -> None:
    log = []
    for nanoseconds, text in zip(times, texts, strict=False):
        identity = f"2026-11-21T10:00:00.{nanoseconds:09d}Z"
        ts = datetime(2026, 11, 21, 10, tzinfo=UTC)
        log.append((identity, WireLine(ts=ts, source="container", line=text)))
    got: list[LogLine] = []
    for cut in [*cuts, len(log) + repeats]:
        after = got[-1].id if got else None
        begin = next((n for n, (identity, _) in enumerate(log) if identity == after), 0)
        begin = max(0, begin - repeats) if after else 0
        got += unseen(log[begin : begin + cut], after)
    assert [(line.id, line.line) for line in got] == [
        (identity, line.line) for identity, line in log
    ]
