"""A sweep in an experiment's file, as people see it."""

import dagster as dg

from trade_pipeline.defs.build import build_definitions
from trade_pipeline_tests.deployment import Deployment
from trade_pipeline_tests.small_project import EXPERIMENT, write_yaml


def test_swept_trials_are_partitions_and_a_table_says_what_each_is(empty: Deployment) -> None:
    path = empty.places.configs / "experiments" / "alone.yaml"
    write_yaml(path, {**EXPERIMENT, "sweep": {"algorithm.gamma": [0.9, 0.99]}})
    policy = (
        build_definitions(empty.places).resolve_asset_graph().get(dg.AssetKey(["alone", "policy"]))
    )
    assert policy.partitions_def is not None
    assert policy.partitions_def.get_partition_keys() == [
        f"base_gamma_{gamma}.f{fold}.s{seed}"
        for gamma in ("0p9", "0p99")
        for fold in (0, 1)
        for seed in (0, 1)
    ]
    table = policy.metadata["variants"].value
    assert "| base_gamma_0p9 | `{algorithm: {gamma: 0.9}}` |" in table
    assert "| base_gamma_0p99 | `{algorithm: {gamma: 0.99}}` |" in table
