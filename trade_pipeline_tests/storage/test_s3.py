"""Bundles and frames through AWS's S3 and a RunPod volume's, with real clients over loopback."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.storage.bundles import BundleError, seal, staging, verify, version_of
from trade_pipeline.storage.frames import read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.storage.objects import ObjectStore, ObjectStoreError, ObjectStoreFull
from trade_pipeline.storage.s3 import pull_bundle, pull_frame, push_bundle, push_frame
from trade_pipeline_tests.buckets import KINDS, SMALLEST_PART, Bucket

LARGE = bytes(range(256)) * 4096 * 11  # 11 MiB, three parts
KEY = "ppo/policy/" + "a" * 32
FRAME = "ohlcv/made.ALPHA.1d/2020.parquet"


@pytest.fixture(params=sorted(KINDS))
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with KINDS[request.param]() as made:
        yield made


def sealed(
    store: Path, key: str = KEY, weights: bytes = b"weights", log: bytes = b"log"
) -> ArtifactLocation:
    """A bundle of two members, one of them informational and in a folder."""
    location = staging(store, "made")
    (location.path / "weights").write_bytes(weights)
    (location.path / "tb").mkdir()
    (location.path / "tb" / "job.log").write_bytes(log)
    seal(location, {"weights"})
    target = ArtifactLocation(store, key)
    target.path.parent.mkdir(parents=True, exist_ok=True)
    location.path.rename(target.path)
    return target


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_comes_back_as_it_went_on_a_machine_that_never_saw_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    made = sealed(tmp_path / "one", weights=LARGE)
    push_bundle(bucket.objects(part_bytes=SMALLEST_PART), made)
    got = ArtifactLocation(tmp_path / "two", "elsewhere/bundle")
    assert pull_bundle(bucket.objects(), KEY, got) == verify(made)["version"]
    assert files(got.path) == files(made.path)
    assert list((tmp_path / "two" / "staging").iterdir()) == []


def test_a_bundle_may_be_pulled_into_an_empty_folder_but_over_nothing(
    bucket: Bucket, tmp_path: Path
) -> None:
    push_bundle(bucket.objects(), sealed(tmp_path / "one"))
    empty = staging(tmp_path / "two", "empty")
    pull_bundle(bucket.objects(), KEY, empty)
    taken = ArtifactLocation(tmp_path / "two", "taken")
    taken.path.mkdir()
    (taken.path / "mine").write_text("mine")
    with pytest.raises(StorageError, match="absent or empty"):
        pull_bundle(bucket.objects(), KEY, taken)
    assert files(taken.path) == {"mine": b"mine"}


def test_the_index_goes_last_and_nothing_goes_twice(bucket: Bucket, tmp_path: Path) -> None:
    made = sealed(tmp_path)
    push_bundle(bucket.objects(), made)
    puts = [target.rpartition(KEY)[2] for target in bucket.front.targets("PUT")]
    assert sorted(puts[:-1]) == ["/tb/job.log", "/weights"]
    assert puts[-1] == "/bundle.json"
    push_bundle(bucket.objects(), made)
    assert len(bucket.front.targets("PUT")) == 3


def test_a_push_that_was_refused_leaves_no_index_and_goes_on_where_it_stopped(
    bucket: Bucket, tmp_path: Path
) -> None:
    made = sealed(tmp_path / "one")
    bucket.front.break_next("refuse", "PUT", "weights", 507)
    with pytest.raises(ObjectStoreFull):
        push_bundle(bucket.objects(), made)
    got = ArtifactLocation(tmp_path / "two", "got")
    with pytest.raises(BundleError, match=r"there is no bundle\.json"):
        pull_bundle(bucket.objects(), KEY, got)
    assert not got.path.exists()
    bucket.front.seen.clear()
    push_bundle(bucket.objects(), made)
    puts = [target.rpartition("/")[2] for target in bucket.front.targets("PUT")]
    assert puts == ["weights", "bundle.json"], "what was there already was sent again"
    pull_bundle(bucket.objects(), KEY, got)
    assert files(got.path) == files(made.path)


def test_the_first_bundle_of_a_version_stays(bucket: Bucket, tmp_path: Path) -> None:
    first = sealed(tmp_path / "one", log=b"first run")
    push_bundle(bucket.objects(), first)
    push_bundle(bucket.objects(), sealed(tmp_path / "two", log=b"second"))
    got = ArtifactLocation(tmp_path / "three", "got")
    pull_bundle(bucket.objects(), KEY, got)
    assert files(got.path) == files(first.path)


@pytest.mark.parametrize("harm", ["gone", "other size", "index"])
def test_a_bundle_that_was_damaged_in_the_bucket_is_put_right(
    bucket: Bucket, tmp_path: Path, harm: str
) -> None:
    made = sealed(tmp_path / "one")
    push_bundle(bucket.objects(), made)
    if harm == "gone":
        bucket.objects().delete(f"{KEY}/weights")
    else:
        part = "weights" if harm == "other size" else "bundle.json"
        bucket.objects().put_bytes(f"{KEY}/{part}", b"{}")
    with pytest.raises(StorageError):
        pull_bundle(bucket.objects(), KEY, ArtifactLocation(tmp_path / "two", "got"))
    push_bundle(bucket.objects(), made)
    pull_bundle(bucket.objects(), KEY, ArtifactLocation(tmp_path / "two", "got"))


def test_while_another_bundle_takes_the_place_there_is_no_index(
    bucket: Bucket, tmp_path: Path
) -> None:
    push_bundle(bucket.objects(), sealed(tmp_path / "one"))
    other = sealed(tmp_path / "two", weights=b"others", log=b"gol")
    bucket.front.break_next("refuse", "PUT", "weights", 507)
    with pytest.raises(ObjectStoreFull):
        push_bundle(bucket.objects(), other)
    assert bucket.objects().size(f"{KEY}/bundle.json") is None
    push_bundle(bucket.objects(), other)
    got = ArtifactLocation(tmp_path / "three", "got")
    pull_bundle(bucket.objects(), KEY, got)
    assert files(got.path) == files(other.path)


def test_a_bundle_that_is_damaged_here_is_not_pushed(bucket: Bucket, tmp_path: Path) -> None:
    made = sealed(tmp_path)
    (made.path / "weights").write_bytes(b"changed")
    with pytest.raises(BundleError, match="weights"):
        push_bundle(bucket.objects(), made)
    assert bucket.front.seen == []


def test_several_processes_may_push_one_bundle_at_once(bucket: Bucket, tmp_path: Path) -> None:
    stores = [sealed(tmp_path / f"store{number}") for number in range(4)]
    threads = [
        threading.Thread(target=push_bundle, args=(bucket.objects(), made)) for made in stores
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    got = ArtifactLocation(tmp_path, "got")
    pull_bundle(bucket.objects(), KEY, got)
    assert files(got.path) == files(stores[0].path)


def member(name: str, content: bytes = b"weights", **changes: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "name": name,
        "sha256": sha256,
        "size": len(content),
        "deterministic": True,
        **changes,
    }


def index_of(*members: dict[str, Any], version: str | None = None) -> bytes:
    hashes = {one["name"]: one["sha256"] for one in members if one["deterministic"]}
    document = {"version": version or version_of(hashes), "members": list(members)}
    return json.dumps(document).encode()


LIES_OF_AN_INDEX = {
    "outside": (index_of(member("../weights")), "cannot be a member"),
    "absolute": (index_of(member("/etc/weights")), "cannot be a member"),
    "twice": (index_of(member("weights"), member("weights")), "twice"),
    "the index itself": (index_of(member("weights"), member("bundle.json")), "on or below"),
    "below a member": (index_of(member("weights"), member("weights/more")), "on or below"),
    "too much": (index_of(member("weights", size=1001)), "1001 bytes, more than 1000"),
    "negative": (index_of(member("weights", size=-5)), "size"),
    "unknown": (index_of(member("weights"), member("extra.sh")), r"'extra\.sh' is unknown"),
    "no version": (b'{"members": []}', "version"),
    "no document": (b"<html>", "not valid JSON"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "long": (b" " * (2**22 + 1), "more than the 4194304"),
}


@pytest.mark.parametrize("lie", LIES_OF_AN_INDEX)
def test_an_index_that_lies_is_refused_before_any_content(
    bucket: Bucket, tmp_path: Path, lie: str
) -> None:
    index, message = LIES_OF_AN_INDEX[lie]
    objects = bucket.objects()
    objects.put_bytes(f"{KEY}/weights", b"weights")
    objects.put_bytes(f"{KEY}/bundle.json", index)
    got = ArtifactLocation(tmp_path / "store", "policy/got")
    with pytest.raises(StorageError, match=message) as refused:
        pull_bundle(objects, KEY, got, limit_bytes=1000, known=("weights", "weights/*", "*.json"))
    assert f"s3://{bucket.name}/some/prefix/{KEY}" in str(refused.value)
    assert files(tmp_path) == {}
    assert [target for target in bucket.front.targets("GET") if "bundle.json" not in target] == []


LIES_OF_MEMBERS = {
    "other bytes": (index_of(member("weights", b"weighty")), "SHA-256 differs from"),
    "longer": (index_of(member("weights", b"weight")), "holds 7 bytes, more than the 6"),
    "shorter": (index_of(member("weights", b"weights!")), "SHA-256 differs from"),
    "missing": (index_of(member("weights"), member("other")), "there is no such object"),
    "version": (index_of(member("weights"), version="b" * 32), "not that of its deterministic"),
    "no version": (index_of(member("weights", deterministic=False)), "no deterministic member"),
}


@pytest.mark.parametrize("lie", LIES_OF_MEMBERS)
def test_members_that_are_not_what_was_sealed_leave_nothing(
    bucket: Bucket, tmp_path: Path, lie: str
) -> None:
    index, message = LIES_OF_MEMBERS[lie]
    objects = bucket.objects()
    objects.put_bytes(f"{KEY}/weights", b"weights")
    objects.put_bytes(f"{KEY}/bundle.json", index)
    got = ArtifactLocation(tmp_path / "store", "policy/got")
    with pytest.raises(StorageError, match=message) as refused:
        pull_bundle(objects, KEY, got)
    assert f"s3://{bucket.name}/some/prefix/{KEY}" in str(refused.value)
    assert files(tmp_path) == {}
    assert not got.path.exists()


PUSH = """
import sys
from pathlib import Path
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.storage.objects import ObjectStore
from trade_pipeline.storage.s3 import push_bundle
url, bucket, region, identity, secret, part_bytes, store, key = sys.argv[1:]
made = ObjectStore.connect(bucket, "some/prefix", url=url, region=region,
                           access_key_id=identity, secret_access_key=secret)
objects = ObjectStore(made.client, bucket, "some/prefix", part_bytes=int(part_bytes))
push_bundle(objects, ArtifactLocation(Path(store), key))
"""


def pushing(bucket: Bucket, made: ArtifactLocation) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PUSH, bucket.front.url, bucket.name, bucket.region]
    rest = [*bucket.keys, str(SMALLEST_PART), str(made.store), made.key]
    return subprocess.Popen([*command, *rest])


def test_a_kill_at_any_request_leaves_no_half_bundle_and_the_next_push_ends_it(
    bucket: Bucket, tmp_path: Path
) -> None:
    """Kills before or after the S3 did what the request asked, by turns; the order is random."""
    made = sealed(tmp_path / "one", weights=LARGE)
    push_bundle(bucket.objects(part_bytes=SMALLEST_PART), made)
    requests = len(bucket.front.seen)
    assert requests > 8
    for number in sorted(random.sample(range(1, requests + 1), 3)):
        for key in bucket.objects().keys(KEY):
            bucket.objects().delete(key)
        with bucket.front.at(number) as reached:
            process = pushing(bucket, made)
            assert reached.wait(60), f"never came to request {number}"
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        got = ArtifactLocation(tmp_path / f"killed{number}", "got")
        complete = bucket.objects().size(f"{KEY}/bundle.json") is not None
        if complete:
            pull_bundle(bucket.objects(), KEY, got)
        else:
            with pytest.raises(BundleError, match="never put there whole"):
                pull_bundle(bucket.objects(), KEY, got)
            assert not got.path.exists()
        push_bundle(bucket.objects(part_bytes=SMALLEST_PART), made)
        after = ArtifactLocation(tmp_path / f"after{number}", "got")
        pull_bundle(bucket.objects(), KEY, after)
        assert files(after.path) == files(made.path)


def frame(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"close": list(values)})


def test_a_frame_comes_back_and_is_sent_and_fetched_only_where_it_differs(
    bucket: Bucket, tmp_path: Path
) -> None:
    here, there = (ArtifactLocation(tmp_path / name, FRAME) for name in ("one", "two"))
    objects = bucket.objects()
    assert not pull_frame(objects, there)
    write_frame(here, frame(1.0, 2.0))
    for _ in range(2):
        push_frame(objects, here)
        assert pull_frame(objects, there)
    assert there.path.read_bytes() == here.path.read_bytes()
    assert len(bucket.front.targets("PUT")) == 1
    assert len(bucket.front.targets("GET")) == 1
    write_frame(here, frame(3.0))
    push_frame(objects, here)
    assert pull_frame(objects, there)
    assert read_frame(there).equals(frame(3.0))


def test_a_frame_that_was_damaged_on_the_way_replaces_nothing(
    bucket: Bucket, tmp_path: Path
) -> None:
    here = ArtifactLocation(tmp_path, FRAME)
    write_frame(here, frame(1.0))
    objects = bucket.objects()
    push_frame(objects, here)
    objects.put_bytes(FRAME, here.path.read_bytes()[:-20])
    with pytest.raises(StorageError, match=rf"s3://{bucket.name}/some/prefix/{FRAME}"):
        pull_frame(objects, here)
    assert read_frame(here).equals(frame(1.0))
    here.path.write_bytes(b"PAR1")
    with pytest.raises(StorageError, match="cannot be read"):
        push_frame(objects, here)


def test_a_store_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    made = ObjectStore.connect(
        "none",
        "",
        url="http://127.0.0.1:9",
        region="us-east-1",
        access_key_id="AKIDTEST",
        secret_access_key="sEcReT",
    )
    objects = ObjectStore(made.client, "none", "", waits_s=(0.0,))
    with pytest.raises(ObjectStoreError, match="see that the endpoint can be reached") as failed:
        pull_bundle(objects, KEY, ArtifactLocation(tmp_path, "got"))
    assert "sEcReT" not in str(failed.value)
