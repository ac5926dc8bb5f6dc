import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trade_pipeline.storage.bundles import (
    BundleError,
    BundleReference,
    commit,
    current,
    current_version,
    prune,
    seal,
    staging,
    stored,
    verify,
    version_of,
)
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import frame_lock
from trade_pipeline.storage.location import ArtifactLocation, StorageError

WEIGHTS, LOG = "policy.safetensors", "tb/job.log"


def stage(store: Path, weights: str = "weights", log: str = "log") -> BundleReference:
    location = staging(store, "policy")
    (location.path / WEIGHTS).write_text(weights)
    (location.path / "tb").mkdir()
    (location.path / LOG).write_text(log)
    return seal(location, {WEIGHTS})


@pytest.fixture
def key(tmp_path: Path) -> ArtifactLocation:
    return ArtifactLocation(tmp_path, "ppo/policy/base.f0.s1")


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_seal_lists_every_member_with_hash_size_and_role(tmp_path: Path) -> None:
    reference = stage(tmp_path)
    sha256 = {text: hashlib.sha256(text.encode()).hexdigest() for text in ("weights", "log")}
    assert json.loads((reference.location.path / "bundle.json").read_text()) == {
        "version": reference.version,
        "members": [
            {"name": WEIGHTS, "sha256": sha256["weights"], "size": 7, "deterministic": True},
            {"name": LOG, "sha256": sha256["log"], "size": 3, "deterministic": False},
        ],
    }
    assert reference.version == version_of({WEIGHTS: sha256["weights"]})
    assert verify(reference.location)["version"] == reference.version


def test_the_version_is_made_of_names_and_bytes_of_deterministic_members(tmp_path: Path) -> None:
    assert stage(tmp_path).version == stage(tmp_path, log="another").version
    assert stage(tmp_path).version != stage(tmp_path, weights="another").version
    assert version_of({"a": "1", "b": "2"}) == version_of({"b": "2", "a": "1"})
    assert version_of({"a": "1"}) != version_of({"b": "1"})
    assert version_of({"a": "1"}) == hashlib.sha256(b'{"a":"1"}').hexdigest()[:32]


def test_a_seal_may_be_repeated(tmp_path: Path) -> None:
    reference = stage(tmp_path)
    before = files(reference.location.path)
    assert seal(reference.location, [WEIGHTS]) == reference
    assert files(reference.location.path) == before


def test_a_seal_refuses_an_absent_or_no_deterministic_member(tmp_path: Path) -> None:
    location = stage(tmp_path).location
    with pytest.raises(BundleError, match=r"member 'spec\.json' is not there"):
        seal(location, {WEIGHTS, "spec.json"})
    with pytest.raises(BundleError, match="no deterministic member"):
        seal(location, [])


def test_a_seal_refuses_links(tmp_path: Path) -> None:
    location = stage(tmp_path).location
    (location.path / "link").symlink_to(location.path / "tb")
    with pytest.raises(BundleError, match="'link' is a link"):
        seal(location, {WEIGHTS})


def rewrite(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def tamper(folder: Path) -> None:
        index = json.loads((folder / "bundle.json").read_text())
        change(index)
        (folder / "bundle.json").write_text(json.dumps(index))

    return tamper


def rename_to(name: str) -> Callable[[Path], object]:
    return rewrite(lambda index: index["members"][1].update(name=name))


def swap_for_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / WEIGHTS).rename(outside)
    (folder / WEIGHTS).symlink_to(outside)


def swap_folder_for_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "tb").rename(outside)
    (folder / "tb").symlink_to(outside)


def swap_all_for_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)


def swap_index_for_link(folder: Path) -> None:
    outside = folder.parent / "outside"
    (folder / "bundle.json").rename(outside)
    (folder / "bundle.json").symlink_to(outside)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed byte": (
        lambda folder: (folder / WEIGHTS).write_text("weightz"),
        r"'policy\.safetensors' is not the file that was sealed",
    ),
    "changed byte of a log": (
        lambda folder: (folder / LOG).write_text("loG"),
        r"'tb/job\.log' is not the file that was sealed",
    ),
    "appended byte": (
        lambda folder: (folder / LOG).write_text("log "),
        r"'tb/job\.log' is not the file that was sealed",
    ),
    "wrong size": (
        rewrite(lambda index: index["members"][0].update(size=6)),
        r"'policy\.safetensors' is not the file that was sealed",
    ),
    "missing member": (lambda folder: (folder / LOG).unlink(), r"'tb/job\.log' is missing"),
    "extra file": (
        lambda folder: (folder / "tb" / "extra").touch(),
        r"'tb/extra' is not in bundle\.json",
    ),
    "extra file with a hostile name": (
        lambda folder: (folder / "a b").touch(),
        "'a b' cannot be a member",
    ),
    "listed twice": (
        rewrite(lambda index: index["members"].append(index["members"][0])),
        r"lists member 'policy\.safetensors' twice",
    ),
    "parent": (rename_to("../outside"), r"'\.\./outside' cannot be a member"),
    "parent inside": (rename_to("tb/../tb/job.log"), "cannot be a member"),
    "absolute": (rename_to("/etc/passwd"), "'/etc/passwd' cannot be a member"),
    "backslash": (rename_to("tb\\job.log"), "cannot be a member"),
    "empty name": (rename_to(""), "cannot be a member"),
    "index lists itself": (rename_to("bundle.json"), r"'bundle\.json' is missing"),
    "link": (swap_for_link, r"'policy\.safetensors' is a link"),
    "linked folder": (swap_folder_for_link, "'tb' is a link"),
    "linked bundle": (swap_all_for_link, "no such bundle folder"),
    "linked index": (swap_index_for_link, r"'bundle\.json' is a link"),
    "dangling link": (
        lambda folder: (folder / "tb" / "link").symlink_to("/nowhere"),
        "'tb/link' is a link",
    ),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "'pipe' is a link or no plain file"),
    "wrong version": (
        rewrite(lambda index: index.update(version="0" * 32)),
        "version 0{32} in bundle.json is not that of its deterministic members",
    ),
    "another member counted": (
        rewrite(lambda index: index["members"][1].update(deterministic=True)),
        "is not that of its deterministic members",
    ),
    "none counted": (
        rewrite(lambda index: index["members"][0].update(deterministic=False)),
        "no deterministic member",
    ),
    "version is a path": (rewrite(lambda index: index.update(version="../x")), "'version'"),
    "unknown key": (rewrite(lambda index: index.update(more=1)), "unknown key 'more'"),
    "no members": (rewrite(lambda index: index.pop("members")), "'members' is missing"),
    "size is text": (
        rewrite(lambda index: index["members"][0].update(size="7")),
        "key 'members.0.size' is '7'",
    ),
    "no index": (lambda folder: (folder / "bundle.json").unlink(), r"no bundle\.json, so"),
    "torn index": (
        lambda folder: (folder / "bundle.json").write_text('{"version"'),
        r"bundle\.json: not valid JSON",
    ),
    "no folder": (shutil.rmtree, "no such bundle folder"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_verify_and_commit_refuse(key: ArtifactLocation, refusal: str) -> None:
    commit(stage(key.store, "old"), key)
    before = files(key.path)
    reference = stage(key.store)
    tamper, message = REFUSALS[refusal]
    tamper(reference.location.path)
    with pytest.raises(BundleError, match=message):
        verify(reference.location)
    with pytest.raises(BundleError, match=message):
        commit(reference, key)
    assert files(key.path) == before


def test_a_bundle_over_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = stage(tmp_path).location
    verify(location, limit_bytes=10)
    os.truncate(location.path / LOG, 5 * 2**30)  # a hole: takes no space
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed first"))
    with pytest.raises(BundleError, match=r"'tb/job\.log' the bundle holds \d+ bytes, more than"):
        verify(location)


def test_a_commit_moves_the_bundle_and_makes_it_current(key: ArtifactLocation) -> None:
    assert current_version(key) is None
    with pytest.raises(BundleError, match=r"base\.f0\.s1: no version is current; materialize"):
        current(key)
    reference = stage(key.store)
    members = files(reference.location.path)
    location = commit(reference, key)
    assert location == current(key) == key.child(reference.version)
    assert current_version(key) == reference.version
    assert files(location.path) == members
    assert not reference.location.path.exists()
    assert (key.path / "current.json").read_text() == f'{{"version":"{reference.version}"}}\n'


def test_the_same_version_again_keeps_the_first_and_removes_the_staged(
    key: ArtifactLocation,
) -> None:
    first = commit(stage(key.store, log="first"), key)
    commit(stage(key.store, "other"), key)
    again = stage(key.store, log="again")
    assert commit(again, key) == first == current(key)
    assert (first.path / LOG).read_text() == "first"
    assert not again.location.path.exists()


def test_the_same_reference_may_be_committed_again(key: ArtifactLocation) -> None:
    reference = stage(key.store)
    location = commit(reference, key)
    before = files(key.path)
    assert commit(reference, key) == location
    assert files(key.path) == before


def test_a_damaged_existing_version_is_neither_kept_silently_nor_overwritten(
    key: ArtifactLocation,
) -> None:
    location = commit(stage(key.store), key)
    (location.path / WEIGHTS).write_text("damage")
    again = stage(key.store)
    with pytest.raises(BundleError, match=r"policy/base\.f0\.s1/.*is not the file that was sealed"):
        commit(again, key)
    verify(again.location)
    shutil.rmtree(location.path)
    assert commit(again, key) == location


def test_a_commit_refuses_another_version_than_claimed(key: ArtifactLocation) -> None:
    reference = stage(key.store)
    with pytest.raises(BundleError, match=r"not 0{32} as claimed"):
        commit(BundleReference(reference.location, "0" * 32), key)
    with pytest.raises(BundleError, match="is not 32 hex digits"):
        commit(BundleReference(reference.location, "../../x"), key)
    assert not key.path.exists()


def test_a_commit_refuses_a_bundle_of_another_store(
    key: ArtifactLocation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(BundleError, match="staged outside the store"):
        commit(stage(tmp_path_factory.mktemp("other")), key)


@pytest.mark.parametrize("change", ["commit", "prune"])
def test_one_key_is_changed_by_one_process_at_a_time(key: ArtifactLocation, change: str) -> None:
    commit(stage(key.store, "old"), key)
    new = stage(key.store)
    target = {"commit": lambda: commit(new, key), "prune": lambda: prune(key, keep=0)}[change]
    second = threading.Thread(target=target)
    with frame_lock(key):
        second.start()
        second.join(timeout=0.3)
        assert second.is_alive()
    second.join()
    assert not second.is_alive()


@pytest.mark.parametrize("step", ["Path.rename", "os.utime", "os.replace"])
def test_a_commit_killed_at_any_step_keeps_the_old_and_can_be_repeated(
    key: ArtifactLocation, step: str
) -> None:
    old = commit(stage(key.store, "old"), key)
    reference = stage(key.store)
    script = f"""
import os, signal, sys
from pathlib import Path
from trade_pipeline.storage.bundles import BundleReference, commit
from trade_pipeline.storage.location import ArtifactLocation
store, staged, version, key = Path(sys.argv[1]), *sys.argv[2:]
{step} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
commit(BundleReference(ArtifactLocation(store, staged), version), ArtifactLocation(store, key))
"""
    arguments = [str(key.store), reference.location.key, reference.version, key.key]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert current(key) == old
    verify(old)
    assert commit(reference, key) == current(key)
    assert verify(current(key))["version"] == reference.version


def test_a_failing_swap_leaves_the_old_version_current(
    key: ArtifactLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = commit(stage(key.store, "old"), key)
    reference = stage(key.store)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(StorageError, match=r"disk is full .*No space left"):
            commit(reference, key)
    assert current(key) == old
    assert commit(reference, key) == current(key)


@pytest.mark.parametrize("content", ["{", '{"version": "../../x"}', "[]", "{}"])
def test_a_damaged_pointer_is_named_and_a_commit_mends_it(
    key: ArtifactLocation, content: str
) -> None:
    commit(stage(key.store), key)
    (key.path / "current.json").write_text(content)
    with pytest.raises(BundleError, match=r"current\.json"):
        current(key)
    assert commit(stage(key.store), key) == current(key)


def test_a_pointer_to_nothing_is_named(key: ArtifactLocation) -> None:
    write_json(key.child("current.json"), {"version": "0" * 32})
    with pytest.raises(BundleError, match=r"current\.json names version 0{32}, which is not there"):
        current(key)


def test_a_version_is_found_by_its_name_and_the_current_one_without(
    key: ArtifactLocation,
) -> None:
    old, new = commit(stage(key.store, "old"), key), commit(stage(key.store, "new"), key)
    assert stored(key) == new
    assert stored(key, old.path.name) == old
    with pytest.raises(BundleError, match=r"version 0{32} is not there"):
        stored(key, "0" * 32)
    with pytest.raises(BundleError, match=r"version '\.\./x' is not 32 hex digits"):
        stored(key, "../x")


def test_staging_folders_are_fresh(tmp_path: Path) -> None:
    first, second = staging(tmp_path, "policy"), staging(tmp_path, "policy")
    assert first != second
    assert first.path.parent == tmp_path / "staging"
    assert first.path.name.startswith("policy-")
    assert list(first.path.iterdir()) == []


def commit_many(key: ArtifactLocation, count: int) -> list[str]:
    """Versions in the order committed, a second apart."""
    versions = []
    for n in range(count):
        location = commit(stage(key.store, f"weights {n}"), key)
        os.utime(location.path, (1000 + n, 1000 + n))
        versions.append(location.path.name)
    return versions


def test_prune_keeps_what_was_committed_last(key: ArtifactLocation) -> None:
    versions = commit_many(key, 5)
    assert prune(key, keep=3) == versions[:2]
    assert {path.name for path in key.path.iterdir()} == {*versions[2:], "current.json"}
    assert prune(key, keep=3) == []
    assert list((key.store / "staging").iterdir()) == []


def test_prune_never_removes_the_current_or_a_pinned_version(key: ArtifactLocation) -> None:
    versions = commit_many(key, 5)
    write_json(key.child("current.json"), {"version": versions[0]})
    assert prune(key, keep=1, pinned={versions[2]}) == [versions[1], versions[3]]
    assert prune(key, keep=0) == [versions[2], versions[4]]
    assert current(key).path.name == versions[0]


def test_a_version_committed_again_counts_as_new(key: ArtifactLocation) -> None:
    versions = commit_many(key, 3)
    commit(stage(key.store, "weights 0"), key)
    commit(stage(key.store, "weights 2"), key)
    assert prune(key, keep=2) == [versions[1]]


def test_prune_touches_nothing_but_versions(key: ArtifactLocation) -> None:
    assert prune(key, keep=0) == []
    commit(stage(key.store), key)
    key.child("notes").path.mkdir()
    assert prune(key, keep=0) == []
    assert key.child("notes").path.is_dir()
    with pytest.raises(BundleError, match="keep is -1"):
        prune(key, keep=-1)


def test_prune_with_a_damaged_pointer_removes_nothing(key: ArtifactLocation) -> None:
    versions = commit_many(key, 3)
    (key.path / "current.json").write_text("{")
    with pytest.raises(BundleError, match=r"current\.json"):
        prune(key, keep=0)
    assert all(key.child(version).path.is_dir() for version in versions)
