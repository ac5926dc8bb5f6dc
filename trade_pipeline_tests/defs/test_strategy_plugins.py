"""Rules and strategies of plug-ins in an experiment's report: named, versioned, harmless."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from trade_pipeline.backtest.plugins import loading as plugins
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.backtest.plugins.distributions import HEAD, SMA, Install, installing
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import PAIR, materialize, write_yaml

REPORT = dg.AssetKey(["pair", "report"])
CHEAT = SMA.replace("row - 2 : row + 1", "row : row + 2")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions into folders on the path, for one test."""
    monkeypatch.setattr(plugins, "_TRIED", {})
    monkeypatch.setattr(plugins, "_TRIED_ON", set())
    with installing(tmp_path / "sites", monkeypatch) as install:
        yield install


def list_baselines(deployment: Deployment, *entries: dict[str, Any]) -> None:
    path = deployment.places.configs / "experiments" / "pair.yaml"
    write_yaml(path, {**PAIR, "baselines": list(entries)})


def code_version(deployment: Deployment) -> str | None:
    return build_definitions(deployment.places).resolve_asset_graph().get(REPORT).code_version


def why_failed(deployment: Deployment, asset: str = "pair/report") -> str:
    done = materialize(deployment.places, deployment.instance, asset)
    assert not done.success
    step = next(event for event in done.all_events if event.is_step_failure)
    error = step.step_failure_data.error
    assert error is not None
    return f"{error.message} {error.cause.message if error.cause else ''}"


def test_a_report_shows_every_rule_and_a_strategy_with_its_version(
    trained: Deployment, install: Install
) -> None:
    install(HEAD + SMA, {"average": "Average"})
    list_baselines(
        trained,
        {"kind": "donchian"},
        {"kind": "donchian", "exit": 5},
        {"kind": "rsi_reversion"},
        {"kind": "momentum", "lookback": 20},
        {"kind": "volatility_target"},
        {"kind": "inverse_volatility"},
        {"kind": "plugin", "name": "average", "parameters": {"period": 9}},
    )
    assert materialize(trained.places, trained.instance, "pair/report").success
    report = bundles.current(layout.experiment_bundle(trained.places.store, "pair", "report"))
    rows = read_frame(report.child("leaderboard.parquet"))
    assert set(rows["name"]) == {
        "base",
        "donchian_20_10",
        "donchian_20_5",
        "rsi_reversion_14_30_70",
        "momentum_20",
        "volatility_target_0p15_60",
        "inverse_volatility_60_20",
        "average_period_9",
    }
    assert rows["total_return"].n_unique() > 6
    provenance = read_json(report.child("provenance.json"))
    assert provenance["strategies"] == {"average": "made-up 1.2.3"}


def test_a_report_is_stale_when_the_distribution_has_another_version(
    empty: Deployment, install: Install
) -> None:
    plain = code_version(empty)
    install(HEAD + SMA, {"average": "Average"})
    assert code_version(empty) == plain, "an experiment without it"
    list_baselines(empty, {"kind": "equal_weight"}, {"kind": "plugin", "name": "average"})
    first = code_version(empty)
    assert first not in (plain, None)
    install(HEAD + SMA, {"average": "Average"}, version="1.2.4")
    second = code_version(empty)
    assert second not in (plain, first, None)
    install(HEAD + SMA, {"average": "Average"})
    assert code_version(empty) == first


def test_a_broken_strategy_fails_the_report_and_leaves_the_code_location_alone(
    trained: Deployment, install: Install
) -> None:
    list_baselines(trained, {"kind": "plugin", "name": "average"})
    install("import nump as np", {"average": "Average"})
    assert code_version(trained)
    said = why_failed(trained)
    for word in ("'average' of made-up 1.2.3", "made_up_strategies:Average", "named 'nump'"):
        assert word in said
    install(HEAD + CHEAT, {"average": "Average"}, version="2.0")
    said = why_failed(trained)
    for word in ("'average' of made-up 2.0", "looks ahead", "row "):
        assert word in said


def test_a_name_that_is_not_installed_is_told_with_file_and_what_is_near(
    empty: Deployment, install: Install
) -> None:
    install(HEAD + SMA, {"average": "Average"})
    list_baselines(empty, {"kind": "plugin", "name": "avrage"})
    with pytest.raises(SettingsError) as refused:
        build_definitions(empty.places)
    for word in ("pair.yaml: key 'baselines': there is no strategy 'avrage'", "'average'?"):
        assert word in str(refused.value)


@pytest.mark.parametrize("wrong", [{"perod": 5}, {"period": "5"}, {"period": True}])
def test_wrong_parameters_fail_the_dataset_before_anything_is_trained(
    imported: Deployment, install: Install, wrong: dict[str, Any]
) -> None:
    install(HEAD + SMA, {"average": "Average"})
    list_baselines(imported, {"kind": "plugin", "name": "average", "parameters": wrong})
    said = why_failed(imported, "pair/dataset")
    for word in ("pair.yaml: key 'baselines'", "'average' of made-up 1.2.3", next(iter(wrong))):
        assert word in said


def test_a_strategy_that_cannot_be_made_is_warned_of_before_anything_is_trained(
    imported: Deployment, install: Install, capfd: pytest.CaptureFixture[str]
) -> None:
    install("import nump as np", {"average": "Average"})
    list_baselines(imported, {"kind": "plugin", "name": "average"})
    assert materialize(imported.places, imported.instance, "pair/dataset").success
    assert "pair/report will fail: strategy 'average' of made-up 1.2.3" in capfd.readouterr().err
