"""The bars that a feature set reads for one series, out of the store. Start at `read_segments`."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from trade_pipeline.features.references import Reference, with_references
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.market.stored import read_grids
from trade_pipeline.settings.series import SeriesSettings


def read_segments(
    store: Path, key: str, series: Mapping[str, SeriesSettings], feature_set: FeatureSet
) -> list[pl.DataFrame]:
    """A series' slices with the other series that the set reads, for `table.feature_table`.

    Args:
        store: the store's folder.
        key: of the series.
        series: settings of it and of the set's references.
        feature_set: resolved.

    Raises:
        StorageError: bars or manifest of one of them are missing or do not fit each other.
    """
    grids = read_grids(store, series[key])
    references = {
        other: Reference(
            grids if other == key else read_grids(store, series[other]), series[other].timeframe_ms
        )
        for other in feature_set.references
    }
    return with_references(grids, references, feature_set.reference_columns)
