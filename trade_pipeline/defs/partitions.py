"""Partitions and the explicit mappings between them.

Two multi-partitioned assets mapped by default silently load the wrong data, so no mapping here
is left to Dagster. Start at `Partitions.of(project)`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import dagster as dg

from trade_pipeline.market.importing import SeriesYear
from trade_pipeline.settings.project import Project


@dataclass(frozen=True)
class Partitions:
    """Partition definitions shared by the assets of a project."""

    series: dg.StaticPartitionsDefinition
    year: dg.TimeWindowPartitionsDefinition
    series_by_year: dg.MultiPartitionsDefinition

    @classmethod
    def of(cls, project: Project) -> "Partitions":
        """Series in the order of series.yaml; years from the earliest `first_year` to this one."""
        series = dg.StaticPartitionsDefinition(list(project.series))
        year = dg.TimeWindowPartitionsDefinition(
            start=str(min(one.first_year for one in project.series.values())),
            fmt="%Y",
            cron_schedule="0 0 1 1 *",
            end_offset=1,  # the current year is a partition before it ends
        )
        both = dg.MultiPartitionsDefinition({"series": series, "year": year})
        return cls(series, year, both)


def partitions_of_run(context: dg.AssetExecutionContext) -> list[str]:
    """Partition keys of a run.

    Raises:
        Failure: the run has none: Dagster takes a range whose end comes before its start as empty.
    """
    keys = list(context.partition_keys)
    if not keys:
        raise dg.Failure(
            "This run has no partition: the range ends before it starts. Name first and last "
            "partition in the order of the web UI.",
            allow_retries=False,
        )
    return keys


def series_years(keys: Iterable[str]) -> list[SeriesYear]:
    """Split the multi-partition keys of a run."""
    found = []
    for key in keys:
        if not isinstance(key, dg.MultiPartitionKey):
            raise TypeError(f"partition {key!r} is not a series and a year")
        dimensions = key.keys_by_dimension
        found.append(SeriesYear(dimensions["series"], int(dimensions["year"])))
    return found


def all_years() -> dg.PartitionMapping:
    """A series depends on all its years of a series-by-year asset."""
    return dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="series")


def same_partition() -> dg.PartitionMapping:
    """Equal keys on both sides."""
    return dg.IdentityPartitionMapping()


def same_and(always: Iterable[str], every: Iterable[str]) -> dg.PartitionMapping:
    """Equal keys on both sides, and some upstream keys that all depend on.

    Args:
        always: upstream keys that every downstream partition depends on.
        every: all keys; the same on both sides.
    """
    keys, shared = list(every), set(always)
    if not shared:
        return same_partition()
    return dg.StaticPartitionMapping({key: keys if key in shared else [key] for key in keys})


def these_series(keys: Iterable[str]) -> dg.PartitionMapping:
    """An unpartitioned asset depends on these series; keys were checked against series.yaml."""
    return dg.SpecificPartitionsPartitionMapping(list(keys))
