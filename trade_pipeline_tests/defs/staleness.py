"""What Dagster itself calls stale."""

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from trade_pipeline.defs.build import build_definitions
from trade_pipeline_tests.deployment import Deployment


def statuses(deployment: Deployment) -> dict[str, StaleStatus]:
    """Status of every partition, by `asset` or `asset|partition`."""
    graph = build_definitions(deployment.places).resolve_asset_graph()
    instance = deployment.instance
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    found = {}
    for key in graph.materializable_asset_keys:
        node = graph.get(key)
        name = key.to_user_string()
        if node.partitions_def is None:
            found[name] = resolver.get_status(key)
        else:
            for partition in node.partitions_def.get_partition_keys():
                found[f"{name}|{partition}"] = resolver.get_status(key, partition)
    return found


def stale(deployment: Deployment) -> set[str]:
    """Names of what is stale; asserts that nothing but unused features is missing."""
    return {name for name, status in statuses(deployment).items() if status == StaleStatus.STALE}


def version(deployment: Deployment, asset: str, partition: str | None = None) -> str:
    """Latest data version that the event log holds."""
    from dagster._core.definitions.data_version import extract_data_version_from_entry

    record = deployment.instance.get_latest_data_version_record(
        dg.AssetKey(asset.split("/")), partition_key=partition
    )
    assert record is not None
    found = extract_data_version_from_entry(record.event_log_entry)
    assert found is not None
    return found.value
