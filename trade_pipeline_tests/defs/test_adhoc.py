"""Ad-hoc backtests from the launchpad: kept once a request, or refused in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from trade_pipeline.backtest.adhoc.request import AdhocRequest
from trade_pipeline.defs.build import build_definitions
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json
from trade_pipeline.storage.frames import read_frame
from trade_pipeline_tests.deployment import Deployment, built_once, copied
from trade_pipeline_tests.small_project import ALPHA

ASSET = dg.AssetKey("adhoc_backtest")
RANGE = {"from": "2021-04-25", "to": "2021-08-23"}  # the test part of fold 0
POLICY = "alone/policy/base.f0.s0"


@pytest.fixture(scope="module")
def deployment(templates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything materialized; each test adds requests of its own."""
    root = tmp_path_factory.mktemp("adhoc") / "project"
    with copied(built_once(templates, "trained"), root) as found:
        yield found


def start(deployment: Deployment, config: dict[str, Any] | None) -> dg.ExecuteInProcessResult:
    """The job as the launchpad starts it; None: with what the launchpad shows."""
    job = build_definitions(deployment.places).resolve_job_def("adhoc_backtest_job")
    run_config = None if config is None else {"ops": {"adhoc": {"config": config}}}
    return job.execute_in_process(
        run_config=run_config, instance=deployment.instance, raise_on_error=False
    )


def said(outcome: dg.ExecuteInProcessResult) -> str:
    events = [event for event in outcome.all_events if event.is_step_failure]
    assert len(events) == 1
    return events[0].step_failure_data.error_display_string


def records(deployment: Deployment) -> list[dg.AssetMaterialization]:
    """What is listed at the asset, newest first."""
    found = deployment.instance.fetch_materializations(ASSET, limit=100).records
    return [one.asset_materialization for one in found if one.asset_materialization is not None]


def test_a_request_is_kept_once_and_listed_with_its_figures(deployment: Deployment) -> None:
    store, before = deployment.places.store, len(records(deployment))
    free = {"fee": {"kind": "flat", "bps": 0}}
    config = {"policy": POLICY, "costs": free, "initial_equity": 5000, **RANGE}
    assert start(deployment, config).success
    record = records(deployment)[0]
    key = str(record.partition)
    assert deployment.instance.get_dynamic_partitions("adhoc_backtest").count(key) == 1

    bundle = bundles.current(layout.adhoc_backtest(store, key))
    bundles.verify(bundle)
    metadata = {name: value.value for name, value in record.metadata.items()}
    assert (record.tags or {})[DATA_VERSION_TAG] == bundle.path.name
    assert metadata["request"]["policy"]["key"] == POLICY
    assert metadata["request"]["environment"]["costs"]["fee"]["bps"] == 0
    assert metadata["report"] == str(bundle.path / "report.html")
    assert Path(str(metadata["report"])).is_file()
    assert "data:image/png" in str(metadata["equity"])
    equity = read_frame(bundle.child("equity.parquet"))
    assert metadata["dagster/row_count"] == equity.height == 117
    assert equity["equity"][0] == 5000
    assert equity["fees"].sum() == 0
    total = float(equity["equity"][-1] / 5000 - 1)
    assert metadata["total_return"] == pytest.approx(total, rel=1e-12)
    assert "warnings" not in metadata
    assert set(read_json(bundle.child("inputs.json"))) >= {f"features/tiny|{ALPHA}"}

    spelled_out = {**config, "series": [ALPHA], "features": "tiny", "baseline": {}}
    assert start(deployment, spelled_out).success
    assert len(records(deployment)) == before + 2
    assert {str(one.partition) for one in records(deployment)[:2]} == {key}
    assert len(list(bundle.path.parent.glob("*/bundle.json"))) == 1
    assert not list((store / "staging").glob("adhoc_backtest-*"))


def test_figures_on_training_rows_are_marked_where_people_look(deployment: Deployment) -> None:
    outcome = start(deployment, {"policy": POLICY, "from": "2020-06-01", "to": "2020-09-01"})
    assert outcome.success
    record = records(deployment)[0]
    assert record.metadata["in-sample"].value == "IN-SAMPLE"
    assert "IN-SAMPLE: 92 of the 92 days" in str(record.metadata["warnings"].value)
    logged = deployment.instance.all_logs(outcome.run_id)
    assert any("IN-SAMPLE" in one.user_message for one in logged)


def test_a_baseline_needs_no_policy_and_no_features(deployment: Deployment) -> None:
    config = {"baseline": {"kind": "sma_cross", "fast": 5, "slow": 20}, "series": [ALPHA], **RANGE}
    assert start(deployment, config).success
    request = records(deployment)[0].metadata["request"].value
    assert request["baseline"] == {"kind": "sma_cross", "fast": 5, "slow": 20}  # type: ignore[index]
    assert request["features"] is None  # type: ignore[index]


def test_what_the_launchpad_opens_with_runs(deployment: Deployment) -> None:
    assert start(deployment, None).success
    record = records(deployment)[0]
    assert record.metadata["request"].value["policy"]["key"] == POLICY  # type: ignore[index, call-overload]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**RANGE}, ["either a policy"]),
        ({"policy": "alone/policy/base.f0.s7", **RANGE}, ["Did you mean 'alone/policy/base.f0"]),
        ({"policy": POLICY, "series": ["made.ALFA.1d"], **RANGE}, [f"Did you mean '{ALPHA}'"]),
        (
            {"policy": POLICY, "from": "2019-01-01", "to": "2020-03-01"},
            ["in no slice", "2022-09-26"],
        ),
        ({"policy": POLICY, "from": "2021-04-25", "to": "2021-04-27"}, ["window of 4 needs 6"]),
        ({"polcy": POLICY, **RANGE}, ["unknown key 'polcy'", "Did you mean 'policy'"]),
        ({"policy": POLICY, **RANGE, "form": "2021-04-25"}, ["'form'", "Did you mean 'from'"]),
        ({"policy": POLICY, **RANGE, "xyz": 1}, ["unknown key 'xyz'", "Known: baseline, costs"]),
        ({"policy": [5], **RANGE}, ["key 'policy'", "text is needed"]),
        ({"policy": POLICY, "series": ALPHA, **RANGE}, [f"'series' is '{ALPHA}'", "a list"]),
        ({"policy": POLICY, "include_final": "perhaps", **RANGE}, ["'perhaps'", "valid boolean"]),
        ({"policy": POLICY, "initial_equity": "lots", **RANGE}, ["'lots'", "valid number"]),
        ({"policy": POLICY, "from": 20210425, "to": "2021-08-23"}, ["'from' is 20210425", "2024-"]),
        ({"policy": POLICY, "to": "2021-08-23"}, ["key 'from' is missing"]),
        ({"baseline": "flat", "series": [ALPHA], **RANGE}, ["'baseline'", "'flat'"]),
        ({"policy": POLICY, "costs": 5, **RANGE}, ["'costs'", "5", "mapping"]),
        ({"policy": POLICY, "costs": {"fee": {"bsp": 1}}, **RANGE}, ["bsp", "Did you mean 'bps'"]),
    ],
    ids=str,
)
def test_a_wrong_request_fails_the_run_in_a_sentence_and_touches_nothing(
    deployment: Deployment, config: dict[str, Any], words: list[str]
) -> None:
    store, listed = deployment.places.store, len(records(deployment))
    before = sorted(store.rglob("*"))
    outcome = start(deployment, config)
    assert not outcome.success
    text = said(outcome)
    assert all(word in text for word in ["adhoc_backtest", *words]), text
    assert not any(word in text for word in ("Traceback", "pydantic", "Received unexpected"))
    assert sorted(store.rglob("*")) == before
    assert len(records(deployment)) == listed


def test_the_launchpad_lists_every_key_with_what_it_is(deployment: Deployment) -> None:
    job = build_definitions(deployment.places).resolve_job_def("adhoc_backtest_job")
    node = job.get_node_named("adhoc").definition
    shown = node.config_schema.config_type.fields  # type: ignore[attr-defined]
    keys = {field.alias or name for name, field in AdhocRequest.model_fields.items()}
    assert set(shown) == keys >= {"policy", "from", "to", "costs"}
    assert all(field.description for field in shown.values())


def test_the_asset_depends_on_every_policy(deployment: Deployment) -> None:
    graph = build_definitions(deployment.places).resolve_asset_graph()
    node = graph.get(ASSET)
    assert node.parent_keys == {dg.AssetKey(["alone", "policy"]), dg.AssetKey(["pair", "policy"])}
    assert isinstance(node.partitions_def, dg.DynamicPartitionsDefinition)
    config = graph.get(ASSET)
    assert not config.is_materializable
