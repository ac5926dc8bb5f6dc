"""A trial as a run of MLflow, in a real file store and a real database, and never twice."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from trade_pipeline.backtest.export.mlflow import without_secrets
from trade_pipeline.cli import app
from trade_pipeline.storage import bundles
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.location import ArtifactLocation
from trade_pipeline_tests.deployment import Deployment, built_once

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY, POLICY = "alone/backtest/base.f0.s1", "alone/policy/base.f0.s1"


@pytest.fixture
def store(templates: Path) -> Path:
    """The trained project's store; these tests only read it."""
    return built_once(templates, "trained") / "store"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the command sets for MLflow ends with a test."""
    for name in ("DISABLE_TELEMETRY", "ALLOW_FILE_STORE", "HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        monkeypatch.delenv(f"MLFLOW_{name}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield


def run(store: Path, uri: str, *more: str, key: str = KEY) -> Result:
    words = ["bundle", "mlflow", key, "--store", str(store), "--tracking-uri", uri, *more]
    return CliRunner().invoke(app, words)


def runs(uri: str, experiment: str = "alone") -> "tuple[MlflowClient, list[Run]]":
    """A client of MLflow's own and all runs of an experiment that were not deleted."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client, list(client.search_runs([found.experiment_id]))


def members(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def files(client: "MlflowClient", run_id: str, folder: str) -> set[str]:
    """All artefacts below a folder, as MLflow lists them."""
    found = set()
    for one in client.list_artifacts(run_id, folder):
        found |= files(client, run_id, one.path) if one.is_dir else {one.path}
    return found


@pytest.mark.parametrize("scheme", ["sqlite", "file"])
def test_a_trial_becomes_a_run_with_all_that_is_known_of_it(
    store: Path, tmp_path: Path, scheme: str
) -> None:
    uri = f"sqlite:///{tmp_path}/runs.db" if scheme == "sqlite" else f"file://{tmp_path}/runs"
    done = run(store, uri)
    assert done.exit_code == 0, done.stderr
    client, (logged,) = runs(uri)
    backtest = bundles.current(ArtifactLocation(store, KEY))
    policy = bundles.current(ArtifactLocation(store, POLICY))
    assert logged.info.run_id in done.stdout
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", "alone base.f0.s1")

    params = logged.data.params
    known = {
        "trial": "base.f0.s1",
        "seed": "1",
        "environment.window": "4",
        "environment.costs.fee.bps": "10.0",
        "environment.actions.stops": "[null, 0.05]",
        "algorithm.kind": "ppo",
        "algorithm.total_frames": "1024",
        "splits.test_days": "120",
        "series": '["made.ALPHA.1d"]',
        "feature_set.indicators.1.params.period": "10",
    }
    assert {key: params.get(key) for key in known} == known
    assert not any(key.startswith("training.") for key in params)

    figures = read_json(backtest.child("metrics.json"))
    values = {f"test/{key}": value for key, value in figures["values"].items()}
    for part in ("market", "capacity"):
        values |= {f"test/{part}/{key}": one for key, one in figures[part]["values"].items()}
    logged_values = {k: v for k, v in logged.data.metrics.items() if k.startswith("test/")}
    assert logged_values == {key: value for key, value in values.items() if value is not None}

    diagnostics = pl.read_parquet(policy.child("diagnostics.parquet").path)
    for name in diagnostics.columns[1:]:
        column = diagnostics.filter(pl.col(name).is_finite()).select("frames", name)
        history = client.get_metric_history(logged.info.run_id, f"train/{name}")
        assert sorted((one.step, one.value) for one in history) == column.rows()

    tags = logged.data.tags
    assert tags["trade_pipeline.version"] == backtest.path.name
    assert tags["trade_pipeline.policy.version"] == policy.path.name
    assert tags["trade_pipeline.package.torch"].startswith("2.")
    inputs = read_json(policy.child("provenance.json"))["inputs"]
    assert {tags[f"trade_pipeline.input.{key.replace('|', '/')}"] for key in inputs} == set(
        inputs.values()
    )
    for folder, location in (("backtest", backtest), ("policy", policy)):
        wanted = {f"{folder}/{name}" for name in members(location.path)}
        assert files(client, logged.info.run_id, folder) == wanted


def test_a_figure_without_a_value_is_a_tag_that_says_why(
    trained: Deployment, tmp_path: Path
) -> None:
    store, uri = trained.places.store, f"file://{tmp_path}/runs"
    version = recommitted(store, {"sharpe": "nothing was traded", "market": "no spread"})
    assert run(store, uri).exit_code == 0
    _, (logged,) = runs(uri)
    assert logged.data.tags["trade_pipeline.version"] == version
    assert logged.data.tags["undefined.test/sharpe"] == "nothing was traded"
    assert logged.data.tags["undefined.test/market/alpha"] == "no spread"
    assert not {"test/sharpe", "test/market/alpha"} & logged.data.metrics.keys()
    assert "test/sharpe_bar" in logged.data.metrics


def test_params_show_where_the_test_was_not_as_the_training(
    trained: Deployment, tmp_path: Path
) -> None:
    store, uri = trained.places.store, f"file://{tmp_path}/runs"
    recommitted(store, {"sharpe": "none", "market": "none"}, fee_bps=99.0)
    assert run(store, uri).exit_code == 0
    _, (logged,) = runs(uri)
    changed = {key: one for key, one in logged.data.params.items() if key.endswith("fee.bps")}
    assert changed == {
        "environment.costs.fee.bps": "99.0",
        "training.environment.costs.fee.bps": "10.0",
    }
    assert sum(key.startswith("training.") for key in logged.data.params) == 1


def recommitted(store: Path, reasons: dict[str, str], fee_bps: float = 10.0) -> str:
    """Commit the backtest again with two figures undefined, and at a fee; its version."""
    staging = bundles.staging(store, "other")
    shutil.copytree(
        bundles.current(ArtifactLocation(store, KEY)).path, staging.path, dirs_exist_ok=True
    )
    figures = read_json(staging.child("metrics.json"))
    figures["values"]["sharpe"], figures["market"]["values"]["alpha"] = None, None
    figures["undefined"] = {"sharpe": reasons["sharpe"]}
    figures["market"]["undefined"] = {"alpha": reasons["market"]}
    write_json(staging.child("metrics.json"), figures)
    known = read_json(staging.child("provenance.json"))
    known["environment"]["costs"]["fee"]["bps"] = fee_bps
    write_json(staging.child("provenance.json"), known)
    reference = bundles.seal(staging, ["metrics.json", "equity.parquet"])
    return bundles.commit(reference, ArtifactLocation(store, KEY)).path.name


def test_a_version_is_one_run_however_often_it_is_exported(
    trained: Deployment, tmp_path: Path
) -> None:
    store, uri = trained.places.store, f"file://{tmp_path}/runs"
    first, second = run(store, uri), run(store, uri)
    assert "written" in first.stdout
    assert "there already" in second.stdout
    client, (only,) = runs(uri)
    assert only.info.run_id in second.stdout
    history = client.get_metric_history(only.info.run_id, "test/trades")
    assert len(history) == 1
    # Another version, another trial and another experiment are runs of their own.
    recommitted(store, {"sharpe": "none", "market": "none"})
    assert run(store, uri).exit_code == 0
    assert run(store, uri, key="alone/backtest/base.f1.s1").exit_code == 0
    assert len(runs(uri)[1]) == 3
    assert run(store, uri, "--experiment", "all of mine").exit_code == 0
    assert len(runs(uri, "all of mine")[1]) == 1
    assert len(runs(uri)[1]) == 3


def test_a_run_that_was_interrupted_is_written_again_and_alone(store: Path, tmp_path: Path) -> None:
    uri, blocked = f"sqlite:///{tmp_path}/runs.db", tmp_path / "mlartifacts"
    blocked.write_text("a file where the folder of artefacts must go")
    done = run(store, uri)
    assert done.exit_code == 1
    assert "did not take the run" in done.stderr
    client, (failed,) = runs(uri)
    assert failed.info.status == "FAILED"
    blocked.unlink()
    assert run(store, uri).exit_code == 0
    _, (only,) = runs(uri)
    assert only.info.run_id != failed.info.run_id
    assert only.info.status == "FINISHED"
    # A killed export leaves a run that says it is running.
    client.update_run(only.info.run_id, status="RUNNING")
    assert "written" in run(store, uri).stdout
    _, (last,) = runs(uri)
    assert last.info.run_id != only.info.run_id


def test_the_command_reports_nothing_to_anybody_and_writes_beside_its_database(
    store: Path, tmp_path: Path
) -> None:
    """In a process of its own: within a test, MLflow keeps quiet anyway."""
    hidden = ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS", "MLFLOW_DISABLE_TELEMETRY")
    done = subprocess.run(
        [sys.executable, "-m", "trade_pipeline.cli", "bundle", "mlflow", KEY, "--store", store],
        env={name: value for name, value in os.environ.items() if name not in hidden},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "sqlite:///mlflow.db, written" in done.stdout
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", "mlartifacts"}


def test_secrets_of_the_address_are_never_shown(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://ann:geh%40im@127.0.0.1:9/base?token=t0psecret"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["bundle", "mlflow", KEY, "--store", str(store)]
    for done in (run(store, uri), CliRunner().invoke(app, words)):
        assert done.exit_code == 1
        assert "MLflow at http://127.0.0.1:9/base did not take the run" in done.stderr
        for secret in ("geh%40im", "geh@im", "t0psecret"):
            assert secret not in done.output


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:pa@ss@host.example/base?token=x#y", "https://host.example/base"),
        (
            "postgresql+psycopg://me:pw@host:5432/runs?sslkey=x",
            "postgresql+psycopg://host:5432/runs",
        ),
        ("sqlite:////data/mine@home/runs.db", "sqlite:////data/mine@home/runs.db"),
        ("file:///data/runs", "file:///data/runs"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


def test_without_mlflow_the_message_says_what_to_install(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = run(store, f"file://{tmp_path}/runs")
    assert done.exit_code == 1
    assert "pip install 'trade_pipeline[mlflow]'" in done.stderr


def test_what_is_no_backtest_is_refused(store: Path, tmp_path: Path) -> None:
    for key in ("alone/report", POLICY):
        done = run(store, f"file://{tmp_path}/runs", key=key)
        assert done.exit_code == 1
        assert "is no backtest that names its policy" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_policy_that_is_no_longer_stored_is_named(trained: Deployment, tmp_path: Path) -> None:
    store = trained.places.store
    folder = bundles.current(ArtifactLocation(store, POLICY)).path
    shutil.rmtree(folder)
    done = run(store, f"file://{tmp_path}/runs")
    assert done.exit_code == 1
    assert f"{POLICY} version {folder.name}, which is no longer stored" in done.stderr
