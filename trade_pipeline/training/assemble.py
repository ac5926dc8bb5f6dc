"""An experiment's dataset out of the store: reads its series' features, manifests and bars."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from trade_pipeline.features.causality_verdicts import require_causal
from trade_pipeline.features.registry import FeatureSet
from trade_pipeline.market.stored import read_grids, read_manifest
from trade_pipeline.settings.experiment import ExperimentSettings
from trade_pipeline.settings.project import Project
from trade_pipeline.storage import layout
from trade_pipeline.storage.documents import json_hash, read_json
from trade_pipeline.storage.frames import StorageError, content_hash, read_frame
from trade_pipeline.training.dataset import Dataset, SeriesInput, build_dataset


def assemble_dataset(
    store: Path,
    project: Project,
    experiment: ExperimentSettings,
    feature_set: FeatureSet,
    origin: str,
) -> Dataset:
    """Read what the experiment names and build its dataset.

    Args:
        store: the store's folder.
        project: series settings by key.
        experiment: what to assemble.
        feature_set: the experiment's, resolved.
        origin: the experiment's file, as errors name it.

    Raises:
        StorageError: a feature table or manifest is not materialized, or a table looks ahead.
        SplitError: the series share too few rows.
    """
    inputs, versions = read_inputs(
        store, project, experiment.series, experiment.features, feature_set.references, origin
    )
    return build_dataset(inputs, experiment, feature_set, versions, origin)


def read_inputs(
    store: Path,
    project: Project,
    series: Sequence[str],
    features: str,
    references: Sequence[str],
    origin: str,
) -> tuple[list[SeriesInput], dict[str, str]]:
    """Grids and feature tables of some series, and the content hash of all that was read.

    Args:
        store: the store's folder.
        project: series settings by key.
        series: their keys.
        features: name of a feature set.
        references: keys of other series that the set reads.
        origin: who asks, as errors name it.

    Raises:
        StorageError: a feature table or manifest is not materialized, or a table looks ahead.
    """
    inputs, versions = [], {}
    for key in series:
        location = layout.features(store, features, key)
        if not location.path.exists():
            raise StorageError(
                f"{origin}: features/{features} of {key} are not materialized; "
                "materialize manifest and features of that series first."
            )
        table = read_frame(location)
        require_causal(store, features, key, content_hash(table))
        one = project.series[key]
        inputs.append(SeriesInput(one, read_grids(store, one, as_stored=True), table))
        versions[f"features/{features}|{key}"] = content_hash(table)
    return inputs, versions | bar_versions(store, (*series, *references))


def bar_versions(store: Path, series: Iterable[str]) -> dict[str, str]:
    """Content hashes of some series: `manifest|<key>` and `ohlcv|<key>|<year>`.

    Raises:
        StorageError: a manifest is not materialized.
    """
    versions = {}
    for key in dict.fromkeys(series):
        versions[f"manifest|{key}"] = json_hash(read_json(layout.manifest(store, key)))
        for year, version in read_manifest(store, key).partition_hashes.items():
            versions[f"ohlcv|{key}|{year}"] = version
    return versions
