"""Whole runs on RunPod's stand-in: the same bundle as here, seen while it runs, without secrets."""

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import dagster as dg
import pytest

from trade_pipeline.settings.project import Places
from trade_pipeline.storage import bundles, layout
from trade_pipeline_tests.buckets import aws_bucket
from trade_pipeline_tests.compute.runpod.hosts import served
from trade_pipeline_tests.compute.runpod.remote_project import (
    DATA_CENTER,
    remote_settings,
    use_runpod,
)
from trade_pipeline_tests.compute.runpod.remotes import TRIAL, Remote
from trade_pipeline_tests.fakes.runpod import FakeRunPod
from trade_pipeline_tests.small_project import materialize

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Trained(NamedTuple):
    """A training on RunPod that has ended, and what was said of it."""

    remote: Remote
    root: Path
    outcome: dg.ExecuteInProcessResult
    instance: dg.DagsterInstance

    @property
    def said(self) -> list[str]:
        return [entry.user_message for entry in self.instance.all_logs(self.outcome.run_id)]


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """One run for all that is asked of a run that goes well."""
    root = tmp_path_factory.mktemp("trained")
    with (
        served(root) as fake,
        dg.instance_for_test(temp_dir=str(root)) as instance,
    ):
        remote = Remote(prepared, root, fake)
        yield Trained(remote, root, remote.run(instance), instance)


def test_a_pod_gives_the_bundle_that_this_machine_gives(trained: Trained) -> None:
    remote = trained.remote
    assert trained.outcome.success
    assert remote.version == remote.local_version
    (charge,) = remote.fake.charges
    remote.require_balance()
    (event,) = trained.outcome.asset_materializations_for_node("alone__policy")
    assert event.metadata["cost_usd"].value == pytest.approx(charge.usd, abs=1e-3)
    assert event.metadata["pod"].value == charge.pod_id


def test_lines_and_progress_are_in_the_event_log_while_it_runs(trained: Trained) -> None:
    entries = trained.said
    ended = next(k for k, said in enumerate(entries) if "is terminated; it cost" in said)
    progress = [k for k, said in enumerate(entries) if "frames" in said and "a second" in said]
    lines = [k for k, said in enumerate(entries) if said.startswith("pod: ")]
    assert progress and progress[0] < ended
    assert lines and lines[0] < ended


def test_what_a_pod_says_last_is_in_the_event_log(trained: Trained) -> None:
    said = [one for one in trained.said if one.startswith("pod: ")]
    assert "exit code 0" in said[-1]


def test_secrets_are_nowhere(trained: Trained) -> None:
    remote = trained.remote
    entries = trained.instance.all_logs(trained.outcome.run_id)
    said = json.dumps([str(entry) for entry in entries])
    said += json.dumps([dict(pod.env) for pod in remote.fake.pods])
    folders = (
        remote.store,
        remote.volume_folder,
        trained.root / "history",
        trained.root / "storage",
    )
    for folder in folders:
        assert folder.is_dir()
        for path in (path for path in folder.rglob("*") if path.is_file()):
            said += path.read_bytes().decode("latin-1")
    for secret in remote.fake.environment.values():
        assert secret not in said


def test_the_shipped_experiment_gives_the_same_policy_on_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    """`aapl_ppo` as it is shipped, on real prices; one line and one file differ."""
    project = tmp_path / "shipped"
    shutil.copytree(CONFIGS, project / "configs")
    places = Places(configs=project / "configs", store=project / "store")
    series, this_year = "sample.AAPL.1d", datetime.now(UTC).year
    first, last = f"{series}|2000", f"{series}|{this_year}"
    assert materialize(places, instance, "ohlcv", first=first, last=last).success
    for name in ("manifest", "features/daily"):
        assert materialize(places, instance, name, first=series).success
    assert materialize(places, instance, "aapl_ppo/dataset").success
    policy = layout.experiment_bundle(places.store, "aapl_ppo", "policy", TRIAL)
    versions = []
    with FakeRunPod(forbidden=[project]) as fake:
        for name, value in fake.environment.items():
            monkeypatch.setenv(name, value)
        for where in ("local", "runpod"):
            if where == "runpod":
                use_runpod(places, remote_settings(fake, tmp_path / "mount"), "aapl_ppo")
                policy.child("current.json").path.unlink()
            assert materialize(places, instance, "aapl_ppo/policy", first=TRIAL).success
            versions.append(bundles.current_version(policy))
        assert len(fake.charges) == 1
        assert fake.live == [] and fake.leaks == []
        sent = [one for one in fake.operations("s3:PutObject") if "dataset" in one.path]
        assert sent
    assert versions[0] == versions[1] is not None


def test_host_and_pod_may_meet_in_any_s3(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    with (
        aws_bucket() as bucket,
        FakeRunPod(
            forbidden=[tmp_path / "project"],
            secrets={"bucket_key_id": bucket.keys[0], "bucket_secret": bucket.keys[1]},
        ) as fake,
    ):
        for name, value in {**fake.environment, **bucket.environment()}.items():
            monkeypatch.setenv(name, value)
        remote = Remote(prepared, tmp_path, fake)
        remote.use(
            exchange={
                "kind": "s3",
                "bucket": bucket.name,
                "prefix": "exchange",
                "region": bucket.region,
                "url": bucket.front.url,
            },
            data_center=DATA_CENTER,
            pod_environment={
                "TRADE_PIPELINE_HEARTBEAT_S": "0.2",
                "AWS_ACCESS_KEY_ID": "{{ RUNPOD_SECRET_bucket_key_id }}",
                "AWS_SECRET_ACCESS_KEY": "{{ RUNPOD_SECRET_bucket_secret }}",
            },
        )
        assert remote.run(instance).success
        assert remote.version == remote.local_version
        remote.require_balance()
        assert fake.leaks == []
