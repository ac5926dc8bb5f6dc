"""The asset `<experiment>/promoted` over the small project."""

from typing import Any

import dagster as dg

import trade_pipeline
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline_tests.defs.staleness import stale, version
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import PAIR, materialize, write_yaml

TRIAL = "base.f0.s0"
ANYTHING = {"metric": "total_return", "beat": []}
NOTHING = {"metric": "total_return", "beat": [], "max_drawdown": 1e-9}


def rule(deployment: Deployment, promotion: dict[str, Any]) -> None:
    content = {**PAIR, "final_from": "2022-06-01", "promotion": promotion}
    write_yaml(deployment.places.configs / "experiments" / "pair.yaml", content)


def promote(deployment: Deployment) -> dict[str, Any]:
    """Materialize it; what its metadata say."""
    done = materialize(deployment.places, deployment.instance, "pair/promoted")
    assert done.success
    (event,) = done.get_asset_materialization_events()
    metadata = event.step_materialization_data.materialization.metadata
    return {name: value.value for name, value in metadata.items()}


def test_a_policy_is_promoted_shown_the_final_period_once_and_stays(imported: Deployment) -> None:
    rule(imported, NOTHING)
    places, instance = imported.places, imported.instance
    assert materialize(places, instance, "pair/dataset").success
    assert materialize(places, instance, "pair/policy", "pair/backtest", first=TRIAL).success
    assert materialize(places, instance, "pair/report").success

    home = layout.experiment_bundle(places.store, "pair", "promoted")
    said = promote(imported)
    assert "No policy qualifies, so nothing is promoted." in said["decision"]
    assert "its drawdown of" in said["decision"]
    assert said["final evaluations"] == 0
    assert bundles.current_version(home) is None
    assert stale(imported) & {"pair/promoted"} == set()

    rule(imported, ANYTHING)
    assert stale(imported) & {"pair/report", "pair/promoted"} == {"pair/promoted"}
    said = promote(imported)
    assert f"{TRIAL} is promoted." in said["decision"]
    assert f"{TRIAL} (median)" in said["validation"]
    assert "equal_weight" in said["final"]
    assert "data:image/png" in said["final equity"]
    assert said["final evaluations"] == 1
    pointer = bundles.current(home)
    assert version(imported, "pair/promoted") == pointer.path.name
    policy = layout.experiment_bundle(places.store, "pair", "policy", TRIAL)
    found = read_json(pointer.child("promotion.json"))["policy"]
    assert found["version"] == bundles.current_version(policy) == version(imported, *policy_asset())
    loaded = trade_pipeline.load_policy("pair", configs=places.configs, store=places.store)
    assert loaded.trial.key == TRIAL
    assert len(trade_pipeline.backtest(loaded).equity) > 1

    again = promote(imported)
    assert "stays promoted" in again["decision"]
    assert {name: again[name] for name in ("final", "final equity", "final evaluations")} == {
        name: said[name] for name in ("final", "final equity", "final evaluations")
    }
    assert bundles.current(home) == pointer
    assert version(imported, "pair/promoted") == pointer.path.name
    assert not list((places.store / "staging").iterdir())


def policy_asset() -> tuple[str, str]:
    return "pair/policy", TRIAL


def test_promoted_depends_on_the_report_alone(imported: Deployment) -> None:
    from trade_pipeline.defs.build import build_definitions

    graph = build_definitions(imported.places).resolve_asset_graph()
    node = graph.get(dg.AssetKey(["pair", "promoted"]))
    assert node.parent_keys == {dg.AssetKey(["pair", "report"])}
    assert node.partitions_def is None
