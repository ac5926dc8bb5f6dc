"""The shipped code location: it loads quickly, and every key that it names exists."""

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from trade_pipeline.defs.build import build_definitions
from trade_pipeline.defs.partitions import Partitions, series_years
from trade_pipeline.market.importing import SeriesYear
from trade_pipeline.settings.experiment import MOST_TRIALS
from trade_pipeline.settings.project import Places, read_project

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
HEAVY = ("torch", "stable_baselines3", "matplotlib", "plotly", "numba", "ccxt", "yfinance")
STEPS = ("dataset", "trials", "report")
PROJECT = read_project(CONFIGS)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dg.Definitions:
    store = tmp_path_factory.mktemp("shipped") / "store"
    definitions = build_definitions(Places(configs=CONFIGS, store=store))
    assert not store.exists(), "loading must not touch the store"
    return definitions


def test_the_assets_are_those_of_the_configs(shipped: dg.Definitions) -> None:
    keys = {key.to_user_string() for key in shipped.resolve_asset_graph().materializable_asset_keys}
    assert keys == {
        "ohlcv",
        "manifest",
        "leaderboard",
        "storage_use",
        "pod_costs",
        "volume_storage",
        *(f"features/{name}" for name in PROJECT.feature_sets),
        *(
            f"{name}/{kind}"
            for name in PROJECT.experiments
            for kind in ("dataset", "policy", "backtest", "report", "promoted")
        ),
    }
    assert {"features/daily", "aapl_ppo/policy", "tech_portfolio_ppo/report"} <= keys


def test_dagster_accepts_all_of_it(shipped: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(shipped)
    jobs = {job.name for job in shipped.resolve_all_job_defs()}
    steps = {f"{name}_{step}" for name in PROJECT.experiments for step in STEPS}
    assert {"refresh_bars", *steps} <= jobs


def test_every_upstream_partition_that_is_named_exists(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    named = 0
    for key in graph.materializable_asset_keys:
        for dependency in graph.get(key).assets_def.get_asset_spec(key).deps:
            mapping = dependency.partition_mapping
            upstream = graph.get(dependency.asset_key).partitions_def
            if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
                assert upstream is not None
                assert set(mapping.partition_keys) <= set(upstream.get_partition_keys())
                named += len(mapping.partition_keys)
    # An experiment names its series of features and of the manifest.
    assert named == sum(2 * len(one.series) for one in PROJECT.experiments.values())


def test_no_mapping_between_partitioned_assets_is_left_to_dagster(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        for dependency in graph.get(key).assets_def.get_asset_spec(key).deps:
            if graph.get(dependency.asset_key).partitions_def is not None:
                assert dependency.partition_mapping is not None, (key, dependency.asset_key)


def test_nothing_depends_on_more_partitions_than_staleness_sees(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    years = Partitions.of(PROJECT).year.get_partition_keys()
    assert 20 <= len(years) <= MOST_TRIALS
    assert len(PROJECT.series) <= MOST_TRIALS
    for key in graph.materializable_asset_keys:
        partitions = graph.get(key).partitions_def
        if isinstance(partitions, dg.StaticPartitionsDefinition):
            assert len(partitions.get_partition_keys()) <= MOST_TRIALS, key


def test_the_trials_are_the_partitions_of_policy_and_backtest(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    for name, experiment in PROJECT.experiments.items():
        for kind in ("policy", "backtest"):
            partitions = graph.get(dg.AssetKey([name, kind])).partitions_def
            assert partitions is not None
            assert partitions.get_partition_keys() == list(experiment.trials())


def test_every_asset_has_a_code_version_and_a_description(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    for key in graph.materializable_asset_keys:
        spec = graph.get(key).assets_def.get_asset_spec(key)
        assert spec.code_version, key
        assert spec.description, key


def test_what_is_stored_is_checked_before_anything_downstream(shipped: dg.Definitions) -> None:
    graph = shipped.resolve_asset_graph()
    names = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys}
    data = {"ohlcv", "manifest", *(f"features/{name}" for name in PROJECT.feature_sets)}
    of_bars = {"valid_bars", "gaps", "outliers", "source_differences", "fresh"}
    assert names == {
        *((asset, "stored") for asset in data),
        *((f"features/{name}", "causal") for name in PROJECT.feature_sets),
        *((f"{name}/dataset", "causal") for name in PROJECT.experiments),
        *(("ohlcv", name) for name in of_bars),
        ("volume_storage", "size"),
    }
    stops = [key for key in graph.asset_check_keys if key.name in ("stored", "causal")]
    assert all(graph.get_check_spec(key).blocking for key in stops)


def test_loading_the_code_location_imports_nothing_heavy(tmp_path: Path) -> None:
    lines = [
        "import json, sys, trade_pipeline.definitions as location",
        "keys = location.defs.resolve_asset_graph().materializable_asset_keys",
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]",
        "print(json.dumps({'keys': len(keys), 'loaded': loaded}))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env={
            **os.environ,
            "TRADE_PIPELINE_CONFIGS": str(CONFIGS),
            "TRADE_PIPELINE_STORE": str(tmp_path / "store"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == []
    assert found["keys"] == 6 + len(PROJECT.feature_sets) + 5 * len(PROJECT.experiments)
    assert "BetaWarning" not in done.stderr, "warnings would hide what a user should see"


def test_keys_of_series_and_year_are_looked_up_not_parsed() -> None:
    key = dg.MultiPartitionKey({"series": "kraken.BTC-USD.1m", "year": "2025"})
    assert series_years([key]) == [SeriesYear("kraken.BTC-USD.1m", 2025)]
    with pytest.raises(TypeError, match=r"kraken\.BTC-USD\.1m\|2025"):
        series_years(["kraken.BTC-USD.1m|2025"])
