"""A store whose truth is in a bucket: two machines, one of which may fail at any point."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from trade_pipeline.storage import layout
from trade_pipeline.storage.bundles import (
    BundleError,
    commit,
    current,
    current_version,
    seal,
    staging,
    verify,
)
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_frame, write_frame
from trade_pipeline.storage.location import ArtifactLocation, StorageError
from trade_pipeline.storage.mirror import Mirror
from trade_pipeline.storage.objects import ObjectStoreError, ObjectStoreFull
from trade_pipeline_tests.buckets import KINDS, Bucket

SERIES = "made.ALPHA.1d"


@pytest.fixture(params=sorted(KINDS))
def bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    with KINDS[request.param]() as made:
        yield made


@pytest.fixture
def here(bucket: Bucket, tmp_path: Path) -> Mirror:
    return Mirror(bucket.objects(), tmp_path / "here")


@pytest.fixture
def there(bucket: Bucket, tmp_path: Path) -> Mirror:
    """Another machine with an empty cache."""
    return Mirror(bucket.objects(), tmp_path / "there")


def policy(mirror: Mirror) -> ArtifactLocation:
    return layout.experiment_bundle(mirror.store, "alone", "policy", "base.f0.s0")


def committed(mirror: Mirror, weights: str, log: str = "log") -> str:
    folder = staging(mirror.store, "policy")
    (folder.path / "weights").write_text(weights)
    (folder.path / "log").write_text(log)
    return commit(seal(folder, {"weights"}), policy(mirror)).path.name


def held(mirror: Mirror) -> dict[str, bytes]:
    """What readers of a store may see of it: all but locks, notes and staging."""
    found = {
        path.relative_to(mirror.store).as_posix(): path.read_bytes()
        for path in mirror.store.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    return {key: content for key, content in found.items() if not key.startswith("staging/")}


def a_frame(*values: float) -> pl.DataFrame:
    return pl.DataFrame({"close": list(values)})


Kept = tuple[Callable[[Path], ArtifactLocation], Callable[..., Any], Callable[..., Any], Any, Any]
FILES: dict[str, Kept] = {
    "frame": (
        lambda store: layout.ohlcv(store, SERIES, 2020),
        write_frame,
        lambda location: read_frame(location)["close"].to_list(),
        (a_frame(1.0), [1.0]),
        (a_frame(2.0, 3.0), [2.0, 3.0]),
    ),
    "document": (
        lambda store: layout.manifest(store, SERIES),
        write_json,
        read_json,
        ({"day": 1}, {"day": 1}),
        ({"day": 22}, {"day": 22}),
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_another_machine_reads_the_same_bytes_and_what_replaces_them(
    here: Mirror, there: Mirror, kind: str
) -> None:
    place, write, read, (old, old_read), (new, new_read) = FILES[kind]
    assert not there.pull(place(there.store))
    write(place(here.store), old)
    here.push(place(here.store))
    assert there.pull(place(there.store))
    assert held(there) == held(here)
    assert read(place(there.store)) == old_read
    write(place(here.store), new)
    here.push(place(here.store))
    assert there.pull(place(there.store))
    assert held(there) == held(here)
    assert read(place(there.store)) == new_read


@pytest.mark.parametrize("kind", FILES)
def test_what_is_the_same_is_neither_sent_nor_fetched_again(
    bucket: Bucket, here: Mirror, there: Mirror, kind: str
) -> None:
    place, write, _, (old, _), _ = FILES[kind]
    write(place(here.store), old)
    for _ in range(2):
        here.push(place(here.store))
        here.pull(place(here.store))
        there.pull(place(there.store))
    assert len(bucket.front.targets("PUT")) == 1
    assert len(bucket.front.targets("GET")) == 1


@pytest.mark.parametrize("kind", FILES)
def test_a_local_file_whose_bytes_were_damaged_is_fetched_again(here: Mirror, kind: str) -> None:
    place, write, read, (old, old_read), _ = FILES[kind]
    location = place(here.store)
    write(location, old)
    here.push(location)
    content = bytearray(location.path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    location.path.write_bytes(content)
    assert here.pull(location)
    assert read(location) == old_read


@pytest.mark.parametrize("kind", FILES)
def test_what_could_not_be_pushed_stays_here_and_the_old_one_there(
    bucket: Bucket, here: Mirror, there: Mirror, kind: str
) -> None:
    place, write, read, (old, old_read), (new, new_read) = FILES[kind]
    location = place(here.store)
    write(location, old)
    here.push(location)
    write(location, new)
    bucket.front.break_next("refuse", "PUT", location.key, 507)
    with pytest.raises(ObjectStoreFull):
        here.push(location)
    there.pull(place(there.store))
    assert read(place(there.store)) == old_read
    here.pull(location)
    assert read(location) == new_read, "the only copy was thrown away"
    here.push(location)
    there.pull(place(there.store))
    assert read(place(there.store)) == new_read


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_both_sides_changed_is_refused_and_stays(
    bucket: Bucket, here: Mirror, there: Mirror, kind: str
) -> None:
    place, write, read, (old, _), (new, new_read) = FILES[kind]
    location = place(here.store)
    write(location, new)
    write(place(there.store), old)
    there.push(place(there.store))
    with pytest.raises(StorageError, match=f"{location.key}.* both .*written") as refused:
        here.pull(location)
    assert bucket.name in str(refused.value)
    assert read(location) == new_read
    here.push(location)
    assert there.pull(place(there.store))
    assert read(place(there.store)) == new_read


@pytest.mark.parametrize("kind", FILES)
def test_what_the_bucket_has_damaged_replaces_nothing(
    here: Mirror, there: Mirror, kind: str
) -> None:
    place, write, read, (old, old_read), _ = FILES[kind]
    write(place(here.store), old)
    here.push(place(here.store))
    there.pull(place(there.store))
    there.objects.put_bytes(place(there.store).key, b"{PAR1")
    with pytest.raises(StorageError, match="stays as it is"):
        there.pull(place(there.store))
    assert read(place(there.store)) == old_read
    place(there.store).path.write_bytes(b"{PAR1")
    with pytest.raises(StorageError):
        there.push(place(there.store))


def test_a_damaged_file_is_never_pushed(bucket: Bucket, here: Mirror) -> None:
    location = layout.ohlcv(here.store, SERIES, 2020)
    write_frame(location, a_frame(1.0))
    location.path.write_bytes(location.path.read_bytes()[:-30])
    with pytest.raises(StorageError):
        here.push(location)
    assert bucket.front.seen == []


def test_a_bundle_is_the_same_on_another_machine(here: Mirror, there: Mirror) -> None:
    assert not there.pull_bundle(policy(there))
    version = committed(here, "one")
    here.push_bundle(policy(here))
    assert there.pull_bundle(policy(there))
    assert held(there) == held(here)
    assert verify(current(policy(there)))["version"] == version
    second = committed(here, "two")
    here.push_bundle(policy(here))
    assert there.pull_bundle(policy(there))
    assert current_version(policy(there)) == second
    assert held(there) == held(here)


def test_the_pointer_goes_after_all_it_points_to(bucket: Bucket, here: Mirror) -> None:
    committed(here, "one")
    here.push_bundle(policy(here))
    puts = [target.rpartition("/")[2] for target in bucket.front.targets("PUT")]
    assert puts[-2:] == ["bundle.json", "current.json"]
    assert sorted(puts[:-2]) == ["log", "weights"]


def test_a_version_that_is_committed_during_a_push_is_not_pointed_to_before_it_is_there(
    bucket: Bucket, here: Mirror, there: Mirror
) -> None:
    committed(here, "one")
    with bucket.front.at(1) as reached:
        push = threading.Thread(target=here.push_bundle, args=(policy(here),))
        push.start()
        assert reached.wait(60)
        second = committed(here, "two")
    push.join()
    assert there.pull_bundle(policy(there))
    assert verify(current(policy(there)))["version"] == second


@pytest.mark.parametrize("part", ["weights", "log", "bundle.json", "current.json"])
def test_a_push_that_fails_anywhere_leaves_the_old_version_current(
    bucket: Bucket, here: Mirror, there: Mirror, part: str
) -> None:
    first = committed(here, "one")
    here.push_bundle(policy(here))
    second = committed(here, "two", "another log")
    bucket.front.break_next("refuse", "PUT", part, 507)
    with pytest.raises(ObjectStoreFull):
        here.push_bundle(policy(here))
    there.pull_bundle(policy(there))
    assert verify(current(policy(there)))["version"] == first
    here.pull_bundle(policy(here))
    assert current_version(policy(here)) == second
    here.push_bundle(policy(here))
    there.pull_bundle(policy(there))
    assert verify(current(policy(there)))["version"] == second


@pytest.mark.parametrize("part", ["weights", "bundle.json"])
def test_a_pull_that_fails_leaves_the_old_version_current_here(
    bucket: Bucket, here: Mirror, there: Mirror, part: str
) -> None:
    first = committed(here, "one")
    here.push_bundle(policy(here))
    there.pull_bundle(policy(there))
    second = committed(here, "two")
    here.push_bundle(policy(here))
    bucket.front.break_next("cut", "GET", f"{second}/{part}", times=3)
    with pytest.raises(ObjectStoreError):
        there.pull_bundle(policy(there))
    assert verify(current(policy(there)))["version"] == first
    assert list((there.store / "staging").iterdir()) == []
    there.pull_bundle(policy(there))
    assert verify(current(policy(there)))["version"] == second


def test_a_version_that_lost_a_member_here_is_fetched_again(here: Mirror) -> None:
    committed(here, "one")
    here.push_bundle(policy(here))
    (current(policy(here)).path / "log").unlink()
    here.pull_bundle(policy(here))
    verify(current(policy(here)))


def test_a_pointer_to_nothing_is_not_followed(here: Mirror, there: Mirror) -> None:
    first = committed(here, "one")
    here.push_bundle(policy(here))
    there.pull_bundle(policy(there))
    for lie in ({"version": "a" * 32}, {"version": "../../x"}, {}):
        pointer = policy(here).child("current.json")
        here.objects.put_bytes(pointer.key, json.dumps(lie).encode())
        with pytest.raises(BundleError, match=rf"s3://.*{pointer.key}"):
            there.pull_bundle(policy(there))
        assert current_version(policy(there)) == first


def test_a_version_that_is_not_current_can_be_had_by_its_name(here: Mirror, there: Mirror) -> None:
    first = committed(here, "one")
    here.push_bundle(policy(here))
    committed(here, "two")
    here.push_bundle(policy(here))
    assert there.pull_bundle(policy(there), first)
    verify(policy(there).child(first))
    assert current_version(policy(there)) is None
    assert not there.pull_bundle(policy(there), "a" * 32)


def test_a_whole_store_goes_over_as_far_as_it_is_not_of_one_machine(
    bucket: Bucket, here: Mirror, there: Mirror
) -> None:
    for year in (2020, 2021):
        write_frame(layout.ohlcv(here.store, SERIES, year), a_frame(float(year)))
    write_json(layout.manifest(here.store, SERIES), {"day": 1})
    write_frame(layout.leaderboard(here.store), a_frame(9.0))
    committed(here, "old")
    version = committed(here, "new")
    local = {
        key: ArtifactLocation(here.store, f"{key}/something.json")
        for key in ("staging", "checkpoints", "verdicts")
    }
    for location in local.values():
        write_json(location, {})
    here.push_folder("ohlcv")
    there.pull_folder("")
    assert sorted(held(there)) == [f"ohlcv/{SERIES}/{year}.parquet" for year in (2020, 2021)]
    here.push_folder("")
    there.pull_folder("manifest")
    assert layout.manifest(there.store, SERIES).path.exists()
    assert not layout.leaderboard(there.store).path.exists()
    there.pull_folder("")
    assert current_version(policy(there)) == version
    sent = {
        key: content
        for key, content in held(here).items()
        if not key.startswith(tuple(local)) and "old" not in content.decode(errors="replace")
    }
    assert {key for key in held(there)} <= set(sent)
    for needed in ("leaderboard.parquet", f"{policy(there).key}/{version}/weights"):
        assert held(there)[needed] == sent[needed]
    gets = len(bucket.front.targets("GET"))
    there.pull_folder("")
    listings = bucket.front.targets("GET")[gets:]
    assert all("list-type=2" in target for target in listings), "something came twice"
