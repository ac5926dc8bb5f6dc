"""Regimes of an experiment: fitted a fold, seen by policies, drawn from, and on every trade."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from typer.testing import CliRunner

from trade_pipeline.cli import app
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.settings.base import SettingsError
from trade_pipeline.settings.regimes import RegimeSettings
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline.training import ledger
from trade_pipeline.training.dataset import load_dataset
from trade_pipeline.training.policy import PolicyError, PolicyRunner
from trade_pipeline.training.regimes import fit_fold
from trade_pipeline_tests.deployment import Deployment, built_once, copied
from trade_pipeline_tests.small_project import EXPERIMENT, materialize, write_yaml

REGIMES = {
    "inputs": ["return_5", "sma_ratio_10"],
    "states": 2,
    "restarts": 2,
    "as_features": True,
}
TRIAL = "base.f1.s0"


def configure(deployment: Deployment, **changes: Any) -> None:
    content = {
        **EXPERIMENT,
        "environment": {
            **EXPERIMENT["environment"],  # type: ignore[dict-item]
            "starts": {"kind": "stratified", "label": "regime"},
        },
        "regimes": {**REGIMES, **changes},
    }
    write_yaml(deployment.places.configs / "experiments" / "alone.yaml", content)


def made(deployment: Deployment, *select: str, **where: str) -> dg.ExecuteInProcessResult:
    return materialize(deployment.places, deployment.instance, *select, **where)


def current(deployment: Deployment, kind: str, partition: str | None = None) -> Any:
    home = layout.experiment_bundle(deployment.places.store, "alone", kind, partition)
    return bundles.current(home)


@pytest.fixture(scope="module")
def trained_with_regimes(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("regimes") / "project"
    with copied(built_once(templates, "imported"), root) as deployment:
        configure(deployment)
        assert made(deployment, "alone/regime_model", "alone/regimes", first="f1").success
        assert made(deployment, "alone/policy", "alone/backtest", first=TRIAL).success
    return root


@pytest.fixture
def with_regimes(trained_with_regimes: Path, tmp_path: Path) -> Iterator[Deployment]:
    with copied(trained_with_regimes, tmp_path / "project") as deployment:
        yield deployment


def test_policies_see_draw_from_and_are_tagged_with_the_regimes_of_their_fold(
    with_regimes: Deployment,
) -> None:
    store = with_regimes.places.store
    table = read_frame(layout.experiment_bundle(store, "alone", "regimes", "f1"))
    assert table.columns == ["ts", "regime", "regime_0", "regime_1"]
    event = with_regimes.instance.get_latest_materialization_event(
        dg.AssetKey(["alone", "regimes"])
    )
    assert event is not None
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata["dagster/column_schema"].value
    assert [column.name for column in shown.columns] == table.columns
    np.testing.assert_allclose(table["regime_0"] + table["regime_1"], 1, atol=1e-6)
    assert set(table["regime"]) == {0, 1}

    policy = current(with_regimes, "policy", TRIAL)
    spec = read_json(policy.child("spec.json"))
    assert spec["observation"]["feature_names"][-2:] == ["regime_0", "regime_1"]
    model = read_json(current(with_regimes, "regime_model", "f1").child("regime_model.json"))
    assert spec["regimes"]["model"] == model["model"]

    dataset = load_dataset(current(with_regimes, "dataset"))
    seen = PolicyRunner.load(policy).features(dataset)
    assert seen.shape == (len(dataset.ts), len(dataset.feature_names) + 2)
    trades = read_frame(current(with_regimes, "backtest", TRIAL).child("trades.parquet"))
    assert trades.height
    before = trades["entry_row"].to_numpy() - 1
    assert trades["regime"].to_list() == table["regime"].gather(before).to_list()
    assert "regime" in current(with_regimes, "backtest", TRIAL).child("trades.csv").path.read_text()

    entries = ledger.entries(store, "alone")
    plain = ledger.configuration_hash(*_settings(with_regimes))
    assert set(entries["configuration"]) != {plain}, "other regimes are another configuration"


def test_rebuilding_a_backtest_fits_its_regimes_again(with_regimes: Deployment) -> None:
    key = f"alone/backtest/{TRIAL}"
    done = CliRunner().invoke(app, ["reproduce", key, "--store", str(with_regimes.places.store)])
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert "regimes of fold 1 fitted" in done.output


def test_a_regime_model_is_rebuilt(with_regimes: Deployment) -> None:
    store = str(with_regimes.places.store)
    done = CliRunner().invoke(app, ["reproduce", "alone/regime_model/f1", "--store", store])
    assert done.exit_code == 0, done.output + repr(done.exception)


def test_a_model_of_another_dataset_or_one_that_was_changed_is_not_trained_with(
    with_regimes: Deployment,
) -> None:
    location = current(with_regimes, "regime_model", "f1")
    document = location.child("regime_model.json")
    changed = read_json(document)
    changed["dataset_version"] = "0" * 32
    write_json(document, changed)
    assert "regime_model.json" in failure(made(with_regimes, "alone/policy", first=TRIAL))
    reference = bundles.seal(location, ["regime_model.json", "trials.parquet"])
    location.path.rename(location.path.with_name(reference.version))
    home = layout.experiment_bundle(with_regimes.places.store, "alone", "regime_model", "f1")
    write_json(home.child("current.json"), {"version": reference.version})
    said = failure(made(with_regimes, "alone/policy", first=TRIAL))
    assert "materialize regime_model of this fold again" in said


def test_a_policy_whose_regimes_cannot_be_true_is_refused(with_regimes: Deployment) -> None:
    policy = current(with_regimes, "policy", TRIAL)
    spec = read_json(policy.child("spec.json"))
    spec["regimes"]["model"]["transition"][0] = [0.5, 0.6]
    write_json(policy.child("spec.json"), spec)
    index = json.loads((policy.path / "bundle.json").read_text())
    deterministic = [one["name"] for one in index["members"] if one["deterministic"]]
    bundles.seal(policy, deterministic)
    with pytest.raises(PolicyError, match="transition"):
        PolicyRunner.load(policy)


def test_only_training_rows_of_the_fold_are_fitted_on(imported: Deployment) -> None:
    dataset = load_dataset(current(imported, "dataset"))
    settings = RegimeSettings.model_validate(REGIMES)
    fitted = fit_fold(dataset, settings, 0, "alone")
    inside = np.zeros(len(dataset.ts), np.bool_)
    for a, b in dataset.folds[0].train:
        inside[a:b] = True
    outside = np.array(dataset.features)
    outside[~inside] = 1e6
    object.__setattr__(dataset, "features", outside)
    assert fit_fold(dataset, settings, 0, "alone").model.document() == fitted.model.document()


def test_assets_exist_for_experiments_with_regimes_only_and_follow_their_settings(
    imported: Deployment,
) -> None:
    before = build_definitions(imported.places).resolve_asset_graph()
    assert dg.AssetKey(["alone", "regime_model"]) not in before.get_all_asset_keys()
    configure(imported)
    graph = build_definitions(imported.places).resolve_asset_graph()
    assert dg.AssetKey(["pair", "regime_model"]) not in graph.get_all_asset_keys()
    policy, model = (dg.AssetKey(["alone", kind]) for kind in ("policy", "regime_model"))
    assert model in graph.get(policy).parent_keys
    versions = [graph.get(key).code_version for key in (policy, model)]
    configure(imported, seed=1)
    changed = build_definitions(imported.places).resolve_asset_graph()
    for key, version in zip((policy, model), versions, strict=True):
        assert changed.get(key).code_version != version
    dataset = dg.AssetKey(["alone", "dataset"])
    assert changed.get(dataset).code_version == before.get(dataset).code_version
    pair = dg.AssetKey(["pair", "policy"])
    assert changed.get(pair).code_version == before.get(pair).code_version


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": ["return_7"]}, "'return_7' is no feature of tiny.*return_5"),
        ({"series": "made.BETA.1d"}, "regimes.series 'made.BETA.1d' is not listed"),
        ({"inputs": ["sma_ratio_10", "return_1"]}, "the first one is 'sma_ratio_10', but states"),
        ({"states": 1}, "states"),
        ({"states": [2, 2]}, "listed twice"),
        ({"sates": 2}, "sates"),
    ],
)
def test_wrong_settings_stop_at_load(
    imported: Deployment, changes: dict[str, Any], words: str
) -> None:
    configure(imported, **changes)
    with pytest.raises(SettingsError, match=words):
        build_definitions(imported.places)


def test_starts_by_regime_need_regimes(imported: Deployment) -> None:
    content = {
        **EXPERIMENT,
        "environment": {
            **EXPERIMENT["environment"],  # type: ignore[dict-item]
            "starts": {"kind": "stratified", "label": "regime"},
        },
    }
    write_yaml(imported.places.configs / "experiments" / "alone.yaml", content)
    with pytest.raises(SettingsError, match=r"'regime' is no feature.*configure `regimes`"):
        build_definitions(imported.places)


def failure(found: dg.ExecuteInProcessResult) -> str:
    assert not found.success
    events = [event for event in found.all_events if event.is_step_failure]
    return str(events[0].step_failure_data.error_display_string)


def _settings(deployment: Deployment) -> Any:
    from trade_pipeline.settings.project import read_project

    return read_project(deployment.places.configs).experiments["alone"].variant("base")
