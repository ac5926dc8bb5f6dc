"""`trade-pipeline`: bundles and indicators from the command line."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from trade_pipeline.cli import app
from trade_pipeline.features.registry import indicators
from trade_pipeline.settings.project import STORE_VARIABLE
from trade_pipeline.storage import bundles
from trade_pipeline.storage.location import ArtifactLocation

KEY = "alone/policy/base.f0.s0"


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def committed(store: Path, text: str, seconds: int = 0) -> str:
    """Commit a bundle of one member and return its version; later `seconds` are newer."""
    staging = bundles.staging(store, "test")
    (staging.path / "spec.json").write_text(text, encoding="utf-8")
    (staging.path / "job.log").write_text("it went well", encoding="utf-8")
    reference = bundles.seal(staging, ["spec.json"])
    location = bundles.commit(reference, ArtifactLocation(store, KEY))
    os.utime(location.path, (seconds, seconds))
    return reference.version


def test_verify_says_that_a_good_bundle_is_as_recorded(tmp_path: Path) -> None:
    version = committed(tmp_path, "{}")
    done = run("bundle", "verify", KEY, "--store", str(tmp_path))
    assert done.exit_code == 0
    assert all(word in done.stdout for word in (KEY, version, "2 members"))


@pytest.mark.parametrize("member", ["spec.json", "job.log"])
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
@pytest.mark.parametrize("command", ["verify", "prune"])
def test_a_bundle_that_is_not_there_is_an_error(tmp_path: Path, key: str, command: str) -> None:
    committed(tmp_path, "{}")
    done = run("bundle", command, key, "--store", str(tmp_path))
    assert done.exit_code == 1
    assert key in done.stderr


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


def test_every_indicator_is_listed_with_its_parameters() -> None:
    done = run("indicators", "list")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(indicators())
    for line, (_, indicator) in zip(lines, sorted(indicators().items()), strict=True):
        assert all(name in line for name in indicator.inputs)
        assert all(f"{name}=" in line for name in indicator.parameters.model_fields)
