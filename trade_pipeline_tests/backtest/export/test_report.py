"""A report as one zip: complete, the same bytes each time, and made of the versions it shows."""

import csv
import hashlib
import io
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner, Result

from trade_pipeline.cli import app
from trade_pipeline.settings.base import parse_settings
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.features import FeatureSetSettings
from trade_pipeline.settings.project import read_project
from trade_pipeline.settings.series import SeriesSettings
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.deployment import Deployment, built_once
from trade_pipeline_tests.small_project import ALPHA

KEY = "alone/report"
TRIALS = ("base.f0.s0", "base.f0.s1", "base.f1.s0", "base.f1.s1")
TABLES = ("equity", "fills", "months", "orders", "rolling", "trades", "years")


def run(store: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["bundle", *words, "--store", str(store)])


def exported(store: Path, path: Path, *more: str) -> zipfile.ZipFile:
    done = run(store, "export", KEY, "--to", str(path), *more)
    assert done.exit_code == 0, done.stderr
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> Path:
    """The trained project; these tests only read it."""
    return built_once(templates, "trained")


def current(store: Path, key: str) -> ArtifactLocation:
    return bundles.current(ArtifactLocation(store, key))


def median_seed(store: Path) -> int:
    table = pl.read_parquet(current(store, KEY).child("leaderboard.parquet").path)
    (seed,) = table.filter(kind="policy")["median_seed"]
    return int(seed)


def test_a_report_is_exported_with_everything_that_it_was_made_from(
    template: Path, tmp_path: Path
) -> None:
    store = template / "store"
    packed = exported(store, tmp_path / "report.zip")
    names = set(packed.namelist())
    wanted = {"README.txt", "SHA256SUMS", "provenance.json", "leaderboard.csv"}
    wanted |= {
        "configs/experiments/alone.yaml",
        "configs/features/tiny.yaml",
        "configs/series.yaml",
    }
    for trial in TRIALS:
        tables = {f"{table}.csv" for table in TABLES}
        for member in tables | {"metrics.json", "summary.json", "provenance.json"}:
            wanted.add(f"backtests/{trial}/{member}")
    shown = [f"base.f{fold}.s{median_seed(store)}" for fold in (0, 1)]
    folders = {f"policies/{trial}": f"alone/policy/{trial}" for trial in shown} | {"report": KEY}
    for folder, key in folders.items():
        home = current(store, key).path
        members = [path for path in home.rglob("*") if path.is_file()]
        wanted |= {f"{folder}/{path.relative_to(home).as_posix()}" for path in members}
    assert names == wanted
    assert {"report/report.html", "report/metrics.json", "report/leaderboard.parquet"} <= names
    assert all(f"policies/{trial}/job.log" in names for trial in shown)


def test_every_byte_is_that_of_the_store_and_every_hash_is_right(
    template: Path, tmp_path: Path
) -> None:
    store = template / "store"
    packed = exported(store, tmp_path / "report.zip")
    lines = packed.read("SHA256SUMS").decode().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert sums.keys() == set(packed.namelist()) - {"SHA256SUMS"}
    for name, digest in sums.items():
        content = packed.read(name)
        assert hashlib.sha256(content).hexdigest() == digest, name
        folder, _, rest = name.partition("/")
        kinds = {"policies": "policy", "backtests": "backtest"}
        if folder in kinds:
            trial, _, member = rest.partition("/")
            key = f"alone/{kinds[folder]}/{trial}"
            assert content == (current(store, key).path / member).read_bytes()
        elif folder == "report":
            assert content == (current(store, KEY).path / rest).read_bytes()


def test_the_settings_in_the_zip_are_those_of_the_experiment(
    template: Path, tmp_path: Path
) -> None:
    packed = exported(template / "store", tmp_path / "report.zip")
    project = read_project(template / "configs")

    def parsed(name: str) -> Any:
        return yaml.safe_load(packed.read(f"configs/{name}.yaml"))

    experiment = parse_settings(parsed("experiments/alone"), ExperimentSettings, "zip")
    assert experiment == project.experiments["alone"]
    features = parse_settings(parsed("features/tiny"), FeatureSetSettings, "zip")
    assert [one.name for one in features.indicators] == ["returns", "sma_ratio"]
    (series,) = parsed("series")["series"]
    assert parse_settings(series, SeriesSettings, "zip") == project.series[ALPHA]


def test_the_leaderboard_as_csv_says_what_the_parquet_says(template: Path, tmp_path: Path) -> None:
    packed = exported(template / "store", tmp_path / "report.zip")
    rows = list(csv.DictReader(io.StringIO(packed.read("leaderboard.csv").decode())))
    table = pl.read_parquet(io.BytesIO(packed.read("report/leaderboard.parquet"))).to_dicts()
    assert [row["name"] for row in rows] == [row["name"] for row in table]
    for row, known in zip(rows, table, strict=True):
        assert row["sharpe"] == ("" if known["sharpe"] is None else str(known["sharpe"]))


def test_the_provenance_reaches_from_the_report_down_to_the_bars(
    template: Path, tmp_path: Path
) -> None:
    store = template / "store"
    packed = exported(store, tmp_path / "report.zip")
    found = yaml.safe_load(packed.read("provenance.json"))
    assert found["report"] == {"key": KEY, "version": current(store, KEY).path.name}
    assert found["dataset"]["version"] == current(store, "alone/dataset").path.name
    inputs = read_json(current(store, "alone/dataset").child("inputs.json"))
    assert found["inputs"] == inputs
    assert any(name.startswith(f"ohlcv|{ALPHA}|") for name in inputs)
    for trial in TRIALS:
        policy = current(store, f"alone/policy/{trial}")
        assert found["policies"][trial]["version"] == policy.path.name
        backtest = current(store, f"alone/backtest/{trial}")
        assert found["backtests"][trial]["version"] == backtest.path.name
    shown = found["policies"][f"base.f1.s{median_seed(store)}"]
    assert shown["packed"]
    assert shown["versions"]["torch"].startswith("2.")


def test_the_same_report_is_the_same_file_wherever_and_whenever_it_is_exported(
    trained: Deployment, tmp_path: Path
) -> None:
    store = trained.places.store
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    exported(store, first)
    # Nothing of what is current by now may enter: the report names versions.
    for kind in ("policy", "backtest"):
        for trial in TRIALS:
            (store / "alone" / kind / trial / "current.json").unlink()
    for path in store.rglob("*"):
        path.touch()
    exported(store, second)
    assert first.read_bytes() == second.read_bytes()


def test_all_trials_are_packed_when_asked_for(template: Path, tmp_path: Path) -> None:
    packed = exported(template / "store", tmp_path / "report.zip", "--all-trials")
    folders = {name.split("/")[1] for name in packed.namelist() if name.startswith("policies/")}
    assert folders == set(TRIALS)


@pytest.mark.parametrize("kind", ["policy", "backtest"])
def test_a_version_that_was_pruned_is_named(trained: Deployment, tmp_path: Path, kind: str) -> None:
    store = trained.places.store
    key = f"alone/{kind}/base.f1.s{median_seed(store)}"
    folder = current(store, key).path
    shutil.rmtree(folder)
    path = tmp_path / "report.zip"
    done = run(store, "export", KEY, "--to", str(path))
    assert done.exit_code == 1
    assert f"{key} version {folder.name}, which is no longer stored" in done.stderr
    assert list(tmp_path.glob("*.zip*")) == []


def test_a_policy_that_is_not_shown_may_be_pruned(trained: Deployment, tmp_path: Path) -> None:
    store = trained.places.store
    other = 1 - median_seed(store)
    shutil.rmtree(current(store, f"alone/policy/base.f0.s{other}").path)
    exported(store, tmp_path / "report.zip")
    done = run(store, "export", KEY, "--to", str(tmp_path / "all.zip"), "--all-trials")
    assert done.exit_code == 1
    assert f"alone/policy/base.f0.s{other} version" in done.stderr


@pytest.mark.parametrize(
    ("key", "member"),
    [
        (KEY, "leaderboard.parquet"),
        ("alone/policy/base.f0.s{seed}", "job.log"),
        ("alone/backtest/base.f0.s1", "fills.csv"),
        ("alone/backtest/base.f0.s1", "equity.parquet"),
    ],
)
def test_nothing_is_exported_when_a_byte_was_changed(
    trained: Deployment, tmp_path: Path, key: str, member: str
) -> None:
    store = trained.places.store
    path = current(store, key.format(seed=median_seed(store))).path / member
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    done = run(store, "export", KEY, "--to", str(tmp_path / "report.zip"))
    assert done.exit_code == 1
    assert member in done.stderr
    assert list(tmp_path.glob("*.zip*")) == []


def test_what_comes_out_of_the_zip_is_verified_and_taken_in_elsewhere(
    template: Path, tmp_path: Path
) -> None:
    packed = exported(template / "store", tmp_path / "report.zip")
    out, other = tmp_path / "out", tmp_path / "other"
    packed.extractall(out)
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=out, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    policy = out / "policies" / f"base.f0.s{median_seed(template / 'store')}"
    for folder in (policy, out / "report"):
        assert run(other, "verify", str(folder)).exit_code == 0
    several = run(other, "verify", str(tmp_path / "report.zip"))
    assert several.exit_code == 1
    assert "unzip it, run `sha256sum --check SHA256SUMS` there" in several.stderr
    done = run(other, "import", str(policy), "--as", "imported/theirs")
    assert done.exit_code == 0, done.stderr
    readme = (out / "README.txt").read_text()
    assert all(path.name in readme for path in out.iterdir() if path.name != "README.txt")


def test_a_report_of_before_it_named_its_sources_says_what_to_do(
    trained: Deployment, tmp_path: Path
) -> None:
    store = trained.places.store
    old = bundles.staging(store, "old")
    shutil.copytree(current(store, KEY).path, old.path, dirs_exist_ok=True)
    (old.path / "provenance.json").unlink()
    bundles.commit(bundles.seal(old, ["leaderboard.parquet"]), ArtifactLocation(store, KEY))
    done = run(store, "export", KEY, "--to", str(tmp_path / "report.zip"))
    assert done.exit_code == 1
    assert "has no provenance.json" in done.stderr
    assert f"materialize {KEY} again" in done.stderr


def test_all_trials_of_what_is_no_report_make_no_sense(template: Path, tmp_path: Path) -> None:
    words = ("export", "alone/policy/base.f0.s0", "--to", str(tmp_path / "policy.zip"))
    done = run(template / "store", *words, "--all-trials")
    assert done.exit_code == 1
    assert "--all-trials is for reports" in done.stderr
