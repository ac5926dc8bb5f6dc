"""`trade-pipeline`: bundles from the command line."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trade_pipeline.cli import app
from trade_pipeline.settings.project import STORE_VARIABLE
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline.training.policy import DETERMINISTIC
from trade_pipeline_tests.training.policies import write_bundle as write_policy_bundle

KEY = "alone/policy/base.f0.s0"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def committed(store: Path, text: str, seconds: int = 0) -> str:
    """Commit a bundle that is no policy and return its version; later `seconds` are newer."""
    staging = bundles.staging(store, "test")
    (staging.path / "dataset.json").write_text(text, encoding="utf-8")
    (staging.path / "job.log").write_text("it went well", encoding="utf-8")
    reference = bundles.seal(staging, ["dataset.json"])
    location = bundles.commit(reference, ArtifactLocation(store, KEY))
    os.utime(location.path, (seconds, seconds))
    return reference.version


def test_verify_says_that_a_good_bundle_is_as_recorded(tmp_path: Path) -> None:
    version = committed(tmp_path, "{}")
    done = run("bundle", "verify", KEY, "--store", str(tmp_path))
    assert done.exit_code == 0
    assert all(word in done.stdout for word in (KEY, version, "2 members"))


@pytest.mark.parametrize("member", ["dataset.json", "job.log"])
def test_verify_names_the_member_of_a_changed_byte(tmp_path: Path, member: str) -> None:
    version = committed(tmp_path, "{}")
    path = tmp_path / KEY / version / member
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = run("bundle", "verify", KEY, "--store", str(tmp_path))
    assert done.exit_code == 1
    assert member in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("key", ["alone/policy/base.f0.s9", "../outside", "/etc"])
@pytest.mark.parametrize("command", ["verify", "prune", "export"])
def test_a_bundle_that_is_not_there_is_an_error(tmp_path: Path, key: str, command: str) -> None:
    committed(tmp_path, "{}")
    more = ["--to", str(tmp_path / "out.zip")] if command == "export" else []
    done = run("bundle", command, key, "--store", str(tmp_path), *more)
    assert done.exit_code == 1
    assert key in done.stderr
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("alone/polcy/base.f0.s0", f"Did you mean '{KEY}'?"),
        ("zzz", f"Stored bundles: {KEY}."),
    ],
)
@pytest.mark.parametrize("command", ["verify", "prune", "export", "mlflow", "reproduce"])
def test_a_mistyped_key_is_answered_with_what_is_stored(
    tmp_path: Path, command: str, key: str, hint: str
) -> None:
    committed(tmp_path, "{}")
    more = ["--to", str(tmp_path / "out.zip")] if command == "export" else []
    words = [command] if command == "reproduce" else ["bundle", command]
    done = run(*words, key, "--store", str(tmp_path), *more)
    assert done.exit_code == 1
    assert f"{key}: no such bundle is stored in {tmp_path}. {hint}" in done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of a policy; the first is no longer current."""
    store = tmp_path_factory.mktemp("trained")
    for seed in range(2):
        write_policy_bundle(store, f"staging/{seed}", seed=seed)
        staging = ArtifactLocation(store, f"staging/{seed}")
        reference = bundles.BundleReference(staging, bundles.verify(staging)["version"])
        bundles.commit(reference, ArtifactLocation(store, KEY))
    return store


def versions_of(store: Path) -> tuple[str, str]:
    """The old version and the current one."""
    current = bundles.current(ArtifactLocation(store, KEY)).path.name
    (old,) = {path.name for path in (store / KEY).iterdir() if path.is_dir()} - {current}
    return old, current


def test_an_exported_policy_is_imported_by_another_store(trained: Path, tmp_path: Path) -> None:
    old, current = versions_of(trained)
    path, store = str(tmp_path / "policy.zip"), str(tmp_path / "store")
    done = run("bundle", "export", KEY, "--to", path, "--store", str(trained), "--version", old)
    assert done.exit_code == 0
    assert old in done.stdout
    assert run("bundle", "verify", path).exit_code == 0
    done = run("bundle", "import", path, "--as", "imported/theirs", "--store", store)
    assert done.exit_code == 0
    assert old in done.stdout
    verified = run("bundle", "verify", "imported/theirs", "--store", store)
    assert verified.exit_code == 0
    assert old in verified.stdout
    assert current not in verified.stdout


@pytest.mark.parametrize("kind", ["zip", "onnx", "sb3"])
def test_an_export_replaces_a_file_only_when_told_to(
    trained: Path, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "my policy"
    path.write_text("mine")
    words = ["bundle", "export", KEY, "--to", str(path), "--format", kind]
    done = run(*words, "--store", str(trained))
    assert done.exit_code == 1
    assert "is there already; choose another name or give --force" in done.stderr
    assert path.read_text() == "mine"
    assert run(*words, "--store", str(trained), "--force").exit_code == 0
    assert path.stat().st_size > 1_000
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["onnx", "sb3"])
def test_what_is_no_policy_has_no_network_to_export(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, "{}")
    path = tmp_path / "out"
    words = ["bundle", "export", KEY, "--to", str(path), "--format", kind]
    done = run(*words, "--store", str(tmp_path))
    assert done.exit_code == 1
    assert "spec.json" in done.stderr
    assert not path.exists()


def test_verify_takes_a_version_a_folder_or_a_zip(trained: Path, tmp_path: Path) -> None:
    old, current = versions_of(trained)
    archive = tmp_path / "policy.zip"
    run("bundle", "export", KEY, "--to", str(archive), "--store", str(trained))
    for words, version in (
        ([KEY, "--store", str(trained)], current),
        ([KEY, "--store", str(trained), "--version", old], old),
        ([str(trained / KEY / old)], old),
        ([str(archive)], current),
        ([str(archive), "--version", current], current),
    ):
        done = run("bundle", "verify", *words)
        assert done.exit_code == 0, done.stderr
        assert version in done.stdout
    wrong = run("bundle", "verify", str(archive), "--version", old)
    assert wrong.exit_code == 1
    assert f"holds version {current}, not {old}" in wrong.stderr
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    changed = run("bundle", "verify", str(archive))
    assert changed.exit_code == 1
    assert str(archive) in changed.stderr


def test_a_key_of_the_store_is_no_path_even_inside_the_store(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    done = run("bundle", "verify", KEY, "--store", ".")
    assert done.exit_code == 0, done.stderr


def test_verify_looks_inside_a_policy_whose_hashes_are_right(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / KEY / versions_of(trained)[0], tmp_path / "policy")
    (tmp_path / "policy" / "spec.json").write_text("{}")
    bundles.seal(ArtifactLocation(tmp_path, "policy"), DETERMINISTIC)
    done = run("bundle", "verify", str(tmp_path / "policy"))
    assert done.exit_code == 1
    assert "spec.json" in done.stderr
    words = ["bundle", "import", str(tmp_path / "policy"), "--as", "imported/a"]
    done = run(*words, "--store", str(tmp_path))
    assert done.exit_code == 1
    assert "quarantine" in done.stderr


def test_prune_keeps_the_newest_and_the_current(tmp_path: Path) -> None:
    versions = [committed(tmp_path, f'"{n}"', seconds=n) for n in range(1, 6)]
    committed(tmp_path, '"1"', seconds=0)  # the oldest is current again
    done = run("bundle", "prune", KEY, "--keep", "2", "--store", str(tmp_path))
    assert done.exit_code == 0
    left = {path.name for path in (tmp_path / KEY).iterdir() if path.is_dir()}
    assert left == {versions[0], versions[3], versions[4]}
    assert "2 versions removed" in done.stdout
    assert all(version in done.stdout for version in versions[1:3])
    assert run("bundle", "verify", KEY, "--store", str(tmp_path)).exit_code == 0


def test_prune_keeps_at_least_one(tmp_path: Path) -> None:
    committed(tmp_path, "{}")
    assert run("bundle", "prune", KEY, "--keep", "0", "--store", str(tmp_path)).exit_code == 2


def test_the_store_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed(tmp_path, "{}")
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path))
    assert run("bundle", "verify", KEY).exit_code == 0
