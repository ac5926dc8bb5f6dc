"""`trade-pipeline pods`: list, plan and reap over a RunPod on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
import yaml
from typer.testing import CliRunner, Result

from trade_pipeline.cli import app
from trade_pipeline.compute.runpod import reaper
from trade_pipeline.compute.runpod.plan import disk_usd_h
from trade_pipeline.settings.base import yaml_text
from trade_pipeline.settings.compute import RunPodComputeSettings
from trade_pipeline.storage import layout
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline_tests.compute.runpod.leases import anything_goes, intent
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.pod_hosts import PodHost, fresh_host, pod_host
from trade_pipeline_tests.small_project import materialize

SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "compute" / "runpod.yaml"
HOUR = timedelta(hours=1)
GONE_RUN = "00000000-0000-4000-8000-000000000000"
Status = dg.DagsterRunStatus


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodHost]:
    with fresh_host(tmp_path / "project", monkeypatch) as host:
        yield host


@pytest.fixture
def with_dataset(imported: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodHost]:
    with pod_host(imported, monkeypatch) as host:
        yield host


def run(host: PodHost, *words: str) -> Result:
    done = CliRunner().invoke(app, ["pods", *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not any(secret in done.output for secret in host.secrets)
    return done


def planned(host: PodHost, *words: str, exit_code: int = 0) -> Any:
    """The JSON of a plan of `alone`."""
    out = host.deployment.root / "plan.json"
    done = run(host, "plan", "alone", "--out", str(out), *words)
    assert done.exit_code == exit_code, done.output
    return json.loads(out.read_text(encoding="utf-8"))


def asked(host: PodHost) -> set[str]:
    """Kinds of requests that RunPod got."""
    return {one.operation for one in host.fake.seen}


# list


def test_list_shows_what_lives_with_its_lease_its_run_and_its_cost(host: PodHost) -> None:
    started = host.run(Status.STARTED)
    pod = host.ask(started, ago=HOUR)
    stray = host.make("tp-main-89abcdef-00000000-1")
    others = [host.make("notebook").id, host.make("tp-other-01234567-5d3f9a1c-1").id]
    done = run(host, "list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    (line,) = [line for line in lines if pod.id in line]
    assert all(word in line for word in (pod.name, "live", started, "NVIDIA L4", "0.3900", "0:00"))
    (line,) = [line for line in lines if stray.id in line]
    assert "none" in line.split()
    assert "2 pods, 0.78 USD/h" in done.stdout
    assert not any(other in done.stdout for other in others)
    assert "2 other pods" in done.stdout
    assert "create" in asked(host) and asked(host) - {"create"} == {"list"}, "it only looks"


def test_list_shows_an_open_lease_whose_pod_is_not_there(host: PodHost) -> None:
    host.ledger().enter(intent(1), anything_goes)
    pod = host.ask(host.run(Status.STARTED))
    host.fake.pod(pod.id).preempt(gone=True)
    done = run(host, "list")
    assert f"{intent(1).name}: intent since" in done.stdout
    assert f"{pod.name}: live since" in done.stdout and pod.id in done.stdout
    assert "0 pods, 0.00 USD/h" in done.stdout


def test_a_pod_whose_creation_was_not_answered_is_shown_once_with_its_intent(
    host: PodHost,
) -> None:
    host.ledger().enter(intent(1, run=GONE_RUN), anything_goes)
    pod = host.make(intent(1, run=GONE_RUN).name)
    done = run(host, "list")
    (line,) = [line for line in done.stdout.splitlines() if pod.name in line]
    assert pod.id in line and "intent" in line


@pytest.mark.parametrize("command", [["list"], ["reap"], ["plan", "alone"]])
def test_without_a_key_each_command_says_what_to_set(
    with_dataset: PodHost, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY")
    done = run(with_dataset, *command)
    assert done.exit_code == 1 and "RUNPOD_API_KEY is not set" in done.stderr
    assert with_dataset.fake.seen == []


@pytest.mark.parametrize("command", [["list"], ["reap"], ["plan", "alone"]])
def test_without_a_runpod_file_each_command_says_so(host: PodHost, command: list[str]) -> None:
    (host.deployment.places.configs / "compute" / "runpod.yaml").unlink()
    done = run(host, *command)
    assert done.exit_code == 1 and "kind runpod" in done.stderr


@pytest.mark.parametrize("command", [["list"], ["reap"], ["plan", "alone"]])
def test_a_compute_that_is_none_of_runpods_is_refused(host: PodHost, command: list[str]) -> None:
    done = run(host, *command, "--compute", "local")
    assert done.exit_code == 1 and "'local' is no file of kind runpod" in done.stderr


def test_a_refused_key_is_a_sentence(host: PodHost) -> None:
    host.fake.faults.plan("unauthorized", on="list", times=2)
    for command in ("list", "reap"):
        done = run(host, command)
        assert done.exit_code == 1 and "RunPod answered 401" in done.stderr


# plan


def test_a_plan_asks_for_nothing_and_leaves_the_ledger_as_it_was(with_dataset: PodHost) -> None:
    document = planned(with_dataset)
    assert asked(with_dataset) == {"gpus", "volumes", "s3:GetObject"}
    assert with_dataset.fake.pods == [] and not list(with_dataset.volume.path.rglob("*"))
    assert with_dataset.ledger().leases() == [] and with_dataset.ledger().history() == []
    assert (document["trial"], document["trials"]) == ("base.f0.s0", 4)


def test_candidates_come_in_the_order_in_which_they_are_tried_with_their_price(
    with_dataset: PodHost,
) -> None:
    with_dataset.fake.faults.plan("unavailable", gpu="NVIDIA L4")
    first, second = planned(with_dataset)["candidates"]
    assert (first["gpu"], second["gpu"]) == ("NVIDIA A40", "NVIDIA L4")
    assert first["note"] == "" and "tried last" in second["note"]
    assert first["usd_h"] == pytest.approx(0.40 + disk_usd_h(20))
    assert first["estimate_usd"] == pytest.approx(2 * first["usd_h"])
    assert (first["disk_gb"], first["hours"]) == (20, 2)


def test_runpod_takes_the_payload_of_a_plan_as_it_stands(with_dataset: PodHost) -> None:
    (payload, _) = [one["payload"] for one in planned(with_dataset)["candidates"]]
    fake = with_dataset.fake
    headers = {"Authorization": f"Bearer {fake.api_key}"}
    answer = httpx.post(f"{fake.rest_url}/pods", json=payload, headers=headers)
    assert answer.status_code == 201, answer.text


def test_a_plan_is_what_a_run_asks_for(with_dataset: PodHost) -> None:
    host = with_dataset
    host.compute(budget={"run_usd": 0.01, "day_usd": 1, "hourly_usd": 1, "pods": 1})
    document = planned(host, "--trial", "base.f1.s0", exit_code=1)
    (payload, _) = [one["payload"] for one in document["candidates"]]
    file = host.deployment.places.configs / "experiments" / "alone.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml_text(settings | {"compute": "runpod"}), encoding="utf-8")
    places, instance = host.deployment.places, host.deployment.instance
    result = materialize(places, instance, "alone/policy", first="base.f1.s0")
    assert not result.success and host.fake.pods == []  # the budget is too small, so none is made
    name = payload["name"].replace("dryrun", result.run_id[:8])
    kept = json.loads(layout.pod_plan(host.store, name).path.read_text(encoding="utf-8"))
    text = json.dumps(payload).replace("dryrun", result.run_id[:8])
    assert kept["payload"] == json.loads(text)
    assert document["job"][:8] in name


def test_a_plan_says_what_the_budget_holds_against_it(with_dataset: PodHost) -> None:
    with_dataset.compute(budget={"run_usd": 0.5, "day_usd": 1, "hourly_usd": 5, "pods": 1})
    with_dataset.ask(GONE_RUN, hours=1.0)
    done = run(with_dataset, "plan", "alone")
    assert done.exit_code == 1, "no candidate would be asked for"
    for one in json.loads(done.stdout)["candidates"]:
        assert [text.split()[0] for text in one["budget"]] == [
            "budget.pods",
            "budget.run_usd",
            "budget.day_usd",
        ]
    assert "budget.run_usd allows 0.5" in done.stderr, "and people read it beside the JSON"
    assert len(with_dataset.ledger().leases()) == 1


def test_references_to_runpods_secrets_stay_and_other_secrets_are_hidden(
    with_dataset: PodHost,
) -> None:
    reference = "{{ RUNPOD_SECRET_aws_key }}"
    with_dataset.compute(
        pod_environment={"AWS_ACCESS_KEY_ID": reference, "PROXY": "http://me:pw@proxy"}
    )
    env = planned(with_dataset)["candidates"][0]["payload"]["env"]
    assert env["AWS_ACCESS_KEY_ID"] == reference
    assert env["DAGSTER_PIPES_CONTEXT"] == env["DAGSTER_PIPES_MESSAGES"] == "<redacted>"
    assert "me:pw" not in env["PROXY"]


def test_a_secret_of_this_machine_in_the_settings_is_refused(with_dataset: PodHost) -> None:
    with_dataset.compute(pod_environment={"NOTE": with_dataset.fake.api_key})
    done = run(with_dataset, "plan", "alone")
    assert done.exit_code == 1 and "NOTE" in done.stderr
    with_dataset.compute()  # the file itself held it


def test_the_shipped_compute_is_refused_before_any_pod_with_the_accounts_volumes(
    with_dataset: PodHost,
) -> None:
    settings = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    urls = {name: getattr(with_dataset.fake, name) for name in ("rest_url", "s3_url")}
    with_dataset.compute(**settings | urls)
    done = run(with_dataset, "plan", "alone")
    assert done.exit_code == 1
    assert "your-volume-id" in done.stderr and with_dataset.volume.id in done.stderr
    assert "create" not in asked(with_dataset)


def test_the_shipped_compute_shows_every_key() -> None:
    settings = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert set(settings) == set(RunPodComputeSettings.model_fields)
    assert len([line for line in SHIPPED.read_text().splitlines() if "#" in line]) > len(settings)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alon"], "Did you mean 'alone'?"),
        (["alone", "--trial", "base.f0.s9"], "no trial 'base.f0.s9'"),
        (["alone", "--out", "/no/such/folder/plan.json"], "--out"),
        (["pair"], "materialize the asset first"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    with_dataset: PodHost, words: list[str], said: str
) -> None:
    if words == ["pair"]:
        location = layout.experiment_bundle(with_dataset.store, "pair", "dataset")
        location.child("current.json").path.unlink()
    done = run(with_dataset, "plan", *words)
    assert done.exit_code == 1 and said in done.stderr


def test_a_wheel_that_is_not_there_is_named(with_dataset: PodHost) -> None:
    with_dataset.compute(wheel="dist/trade_pipeline.whl")
    done = run(with_dataset, "plan", "alone")
    assert done.exit_code == 1
    assert "key 'wheel'" in done.stderr and "dist/trade_pipeline.whl" in done.stderr


# reap


def test_reap_ends_what_nobody_needs_and_says_so(host: PodHost) -> None:
    ended, needed = host.ask(host.run(Status.FAILURE)), host.ask(host.run(Status.STARTED))
    done = run(host, "reap")
    assert done.exit_code == 0, done.output
    assert f"terminated: {ended.name} (pod {ended.id}): run" in done.stdout
    assert "USD" in done.stdout and needed.id not in done.stdout
    assert host.live == {needed.id}
    with frame_lock(layout.pod_lock(host.store, host.lease(needed).job)):  # as its process has it
        again = run(host, "reap")
    assert again.exit_code == 0 and "no pod lives that nobody needs" in again.stdout


def test_reap_works_as_a_command_of_its_own_without_a_daemon(host: PodHost) -> None:
    ended = host.ask(host.run(Status.SUCCESS))
    done = subprocess.run(
        [sys.executable, "-m", "trade_pipeline.cli", "pods", "reap"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ended.id in done.stdout and host.live == set()
    assert not any(secret in done.stdout + done.stderr for secret in host.secrets)


@pytest.mark.parametrize("home", [None, "/no/such/folder"])
def test_without_an_instance_runs_are_unknown_and_only_old_pods_go(
    host: PodHost, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    if home is None:
        monkeypatch.delenv("DAGSTER_HOME")
    else:
        monkeypatch.setenv("DAGSTER_HOME", home)
    started = host.run(Status.STARTED)
    old, young = host.ask(started, ago=HOUR), host.ask(started)
    done = run(host, "reap")
    assert done.exit_code == 0, done.output
    assert "DAGSTER_HOME" in done.stderr and "ten minutes" in done.stderr
    assert host.live == {young.id} and old.id in done.stdout
    until = host.lease(young).asked_at + timedelta(minutes=10)
    assert "left 1 pod that no known run waits for and that is younger than ten" in done.stdout
    assert f"reap again after {until:%H:%M:%S} UTC" in done.stdout
    host.ask(started)
    again = run(host, "reap")
    assert "left 2 pods that no known run waits for and that are younger than ten" in again.stdout


def test_a_pod_that_resists_gives_exit_code_1(
    host: PodHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "WAITS_S", (0.01,) * len(reaper.WAITS_S))
    failed = host.run(Status.FAILURE)
    host.fake.faults.plan("forbidden", on="delete", pod="*", times=12)
    resists = host.ask(failed)
    done = run(host, "reap")
    assert done.exit_code == 1
    assert "PodMayStillBeBilling" in done.stderr and resists.id in done.stderr
    assert host.live == {resists.id}
    host.fake.faults.clear()
    assert run(host, "reap").exit_code == 0 and host.live == set()


def test_reap_of_one_compute_touches_its_deployment_only(host: PodHost) -> None:
    host.compute("other", deployment="other")
    mine = host.ask(host.run(Status.FAILURE))
    assert run(host, "reap", "--compute", "other").exit_code == 0
    assert host.live == {mine.id}
    assert run(host, "reap", "--compute", "runpod").exit_code == 0
    assert host.live == set()
