"""Times as RunPod writes them, and bills: what pods cost in each hour, day or week.

Start at `bills`.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from trade_pipeline_tests.fakes.runpod.answers import ProblemError
from trade_pipeline_tests.fakes.runpod.pods import NS_PER_S, FakePod

BUCKETS_S = {"hour": 3600, "day": 86_400, "week": 604_800}
BILLING_DAYS = 30


def bills(pods: Sequence[FakePod], query: Mapping[str, str], until_s: float) -> dict[str, Any]:
    """What `GET /v2/billing/pods` answers; younger usage than `until_s` is not billed yet."""
    if "lastN" in query and ("startTime" in query or "endTime" in query):
        raise ProblemError(400, "lastN and startTime/endTime are mutually exclusive")
    size = query.get("bucketSize", "day")
    if size not in BUCKETS_S:
        raise ProblemError(400, f"fake RunPod: no bucketSize {size}")
    window = _window(query, BUCKETS_S[size])
    records = [
        record
        for pod in pods
        if query.get("podId") in (None, pod.id)
        for record in _records(pod, window, BUCKETS_S[size], until_s)
    ]
    total = sum(record["totalAmount"] for record in records)
    metadata = {
        "query": {
            "startTime": timestamp(window[0] * NS_PER_S, 0),
            "endTime": timestamp(window[1] * NS_PER_S, 0),
            "bucketSize": size,
            "podId": query.get("podId"),
        },
        "recordCount": len(records),
        "uniquePodCount": len({record["podId"] for record in records}),
        "totals": _amounts(total, is_gpu=True),
    }
    return {"records": records, "metadata": metadata}


def timestamp(ns: int, decimals: int = 6) -> str:
    """A time as RFC 3339 in UTC, cut to so many digits of a second."""
    second = datetime.fromtimestamp(ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return second + (f".{ns % NS_PER_S:09d}"[: decimals + 1] if decimals else "") + "Z"


def unix_ns(when: str) -> int:
    """Unix nanoseconds of an RFC 3339 time; all digits count, which datetime would cut."""
    found = re.fullmatch(r"([^.]*?)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", when)
    assert found is not None
    seconds = datetime.fromisoformat(found[1] + found[3].upper().replace("Z", "+00:00"))
    return int(seconds.timestamp()) * NS_PER_S + int((found[2] or "0").ljust(9, "0")[:9])


def _window(query: Mapping[str, str], bucket_s: int) -> tuple[int, int]:
    """The asked window in Unix seconds, widened to whole buckets."""
    now_s = int(time.time()) + 1  # the second that has begun counts
    end_s = unix_ns(query["endTime"]) // NS_PER_S if "endTime" in query else now_s
    start_s = end_s - int(timedelta(days=BILLING_DAYS).total_seconds())
    if "startTime" in query:
        start_s = unix_ns(query["startTime"]) // NS_PER_S
    end_s = -(-max(end_s, 1) // bucket_s) * bucket_s
    if "lastN" in query:
        start_s = end_s - int(query["lastN"]) * bucket_s
    return start_s // bucket_s * bucket_s, end_s


def _records(
    pod: FakePod, window: tuple[int, int], bucket_s: int, until_s: float
) -> Iterator[dict[str, Any]]:
    """What a pod cost in each bucket, as far as it is billed yet."""
    first_s = max(window[0], int(pod.created_s) // bucket_s * bucket_s)
    for start_s in range(first_s, min(window[1], int(until_s) + 1), bucket_s):
        spent_s = sum(
            max(0.0, min(until_s if end is None else end, until_s, start_s + bucket_s) - begin_s)
            for begin, end in pod.spans
            for begin_s in [max(begin, start_s)]
        )
        if spent_s > 0:
            yield {
                "podId": pod.id,
                "startTime": timestamp(start_s * NS_PER_S, 0),
                "endTime": timestamp((start_s + bucket_s) * NS_PER_S, 0),
                **_amounts(spent_s / 3600 * pod.cost_usd_h, is_gpu="gpu" in pod.spec),
            }


def _amounts(usd: float, *, is_gpu: bool) -> dict[str, float]:
    return {
        "totalAmount": usd,
        "gpuAmount": usd if is_gpu else 0.0,
        "cpuAmount": 0.0 if is_gpu else usd,
        "diskAmount": 0.0,
    }
