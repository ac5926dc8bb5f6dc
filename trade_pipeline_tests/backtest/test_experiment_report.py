"""A report shows one market: all its trials and baselines on the same dataset."""

import pytest

from trade_pipeline.backtest.experiment_report import write_report
from trade_pipeline.settings.project import read_project
from trade_pipeline.storage import bundles, layout
from trade_pipeline.storage.documents import read_json, write_json
from trade_pipeline.storage.frames import StorageError
from trade_pipeline_tests.deployment import Deployment


def test_backtests_on_another_dataset_are_not_shown_beside_baselines_on_this_one(
    trained: Deployment,
) -> None:
    store = trained.places.store
    experiment = read_project(trained.places.configs).experiments["alone"]
    trial = next(iter(experiment.trials()))
    home = layout.experiment_bundle(store, "alone", "backtest", trial)
    provenance = bundles.current(home).child("provenance.json")
    write_json(provenance, {**read_json(provenance), "dataset_version": "0" * 32})
    with pytest.raises(StorageError, match=rf"another version of the dataset.*: {trial}\. "):
        write_report(store, "alone", experiment, bundles.staging(store, "report"))
