"""What a pod left on the exchange is believed only as far as it can be checked."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from trade_pipeline.compute.runpod.errors import ResultRefused
from trade_pipeline.compute.runpod.exchange import Exchange, ExitRecord
from trade_pipeline.compute.runpod.pipes_reader import PodMessages
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.storage.objects import ObjectStore
from trade_pipeline.storage.s3 import push_bundle
from trade_pipeline_tests.buckets import aws_bucket

JOB, POD = "0123456789abcdef", "tp-main-01234567-abcdefgh-1"
ASKED = "staging/alone-policy-base.f0.s0-aaaa"


@pytest.fixture
def objects() -> Iterator[ObjectStore]:
    with aws_bucket() as bucket:
        yield bucket.objects("trade_pipeline")


def sealed(objects: ObjectStore, store: Path, name: str) -> ExitRecord:
    """A bundle on the exchange as a pod seals one, and the record of its pod."""
    folder = bundles.staging(store, name)
    (folder.path / "policy").write_text(name)
    reference = bundles.seal(folder, {"policy"})
    push_bundle(objects.below("store"), folder)
    index = (folder.path / bundles.INDEX).read_bytes()
    result = {"staging": folder.key, "version": reference.version, "metrics": {}}
    digest = hashlib.sha256(index).hexdigest()
    return ExitRecord(rc=0, result=result, bundle_sha256=digest, reason="", finished_ms=0)


def collected(objects: ObjectStore, record: ExitRecord, store: Path) -> dict[str, Any]:
    target = ArtifactLocation(store, "staging/target")
    try:
        return Exchange(objects, JOB).collect(record, target, ASKED)
    except ResultRefused:
        assert not target.path.exists(), "nothing of it is kept"
        raise


def said_by(method: str) -> dict[str, Any]:
    """A message of Dagster Pipes that says no more than what it is."""
    return {"__dagster_pipes_version": "0.1", "method": method, "params": {}}


def heard(objects: ObjectStore) -> tuple[list[str], float]:
    """What Dagster logs of a pod that says nothing more, and how long it listens to it."""
    waited_s = 0.0

    @dg.asset
    def listens(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        nonlocal waited_s
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=PodMessages(Exchange(objects, JOB), POD, interval_s=60.0),
        ):
            ended = time.monotonic()
        waited_s = time.monotonic() - ended
        return dg.MaterializeResult()

    with dg.DagsterInstance.ephemeral() as instance:
        outcome = dg.materialize([listens], instance=instance)
        return [str(entry.user_message) for entry in instance.all_logs(outcome.run_id)], waited_s


def test_a_bundle_that_is_what_the_pod_sealed_is_taken(
    objects: ObjectStore, tmp_path: Path
) -> None:
    record = sealed(objects, tmp_path / "pod", "alone-policy-base.f0.s0")
    result = collected(objects, record, tmp_path / "host")
    assert result["staging"] == "staging/target"
    taken = bundles.verify(ArtifactLocation(tmp_path / "host", "staging/target"))
    assert record.result is not None
    assert taken["version"] == record.result["version"] == result["version"]


@pytest.mark.parametrize(
    "changes",
    [
        {"bundle_sha256": "0" * 64},
        {"bundle_sha256": None},
        {"result": None},
        {"result": {"staging": 5, "version": 5}},
        {"result": {"staging": "../../../etc/passwd-1", "version": "0" * 32}},
        {"result": {"staging": "staging/alone-policy-base.f0.s0-bbbb", "version": "0" * 32}},
    ],
)
def test_a_record_that_does_not_fit_is_refused(
    objects: ObjectStore, tmp_path: Path, changes: dict[str, Any]
) -> None:
    record = sealed(objects, tmp_path / "pod", "alone-policy-base.f0.s0")
    with pytest.raises(ResultRefused):
        collected(objects, record.model_copy(update=changes), tmp_path / "host")


def test_the_bundle_of_another_trial_is_refused(objects: ObjectStore, tmp_path: Path) -> None:
    record = sealed(objects, tmp_path / "pod", "alone-policy-base.f0.s1")
    with pytest.raises(ResultRefused, match="not one that this task may make"):
        collected(objects, record, tmp_path / "host")


def test_a_member_that_was_changed_is_refused(objects: ObjectStore, tmp_path: Path) -> None:
    record = sealed(objects, tmp_path / "pod", "alone-policy-base.f0.s0")
    assert record.result is not None
    objects.put_bytes(f"store/{record.result['staging']}/policy", b"something else")
    with pytest.raises(ResultRefused):
        collected(objects, record, tmp_path / "host")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"rc": NaN}', "[]", '{"rc": 0}'])
def test_a_record_that_cannot_be_read_is_refused_at_once(
    objects: ObjectStore, content: str
) -> None:
    objects.put_bytes(f"jobs/{JOB}/{POD}/exit.json", content.encode())
    with pytest.raises(ResultRefused):
        Exchange(objects, JOB).exit_record(POD)


def test_messages_that_cannot_be_read_become_a_warning_and_keep_no_other_back(
    objects: ObjectStore,
) -> None:
    strange = {"method": "of another version", "params": {}}
    file = json.dumps([said_by("opened"), strange, "no message", said_by("closed")])
    for number, content in enumerate(("[{", file), start=1):
        objects.put_bytes(f"jobs/{JOB}/{POD}/messages/{number}.json", content.encode())
    said, _ = heard(objects)
    assert any("Message file 1" in line for line in said)
    assert not any("did not receive" in line for line in said), "the last word was heard"


def test_nobody_waits_for_the_last_word_of_a_pod_that_was_ended(objects: ObjectStore) -> None:
    file = json.dumps([said_by("opened")])
    objects.put_bytes(f"jobs/{JOB}/{POD}/messages/1.json", file.encode())
    said, waited_s = heard(objects)
    assert any("successfully opened" in line for line in said)
    assert waited_s < 10.0, "Dagster's own reader waits 11 s"
