"""`trade-pipeline reproduce`: a bundle again from what it records, or what differs first."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from trade_pipeline.backtest.reproduce import first_difference
from trade_pipeline.cli import app
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import write_json
from trade_pipeline.storage.frames import read_whole, write_frame
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import ALPHA, BETA

POLICY, BACKTEST = "pair/policy/base.f0.s0", "pair/backtest/base.f0.s0"
DATASET = "pair/dataset"


def reproduce(deployment: Deployment, key: str, *options: str) -> Result:
    store = str(deployment.places.store)
    return CliRunner().invoke(app, ["reproduce", key, "--store", store, *options])


def change_bar(deployment: Deployment, series: str, year: int, row: int) -> None:
    """Change the close of one stored bar, and its file with its hash."""
    location = layout.ohlcv(deployment.places.store, series, year)
    stored = read_whole(location)
    at = pl.int_range(pl.len()) == row
    close = pl.when(at).then((pl.col("high") + pl.col("low")) / 2).otherwise("close")
    write_frame(location, stored.frame.with_columns(close=close), stored.metadata)


def rewrite(deployment: Deployment, key: str, member: str, change: Any) -> ArtifactLocation:
    """Change a JSON member of a current bundle and seal it, as one made elsewhere would be."""
    location = bundles.current(ArtifactLocation(deployment.places.store, key))
    index = json.loads((location.path / "bundle.json").read_text(encoding="utf-8"))
    document = json.loads((location.path / member).read_text(encoding="utf-8"))
    change(document)
    write_json(location.child(member), document)
    deterministic = [one["name"] for one in index["members"] if one["deterministic"]]
    version = bundles.seal(location, deterministic).version
    moved = location.path.with_name(version)
    location.path.rename(moved)
    home = ArtifactLocation(deployment.places.store, key)
    write_json(home.child("current.json"), {"version": version})
    return home.child(version)


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
    }


def test_a_backtest_and_all_it_hangs_on_are_rebuilt_without_a_write_to_the_store(
    trained: Deployment, tmp_path: Path
) -> None:
    before = files(trained.places.store)
    version = bundles.current_version(ArtifactLocation(trained.places.store, BACKTEST))
    done = reproduce(trained, BACKTEST, "--keep", str(tmp_path / "kept"))
    assert done.exit_code == 0, done.output
    assert f"reproduced, version {version}" in done.stdout
    assert files(trained.places.store) == before
    for key in (DATASET, POLICY, BACKTEST):  # every step of the way came out the same
        rebuilt, stored = (
            bundles.current_version(ArtifactLocation(store, key))
            for store in (tmp_path / "kept", trained.places.store)
        )
        assert rebuilt == stored


def test_the_recorded_configuration_counts_and_not_that_of_now(trained: Deployment) -> None:
    trained.edit("configs/experiments/pair.yaml", "rollout_steps: 32", "rollout_steps: 16")
    trained.edit("configs/features/tiny.yaml", "period: 10", "period: 12")
    done = reproduce(trained, POLICY)
    assert done.exit_code == 0, done.output
    assert "settings are those recorded with the bundle; configs/ is not read" in done.stdout


def test_a_changed_bar_is_named_by_its_partition(trained: Deployment) -> None:
    change_bar(trained, BETA, 2021, 200)
    for key in (DATASET, POLICY, BACKTEST):
        done = reproduce(trained, key)
        assert done.exit_code == 1, key
        last = done.stderr.strip().splitlines()[-1]
        assert f"is not reproduced: ohlcv|{BETA}|2021 was " in last
        assert "training" not in done.stdout, "a policy of other data need not be trained"
        assert f"ohlcv|{ALPHA}|2021 as recorded" in done.stdout


def test_a_bar_changed_outside_of_the_selected_rows_changes_no_result(
    imported: Deployment,
) -> None:
    change_bar(imported, ALPHA, 2020, 3)  # pair begins in March 2021
    done = reproduce(imported, DATASET)
    assert done.exit_code == 0, done.output
    assert f"differs: ohlcv|{ALPHA}|2020" in done.stdout


def test_a_missing_partition_is_named(imported: Deployment) -> None:
    layout.ohlcv(imported.places.store, ALPHA, 2021).path.unlink()
    done = reproduce(imported, DATASET)
    assert done.exit_code == 1
    assert f"ohlcv|{ALPHA}|2021 is no longer stored" in done.stderr


def test_differences_are_named_in_the_order_of_the_lineage(trained: Deployment) -> None:
    change_bar(trained, BETA, 2021, 200)

    def later(spec: dict[str, Any]) -> None:
        spec["configuration"]["algorithm"]["gamma"] = 0.5
        spec["configuration"]["algorithm"]["of_earlier_releases"] = 1

    def implementation(spec: dict[str, Any]) -> None:
        spec["implementations"]["kernel"] = 1

    def package(spec: dict[str, Any]) -> None:
        spec["versions"]["torch"] = "1.0.0"

    for change, named in (
        (later, "configuration"),
        (implementation, "implementation kernel was 1, is "),
        (package, "package torch was 1.0.0, is "),
    ):
        rewrite(trained, POLICY, "spec.json", change)
        done = reproduce(trained, POLICY)
        assert done.exit_code == 1
        assert f"is not reproduced: {named}" in done.stderr
        assert "training" not in done.stdout


def test_weights_that_came_from_elsewhere_are_named_by_their_member(trained: Deployment) -> None:
    home = ArtifactLocation(trained.places.store, POLICY)
    path = bundles.current(home).path / "policy.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # the last weight
    path.write_bytes(content)
    done = reproduce(trained, POLICY)
    assert done.exit_code == 1
    assert "policy.safetensors" in done.stderr
    assert "is not the file that was sealed" in done.stderr

    rewrite(trained, POLICY, "provenance.json", lambda known: None)  # seals the changed byte
    done = reproduce(trained, POLICY)
    assert done.exit_code == 1
    assert "member policy.safetensors came out otherwise, from the same inputs" in done.stderr


def test_a_bundle_that_records_too_little_says_what_is_missing(trained: Deployment) -> None:
    location = rewrite(trained, POLICY, "provenance.json", lambda known: known.pop("recipe"))
    done = reproduce(trained, POLICY, "--version", location.path.name)
    assert done.exit_code == 1
    assert "records no recipe" in done.stderr
    done = reproduce(trained, "pair/report")
    assert done.exit_code == 1
    assert "is no dataset, regime model, policy, nor backtest" in done.stderr


@pytest.mark.parametrize("where", ["store/rebuilt", "full"])
def test_rebuilding_never_writes_over_anything(
    imported: Deployment, where: str, tmp_path: Path
) -> None:
    folder = imported.root / where
    if where == "full":
        folder.mkdir()
        (folder / "mine").write_text("mine", encoding="utf-8")
    done = reproduce(imported, DATASET, "--keep", str(folder))
    assert done.exit_code == 1
    assert "must be an empty folder outside of the store" in done.stderr
    assert (folder / "mine").exists() == (where == "full")


def test_the_first_difference_is_said_by_its_path() -> None:
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c was 2, is 3"
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "b was absent, is 2"
    assert first_difference({"a": 1, "b": 2}, {"a": 1}) == "b was 2, is absent"
    assert first_difference("1.0", "2.0") == "was 1.0, is 2.0"
    assert first_difference([1, {"a": 2}], [1, {"a": 2}]) is None


def test_a_trial_beside_a_search_of_another_variant_is_rebuilt(trained: Deployment) -> None:
    def change(known: dict[str, Any]) -> None:
        settings = known["recipe"]["settings"]
        settings["variants"] = {"base": {}, "other": {"algorithm": {"gamma": 0.9}}}
        choice = {"kind": "choice", "values": [0.9, 0.99]}
        settings["search"] = {"variant": "other", "space": {"algorithm.gamma": choice}, "trials": 2}

    rewrite(trained, POLICY, "provenance.json", change)
    done = reproduce(trained, POLICY)
    assert done.exit_code == 0, done.output


def test_the_cause_is_named_and_not_a_bar_that_changed_nothing(trained: Deployment) -> None:
    change_bar(trained, ALPHA, 2020, 3)  # pair begins in March 2021

    def change(statistics: dict[str, Any]) -> None:
        statistics["mean"][0][0] += 1.0

    rewrite(trained, POLICY, "normalizer.json", change)
    done = reproduce(trained, POLICY)
    assert done.exit_code == 1
    assert f"differs: ohlcv|{ALPHA}|2020" in done.stdout
    assert "so that this changes nothing" in done.stdout
    assert "member normalizer.json came out otherwise" in done.stderr
