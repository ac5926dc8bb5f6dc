"""The plan: what would be asked for, in which order, for how much, and what nobody may read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trade_pipeline.compute.runpod.api import GpuOffer, PodRequest, Volume
from trade_pipeline.compute.runpod.plan import (
    REDACTED,
    PlanError,
    disk_usd_h,
    identity,
    is_ours,
    plan,
    pod_name,
    redacted,
    supervisor_command,
    volume_alert,
    volume_usd_month,
)
from trade_pipeline.settings.compute import RunPodComputeSettings

API_KEY = "rpa_0123456789ABCDEF"
OFFERS = (
    GpuOffer("NVIDIA L4", 0.43, "HIGH"),
    GpuOffer("NVIDIA A40", 0.40, "NONE"),
    GpuOffer("NVIDIA RTX A4000", 0.25, "LOW"),
)
VOLUMES = (Volume("vol1", "trading", 100, "EU-RO-1"), Volume("vol2", "other", 50, "US-KS-2"))
RUN = "5d3f9a1c-1111-4222-8333-444455556666"


def compute(**changes: Any) -> RunPodComputeSettings:
    return RunPodComputeSettings.model_validate(
        {
            "kind": "runpod",
            "image": "registry/trade@sha256:" + "a" * 64,
            "gpus": ["NVIDIA L4"],
            "cuda": ["12.8"],
            "exchange": {"kind": "volume", "id": "vol1"},
            "disk_gb": 73,
            "hours": 4,
            "budget": {"run_usd": 5, "day_usd": 10, "hourly_usd": 2, "pods": 3},
            **changes,
        }
    )


def as_sent(request: PodRequest) -> dict[str, Any]:
    return {"name": request.name, "args": " ".join(request.args), "env": dict(request.env)}


def planned(settings: RunPodComputeSettings, **changes: Any) -> list[Any]:
    given: dict[str, Any] = {
        "name": "tp-main-01234567-5d3f9a1c-1",
        "args": ("python", "-m", "task"),
        "env": {},
        "offers": OFFERS,
        "volumes": VOLUMES,
        "payload": as_sent,
        "secrets": (API_KEY,),
    }
    return plan(settings, **{**given, **changes})


def test_a_plan_costs_gpu_and_disk_for_the_planned_hours() -> None:
    [only] = planned(compute())
    # 73 GB at 0.10 USD a month of 730 hours are one cent an hour.
    assert only.usd_h == pytest.approx(0.44)
    assert only.estimate_usd == pytest.approx(1.76)
    assert only.note == ""
    intent = only.intent("main", "0123456789abcdef", RUN)
    assert (intent.name, intent.gpu) == (only.request.name, "NVIDIA L4")
    assert (intent.approved_usd_h, intent.estimate_usd) == (only.usd_h, only.estimate_usd)


def test_a_plan_asks_for_what_the_settings_say() -> None:
    settings = compute(pod_environment={"LEVEL": "debug", "BOTH": "settings"})
    [only] = planned(settings, env={"BOTH": "run"})
    assert only.request == PodRequest(
        name="tp-main-01234567-5d3f9a1c-1",
        image=settings.image,
        gpu="NVIDIA L4",
        cuda=("12.8",),
        cloud="SECURE",
        data_centers=("EU-RO-1",),
        disk_gb=73,
        args=("python", "-m", "task"),
        env={"LEVEL": "debug", "BOTH": "run"},
        volume=("vol1", "/workspace"),
    )


def test_candidates_keep_their_order_and_unavailable_ones_are_tried_last() -> None:
    plans = planned(compute(gpus=["NVIDIA A40", "NVIDIA RTX A4000", "NVIDIA L4"]))
    assert [one.request.gpu for one in plans] == ["NVIDIA RTX A4000", "NVIDIA L4", "NVIDIA A40"]
    assert [bool(one.note) for one in plans] == [False, False, True]


def test_an_unknown_gpu_is_refused_with_the_closest_known() -> None:
    with pytest.raises(PlanError, match=r"no GPU type 'nvidia rtx 4000' .*'NVIDIA RTX A4000'"):
        planned(compute(gpus=["NVIDIA L4", "nvidia rtx 4000"]))


def test_a_pod_goes_where_its_volume_lies() -> None:
    [only] = planned(compute(exchange={"kind": "volume", "id": "vol2"}))
    assert only.request.data_centers == ("US-KS-2",)
    assert planned(compute(data_center="eu-ro-1"))[0].request.data_centers == ("EU-RO-1",)


def test_a_data_center_that_is_not_the_volumes_is_refused_with_both_named() -> None:
    with pytest.raises(PlanError, match=r"'data_center' is US-KS-2, but volume vol1 .* EU-RO-1"):
        planned(compute(data_center="US-KS-2"))


def test_a_volume_that_the_account_lacks_is_refused() -> None:
    settings = compute(exchange={"kind": "volume", "id": "vol9"})
    with pytest.raises(PlanError, match=r"no network volume vol9; it has vol1 \(trading, EU-RO-1"):
        planned(settings)
    with pytest.raises(PlanError, match="it has none at all"):
        planned(settings, volumes=())


def test_with_a_bucket_any_data_center_will_do_or_the_named_one() -> None:
    bucket = {"kind": "s3", "bucket": "b"}
    [anywhere] = planned(compute(exchange=bucket, cloud="COMMUNITY"), volumes=())
    assert (anywhere.request.data_centers, anywhere.request.volume) == ((), None)
    [there] = planned(compute(exchange=bucket, data_center="US-KS-2"), volumes=())
    assert there.request.data_centers == ("US-KS-2",)


@pytest.mark.parametrize(
    "where",
    [{"env": {"PROXY": f"http://u:{API_KEY}@host"}}, {"args": ("run", f"--key={API_KEY}")}],
)
def test_no_secret_of_the_host_gets_into_a_pod(where: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="RUNPOD_SECRET_name") as raised:
        planned(compute(), **where)
    assert API_KEY not in str(raised.value)


def test_a_plan_shows_the_payload_without_secrets() -> None:
    settings = compute(pod_environment={"AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_aws }}"})
    env = {"DAGSTER_PIPES_CONTEXT": "eJyrVkrOzy0oSi0u", "SESSION_TOKEN": "abc", "LEVEL": "debug"}
    [only] = planned(settings, env=env)
    assert only.payload["env"] == {
        "AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_aws }}",  # a name, not a secret
        "DAGSTER_PIPES_CONTEXT": REDACTED,
        "SESSION_TOKEN": REDACTED,
        "LEVEL": "debug",
    }
    assert only.request.env["SESSION_TOKEN"] == "abc"


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        ({"env": {"A_PASSWORD": "x", "N": 1}}, {"env": {"A_PASSWORD": REDACTED, "N": 1}}),
        ({"auth": {"user": "u", "word": "x"}}, {"auth": REDACTED}),
        ({"registryAuthId": None, "useToken": True}, {"registryAuthId": None, "useToken": True}),
        (
            {
                "env": [
                    {"key": "MY_TOKEN", "value": "x", "note": API_KEY},
                    {"key": "N", "value": "1"},
                ]
            },
            {
                "env": [
                    {"key": "MY_TOKEN", "value": REDACTED, "note": REDACTED},
                    {"key": "N", "value": "1"},
                ]
            },
        ),
        ({"args": ["--key", f"a{API_KEY}b"]}, {"args": ["--key", f"a{REDACTED}b"]}),
        (
            {"SPEC": '{"deep": [{"api_key": "x"}], "n": 1}'},
            {"SPEC": f'{{"deep": [{{"api_key": "{REDACTED}"}}], "n": 1}}'},
        ),
        ({"SPEC": '{"n":1}'}, {"SPEC": '{"n":1}'}),
        (
            {"url": "https://me:pw@host/x", "to": "a@b.c"},
            {"url": f"https://{REDACTED}@host/x", "to": "a@b.c"},
        ),
        ({"{not json": "[nor this"}, {"{not json": "[nor this"}),
    ],
)
def test_what_is_secret_is_not_shown(payload: Any, shown: Any) -> None:
    assert redacted(payload, [API_KEY, ""]) == shown


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    payload=JSON,
    secret=st.text(st.characters(codec="utf-8"), min_size=9, max_size=20),
    wrap=st.lists(st.sampled_from(["list", "dict", "json", "text", "pair"]), max_size=5),
)
def test_a_known_secret_is_shown_nowhere(payload: Any, secret: str, wrap: list[str]) -> None:
    hidden: Any = secret
    for how in wrap:
        if how == "list":
            hidden = [payload, hidden]
        elif how == "dict":
            hidden = {"x": hidden, "y": payload}
        elif how == "json":
            hidden = json.dumps({"x": hidden})
        elif how == "pair":
            hidden = {"key": "X", "value": hidden}
        else:
            hidden = f"say {hidden}" if isinstance(hidden, str) else hidden
    shown = redacted({"payload": hidden}, [secret])
    assert secret not in _strings(shown)


def _strings(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(_strings(part) for pair in value.items() for part in pair)
    return "\n".join(map(_strings, value)) if isinstance(value, list) else str(value)


def test_a_job_is_the_same_wherever_it_stages_and_whoever_asks() -> None:
    spec = {"task": "train", "dataset": "d/1", "settings": {"store": "kept", "seed": 1}}
    job = identity("trade_pipeline.training.task", spec)
    asked = {"staging": "s/1", "provenance": {"run": "r"}, "store": "/x", "save_every_s": 5.0}
    assert identity("trade_pipeline.training.task", {**spec, **asked}) == job
    assert len(job) == 16 and int(job, 16) >= 0

    others = [
        identity("trade_pipeline.backtest.task", spec),
        identity("trade_pipeline.training.task", {**spec, "dataset": "d/2"}),
        identity("trade_pipeline.training.task", {**spec, "settings": {"store": "x", "seed": 1}}),
    ]
    assert len({job, *others}) == 4


def test_only_names_that_this_deployment_makes_are_ours() -> None:
    name = pod_name("main", "0123456789abcdef", RUN, 12)
    assert name == "tp-main-01234567-5d3f9a1c-12"
    assert is_ours(name, "main")
    for other in (
        "tp-main-notebook",
        "tp-main2-01234567-5d3f9a1c-12",
        "tp-mai-01234567-5d3f9a1c-12",
        f"x{name}",
        f"{name}-old",
        f"{name}\n",
        "",
    ):
        assert not is_ours(other, "main"), other


@given(
    deployment=st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True),
    other=st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True),
    run=st.uuids(),
    attempt=st.integers(0, 99),
)
def test_no_deployment_takes_anothers_pod_for_its_own(
    deployment: str, other: str, run: object, attempt: int
) -> None:
    name = pod_name(deployment, "0123456789abcdef", str(run), attempt)
    assert is_ours(name, deployment)
    assert is_ours(name, other) == (other == deployment)


def test_the_command_names_the_exchange_job_and_attempt() -> None:
    start = ("python", "-m", "trade_pipeline.compute.runpod.supervisor")
    end = ("--job", "0123456789abcdef", "--attempt", "tp-main-x")
    volume = compute(exchange={"kind": "volume", "id": "vol1", "mount": "/work/"})
    assert supervisor_command(volume, "0123456789abcdef", "tp-main-x") == (
        *start,
        *("--root", "/work/trade_pipeline"),
        *end,
    )
    for prefix, place in (("a/b", "s3://b/a/b"), ("", "s3://b")):
        bucket = compute(exchange={"kind": "s3", "bucket": "b", "prefix": prefix})
        command = supervisor_command(bucket, "0123456789abcdef", "tp-main-x")
        assert command == (*start, "--s3", place, "--s3-region", "us-east-1", *end)
    elsewhere = compute(exchange={"kind": "s3", "bucket": "b", "url": "http://here", "region": "x"})
    command = supervisor_command(elsewhere, "0123456789abcdef", "tp-main-x")
    place = ("--s3", "s3://b/trade-pipeline", "--s3-region", "x", "--s3-url", "http://here")
    assert command == (*start, *place, *end)


@pytest.mark.parametrize(
    ("size_gb", "usd"), [(0, 0), (100, 7), (1000, 70), (1001, 70.05), (4000, 220)]
)
def test_a_volume_is_cheaper_above_a_terabyte(size_gb: int, usd: float) -> None:
    assert volume_usd_month(size_gb) == pytest.approx(usd)


def test_a_volume_near_a_terabyte_is_warned_of() -> None:
    assert volume_alert(Volume("v", "trading", 899, "EU-RO-1")) is None
    alert = volume_alert(Volume("v", "trading", 900, "EU-RO-1"))
    assert alert is not None
    assert "trading (v) has 900 GB allocated, 63.00 USD a month" in alert


def test_disk_costs_what_the_price_list_says() -> None:
    assert disk_usd_h(20) * 730 == pytest.approx(2.0)
