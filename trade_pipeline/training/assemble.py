"""An experiment's dataset out of the store: reads its series' features, manifests and bars."""

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
    inputs, versions = [], {}
    for key in experiment.series:
        location = layout.features(store, experiment.features, key)
        if not location.path.exists():
            raise StorageError(
                f"{origin}: features/{experiment.features} of {key} are not materialized; "
                "materialize manifest and features of that series first."
            )
        features = read_frame(location)
        require_causal(store, experiment.features, key, content_hash(features))
        inputs.append(
            SeriesInput(project.series[key], read_grids(store, project.series[key]), features)
        )
        versions[f"features/{experiment.features}|{key}"] = content_hash(features)
    for key in dict.fromkeys((*experiment.series, *feature_set.references)):
        versions[f"manifest|{key}"] = json_hash(read_json(layout.manifest(store, key)))
        for year, version in read_manifest(store, key).partition_hashes.items():
            versions[f"ohlcv|{key}|{year}"] = version
    return build_dataset(inputs, experiment, feature_set, versions, origin)
